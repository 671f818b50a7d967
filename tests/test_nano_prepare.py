"""nano's data preparation: readers on files made here, splits and attribution of the committed selection."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

RECIPE = Path(__file__).parent.parent / "recipes" / "nano"
sys.path.insert(0, str(RECIPE))

from prepare import building, command, packages, selection, splits  # noqa: E402
from prepare.attribution import attribution  # noqa: E402
from prepare.debs import read_deb  # noqa: E402
from prepare.edj import largest_jpeg  # noqa: E402
from prepare.errors import PrepareError  # noqa: E402
from prepare.packages import PACKAGES, Package, check, fetch, find  # noqa: E402
from prepare.pictures import encode_photo, encode_sprite  # noqa: E402
from prepare.rcc import Resources  # noqa: E402
from prepare.sdist import read_film  # noqa: E402
from prepare.video import encode_clip, encode_film, joined  # noqa: E402

RAW, ZLIB = 0, 1
GRADIENT = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)


def jpeg(width: int = 80, height: int = 60, quality: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(GRADIENT).convert("RGB").resize((width, height)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def rcc(files: dict[str, tuple[int, bytes]], version: int = 2, folder: str = "pictures") -> bytes:
    """An .rcc with one folder; a file is (flags, content)."""
    names, offsets = b"", {}
    for text in (folder, *files):
        offsets[text] = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
    data, places = b"", {}
    for text, (flags, content) in files.items():
        places[text] = len(data)
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if flags & ZLIB else content
        data += struct.pack(">I", len(packed)) + packed
    time = b"" if version == 1 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 1, 1) + time
    tree += struct.pack(">IHII", offsets[folder], 2, len(files), 2) + time
    for text, (flags, _) in files.items():
        tree += struct.pack(">IHHHI", offsets[text], flags, 0, 1, places[text]) + time
    start = 20 if version < 3 else 24
    header = b"qres" + struct.pack(">4I", version, start, start + len(tree), start + len(tree) + len(data))
    return header + bytes(start - 20) + tree + data + names


def deb(path: Path, files: dict[str, bytes], suffix: str = ".xz", link: str = "") -> Path:
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(f"./{link}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(info)
    pack = {".xz": lzma.compress, ".gz": gzip.compress, "": bytes}[suffix]
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{suffix}": pack(tarred.getvalue())}
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path


def video(num_frames: int, size: tuple[int, int] = (128, 72), fps: int = 24) -> bytes:
    """Frame n is grey of brightness 16 + n * 6."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "5", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 16 + 6 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


# Qt resources


@pytest.mark.parametrize("version", [1, 2, 3])
def test_rcc_raw_and_zlib(version: int) -> None:
    content = {"a.webp": (RAW, b"plain"), "é.txt": (ZLIB, b"packed" * 100), "empty": (RAW, b"")}
    resources = Resources(rcc(content, version), "x.rcc")
    assert list(resources) == ["/pictures/a.webp", "/pictures/é.txt", "/pictures/empty"]
    assert {path: resources.read(path) for path in resources} == {f"/pictures/{k}": v for k, (_, v) in content.items()}
    with pytest.raises(PrepareError, match="another version"):
        resources.read("/pictures/b")


def test_rcc_cut_off_anywhere() -> None:
    whole = rcc({"a": (RAW, b"0123456789"), "b": (ZLIB, b"xyz" * 50)})
    for length in range(0, len(whole), 3):
        with pytest.raises(PrepareError):
            resources = Resources(whole[:length], "x.rcc")
            for path in resources:
                resources.read(path)


def test_rcc_hostile() -> None:
    with pytest.raises(PrepareError, match="no Qt resource"):
        Resources(b"PK\3\4" + bytes(60), "x.rcc")
    with pytest.raises(PrepareError, match="version 9"):
        Resources(b"qres" + struct.pack(">4I", 9, 20, 20, 20), "x.rcc")
    # a folder that is its own child
    loop = b"qres" + struct.pack(">4I", 1, 20, 34, 34) + struct.pack(">IHII", 0, 2, 1, 0) + bytes(8)
    with pytest.raises(PrepareError, match="no end"):
        Resources(loop, "x.rcc")
    # a small entry that says it is large, and one that is larger than it says
    for promised in (1 << 31, 10):
        packed = struct.pack(">I", promised) + zlib.compress(bytes(1000))
        broken = Resources(rcc({"a": (RAW, packed)}).replace(b"\0\0\0\0\0\1\0\0\0\0", b"\0\1\0\0\0\1\0\0\0\0"), "x.rcc")
        broken._files["/pictures/a"].flags = ZLIB
        with pytest.raises(PrepareError, match="bytes"):
            broken.read("/pictures/a")


# Enlightenment backgrounds


def test_edj_gives_the_largest_jpeg() -> None:
    small, large = jpeg(40, 30, quality=100), jpeg(90, 70, quality=5)
    data = b"EET!" + small + b"\xff\xd8\xff\xe0junk" + large + b"\xff\xd8\xff"
    assert largest_jpeg(data, "x.edj").startswith(large)
    assert Image.open(io.BytesIO(largest_jpeg(data, "x.edj"))).size == (90, 70)


def test_edj_without_a_jpeg() -> None:
    bomb = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20)
    endless = b"\xff\xd8" + b"\xff\xe0\x00\x00" * 50
    for data in (b"", b"EET!" + bytes(100), b"\xff\xd8\xff", bomb, endless, jpeg()[:100]):
        with pytest.raises(PrepareError, match="no JPEG"):
            largest_jpeg(data, "x.edj")


# Debian packages


@pytest.mark.parametrize("suffix", [".xz", ".gz", ""])
def test_deb(tmp_path: Path, suffix: str) -> None:
    files = {"usr/a.png": b"one" * 70_000, "usr/b.png": b"two", "usr/c": b"three"}
    path = deb(tmp_path / "x_1_all.deb", files, suffix)
    assert dict(read_deb(path, {"usr/a.png", "usr/b.png"})) == {k: files[k] for k in ("usr/a.png", "usr/b.png")}
    with pytest.raises(PrepareError, match=r"x_1_all\.deb holds no usr/d"):
        list(read_deb(path, {"usr/c", "usr/d"}))


def test_deb_damaged(tmp_path: Path) -> None:
    path = deb(tmp_path / "x.deb", {"a": np.random.default_rng(0).bytes(3000)}, link="b")
    with pytest.raises(PrepareError, match="no plain file"):
        list(read_deb(path, {"b"}))
    whole = path.read_bytes()
    for length in (4, 50, 70, 150, len(whole) - 1500):
        path.write_bytes(whole[:length])
        with pytest.raises(PrepareError, match=r"x\.deb"):
            list(read_deb(path, {"a"}))


# Packages


def test_pins_are_complete() -> None:
    used = {row["package"] for row in selection.photos() + selection.sprites() + selection.fixtures()} | {"moviepy"}
    assert used == set(PACKAGES)
    assert all(len(package.sha256) == 64 and package.num_bytes > 0 for package in PACKAGES.values())
    assert PACKAGES["openclipart-png"].file_name == "openclipart-png_1%3a0.18+dfsg-19_all.deb"


def small_package(content: bytes, kind: str = "deb") -> Package:
    return Package("little", "1:2", hashlib.sha256(content).hexdigest(), len(content), kind)


def test_changed_package_is_named(tmp_path: Path) -> None:
    package = small_package(b"right")
    assert find(package, [tmp_path]) is None
    (tmp_path / "little_1:2_all.deb").write_bytes(b"right")
    assert find(package, [tmp_path / "none", tmp_path]) == tmp_path / "little_1:2_all.deb"
    (tmp_path / "little_1%3a2_all.deb").write_bytes(b"wrong")
    with pytest.raises(PrepareError, match="little 1:2 has changed"):
        find(package, [tmp_path])


@pytest.mark.parametrize("kind", ["deb", "sdist"])
def test_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    package, commands = small_package(b"right", kind), []
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")

    def download(line, cwd, **_):
        commands.append(line)
        (cwd / package.file_name).write_bytes(b"right")
        return subprocess.CompletedProcess(line, 0, "", "")

    assert check(package, fetch(package, tmp_path / "new", download)).read_bytes() == b"right"
    if kind == "deb":
        assert commands[0][:2] == ["apt-get", "download"]
        assert commands[0][-1] == "little=1:2"
    else:
        assert {"download", "--no-deps", "--require-hashes"} <= set(commands[0])
        assert package.sha256 in (tmp_path / "new" / commands[0][-1]).read_text()

    def refuse(line, **_):
        return subprocess.CompletedProcess(line, 100, "", "E: Version '1:2' was not found\n")

    with pytest.raises(PrepareError, match=r"little 1:2 could not be downloaded \(E: Version"):
        fetch(package, tmp_path / "other", refuse)


def test_without_apt_all_that_is_missing_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    out = tmp_path / "pack"
    assert command.main([str(out), "--only", "sprites", "-q"]) == 1
    assert "openclipart-png_1%3a0.18+dfsg-19_all.deb" in capsys.readouterr().err
    assert command.main([str(out), "--only", "photos", "-q"]) == 1
    message = capsys.readouterr().err
    assert all(name in message for name in ("gcompris-qt-data", "enlightenment-data", "libjxl-testdata", "--debs"))
    assert not out.exists()


# Pictures and video


def test_photo_sizes() -> None:
    tall = encode_photo(jpeg(600, 900), "x")
    assert Image.open(io.BytesIO(tall)).size == (512, 768)
    assert Image.open(io.BytesIO(encode_photo(jpeg(80, 60), "x"))).size == (80, 60)
    assert Image.open(io.BytesIO(encode_photo(jpeg(), "x", crop=[10, 10, 50, 30]))).size == (40, 20)
    with pytest.raises(PrepareError, match="outside"):
        encode_photo(jpeg(), "x", crop=[0, 0, 81, 60])
    for bad in (b"", b"GIF89a" + bytes(50), jpeg()[:300]):
        with pytest.raises(PrepareError, match="no picture"):
            encode_photo(bad, "x")


def test_sprite_is_trimmed_and_keeps_its_colour_at_the_edge() -> None:
    pixels = np.zeros((400, 600, 4), np.uint8)
    pixels[..., 1] = 255  # what is transparent is green
    y, x = np.mgrid[:400, :600]
    pixels[((y - 200) / 100) ** 2 + ((x - 250) / 200) ** 2 < 1] = (200, 0, 0, 255)
    sprite = np.asarray(Image.open(io.BytesIO(encode_sprite(png(pixels), "x"))))
    assert sprite.shape == (96, 192, 4)
    assert len(np.unique(sprite[..., 3])) > 20
    seen = sprite[sprite[..., 3] > 0]
    assert seen[:, 1:3].max() <= 1
    assert np.abs(seen[:, 0].astype(int) - 200).max() <= 30  # the filter overshoots where the edge begins
    with pytest.raises(PrepareError, match="transparent"):
        encode_sprite(png(np.zeros((8, 8, 4), np.uint8)), "x")


def test_joined_ranges() -> None:
    shots = [{"source_start_frame": s, "frames": n} for s, n in ((5, 10), (15, 5), (30, 2))]
    assert joined(shots) == [(5, 20), (30, 32)]
    with pytest.raises(PrepareError, match="overlap"):
        joined(shots[::-1])


def brightness(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]


def test_film_takes_the_frames_of_its_ranges(tmp_path: Path) -> None:
    source, target = video(30), tmp_path / "film.mp4"
    assert encode_film(io.BytesIO(source), target, [(3, 5), (20, 22)]) == 4
    assert brightness(target) == pytest.approx([16 + 6 * n for n in (3, 4, 20, 21)], abs=4)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (512, 288, 24)
    with pytest.raises(PrepareError, match="cut off"):
        encode_film(io.BytesIO(source), target, [(0, 31)])


def test_clip_keeps_its_rate_and_shape(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    assert encode_clip(io.BytesIO(video(10, (160, 144), fps=20)), target) == 10
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (320, 288, 20)


def test_film_is_read_out_of_the_sdist(tmp_path: Path) -> None:
    zipped, path = io.BytesIO(), tmp_path / "moviepy-2.2.1.tar.gz"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/film.mp4", b"film")
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("moviepy-2.2.1/docs/film.zip")
        info.size = len(zipped.getvalue())
        tar.addfile(info, io.BytesIO(zipped.getvalue()))
    assert read_film(path, "docs/film.zip", "in/film.mp4") == b"film"
    for wanted in (("docs/none.zip", "in/film.mp4"), ("docs/film.zip", "none")):
        with pytest.raises(PrepareError, match="another version"):
            read_film(path, *wanted)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PrepareError, match="damaged"):
        read_film(path, "docs/film.zip", "in/film.mp4")


# The whole, on a small selection


@pytest.fixture
def small_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages for two photos, a cut-out and a test picture; the film is left out."""
    folder = tmp_path / "debs"
    folder.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    leaf = np.zeros((30, 50, 4), np.uint8)
    leaf[5:25, 5:45] = (0, 120, 0, 255)
    contents = {
        "gcompris-qt-data": {"usr/x.rcc": rcc({"a.jpg": (RAW, jpeg(600, 520))}), "usr/t.jpg": jpeg(60, 50)},
        "enlightenment-data": {"usr/b.edj": b"EET" + jpeg(640, 360) + jpeg(1280, 720)},
        "openclipart-png": {"usr/leaf.png": png(leaf)},
    }
    pins = {}
    for name, files in contents.items():
        path = deb(folder / f"{name}_1_all.deb", files)
        pins[name] = Package(name, "1", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, "deb")
    for module in (packages, building, command, selection):
        monkeypatch.setattr(module, "PACKAGES", pins)
    origin = {"caption": "a thing", "licence": "CC0-1.0", "author": "A. Maker", "source_url": "https://example.org"}
    photo = origin | {"package": "gcompris-qt-data", "subject": "thing"}
    rows = {
        "photos": [
            photo | {"file": "photos/a-1.jpg", "path": "usr/x.rcc!/pictures/a.jpg", "width": 591, "height": 512},
            photo
            | {"file": "photos/b-1.jpg", "path": "usr/b.edj!jpeg", "width": 910, "height": 512}
            | {"package": "enlightenment-data"},
        ],
        "sprites": [
            origin
            | {"package": "openclipart-png", "file": "sprites/leaf-1.webp", "path": "usr/leaf.png", "kind": "plant"}
            | {"width": 40, "height": 20, "facing": "none"}
        ],
        "test": [photo | {"file": "test/t.jpg", "path": "usr/t.jpg", "type": "image", "width": 60, "height": 50}],
    }
    for name, lines in rows.items():
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(selection, "FOLDER", data)
    return folder


ONLY = ["--only", "photos", "--only", "sprites", "--only", "test", "-q"]


def test_whole_run_and_resume(tmp_path: Path, small_selection: Path, capsys) -> None:
    out = tmp_path / "pack"
    run = [str(out), "--debs", str(small_selection), *ONLY]
    assert command.main(run) == 0, capsys.readouterr().err
    made = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    pictures = {"photos/a-1.jpg", "photos/b-1.jpg", "sprites/leaf-1.webp", "test/t.jpg"}
    assert set(made) == pictures | {"photos.jsonl", "sprites.jsonl", "test.jsonl", "ATTRIBUTION.md"}
    assert all(name in made["ATTRIBUTION.md"].decode() for name in pictures)
    assert json.loads(made["sprites.jsonl"])["source_name"] == "leaf.png"

    # what is missing or cut off is made again, byte for byte, from its own package alone
    (out / "photos/b-1.jpg").write_bytes(b"cut")
    for name in ("gcompris-qt-data", "openclipart-png"):
        (small_selection / f"{name}_1_all.deb").unlink()
    assert command.main(run) == 0
    assert (out / "photos/b-1.jpg").read_bytes() == made["photos/b-1.jpg"]


def test_failure_leaves_no_half_file(tmp_path: Path, small_selection: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "pack"
    lines = (selection.FOLDER / "photos.jsonl").read_text().replace("591", "590")
    (selection.FOLDER / "photos.jsonl").write_text(lines)
    assert command.main([str(out), "--debs", str(small_selection), *ONLY]) == 1
    assert "came out as (591, 512)" in capsys.readouterr().err
    assert not list(out.rglob("*a-1*"))
    assert command.main([str(small_selection / "openclipart-png_1_all.deb"), *ONLY]) == 1
    assert command.main([str(out), "--debs", str(out / "none"), *ONLY]) == 1


def test_runs_as_a_folder() -> None:
    done = subprocess.run([sys.executable, str(RECIPE / "prepare"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "OUT_DIR" in done.stdout


# The committed selection


def test_split_sizes() -> None:
    photos, sprites, shots = selection.photos(), selection.sprites(), selection.shots()
    assert Counter(row["split"] for row in photos) == {"train": 235, "val": 20}
    assert Counter(row["split"] for row in shots) == {"train": 130, "test": 12}
    assert Counter(row["split"] for row in sprites) == {"train": 226, "test": 19}
    assert sum(row["frames"] for row in shots if row["split"] == "test") == 881
    assert shots[-1]["end_frame"] == 11_575
    assert joined(shots)[0][0] == 48


def test_no_group_straddles_a_split() -> None:
    photos, sprites, shots = selection.photos(), selection.sprites(), selection.shots()
    for rows, key in (
        (photos, lambda row: row["subject"]),
        (shots, lambda row: row["scene"]),
        (sprites, lambda row: splits.head_noun(row["file"])),
    ):
        parts: dict = {}
        for row in rows:
            parts.setdefault(key(row), set()).add(row["split"])
        assert all(len(names) == 1 for names in parts.values())
    held_out = Counter(row["subject"] for row in photos if row["split"] == "val")
    assert max(held_out.values()) <= 3
    assert min(min(row["width"], row["height"]) for row in photos if row["split"] == "val") >= 256


def test_splits_do_not_depend_on_the_order_of_rows() -> None:
    for rows, split in (
        (selection.photos(), splits.val_subjects),
        (selection.shots(), splits.test_scenes),
        (selection.sprites(), splits.test_nouns),
    ):
        assert split(rows[::-1]) == split(rows)


def test_no_file_or_source_is_used_twice() -> None:
    rows = selection.photos() + selection.sprites() + selection.fixtures()
    assert len({row["file"] for row in rows}) == len(rows) == 255 + 245 + 16
    assert len({(row["package"], row["path"]) for row in rows}) == len(rows)


def test_attribution_names_every_file_with_author_and_licence() -> None:
    photos, sprites, fixtures = selection.photos(), selection.sprites(), selection.fixtures()
    text = attribution(photos, sprites, fixtures, has_film=True)
    for row in photos + sprites + fixtures:
        assert f"`{row['file']}`" in text
        if row in sprites:
            continue
        (line,) = [line for line in text.splitlines() if line.startswith(f"- `{row['file']}`: ")]
        assert row["author"].strip()
        assert row["author"] in line
        assert row["source_url"] in line
        assert row["licence"] in text
    assert "(c) copyright 2008, Blender Foundation / www.bigbuckbunny.org" in text
    assert "Redistribution and use in source and binary forms" in text
    assert "Big Buck Bunny" not in attribution(photos, [], [], has_film=False)


def test_only_free_licences_are_taken() -> None:
    row = selection.photos()[0]
    for licence in ("CC-BY-SA-3.0", "GPL-2+", "", "CC-BY-NC-2.0"):
        with pytest.raises(PrepareError, match="is not taken"):
            selection.check_free([row | {"licence": licence}])

"""Shards, folders and lists: what is found in them, hostile ones, indexes and caches."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest

from i2vgen.data.errors import DataError
from i2vgen.data.shard_index import index_location, index_text, read_index, scan_shard
from i2vgen.data.sources import Container, expand_braces, expand_source, load_index
from i2vgen.data.storage import LocalStore
from numbered_clips import clip_bytes, photo_bytes, write_clip, write_tar

CLIP = clip_bytes(np.arange(24) / 24)


def shard_members() -> dict[str, bytes]:
    return {
        "a/one.mp4": CLIP,
        "a/one.txt": b"a red\tcar\n",
        "two.png": photo_bytes(2),
        "two.json": json.dumps({"caption": ["a tree", "one tree"], "weight": 2.5, "split": "val"}).encode(),
        "three.webp.bak": b"x",
        "deep.png": photo_bytes(2),
        "deep.json": b"[" * 60_000,
        "README": b"not a clip",
    }


def test_braces():
    assert expand_braces("x/{08..10}-{a,b}.tar") == [f"x/{n}-{c}.tar" for n in ("08", "09", "10") for c in "ab"]
    assert expand_braces("plain {x}.tar") == ["plain {x}.tar"]
    for hostile in ("{5..3}.tar", "{0..99999999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(DataError, match="sources"):
            expand_braces(hostile)


def test_sources_are_found_in_a_fixed_order(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in (2, 0, 1):
        write_tar(shards / f"c-{number}.tar", {})
    expected = [Container("shard", str(shards / f"c-{n}.tar")) for n in range(3)]
    assert expand_source(f"{shards}/*.tar") == expected
    assert expand_source(f"{shards}/c-{{0..2}}.tar") == expected
    assert expand_source(str(shards)) == expected
    assert expand_source("https://x.org/{0..1}.tar?k=1") == [
        Container("shard", f"https://x.org/{n}.tar?k=1") for n in (0, 1)
    ]
    for wrong in (f"{shards}/*.zip", f"{shards}/none.tar", "https://x.org/list.txt", __file__):
        with pytest.raises(DataError, match="sources"):
            expand_source(wrong)


def test_a_scan_finds_clips_captions_and_sizes(tmp_path):
    index = scan_shard(LocalStore(write_tar(tmp_path / "s.tar", shard_members())))
    one, two = index.items
    assert (one.key, one.name, one.kind, one.captions) == ("a/one", "a/one.mp4", "video", ["a red car"])
    assert (one.width, one.height, one.frames, one.fps) == (80, 48, 24, pytest.approx(24))
    assert (two.kind, two.captions, two.weight, two.split) == ("image", ["a tree", "one tree"], 2.5, "val")
    data = (tmp_path / "s.tar").read_bytes()
    assert data[one.offset : one.offset + one.size] == CLIP
    assert [row["name"] for row in index.left_out] == ["deep.png"]


def hostile_tar(path, change) -> LocalStore:
    with tarfile.open(path, "w") as tar:
        bad = tarfile.TarInfo("x.mp4")
        bad.size = len(CLIP)
        change(bad)
        tar.addfile(bad, io.BytesIO(CLIP if bad.size else b""))
        good = tarfile.TarInfo("good.mp4")
        good.size = len(CLIP)
        tar.addfile(good, io.BytesIO(CLIP))
    return LocalStore(path)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"name": "/etc/x.mp4"}, "absolute"),
        ({"name": "C:/x.mp4"}, "absolute"),
        ({"name": "a/../../x.mp4"}, "'..'"),
        ({"name": "a\\..\\x.mp4"}, "backslash"),
        ({"name": "a\x1b[2J.mp4"}, "control"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good.mp4", "size": 0}, "link"),
        ({"type": tarfile.CHRTYPE, "size": 0}, "device"),
        ({"type": tarfile.FIFOTYPE, "size": 0}, "pipe"),
        ({"size": 0}, "empty"),
    ],
)
def test_hostile_members_are_refused_by_name(tmp_path, fields, reason):
    store = hostile_tar(tmp_path / "h.tar", lambda info: [setattr(info, k, v) for k, v in fields.items()])
    index = scan_shard(store)
    assert [item.name for item in index.items] == ["good.mp4"]
    assert len(index.left_out) == 1
    assert reason in index.left_out[0]["reason"]
    assert index.left_out[0]["name"].isprintable()


def test_a_member_larger_than_the_shard_or_the_bound_is_refused(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", {"a.mp4": CLIP})
    info = tarfile.TarInfo("huge.mp4")
    info.size = 1 << 40
    (tmp_path / "huge.tar").write_bytes(info.tobuf() + CLIP)
    with pytest.raises(DataError, match=r"huge\.tar.*copy it again"):
        scan_shard(LocalStore(tmp_path / "huge.tar"))
    monkeypatch.setattr("i2vgen.data.shard_index.MAX_MEMBER_BYTES", len(CLIP) - 1)
    assert "at most" in scan_shard(LocalStore(path)).left_out[0]["reason"]


def test_a_hostile_extended_header_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    with open(tmp_path / "long.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(80 << 20)
    with pytest.raises(DataError, match="hostile"):
        scan_shard(LocalStore(tmp_path / "long.tar"))


@pytest.mark.parametrize("keep", [0, 300, 2000, -5000])
def test_a_damaged_shard_is_an_error(tmp_path, keep):
    path = write_tar(tmp_path / "s.tar", shard_members())
    path.write_bytes(path.read_bytes()[:keep] if keep >= 0 else b"\x1f\x8b" + os.urandom(5000))
    with pytest.raises(DataError, match=r"s\.tar"):
        scan_shard(LocalStore(path))


def test_an_index_beside_the_shard_saves_the_scan(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", shard_members())
    index = scan_shard(LocalStore(path))
    (tmp_path / "s.index.json").write_text(index_text(index))
    assert index_location(str(path)) == str(tmp_path / "s.index.json")
    monkeypatch.setattr("i2vgen.data.sources.scan_shard", lambda store: pytest.fail("scanned again"))
    assert load_index(Container("shard", str(path)), str(tmp_path / "cache")) == index


def test_a_foreign_shard_is_scanned_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", shard_members())
    container, cache = Container("shard", str(path)), str(tmp_path / "cache")
    first = load_index(container, cache)
    with monkeypatch.context() as patch:
        patch.setattr("i2vgen.data.sources.scan_shard", lambda store: pytest.fail("scanned again"))
        assert load_index(container, cache) == first
    write_tar(path, shard_members() | {"four.mp4": CLIP * 1, "big.bin": b"x" * 20000})
    assert len(load_index(container, cache).items) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "s.tar"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["items"][0].update(offset=10**9),
        lambda d: d["items"][0].update(size=-1),
        lambda d: d["items"][0].update(width=0),
        lambda d: d["items"][0].update(kind="folder"),
        lambda d: d["items"][0].update(duration=float("nan")),
        lambda d: d["items"][0].update(captions="text"),
        lambda d: d["items"][0].pop("key"),
        lambda d: d.update(items=3),
        lambda d: d["items"].insert(0, None),
        lambda d: d.update(format="other"),
    ],
)
def test_a_hostile_index_is_refused(tmp_path, change):
    store = LocalStore(write_tar(tmp_path / "s.tar", shard_members()))
    document = json.loads(index_text(scan_shard(store)))
    change(document)
    with pytest.raises(DataError, match="not a sound index"):
        read_index(json.dumps(document), "s.index.json", store.size)


def make_folder(folder):
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "sub" / "a.mp4", np.arange(24) / 24)
    (folder / "sub" / "a.txt").write_text("a boat")
    (folder / "b.png").write_bytes(photo_bytes(1))
    (folder / "b.json").write_text('{"caption": "a house", "weight": 3}')
    (folder / "c.jpg").write_bytes(b"no picture")
    (folder / ".hidden.mp4").write_bytes(CLIP)
    (folder / "d.txt").write_text("alone")
    return folder


def test_a_folder_with_captions_beside_the_files(tmp_path, monkeypatch):
    folder, cache = make_folder(tmp_path / "clips"), str(tmp_path / "cache")
    index = load_index(Container("folder", str(folder)), cache)
    assert [(i.name, i.kind, i.captions, i.weight) for i in index.items] == [
        ("b.png", "image", ["a house"], 3.0),
        ("sub/a.mp4", "video", ["a boat"], 1.0),
    ]
    assert [row["name"] for row in index.left_out] == ["c.jpg"]
    # The second time nothing is opened but what changed; captions are always read anew.
    (folder / "sub" / "a.txt").write_text("a ship")
    opened = []
    monkeypatch.setattr("i2vgen.data.sources.probe", lambda file, name: opened.append(name))
    assert load_index(Container("folder", str(folder)), cache).items[1].captions == ["a ship"]
    assert opened == []


def test_a_list_with_parts_of_files(tmp_path):
    make_folder(tmp_path / "clips")
    rows = [
        {"file": "clips/sub/a.mp4", "caption": "first", "start": 0.25, "end": 0.75},
        {"file": "clips/sub/a.mp4", "caption": "wrong", "start": 0.75, "end": 0.5},
        {"file": "clips/sub/a.mp4", "caption": "late", "start": 5},
        {"file": "clips/b.png", "caption": 7},
        {"file": "clips/b.png", "text": "a house", "split": "val"},
        {"file": "clips/none.mp4", "caption": "x"},
        {"file": "../outside.mp4", "caption": "x"},
        {"file": "/etc/hostname.mp4", "caption": "x"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    index = load_index(Container("list", str(path)), str(tmp_path / "cache"))
    part, picture = index.items
    assert (part.start, part.frames) == (0.25, 12)
    assert part.duration == pytest.approx(11 / 24, abs=1e-3)
    assert picture.split == "val"
    reasons = [row["reason"] for row in index.left_out]
    for expected, reason in zip(
        ("end must", "after its end", "caption", "cannot", "outside", "outside"), reasons, strict=True
    ):
        assert expected in reason
    path.write_text('{"caption": "x"}')
    with pytest.raises(DataError, match="line 1 has no file"):
        load_index(Container("list", str(path)), str(tmp_path / "cache"))


def test_links_out_of_a_folder_are_refused_unless_allowed(tmp_path):
    write_clip(tmp_path / "outside.mp4", np.arange(12) / 24)
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    container, cache = Container("folder", str(folder)), str(tmp_path / "cache")
    assert "outside" in load_index(container, cache).left_out[0]["reason"]
    assert len(load_index(container, cache, allow_outside=True).items) == 1


def test_a_video_cut_short_is_left_out(tmp_path):
    whole = clip_bytes(np.arange(48) / 24)
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "b.mkv").write_bytes(clip_bytes(np.arange(48) / 24, format="matroska")[:-2000])
    index = load_index(Container("folder", str(tmp_path)), str(tmp_path / "cache"))
    assert index.items == []
    assert len(index.left_out) == 2

"""Raw videos and pictures into shards: cuts, filters, captions, reports, and going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

import i2vgen.data.prepare as module
from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.clip_loader import ClipLoader
from i2vgen.data.errors import DataError
from i2vgen.data.prepare import prepare
from i2vgen.data.prepare_config import PrepareConfig
from i2vgen.data.prepare_part import make_part
from i2vgen.data.shard_writer import write_shard
from i2vgen.data.shots import analyse, find_cuts, sharpness_and_contrast
from i2vgen.data.sources import Container, load_index
from numbered_clips import rows_of, write_clip

WIDTH, HEIGHT = 160, 96
SMALL = {"min_side": 64, "min_seconds": 0.5, "short_side": 64, "min_sharpness": 0.4}


def texture(seed: int) -> np.ndarray:
    """uint8 (2 h 2 w 3): blotches of a few colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (12, 20, 3), dtype=np.uint8)
    fine = rng.integers(0, 60, (2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BILINEAR)) // 2 + fine


def moving(seed: int, speed: float = 2.0):
    """index -> frame of a window that moves `speed` px a frame over a texture."""
    whole = texture(seed)
    return lambda index: whole[:HEIGHT, round(speed * index) % WIDTH :][:, :WIDTH]


def shots_clip(path, shots: list[tuple[int, float, int]], fps: float = 24.0) -> None:
    """Shots one after the other: (seed, speed, frames) each."""
    views = [(moving(seed, speed), index) for seed, speed, frames in shots for index in range(frames)]
    times = np.arange(len(views)) / fps
    write_clip(path, times, size=(WIDTH, HEIGHT), gop=50, pictures=lambda i: views[i][0](views[i][1]))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """two.mp4 (cut at frame 30 of 70), still.mp4, short.mp4, broken.mp4, photo.jpg, blurred.jpg, small.png"""
    folder = tmp_path_factory.mktemp("raw")
    shots_clip(folder / "two.mp4", [(1, 2.0, 30), (2, 1.0, 40)])
    (folder / "two.txt").write_text("two places")
    shots_clip(folder / "still.mp4", [(3, 0.0, 24)])
    shots_clip(folder / "short.mp4", [(4, 2.0, 5)])
    (folder / "broken.mp4").write_bytes((folder / "two.mp4").read_bytes()[:3000])
    picture = Image.fromarray(texture(5))
    picture.save(folder / "photo.jpg")
    (folder / "photo.json").write_text('{"caption": "a wall", "split": "val"}')
    picture.resize((16, 10)).resize(picture.size, Image.Resampling.BICUBIC).save(folder / "blurred_wall.png")
    picture.resize((40, 24)).save(folder / "small.png")
    return folder


def index_of(folder) -> list:
    shards = sorted(folder.glob("*.tar"))
    return [item for shard in shards for item in load_index(Container("shard", str(shard)), str(folder / "none")).items]


def clips_of(folder) -> list:
    """All that is known of each clip but its bytes, which differ a little from one H.264 encoding to the next."""
    return [dataclasses.replace(item, offset=0, size=0) for item in index_of(folder)]


def test_cuts_are_found_and_flashes_and_pans_are_not(tmp_path):
    shots_clip(tmp_path / "a.mp4", [(1, 0.0, 20), (2, 6.0, 25), (3, 1.0, 20)])
    with (tmp_path / "a.mp4").open("rb") as file:
        analysis = analyse(file, "a.mp4", 96)
    assert analysis.cuts == [20, 45]
    assert analysis.shots(0, 99) == [(0, 20), (20, 45), (45, 65)]
    # 6 px of 96 a frame, 24 frames a second; the second sheet of texture is finer than the flow's blocks.
    assert analysis.measures(0, 20)["motion"] < 0.02
    assert analysis.measures(20, 45)["motion"] == pytest.approx(6 / 96 * 24, rel=0.35)
    assert analysis.measures(45, 65)["motion"] == pytest.approx(1 / 96 * 24, rel=0.35)

    view, white = moving(1), np.full((HEIGHT, WIDTH, 3), 250, np.uint8)
    write_clip(
        tmp_path / "flash.mp4",
        np.arange(30) / 24,
        size=(WIDTH, HEIGHT),
        pictures=lambda i: white if i in (14, 15) else view(i),
    )
    with (tmp_path / "flash.mp4").open("rb") as file:
        assert analyse(file, "flash.mp4", 96).cuts == []


def test_cuts_stand_out_from_what_is_around_them():
    steps = np.full(40, 4.0)
    steps[[10, 25]] = 60, 9
    lags = np.stack([steps, steps, steps, steps])
    lags[1:, 11:14] = 60
    assert find_cuts(lags) == [10]
    assert find_cuts(np.full((4, 40), 50.0)) == []


def test_sharpness_falls_with_blur_and_not_with_contrast():
    picture = Image.fromarray(texture(1)).convert("L")
    blurred = picture.resize((20, 12)).resize(picture.size, Image.Resampling.BICUBIC)
    sharp, contrast = sharpness_and_contrast(np.asarray(picture))
    assert sharpness_and_contrast(np.asarray(blurred))[0] < 0.2 * sharp
    paler = (np.asarray(picture) * 0.5).astype(np.uint8)
    assert sharpness_and_contrast(paler)[0] == pytest.approx(sharp, rel=0.1)
    assert sharpness_and_contrast(paler)[1] == pytest.approx(contrast / 2, rel=0.1)


def test_a_folder_becomes_shards_that_a_loader_reads(raw, tmp_path):
    out = tmp_path / "out"
    statistics = prepare([str(raw)], out, PrepareConfig(**SMALL, min_motion=0.05))
    items = {item.key.split("-")[0] + item.key[-4:]: item for item in index_of(out)}
    assert sorted(items) == ["photo-000", "two-000", "two-001"]
    assert (items["two-000"].frames, items["two-001"].frames) == (30, 40)
    assert items["two-001"].fps == pytest.approx(24, rel=0.01)
    assert items["two-001"].details["start"] == pytest.approx(30 / 24, abs=1e-3)
    assert min(items["two-000"].width, items["two-000"].height) == 64
    assert (items["photo-000"].captions, items["photo-000"].split) == (["a wall"], "val")
    assert (statistics["videos"], statistics["images"], statistics["left_out"]) == (2, 1, 5)
    reasons = {row["name"].rpartition(":")[2]: row["reason"] for row in rows_of(out / "left_out.jsonl")}
    assert reasons["still.mp4"].startswith("motion 0")
    assert reasons["short.mp4"].startswith("seconds 0.16")
    assert reasons["blurred_wall.png"].startswith("sharpness")
    assert reasons["small.png"] == "side 24 < 64"
    assert "damaged" in reasons["broken.mp4"]
    for name in ("kept.png", "left_out.png", "histograms.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    assert not (out / ".working").exists()

    config = ClipDataConfig([str(out)], buckets=[[96, 56]], frame_choices=[8], fps_choices=[8.0], image_share=0.5)
    config.batch_sizes, config.num_workers = {"8": 2}, 0
    with ClipLoader(config) as loader:
        batch = loader.batch(0)
        assert set(batch.captions) == {"two places"}
        assert loader.batch(1).captions == ["a wall", "a wall"]
    # The cut is behind us: no clip spans it.
    assert np.abs(np.diff(batch.frames.numpy().astype(int), axis=1)).mean(axis=(2, 3, 4)).max() < 40


def test_the_same_again_changes_nothing_and_more_sources_add_shards(raw, tmp_path):
    out, more = tmp_path / "out", tmp_path / "more"
    prepare([str(raw)], out, PrepareConfig(**SMALL))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    prepare([str(raw)], out, PrepareConfig(**SMALL))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    more.mkdir()
    shots_clip(more / "new.mp4", [(9, 2.0, 24)])
    statistics = prepare([str(raw), str(more)], out, PrepareConfig(**SMALL))
    assert statistics["shards"] == 2
    assert (out / "clips-000000.tar").read_bytes() == before["clips-000000.tar"]
    with pytest.raises(DataError, match="begun with crf = 18, now it is 20"):
        prepare([str(raw)], out, PrepareConfig(**SMALL, crf=20))
    with module._locked(out), pytest.raises(DataError, match="another run"):
        prepare([str(raw)], out, PrepareConfig(**SMALL))
    with pytest.raises(DataError, match="other files"):
        prepare([str(raw)], more, PrepareConfig(**SMALL))
    with pytest.raises(DataError, match="lie in one another"):
        prepare([str(raw)], raw / "out", PrepareConfig(**SMALL))
    shutil.rmtree(raw / "out")


def test_a_killed_run_goes_on_and_gives_the_same_clips(raw, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    prepare([str(raw)], whole, PrepareConfig(**SMALL))
    script = (
        "import sys, time\nfrom i2vgen.data import prepare as p\nmake = p.make_part\n"
        "def slow(task, out_dir, config):\n    record = make(task, out_dir, config)\n"
        "    print(task.item.name, flush=True)\n"
        "    if task.item.name == 'short.mp4':\n        time.sleep(60)\n    return record\n"
        f"p.make_part = slow\np.prepare([{str(raw)!r}], {str(killed)!r}, p.PrepareConfig(**{SMALL!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("short"):
            break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not list(killed.glob("*.tar"))
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_part", lambda task, **rest: done.append(task.item.name) or make_part(task, **rest))
        prepare([str(raw)], killed, PrepareConfig(**SMALL))
    assert "photo.jpg" not in done
    assert "two.mp4" in done
    assert clips_of(killed) == clips_of(whole)
    assert (killed / "left_out.jsonl").read_bytes() == (whole / "left_out.jsonl").read_bytes()


@pytest.mark.parametrize("moment", ["tar without index", "index, files still there"])
def test_a_kill_around_the_end_of_a_shard_loses_and_doubles_nothing(raw, tmp_path, monkeypatch, moment):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    prepare([str(raw)], whole, PrepareConfig(**SMALL))

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "tar without index":
            patch.setattr("i2vgen.data.shard_writer.write_whole", kill)
        else:
            patch.setattr(module, "write_shard", lambda *clips: (write_shard(*clips), kill()))
        prepare([str(raw)], killed, PrepareConfig(**SMALL))
    assert (killed / ".working").is_dir()
    prepare([str(raw)], killed, PrepareConfig(**SMALL))
    assert [path.name for path in sorted(killed.glob("*.tar"))] == ["clips-000000.tar"]
    assert clips_of(killed) == clips_of(whole)
    assert not (killed / ".working").exists()


@pytest.mark.slow
def test_two_workers_give_the_same_clips(raw, tmp_path):
    for number in (1, 2):
        prepare([str(raw)], tmp_path / str(number), PrepareConfig(**SMALL), num_workers=number)
    assert clips_of(tmp_path / "1") == clips_of(tmp_path / "2")
    assert (tmp_path / "1" / "left_out.jsonl").read_bytes() == (tmp_path / "2" / "left_out.jsonl").read_bytes()


def test_long_shots_are_divided_fast_ones_thinned_and_lists_respected(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    shots_clip(raw / "a.mp4", [(1, 1.0, 120)], fps=60.0)
    (raw / "list.jsonl").write_text(json.dumps({"file": "a.mp4", "caption": "x", "start": 0.2, "end": 1.6}) + "\n")
    config = PrepareConfig(**SMALL | {"max_seconds": 0.75, "max_fps": 30.0})
    prepare([str(raw / "list.jsonl")], tmp_path / "out", config)
    items = index_of(tmp_path / "out")
    assert [round(item.details["start"], 2) for item in items] == [0.2, 0.9]
    assert all(item.fps == pytest.approx(30, rel=0.01) and item.captions == ["x"] for item in items)


def test_captions_from_names_and_required_captions(raw, tmp_path):
    prepare([str(raw)], tmp_path / "a", PrepareConfig(**SMALL | {"min_sharpness": 0.0}, caption_from_name=True))
    captions = {item.key.split("-0")[0][:7]: item.captions for item in index_of(tmp_path / "a")}
    assert captions["blurred"] == ["blurred wall"]
    prepare([str(raw)], tmp_path / "b", PrepareConfig(**SMALL | {"min_sharpness": 0.0}, require_captions=True))
    assert all(item.captions for item in index_of(tmp_path / "b"))
    reasons = [row["reason"] for row in rows_of(tmp_path / "b" / "left_out.jsonl")]
    assert "it has no caption" in reasons


def test_the_aesthetic_hook(raw, tmp_path, monkeypatch):
    (tmp_path / "scorers.py").write_text(
        "def mean(frames):\n    assert frames.ndim == 4 and frames.dtype == 'uint8'\n    return frames.mean()\n"
        "def bad(frames):\n    raise KeyError('weights')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = PrepareConfig(**SMALL, aesthetic="scorers:mean", min_aesthetic=1000.0)
    statistics = prepare([str(raw)], tmp_path / "out", config)
    assert statistics["clips"] == 0
    assert statistics["left_out_by_reason"]["aesthetic too low"] >= 2
    with pytest.raises(DataError, match="scorers:bad failed"):
        prepare([str(raw)], tmp_path / "bad", PrepareConfig(**SMALL, aesthetic="scorers:bad"))
    for wrong in ("scorers", "nowhere:f", "scorers:none"):
        with pytest.raises(DataError, match="aesthetic"):
            PrepareConfig(aesthetic=wrong).check()


def test_hostile_names_become_plain_keys(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("%2e%2e%2fetc", "a b;rm -rf $(x)", "-o", "Ünïcödé ☃", "x" * 200):
        Image.fromarray(texture(1)).save(raw / f"{name}.png")
    Image.fromarray(texture(1)).save(raw / "new\nline.png")
    prepare([str(raw)], tmp_path / "out", PrepareConfig(**SMALL))
    with tarfile.open(tmp_path / "out" / "clips-000000.tar") as tar:
        names = tar.getnames()
    assert len([name for name in names if name.endswith(".jpg")]) == 5
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") and len(name) < 80 for name in names)
    assert not any(name.startswith((".", "/", "-")) for name in names)
    assert "control" in rows_of(tmp_path / "out" / "left_out.jsonl")[0]["reason"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"crf": 99}, "crf"),
        ({"min_motion": 2.0, "max_motion": 1.0}, "min_motion is 2, above max_motion"),
        ({"min_side": float("nan")}, "min_side"),
        ({"min_aesthetic": 1.0}, "min_aesthetic needs"),
    ],
)
def test_settings_that_cannot_be_name_their_field(fields, message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepare(["x"], tmp_path / "out", PrepareConfig(**fields))
    assert not (tmp_path / "out").exists()

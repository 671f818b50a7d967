"""Writing videos: refused before any work, complete or not at all."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from i2vgen.media import (
    MediaError,
    check_writable,
    load_video,
    write_video,
    writers,
)

SUFFIXES = [".mp4", ".webm", ".gif", ".webp", "", ".png", "_%03d.png"]


def smooth(num_frames=8, height=48, width=64):
    f, y, x = np.mgrid[0:num_frames, 0:height, 0:width].astype(np.float32)
    channels = (
        128 + 90 * np.sin(x / 20 + f / 3),
        128 + 90 * np.cos(y / 15 + f / 4),
        128 + 60 * np.sin((x + y) / 30),
    )
    return np.stack(channels, -1).astype(np.uint8)


def numbered(num_frames, height=32, width=32):
    """Frame i is grey of level 10 + 12 i."""
    levels = (10 + 12 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def numbers(video):
    return [round((float(frame.mean()) - 10) / 12) for frame in video.frames]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(suffix, tmp_path, monkeypatch):
    path = write_video(tmp_path / f"v{suffix}", numbered(2), 8)

    def contents():
        return {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    before = contents()
    assert before

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers.os, "replace", full)
    with pytest.raises(MediaError, match=r"No space left.*free some space"):
        write_video(tmp_path / f"v{suffix}", numbered(3), 8)
    monkeypatch.undo()
    assert contents() == before
    assert numbers(load_video(path)) == [0, 1]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_removes_the_temporary_file(error, tmp_path, monkeypatch):
    seen = []

    def write_half(path, *args):
        path.write_bytes(b"half")
        seen.append(path)
        raise error

    monkeypatch.setattr(writers, "_write_container", write_half)
    with pytest.raises((MediaError, KeyboardInterrupt)):
        write_video(tmp_path / "a.mp4", smooth(6), 8)
    assert seen[0].parent == tmp_path
    assert seen[0].name != "a.mp4"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".webp", ""])
def test_a_full_disk_is_reported(suffix, tmp_path):
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(MediaError, match="could not be written"):
            write_video(tmp_path / f"a{suffix}", noise, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_shorter_series_replaces_a_longer_one(tmp_path):
    for target in (tmp_path / "folder", tmp_path / "s_%02d.png"):
        write_video(target, numbered(5), 8, {"seed": 1})
        path = write_video(target, numbered(2), 8)
        assert numbers(load_video(path)) == [0, 1]
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == [
        "frame_0000.png",
        "frame_0001.png",
    ]


def test_series_of_different_width_do_not_mix(tmp_path):
    write_video(tmp_path / "s_%03d.png", numbered(2), 8)
    write_video(tmp_path / "s_%04d.png", numbered(3), 8)
    assert len(load_video(tmp_path / "s_%03d.png").frames) == 2
    assert len(load_video(tmp_path / "s.png").frames) == 3


def test_check_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir.mp4").mkdir()
    for path, words in [
        (tmp_path / "a.avi", r"unknown suffix '.avi'.*\.mp4, \.webm, \.gif, \.webp, \.png"),
        (tmp_path / "file" / "a.mp4", "is not a directory"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "dir.mp4", "is a directory"),
    ]:
        with pytest.raises(MediaError, match=words):
            check_writable(path)
        with pytest.raises(MediaError, match=words):
            write_video(path, numbered(1), 8)
    check_writable(tmp_path / "x" / "y" / "a.MP4")
    check_writable(tmp_path / "x" / "folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dir.mp4", "file"]

    monkeypatch.setattr(writers.os, "access", lambda *args: False)
    with pytest.raises(MediaError, match="no permission"):
        check_writable(tmp_path / "a.mp4")
    monkeypatch.undo()
    monkeypatch.setitem(writers.CODECS, ".mp4", "no_such_codec")
    with pytest.raises(MediaError, match="no no_such_codec encoder"):
        check_writable(tmp_path / "a.mp4")


def test_bad_arguments_of_write_video(tmp_path):
    good = numbered(2)
    for frames, fps, quality, words in [
        (good[0], 8, "standard", "frames has shape"),
        (good[:0], 8, "standard", "frames has shape"),
        (good.astype(np.float32), 8, "standard", "frames is ndarray"),
        ([good], 8, "standard", "frames is list"),
        (torch.full((3, 1, 4, 4), float("nan")), 8, "standard", "frames has NaN"),
        (good, 0, "standard", "fps is 0"),
        (good, float("nan"), "standard", "fps is nan"),
        (good, 8, "best", "quality is 'best'.*small, standard, high"),
    ]:
        with pytest.raises(MediaError, match=words):
            write_video(tmp_path / "a.mp4", frames, fps, quality=quality)
    assert list(tmp_path.iterdir()) == []

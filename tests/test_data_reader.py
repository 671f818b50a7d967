"""Decoding a span of a video: the right frames, at the right times, from no more of the file than needed."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from i2vgen.data.clip_reader import probe, read_clip
from i2vgen.data.errors import ClipError
from i2vgen.data.storage import LocalStore, Window
from numbered_clips import clip_bytes, number_of, numbered, photo_bytes, write_clip

TIMES_24 = np.arange(120) / 24


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize("format", ["mp4", "matroska"])
@pytest.mark.parametrize("fps, step", [(24, 1), (12, 2), (8, 3), (4, 6)])
def test_a_constant_rate_is_thinned_out_evenly(format, fps, step):
    file = io.BytesIO(clip_bytes(TIMES_24, format=format))
    for first in (0, 1, 11, 12, 13, 50):
        # A start between two frames belongs to the nearer one.
        frames = read_clip(file, "clip.mp4", first / 24 + 0.013, 8, fps, None)
        assert numbers(frames) == [first + step * i for i in range(8)]


def test_other_rates_take_the_frame_nearest_to_each_tick():
    file = io.BytesIO(clip_bytes(np.arange(100) / 25))
    expected = [math.ceil(10 + 25 / 8 * i - 0.5) for i in range(16)]  # the earlier one at equal distance
    assert numbers(read_clip(file, "clip.mp4", 0.4, 16, 8, None)) == expected
    # Faster than the file: frames are shown again.
    assert numbers(read_clip(file, "clip.mp4", 0.0, 6, 50, None)) == [0, 0, 1, 1, 2, 2]


def test_a_variable_rate_keeps_its_pace():
    rng = np.random.default_rng(1)
    times = np.concatenate([[0], np.cumsum(rng.uniform(0.01, 0.15, 99))])
    file = io.BytesIO(clip_bytes(times))
    for start in (0.0, 1.1, 2.7):
        got = numbers(read_clip(file, "clip.mp4", start, 10, 8, None))
        first = int(np.abs(times - start).argmin())
        assert got[0] == first
        for index, number in enumerate(got):
            tick = times[first] + index / 8
            assert abs(times[number] - tick) <= np.abs(times - tick).min() + 2e-3
    info = probe(file, "clip.mp4")
    assert info.frames == 100
    assert info.duration == pytest.approx(times[-1], abs=2e-3)
    assert info.fps == pytest.approx(99 / times[-1], rel=1e-3)


def test_time_stamps_that_begin_late_count_from_the_first_frame():
    file = io.BytesIO(clip_bytes(TIMES_24 + 7.5, format="mpegts"))
    assert numbers(read_clip(file, "clip.ts", 1.0, 4, 8, None)) == [24, 27, 30, 33]
    assert probe(file, "clip.ts").duration == pytest.approx(119 / 24, abs=2e-3)


def test_only_the_span_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 96, 160, 3), dtype=np.uint8)
    write_clip(tmp_path / "long.mp4", np.arange(200) / 25, size=(160, 96), pictures=lambda i: noise[i])
    store = LocalStore(tmp_path / "long.mp4")
    store.block = 4096
    window = Window(store)
    frames = read_clip(window, "long.mp4", 4.0, 8, 25, None)
    assert frames.shape == (8, 96, 160, 3)
    assert window.num_bytes_read < 0.25 * store.size


def test_scaled_to_cover_and_cropped_without_aliasing(tmp_path):
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    write_clip(tmp_path / "stripes.mp4", np.arange(4) / 8, size=(320, 240), pictures=lambda i: stripes)
    with (tmp_path / "stripes.mp4").open("rb") as file:
        frames = read_clip(file, "stripes.mp4", 0, 2, 8, (64, 32))
    assert frames.shape == (2, 32, 64, 3)
    assert frames.dtype == np.uint8
    # Every second column kept would be 0 or 255.
    assert abs(frames.mean() - 127) < 6
    assert frames.std() < 6


def test_animations_and_pictures(tmp_path):
    images = [Image.fromarray(numbered(i)) for i in range(12)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    images[3].save(tmp_path / "still.gif")
    with (tmp_path / "a.gif").open("rb") as file:
        info = probe(file, "a.gif")
        assert (info.kind, info.frames, info.fps) == ("video", 12, pytest.approx(10))
        assert numbers(read_clip(file, "a.gif", 0.3, 4, 5, None)) == [3, 5, 7, 9]
    with (tmp_path / "still.gif").open("rb") as file:
        assert probe(file, "still.gif").kind == "image"
        assert numbers(read_clip(file, "still.gif", 0, 1, 1, None)) == [3]


def test_a_turned_photo_is_measured_upright():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(numbered(5)).save(file, "JPEG", exif=exif)
    info = probe(file, "a.jpg")
    assert (info.width, info.height) == (48, 80)
    assert read_clip(file, "a.jpg", 0, 1, 1, None).shape == (1, 80, 48, 3)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_an_error_not_fewer_frames(keep):
    # Fragmented, so that the beginning is playable whatever is missing behind.
    data = clip_bytes(TIMES_24, format="matroska")
    file = io.BytesIO(data[: int(keep * len(data))])
    with pytest.raises(ClipError, match=r"clip\.mkv"):
        read_clip(file, "clip.mkv", 4.0, 8, 8, None)


def test_damaged_bytes_are_an_error():
    data = bytearray(clip_bytes(TIMES_24))
    rng = np.random.default_rng(0)
    begin = data.index(b"mdat")
    for position in rng.integers(begin + 100, len(data) - 6000, 400):
        data[position] ^= 0xFF
    with pytest.raises(ClipError):
        read_clip(io.BytesIO(bytes(data)), "clip.mp4", 0.0, 60, 24, None)


@pytest.mark.parametrize(
    "data", [b"", b"not a video at all" * 50, photo_bytes(1), b"\x00\x00\x00\x18ftypmp42" + b"\0" * 500]
)
def test_what_is_no_video_is_an_error(data):
    for name in ("clip.mp4", "clip.webm"):
        with pytest.raises(ClipError, match="clip"):
            probe(io.BytesIO(data), name)
        with pytest.raises(ClipError, match="clip"):
            read_clip(io.BytesIO(data), name, 0, 1, 8, None)


def test_asking_beyond_the_end_is_an_error():
    file = io.BytesIO(clip_bytes(TIMES_24))
    assert len(read_clip(file, "clip.mp4", 119 / 24 - 7 / 8, 8, 8, None)) == 8
    with pytest.raises(ClipError, match="ends too early"):
        read_clip(file, "clip.mp4", 4.3, 8, 8, None)


def test_a_playlist_opens_nothing_else(tmp_path):
    secret = tmp_path / "secret.mp4"
    write_clip(secret, TIMES_24[:12])
    for text in (f"ffconcat version 1.0\nfile {secret}\n", f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"):
        with pytest.raises(ClipError):
            read_clip(io.BytesIO(text.encode()), "clip.mp4", 0, 1, 8, None)

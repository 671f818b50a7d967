"""Videos read and written: round trips, timing, bounds, and damaged files."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.media import (
    MediaError,
    frames_to_tensor,
    load_video,
    readers,
    write_video,
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


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("num_frames", [1, 16])
def test_round_trip_keeps_count_size_and_rate(suffix, num_frames, tmp_path):
    frames = smooth(num_frames, 48, 32)
    path = write_video(tmp_path / "new" / "folder" / f"v{suffix}", frames, 8)
    video = load_video(path)
    assert video.path == path
    assert video.frames.shape == frames.shape
    assert video.frames.dtype == np.uint8
    # One GIF frame of 125 ms is kept as 120 ms.
    assert video.fps == pytest.approx(8, rel=0.05 if suffix == ".gif" and num_frames == 1 else 1e-6)
    floor = {".mp4": 35, ".webm": 34, ".gif": 20, ".webp": 34}.get(suffix, 90)
    assert psnr(video.frames, frames) > floor


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colour_bars_keep_their_colours(suffix, tmp_path):
    bars = [
        (255, 255, 255),
        (255, 255, 0),
        (0, 255, 255),
        (0, 255, 0),
        (255, 0, 255),
        (255, 0, 0),
        (0, 0, 255),
    ]
    frames = np.repeat(np.array(bars, np.uint8), 16, 0)[None, None].repeat(4, 0).repeat(32, 1)
    path = write_video(tmp_path / f"bars{suffix}", frames, 8)
    for index, colour in enumerate(bars):
        got = load_video(path).frames[:, :, index * 16 + 6 : index * 16 + 10].astype(int)
        assert abs(got - colour).max() <= 4
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        assert codec.pix_fmt == "yuv420p"


def test_mp4_can_play_while_it_downloads(tmp_path):
    data = write_video(tmp_path / "a.mp4", smooth(2), 8).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_odd_sizes_repeat_the_last_row_and_column(suffix, tmp_path):
    frames = smooth(3, 33, 47)
    loaded = load_video(write_video(tmp_path / f"odd{suffix}", frames, 8)).frames
    assert loaded.shape == (3, 34, 48, 3)
    assert psnr(loaded[:, :33, :47], frames) > 33
    assert psnr(loaded[:, 33, :47], frames[:, 32]) > 30


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_odd_sizes_stay_elsewhere(suffix, tmp_path):
    assert load_video(write_video(tmp_path / f"odd{suffix}", smooth(2, 33, 47), 8)).frames.shape == (
        2,
        33,
        47,
        3,
    )


def test_tensor_frames_are_written(tmp_path):
    frames = smooth(2)
    path = write_video(tmp_path / "t.webp", frames_to_tensor(frames), 8, quality="high")
    assert psnr(load_video(path).frames, frames) > 36


def test_quality_changes_the_size(tmp_path):
    frames = smooth(4)
    sizes = [
        write_video(tmp_path / f"{quality}.mp4", frames, 8, quality=quality).stat().st_size
        for quality in ("small", "standard", "high")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", "_%04d.png"])
def test_only_the_frames_asked_for(suffix, tmp_path):
    path = write_video(tmp_path / f"n{suffix}", numbered(16), 8)
    assert numbers(load_video(path)) == list(range(16))
    assert numbers(load_video(path, max_frames=3)) == [0, 1, 2]
    assert numbers(load_video(path, start=1.0, max_frames=2)) == [8, 9]
    halved = load_video(path, fps=4)
    assert halved.fps == 4
    assert numbers(halved) == list(range(0, 16, 2))
    assert numbers(load_video(path, fps=16, max_frames=5)) == [0, 0, 1, 1, 2]
    assert numbers(load_video(path, fps=4, start=0.5)) == list(range(4, 16, 2))
    with pytest.raises(MediaError, match="no frames at or after start = 9"):
        load_video(path, start=9)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_held_frames_count_as_often_as_shown(suffix, tmp_path):
    frames = numbered(6)[[0, 0, 0, 3, 4, 5]]
    video = load_video(write_video(tmp_path / f"held{suffix}", frames, 10))
    assert numbers(video) == [0, 0, 0, 3, 4, 5]
    assert video.fps == pytest.approx(10)


def test_gif_rate_does_not_drift(tmp_path):
    path = write_video(tmp_path / "a.gif", numbered(16), 8)
    with Image.open(path) as image:
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
        assert image.info["loop"] == 0
    assert total == 2000
    with pytest.raises(MediaError, match="at most 50"):
        write_video(tmp_path / "b.gif", numbered(2), 60)


def test_sources_in_memory(tmp_path):
    frames = smooth(4)
    data = write_video(tmp_path / "a.mp4", frames, 12).read_bytes()
    assert load_video(data).frames.shape == frames.shape
    video = load_video(io.BytesIO(data))
    assert video.fps == 12
    assert video.path is None
    np.save(tmp_path / "a.npy", frames)
    np.testing.assert_array_equal(load_video(tmp_path / "a.npy").frames, frames)
    np.testing.assert_array_equal(load_video(frames, start=0.25).frames, frames[2:])
    np.testing.assert_array_equal(load_video(frames / 255.0).frames, frames)
    np.testing.assert_array_equal(load_video(frames_to_tensor(frames)).frames, frames)


def test_folder_of_foreign_frames_in_natural_order(tmp_path):
    for index in (10, 9, 1):
        Image.new("RGB", (8, 8), (10 + 12 * index,) * 3).save(tmp_path / f"shot{index}.png")
    (tmp_path / "notes.txt").write_text("x")
    video = load_video(tmp_path)
    assert numbers(video) == [1, 9, 10]
    assert video.fps == 8
    Image.new("RGB", (9, 8)).save(tmp_path / "shot11.png")
    with pytest.raises(MediaError, match="another size"):
        load_video(tmp_path)


def test_rotation_is_applied(tmp_path):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = 255
    data = write_video(tmp_path / "a.mp4", frames, 8).read_bytes()
    upright = bytes.fromhex("00010000" + "00" * 12 + "00010000" + "00" * 12 + "40000000")
    clockwise = bytes.fromhex("00000000 00010000 00000000 ffff0000" + "00" * 16 + "40000000")
    at = data.index(upright, data.index(b"tkhd"))
    turned = load_video(data[:at] + clockwise + data[at + 36 :]).frames
    assert turned.shape == (2, 64, 32, 3)
    # The bright corner goes from the top left to the top right.
    assert turned[:, 2:14, 18:30].min() > 200
    assert turned[:, 20:, :].max() < 60


def test_untagged_colours_are_read_as_players_do(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 64, 720, "yuv420p"
        pixels = np.full((720, 64, 3), (0, 200, 0), np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.colorspace, frame.pts = readers.UNSPECIFIED_COLORSPACE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == readers.UNSPECIFIED_COLORSPACE
    assert abs(load_video(path).frames.astype(int) - (0, 200, 0)).max() <= 5


def test_bounds(tmp_path):
    path = write_video(tmp_path / "a.mp4", smooth(6, 32, 32), 8)
    assert len(load_video(path, max_pixels_total=6 * 1024).frames) == 6
    with pytest.raises(MediaError, match=r"5 frames fit.*max_frames"):
        load_video(path, max_pixels_total=6 * 1024 - 1)
    assert len(load_video(path, max_frames=2, max_pixels_total=2 * 1024).frames) == 2
    gif = write_video(tmp_path / "a.gif", smooth(2, 32, 32), 8)
    for source in (path, gif, smooth(1, 32, 32)):
        with pytest.raises(MediaError, match="1000"):
            load_video(source, max_pixels_total=1000)
    for options, words in [
        ({"max_frames": 0}, "max_frames is 0"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"start": -1}, "start is -1"),
        ({"start": float("inf")}, "start is inf"),
    ]:
        with pytest.raises(MediaError, match=words):
            load_video(path, **options)


def test_bad_videos(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 50)
    ansi = tmp_path / "text.txt"
    ansi.write_text("not a video\n" * 50)
    write_video(tmp_path / "part.mp4", smooth(2), 8)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\npart.mp4\n#EXT-X-ENDLIST\n")
    empty = tmp_path / "empty.webm"
    empty.touch()
    bare = tmp_path / "bare"
    bare.mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    for source, words in [
        (tmp_path / "none.mp4", "none.mp4.*does not exist"),
        (bare, "folder without pictures"),
        (text, "text.mp4.*not a video"),
        (ansi, "text.txt.*not a video"),
        (playlist, "list.m3u8.*not a video"),
        (empty, "empty.webm.*empty"),
        (tmp_path / "objects.npy", "plain .npy"),
        (np.zeros((4, 4, 3), np.uint8), r"\(f h w 3\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "zero size"),
        (torch.zeros(2, 3, 1, 4, 4), "batch of 2"),
        (None, "NoneType"),
    ]:
        with pytest.raises(MediaError, match=words):
            load_video(source)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_files_cut_short_are_refused(suffix, part, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8)
    path = write_video(tmp_path / f"a{suffix}", noise, 8)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match=r"cut short|not a video|no frames|damaged"):
        load_video(path)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_padding_after_the_end_does_no_harm(suffix, tmp_path):
    path = write_video(tmp_path / f"a{suffix}", numbered(4), 8)
    path.write_bytes(path.read_bytes() + b"\0" * 100 + b"trailing words of another program")
    assert numbers(load_video(path)) == [0, 1, 2, 3]


def test_sound_without_a_picture(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="sound but no picture"):
        load_video(path)

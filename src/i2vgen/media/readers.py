"""Each kind of video source as a stream of timed frames that are decoded only when asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor

from i2vgen.media.arrays import array_to_uint8, frames_to_uint8
from i2vgen.media.completeness import check_complete
from i2vgen.media.frame_series import frame_files, frames_fps
from i2vgen.media.images import DECODER_ERRORS, MAX_PIXELS, load_image, open_image
from i2vgen.media.sources import MediaError, read_source

# Rate of frames that do not say theirs (folders of other programs, arrays): the rate of the base stage.
DEFAULT_FPS = 8.0
TIME_TOLERANCE = 1e-3
UNSPECIFIED_COLORSPACE = 2

# Demuxers that read the one file given; playlists and scripts would open others that it names.
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpegts,mpeg,mpegvideo,ogg,h264,hevc,ivf"

# (seconds from the start, seconds shown, decode it to uint8 (h w 3))
TimedFrame = tuple[float, float, Callable[[], np.ndarray]]


def open_frames(
    source: Any, name: str, start: float, max_pixels: int
) -> tuple[float, Iterator[TimedFrame], Path | None]:
    """(rate, timed frames, path) of any source that `load_video` takes."""
    if isinstance(source, Tensor):
        return DEFAULT_FPS, _timed_array(frames_to_uint8(source)), None
    if isinstance(source, np.ndarray):
        return DEFAULT_FPS, _timed_array(_checked_array(source, name, max_pixels)), None
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        files = frame_files(path)
        if files:
            rate = frames_fps(files[0]) or DEFAULT_FPS
            return rate, _timed_files(files, rate), path
        if path.is_dir():
            raise MediaError(f"{name} is a folder without pictures: name a video file or a folder of PNG frames")
    data = read_source(source)
    path = data if isinstance(data, Path) else None
    if path is not None and path.suffix.lower() == ".npy":
        return DEFAULT_FPS, _timed_array(_read_npy(path, name, max_pixels)), path
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        header = file.read(16)
    if _is_picture(header):
        rate = _animation_rate(data, name, max_pixels)
        return rate, _evenly(_timed_animation(data, name), rate), path
    rate = _container_rate(data, name, max_pixels)
    return rate, _timed_container(data, rate, start), path


def resampled(timed: Iterator[TimedFrame], start: float, fps: float) -> Iterator[Callable[[], np.ndarray]]:
    """The frame shown at each tick of `fps` from second `start` to the end."""
    tick, end, shown = 0, 0.0, None
    for time, duration, decode in timed:
        while shown is not None and start + tick / fps < time - TIME_TOLERANCE:
            yield shown
            tick += 1
        shown, end = decode, time + duration
    while shown is not None and start + tick / fps < end - TIME_TOLERANCE:
        yield shown
        tick += 1


# Arrays and folders of frames


def _timed_array(frames: np.ndarray) -> Iterator[TimedFrame]:
    for index, frame in enumerate(frames):
        yield index / DEFAULT_FPS, 1 / DEFAULT_FPS, lambda frame=frame: frame


def _checked_array(array: np.ndarray, name: str, max_pixels: int) -> np.ndarray:
    if array.ndim != 4 or array.shape[-1] != 3:
        raise MediaError(f"{name}: an array of frames must be (f h w 3), channels last; got {array.shape}")
    if array.size // 3 > max_pixels:
        raise MediaError(f"{name} has {array.size // 3} pixels, max_pixels_total is {max_pixels}: give fewer")
    return array_to_uint8(np.asarray(array), name)


def _read_npy(path: Path, name: str, max_pixels: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise MediaError(f"{name} is not a plain .npy array ({error}): save it with numpy.save") from error
    return _checked_array(array, name, max_pixels)


def _timed_files(files: list[Path], rate: float) -> Iterator[TimedFrame]:
    for index, file in enumerate(files):
        yield index / rate, 1 / rate, lambda file=file: np.asarray(load_image(file))


# GIF, WebP and other animations that Pillow reads


def _is_picture(header: bytes) -> bool:
    is_avif = header[4:8] == b"ftyp" and header[8:12] in (b"avis", b"avif")
    is_riff = header[:4] + header[8:12] == b"RIFFWEBP"
    return is_avif or is_riff or header.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM"))


def _timed_animation(data: Path | bytes, name: str) -> Iterator[TimedFrame]:
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        image = open_image(file, name)
        time, num_frames = 0.0, getattr(image, "n_frames", 1)
        for index in range(num_frames):
            image.seek(index)
            image.load()
            # As browsers do: a frame of 10 ms or less is shown for 100 ms.
            milliseconds = image.info.get("duration") or (1000 / DEFAULT_FPS if num_frames == 1 else 0)
            duration = (milliseconds if milliseconds > 10 else 100) / 1000
            frame = np.asarray(load_image(image))
            yield time, duration, lambda frame=frame: frame
            time += duration


def _evenly(timed: Iterator[TimedFrame], rate: float) -> Iterator[TimedFrame]:
    """Each frame as often as ticks of `rate` fall nearest to its time; GIF times are rounded to 10 ms."""
    for time, duration, decode in timed:
        for tick in range(round(time * rate), round((time + duration) * rate)):
            yield tick / rate, 1 / rate, decode


def _animation_rate(data: Path | bytes, name: str, max_pixels: int) -> float:
    """Frames per second of the common short frames; a file merges equal frames into one long one."""
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        width, height = open_image(file, name).size
    bound = min(max_pixels, MAX_PIXELS)
    if width * height > bound:
        raise MediaError(f"{name} is {width} x {height}, at most {bound} pixels fit: make it smaller")
    durations = []
    timed = _timed_animation(data, name)
    try:
        for _, duration, _ in timed:
            durations.append(duration)
            if len(durations) == 64:
                break
    except DECODER_ERRORS as error:
        raise MediaError(f"{name} is damaged or cut short ({error}): copy or download it again") from error
    finally:
        timed.close()
    common = [duration for duration in durations if duration <= 1.5 * min(durations)]
    return round(len(common) / sum(common), 6)


# Containers that FFmpeg reads


def open_container(data: Path | bytes):
    """Open a video with FFmpeg through PyAV. Raises what `av.open` raises."""
    # An absolute path has no "protocol:" for FFmpeg to follow.
    target = str(data.absolute()) if isinstance(data, Path) else io.BytesIO(data)
    return av.open(target, options={"format_whitelist": VIDEO_FORMATS})


def _container_rate(data: Path | bytes, name: str, max_pixels: int) -> float:
    try:
        with open_container(data) as container:
            if not container.streams.video:
                raise MediaError(f"{name} has sound but no picture: give a video")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            rate = stream.average_rate or stream.guessed_rate
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(
            f"{name} is not a video that can be read, or is cut short ({error}): give MP4, WebM, GIF or WebP"
        ) from error
    if width * height > max_pixels:
        raise MediaError(f"{name} is {width} x {height}, max_pixels_total is {max_pixels}: make it smaller")
    check_complete(data, name)
    return float(rate) if rate else DEFAULT_FPS


def _timed_container(data: Path | bytes, rate: float, start: float) -> Iterator[TimedFrame]:
    with open_container(data) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        origin = float((stream.start_time or 0) * stream.time_base)
        if start > 0:
            container.seek(max(0, int((start - 1 / rate + origin) / stream.time_base)), stream=stream)
        for index, frame in enumerate(container.decode(stream)):
            time = index / rate if frame.time is None else frame.time - origin
            yield time, 1 / rate, lambda frame=frame: decode_frame(frame)


def decode_frame(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame -> uint8 (h w 3), RGB, upright."""
    options = {}
    if frame.colorspace == UNSPECIFIED_COLORSPACE:
        # What players assume of files that do not say: BT.709 from 720 lines up.
        options["src_colorspace"] = "ITU709" if frame.height >= 720 else "ITU601"
    pixels = frame.to_ndarray(format="rgb24", **options)
    # `rotation` is counter-clockwise degrees, as numpy turns.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

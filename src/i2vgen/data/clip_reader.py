"""A span of one video, or a picture, at an asked rate and size, reading no more of the file than that takes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from PIL import Image

from i2vgen.data.errors import ClipError, DataError, StorageError
from i2vgen.media import MediaError, center_crop_wide, load_image
from i2vgen.media.completeness import check_complete_file
from i2vgen.media.images import DECODER_ERRORS, open_image
from i2vgen.media.readers import VIDEO_FORMATS, decode_frame, open_frames

VIDEO_SUFFIXES = ("mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ts", "ogv", "flv")
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
# A frame of 8192 x 8192; larger ones are refused before they are decoded.
MAX_FRAME_PIXELS = 1 << 26
MAX_ANIMATION_PIXELS = 1 << 29
# Times are compared within this many seconds: containers round to milliseconds.
TIME_TOLERANCE = 2e-3
EXIF_ORIENTATION, TURNED = 274, (5, 6, 7, 8)

# (seconds from the first frame, decode it to uint8 (h w 3))
Timed = tuple[float, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class ClipInfo:
    """`duration`: seconds from the first frame to the last, 0 for a picture; `fps`: mean rate; sides upright."""

    kind: str  # "video" | "image"
    width: int
    height: int
    frames: int
    fps: float
    duration: float


def probe(file: BinaryIO, name: str) -> ClipInfo:
    """What `file` holds; the suffix of `name` says how it is read. Decodes one frame, so junk is found.

    Raises ClipError if it cannot be read, has no time stamps, or its frames are too large.
    """
    try:
        if _suffix(name) in PICTURE_SUFFIXES:
            return _probe_picture(file, name)
        return _probe_video(file, name)
    except (DataError, StorageError):
        raise
    except (av.error.FFmpegError, *DECODER_ERRORS) as error:
        raise _unreadable(name, error) from error


def read_clip(
    file: BinaryIO,
    name: str,
    start: float,
    num_frames: int,
    fps: float,
    size: tuple[int, int] | None,
    num_threads: int = 1,
) -> np.ndarray:
    """`num_frames` frames at `fps` a second from second `start` of a video, uint8 (num_frames height width 3).

    The first is the frame nearest to `start`, and each further one that nearest in time to its tick counted from
    the first one's own time stamp, so a constant rate is thinned out evenly and a variable one keeps its pace.
    Only the span from the key frame before `start` on is read and decoded. `size` = (width, height): scaled
    to cover it and cropped at the centre, antialiased; None keeps the frames as they are. A picture has one frame.

    Raises ClipError if the file is damaged, or ends before the last frame asked for.
    """
    try:
        if _suffix(name) in PICTURE_SUFFIXES and (num_frames == 1 and not _is_animation(file, name)):
            return _resized(load_image(_bytes(file)), size)[None]
        timed = _timed_animation(file, name) if _suffix(name) in PICTURE_SUFFIXES else None
        timed = timed or _timed_video(file, name, start, num_threads)
        try:
            chosen = nearest_frames(timed, start, num_frames, fps)
        finally:
            timed.close()
        if len(chosen) < num_frames:
            raise ClipError(
                f"{name} ends too early for {num_frames} frames at {fps:g} a second from {start:.3f} s: "
                "it is cut short, or its index is of another file"
            )
        return np.stack(_decoded(chosen, size))
    except (DataError, StorageError):
        raise
    except (av.error.FFmpegError, *DECODER_ERRORS) as error:
        raise _unreadable(name, error) from error


def nearest_frames(timed: Iterator[Timed], start: float, num_frames: int, fps: float) -> list[Callable]:
    """The frame nearest to each tick; fewer than `num_frames` if the video ends before. Times must ascend."""
    chosen: list[Callable] = []
    origin, before = start, None
    for time, decode in timed:
        while len(chosen) < num_frames and (tick := origin + len(chosen) / fps) <= time + TIME_TOLERANCE:
            # At equal distance, within rounding, the earlier one: the same choice at every tick.
            is_before = before is not None and tick - before[0] <= time - tick + TIME_TOLERANCE
            nearest = before if is_before else (time, decode)
            if not chosen:
                origin = nearest[0]
            chosen.append(nearest[1])
        if len(chosen) == num_frames:
            return chosen
        before = (time, decode)
    if before is not None:
        # The last frame is shown for a while: a tick up to half an interval after it is still its own.
        while len(chosen) < num_frames and origin + len(chosen) / fps <= before[0] + 0.5 / fps + TIME_TOLERANCE:
            chosen.append(before[1])
    return chosen


def timed_frames(
    file: BinaryIO, name: str, start: float = 0.0, num_threads: int = 1
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds from the first frame, frame not yet converted), from one at or before second `start` on, in order.

    Raises ClipError for a damaged frame or one without a time stamp, and what FFmpeg raises.
    """
    with _open_video(file, name) as container:
        stream = _video_stream(container, name)
        if num_threads == 1:
            stream.thread_count = 1
        else:
            stream.thread_type = "AUTO"
        origin = float((stream.start_time or 0) * stream.time_base)
        # Containers with a sparse or coarse index may land behind the target: then from further back.
        for begin in sorted({start, max(0.0, start - 5.0), 0.0}, reverse=True):
            if begin > 0:
                container.seek(int((begin + origin) / stream.time_base), stream=stream)
            elif start > 0:
                container.seek(stream.start_time or 0, stream=stream)
            last = None
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise ClipError(f"{name} has frames without time stamps: convert it to MP4")
                time = float(frame.pts * stream.time_base) - origin
                if last is None and begin > 0 and time > start + TIME_TOLERANCE:
                    break
                if frame.is_corrupt:
                    raise ClipError(f"{name} is damaged at {time:.3f} s: copy or download it again")
                if last is not None and time <= last:
                    continue
                last = time
                yield time, frame
            if last is not None:
                return


def _timed_video(file: BinaryIO, name: str, start: float, num_threads: int) -> Iterator[Timed]:
    for time, frame in timed_frames(file, name, start, num_threads):
        yield time, lambda frame=frame: decode_frame(frame)


def _probe_video(file: BinaryIO, name: str) -> ClipInfo:
    check_complete_file(file, name)
    with _open_video(file, name) as container:
        stream = _video_stream(container, name)
        first = next(container.decode(stream), None)
        if first is None or first.pts is None:
            raise ClipError(f"{name} has no frames, or none with a time stamp: convert it to MP4")
        width, height = first.width, first.height
        if round(first.rotation / 90) % 2:
            width, height = height, width
        frames, last = 0, None
        if "mp4" in container.format.name and stream.frames and stream.duration:
            # The sample table has the count, and the packets from the last key frame on the last time stamp.
            frames = stream.frames
            container.seek(stream.duration + (stream.start_time or 0), stream=stream)
            last = max((packet.pts for packet in container.demux(stream) if packet.pts is not None), default=None)
        base = stream.time_base
    if last is None or last < first.pts:
        with _open_video(file, name) as container:
            packets = container.demux(_video_stream(container, name))
            times = [packet.pts for packet in packets if packet.pts is not None]
        frames, last = len(times), max(times)
    duration = float((last - first.pts) * base)
    fps = (frames - 1) / duration if duration > 0 else 0.0
    return ClipInfo("video", width, height, frames, round(fps, 4), round(duration, 4))


def _probe_picture(file: BinaryIO, name: str) -> ClipInfo:
    file.seek(0)
    image = open_image(file, name)
    width, height = image.size
    _check_pixels(width, height, name)
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format in ("GIF", "WEBP", "AVIF", "PNG"):
        times = [time for time, _ in _timed_animation(file, name)]
        duration = times[-1] - times[0] if times else 0.0
        if len(times) > 1 and duration > 0:
            return ClipInfo("video", width, height, len(times), round((len(times) - 1) / duration, 4), duration)
    if image.getexif().get(EXIF_ORIENTATION) in TURNED:
        width, height = height, width
    return ClipInfo("image", width, height, 1, 0.0, 0.0)


def _is_animation(file: BinaryIO, name: str) -> bool:
    file.seek(0)
    image = open_image(file, name)
    _check_pixels(*image.size, name)
    return getattr(image, "n_frames", 1) > 1


def _timed_animation(file: BinaryIO, name: str) -> Iterator[Timed]:
    _, timed, _ = open_frames(_bytes(file), name, 0.0, MAX_ANIMATION_PIXELS)
    for time, _, decode in timed:
        yield time, decode


def _open_video(file: BinaryIO, name: str):
    file.seek(0)
    return av.open(file, options={"format_whitelist": VIDEO_FORMATS}, metadata_errors="ignore")


def _video_stream(container, name: str):
    if not container.streams.video:
        raise ClipError(f"{name} has no picture: leave it out")
    stream = container.streams.video[0]
    _check_pixels(stream.codec_context.width, stream.codec_context.height, name)
    return stream


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise ClipError(f"{name} is {width} x {height}: at most {MAX_FRAME_PIXELS} pixels a frame are read")


def _decoded(chosen: list[Callable], size: tuple[int, int] | None) -> list[np.ndarray]:
    frames, last = [], None
    for decode in chosen:
        # A slow video shows one frame at several ticks.
        if decode is not last:
            pixels, last = decode(), decode
            picture = pixels if size is None else _resized(Image.fromarray(pixels), size)
        frames.append(picture)
    return frames


def _resized(image: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    return np.asarray(image if size is None or image.size == tuple(size) else center_crop_wide(image, size))


def _bytes(file: BinaryIO) -> io.BytesIO:
    file.seek(0)
    return io.BytesIO(file.read())


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _unreadable(name: str, error: Exception) -> ClipError:
    text = " ".join(str(error).split())[:300]
    return ClipError(text if isinstance(error, MediaError) and name in text else f"{name} cannot be decoded ({text})")

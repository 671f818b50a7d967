"""Shots as small video files that are quick to enter anywhere: H.264, short groups of pictures, times kept."""

from __future__ import annotations

from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from PIL import Image

from i2vgen.data.clip_reader import TIME_TOLERANCE, timed_frames
from i2vgen.data.errors import ClipError
from i2vgen.media import center_crop_wide
from i2vgen.media.readers import decode_frame

TIME_BASE = Fraction(1, 90_000)
BT709, LIMITED_RANGE = 1, 1


def encode_shot(
    source: BinaryIO,
    name: str,
    target: BinaryIO,
    begin: float,
    end: float,
    short_side: int,
    keep_every: int = 1,
    gop: int = 12,
    crf: int = 18,
) -> None:
    """Write the frames from second `begin` to second `end`, inclusive, to an MP4.

    Every `keep_every`-th frame is kept, each with its own time. A short side above `short_side` px is brought down
    to it; sides are made even. Raises ClipError if the source is damaged or has no frame there.
    """
    with av.open(target, "w", format="mp4") as container:
        stream, origin, number = None, 0.0, 0
        for time, frame in timed_frames(source, name, begin):
            if time < begin - TIME_TOLERANCE:
                continue
            if time > end + TIME_TOLERANCE:
                break
            number += 1
            if (number - 1) % keep_every:
                continue
            pixels = shrunk(Image.fromarray(decode_frame(frame)), short_side, is_even=True)
            if stream is None:
                stream, origin = _h264(container, pixels, gop, crf), time
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            picture.pts, picture.time_base = round((time - origin) / TIME_BASE), TIME_BASE
            container.mux(stream.encode(picture))
        if stream is None:
            raise ClipError(f"{name} has no frame from {begin:.3f} to {end:.3f} s")
        container.mux(stream.encode())


def shrunk(image: Image.Image, short_side: int, is_even: bool = False) -> np.ndarray:
    """uint8 (h w 3) whose short side is at most `short_side`; with `is_even` no side is odd."""
    scale = min(1.0, short_side / min(image.size))
    step = 2 if is_even else 1
    width, height = (max(step, round(side * scale / step) * step) for side in image.size)
    if (width, height) == image.size:
        return np.asarray(image)
    return np.asarray(center_crop_wide(image, (width, height)))


def _h264(container, pixels: np.ndarray, gop: int, crf: int):
    # One thread: files are encoded side by side.
    options = {"g": str(gop), "crf": str(crf), "preset": "medium", "threads": "1"}
    stream = container.add_stream("libx264", rate=30, options=options)
    stream.height, stream.width, stream.pix_fmt = pixels.shape[0], pixels.shape[1], "yuv420p"
    codec = stream.codec_context
    codec.time_base = TIME_BASE
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = LIMITED_RANGE
    return stream

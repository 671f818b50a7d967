"""The film's shots one after another, and the two test clips, as H.264; nothing but PyAV is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

from prepare.errors import PrepareError

WIDTH, HEIGHT = 512, 288
BT709, LIMITED_RANGE = 1, 1
GOP = 24
# Slices depend on the number of threads: fixed, every machine writes the same file.
THREADS = 2
FILM = {"preset": "slow", "crf": "23", "g": str(GOP), "keyint_min": str(GOP), "sc_threshold": "0"}
MUXER = {"movflags": "+faststart"}
CLIP = {"preset": "slow", "crf": "22", "g": str(GOP)}


def joined(shots: Iterable[dict]) -> list[tuple[int, int]]:
    """Half-open ranges of source frames that the shots cover, neighbours joined; they must be in order."""
    ranges: list[tuple[int, int]] = []
    for row in shots:
        start, end = row["source_start_frame"], row["source_start_frame"] + row["frames"]
        if ranges and start < ranges[-1][1]:
            raise PrepareError(f"shots overlap or are out of order at source frame {start}")
        if ranges and start == ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def encode_film(
    source: BinaryIO, target: Path, ranges: list[tuple[int, int]], progress: Callable[[], object] = lambda: None
) -> int:
    """Write the frames in `ranges` to an MP4 of 512x288, 24 fps, a key frame every 24. Returns their number."""
    wanted = sum(end - start for start, end in ranges)
    number = _encode(source, target, FILM, progress, ranges, is_tagged=True)
    if number != wanted:
        raise PrepareError(f"the film has {number} of the {wanted} frames that are used: it is cut off")
    return number


def encode_clip(source: BinaryIO, target: Path, progress: Callable[[], object] = lambda: None) -> int:
    """Write a whole video to an MP4 of height 288 at its own rate. Returns the number of its frames."""
    return _encode(source, target, CLIP, progress, None, is_tagged=False)


def _encode(
    source: BinaryIO,
    target: Path,
    options: dict[str, str],
    progress: Callable[[], object],
    ranges: list[tuple[int, int]] | None,
    is_tagged: bool,
) -> int:
    number = 0
    with av.open(source) as reader, av.open(str(target), "w", format="mp4", options=MUXER) as writer:
        video = reader.streams.video[0]
        rate = Fraction(round(video.average_rate * 1000), 1000)
        stream = writer.add_stream("libx264", rate=rate, options=options)
        height = HEIGHT
        width = WIDTH if is_tagged else 2 * round(video.width * height / video.height / 2)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = THREADS
        if is_tagged:
            codec.colorspace = codec.color_primaries = codec.color_trc = BT709
            codec.color_range = LIMITED_RANGE
        for index, frame in enumerate(reader.decode(video)):
            if ranges is not None:
                if index >= ranges[-1][1]:
                    break
                if not any(start <= index < end for start, end in ranges):
                    continue
            small = frame.reformat(width, height, format="yuv420p", interpolation="LANCZOS")
            small.pts, small.time_base, small.pict_type = number, 1 / rate, 0
            writer.mux(stream.encode(small))
            number += 1
            progress()
        writer.mux(stream.encode())
    return number

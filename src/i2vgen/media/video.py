"""Reading videos: files, animations, folders of frames, arrays and tensors, within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from i2vgen.media.images import DECODER_ERRORS
from i2vgen.media.readers import TIME_TOLERANCE, TimedFrame, open_frames, resampled
from i2vgen.media.sources import MediaError, describe

# About 1.6 GB of uint8: 582 frames of 1280x720.
MAX_PIXELS_TOTAL = 1 << 29


@dataclass
class Video:
    """Decoded frames: uint8 (f h w 3), their rate in frames per second, and the file they are from."""

    frames: np.ndarray
    fps: float
    path: Path | None = None


def load_video(
    source: Any,
    max_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    max_pixels_total: int = MAX_PIXELS_TOTAL,
) -> Video:
    """Read a video, upright, from second `start` on, at most `max_frames` frames.

    `source`: a path (MP4, MOV, WebM, MKV, AVI, ...; GIF and WebP animations; `.npy`), a folder or
    `name_%04d.png` series of frames, an http(s) or `data:` URL, bytes, a binary file object, a numpy array
    (f h w 3) in uint8 or float in [0, 1], or a tensor (1 3 f h w) or (3 f h w) in [-1, 1].

    With `fps` the frame shown at each tick of that rate is taken (frames repeat or drop); without it the
    file's own frames are. Animations always come at an even rate, a held frame as often as it was shown.
    Only the frames asked for are kept, and no more than `max_pixels_total` pixels of them.

    Raises `MediaError` if the source is missing, not a video, damaged, cut short, too large, or has no
    frames at or after `start`.
    """
    name = describe(source)
    if max_frames is not None and max_frames < 1:
        raise MediaError(f"max_frames is {max_frames}: give at least 1, or None for all")
    if fps is not None and not 0 < fps <= 1000:
        raise MediaError(f"fps is {fps}: give a rate above 0 and up to 1000, or None for the rate of the file")
    if not (math.isfinite(start) and start >= 0):
        raise MediaError(f"start is {start}: give seconds, 0 or more")

    rate, timed, path = open_frames(source, name, start, max_pixels_total)
    chosen = _from_start(timed, start) if fps is None else resampled(timed, start, fps)
    frames: list[np.ndarray] = []
    try:
        for decode in chosen:
            frame = decode()
            if frames and frame.shape != frames[0].shape:
                raise MediaError(f"{name}: frame {len(frames)} has another size than frame 0: make them equal")
            if (len(frames) + 1) * frame.shape[0] * frame.shape[1] > max_pixels_total:
                fit = "1 frame fits" if len(frames) == 1 else f"{len(frames)} frames fit"
                raise MediaError(
                    f"{name} has more than max_pixels_total = {max_pixels_total} pixels ({fit}): "
                    "set max_frames, a lower fps, or a larger bound"
                )
            frames.append(frame)
            if len(frames) == max_frames:
                break
    except MediaError:
        raise
    except (av.error.FFmpegError, *DECODER_ERRORS) as error:
        raise MediaError(
            f"{name} is damaged or cut short after frame {len(frames)} ({error}): copy it again, or set max_frames"
        ) from error
    finally:
        timed.close()
    if not frames:
        raise MediaError(f"{name} has no frames at or after start = {start} s: check the file, or start earlier")
    return Video(np.stack(frames), float(fps or rate), path)


def _from_start(timed: Iterator[TimedFrame], start: float) -> Iterator[Callable[[], np.ndarray]]:
    return (decode for time, _, decode in timed if time >= start - TIME_TOLERANCE)

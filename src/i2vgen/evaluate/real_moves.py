"""Moves that a real camera could have filmed: windows over a photo that is larger than the video."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from i2vgen.data.motion import AMOUNTS, DURATION, Move, render_camera

TRUTH_KINDS = ("pan-left", "pan-right", "tilt-up", "tilt-down", "zoom-in", "zoom-out")
_SIGNS = {"left": -1.0, "right": 1.0, "up": -1.0, "down": 1.0, "in": 1.0, "out": -1.0}


def times_of(num_frames: int, fps: float) -> np.ndarray:
    """When frames are shown, in units of `DURATION`: `(f)` from 0."""
    return np.arange(num_frames) / fps / DURATION


def filmed(
    photo: np.ndarray, kind: str, size: tuple[int, int], times: np.ndarray, rng: np.random.Generator, speed="normal"
) -> np.ndarray | None:
    """The photo `(h w 3)` uint8 filmed with the camera motion `kind`, as far as the words mean for nano.

    Returns uint8 `(f H W 3)` of `size` (W, H), or None where the photo is too small to do so without being
    enlarged. Raises ValueError for a kind that is not in `TRUTH_KINDS`.
    """
    if kind not in TRUTH_KINDS:
        raise ValueError(f"kind={kind!r}: use one of {', '.join(TRUTH_KINDS)}")
    axis, direction = kind.split("-")
    move = Move(**{axis: _SIGNS[direction] * AMOUNTS[axis][speed]})
    return render_camera(photo, move, size, times, rng, max_enlargement=1.0)


def sharp_pan(
    photo: np.ndarray, kind: str, size: tuple[int, int], times: np.ndarray, is_whole: bool = False
) -> np.ndarray | None:
    """A pan over the photo `(h w 3)` uint8 that keeps all its detail: what a frequency analysis compares with.

    The photo is scaled so that its path just fits, and then moved by whole pixels (`is_whole`), or by fractions with
    a Lanczos kernel, which leaves frame 0 as it is. Returns uint8 `(f H W 3)`, or None where the photo would have to
    be enlarged. Raises ValueError for anything but a pan.
    """
    if kind not in ("pan-left", "pan-right"):
        raise ValueError(f"kind={kind!r}: use pan-left or pan-right")
    width, height = size
    shifts = times * AMOUNTS["pan"]["normal"] * width
    needed = width + math.ceil(float(shifts.max())) + 8, height
    scale = max(needed[0] / photo.shape[1], needed[1] / photo.shape[0])
    if scale > 1:
        return None
    wide = math.ceil(photo.shape[1] * scale), math.ceil(photo.shape[0] * scale)
    source = np.asarray(Image.fromarray(photo).resize(wide, Image.Resampling.LANCZOS))
    top = (wide[1] - height) // 2
    left = (wide[0] - needed[0]) // 2 + 4
    is_right = kind == "pan-right"
    positions = left + shifts if is_right else left + needed[0] - 8 - width - shifts
    if is_whole:
        return np.stack([source[top : top + height, x : x + width] for x in np.round(positions).astype(int)])
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    moved = [cv2.warpAffine(source, np.array([[1, 0, x], [0, 1, top]], float), size, flags=flags) for x in positions]
    return np.stack(moved)


def moved_still(frame: np.ndarray, kind: str, times: np.ndarray) -> np.ndarray:
    """Frame 0 moved exactly as the words say, its edges mirrored: perfect motion that invents nothing.

    `frame`: uint8 `(h w 3)`; returns `(f h w 3)`.
    """
    height, width = frame.shape[:2]
    axis, direction = kind.split("-")
    amount = _SIGNS[direction] * AMOUNTS[axis]["normal"]
    centre = np.array([width, height]) / 2 - 0.5
    frames = []
    for u in times:
        scale = math.exp(-amount * u) if axis == "zoom" else 1.0
        offset = np.array([width * amount * u * (axis == "pan"), height * amount * u * (axis == "tilt")])
        shift = centre + offset - scale * centre
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(frame, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101))
    return np.stack(frames)

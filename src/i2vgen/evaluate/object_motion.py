"""Motion of a thing whose place in the first frame is known, apart from that of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from i2vgen.evaluate.motion import chained_flow, follow_points, grey_frames

REST_SHARE = 0.25
DEAD_ZONE = 0.02  # of the frame's width or height: less is no motion
MIN_POINTS = 6
MIN_SHARE = 0.2  # of the points of the first frame that are still followed at the end
MIN_LIKENESS = 0.5  # correlation of the thing with its place in the last frame
RETURN_ERROR = 1.0  # px
MAX_CHANGE = 30.0  # grey levels, median: a thing that changes more on its way is another thing
WAY_MARGIN = 0.06  # of the shorter side, around the thing's way: not counted as background
DIRECTIONS = {"left": (0, -1.0), "right": (0, 1.0), "up": (1, -1.0), "down": (1, 1.0)}


@dataclass(frozen=True)
class ObjectMotion:
    """From the first frame to the last, in fractions of the frame's width (dx) and height (dy); right, down positive.

    `dx`, `dy`: the thing's own displacement, that of the background where it stands taken off. `background`: mean
    length of the flow outside the thing's way, in frame widths. `moved`: share of that area which moves more than
    `REST_SHARE` times as far as the thing. `length`: length of the own displacement, in frame widths.
    `method`: "points" (corners followed from frame to frame), "template" (found again in the last frame), "flow"
    (dense flow followed from frame to frame), or "lost": not found again, displacement 0.
    """

    dx: float
    dy: float
    length: float
    background: float
    moved: float
    method: str

    @property
    def is_measured(self) -> bool:
        return self.method != "lost"

    def goes(self, direction: str) -> bool:
        """Whether the thing's own motion has the sign of "left", "right", "up" or "down", beyond the dead zone."""
        axis, sign = DIRECTIONS[direction]
        return self.is_measured and sign * (self.dx, self.dy)[axis] > DEAD_ZONE


def object_motion(frames: np.ndarray, mask: np.ndarray) -> ObjectMotion:
    """Follow what `mask` `(h w)` bool covers in the first of `frames` uint8 `(f h w 3)`.

    Corners inside the mask are followed from frame to frame; those that stay with the background at the thing's edge
    are outvoted by the median. Where too few can be followed, the thing is searched in the last frame as it looked in
    the first; one too plain for that is followed by dense flow. Raises ValueError for a mask of another size or without
    enough pixels.
    """
    height, width = frames.shape[1:3]
    if mask.shape != (height, width) or mask.dtype != bool:
        raise ValueError(f"mask={mask.dtype} {mask.shape}: expected bool of the frames' size ({height}, {width})")
    if mask.sum() < 64:
        raise ValueError(f"mask covers {int(mask.sum())} pixels: a thing of at least 64 can be followed")
    grey = grey_frames(frames)
    *_, flow = chained_flow(grey)
    own, method = _by_points(grey, mask)
    if own is None:
        own, method = _by_template(grey[0], grey[-1], mask)
    if own is None:
        own, method = _by_flow(grey, mask, flow)
    if own is None:
        own, method = np.zeros(2), "lost"
    background = _background_shift(grey, mask) if method != "lost" else np.zeros(2)
    relative = own - background
    outside = ~_way(mask, own)
    rest = np.linalg.norm(flow, axis=-1)[outside]
    length = float(np.hypot(*relative))
    return ObjectMotion(
        dx=float(relative[0]) / width,
        dy=float(relative[1]) / height,
        length=length / width,
        background=float(rest.mean()) / width if outside.any() else 0.0,
        moved=float((rest > max(REST_SHARE * length, 1.0)).mean()) if outside.any() else 0.0,
        method=method,
    )


def _by_points(grey: list[np.ndarray], mask: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(median displacement in px, "points"), or (None, "") where too few corners can be followed to the end."""
    start, end = _followed(grey, cv2.erode(mask.astype(np.uint8), np.ones((3, 3))))
    if start is None or len(start) < MIN_POINTS:
        return None, ""
    return np.median(end - start, axis=0), "points"


def _followed(grey: list[np.ndarray], mask: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(places in the first frame, in the last) of the corners `(n 2)` that were followed all the way.

    None where there are too few corners, or too small a share of them arrives.
    """
    points = cv2.goodFeaturesToTrack(grey[0], 400, 0.01, 3, mask=mask, blockSize=3)
    if points is None or len(points) < MIN_POINTS:
        return None, None
    start = points.reshape(-1, 2)
    now, kept = start.copy(), np.arange(len(start))
    for earlier, later in pairwise(grey):
        now, found = follow_points(earlier, later, now, RETURN_ERROR)
        height, width = later.shape
        inside = (now[:, 0] >= 0) & (now[:, 0] < width) & (now[:, 1] >= 0) & (now[:, 1] < height)
        now, kept = now[found & inside], kept[found & inside]
        if len(kept) < max(MIN_POINTS, MIN_SHARE * len(start)):
            return None, None
    return start[kept], now


def _by_template(first: np.ndarray, last: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(displacement in px, "template"), or (None, "") where nothing in `last` looks like the masked part of `first`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut, weights = first[top:bottom, left:right], mask[top:bottom, left:right].astype(np.float32)
    if cut[weights > 0].std() < 2:
        return None, ""
    likeness = cv2.matchTemplate(last.astype(np.float32), cut.astype(np.float32), cv2.TM_CCOEFF_NORMED, mask=weights)
    likeness = np.where(np.isfinite(likeness), likeness, -1)
    y, x = np.unravel_index(int(likeness.argmax()), likeness.shape)
    if likeness[y, x] < MIN_LIKENESS:
        return None, ""
    return np.array([x - left, y - top], float), "template"


def _by_flow(grey: list[np.ndarray], mask: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(median displacement in px, "flow") of the mask's pixels, or (None, "") where what arrives looks different."""
    rows, columns = np.nonzero(mask)
    start = np.stack([columns, rows], axis=1).astype(np.float32)
    now = start + flow[mask]
    arrived = cv2.remap(grey[-1], now[:, :1], now[:, 1:], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
    if np.median(np.abs(arrived.astype(float) - grey[0][mask])) > MAX_CHANGE:
        return None, ""
    return np.median(flow[mask], axis=0).astype(float), "flow"


def _background_shift(grey: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """How far the background moves at the middle of the mask, in px: a similarity fitted to corners around it.

    Zero where none can be fitted: a background without corners shows no motion either.
    """
    margin = round(WAY_MARGIN * min(mask.shape)) * 2 + 1
    start, end = _followed(grey, 1 - cv2.dilate(mask.astype(np.uint8), np.ones((margin, margin))))
    if start is None:
        return np.zeros(2)
    matrix, inliers = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=1.0)
    if matrix is None or inliers.sum() < MIN_POINTS:
        return np.zeros(2)
    middle = np.argwhere(mask).mean(0)[::-1]
    return matrix[:, :2] @ middle + matrix[:, 2] - middle


def _way(mask: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Where the thing is at any time of its way, with a margin: bool `(h w)`."""
    height, width = mask.shape
    way = np.zeros(mask.shape, np.uint8)
    for share in np.linspace(0, 1, 12):
        shift = np.array([[1, 0, share * displacement[0]], [0, 1, share * displacement[1]]], float)
        way |= cv2.warpAffine(mask.astype(np.uint8), shift, (width, height), flags=cv2.INTER_NEAREST)
    margin = 2 * round(WAY_MARGIN * min(mask.shape)) + 1
    return cv2.dilate(way, np.ones((margin, margin))) > 0

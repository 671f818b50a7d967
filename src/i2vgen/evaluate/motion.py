"""Camera motion of a clip: how far, how much larger and how much turned its content ends up.

The names say what the camera does, the numbers what the content does: when the camera pans left, the content
moves right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

MIN_SIDE = 32
WORKING_SIDE = 512  # longer frames are shrunk to this before tracking
# Frames bridged at once, in order of preference: the small errors of each link add up, so fewer links are
# better as long as the points are found again.
GAPS = (3, 2, 1, 4)
GOOD_LINK_SHARE = 0.3  # of the points of a link; settles the gap
MIN_LINK_SHARE = 0.1
MIN_INLIER_SHARE = 0.15  # of a clip; below it the motion found is not one motion of the whole picture
MIN_POINTS = 8
ROUND_TRIP_ERROR = 0.5  # px, forward-backward check
RANSAC_ERROR = 0.5  # px

# Mean distance of a point of the unit square from its centre: turns a change of scale or angle into the mean
# displacement that it causes, comparable with dx and dy.
MEAN_RADIUS = 0.3826

DEAD_ZONE = {"dx": 0.01, "dy": 0.01, "scale": 0.01, "roll": 0.5}  # fractions, log of the scale, degrees

# kind -> (component of GlobalMotion, sign it must have; for "scale" the sign of its logarithm)
EXPECTED_SIGNS: dict[str, tuple[str, int] | None] = {
    "pan-left": ("dx", 1),
    "pan-right": ("dx", -1),
    "tilt-up": ("dy", 1),
    "tilt-down": ("dy", -1),
    "zoom-in": ("scale", 1),
    "zoom-out": ("scale", -1),
    "roll-clockwise": ("roll", -1),
    "roll-counterclockwise": ("roll", 1),
    "static": None,
}


@dataclass(frozen=True)
class GlobalMotion:
    """Similarity transform that takes the content of the first frame to the last, about the frame's centre.

    `dx`, `dy`: displacement as a fraction of the frame's width and height, right and down positive.
    `scale`: total change of size, above 1 when the content grows. `roll`: degrees, positive when the content
    turns clockwise as seen. `residual`: mean reprojection error of the agreeing points of a frame pair, as a
    fraction of the width. `inlier_share`: share of the points looked for that were found and agree, averaged
    over the clip; 0 when nothing could be tracked (the other fields then say "no motion").
    """

    dx: float
    dy: float
    scale: float
    roll: float
    residual: float
    inlier_share: float

    @property
    def is_measured(self) -> bool:
        """Whether enough of the picture agrees on one motion."""
        return self.inlier_share >= MIN_INLIER_SHARE

    def signed(self, component: str) -> float:
        """A component with 0 as its rest value: `dx`, `dy`, `roll` as they are, `scale` as its logarithm."""
        value = getattr(self, component)
        return math.log(value) if component == "scale" else value

    def strengths(self) -> dict[str, float]:
        """Mean displacement that each component causes, >= 0, as a fraction of the frame's size."""
        return {
            "dx": abs(self.dx),
            "dy": abs(self.dy),
            "scale": MEAN_RADIUS * abs(math.log(self.scale)),
            "roll": MEAN_RADIUS * abs(math.radians(self.roll)),
        }

    def dominant(self) -> str:
        """The component that moves the picture most: "dx", "dy", "scale" or "roll"."""
        strengths = self.strengths()
        return max(strengths, key=strengths.__getitem__)


def expected_sign(kind: str) -> tuple[str, int] | None:
    """Component and sign that a kind of camera motion asks for; None for "static".

    Raises ValueError when `kind` is not in `EXPECTED_SIGNS`.
    """
    if kind not in EXPECTED_SIGNS:
        raise ValueError(f"kind={kind!r} is not a known camera motion; use one of {', '.join(EXPECTED_SIGNS)}")
    return EXPECTED_SIGNS[kind]


def motion_is_right(kind: str, motion: GlobalMotion) -> bool:
    """Whether the clip moves the way `kind` asks, by more than the dead zone.

    A "static" clip is right when every component stays within the dead zone. A clip that could not be
    measured is never right. Raises ValueError for an unknown kind.
    """
    expected = expected_sign(kind)
    if not motion.is_measured:
        return False
    if expected is None:
        return all(abs(motion.signed(component)) <= limit for component, limit in DEAD_ZONE.items())
    component, sign = expected
    return sign * motion.signed(component) > DEAD_ZONE[component]


def motion_is_dominant(kind: str, motion: GlobalMotion) -> bool:
    """Whether the clip is right and no other component moves the picture more (always so for "static")."""
    expected = expected_sign(kind)
    return motion_is_right(kind, motion) and (expected is None or motion.dominant() == expected[0])


def global_motion(frames: np.ndarray) -> GlobalMotion:
    """Measure the camera motion of a clip over a few frames at a time, and chain it from first to last.

    `frames`: uint8 `(f h w 3)`, at least 2 frames of 32 pixels a side. Corners are followed with pyramidal
    Lucas-Kanade there and back, over 1 to 4 frames; RANSAC fits a similarity to those that return. Where that
    fails at every gap, the content is taken as still for one frame and counts 0 in `inlier_share`.
    Raises ValueError for another shape or dtype, ImportError without OpenCV (extra `i2vgen[evaluate]`).
    """
    cv2 = _import_cv2()
    _check_frames(frames)
    grey = _grey_frames(cv2, frames)
    height, width = grey[0].shape
    total = np.eye(3)
    residuals, shares = [], []
    index = 0
    while index < len(grey) - 1:
        link, gap = _best_link(cv2, grey, index)
        if link is None:
            shares.append(0.0)
        else:
            total = link.matrix @ total
            residuals.append(link.residual)
            shares += [link.share] * gap
        index += gap

    centre = np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
    shift = (total @ centre - centre)[:2] / (width, height)
    return GlobalMotion(
        dx=float(shift[0]),
        dy=float(shift[1]),
        scale=float(np.hypot(total[0, 0], total[1, 0])),
        roll=float(np.degrees(np.arctan2(total[1, 0], total[0, 0]))),
        residual=float(np.mean(residuals)) / width if residuals else 0.0,
        inlier_share=float(np.mean(shares)),
    )


def mean_flow(frames: np.ndarray) -> float:
    """Mean length of the dense optical flow from the first frame to the last, in frame widths.

    `frames`: uint8 `(f h w 3)`. It sees subject motion as well as camera motion, so it tells a still clip
    from a moving one. Raises as `global_motion`.
    """
    return _flow_lengths(frames)[-1]


def peak_flow(frames: np.ndarray) -> float:
    """The largest mean length of the flow from the first frame to any other, in frame widths.

    Unlike `mean_flow` it also sees a clip that moves and comes back. Raises as `global_motion`.
    """
    return max(_flow_lengths(frames))


def _flow_lengths(frames: np.ndarray) -> list[float]:
    _check_frames(frames)
    grey = _grey_frames(_import_cv2(), frames)
    return [float(np.linalg.norm(flow, axis=-1).mean()) / grey[0].shape[1] for flow in chained_flow(grey)]


def chained_flow(grey: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Flow from the first frame to each later one, float32 `(h w 2)` in pixels, followed from frame to frame.

    Between frames that are far apart dense flow is lost: a pan by a third of the frame measures a fifth of that.
    """
    cv2 = _import_cv2()
    y, x = np.mgrid[0 : grey[0].shape[0], 0 : grey[0].shape[1]].astype(np.float32)
    total = np.zeros((*grey[0].shape, 2), np.float32)
    for earlier, later in pairwise(grey):
        step = dense_flow(earlier, later)
        at_x, at_y = x + total[..., 0], y + total[..., 1]
        total = total + cv2.remap(step, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        yield total


def dense_flow(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """DIS flow float32 `(h w 2)` in pixels, x first: what is at p in `earlier` is at p + flow(p) in `later`.

    Both: grey uint8 `(h w)`, at least 32 pixels a side.
    """
    cv2 = _import_cv2()
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(earlier, later, None)


def grey_frames(frames: np.ndarray) -> list[np.ndarray]:
    """uint8 `(f h w 3)` -> grey frames `(h w)` of the same size. Raises as `global_motion`."""
    cv2 = _import_cv2()
    _check_frames(frames)
    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]


class _Link(NamedTuple):
    matrix: np.ndarray  # (3 3), pixels of the earlier frame to pixels of the later one
    residual: float  # px
    share: float


def _best_link(cv2, grey: list[np.ndarray], index: int) -> tuple[_Link | None, int]:
    """First good link from frame `index` on, else the best, and its gap; (None, 1) when there is none."""
    best, best_gap = None, 1
    for gap in GAPS:
        if index + gap >= len(grey):
            continue
        link = _link_frames(cv2, grey[index], grey[index + gap])
        if link is not None and (best is None or link.share > best.share):
            best, best_gap = link, gap
        if best is not None and best.share >= GOOD_LINK_SHARE:
            break
    return best, best_gap


def follow_points(
    earlier: np.ndarray, later: np.ndarray, points: np.ndarray, max_error: float = ROUND_TRIP_ERROR
) -> tuple[np.ndarray, np.ndarray]:
    """Lucas-Kanade there and back: (where the points `(n 2)` float32 went, which of them returned `(n)` bool).

    A point has returned when it comes back to within `max_error` pixels.
    """
    cv2 = _import_cv2()
    window = {"winSize": (17, 17), "maxLevel": 4}
    there, there_status, _ = cv2.calcOpticalFlowPyrLK(earlier, later, points, None, **window)
    back, back_status, _ = cv2.calcOpticalFlowPyrLK(later, earlier, there, None, **window)
    found = (there_status.ravel() == 1) & (back_status.ravel() == 1)
    return there, found & (np.linalg.norm(back - points, axis=1) < max_error)


def _link_frames(cv2, earlier: np.ndarray, later: np.ndarray) -> _Link | None:
    """Similarity between two grey frames `(h w)`, or None when too few points agree."""
    height, width = earlier.shape
    spacing = max(3, round(max(height, width) / 40))
    points = cv2.goodFeaturesToTrack(earlier, maxCorners=600, qualityLevel=0.003, minDistance=spacing, blockSize=5)
    if points is None or len(points) < MIN_POINTS:
        return None
    points = points.reshape(-1, 2)
    there, found = follow_points(earlier, later, points)
    if found.sum() < MIN_POINTS:
        return None
    source, target = points[found], there[found]
    matrix, inliers = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_ERROR, maxIters=2000, confidence=0.999
    )
    if matrix is None:
        return None
    inliers = inliers.ravel() == 1
    share = inliers.sum() / len(points)
    if inliers.sum() < MIN_POINTS or share < MIN_LINK_SHARE:
        return None
    moved = source[inliers] @ matrix[:, :2].T + matrix[:, 2]
    residual = float(np.linalg.norm(moved - target[inliers], axis=1).mean())
    return _Link(np.vstack([matrix, [0.0, 0.0, 1.0]]), residual, float(share))


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"frames={found}: motion is measured on a uint8 array of shape (f h w 3)")
    if len(frames) < 2 or min(frames.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"frames={frames.shape}: motion needs 2 frames and {MIN_SIDE} pixels a side or more")


def _grey_frames(cv2, frames: np.ndarray) -> list[np.ndarray]:
    """uint8 `(f h w 3)` -> grey frames `(h w)`, shrunk to at most `WORKING_SIDE` pixels a side."""
    grey = grey_frames(frames)
    shrink = WORKING_SIDE / max(frames.shape[1:3])
    if shrink < 1:
        grey = [cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) for frame in grey]
    return grey


def _import_cv2():
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "measuring motion needs OpenCV, which is not installed: pip install 'i2vgen[evaluate]'"
        ) from error
    return cv2

"""Which clips make the batch of a step: arithmetic on (seed, step), so that nothing need be replayed or stored.

Clips are sorted into cells: those of one bucket that allow the same (frames, fps) pairs. A step draws a pair and
then a cell, both by a counter-based generator, and takes the next clips of that cell's endless stream: one random
permutation after the other, each clip once in each.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.clip_reader import TIME_TOLERANCE
from i2vgen.data.clip_table import ClipTable
from i2vgen.data.errors import DataError

_log = logging.getLogger(__name__)
BLOCK = 4096  # steps planned at once
# A source may be this much slower than the rate asked for: 15 frames a second still serve 16.
MIN_RATE_RATIO = 0.9
FEISTEL_ROUNDS = 6


@dataclass(frozen=True)
class BatchSpec:
    """One batch before decoding; `batch_size` counts the clips of all processes."""

    step: int
    kind: str  # "video" | "image"
    num_frames: int
    fps: float
    width: int
    height: int
    batch_size: int


@dataclass(frozen=True)
class Draw:
    """One clip of a batch: row of the table, start second within the clip, number below 1 that picks the caption."""

    index: int
    start: float
    caption: float


@dataclass(frozen=True)
class _Cell:
    number: int
    bucket: tuple[int, int]
    indices: np.ndarray
    cumulative_weight: np.ndarray | None  # None: all alike
    weight: float


class ClipSampler:
    """Raises DataError if no clip serves a number of frames asked for."""

    def __init__(self, table: ClipTable, config: ClipDataConfig, seed: int):
        self.table, self.config, self.seed = table, config, int(seed) & (1 << 63) - 1
        buckets = nearest_buckets(table.width, table.height, config.buckets)
        weights = _clip_weights(table, config.weights)
        has_images = bool((~table.is_video).any())
        pairs = _pairs(config)
        self.image_share = config.image_share
        # A choice is (kind, frames, fps, share of its kind); where there are no pictures, single frames serve.
        images = [("image" if has_images else "video", 1, config.image_fps, 1.0)] if config.image_share > 0 else []
        videos = [("video", frames, fps, share) for frames, fps, share in pairs] if config.image_share < 1 else []
        self.choices = images + videos
        self.num_image_choices = len(images)
        allowed = np.stack([self._allows(choice) for choice in self.choices], axis=1)
        allowed &= (weights > 0)[:, None]
        self._drop_unserved(allowed)
        self.cells = _make_cells(buckets, allowed, weights, config.buckets)
        masks = [allowed[cell.indices[0]] for cell in self.cells]
        self._cell_shares = [
            _cumulative(np.array([c.weight * m[n] for c, m in zip(self.cells, masks, strict=True)]))
            for n in range(len(self.choices))
        ]
        self._video_shares = _cumulative(np.array([share for *_, share in self.choices[self.num_image_choices :]]))
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._counts = [np.zeros(len(self.cells), np.int64)]

    def spec(self, step: int) -> BatchSpec:
        choice, cell, _ = self._plan(step)
        _, num_frames, fps, _ = self.choices[choice]
        # What is trained on: one frame of a video is a picture too.
        kind = "image" if choice < self.num_image_choices else "video"
        width, height = self.cells[cell].bucket
        return BatchSpec(step, kind, num_frames, fps, width, height, self.config.batch_size(num_frames))

    def draws(self, step: int, attempt: int = 0) -> list[Draw]:
        """The clips of the batch of `step`; a higher `attempt` has a replacement for each, in the same order."""
        choice, number, first = self._plan(step)
        _, num_frames, fps, _ = self.choices[choice]
        cell = self.cells[number]
        positions = first + np.arange(self.config.batch_size(num_frames), dtype=np.int64)
        if attempt:
            # From half an epoch ahead: not what stands beside it in the batch.
            positions = positions + max(1, len(cell.indices) // 2) + attempt - 1
        rows = self._rows(cell, positions)
        keys = _mix(positions.astype(np.uint64) ^ _key(self.seed, cell.number, 1))
        starts, captions = _unit(keys), _unit(_mix(keys))
        room = np.maximum(0.0, self.table.duration[rows] - (num_frames - 1) / fps) * self.table.is_video[rows]
        return [Draw(int(r), float(s), float(c)) for r, s, c in zip(rows, starts * room, captions, strict=True)]

    def describe(self) -> list[dict]:
        """What can be drawn: for each choice its share of the batches and the clips that serve it, by bucket."""
        found = []
        for number, (_, num_frames, fps, share) in enumerate(self.choices):
            is_image = number < self.num_image_choices
            clips: dict[str, int] = {}
            previous = 0.0
            for cell, total in zip(self.cells, self._cell_shares[number], strict=True):
                if total > previous:
                    name = f"{cell.bucket[0]}x{cell.bucket[1]}"
                    clips[name] = clips.get(name, 0) + len(cell.indices)
                previous = total
            of_kind = self.image_share if is_image else 1 - self.image_share
            size = self.config.batch_size(num_frames)
            found.append(
                {
                    "kind": "image" if is_image else "video",
                    "num_frames": num_frames,
                    "fps": fps,
                    "share": of_kind * share,
                    "batch_size": size,
                    "clips": clips,
                }
            )
        return found

    def _allows(self, choice: tuple) -> np.ndarray:
        kind, num_frames, fps, _ = choice
        table = self.table
        if kind == "image":
            return ~table.is_video
        if num_frames == 1:
            return table.is_video.copy()
        is_long = (num_frames - 1) / fps <= table.duration + TIME_TOLERANCE
        return table.is_video & is_long & (table.fps >= MIN_RATE_RATIO * fps)

    def _drop_unserved(self, allowed: np.ndarray) -> None:
        """Leave out pairs that no clip serves; their share goes to the other rates of the same length."""
        served = allowed.any(axis=0)
        for number, (_, num_frames, fps, _) in enumerate(self.choices):
            if served[number]:
                continue
            siblings = [n for n, c in enumerate(self.choices) if c[1] == num_frames and served[n]]
            siblings = [n for n in siblings if (n < self.num_image_choices) == (number < self.num_image_choices)]
            if not siblings:
                longest = self.table.duration.max() if len(self.table) else 0.0
                raise DataError(
                    f"sources: no video is long and fast enough for {num_frames} frames at {fps:g} a second or the "
                    f"other fps_choices (the longest has {longest:.2f} s): add longer ones, take {num_frames} out of "
                    "frame_choices, or, for pictures alone, set image_share = 1"
                )
            _log.warning("no video serves %d frames at %g a second: left out of the mixture", num_frames, fps)
        for num_frames in {c[1] for c in self.choices[self.num_image_choices :]}:
            group = [n for n in range(self.num_image_choices, len(self.choices)) if self.choices[n][1] == num_frames]
            total = sum(self.choices[n][3] for n in group)
            kept = sum(self.choices[n][3] for n in group if served[n])
            for n in group:
                *choice, share = self.choices[n]
                self.choices[n] = (*choice, share * total / kept if served[n] and kept else 0.0)

    def _plan(self, step: int) -> tuple[int, int, int]:
        """(choice, cell, position in the cell's stream of the first clip) of a step."""
        if step < 0:
            raise DataError(f"step is {step}: it must be at least 0")
        number, row = divmod(step, BLOCK)
        while len(self._counts) <= number:
            *_, total = self._make_block(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + total)
        if number not in self._blocks:
            if len(self._blocks) > 2:
                self._blocks.clear()
            self._blocks[number] = self._make_block(number)
        choices, cells, _ = self._blocks[number]
        sizes = self._sizes()[choices[:row]][cells[:row] == cells[row]]
        return int(choices[row]), int(cells[row]), int(self._counts[number][cells[row]] + sizes.sum())

    def _sizes(self) -> np.ndarray:
        return np.array([self.config.batch_size(choice[1]) for choice in self.choices], np.int64)

    def _make_block(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(choice, cell) of each step of a block, and the clips it takes of each cell."""
        steps = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
        uniform = np.random.Generator(np.random.Philox(key=[self.seed, number])).random((2, BLOCK))
        # Evenly spaced, not drawn: every stretch of steps has the same mixture.
        is_image = np.floor((steps + 1) * self.image_share + 1e-9) > np.floor(steps * self.image_share + 1e-9)
        choices = np.zeros(BLOCK, np.int64)
        if len(self._video_shares):
            videos = np.searchsorted(self._video_shares, uniform[0], side="right") + self.num_image_choices
            choices = np.where(is_image, 0, videos)
        cells = np.zeros(BLOCK, np.int64)
        for choice, shares in enumerate(self._cell_shares):
            chosen = choices == choice
            cells[chosen] = np.searchsorted(shares, uniform[1][chosen], side="right")
        totals = np.bincount(cells, weights=self._sizes()[choices], minlength=len(self.cells)).astype(np.int64)
        return choices, cells, totals

    def _rows(self, cell: _Cell, positions: np.ndarray) -> np.ndarray:
        """Rows of the table at positions of a cell's stream."""
        length = len(cell.indices)
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(positions // length):
            here = positions // length == epoch
            order = permuted(positions[here] % length, length, _key(self.seed, cell.number, 2, int(epoch)))
            if cell.cumulative_weight is not None:
                # Systematic sampling: in each epoch a clip of weight w comes floor(w) or ceil(w) times.
                offset = _unit(_mix(np.array([_key(self.seed, cell.number, 3, int(epoch))], np.uint64)))[0]
                order = np.searchsorted(cell.cumulative_weight, (order + offset) / length, side="right")
                order = np.minimum(order, length - 1)
            rows[here] = cell.indices[order]
        return rows


def nearest_buckets(width: np.ndarray, height: np.ndarray, buckets: list[list[int]]) -> np.ndarray:
    """Number of the bucket whose aspect ratio is nearest, in logarithm, to that of each clip."""
    ratios = np.log([w / h for w, h in buckets])
    return np.abs(np.log(width / height)[:, None] - ratios).argmin(axis=1)


def permuted(positions: np.ndarray, length: int, key: np.uint64) -> np.ndarray:
    """A pseudo-random permutation of range(length) at some positions: a Feistel cipher that walks its cycles."""
    half = max(1, math.ceil(math.log2(max(2, length)) / 2))
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for number in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (_mix(right ^ key ^ _mix(np.array([number], np.uint64))) & mask)
        values[outside] = left << shift | right
        outside = values >= length
    return values.astype(np.int64)


def _pairs(config: ClipDataConfig) -> list[tuple[int, float, float]]:
    """(frames, fps, share) of the video batches; a single frame has no rate, so it comes once."""
    frame_shares = np.array(config.frame_weights or [1.0] * len(config.frame_choices), float)
    fps_shares = np.array(config.fps_weights or [1.0] * len(config.fps_choices), float)
    found = []
    for frames, frame_share in zip(config.frame_choices, frame_shares / frame_shares.sum(), strict=True):
        if frames == 1 and frame_share > 0:
            found.append((1, config.image_fps, float(frame_share)))
            continue
        for fps, share in zip(config.fps_choices, fps_shares / fps_shares.sum(), strict=True):
            if frame_share * share > 0:
                found.append((frames, float(fps), float(frame_share * share)))
    return found


def _clip_weights(table: ClipTable, shares: list[float]) -> np.ndarray:
    """Weight of each clip; with `shares`, those of a source's videos, and of its pictures, sum to its share."""
    weights = table.weight.astype(float)
    for kind in (True, False):
        for number, share in enumerate(shares):
            rows = (table.source == number) & (table.is_video == kind)
            if rows.any():
                weights[rows] *= share / weights[rows].sum()
    return weights


def _make_cells(buckets: np.ndarray, allowed: np.ndarray, weights: np.ndarray, sizes: list[list[int]]) -> list[_Cell]:
    groups = np.concatenate([buckets[:, None], allowed], axis=1)
    usable = allowed.any(axis=1)
    _, inverse = np.unique(groups[usable], axis=0, return_inverse=True)
    indices = np.flatnonzero(usable)
    order = np.argsort(inverse.reshape(-1), kind="stable")
    bounds = np.flatnonzero(np.diff(inverse.reshape(-1)[order])) + 1
    cells = []
    for number, part in enumerate(np.split(order, bounds)):
        rows = indices[part]
        own = weights[rows]
        is_even = np.allclose(own, own[0], rtol=1e-9)
        cumulative = None if is_even else np.cumsum(own) / own.sum()
        cells.append(_Cell(number, tuple(sizes[buckets[rows[0]]]), rows, cumulative, float(own.sum())))
    return cells


def _cumulative(shares: np.ndarray) -> np.ndarray:
    """Running sums that end at exactly 1 from the last positive share on."""
    if not shares.sum() > 0:
        return np.zeros(len(shares))
    total = np.cumsum(shares) / shares.sum()
    total[np.flatnonzero(shares)[-1] :] = 1.0
    return total


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64, a good hash of 64 bits."""
    with np.errstate(over="ignore"):
        values = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _key(*numbers: int) -> np.uint64:
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = _mix(key ^ np.uint64(number))
    return key[0]


def _unit(values: np.ndarray) -> np.ndarray:
    """64 bits -> [0, 1)"""
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53

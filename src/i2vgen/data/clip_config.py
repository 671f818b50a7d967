"""The section of a training configuration that says which clips a model sees, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from i2vgen.data.errors import DataError


@dataclass
class ClipDataConfig:
    """Videos and pictures, and the mixture of batches made from them. Defaults are the paper's recipe.

    A batch holds clips of one length, rate and size: videos of `frame_choices` frames at `fps_choices` a second,
    or, `image_share` of the batches, pictures as clips of one frame.
    """

    # Shards (`x.tar`, `dir/*.tar`, `dir/clips-{000..099}.tar`, https://..., any fsspec address), folders of videos
    # and pictures with captions in .txt files beside them, and .jsonl lists (file, caption; optional split, weight,
    # start, end in seconds).
    sources: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # share of draws of each source; [] = every clip alike
    split: str = ""  # only rows of this split; rows without one count as "train"; "" = all
    require_captions: bool = True  # leave out clips without a caption; false gives them an empty one
    allow_outside: bool = False  # a .jsonl may name files outside of its folder

    buckets: list[list[int]] = field(default_factory=lambda: [[448, 256], [352, 352], [256, 448]])  # (W, H)
    frame_choices: list[int] = field(default_factory=lambda: [8, 16, 32])  # frames a clip
    frame_weights: list[float] = field(default_factory=list)  # shares of the video batches; [] = equal
    fps_choices: list[float] = field(default_factory=lambda: [4.0, 8.0, 16.0])  # frames a second
    fps_weights: list[float] = field(default_factory=list)  # [] = equal
    image_share: float = 0.125  # of the batches: video to image 7:1
    image_fps: float = 1.0  # the rate that the model is told of a picture
    # Frames a clip -> clips a batch, over all processes; a length not named takes the entry of the next longer one.
    batch_sizes: dict[str, int] = field(default_factory=lambda: {"1": 32, "8": 4, "16": 4, "32": 2})

    max_bad_share: float = 0.01  # damaged clips, of those tried; more stop the run
    num_workers: int = 4  # threads that read and decode; 0 = none, in the trainer's own
    prefetch_batches: int = 3  # batches made ahead
    cache_dir: str = ""  # indexes of folders and foreign shards; "" = ~/.cache/i2vgen/data

    def check(self) -> None:
        """Raises DataError naming the first field that cannot be."""
        if not self.sources or not all(isinstance(source, str) and source for source in self.sources):
            raise DataError("sources is empty: name shards, folders or .jsonl lists")
        _check_shares("weights", self.weights, len(self.sources), "sources")
        _check_shares("frame_weights", self.frame_weights, len(self.frame_choices), "frame_choices")
        _check_shares("fps_weights", self.fps_weights, len(self.fps_choices), "fps_choices")
        for bucket in self.buckets:
            if len(bucket) != 2 or not all(type(side) is int and 8 <= side <= 8192 for side in bucket):
                raise DataError(f"buckets has {bucket!r}: give [width, height] in pixels, 8 to 8192 each")
        if not self.buckets or len({tuple(bucket) for bucket in self.buckets}) < len(self.buckets):
            raise DataError(f"buckets is {self.buckets!r}: give at least one, each once")
        for name, values in (("frame_choices", self.frame_choices), ("fps_choices", self.fps_choices)):
            if (not values and self.image_share < 1) or len(set(values)) < len(values):
                raise DataError(f"{name} is {values!r}: give at least one, each once")
        if not all(type(frames) is int and 1 <= frames <= 4096 for frames in self.frame_choices):
            raise DataError(f"frame_choices is {self.frame_choices!r}: give whole numbers from 1 to 4096")
        for name, values in (("fps_choices", self.fps_choices), ("image_fps", [self.image_fps])):
            if not all(_is_number(fps) and 0 < fps <= 240 for fps in values):
                raise DataError(f"{name} is {getattr(self, name)!r}: give rates above 0 and up to 240")
        for name in ("image_share", "max_bad_share"):
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1):
                raise DataError(f"{name} is {getattr(self, name)!r}: give a share from 0 to 1")
        for frames, size in self.batch_sizes.items():
            if not str(frames).isdigit() or type(size) is not int or not 1 <= size <= 65536:
                raise DataError(f'batch_sizes has {frames!r}: {size!r}: write frames = clips, such as "16" = 4')
        for name, least in (("num_workers", 0), ("prefetch_batches", 1)):
            if type(getattr(self, name)) is not int or not least <= getattr(self, name) <= 1024:
                raise DataError(f"{name} is {getattr(self, name)!r}: give a whole number from {least} to 1024")
        lengths = ([1] if self.image_share > 0 else []) + (self.frame_choices if self.image_share < 1 else [])
        for frames in lengths:
            self.batch_size(frames)

    def batch_size(self, num_frames: int) -> int:
        """Clips of `num_frames` in a batch over all processes. Raises DataError if no entry is that long."""
        longer = [int(frames) for frames in self.batch_sizes if int(frames) >= num_frames]
        if not longer:
            raise DataError(f"batch_sizes has no entry for {num_frames} frames: add one, such as {num_frames} = 1")
        return next(size for frames, size in self.batch_sizes.items() if int(frames) == min(longer))


def _check_shares(name: str, shares: list[float], count: int, of: str) -> None:
    if not shares:
        return
    if len(shares) != count:
        raise DataError(f"{name} has {len(shares)} entries for {count} {of}: give one for each, or none")
    if not all(_is_number(share) and share >= 0 for share in shares) or not sum(shares) > 0:
        raise DataError(f"{name} is {shares!r}: give numbers of at least 0, not all of them 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Batches of clips for a trainer: any step at once, the same for any number of processes, made ahead by threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from i2vgen.data.bad_files import BadFiles
from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.clip_reader import read_clip
from i2vgen.data.clip_sampler import BatchSpec, ClipSampler, Draw
from i2vgen.data.clip_table import ClipTable, load_table
from i2vgen.data.errors import ClipError, DataError
from i2vgen.data.storage import ByteStore, LocalStore, Window, open_store

MAX_REPLACEMENTS = 16


@dataclass
class ClipBatch:
    """What one process trains on in one step.

    `frames`: torch.uint8 (b f h w 3); `captions`: b texts; `fps`: float32 (b), the rate that the model is told;
    `keys`: name of each clip in its shard or folder; `kind`: "video" | "image".
    """

    step: int
    kind: str
    frames: Tensor
    captions: list[str]
    fps: Tensor
    keys: list[str]

    def to_frames(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """(b 3 f h w) in [-1, 1] on `device`; the bytes are moved, then converted."""
        frames = self.frames.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)
        return frames.to(torch.float32).div_(127.5).sub_(1).to(dtype)


class ClipLoader:
    """`batch(step)` is a pure function of (config, what the sources hold, seed, step, rank, world_size).

    The rows of all ranks, one after the other, are the batch of a single process. `step` counts batches: with
    gradient accumulation over n, step k takes batches k * n to k * n + n - 1. Within a group of clips that go
    together (one bucket, long enough for the same lengths) none comes twice before all have come.

    A damaged clip is noted in `bad_files_path` (JSON Lines) and another, always the same, takes its place.

    Raises DataError for a bad configuration, sources without a usable clip, and a batch size that does not
    divide by `world_size`; TooManyBadFilesError from `batch` and `prefetch` when `max_bad_share` is passed;
    StorageError when a remote source does not answer.
    """

    def __init__(
        self,
        config: ClipDataConfig,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        bad_files_path: str | Path | None = None,
        table: ClipTable | None = None,
    ):
        config.check()
        if not 0 <= rank < world_size:
            raise DataError(f"rank is {rank} of {world_size}: it must be from 0 to {world_size - 1}")
        self.config, self.rank, self.world_size = config, rank, world_size
        self.table = load_table(config) if table is None else table
        self.sampler = ClipSampler(self.table, config, seed)
        for choice in self.sampler.describe():
            if choice["batch_size"] % world_size:
                raise DataError(
                    f"batch_sizes gives {choice['batch_size']} clips of {choice['num_frames']} frames for {world_size} "
                    f"processes: make it a multiple of {world_size}"
                )
        path = None if bad_files_path is None else Path(bad_files_path)
        self.bad_files = BadFiles(path, config.max_bad_share, len(self.table), rank)
        # Every process has read the same index; one of them tells of it.
        known = BadFiles(path if rank == 0 else None, config.max_bad_share, len(self.table), rank)
        known.add_known(self.table.bad, len(self.table) + len(self.table.bad))
        self._pool = ThreadPoolExecutor(config.num_workers, "clips") if config.num_workers else None
        self._stores: dict[str, ByteStore] = {}
        self._lock = threading.Lock()

    @property
    def num_clips(self) -> int:
        return len(self.table)

    @property
    def num_bad(self) -> int:
        return len(self.bad_files)

    def spec(self, step: int) -> BatchSpec:
        """Kind, length, rate, size and number of clips of a batch, without reading any."""
        return self.sampler.spec(step)

    def batch(self, step: int) -> ClipBatch:
        """The rows of this process in the batch of `step`."""
        return self._collect(self._submit(step))

    def prefetch(self, first: int, last: int) -> Iterator[tuple[int, ClipBatch, float]]:
        """(step, batch, seconds that the caller waited for it) for steps first to last - 1, made ahead.

        What is under way is given up when the iterator is closed.
        """
        ahead: deque = deque()
        upcoming = first
        try:
            for step in range(first, last):
                depth = self.config.prefetch_batches if self._pool is not None else 0
                while upcoming < last and upcoming <= step + depth:
                    ahead.append(self._submit(upcoming))
                    upcoming += 1
                begin = time.monotonic()
                batch = self._collect(ahead.popleft())
                yield step, batch, time.monotonic() - begin
        finally:
            for _, jobs in ahead:
                for job in jobs:
                    if isinstance(job, Future):
                        job.cancel()

    def close(self) -> None:
        """End the threads; the loader cannot be used after it."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, step: int) -> tuple[BatchSpec, list[Future | Callable]]:
        spec = self.spec(step)
        share = spec.batch_size // self.world_size
        rows = range(self.rank * share, (self.rank + 1) * share)
        draws = self.sampler.draws(step)
        jobs: list[Future | Callable] = []
        for row in rows:
            if self._pool is None:
                jobs.append(lambda row=row: self._row(spec, row, draws[row]))
            else:
                jobs.append(self._pool.submit(self._row, spec, row, draws[row]))
        return spec, jobs

    def _collect(self, submitted: tuple[BatchSpec, list[Future | Callable]]) -> ClipBatch:
        spec, jobs = submitted
        try:
            rows = [job.result() if isinstance(job, Future) else job() for job in jobs]
        except BaseException:
            for job in jobs:
                if isinstance(job, Future):
                    job.cancel()
            raise
        frames = torch.from_numpy(np.stack([frames for frames, _, _ in rows]))
        fps = torch.full((len(rows),), float(spec.fps))
        return ClipBatch(spec.step, spec.kind, frames, [row[1] for row in rows], fps, [row[2] for row in rows])

    def _row(self, spec: BatchSpec, row: int, draw: Draw) -> tuple[np.ndarray, str, str]:
        """(frames, caption, key) of one row of the whole batch."""
        for attempt in range(MAX_REPLACEMENTS):
            if attempt:
                draw = self.sampler.draws(spec.step, attempt)[row]
            self.bad_files.tried(draw.index)
            try:
                return self._frames(spec, draw), self._caption(draw), self.table.names[draw.index]
            except ClipError as error:
                self.bad_files.add(self.table.label(draw.index), str(error))
        raise DataError(
            f"step {spec.step}: {MAX_REPLACEMENTS} clips in a row are damaged, the last is "
            f"{self.table.label(draw.index)}: see the warnings before"
        )

    def _frames(self, spec: BatchSpec, draw: Draw) -> np.ndarray:
        table, index = self.table, draw.index
        container = table.containers[table.container[index]]
        name = table.names[index]
        if container.kind == "shard":
            file = Window(self._store(container.location), int(table.offset[index]), int(table.size[index]))
        else:
            file = Window(LocalStore(container.file_of(name)))
        return read_clip(
            file,
            name,
            float(table.start[index]) + draw.start,
            spec.num_frames,
            spec.fps,
            (spec.width, spec.height),
            # Several clips are decoded at once; one thread each is the least work.
            num_threads=1 if self._pool is not None else 0,
        )

    def _caption(self, draw: Draw) -> str:
        captions = self.table.captions[draw.index]
        return captions if isinstance(captions, str) else captions[int(draw.caption * len(captions))]

    def _store(self, location: str) -> ByteStore:
        with self._lock:
            store = self._stores.get(location)
        if store is None:
            store = open_store(location)
            with self._lock:
                self._stores[location] = store
        return store

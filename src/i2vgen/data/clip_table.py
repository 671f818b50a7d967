"""All clips of a training run as columns: some hundred bytes a clip, however many shards they lie in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.errors import DataError
from i2vgen.data.sources import Container, expand_source, load_index

_log = logging.getLogger(__name__)
MAX_NAMED = 3
ITEM_COLUMNS = ("offset", "size", "width", "height", "fps", "start", "duration", "weight")


@dataclass
class ClipTable:
    """Clip i is row i of every column; `container` and `source` number `containers` and the config's sources.

    `offset`, `size`: bytes in the container's file; `duration`, `start`: seconds; `weight`: as its row says.
    `captions`: a text, or a tuple of texts of which one is drawn. `left_out`: reason -> names, of sound clips that
    are not used. `bad`: name -> problem, of what is damaged or was refused.
    """

    containers: list[Container]
    names: list[str]
    captions: list[str | tuple[str, ...]]
    container: np.ndarray
    source: np.ndarray
    is_video: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    width: np.ndarray
    height: np.ndarray
    fps: np.ndarray
    start: np.ndarray
    duration: np.ndarray
    weight: np.ndarray
    left_out: dict[str, list[str]]
    bad: dict[str, str]

    def __len__(self) -> int:
        return len(self.names)

    def label(self, index: int) -> str:
        """Name of a clip for messages."""
        container = self.containers[self.container[index]]
        return f"{container.location.split('?', 1)[0]}:{self.names[index]}"


def load_table(config: ClipDataConfig, progress: Callable[[int, int], None] | None = None) -> ClipTable:
    """Index every source of `config`. Raises DataError if one cannot be read or no clip is left."""
    config.check()
    containers: list[Container] = []
    names, captions, rows = [], [], []
    left_out: dict[str, list[str]] = {}
    bad: dict[str, str] = {}
    for source_number, source in enumerate(config.sources):
        for container in expand_source(source):
            index = load_index(container, config.cache_dir, config.num_workers, config.allow_outside, progress)
            where = container.location.split("?", 1)[0]
            bad |= {f"{where}:{row['name']}": row["reason"] for row in index.left_out}
            for item in index.items:
                if config.split and (item.split or "train") != config.split:
                    continue
                problem = "it has no caption" if config.require_captions and not item.captions else ""
                problem = problem or ("its weight is 0" if item.weight == 0 else "")
                if problem:
                    left_out.setdefault(problem, []).append(f"{where}:{item.name}")
                    continue
                names.append(item.name)
                captions.append(tuple(item.captions) if len(item.captions) > 1 else "".join(item.captions))
                values = [getattr(item, column) for column in ITEM_COLUMNS]
                rows.append((len(containers), source_number, item.kind == "video", *values))
            containers.append(container)
    if not rows:
        reasons = [f"{len(found)} x {reason}" for reason, found in left_out.items()]
        why = "; ".join((reasons + [f"{name}: {problem}" for name, problem in bad.items()])[:MAX_NAMED])
        why = why or ("no row has this split" if config.split else "they hold no videos and no pictures")
        raise DataError(f"sources: none of {config.sources!r:.300} has a clip that can be used ({why})")
    for reason, found in left_out.items():
        shown = ", ".join(found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
        _log.warning("%d clips left out, %s: %s", len(found), reason, shown)
    columns = list(zip(*rows, strict=True))
    types = (np.int32, np.int16, np.bool_, np.int64, np.int64, np.int32, np.int32) + (np.float64,) * 4
    return ClipTable(
        containers,
        names,
        captions,
        *(np.array(column, dtype=kind) for column, kind in zip(columns, types, strict=True)),
        left_out=left_out,
        bad=bad,
    )

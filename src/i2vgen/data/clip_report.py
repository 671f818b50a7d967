"""What a trainer would find in some sources: figures, the mixtures that they allow, a sheet to look at."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.clip_reader import read_clip
from i2vgen.data.clip_sampler import ClipSampler
from i2vgen.data.clip_statistics import clip_statistics
from i2vgen.data.clip_table import ClipTable, load_table
from i2vgen.data.errors import ClipError, DataError
from i2vgen.data.shard_index import write_whole
from i2vgen.data.storage import Window, open_store
from i2vgen.media import contact_sheet

NUM_SHOWN, FRAMES_SHOWN, THUMBNAIL = 40, 4, 150


def source_report(
    config: ClipDataConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[ClipTable, dict[str, Any]]:
    """The clips of `config` and: statistics, "draws" (what each part of the mixture can use), "problems".

    Raises DataError if nothing can be used at all.
    """
    table = load_table(config, progress)
    rows = [
        {
            "kind": "video" if table.is_video[i] else "image",
            "width": int(table.width[i]),
            "height": int(table.height[i]),
            "fps": float(table.fps[i]),
            "duration": float(table.duration[i]),
            "size": int(table.size[i]),
            "captions": [c for c in np.atleast_1d(table.captions[i]).tolist() if c],
        }
        for i in range(len(table))
    ]
    report = clip_statistics(rows)
    report.pop("values")
    reasons = {reason: len(names) for reason, names in table.left_out.items()}
    reasons |= {"damaged or refused": len(table.bad)} if table.bad else {}
    report |= {"left_out": sum(reasons.values()), "left_out_by_reason": reasons, "bad": table.bad, "problems": []}
    try:
        report["draws"] = ClipSampler(table, config, 0).describe()
    except DataError as error:
        report |= {"draws": [], "problems": [f"not for the default recipe: {error}"]}
    return table, report


def source_sheet(table: ClipTable, path: Path) -> None:
    """Write a PNG with frames of at most 40 clips, evenly picked. Raises DataError if none can be read."""
    numbers = np.unique(np.linspace(0, len(table) - 1, min(NUM_SHOWN, len(table))).round().astype(int))
    pictures, labels = [], []
    for index in numbers:
        container, name = table.containers[table.container[index]], table.names[index]
        count = FRAMES_SHOWN if table.is_video[index] and table.duration[index] > 0 else 1
        rate = (count - 1) / float(table.duration[index]) if count > 1 else 1.0
        try:
            store = open_store(container.file_of(name))
            is_shard = container.kind == "shard"
            file = Window(store, int(table.offset[index]), int(table.size[index])) if is_shard else Window(store)
            pictures.append(read_clip(file, name, float(table.start[index]), count, rate, None))
        except ClipError:
            continue
        caption = table.captions[index]
        labels.append(f"{name}: {caption if isinstance(caption, str) else caption[0]}")
    if not pictures:
        raise DataError("none of the clips looked at could be decoded: see i2vgen data show --json")
    file = io.BytesIO()
    contact_sheet(pictures, labels, 2 if len(pictures) > 6 else 1, FRAMES_SHOWN, THUMBNAIL).save(file, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.getvalue())
    except OSError as error:
        raise DataError(f"--sheet: {str(path)!r} cannot be written ({error}): choose another place") from error

"""What came of a preparation, to read and to look at: statistics, histograms, sheets of kept and left out shots."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2vgen.data.clip_reader import read_clip
from i2vgen.data.clip_statistics import clip_statistics, histograms
from i2vgen.data.errors import DataError, StorageError
from i2vgen.data.prepare_config import PrepareConfig
from i2vgen.data.prepare_part import Task, record_path
from i2vgen.data.shard_index import write_whole
from i2vgen.data.shard_writer import finished_shards
from i2vgen.data.storage import LocalStore, Window
from i2vgen.media import contact_sheet

NUM_SHOWN = 40  # clips on a sheet
FRAMES_SHOWN = 4
THUMBNAIL = 150


def write_report(
    out_dir: Path, tasks: list[Task], unreadable: list[dict[str, Any]], config: PrepareConfig
) -> dict[str, Any]:
    """Write `statistics.json`, `left_out.jsonl` and the three pictures; return the statistics."""
    shards = finished_shards(out_dir)
    kept = [(path, item) for path, index in shards for item in index.items]
    left_out = list(unreadable)
    by_label: dict[str, Task] = {}
    for task in tasks:
        record = json.loads(record_path(out_dir, task.part).read_text(encoding="utf-8"))
        left_out += record["left_out"]
        by_label[task.label] = task
    measures = [
        {k: v for k, v in item.details.items() if isinstance(v, float) and k not in ("start", "end", "seconds")}
        for _, item in kept
    ]
    statistics = clip_statistics([asdict(item) for _, item in kept], measures)
    values = statistics.pop("values")
    reasons = Counter(_short(row["reason"]) for row in left_out)
    statistics = {
        "sources": len(tasks) + len(unreadable),
        "shards": len(shards),
        **statistics,
        "left_out": len(left_out),
        "left_out_seconds": round(sum(row["end"] - row["start"] for row in left_out if "end" in row), 2),
        "left_out_by_reason": dict(reasons.most_common()),
    }
    write_whole(out_dir / "statistics.json", json.dumps(statistics, indent=1, ensure_ascii=False) + "\n")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in left_out)
    write_whole(out_dir / "left_out.jsonl", lines)

    # Those left out for a measure belong in its picture: the line shows what a limit costs.
    for name in ("motion", "sharpness", "contrast", "aesthetic"):
        values[name] = values.get(name, []) + [r["measures"][name] for r in left_out if name in r.get("measures", {})]
    limits = {name: (getattr(config, f"min_{name}"), None) for name in ("sharpness", "contrast", "aesthetic")}
    limits["motion"] = (config.min_motion, config.max_motion)
    _save(out_dir / "histograms.png", histograms({k: v for k, v in values.items() if v}, limits))

    strips = [
        (Window(LocalStore(path), item.offset, item.size), item.name, 0.0, item.duration, _label(item.details))
        for path, item in _some(kept)
    ]
    _sheet(out_dir / "kept.png", strips)
    shown = [row for row in left_out if row["name"] in by_label]
    strips = []
    for row in _some(shown):
        task = by_label[row["name"]]
        begin = row.get("start", 0.0)
        try:
            strips.append((task.open(), task.item.name, begin, row.get("end", begin) - begin, row["reason"]))
        except (DataError, StorageError):
            continue
    _sheet(out_dir / "left_out.png", strips)
    return statistics


def _short(reason: str) -> str:
    """`motion 0.001 < 0.004` -> `motion too low`, and damage without its details."""
    words = reason.split()
    if len(words) == 4 and words[2] in "<>":
        return f"{words[0]} {'too low' if words[2] == '<' else 'too high'}"
    return reason.split(":")[0]


def _label(details: dict[str, Any]) -> str:
    name = str(details["source"]).rpartition(":")[2].rpartition("/")[2]
    span = f" {details['start']:.1f}-{details['end']:.1f} s" if "start" in details else ""
    numbers = [f"{k} {details[k]:.3g}" for k in ("motion", "sharpness", "aesthetic") if k in details]
    return f"{name}{span}: {', '.join(numbers)}"


def _some(rows: list) -> list:
    """At most `NUM_SHOWN` of them, evenly."""
    if len(rows) <= NUM_SHOWN:
        return rows
    return [rows[index] for index in np.linspace(0, len(rows) - 1, NUM_SHOWN).round().astype(int)]


def _sheet(path: Path, strips: list[tuple]) -> None:
    pictures, labels = [], []
    for file, name, begin, seconds, label in strips:
        count = FRAMES_SHOWN if seconds > 0 else 1
        try:
            rate = (count - 1) / seconds if count > 1 else 1.0
            pictures.append(read_clip(file, name, begin, count, rate, None))
        except (DataError, StorageError):
            # Damaged ones have nothing to show; they are in left_out.jsonl.
            continue
        labels.append(label)
    if pictures:
        columns = 2 if len(pictures) > 6 else 1
        _save(path, contact_sheet(pictures, labels, columns, FRAMES_SHOWN, THUMBNAIL))
    else:
        path.unlink(missing_ok=True)


def _save(path: Path, image: Image.Image) -> None:
    file = io.BytesIO()
    image.save(file, "PNG")
    write_whole(path, file.getvalue())

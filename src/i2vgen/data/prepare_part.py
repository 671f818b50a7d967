"""One raw file -> its clips: shots found, measured, judged, encoded; finished in one step or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2vgen.data.clip_reader import ClipInfo, probe, read_clip
from i2vgen.data.errors import ClipError, DataError
from i2vgen.data.prepare_config import PrepareConfig
from i2vgen.data.shard_index import Item, clean_caption, write_whole
from i2vgen.data.shot_encoder import encode_shot, shrunk
from i2vgen.data.shots import analyse, sharpness_and_contrast
from i2vgen.data.sources import Container
from i2vgen.data.storage import Window, open_store
from i2vgen.media import load_image

NUM_SCORED_FRAMES = 8
JPEG_QUALITY = 92
WORKING, RECORDS = ".working", "records"


@dataclass(frozen=True)
class Task:
    """A raw file, or the part of one that a list names. `part` names it among all tasks."""

    container: Container
    item: Item

    @property
    def label(self) -> str:
        return f"{self.container.location.split('?', 1)[0]}:{self.item.name}"

    @property
    def part(self) -> str:
        text = f"{self.label}:{self.item.offset}:{self.item.size}:{self.item.start}:{self.item.duration}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def open(self) -> Window:
        store = open_store(self.container.file_of(self.item.name))
        return Window(store, self.item.offset, self.item.size)


def record_path(out_dir: Path, part: str) -> Path:
    return out_dir / RECORDS / f"{part}.json"


def make_part(task: Task, out_dir: Path, config: PrepareConfig) -> dict[str, Any]:
    """Write the clips of one raw file to `.working/PART/` and then its record, which says that they are complete.

    The record: {"source", "part", "items": rows of the index, "left_out": [{"name", "start", "end", "reason",
    "measures"}], "is_damaged"}. Raises DataError if the disk is full or the aesthetic function fails.
    """
    folder = out_dir / WORKING / task.part
    temporary = folder.with_name(f"{task.part}.tmp")
    try:
        for stale in (folder, temporary):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir(parents=True)
        record: dict[str, Any] = {"source": task.label, "part": task.part, "items": [], "left_out": []}
        try:
            make = _make_shots if task.item.kind == "video" else _make_picture
            make(task, temporary, config, record)
            record["is_damaged"] = False
        except ClipError as error:
            # What was cut out of a damaged file before the damage is not trusted.
            record |= {"items": [], "is_damaged": True}
            record["left_out"] = [{"name": task.label, "reason": f"damaged: {error}"}]
        if record["items"]:
            temporary.rename(folder)
        write_whole(record_path(out_dir, task.part), json.dumps(record, ensure_ascii=False))
    except OSError as error:
        raise DataError(f"{str(out_dir)!r} cannot be written ({error}): free some space, then run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def _make_shots(task: Task, folder: Path, config: PrepareConfig, record: dict[str, Any]) -> None:
    item = task.item
    analysis = analyse(task.open(), item.name, min(config.short_side, item.width, item.height))
    times = analysis.times
    for first, last in _pieces(analysis.shots(item.start, item.start + item.duration), times, config.max_seconds):
        begin, end = float(times[first]), float(times[last - 1])
        measures = {"seconds": end - begin, "side": float(min(item.width, item.height))}
        measures |= analysis.measures(first, last)
        if not config.problem(measures, "video") and config.aesthetic:
            measures["aesthetic"] = _score(_frames_of(task, begin, end), config)
        span = {"name": task.label, "start": round(begin, 4), "end": round(end, 4)}
        if not _judge(task, span, measures, config, record):
            continue
        fps = (last - first - 1) / (end - begin)
        # 30.3 counts as 30.
        keep_every = max(1, math.ceil(fps / config.max_fps - 0.02))
        data = io.BytesIO()
        arguments = (begin, end, config.short_side, keep_every, config.gop, config.crf)
        encode_shot(task.open(), item.name, data, *arguments)
        _keep(task, folder, data.getvalue(), "mp4", span, measures, config, record)


def _make_picture(task: Task, folder: Path, config: PrepareConfig, record: dict[str, Any]) -> None:
    data = task.open().read()
    image = load_image(data)
    pixels = shrunk(image, config.short_side)
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    sharpness, contrast = sharpness_and_contrast(gray) if min(gray.shape) >= 3 else (0.0, 0.0)
    measures = {"side": float(min(image.size)), "sharpness": sharpness, "contrast": contrast}
    if not config.problem(measures, "image") and config.aesthetic:
        measures["aesthetic"] = _score(pixels[None], config)
    span = {"name": task.label}
    if not _judge(task, span, measures, config, record):
        return
    suffix = task.item.name.rpartition(".")[2].lower()
    with Image.open(io.BytesIO(data)) as stored:
        is_plain = stored.size == (pixels.shape[1], pixels.shape[0]) and stored.getexif().get(274, 1) == 1
    if suffix not in ("jpg", "jpeg", "png", "webp") or not is_plain:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        data, suffix = file.getvalue(), "jpg"
    _keep(task, folder, data, suffix, span, measures, config, record)


def _pieces(shots: list[tuple[int, int]], times: np.ndarray, max_seconds: float) -> list[tuple[int, int]]:
    """Shots, those longer than `max_seconds` divided into equal pieces."""
    found = []
    for first, last in shots:
        seconds = float(times[last - 1] - times[first])
        count = max(1, math.ceil(seconds / max_seconds - 1e-6))
        edges = np.searchsorted(times[first:last], times[first] + seconds * np.arange(1, count) / count) + first
        bounds = [first, *edges.tolist(), last]
        found += [(a, b) for a, b in pairwise(bounds) if b > a]
    return found


def _frames_of(task: Task, begin: float, end: float) -> np.ndarray:
    count = max(1, min(NUM_SCORED_FRAMES, int((end - begin) * 4)))
    rate = count / max(end - begin, 1e-3)
    return read_clip(task.open(), task.item.name, begin, count, rate, None)


def _score(frames: np.ndarray, config: PrepareConfig) -> float:
    try:
        score = float(config.scorer()(frames))
    except Exception as error:
        raise DataError(f"aesthetic: {config.aesthetic} failed on frames {frames.shape} ({error!r})") from error
    if not math.isfinite(score):
        raise DataError(f"aesthetic: {config.aesthetic} gave {score} for frames {frames.shape}")
    return score


def _captions(task: Task, config: PrepareConfig) -> list[str]:
    if task.item.captions or not config.caption_from_name:
        return task.item.captions
    stem = task.item.name.rpartition("/")[2].rpartition(".")[0]
    words = clean_caption(re.sub(r"[_\-.\d]+", " ", stem))
    return [words] if words else []


def _judge(task: Task, span: dict, measures: dict[str, float], config: PrepareConfig, record: dict) -> bool:
    reason = config.problem(measures, task.item.kind)
    if not reason and config.require_captions and not _captions(task, config):
        reason = "it has no caption"
    if reason:
        record["left_out"].append(span | {"reason": reason, "measures": _rounded(measures)})
    return not reason


def _keep(task: Task, folder: Path, data: bytes, suffix: str, span: dict, measures, config, record) -> None:
    stem = task.item.name.rpartition("/")[2].rpartition(".")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower().encode("ascii", "ignore").decode()).strip("-")[:40]
    key = f"{slug or 'clip'}-{task.part[:8]}-{len(record['items']):03d}"
    name = f"{key}.{suffix}"
    (folder / name).write_bytes(data)
    info: ClipInfo = probe(io.BytesIO(data), name)
    item = Item(key=key, name=name, offset=0, size=len(data), captions=_captions(task, config), **asdict(info))
    details = {"part": task.part, "source": span["name"], **{k: span[k] for k in ("start", "end") if k in span}}
    details |= _rounded(measures)
    record["items"].append(asdict(replace(item, weight=task.item.weight, split=task.item.split, details=details)))


def _rounded(measures: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in measures.items()}

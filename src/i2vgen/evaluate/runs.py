"""A run over many clips that can be stopped at any clip and goes on there: results file, strips to look at."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from i2vgen.media import contact_sheet

MEASURES_VERSION = 2  # raised when a measure changes, so that old and new figures are never mixed in one file
SHEET_STRIPS = 40
STRIP_SIZE = 160
STRIP_FRAMES = 5


class Item(Protocol):
    """One clip to make: `key` names it in the results file, `prompt` is what the model is told."""

    @property
    def key(self) -> str: ...

    @property
    def prompt(self) -> str: ...


# item -> (measurements ready for JSON, videos uint8 (f h w 3) to show, by label)
Work = Callable[[Any], tuple[dict, dict[str, np.ndarray]]]


def run_items(measure: str, items: Sequence[Item], work: Work, folder: str | Path, settings: dict) -> dict:
    """Do the items that `folder`/`measure`.json does not hold yet; returns the results of all items.

    `settings`: what the clips depend on besides the item, as JSON; stored with the results. A clip that fails is
    recorded under its key as `{"error": ...}`, the run goes on, and the next run tries it again. Results:
    `{"settings": ..., "clips": {key: measurements}}`, rewritten whole after every clip; a strip of each clip's
    frames goes to `folder`/strips/`measure`. Raises ValueError when the file was made with other settings.
    """
    folder = Path(folder)
    path, settings = folder / f"{measure}.json", settings | {"measures_version": MEASURES_VERSION}
    clips = _read_clips(path, settings)
    waiting = [item for item in items if not _is_finished(clips, item)]
    done = len(items) - len(waiting)
    for item in tqdm(waiting, desc=measure, unit="clip", initial=done, total=len(items), disable=None):
        try:
            record, videos = work(item)
            json.dumps(record, allow_nan=False)
            clips[item.key] = {"prompt": item.prompt} | record
            if videos:
                write_strip(strip_path(folder, measure, item.key), item, videos)
        except Exception as error:
            clips[item.key] = {"prompt": item.prompt, "error": f"{type(error).__name__}: {error}"}
        write_text(path, json.dumps({"settings": settings, "clips": clips}, indent=1))
    return {"settings": settings, "clips": {item.key: clips[item.key] for item in items}}


def num_waiting(measure: str, items: Sequence[Item], folder: str | Path, settings: dict) -> int:
    """How many of the items `run_items` would still have to do; raises as it does."""
    clips = _read_clips(Path(folder) / f"{measure}.json", settings | {"measures_version": MEASURES_VERSION})
    return sum(not _is_finished(clips, item) for item in items)


def _read_clips(path: Path, settings: dict) -> dict[str, dict]:
    """Finished and failed clips of a results file, {} where there is none.

    Raises ValueError for a file made with other settings, or that is no results file.
    """
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        made_with, clips = results["settings"], dict(results["clips"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results file of an evaluation ({error}): choose another folder") from error
    if made_with != settings:
        different = sorted(k for k in made_with.keys() | settings.keys() if made_with.get(k) != settings.get(k))
        pairs = ", ".join(f"{k}: {made_with.get(k)!r} there, {settings.get(k)!r} now" for k in different)
        raise ValueError(f"{path} was made with other settings ({pairs}): choose another folder")
    return clips


def _is_finished(clips: dict[str, dict], item: Item) -> bool:
    clip = clips.get(item.key)
    return clip is not None and "error" not in clip and clip["prompt"] == item.prompt


def finished(results: dict) -> list[dict]:
    """The clips of `run_items` that did not fail."""
    return [clip for clip in results["clips"].values() if "error" not in clip]


def num_errors(results: dict) -> int:
    return len(results["clips"]) - len(finished(results))


def strip_path(folder: Path, measure: str, key: str) -> Path:
    return folder / "strips" / measure / (re.sub(r"[^\w.-]+", "_", key) + ".jpg")


def write_strip(path: Path, item: Item, videos: dict[str, np.ndarray]) -> None:
    """The videos of one clip, one below the other, under a line with its name and prompt."""
    name = f"{item.key}: {item.prompt}"
    labels = [f"{name} [{label}]" if label else name for label in videos]
    sheet = contact_sheet(list(videos.values()), labels, frames_per_video=STRIP_FRAMES, thumbnail_size=STRIP_SIZE)
    write_image(path, sheet)


def write_sheet(folder: str | Path, measure: str, keys: Sequence[str], name: str = "sheet") -> Path | None:
    """The strips of the first `SHEET_STRIPS` keys on one picture, two columns; None where there is no strip."""
    paths = [strip_path(Path(folder), measure, key) for key in keys]
    strips = [Image.open(path).convert("RGB") for path in paths if path.exists()][:SHEET_STRIPS]
    if not strips:
        return None
    rows = [strips[start : start + 2] for start in range(0, len(strips), 2)]
    width = max(sum(strip.width for strip in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(max(strip.height for strip in row) for row in rows)), (250, 250, 248))
    top = 0
    for row in rows:
        left = 0
        for strip in row:
            sheet.paste(strip, (left, top))
            left += strip.width
        top += max(strip.height for strip in row)
    path = Path(folder) / f"{measure}-{name}.png"
    write_image(path, sheet)
    return path


def write_image(path: Path, image: Image.Image) -> None:
    """Write a picture whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name[-80:]}")
    try:
        image.save(temporary, quality=88)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

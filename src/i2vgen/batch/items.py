"""From rows to items: one video each, with its seed, its file name and the hash of what makes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2vgen.batch.fields import MAX_SEED, OPTION_NAMES, USUAL, convert
from i2vgen.batch.lists import Row, raise_all
from i2vgen.batch.names import FORMATS, automatic_stem, file_name, given_stem, same_file_key

# Rows are this far apart in seeds: as many repeats as a row may have.
SEED_STRIDE = 1000
# So much of a weight file is read to know it by: this many places, this many bytes at each.
SAMPLED_PLACES, SAMPLED_BYTES = 16, 4096


@dataclass(frozen=True)
class Item:
    """One video of a batch. `repeat` counts from 0; `output` is a name in the batch's folder."""

    place: str
    image: str
    prompt: str
    seed: int
    repeat: int
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of OPTION_NAMES, only those given


def plan_items(
    rows: Sequence[Row],
    seed: int = 0,
    repeats: int = 1,
    format: str = "mp4",
    defaults: Mapping[str, Any] | None = None,
) -> list[Item]:
    """Every video that the rows ask for, in order.

    Seeds: the first video of a row has the row's `seed`, or else `seed` + 1000 x (row number - 1), so that
    row 1 gets what `i2vgen generate` would give; each repeat adds 1. Other rows and the number of repeats
    change nothing in it.

    `repeats` and `defaults` (of `fields.OPTION_NAMES`) hold for rows that say nothing else. Raises ListError
    for names that are not possible or given twice, and seeds too large; ValueError for a bad argument.
    """
    seed, repeats = convert("seed", seed), convert("repeats", repeats)
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: use one of {', '.join(FORMATS)}")
    for name in defaults or {}:
        if name not in OPTION_NAMES:
            raise ValueError(f"defaults: unknown option {name!r}; use some of {', '.join(OPTION_NAMES)}")
    common = {name: convert(name, value) for name, value in (defaults or {}).items() if value is not None}
    items, wrong, places = [], [], {}
    for row in rows:
        first = row.seed if row.seed is not None else seed + SEED_STRIDE * (row.number - 1)
        count = row.repeats or repeats
        if first + count - 1 > MAX_SEED:
            wrong.append(f"{row.place}: seed {first} with {count} repeats goes beyond 2^63 - 1")
            continue
        try:
            automatic = automatic_stem(row.number, row.image, row.prompt), format
            stem, suffix = automatic if row.output is None else given_stem(row.output, format)
        except ValueError as error:
            wrong.append(f"{row.place}: {error}")
            continue
        for repeat in range(count):
            name = file_name(stem, suffix, repeat)
            other = places.setdefault(same_file_key(name), row.place)
            if other != row.place:
                wrong.append(f"{row.place}: output {name!r} is also that of {other}")
                break
            options = common | dict(row.options)
            items.append(Item(row.place, row.image, row.prompt, first + repeat, repeat, name, options))
    raise_all(wrong)
    return items


# What makes a video


def item_settings(item: Item, image: str | None, model: str) -> dict[str, Any]:
    """All that makes the item's video, for its hash; `image` and `model` from the two functions below."""
    made_of = {"image": image, "prompt": item.prompt, "seed": item.seed, "model": model}
    options = {name: value for name, value in item.options.items() if name not in USUAL or value != USUAL[name]}
    return json.loads(json.dumps(made_of | options))


def settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def image_identity(image: str) -> str | None:
    """Hash of a file's content, or of an address; None for a file that cannot be read now."""
    if image[:8].lower().startswith(("http://", "https://", "data:")):
        return hashlib.sha256(image.encode()).hexdigest()[:32]
    from i2vgen.media import MediaError
    from i2vgen.media.sources import local_file

    try:
        with local_file(image).open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()[:32]
    except (MediaError, OSError):
        return None


def model_identity(
    model: str, dtype: str = "auto", refiner: str | None = None, loras: Sequence[tuple[str, float]] = ()
) -> str:
    """Changes with the model: configurations are read whole, weights by their size and samples, adapters whole.

    `model` and `refiner` as `load_cascade` takes them; `loras`: (path, weight). Raises ModelError or CheckpointError
    for one that cannot be found.
    """
    digest = hashlib.sha256(dtype.encode())
    for name in (model, refiner):
        if name is not None:
            _add_model(digest, name)
    for path, weight in loras:
        from i2vgen.checkpoints.adapters import open_adapter

        digest.update(f"lora\0{weight}\0{open_adapter(path).sha256}\0".encode())
    return digest.hexdigest()[:32]


def _add_model(digest: Any, name: str) -> None:
    from i2vgen.pipelines.cascade import CascadePipeline
    from i2vgen.pipelines.loading import resolve_folder

    path = Path(name).expanduser()
    root = path if path.exists() and name != "nano" else resolve_folder(name, CascadePipeline, {})
    files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if f.is_file())
    for file in files:
        relative = file.relative_to(root).as_posix()
        if any(part.startswith(".") for part in Path(relative).parts):
            continue
        size = file.stat().st_size
        digest.update(f"{relative}\0{size}\0".encode())
        with file.open("rb") as stream:
            is_weights = size > SAMPLED_PLACES * SAMPLED_BYTES * 16
            step = size // SAMPLED_PLACES if is_weights else SAMPLED_BYTES
            for start in range(0, size, step):
                stream.seek(start)
                digest.update(stream.read(SAMPLED_BYTES))

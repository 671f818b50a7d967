"""How items stand in a folder, before a run changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i2vgen.batch.items import Item, image_identity, item_settings, settings_hash
from i2vgen.batch.lists import MAX_SHOWN
from i2vgen.batch.results import DONE, FAILED, output_size, read_entries

PENDING, CHANGED, FOREIGN = "pending", "changed", "foreign"


@dataclass(frozen=True)
class ItemState:
    """How an item stands in a folder: done, failed, pending, changed (it was made with other settings, see
    `difference`), or foreign (the file is there and the results do not know it)."""

    item: Item
    status: str
    hash: str
    settings: dict[str, Any]
    difference: str = ""


def item_states(items: Sequence[Item], folder: Path, model: str) -> list[ItemState]:
    """How the items stand; reads only. `model`: its identity, from `model_identity`.

    Done is what the results say was made with the same settings, and whose output has still its size.
    """
    entries, identities = read_entries(folder), {}
    states = []
    for item in items:
        if item.image not in identities:
            identities[item.image] = image_identity(item.image)
        entry, path = entries.get(item.output), folder / item.output
        image = identities[item.image]
        before = (entry or {}).get("settings") or {}
        if image is None and entry is not None and entry.get("image") == shown_image(item):
            image = before.get("image")  # gone since: what was made of it stays
        settings = item_settings(item, image, model)
        digest, difference = settings_hash(settings), ""
        size = output_size(path)
        is_same = entry is not None and entry.get("settings_hash") == digest
        if entry is None:
            status = FOREIGN if size or path.is_file() else PENDING
        elif entry["status"] == DONE and size and size == entry.get("bytes"):
            status = DONE if is_same else CHANGED
            difference = "" if is_same else _difference(before, settings)
        else:
            status = FAILED if entry["status"] == FAILED and is_same else PENDING
        states.append(ItemState(item, status, digest, settings, difference))
    return states


def refuse_replacing(states: Sequence[ItemState]) -> None:
    """Raise ValueError if making the items would replace something that was made otherwise."""
    lines = [f"{s.item.output} (of {s.item.place}): {s.difference}" for s in states if s.status == CHANGED]
    lines += [f"{s.item.output} is there, and results.jsonl does not know it" for s in states if s.status == FOREIGN]
    if lines:
        more = [f"and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
        raise ValueError(
            "\n".join([*lines[:MAX_SHOWN], *more])
            + f"\n{len(lines)} of {len(states)} outputs are there and not of this list as it is now: "
            "choose another folder, or replace what differs with --force"
        )


def shown_image(item: Item) -> str:
    """The image as results name it."""
    return "data URL" if item.image[:5].lower() == "data:" else item.image


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What changed, in words: "made with steps 2, now 4"."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    words = []
    for name in changed:
        if name in ("image", "model"):
            words.append(f"another {name}")
        else:
            then, current = (repr(made[name]) if name in made else "not given" for made in (before, now))
            words.append(f"{name} {then} then, {current} now")
    return "it was made with other settings: " + ("; ".join(words) or "unknown")

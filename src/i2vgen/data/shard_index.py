"""What a tar shard holds and where: scanned once, kept as `NAME.index.json` beside it or in a cache.

Nothing of a shard is ever unpacked to disk, yet members with absolute names, "..", links, devices and members of
absurd size are refused by name, and an index is checked against the shard before anything is read by it.
"""

from __future__ import annotations

import json
import math
import os
import re
import tarfile
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from i2vgen.data.clip_reader import PICTURE_SUFFIXES, VIDEO_SUFFIXES, probe
from i2vgen.data.errors import ClipError, DataError
from i2vgen.data.storage import ByteStore, Window

INDEX_SUFFIX = ".index.json"
FORMAT, VERSION = "i2vgen-clip-index", 1
MAX_MEMBER_BYTES = 1 << 31
MAX_CAPTION_BYTES = 1 << 16
# A header of a tar is 512 bytes and an extended one a few; one that wants more is an attack or damage.
MAX_HEADER_BYTES = 1 << 20
CAPTION_FIELDS = ("caption", "captions", "text", "prompt")


@dataclass
class Item:
    """One clip: `name` is its file in the shard or folder, `offset` and `size` bytes in the shard or file.

    `start`: second of the file where the clip begins; `duration`: seconds from its first frame to its last;
    `fps`: mean rate; `width`, `height` upright. `details`: whatever else was noted about it.
    """

    key: str
    name: str
    kind: str  # "video" | "image"
    offset: int
    size: int
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    captions: list[str] = field(default_factory=list)
    start: float = 0.0
    weight: float = 1.0
    split: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Index:
    """Items of one shard or folder, and what was left out: {"name", "reason"}."""

    size: int  # bytes of the shard, 0 for a folder
    items: list[Item]
    left_out: list[dict[str, str]] = field(default_factory=list)


def index_location(shard: str) -> str:
    """`a/x-000.tar` -> `a/x-000.index.json`; the query of an address stays behind."""
    path, question, query = shard.partition("?")
    return path.removesuffix(".tar") + INDEX_SUFFIX + question + query


def scan_shard(store: ByteStore) -> Index:
    """Index of a WebDataset shard: `key.{mp4,webm,gif,jpg,...}` with `key.txt` or `key.json`.

    Only tar headers, captions and the beginning and sample tables of videos are read where the container has
    such tables (MP4, MOV, pictures); other videos are read through once.
    """
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    left_out = []
    for member in _members(store):
        problem = _problem(member)
        if problem:
            left_out.append({"name": _shown(member.name), "reason": problem})
            continue
        if not member.isfile():
            continue
        folder, _, base = member.name.removeprefix("./").rpartition("/")
        stem, _, suffix = base.partition(".")
        groups.setdefault(f"{folder}/{stem}" if folder else stem, {})[suffix.lower()] = member
    items = []
    for key, group in groups.items():
        suffix = next((s for s in group if s in VIDEO_SUFFIXES), None)
        suffix = suffix or next((s for s in group if s in PICTURE_SUFFIXES), None)
        if suffix is None:
            continue
        member = group[suffix]
        name = f"{store.location}:{_shown(member.name)}"
        try:
            notes = _notes(store, group, name)
            info = probe(Window(store, member.offset_data, member.size), name)
            items.append(
                Item(
                    key=_shown(key), name=_shown(member.name), offset=member.offset_data, size=member.size,
                    **asdict(info), **notes,
                )
            )  # fmt: skip
        except ClipError as error:
            left_out.append({"name": _shown(member.name), "reason": str(error)})
    return Index(store.size, items, left_out)


def notes_of(row: dict[str, Any], name: str) -> dict[str, Any]:
    """captions, weight, split, start of a metadata row (a member `key.json`, a line of a JSONL), checked.

    Raises ClipError naming the field.
    """
    captions = next((row[key] for key in CAPTION_FIELDS if row.get(key)), [])
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ClipError(f"{name}: caption must be text or a list of texts, got {captions!r:.80}")
    notes: dict[str, Any] = {"captions": [clean for text in captions if (clean := clean_caption(text))]}
    for key, least in (("weight", 0.0), ("start", 0.0)):
        value = row.get(key)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise ClipError(f"{name}: {key} must be a number of at least {least:g}, got {value!r:.80}")
            notes[key] = float(value)
    if row.get("split") is not None:
        notes["split"] = str(row["split"])[:100]
    return notes


def clean_caption(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read_index(text: str, location: str, size: int) -> Index | None:
    """Parse `NAME.index.json`; None if it is of another version or of a shard of another size (scan it again).

    Raises DataError if it is no index, or an item does not lie within the shard.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format is {document['format']!r:.40}")
        if document["version"] != VERSION or document["size"] != size:
            return None
        known = {f.name for f in fields(Item)}
        items = [Item(**{key: value for key, value in row.items() if key in known}) for row in document["items"]]
        left_out = [{"name": str(row["name"]), "reason": str(row["reason"])} for row in document["left_out"]]
        for item in items:
            _check_item(item, size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{location!r} is not a sound index ({error!r:.200}): delete it, or prepare again") from error
    return Index(size, items, left_out)


def index_text(index: Index) -> str:
    """JSON with one line an item, so that a difference of two is readable."""
    rows = ",\n".join(json.dumps(asdict(item), ensure_ascii=False) for item in index.items)
    left_out = ",\n".join(json.dumps(row, ensure_ascii=False) for row in index.left_out)
    head = f'"format": "{FORMAT}", "version": {VERSION}, "size": {index.size}'
    return f'{{{head},\n"items": [\n{rows}\n],\n"left_out": [\n{left_out}\n]}}\n'


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it: there whole, or not at all."""
    data = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_item(item: Item, size: int) -> None:
    if item.kind not in ("video", "image"):
        raise ValueError(f"{item.key!r:.80}: kind is {item.kind!r:.40}")
    numbers = (item.offset, item.size, item.width, item.height, item.frames)
    if not all(type(value) is int and value >= 0 for value in numbers) or min(item.width, item.height) < 1:
        raise ValueError(f"{item.key!r:.80}: offset, size, width, height, frames must be whole and not negative")
    if item.offset + item.size > size:
        raise ValueError(f"{item.key!r:.80} lies outside of the shard")
    reals = (item.fps, item.duration, item.start, item.weight)
    if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in reals):
        raise ValueError(f"{item.key!r:.80}: fps, duration, start, weight must be finite and not negative")
    if not isinstance(item.captions, list) or not all(isinstance(text, str) for text in item.captions):
        raise ValueError(f"{item.key!r:.80}: captions must be a list of texts")


class _Headers(Window):
    """A shard as `tarfile` reads it: headers only, so a large read is a hostile extended header."""

    def read(self, length: int = -1) -> bytes:
        if length > MAX_HEADER_BYTES or length < 0:
            raise DataError(
                f"{self.store.location!r} asks for a header of {length} bytes at {self.position}: it is damaged or "
                "hostile, leave it out"
            )
        return super().read(length)


def _members(store: ByteStore) -> Iterable[tarfile.TarInfo]:
    if store.size == 0:
        raise DataError(f"{store.location!r} is empty (0 bytes): make the shard again")
    end = 0
    try:
        with tarfile.open(fileobj=_Headers(store), mode="r:") as tar:
            for member in tar:
                end = member.offset_data + (member.size if member.isfile() else 0)
                if end > store.size:
                    raise tarfile.ReadError(f"member {_shown(member.name)!r} goes beyond the end")
                yield member
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{store.location!r} is not a whole, uncompressed tar (after byte {end}: {error}): make or copy it again"
        ) from error


def _problem(member: tarfile.TarInfo) -> str:
    """Why a member is refused; "" if it is not."""
    parts = PurePosixPath(member.name).parts
    if member.issym() or member.islnk():
        return "it is a link"
    if member.ischr() or member.isblk() or member.isfifo() or member.issparse():
        return "it is a device, pipe or sparse file"
    if member.name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", member.name):
        return "its name is absolute"
    if ".." in parts or "\\" in member.name or not all(c.isprintable() for c in member.name):
        return "its name has '..', a backslash or control characters"
    if member.isfile() and member.size > MAX_MEMBER_BYTES:
        return f"it has {member.size} bytes, at most {MAX_MEMBER_BYTES} are read"
    if member.isfile() and member.size == 0:
        return "it is empty"
    return ""


def _notes(store: ByteStore, group: dict[str, tarfile.TarInfo], name: str) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    for suffix in ("json", "txt"):
        member = group.get(suffix)
        if member is None:
            continue
        if member.size > MAX_CAPTION_BYTES:
            raise ClipError(f"{name}: its .{suffix} has {member.size} bytes, at most {MAX_CAPTION_BYTES} are read")
        try:
            text = store.read(member.offset_data, member.size).decode("utf-8")
            row = json.loads(text) if suffix == "json" else {"caption": text}
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise ClipError(f"{name}: its .{suffix} cannot be read ({error})") from error
        if not isinstance(row, dict):
            raise ClipError(f"{name}: its .json must be an object, got {type(row).__name__}")
        found = notes_of(row, name)
        # The .txt has the caption when both do.
        notes |= found if found["captions"] or "captions" not in notes else {}
    # A shard's clip is a whole file.
    return notes | {"start": 0.0}


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)[:500]

"""From what a user names to indexed clips: shards, folders and lists, their indexes found, made or cached."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from i2vgen.data.clip_reader import PICTURE_SUFFIXES, VIDEO_SUFFIXES, ClipInfo, probe
from i2vgen.data.errors import ClipError, DataError
from i2vgen.data.shard_index import (
    MAX_CAPTION_BYTES,
    Index,
    Item,
    index_location,
    index_text,
    notes_of,
    read_index,
    scan_shard,
    write_whole,
)
from i2vgen.data.storage import LocalStore, Window, is_remote, open_store, read_text

MAX_EXPANDED = 1_000_000
SAVE_EVERY = 1000  # probes of a folder between two writes of its cache
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Container:
    """Where clips lie: a shard, or a folder or list whose items are files of their own under `location`."""

    kind: str  # "shard" | "folder" | "list"
    location: str

    def file_of(self, name: str) -> str:
        """Location of the file that holds the item of this name."""
        if self.kind == "shard":
            return self.location
        folder = self.location if self.kind == "folder" else os.path.dirname(os.path.abspath(self.location))
        return os.path.join(folder, name)


def expand_source(source: str) -> list[Container]:
    """Containers that one entry of `sources` names, in a fixed order.

    Braces ({000..099}, {a,b}) work everywhere, * ? [ only locally. A folder with .tar files in it is those
    shards. Raises DataError if nothing is there, or the suffix is unknown.
    """
    found: list[Container] = []
    for name in expand_braces(source):
        if is_remote(name):
            if not name.split("?", 1)[0].endswith(".tar"):
                raise DataError(f"sources: {name!r} is no .tar: remote data is read from shards")
            found.append(Container("shard", name))
            continue
        name = os.path.expanduser(name)
        paths = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        if not paths:
            raise DataError(f"sources: nothing matches {name!r}: check the path (looked in {os.getcwd()!r})")
        for path in paths:
            found += _local(Path(path))
    return found


def expand_braces(text: str) -> list[str]:
    """`clips-{000..002}.tar` -> three names with zeros kept; `{a,b}` -> two; several multiply."""
    pieces = _BRACES.split(text)
    parts = []
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            parts.append([piece])
            continue
        bounds = re.fullmatch(r"(\d+)\.\.(\d+)", piece)
        if bounds is None:
            parts.append(piece.split(",") if "," in piece else ["{" + piece + "}"])
            continue
        first, last = int(bounds[1]), int(bounds[2])
        if not 0 <= last - first < MAX_EXPANDED:
            raise DataError(f"sources: {{{piece}}} in {text!r} must ascend and name at most {MAX_EXPANDED} shards")
        parts.append([f"{number:0{len(bounds[1])}d}" for number in range(first, last + 1)])
    count = 1
    for part in parts:
        count *= len(part)
    if count > MAX_EXPANDED:
        raise DataError(f"sources: {text!r} names {count} shards, at most {MAX_EXPANDED}")
    return ["".join(combination) for combination in itertools.product(*parts)]


def _local(path: Path) -> list[Container]:
    if path.is_dir():
        shards = sorted(file for file in path.iterdir() if file.suffix == ".tar" and file.name[0] != ".")
        return [Container("shard", str(shard)) for shard in shards] or [Container("folder", str(path))]
    if not path.is_file():
        raise DataError(f"sources: {str(path)!r} does not exist: check the path (looked in {os.getcwd()!r})")
    if path.suffix == ".tar":
        return [Container("shard", str(path))]
    if path.suffix in (".jsonl", ".ndjson"):
        return [Container("list", str(path))]
    raise DataError(f"sources: {str(path)!r} is no folder, .tar or .jsonl: name one of these")


def load_index(
    container: Container,
    cache_dir: str = "",
    num_workers: int = 0,
    allow_outside: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Index of a container: that beside a shard, a cached one, or a new one from a scan, then cached.

    `progress(done, total)` is called for each file of a folder or list. Raises DataError if the container
    cannot be read or its index is damaged.
    """
    cache = _cache_file(container, cache_dir)
    if container.kind == "shard":
        try:
            store = open_store(container.location)
        except ClipError as error:
            raise DataError(f"sources: {error}") from error
        for location in (index_location(container.location), str(cache)):
            text = read_text(location)
            index = None if text is None else read_index(text, location, store.size)
            if index is not None:
                return index
        try:
            index = scan_shard(store)
        except ClipError as error:
            raise DataError(f"sources: {error}") from error
        _save(cache, index_text(index))
        return index
    if container.kind == "folder":
        rows: Iterator[tuple[str, dict[str, Any]]] = _folder_rows(Path(container.location))
    else:
        rows = _list_rows(Path(container.location))
    return _index_files(container, list(rows), cache, num_workers, allow_outside, progress)


def _folder_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    known = {*VIDEO_SUFFIXES, *PICTURE_SUFFIXES}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.rpartition(".")[2].lower() in known:
                yield Path(parent, name).relative_to(folder).as_posix(), {}


def _list_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"sources: {str(path)!r} cannot be read ({error}): give UTF-8 text") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"sources: {str(path)!r}, line {number} is not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not row["file"]:
            raise DataError(f'sources: {str(path)!r}, line {number} has no file: write {{"file": ..., "caption": ...}}')
        yield row["file"], row


def _index_files(container, rows, cache: Path, num_workers: int, allow_outside: bool, progress) -> Index:
    folder = Path(container.location) if container.kind == "folder" else Path(container.location).absolute().parent
    root = folder.resolve()
    cached = _cached_probes(cache)
    probes: dict[str, list] = {}
    items: list[Item] = []
    left_out: list[dict[str, str]] = []

    def examine(row: tuple[str, dict[str, Any]]) -> Item | str:
        name, fields = row
        if not name.isprintable():
            return "its name has control characters or is not UTF-8"
        path = folder / name
        try:
            if not allow_outside and not path.resolve().is_relative_to(root):
                return "it lies outside of the folder: move it, or set allow_outside"
            stat = path.stat()
        except (OSError, ValueError, RuntimeError) as error:
            return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
        key = str(path)
        known = cached.get(key)
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            try:
                store = LocalStore(path)
                known = [stat.st_size, stat.st_mtime_ns, asdict(probe(Window(store), name))]
            except ClipError as error:
                known = [stat.st_size, stat.st_mtime_ns, str(error)]
        probes[key] = known
        if isinstance(known[2], str):
            return known[2]
        try:
            return _item_of(name, fields or _sidecar(path), ClipInfo(**known[2]), stat.st_size)
        except ClipError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for done, (row, found) in enumerate(zip(rows, pool.map(examine, rows), strict=True), 1):
            if isinstance(found, str):
                shown = "".join(c if c.isprintable() else "?" for c in row[0])[:500]
                left_out.append({"name": shown, "reason": found})
            else:
                items.append(found)
            if done % SAVE_EVERY == 0:
                _save(cache, json.dumps(dict(probes)))
            if progress is not None:
                progress(done, len(rows))
    if probes != cached:
        _save(cache, json.dumps(probes))
    return Index(0, items, left_out)


def _item_of(name: str, fields: dict[str, Any], info: ClipInfo, size: int) -> Item:
    notes = notes_of(fields, name)
    item = Item(key=name, name=name, offset=0, size=size, **asdict(info), **notes)
    end = fields.get("end")
    if end is not None and (isinstance(end, bool) or not isinstance(end, int | float) or not end > item.start):
        raise ClipError(f"{name}: end must be seconds after start = {item.start:g}, got {end!r:.80}")
    if item.kind == "video" and (item.start > 0 or end is not None):
        # `end` is where the next shot begins, so the last frame lies one frame before it.
        last = min(info.duration, _last_time(end, info))
        if last < item.start:
            raise ClipError(f"{name}: start = {item.start:g} s lies after its end at {last:g} s")
        item.duration = round(last - item.start, 4)
        item.frames = max(1, round(item.duration * info.fps) + 1)
    return item


def _last_time(end: float | None, info: ClipInfo) -> float:
    """Time of the last frame before second `end`."""
    return info.duration if end is None else end - (1 / info.fps if info.fps > 0 else 0.0)


def _sidecar(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for suffix in (".json", ".txt"):
        file = path.with_suffix(suffix)
        if not file.is_file():
            continue
        if file.stat().st_size > MAX_CAPTION_BYTES:
            raise ClipError(f"{file.name} has {file.stat().st_size} bytes, at most {MAX_CAPTION_BYTES} are read")
        try:
            text = file.read_text(encoding="utf-8")
            found = json.loads(text) if suffix == ".json" else {"caption": text}
        except (OSError, ValueError, RecursionError) as error:
            raise ClipError(f"{file.name} cannot be read ({error})") from error
        if not isinstance(found, dict):
            raise ClipError(f"{file.name} must be an object, got {type(found).__name__}")
        row |= found
    return row


def _cache_file(container: Container, cache_dir: str) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "i2vgen" / "data"
    where = container.location if is_remote(container.location) else os.path.abspath(container.location)
    digest = hashlib.sha256(f"{container.kind}:{where}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return (Path(cache_dir).expanduser() if cache_dir else default) / f"{container.kind}-{digest}.json"


def _cached_probes(cache: Path) -> dict[str, list]:
    try:
        probes = json.loads(cache.read_text(encoding="utf-8"))
        known = {key: value for key, value in probes.items() if len(value) == 3}
        for _, _, info in known.values():
            if not isinstance(info, str):
                ClipInfo(**info)
        return known
    except (OSError, ValueError, TypeError, AttributeError):
        # A cache may always be made again.
        return {}


def _save(cache: Path, text: str) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cache, text)
    except OSError as error:
        raise DataError(f"cache_dir: {str(cache)!r} cannot be written ({error}): choose another") from error

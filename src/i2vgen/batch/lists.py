"""Lists of items: `image|||caption` lines, CSV and JSONL, read whole and checked before any work.

`#` comments and blank lines are skipped in all three. Everything wrong in a list is said at once.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2vgen.batch.fields import ALIASES, FIELDS, convert, field_name

SEPARATOR = "|||"
MAX_LIST_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000
MAX_SHOWN = 12
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class ListError(ValueError):
    """A list that cannot be used; one line of the message for each thing wrong."""


@dataclass(frozen=True)
class Row:
    """One line of a list.

    `number` counts rows from 1; `place` is "shots.csv:3", file and line. `image` is an absolute path or an address;
    `options` has what the row says of `i2vgen.batch.fields.OPTION_NAMES`, None left out.
    """

    number: int
    place: str
    image: str
    prompt: str = ""
    seed: int | None = None
    repeats: int | None = None
    output: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def read_list(source: str | os.PathLike) -> list[Row]:
    """Read a list file; "-" is standard input.

    `.csv`, `.tsv`, `.jsonl` and `.ndjson` say what they are; anything else is told from its first line.
    A relative image path is looked for in the list's folder, then in the working directory.

    Raises ListError naming file, line and column of everything wrong, as far as `MAX_SHOWN`.
    """
    name = "standard input" if str(source) == "-" else str(source)
    text = _decoded(_content(source, name), name)
    folder = Path.cwd() if str(source) == "-" else Path(source).expanduser().resolve().parent
    kind = SUFFIXES.get(Path(str(source)).suffix.lower()) or _kind_of(text)
    cells = {"csv": _csv_rows, "jsonl": _json_rows, "text": _text_rows}[kind](text, name)
    return rows_from(cells, name, folder)


def rows_from(cells: Iterator[tuple[int, Any]], name: str, folder: Path) -> list[Row]:
    """Rows of (line number, mapping of columns or the ValueError that reading it gave). Raises ListError."""
    rows, wrong = [], []
    for line, values in cells:
        if len(rows) + len(wrong) >= MAX_ROWS:
            raise ListError(f"{name}: more than {MAX_ROWS} rows: split the list")
        try:
            if isinstance(values, ValueError):
                raise values
            rows.append(_row(len(rows) + 1, f"{name}:{line}", values, folder))
        except ValueError as error:
            wrong += [f"{name}:{line}: {part}" for part in str(error).split("\0")]
    raise_all(wrong)
    if not rows:
        raise ListError(f"{name} has no rows: write lines such as photo.jpg{SEPARATOR}the camera pans left")
    return rows


def raise_all(wrong: list[str]) -> None:
    """Raise one ListError for all that is wrong, if anything is."""
    if wrong:
        count = [f"{len(wrong)} things to correct in the list; nothing was made"] if len(wrong) > 1 else []
        more = [f"and {len(wrong) - MAX_SHOWN} more"] if len(wrong) > MAX_SHOWN else []
        raise ListError("\n".join(wrong[:MAX_SHOWN] + more + count))


def _row(number: int, place: str, values: Mapping[str, Any], folder: Path) -> Row:
    """Raises ValueError with what is wrong, several parts joined by NUL."""
    known, wrong = {}, []
    for column, value in values.items():
        name = field_name(column)
        if not name:
            wrong.append(unknown_column(column))
        elif name in known:
            wrong.append(f"{name} is given twice")
        elif value is not None:
            try:
                known[name] = convert(name, value)
            except ValueError as error:
                wrong.append(str(error))
        else:
            known[name] = None
    if known.get("image") is None and not any(part.startswith("image") for part in wrong):
        wrong.append("image is missing: name a picture")
    if wrong:
        raise ValueError("\0".join(wrong))
    given = {name: value for name, value in known.items() if value is not None}
    image = _resolved(given.pop("image"), folder)
    own = {name: given.pop(name) for name in ("prompt", "seed", "repeats", "output") if name in given}
    return Row(number, place, image, **own, options=given)


def _resolved(image: str, folder: Path) -> str:
    """Absolute: in `folder`, or the working directory if only that has it; addresses stay."""
    if image[:8].lower().startswith(("http://", "https://")) or image[:5].lower() == "data:":
        return image
    try:
        path = Path(image).expanduser()
        beside, here = (folder / path).absolute(), path.absolute()
        return os.path.normpath(here if not beside.exists() and here.exists() else beside)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"image {image[:60]!r}: cannot be used as a path ({error})") from None


def unknown_column(column: str) -> str:
    known = [*FIELDS, *ALIASES]
    near = difflib.get_close_matches(column.strip().lower().replace("-", "_"), known, n=1, cutoff=0.5)
    return f"unknown column {column[:40]!r}: " + (f"did you mean {near[0]!r}?" if near else f"use {', '.join(FIELDS)}")


# From bytes to cells


def _content(source: str | os.PathLike, name: str) -> bytes:
    try:
        if str(source) == "-":
            data = sys.stdin.buffer.read(MAX_LIST_BYTES + 1)
        else:
            path = Path(source).expanduser()
            if path.is_dir():
                raise ListError(f"list {name!r} is a directory: name a file")
            with path.open("rb") as file:
                data = file.read(MAX_LIST_BYTES + 1)
    except (OSError, RuntimeError) as error:
        raise ListError(f"list {name!r} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > MAX_LIST_BYTES:
        raise ListError(f"list {name!r} is larger than {MAX_LIST_BYTES} bytes: split it")
    return data


def _decoded(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ListError(f"{name}:1: it is UTF-16: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ListError(f"{name}:{line}: not UTF-8 (byte {data[error.start]:#04x}): save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _kind_of(text: str) -> str:
    first = next((line.strip() for _, line in _lines(text)), "")
    if first.startswith(("{", "[")):
        return "jsonl"
    has_image = any(field_name(cell) == "image" for cell in first.replace(";", ",").replace("\t", ",").split(","))
    return "csv" if has_image and SEPARATOR not in first else "text"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _text_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(text):
        parts = line.split(SEPARATOR)
        if len(parts) == 2:
            yield number, {"image": parts[0].strip(), "prompt": parts[1].strip()}
        else:
            count = "no" if len(parts) == 1 else "more than one"
            yield number, ValueError(f"{count} {SEPARATOR!r}: write image{SEPARATOR}caption")


def _json_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)} is given twice")
        return dict(items)

    for number, line in _lines(text):
        try:
            values = json.loads(line, object_pairs_hook=pairs)
        except json.JSONDecodeError as error:
            values = ValueError(f"not valid JSON ({error.msg} at column {error.colno}): write one object a line")
        except (ValueError, RecursionError) as error:
            values = ValueError(str(error) or "nested too deeply")
        if not isinstance(values, dict | ValueError):
            values = ValueError(f"a JSON {type(values).__name__}: write one object a line")
        yield number, values


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    first = next((line for _, line in _lines(text)), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ListError(f"{name}:{line}: not valid CSV ({error})") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells) or cells[0].lstrip().startswith("#"):
            continue
        if not header:
            header = cells
            _check_header(header, f"{name}:{line}")
        elif len(cells) != len(header):
            yield line, ValueError(f"{len(cells)} cells where the header has {len(header)} (quote text with commas)")
        else:
            # An empty cell is not given, save for the prompt, which may be empty.
            yield line, {column: cell.strip() or None for column, cell in zip(header, cells, strict=True)}


def _check_header(header: list[str], place: str) -> None:
    wrong = [unknown_column(column) for column in header if not field_name(column)]
    names = [field_name(column) for column in header]
    wrong += [f"two columns for {n}" for n in dict.fromkeys(names) if n and names.count(n) > 1]
    if "image" not in names:
        wrong.append("no column 'image': the first row names the columns")
    raise_all([f"{place}: {part}" for part in wrong])

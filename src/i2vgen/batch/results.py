"""`results.jsonl`: what became of each item, one JSON object a line, the last line of an output counts."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.jsonl"
STARTED, DONE, FAILED = "started", "done", "failed"


def read_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The last entry of each output. A line that a killed process left torn is passed over.

    Raises ValueError if the file is something else.
    """
    path = folder / RESULTS_NAME
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    entries: dict[str, dict[str, Any]] = {}
    torn = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            torn += 1
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("output"), str) or "status" not in entry:
            raise ValueError(f"{path} holds something else than the results of a batch: choose another folder")
        entries.pop(entry["output"], None)
        entries[entry["output"]] = entry
    if torn > 1:
        logger.warning("%s: %d lines are damaged; those items are made again", path, torn)
    return entries


class Results:
    """The results of a folder, open for appending: each entry is on the disk when `append` returns. Any thread may."""

    def __init__(self, folder: Path):
        self.path, self.lock = folder / RESULTS_NAME, threading.RLock()
        self.entries = read_entries(folder)
        self._rewrite(self.entries)
        self.file = self.path.open("ab")

    def append(self, entry: dict[str, Any]) -> None:
        """Raises OSError where it cannot be kept."""
        with self.lock:
            self.file.write(_line(entry))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.entries[entry["output"]] = entry

    def close(self, order: Iterable[str]) -> None:
        """Leave one line for each output, those of `order` first, in this order."""
        self.file.close()
        first = dict.fromkeys(name for name in order if name in self.entries)
        self._rewrite([*first, *(name for name in self.entries if name not in first)])

    def _rewrite(self, names: Iterable[str]) -> None:
        """A whole file under a temporary name, then renamed."""
        temporary = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:12]}.jsonl")
        try:
            with temporary.open("wb") as file:
                file.writelines(_line(self.entries[name]) for name in names)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def remove_leftovers(folder: Path, outputs: Iterable[str]) -> None:
    """Remove what a killed process left of these outputs: hidden names with twelve random digits."""
    stems = {Path(name).stem[:60] if "." in name else name[:60] for name in outputs} | {Path(RESULTS_NAME).stem}
    for path in folder.iterdir():
        match = re.fullmatch(r"\.(.+)\.[0-9a-f]{12}(\.(mp4|webm|gif|webp|jsonl))?", path.name)
        if match is None or match[1] not in stems:
            continue
        if path.is_dir() and not path.is_symlink():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()


def output_size(path: Path) -> int:
    """Bytes of an output, file or folder of frames; 0 if there is none."""
    from i2vgen.media.frame_series import frame_files

    if path.is_dir():
        return sum(file.stat().st_size for file in frame_files(path))
    return path.stat().st_size if path.is_file() else 0

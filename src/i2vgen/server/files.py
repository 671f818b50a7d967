"""Files of jobs, in a local folder or any fsspec store: each appears whole or not at all.

Names are made here from a job's id and a fixed set of file names; no text of a request is ever part of one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK_BYTES = 256 * 1024
ID_PATTERN = re.compile(r"video_[0-9a-f]{32}")
NAMES = ("input.png", "video.mp4", "thumbnail.jpg", "spritesheet.jpg")


class FileMissingError(RuntimeError):
    """A file that the queue knows is not in the store."""


class FileStore(Protocol):
    def put(self, id: str, name: str, source: BinaryIO) -> int:
        """Keep what `source` holds; returns its bytes. Raises OSError."""

    def read(self, id: str, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes from `start` up to before `end`, in pieces. Raises FileMissingError before the first."""

    def remove(self, id: str) -> None:
        """Remove all files of a job; none there is fine."""

    def ids(self, min_age_seconds: float) -> list[str]:
        """Jobs that have files here, the last of them at least so old."""

    def free_bytes(self) -> int | None:
        """None where that cannot be told."""


def open_files(address: str) -> FileStore:
    """A folder's path, file://..., or another fsspec address. Raises ValueError if its package is missing."""
    if "://" not in address or address.startswith("file://"):
        return LocalFiles(Path(address.removeprefix("file://")).expanduser().absolute())
    return RemoteFiles(address)


def checked(id: str, name: str | None = None) -> str:
    """`id`, if it and `name` are of the forms that the service makes. Raises ValueError."""
    if not ID_PATTERN.fullmatch(id) or (name is not None and name not in NAMES):
        raise ValueError(f"no file of a job: {id!r}, {name!r}")
    return id


class LocalFiles:
    def __init__(self, folder: Path):
        self.folder = folder / "videos"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, id: str, name: str, source: BinaryIO) -> int:
        folder = self.folder / checked(id, name)
        folder.mkdir(exist_ok=True, mode=0o700)
        temporary = folder / f".{name}.{uuid.uuid4().hex[:12]}"
        try:
            with temporary.open("xb") as writing:
                shutil.copyfileobj(source, writing, CHUNK_BYTES)
                writing.flush()
                os.fsync(writing.fileno())
                size = writing.tell()
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def read(self, id: str, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        try:
            file = (self.folder / checked(id, name) / name).open("rb")
        except OSError as error:
            raise FileMissingError(f"{id}: {name} cannot be read") from error
        return _pieces(file, start, end)

    def remove(self, id: str) -> None:
        shutil.rmtree(self.folder / checked(id), ignore_errors=True)

    def ids(self, min_age_seconds: float) -> list[str]:
        newest = time.time() - min_age_seconds
        return [
            entry.name
            for entry in os.scandir(self.folder)
            if ID_PATTERN.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime <= newest
        ]

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.folder).free


class RemoteFiles:
    """Object stores show a file when it is whole; elsewhere it is uploaded under another name and moved."""

    def __init__(self, address: str):
        import fsspec

        try:
            self.system, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise ValueError(f"data {address.split('?')[0]!r}: {error}") from error
        self.root = root.rstrip("/") + "/videos"

    def put(self, id: str, name: str, source: BinaryIO) -> int:
        folder = f"{self.root}/{checked(id, name)}"
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:12]}"
        self.system.makedirs(folder, exist_ok=True)
        try:
            with self.system.open(temporary, "wb") as writing:
                shutil.copyfileobj(source, writing, CHUNK_BYTES)
                size = writing.tell()
            self.system.mv(temporary, f"{folder}/{name}")
        except BaseException:
            if self.system.exists(temporary):
                self.system.rm_file(temporary)
            raise
        return size

    def read(self, id: str, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        try:
            file = self.system.open(f"{self.root}/{checked(id, name)}/{name}", "rb")
        except OSError as error:
            raise FileMissingError(f"{id}: {name} cannot be read") from error
        return _pieces(file, start, end)

    def remove(self, id: str) -> None:
        folder = f"{self.root}/{checked(id)}"
        if self.system.exists(folder):
            self.system.rm(folder, recursive=True)

    def ids(self, min_age_seconds: float) -> list[str]:
        """Ages are not alike in all stores: a folder counts as old when a file in it is, by the store's own word."""
        if not self.system.exists(self.root):
            return []
        names = [Path(entry["name"]).name for entry in self.system.ls(self.root, detail=True)]
        return [name for name in names if ID_PATTERN.fullmatch(name) and self._age(name) >= min_age_seconds]

    def _age(self, id: str) -> float:
        times = []
        for entry in self.system.ls(f"{self.root}/{id}", detail=True):
            made = entry.get("LastModified") or entry.get("mtime") or entry.get("created") or entry.get("updated")
            made = getattr(made, "timestamp", lambda made=made: made)()
            times.append(float(made) if isinstance(made, int | float) else time.time())
        return time.time() - max(times, default=time.time())

    def free_bytes(self) -> int | None:
        return None


def _pieces(file, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = None if end is None else end - start
        while left is None or left > 0:
            piece = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not piece:
                return
            left = None if left is None else left - len(piece)
            yield piece

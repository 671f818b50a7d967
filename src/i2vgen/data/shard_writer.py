"""Tar shards of finished clips, each there whole with its index or not at all."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from i2vgen.data.errors import DataError
from i2vgen.data.shard_index import Index, Item, index_location, index_text, read_index, write_whole

SHARD_NAME = "clips-{:06d}.tar"


def write_shard(path: Path, clips: Sequence[tuple[Item, Path, dict[str, bytes]]]) -> Index:
    """Write a WebDataset shard and its index; the index, written last, says that the shard is complete.

    Each clip: its item, the file to store under `item.name`, and further members by suffix (`txt`, `json`).
    Raises DataError if the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    items = []
    try:
        with open(temporary, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for item, media, texts in clips:
                    offset = _add(tar, file, item.name, media.read_bytes())
                    for suffix, data in texts.items():
                        _add(tar, file, f"{item.key}.{suffix}", data)
                    items.append(replace(item, offset=offset, size=media.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        index = Index(temporary.stat().st_size, items)
        os.replace(temporary, path)
        write_whole(Path(index_location(str(path))), index_text(index))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written ({error}): free some space, then run it again") from error
    finally:
        temporary.unlink(missing_ok=True)
    return index


def finished_shards(folder: Path) -> list[tuple[Path, Index]]:
    """Shards of a folder that have their index, in order; one without it was being written when a run ended."""
    found = []
    for path in sorted(folder.glob("clips-*.tar")):
        location = index_location(str(path))
        if os.path.exists(location):
            index = read_index(Path(location).read_text(encoding="utf-8"), location, path.stat().st_size)
            if index is None:
                raise DataError(f"{str(path)!r} is not the file that its index describes: prepare into another folder")
            found.append((path, index))
    return found


def _add(tar: tarfile.TarFile, file: io.BufferedWriter, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    # Behind the data come zeros up to a whole block.
    return file.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

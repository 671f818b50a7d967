"""Debian packages without dpkg: an ar archive, in it a tar, packed with xz, gzip or Zstandard."""

from __future__ import annotations

import gzip
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prepare.errors import PrepareError
from prepare.limits import MAX_FILE_BYTES, zstd_reader

MAGIC, HEADER_BYTES, HEADER_END = b"!<arch>\n", 60, b"`\n"
XZ_MEMORY = 512 << 20


class _Part:
    """`size` bytes of a file from where it stands, as a stream."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size is None or size < 0 else min(size, self._left)
        data = self._file.read(size)
        self._left -= len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return self._file.closed


def read_deb(path: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files `wanted`, paths without a leading "./", in the order of the package.

    Nothing is written to disk, links are not followed. Raises PrepareError for a damaged package, and for a file that
    is wanted and is not in it.
    """
    missing = set(wanted)
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=_data_tar(file, path.name), mode="r|") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if name not in missing:
                    continue
                if not member.isfile():
                    raise PrepareError(f"{path.name}: {name!r} is no plain file")
                if member.size > MAX_FILE_BYTES:
                    raise PrepareError(f"{path.name}: {name!r} has {member.size} bytes, more than {MAX_FILE_BYTES}")
                content = tar.extractfile(member).read()
                missing.discard(name)
                yield name, content
                if not missing:
                    return
    except (tarfile.TarError, lzma.LZMAError, gzip.BadGzipFile, EOFError, OSError) as error:
        raise PrepareError(f"{path.name} is damaged ({error}): fetch it again") from error
    if missing:
        first = ", ".join(sorted(missing)[:3])
        raise PrepareError(f"{path.name} holds no {first} ({len(missing)} missing): another version of the package?")


def _data_tar(file: BinaryIO, name: str) -> BinaryIO:
    if file.read(len(MAGIC)) != MAGIC:
        raise PrepareError(f"{name} is no Debian package")
    while True:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or header[58:] != HEADER_END:
            raise PrepareError(f"{name} is damaged: no data.tar in it")
        member = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = header[48:58].strip()
        if not size.isdigit():
            raise PrepareError(f"{name} is damaged: {member} has the size {size!r}")
        if member.startswith("data.tar"):
            break
        # Members begin at even places.
        file.seek(int(size) + int(size) % 2, 1)
    part = _Part(file, int(size))
    suffix = member.removeprefix("data.tar")
    if suffix == ".xz":
        # XZ streams of Debian's are packed with at most 64 MiB of dictionary.
        return _Unpacked(part, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY))
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=part)
    if suffix == ".zst":
        return zstd_reader(part)
    if suffix == "":
        return part
    raise PrepareError(f"{name}: {member} is packed in an unknown way")


class _Unpacked:
    """What a decompressor makes of a stream, as a stream."""

    def __init__(self, part: _Part, decompressor: lzma.LZMADecompressor):
        self._part, self._decompressor = part, decompressor

    def read(self, size: int) -> bytes:
        while not self._decompressor.eof:
            packed = self._part.read(1 << 16) if self._decompressor.needs_input else b""
            if not packed and self._decompressor.needs_input:
                raise EOFError("the packed data end too early")
            data = self._decompressor.decompress(packed, size)
            if data:
                return data
        return b""

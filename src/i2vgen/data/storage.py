"""Bytes of a file by offset, wherever it lies: local, http(s) with range requests, or any fsspec address.

http(s) is done with the standard library, since fsspec's own needs aiohttp; `s3://`, `gs://`, `hf://` and others
go through fsspec and the package that it asks for.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from i2vgen.data.errors import ClipError, DataError, MissingFileError, StorageError

TIMEOUT_SECONDS = 30.0
NUM_TRIES = 4
# Answers that another try may change.
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
LOCAL_BLOCK, REMOTE_BLOCK = 1 << 16, 1 << 20
NUM_BLOCKS = 8
MAX_TEXT_BYTES = 1 << 28


class ByteStore(Protocol):
    """A file of known `size` in bytes that any thread may read at any offset."""

    location: str
    size: int
    block: int  # bytes that one small read should fetch at once

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises ClipError if the file has fewer, StorageError if it does not answer."""


class LocalStore:
    block = LOCAL_BLOCK

    def __init__(self, path: str | os.PathLike):
        self.location = str(path)
        try:
            self.size = Path(path).stat().st_size
        except OSError as error:
            raise ClipError(f"{self.location!r} cannot be read ({error.strerror}): restore it") from error

    def read(self, offset: int, length: int) -> bytes:
        # Opened for each read: thousands of shards would otherwise hold as many descriptors.
        try:
            with open(self.location, "rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(length)
                while len(data) < length and (more := file.read(length - len(data))):
                    data += more
        except OSError as error:
            raise ClipError(f"{self.location!r} cannot be read ({error.strerror}): restore it") from error
        return _whole(data, length, offset, self.location)


class HttpStore:
    block = REMOTE_BLOCK

    def __init__(self, url: str):
        self.url = url
        self.location = url.split("?", 1)[0]
        _, answer = self._request(0, 1)
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.get("Content-Range", ""))
        if match is None:
            raise DataError(f"{self.location!r}: the server gives no ranges of a file: use one that does, or a copy")
        self.size = int(match[1])

    def read(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        data, _ = self._request(offset, length)
        return _whole(data, length, offset, self.location)

    def _request(self, offset: int, length: int) -> tuple[bytes, http.client.HTTPMessage]:
        fields = {
            "Range": f"bytes={offset}-{offset + length - 1}",
            "User-Agent": "i2vgen",
            "Accept-Encoding": "identity",
        }
        for attempt in range(NUM_TRIES):
            if attempt:
                time.sleep(0.5 * 3 ** (attempt - 1))
            try:
                with urlopen(Request(self.url, headers=fields), timeout=TIMEOUT_SECONDS) as response:
                    if response.status != 206:
                        raise DataError(
                            f"{self.location!r}: the server ignores range requests: use one that does not, or a copy"
                        )
                    data = response.read(length)
                    if len(data) < length and offset + length <= getattr(self, "size", 0):
                        raise OSError(f"{len(data)} of {length} bytes came")
                    return data, response.headers
            except HTTPError as error:
                problem = error
                if error.code in (404, 410):
                    raise MissingFileError(f"{self.location!r} is not there ({error}): check the address") from error
                if error.code == 416:
                    raise DataError(
                        f"{self.location!r} is empty or shorter than its index says: make it again"
                    ) from error
                if error.code not in PASSING_STATUS:
                    break
            except (OSError, http.client.HTTPException) as error:
                problem = error
        raise StorageError(f"{self.location!r} cannot be read ({problem}): check the address and the network")


class FsspecStore:
    block = REMOTE_BLOCK

    def __init__(self, location: str):
        self.location = location
        try:
            import fsspec

            self.files, self.path = fsspec.core.url_to_fs(location)
            self.size = int(self.files.size(self.path))
        except FileNotFoundError as error:
            raise MissingFileError(f"{location!r} is not there: check the address") from error
        except (ImportError, ValueError) as error:
            raise DataError(
                f"{location!r} cannot be opened ({error}): install what it asks for, or use a copy"
            ) from error
        except OSError as error:
            raise StorageError(f"{location!r} cannot be read ({error}): check the address and the network") from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = self.files.cat_file(self.path, start=offset, end=offset + length)
        except OSError as error:
            raise StorageError(f"{self.location!r} cannot be read ({error}): check the network") from error
        return _whole(data, length, offset, self.location)


def open_store(location: str) -> ByteStore:
    """Raises ClipError for a missing local file, StorageError or DataError for a remote one."""
    if location[:8].lower().startswith(("http://", "https://")):
        return HttpStore(location)
    return FsspecStore(location) if is_remote(location) else LocalStore(location)


def is_remote(location: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


def read_text(location: str) -> str | None:
    """A small UTF-8 file; None if there is none. Raises DataError if it is too large or not UTF-8."""
    try:
        store = open_store(location)
        if store.size > MAX_TEXT_BYTES:
            raise DataError(f"{store.location!r} has {store.size} bytes, at most {MAX_TEXT_BYTES} are read")
        return store.read(0, store.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{location!r} is not UTF-8 text ({error})") from error
    except (ClipError, MissingFileError):
        return None


class Window(io.RawIOBase):
    """Bytes `offset` to `offset + size` of a store as a file, read in blocks of which a few are kept."""

    def __init__(self, store: ByteStore, offset: int = 0, size: int | None = None):
        super().__init__()
        self.store, self.offset = store, offset
        self.size = store.size - offset if size is None else size
        if offset < 0 or self.size < 0 or offset + self.size > store.size:
            raise ClipError(f"{store.location!r} is shorter than its index says: make the index or the file again")
        self.position = 0
        self.blocks: OrderedDict[int, bytes] = OrderedDict()
        self.num_bytes_read = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def read(self, length: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        length = left if length is None or length < 0 else min(length, left)
        parts, end = [], self.position + length
        while self.position < end:
            index, start = divmod(self.position, self.store.block)
            piece = self._block(index)[start : start + end - self.position]
            parts.append(piece)
            self.position += len(piece)
        return b"".join(parts)

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, index: int) -> bytes:
        if index not in self.blocks:
            begin = index * self.store.block
            length = min(self.store.block, self.size - begin)
            self.blocks[index] = self.store.read(self.offset + begin, length)
            self.num_bytes_read += length
            if len(self.blocks) > NUM_BLOCKS:
                self.blocks.popitem(last=False)
        self.blocks.move_to_end(index)
        return self.blocks[index]


def _whole(data: bytes, length: int, offset: int, location: str) -> bytes:
    if len(data) != length:
        raise ClipError(
            f"{location!r} ends at byte {offset + len(data)}, {offset + length} are needed: it is cut short"
        )
    return data

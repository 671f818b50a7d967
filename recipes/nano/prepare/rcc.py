"""Qt's binary resources (.rcc): a header, a tree of nodes, their names, and the data, all at offsets, big-endian."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from prepare.errors import PrepareError
from prepare.limits import MAX_FILE_BYTES, inflate, zstd_reader

MAGIC = b"qres"
ZLIB, FOLDER, ZSTD = 1, 2, 4
MAX_DEPTH, MAX_NODES = 64, 100_000


@dataclass
class _Node:
    path: str
    flags: int
    first: int  # of a folder: number of its first child; of a file: offset of its data
    count: int  # of a folder: children


class Resources:
    """The files in one .rcc. `name` is for messages. Raises PrepareError for anything that does not fit together."""

    def __init__(self, data: bytes, name: str):
        self._bytes, self._name = data, name
        if data[:4] != MAGIC:
            raise PrepareError(f"{name} is no Qt resource file: it begins with {data[:4]!r}, not {MAGIC!r}")
        version, self._tree, self._data, self._names = self._read(">4I", 4)
        if not 1 <= version <= 3:
            raise PrepareError(f"{name} is of version {version}: 1 to 3 are known")
        # From version 2 on a node ends with a time.
        self._node_size = 14 if version == 1 else 22
        self._files = {node.path: node for node in self._walk()}

    def __iter__(self) -> Iterator[str]:
        """Paths, each beginning with "/"."""
        return iter(self._files)

    def read(self, path: str) -> bytes:
        if path not in self._files:
            raise PrepareError(f"{self._name} holds no {path!r}: another version of the package?")
        node = self._files[path]
        name = f"{self._name}!{path}"
        start = self._data + node.first
        (length,) = self._read(">I", start)
        packed = self._bytes[start + 4 : start + 4 + length]
        if len(packed) != length:
            raise PrepareError(f"{name} is cut off: {length} bytes were promised, {len(packed)} are left")
        if node.flags & ZLIB:
            if length < 4:
                raise PrepareError(f"{name} is damaged: no length before the packed data")
            return inflate(packed[4:], struct.unpack(">I", packed[:4])[0], name)
        if node.flags & ZSTD:
            with zstd_reader(io.BytesIO(packed)) as stream:
                plain = stream.read(MAX_FILE_BYTES + 1)
            if len(plain) > MAX_FILE_BYTES:
                raise PrepareError(f"{name} holds more than {MAX_FILE_BYTES} bytes: it is damaged")
            return plain
        return packed

    def _read(self, layout: str, offset: int) -> tuple[int, ...]:
        if offset + struct.calcsize(layout) > len(self._bytes):
            raise PrepareError(f"{self._name} is cut off: {len(self._bytes)} bytes, {offset} are pointed at")
        return struct.unpack_from(layout, self._bytes, offset)

    def _text(self, offset: int) -> str:
        start = self._names + offset
        (length,) = self._read(">H", start)
        # Two bytes of length and four of a hash come before the text.
        raw = self._bytes[start + 6 : start + 6 + 2 * length]
        if len(raw) != 2 * length:
            raise PrepareError(f"{self._name} is cut off inside a name")
        return raw.decode("utf-16-be", errors="replace")

    def _node(self, number: int, parent: str) -> _Node:
        offset = self._tree + number * self._node_size
        text, flags, first, second = self._read(">IHII", offset)
        path = f"{parent}/{self._text(text)}" if number else ""
        if flags & FOLDER:
            return _Node(path, flags, second, first)
        # A file has country and language where a folder has its count.
        return _Node(path, flags, second, 0)

    def _walk(self) -> Iterator[_Node]:
        waiting, seen = [(self._node(0, ""), 0)], 0
        while waiting:
            node, depth = waiting.pop()
            seen += 1
            if seen > MAX_NODES or depth > MAX_DEPTH:
                raise PrepareError(f"{self._name} is damaged: its tree has no end")
            if not node.flags & FOLDER:
                yield node
                continue
            if node.count > MAX_NODES:
                raise PrepareError(f"{self._name} is damaged: a folder of {node.count} entries")
            children = range(node.first, node.first + node.count)
            waiting.extend((self._node(child, node.path), depth + 1) for child in reversed(children))

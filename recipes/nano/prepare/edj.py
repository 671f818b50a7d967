"""Enlightenment's backgrounds (.edj) hold the picture in several sizes, each a whole JPEG among other data."""

from __future__ import annotations

import struct

from prepare.errors import PrepareError
from prepare.limits import MAX_PIXELS

START, FRAME, SCAN, END = b"\xff\xd8\xff", (0xC0, 0xC1, 0xC2), 0xDA, 0xD9
# Markers without a length behind them.
BARE = {0x01, *range(0xD0, 0xD9)}


def largest_jpeg(data: bytes, name: str) -> bytes:
    """The bytes from the start of the JPEG with most pixels on; readers stop at its end. PrepareError without one."""
    best, most, at = None, 0, data.find(START)
    while at >= 0:
        pixels = _num_pixels(data, at)
        if most < pixels <= MAX_PIXELS:
            best, most = at, pixels
        at = data.find(START, at + 1)
    if best is None:
        raise PrepareError(f"{name} holds no JPEG of up to {MAX_PIXELS} pixels: it is damaged")
    return data[best:]


def _num_pixels(data: bytes, start: int) -> int:
    """Of the JPEG at `start`, as its header says; 0 if there is no such header (the bytes were there by chance)."""
    at = start + 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (SCAN, END):
            return 0
        if marker == 0xFF:
            at += 1
        elif marker in BARE:
            at += 2
        elif marker in FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height * width
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if length < 2:
                return 0
            at += 2 + length
    return 0

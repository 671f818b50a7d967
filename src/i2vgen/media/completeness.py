"""Does a video file hold all the bytes that its own headers promise?

FFmpeg plays what there is of a file that was cut short and may end without an error.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from i2vgen.media.sources import MediaError

MATROSKA_START, MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# Top-level boxes of MP4 and MOV; after anything else the walk stops, as it may be padding.
MP4_BOXES = (
    b"ftyp",
    b"styp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"uuid",
    b"moof",
    b"mfra",
    b"sidx",
)


def check_complete(data: Path | bytes, name: str) -> None:
    """Raise `MediaError` if an MP4, MOV, Matroska or WebM file is shorter than its elements say."""
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        check_complete_file(file, name)


def check_complete_file(file: BinaryIO, name: str) -> None:
    """The same for an open file, of which only the headers of its elements are read."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_matroska = file.read(4) == MATROSKA_START
    needed = _matroska_length(file) if is_matroska else _mp4_length(file, size)
    if needed > size:
        raise MediaError(f"{name} is cut short ({size} of {needed} bytes): copy or download it again")


def _mp4_length(file: BinaryIO, size: int) -> int:
    """ISO/IEC 14496-12 section 4.2: a box is its length (4 bytes, or 1 and then 8), its type, its content."""
    start = 0
    while start < size:
        file.seek(start)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        # Length 0 says "up to the end of the file".
        if header[4:8] not in MP4_BOXES or length < 8:
            return size
        start += length
    return start


def _matroska_length(file: BinaryIO) -> int:
    """End of the Segment element; 0 when it does not say."""
    file.seek(4)
    header_length = _read_vint(file)
    if header_length is None:
        return 0
    file.seek(header_length, io.SEEK_CUR)
    if file.read(4) != MATROSKA_SEGMENT:
        return 0
    length = _read_vint(file)
    return 0 if length is None else file.tell() + length


def _read_vint(file: BinaryIO) -> int | None:
    """Element length, RFC 8794 section 4; all ones means unknown (None)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    num_bytes = 9 - first[0].bit_length()
    mask = (1 << (8 - num_bytes)) - 1
    value = int.from_bytes(bytes([first[0] & mask]) + file.read(num_bytes - 1), "big")
    return None if value == (1 << (7 * num_bytes)) - 1 else value

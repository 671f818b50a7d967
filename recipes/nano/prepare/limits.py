"""Data of unknown origin is unpacked no further than this."""

from __future__ import annotations

import zlib

from prepare.errors import PrepareError

# The largest file that is used is an Enlightenment background of 51 MB, or the film of 50 MB.
MAX_FILE_BYTES = 128 << 20
MAX_PIXELS = 40_000_000


def zstd_reader(stream):
    """A readable stream of what `stream` holds in Zstandard; Python has that built in from 3.14 on."""
    try:
        from compression import zstd
    except ImportError:
        try:
            import zstandard
        except ImportError as error:
            raise PrepareError("this package is packed with Zstandard: pip install zstandard") from error
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(stream)
    return zstd.ZstdFile(stream)


def inflate(data: bytes, size: int, name: str) -> bytes:
    """zlib data that must hold exactly `size` bytes."""
    if size > MAX_FILE_BYTES:
        raise PrepareError(f"{name} says that it holds {size} bytes, more than {MAX_FILE_BYTES}: it is damaged")
    inflater = zlib.decompressobj()
    try:
        # One byte more than promised is asked for: enough to see that there is more.
        out = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise PrepareError(f"{name} is damaged ({error})") from error
    if len(out) != size or not inflater.eof:
        raise PrepareError(f"{name} is damaged: {size} bytes were promised, it holds {len(out)} or more")
    return out

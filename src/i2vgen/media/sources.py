"""Where pictures and videos come from: local files, http(s) and data URLs, bytes; all within bounds."""

from __future__ import annotations

import base64
import binascii
import http.client
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from urllib.request import Request, urlopen

MAX_SOURCE_BYTES = 256 * 1024 * 1024
URL_TIMEOUT_SECONDS = 20.0
URL_TOTAL_SECONDS = 120.0


class MediaError(ValueError):
    """A picture, video or settings block that cannot be read or written; the message has the remedy."""


def describe(source: Any) -> str:
    """A short name of `source` for messages: no URL query (it may hold a key), no long base64 text."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"data URL ({len(source)} characters)"
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        source = source.split("?", 1)[0]
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        text = text if isinstance(text, str) else os.fsdecode(text)
        return repr(text if len(text) <= 160 else text[:120] + "...")
    if isinstance(source, bytes | bytearray | memoryview):
        return f"bytes ({len(source)} long)"
    if getattr(source, "shape", None) is not None:
        return f"{type(source).__name__} of shape {tuple(source.shape)}"
    return type(source).__name__


def local_file(path: str | os.PathLike) -> Path:
    """Path of a readable, non-empty regular file ("~" is expanded).

    Raises `MediaError` if it is missing, a directory, a device, empty, or may not be read.
    """
    name = describe(path)
    try:
        file = Path(path).expanduser()
        if not file.exists():
            raise MediaError(f"{name} does not exist: check the path (looked in {str(Path.cwd())!r})")
        if file.is_dir():
            raise MediaError(f"{name} is a directory: name a file in it")
        if not file.is_file():
            raise MediaError(f"{name} is not a regular file: copy its content to one first")
        size = file.stat().st_size
    except MediaError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{name} cannot be used as a path ({error}): check it") from error
    if size == 0:
        raise MediaError(f"{name} is empty (0 bytes): copy or download it again")
    if not os.access(file, os.R_OK):
        raise MediaError(f"{name} may not be read: change its permissions")
    return file


def read_source(source: Any, max_bytes: int = MAX_SOURCE_BYTES) -> Path | bytes:
    """Resolve what a user gave to a local file or to bytes.

    `source` is a path, an http(s) URL, a `data:` URL, bytes, or a binary file object. Raises `MediaError`
    for anything else, for more than `max_bytes`, and for a URL that does not answer in time.
    """
    if isinstance(source, str):
        if source[:5].lower() == "data:":
            return _within(_decode_data_url(source, max_bytes), source, max_bytes)
        if source[:8].lower().startswith(("http://", "https://")):
            return _within(_download(source, max_bytes), source, max_bytes)
    if isinstance(source, str | os.PathLike):
        return local_file(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _within(bytes(source), source, max_bytes)
    if callable(getattr(source, "read", None)):
        try:
            data = source.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise MediaError(f"{describe(source)} cannot be read ({error}): open it again") from error
        if not isinstance(data, bytes):
            raise MediaError(f"{describe(source)} gives {type(data).__name__}, not bytes: open it in mode 'rb'")
        return _within(data, source, max_bytes)
    raise MediaError(f"source is a {type(source).__name__}: give a path, URL, bytes, file, image, array or tensor")


def _within(data: bytes, source: Any, max_bytes: int) -> bytes:
    if not data:
        raise MediaError(f"{describe(source)} is empty (0 bytes): nothing to decode")
    if len(data) > max_bytes:
        raise MediaError(f"{describe(source)} is larger than {max_bytes} bytes: give a smaller file")
    return data


def _decode_data_url(url: str, max_bytes: int) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise MediaError(f"{describe(url)} has no comma: write data:image/png;base64,<content>")
    if len(payload) > 4 * max_bytes:
        raise MediaError(f"{describe(url)} is larger than {max_bytes} bytes: give a file instead")
    data = unquote_to_bytes(payload)
    if not header.lower().endswith(";base64"):
        return data
    data = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise MediaError(f"{describe(url)} is not valid base64 ({error}): encode the file again") from error


def _download(url: str, max_bytes: int) -> bytes:
    deadline = time.monotonic() + URL_TOTAL_SECONDS
    chunks, size = [], 0
    try:
        request = Request(url, headers={"User-Agent": "i2vgen", "Accept": "image/*, video/*, */*;q=0.5"})
        with urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            while size <= max_bytes and (chunk := response.read(min(1 << 18, max_bytes + 1 - size))):
                chunks.append(chunk)
                size += len(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {URL_TOTAL_SECONDS:.0f} s")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MediaError(f"{describe(url)} cannot be downloaded ({error}): check the address") from error
    return b"".join(chunks)

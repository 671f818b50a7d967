"""A stored file as an answer: whole or a byte range, from any store (RFC 9110, one range)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.utils import formatdate
from itertools import chain
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from i2vgen.server.errors import ApiError
from i2vgen.server.files import FileMissingError, FileStore
from i2vgen.server.jobs import Job


def file_response(request: Request, files: FileStore, job: Job, variant: str) -> Response:
    """File `variant` of a completed job. Raises ApiError 404 if the store has lost it, 416 for no such range."""
    file: dict[str, Any] = job.files[variant]
    size, etag = file["bytes"], f'"{file["sha256"][:32]}"'
    suffix = file["name"].rsplit(".", 1)[-1]
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Last-Modified": formatdate(job.completed_at, usegmt=True),
        "Content-Disposition": f'inline; filename="{job.id}.{suffix}"',
        "Cache-Control": "private, max-age=3600",
    }
    if etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", etag) != etag:
        wanted = None
    part = None if wanted is None else byte_range(wanted, size)
    start, end = part or (0, size)
    status = 200 if part is None else 206
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file["type"])
    try:
        pieces = _begun(files.read(job.id, file["name"], start, end))
    except (FileMissingError, OSError) as error:
        raise ApiError(404, "the file of this video is gone", "content_gone") from error
    return StreamingResponse(pieces, status, headers, media_type=file["type"])


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """(first byte, one after the last) of a Range header; None, the whole, for what is no single byte range.

    Raises ApiError 416 for a range beyond the file.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", text.replace(" ", ""), re.ASCII)
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    if start >= size or start >= end:
        raise ApiError(416, f"Range {text[:60]!r}: the file has {size} bytes", "invalid_range")
    return start, end


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, the first read already: what cannot be opened is an error and not a broken answer."""
    first = next(pieces, b"")
    return chain([first], pieces)

"""The body of a request: read within bounds, form or JSON, into fields and a picture."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from i2vgen.server.config import Limits
from i2vgen.server.errors import ApiError

MAX_FIELDS = 64
PICTURE = "input_reference"
# How the picture's data URL is called by clients that flatten objects into form fields, and by other servers.
PICTURE_URLS = (f"{PICTURE}[image_url]", f"{PICTURE}.image_url", "image_reference")


@dataclass(frozen=True)
class Body:
    """`picture`: bytes of a file or the text of a data URL. `digest`: of all of it, to tell a repeat from another."""

    fields: dict[str, Any]
    picture: bytes | str
    digest: str


async def read_body(request: Request, limits: Limits) -> Body:
    """Raises ApiError: 408 too slow, 413 too large, 415 of another kind, 400 damaged or without a picture."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        reading = _fields(request, _bounded(request, limits))
        fields = await asyncio.wait_for(reading, limits.body_seconds or None)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"the body did not arrive in {limits.body_seconds:g} s", "timeout") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the body was cut short", "invalid_body") from error
    picture = fields.pop(PICTURE, None)
    for name in PICTURE_URLS:
        picture = fields.pop(name, None) if picture in (None, b"", "") else picture
    if isinstance(picture, str) and picture.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            picture = json.loads(picture)
    if isinstance(picture, dict):
        picture = picture.get("image_url")
    if not picture or not isinstance(picture, bytes | str):
        message = f"{PICTURE}: give the picture to animate, as a file or as a data:image/...;base64 URL"
        raise ApiError(400, message, "missing_required_parameter", PICTURE)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=repr).encode("utf-8", "backslashreplace"))
    digest.update(picture if isinstance(picture, bytes) else picture.encode("utf-8", "backslashreplace"))
    return Body(fields, picture, digest.hexdigest())


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is larger than {limits.max_body_bytes} bytes: send less", "body_too_large")


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.max_body_bytes:
            raise _too_large(limits)
        yield chunk


async def _fields(request: Request, stream: AsyncGenerator[bytes, None]) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(b"".join([chunk async for chunk in stream]))
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(415, "send multipart/form-data, or application/json", "unsupported_media_type")
    try:
        form = await _parse_form(request.headers, stream, kind)
    except MultiPartException as error:
        raise ApiError(400, f"the form is damaged: {error.message}", "invalid_body") from error
    except (ValueError, KeyError, LookupError, AssertionError) as error:
        raise ApiError(400, "the form is damaged: send it again", "invalid_body") from error
    try:
        return await _from_form(form)
    finally:
        await form.close()


async def _parse_form(headers: Headers, stream: AsyncGenerator[bytes, None], kind: str) -> FormData:
    if kind == "application/x-www-form-urlencoded":
        return await FormParser(headers, stream).parse()
    # A picture may come as the text of a data URL: the bound is that of the whole.
    return await MultiPartParser(headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=1 << 62).parse()


async def _from_form(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ApiError(400, f"{name[:60]!r} is given twice: give it once", "invalid_body", name[:60])
        if isinstance(value, UploadFile) and name != PICTURE:
            raise ApiError(400, f"{name[:60]!r} is a file: only {PICTURE} is one", "invalid_body", name[:60])
        fields[name] = await value.read() if isinstance(value, UploadFile) else value
    return fields


def _from_json(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is not valid JSON", "invalid_body") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is not a JSON object", "invalid_body")
    return fields

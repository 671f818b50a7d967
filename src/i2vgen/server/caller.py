"""Who calls: the key of a request, and whether it calls too often."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from i2vgen.server.errors import ApiError
from i2vgen.server.keys import Key
from i2vgen.server.service import Service


@dataclass(frozen=True)
class Caller:
    """`owner` is the key's id, "" where the service runs without keys: rates are of keys. Limits of 0 are none."""

    owner: str
    videos_per_minute: int
    max_queued: int


async def caller(request: Request) -> Caller:
    """Raises ApiError 401 without a valid key, where keys are used, and 429 for a key that calls too often."""
    service: Service = request.app.state.service
    key = await run_in_threadpool(_key, service, request.headers.get("authorization", ""))
    limits = service.config.limits
    if key is None:
        return Caller("", 0, limits.max_queued_per_key)
    request.state.owner = key.id
    check_rate(service, key.id, "calls", _own(key.requests_per_minute, limits.requests_per_minute))
    return Caller(
        key.id,
        _own(key.videos_per_minute, limits.videos_per_minute),
        _own(key.max_queued, limits.max_queued_per_key),
    )


def check_rate(service: Service, owner: str, kind: str, per_minute: int) -> None:
    """Raises ApiError 429 saying when to come again."""
    if seconds := service.limiter.wait_seconds(owner, kind, per_minute):
        message = f"more than {per_minute} {kind} in a minute: wait {seconds:.0f} s"
        raise ApiError(429, message, "rate_limit_exceeded", retry_after=seconds)


def _own(of_key: int | None, of_service: int) -> int:
    return of_service if of_key is None else of_key


def _key(service: Service, authorization: str) -> Key | None:
    required = service.config.require_keys
    if required is False or (required is None and not service.keys.is_used()):
        return None
    kind, _, text = authorization.partition(" ")
    if kind.lower() != "bearer" or not text.strip():
        message = "no API key: send it as the header Authorization: Bearer KEY"
        raise ApiError(401, message, "missing_api_key")
    key = service.keys.verify(text.strip())
    if key is None:
        raise ApiError(401, "this API key is not known, or was revoked", "invalid_api_key")
    return key

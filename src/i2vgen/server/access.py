"""What holds for every call: its id, a log line, secure headers, and where it may come from."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from i2vgen.server.config import LOOPBACK
from i2vgen.server.errors import error_document
from i2vgen.server.service import Service

logger = logging.getLogger("i2vgen.server.access")

SECURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-site",
    "Cache-Control": "private, no-store",
}
UNKNOWN_ROUTE = "(no route)"

Scope, Message = MutableMapping[str, Any], MutableMapping[str, Any]


class Access:
    """ASGI middleware around everything else."""

    def __init__(self, app: Callable, service: Service):
        self.app, self.service = app, service
        self.hosts = {*LOOPBACK, service.config.host, *service.config.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Callable, send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, begin, status = Headers(scope=scope), time.perf_counter(), 500
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given, re.ASCII) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-Id"] = request_id
                for name, value in SECURE_HEADERS.items():
                    added.setdefault(name, value)
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await refusal(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self.service.metrics.answered(scope["method"], route, status, seconds)
            owner = scope["state"].get("owner") or "-"
            line = "%s %s %d %.1f ms key=%s request=%s"
            logger.info(line, scope["method"], route, status, seconds * 1000, owner, request_id)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        """Against pages of other sites that reach a service on this machine through its user's browser."""
        origin = headers.get("origin")
        is_foreign = origin is not None and not self._is_own(origin, headers)
        if is_foreign and "*" not in self.service.config.cors_origins and scope["method"] != "OPTIONS":
            message = "this origin may not call the service from a browser: allow it with --cors-origin"
            return JSONResponse(error_document(403, message, "origin_not_allowed"), 403)
        if self.service.config.is_loopback or self.service.config.allowed_hosts:
            name = _host_name(headers.get("host", ""))
            if name not in self.hosts:
                message = "this Host name is not of the service: name it with --allowed-host"
                return JSONResponse(error_document(421, message, "unknown_host"), 421)
        return None

    def _is_own(self, origin: str, headers: Headers) -> bool:
        return origin in self.service.config.cors_origins or origin.split("://", 1)[-1] == headers.get("host")


def _host_name(netloc: str) -> str:
    """Without the port; an IPv6 address without its brackets."""
    if netloc.startswith("["):
        return netloc[1:].split("]", 1)[0].lower()
    return netloc.rsplit(":", 1)[0].lower() if netloc.count(":") == 1 else netloc.lower()

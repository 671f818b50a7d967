"""What stands before the page: who may come in, what is answered at all, and what the browser may load.

Pure ASGI, so that it covers everything that Gradio serves.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any

from i2vgen.web.sessions import Session, Sessions

# Nothing but this machine, whatever a library's page asks for. Gradio's components need inline and eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
    "cross-origin-opener-policy": "same-origin",
}
# What the page needs of Gradio; its upload, file, proxy and API pages are not among them.
SERVED = ("/studio/", "/assets/", "/static/", "/gradio_api/queue/", "/gradio_api/heartbeat/", "/svelte/")
SERVED_EXACTLY = ("/", "/config", "/config/", "/theme.css", "/gradio_api/startup-events", "/favicon.ico")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
WRONG_PASSWORD_SECONDS = 0.7

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Guard:
    """Middleware: host names, password, session cookie, security headers.

    Args:
        hosts: names that requests may be addressed to; None for any. A page of elsewhere whose name was made to
            mean this machine (DNS rebinding) is refused by it.
        login: (user, password), or None for no password.
        cookie: name of the session's cookie.
    """

    def __init__(
        self,
        app: Any,
        sessions: Sessions,
        cookie: str,
        hosts: tuple[str, ...] | None = LOOPBACK_NAMES,
        login: tuple[str, str] | None = None,
    ):
        self.app, self.sessions, self.cookie, self.hosts, self.login = app, sessions, cookie, hosts, login

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if self.hosts is not None and host_name(headers.get("host", "")) not in self.hosts:
            await answer(send, 421, "This studio is not called so: use the address that it printed.")
        elif not self.is_let_in(headers.get("authorization", "")):
            await asyncio.sleep(WRONG_PASSWORD_SECONDS if "authorization" in headers else 0)
            realm = {"www-authenticate": 'Basic realm="i2vgen studio", charset="UTF-8"'}
            await answer(send, 401, "This studio asks for a user name and a password.", realm)
        elif path not in SERVED_EXACTLY and not path.startswith(SERVED):
            await answer(send, 404, "There is nothing here.")
        elif method not in ("GET", "HEAD") and is_foreign(headers):
            await answer(send, 403, "Requests from other sites are refused.")
        else:
            session, is_new = self.session_of(headers, is_page=path == "/")
            scope["studio_session"] = session
            cookie = session.token if session is not None and is_new else None
            await self.app(scope, receive, self.adding_headers(send, cookie))

    def is_let_in(self, authorization: str) -> bool:
        if self.login is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        return hmac.compare_digest(given, ":".join(self.login).encode())

    def session_of(self, headers: dict[str, str], is_page: bool) -> tuple[Session | None, bool]:
        """(session, whether it is new); a new one only where the page itself is asked for."""
        session = self.sessions.get(cookie_of(headers.get("cookie", ""), self.cookie))
        if session is None and is_page:
            return self.sessions.new(), True
        return session, False

    def adding_headers(self, send: Send, token: str | None) -> Send:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = dict(HEADERS)
                if token is not None:
                    own["set-cookie"] = f"{self.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
                kept = [(k, v) for k, v in message.get("headers", []) if k.decode("latin-1").lower() not in HEADERS]
                message["headers"] = kept + [(k.encode(), v.encode()) for k, v in own.items()]
            await send(message)

        return sending


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def is_foreign(headers: dict[str, str]) -> bool:
    """Whether a browser says that another site made the request."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        return True
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def cookie_of(header: str, name: str) -> str | None:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return None
    return found.value if found is not None else None


async def answer(send: Send, status: int, text: str, more: dict[str, str] | None = None) -> None:
    headers = {"content-type": "text/plain; charset=utf-8", **HEADERS, **(more or {})}
    listed = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": (text + "\n").encode()})

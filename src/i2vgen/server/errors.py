"""Errors of the API, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

INVALID, AUTHENTICATION, RATE, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)


class ApiError(Exception):
    """Becomes `{"error": {...}}` with `status`. `message` is for the caller: it names no path and no trace."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def document(self) -> dict[str, Any]:
        return error_document(self.status, self.message, self.code, self.param)


def error_document(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kinds = {401: AUTHENTICATION, 403: AUTHENTICATION, 429: RATE}
    kind = SERVER if status >= 500 else kinds.get(status, INVALID)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_field(param: str, value: Any, remedy: str) -> ApiError:
    """400 naming the field, what it was (shortened) and what to give."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ApiError(400, f"{param} {shown}: {remedy}", code="invalid_value", param=param)

"""The studio as a web application, and its run from start to end. No telemetry, no share link, nothing from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from i2vgen.web.actions import Studio, new_cookie_name
from i2vgen.web.files import add_routes
from i2vgen.web.guard import LOOPBACK_NAMES, Guard
from i2vgen.web.sessions import Sessions

if TYPE_CHECKING:
    from i2vgen.pipelines import CascadePipeline

MAX_UPLOAD_BYTES = 64_000_000
# Set before Gradio is imported: it asks its makers for versions, and counts its runs, otherwise.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def build_app(
    studio: Studio,
    sessions: Sessions,
    hosts: tuple[str, ...] | None = LOOPBACK_NAMES,
    login: tuple[str, str] | None = None,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
) -> Guard:
    """The ASGI application. `hosts`: names it may be addressed by, None for any."""
    os.environ.update(QUIET)
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.folder / "gradio")
    import gradio as gr
    from fastapi import FastAPI

    from i2vgen.web.page import HEAD, build_page, theme

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, max_upload_bytes, studio.form_of)
    app = gr.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=1024,
        theme=theme(),
        head=HEAD,
    )
    return Guard(app, sessions, new_cookie_name(), hosts, login)


def run_studio(
    cascade: CascadePipeline,
    host: str,
    opened: socket.socket,
    login: tuple[str, str] | None = None,
    flags: dict[str, str] | None = None,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
) -> None:
    """Serve the studio on an `opened_socket` until it is interrupted; then stop what runs and remove all files."""
    import uvicorn

    is_local = host in LOOPBACK_NAMES
    sessions, studio = Sessions(), Studio(cascade, flags)
    app = build_app(studio, sessions, LOOPBACK_NAMES if is_local else None, login, max_upload_bytes)
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=3)
    # uvicorn ends in order and then raises the signal again: that must not skip the cleaning up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[opened])
    finally:
        studio.line.close()
        sessions.close()


def opened_socket(host: str, port: int) -> socket.socket:
    """A socket to listen on, so that a port in use is known before a model is loaded. Raises ValueError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(f"--host {host} --port {port}: cannot listen there ({error}); give another --port") from error
    return listener

"""Addresses of the studio's own: a session's clips, and uploads into it. Gradio's file pages are not used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from i2vgen.media import load_video, read_settings, write_video
from i2vgen.web.sentences import sentence_of
from i2vgen.web.sessions import MAX_SESSION_BYTES, Loaded, Session
from i2vgen.web.uploads import EXAMPLES, photo_of, shown_name, take_photo, take_settings, take_video

STATIC = Path(__file__).parent / "static"
TYPES = {".mp4": "video/mp4", ".gif": "image/gif", ".jpg": "image/jpeg"}
PRIVATE = {"cache-control": "private, max-age=3600"}
GIF_LOCK = threading.Lock()  # one at a time: each holds a video's frames
ENDED = "The studio was started anew or forgot this page: reload it."


def add_routes(app: FastAPI, max_upload_bytes: int, form_of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Put them before Gradio's. `form_of` turns settings into the form's values, or raises ValueError."""

    @app.get("/studio/static/{name}")
    def static(name: str) -> Response:
        path = STATIC / name
        return FileResponse(path) if path.parent == STATIC and path.is_file() else Response(status_code=404)

    @app.get("/studio/examples/{key}.jpg")
    def example(key: str) -> Response:
        return FileResponse(EXAMPLES[key].path, headers=PRIVATE) if key in EXAMPLES else Response(status_code=404)

    @app.get("/studio/clips/{name}")
    def clip(request: Request, name: str, download: str | None = None) -> Response:
        session: Session | None = request.scope.get("studio_session")
        path = None if session is None else session.path(name)
        if session is not None and path is None and name.endswith(".gif"):
            path = made_gif(session, name)
        if path is None or path.suffix not in TYPES:
            return Response("This file is gone.", status_code=404, media_type="text/plain")
        as_file = None if download is None else f"{shown_name(download)[:60]}{path.suffix}"
        return FileResponse(path, media_type=TYPES[path.suffix], filename=as_file, headers=PRIVATE)

    @app.post("/studio/upload/{kind}")
    async def upload(request: Request, kind: str) -> Response:
        session: Session | None = request.scope.get("studio_session")
        if session is None:
            return JSONResponse({"error": ENDED}, 403)
        readers = {"photo": take_photo, "video": take_video}
        if kind not in (*readers, "settings"):
            return JSONResponse({"error": "There is nothing here."}, 404)
        name = shown_name(unquote(request.headers.get("x-file-name", "")))
        path = session.folder / session.new_name("upload", "")
        try:
            if session.num_bytes > MAX_SESSION_BYTES:
                raise ValueError("This session holds a gigabyte already: clear it first, at the end of the page.")
            await receive(request, path, max_upload_bytes)
            if kind == "settings":
                found = await asyncio.to_thread(take_settings, path, name)
                session.loaded = Loaded(name, form_of(found), photo_of(found))
                return JSONResponse({"name": name})
            await asyncio.to_thread(readers[kind], session, path, name)
            return JSONResponse({"name": name})
        except (ValueError, OSError, MemoryError) as error:
            return JSONResponse({"error": sentence_of(error)}, 400)
        finally:
            path.unlink(missing_ok=True)


async def receive(request: Request, path: Path, max_bytes: int) -> None:
    """Write a request's body to a file as it comes. Raises ValueError for one too long, or empty."""
    size, too_long = 0, f"The file is larger than {max_bytes / 1e6:.0f} MB: choose a smaller one."
    if int(request.headers.get("content-length") or 0) > max_bytes:
        raise ValueError(too_long)
    with path.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise ValueError(too_long)
            file.write(chunk)
    if size == 0:
        raise ValueError("The file is empty: choose another one.")


def made_gif(session: Session, name: str) -> Path | None:
    """The GIF of a clip, written when it is first asked for; the settings go along."""
    source = session.path(Path(name).with_suffix(".mp4").name)
    if source is None:
        return None
    with GIF_LOCK:
        target = session.folder / Path(name).name
        if not target.is_file():
            video = load_video(source)
            write_video(target, video.frames, min(video.fps, 50.0), settings=read_settings(source))
        return target

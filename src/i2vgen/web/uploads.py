"""What visitors bring: pictures and videos, bounded before they are decoded, checked by their content."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from i2vgen.media import MediaError, load_image, load_video, read_settings
from i2vgen.media.provenance import source_record
from i2vgen.web.making import keep
from i2vgen.web.sessions import MAX_IMAGE_PIXELS, MAX_VIDEO_FRAMES, MAX_VIDEO_PIXELS, Footage, Photo, Session

PREVIEW_SIDE = 960
PHOTOS = Path(__file__).parent / "photos"


@dataclass(frozen=True)
class Example:
    """A photo that comes with the package, and a line that suits it."""

    key: str
    title: str
    prompt: str

    @property
    def path(self) -> Path:
        return PHOTOS / f"{self.key}.jpg"


EXAMPLES = {
    example.key: example
    for example in (
        Example("castle", "Castle", "a castle in the mountains, the camera pans to the right"),
        Example("balloon", "Balloon", "a hot air balloon, the camera zooms slowly in"),
        Example("goldfish", "Goldfish", "a goldfish, the camera pans to the left"),
        Example("memorial", "Memorial", "a memorial at dusk, the camera zooms out"),
        Example("dogs", "Dogs", "two dogs at a window, the camera tilts up"),
    )
}


def take_photo(session: Session, path: Path, name: str) -> Photo:
    """Read a picture and keep it as the session's. Raises MediaError with a sentence if it is none, or too large."""
    image = named(name, lambda: load_image(path, max_pixels=MAX_IMAGE_PIXELS))
    file = session.folder / session.new_name("source", "")
    shutil.copyfile(path, file)
    preview = image.copy()
    preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    shown = session.new_name("photo", ".jpg")
    preview.save(session.folder / shown, quality=86)
    sha256 = source_record(name, np.asarray(image))["sha256"]
    with session.lock:
        session.photo = Photo(file, image.size, name, shown, sha256)
        session.notice = ""
        session.changed()
    return session.photo


def take_video(session: Session, path: Path, name: str) -> Footage:
    """Read a video to refine, at most `MAX_VIDEO_FRAMES` of it, and keep it as the session's. Raises MediaError."""
    video = named(name, lambda: load_video(path, max_frames=MAX_VIDEO_FRAMES + 1, max_pixels_total=MAX_VIDEO_PIXELS))
    frames, note = video.frames[:MAX_VIDEO_FRAMES], ""
    if len(video.frames) > MAX_VIDEO_FRAMES:
        note = f"Only the first {MAX_VIDEO_FRAMES} frames are taken."
    file = session.folder / session.new_name("source", "")
    shutil.copyfile(path, file)
    # Written anew, so that every browser can play it.
    clip = keep(session, "given", frames, min(max(video.fps, 1.0), 120.0), {"kind": "given"}, time.monotonic())
    with session.lock:
        session.footage = Footage(file, clip, source_record(name, frames) | {"path": name}, note)
        session.notice = ""
        session.changed()
    return session.footage


def take_settings(path: Path, name: str) -> dict[str, Any]:
    """The settings that a video made by i2vgen keeps. Raises MediaError if it has none."""
    return named(name, lambda: read_settings(path))


def photo_of(settings: dict[str, Any]) -> tuple[str, str]:
    """(name, sha256) of the picture that settings tell, as far as they do."""
    image = settings.get("image")
    image = image if isinstance(image, dict) else {}
    name, sha256 = image.get("path"), image.get("sha256")
    return shown_name(name) if isinstance(name, str) else "", sha256 if isinstance(sha256, str) else ""


def named(name: str, read: Any) -> Any:
    """`read()`, whose errors speak of the file by the visitor's name for it."""
    try:
        return read()
    except MediaError as error:
        text = str(error)
        start = text.find("'")
        stop = text.find("'", start + 1)
        raise MediaError(f"{name!r}{text[stop + 1 :]}" if start == 0 and stop > 0 else text) from error


def shown_name(name: str) -> str:
    """The last part of a file's name as a browser tells it, printable and short."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if c.isprintable() and c not in "'\"<>").strip()
    return kept[-80:] or "file"

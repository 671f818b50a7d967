"""Who is at the page: each visitor's photo, takes, results and files, kept apart and thrown away in the end."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2vgen.media import load_image, load_video

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from i2vgen.web.jobs import Job
    from i2vgen.web.wishes import Wish

FOLDER_PREFIX = "i2vgen-studio-"
PID_FILE = "pid"
MAX_SESSIONS = 100
MAX_HISTORY = 40  # entries of a session; the oldest go, with their files
IDLE_SECONDS = 12 * 3600.0
MAX_SESSION_BYTES = 1 << 30  # uploads are refused beyond it
MAX_IMAGE_PIXELS = 50_000_000
MAX_VIDEO_PIXELS = 160_000_000  # of all frames together
MAX_VIDEO_FRAMES = 240


@dataclass
class Clip:
    """A video that is kept; `name` is that of its MP4 in the session's folder."""

    name: str
    poster: str
    seed: int
    num_frames: int
    width: int
    height: int
    fps: float
    seconds: float
    settings: dict[str, Any]
    command: str = ""  # the command line that makes the same
    digest: str = ""  # of its pixels


@dataclass
class Takes:
    """Base-stage clips of one wish, one a seed; None where one is still to come."""

    key: str
    wish: Wish
    photo: Photo
    clips: list[Clip | None]
    picked: int | None = None  # index
    is_over: bool = False


@dataclass
class Result:
    """A refined video beside what it was before."""

    key: str
    clip: Clip
    before: Clip
    prompt: str
    note: str = ""


@dataclass
class Photo:
    """The picture to animate: `file` has what was given, `name` is what the visitor calls it."""

    file: Path
    size: tuple[int, int]
    name: str
    preview: str
    sha256: str  # of its pixels

    @property
    def source(self) -> dict[str, str]:
        """What settings keep of it."""
        return {"path": self.name, "sha256": self.sha256}

    def load(self) -> Image.Image:
        return load_image(self.file, max_pixels=MAX_IMAGE_PIXELS)


@dataclass
class Footage:
    """A video to refine: its file, the clip that shows it, what settings keep of it."""

    file: Path
    clip: Clip
    source: dict[str, Any]
    note: str = ""

    def load(self) -> np.ndarray:
        """uint8 (f h w 3), at most `MAX_VIDEO_FRAMES`"""
        video = load_video(self.file, max_frames=MAX_VIDEO_FRAMES, max_pixels_total=MAX_VIDEO_PIXELS)
        return video.frames


@dataclass
class Loaded:
    """Settings that were read from a video: the form's values, and (name, sha256) of its photo."""

    name: str
    form: dict[str, Any]
    photo: tuple[str, str]


@dataclass
class Session:
    token: str
    folder: Path
    photo: Photo | None = None
    footage: Footage | None = None  # to refine
    takes: Takes | None = None
    result: Result | None = None
    history: list[Takes | Result] = field(default_factory=list)
    loaded: Loaded | None = None
    job: Job | None = None
    notice: str = ""  # what went wrong last, for the page
    seen: float = field(default_factory=time.monotonic)
    version: int = 0  # counts what the page shows
    lock: threading.RLock = field(default_factory=threading.RLock)

    def new_name(self, stem: str, suffix: str) -> str:
        return f"{stem}-{secrets.token_hex(5)}{suffix}"

    def path(self, name: str) -> Path | None:
        """A file of this session, or None; `name` comes from an address and is not believed."""
        if not name or Path(name).name != name or name.startswith("."):
            return None
        path = self.folder / name
        return path if path.is_file() and not path.is_symlink() else None

    def changed(self) -> None:
        self.version += 1

    def remember(self, entry: Takes | Result) -> None:
        """Put first in the history. What falls out at its end is forgotten with its files."""
        with self.lock:
            self.history = [entry, *(e for e in self.history if e is not entry)]
            self.history, gone = self.history[:MAX_HISTORY], self.history[MAX_HISTORY:]
            for old in gone:
                self._remove_files(old)
            self.changed()

    def forget_all(self) -> None:
        """Remove all that was made and given."""
        with self.lock:
            self.history, self.takes, self.result, self.photo, self.footage = [], None, None, None, None
            self.notice = ""
            for file in self.folder.iterdir():
                file.unlink(missing_ok=True)
            self.changed()

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def find(self, key: str) -> Takes | Result | None:
        return next((entry for entry in self.history if entry.key == key), None)

    def _remove_files(self, entry: Takes | Result) -> None:
        kept = {clip.name for other in self.history for clip in clips_of(other)}
        shown = (self.takes, self.result)
        kept |= {clip.name for other in shown if other is not None for clip in clips_of(other)}
        for clip in clips_of(entry):
            if clip.name not in kept:
                for name in (clip.name, clip.poster, Path(clip.name).with_suffix(".gif").name):
                    (self.folder / name).unlink(missing_ok=True)


def clips_of(entry: Takes | Result) -> list[Clip]:
    if isinstance(entry, Result):
        return [entry.clip, entry.before]
    return [clip for clip in entry.clips if clip is not None]


class Sessions:
    """All of them, in one private temporary folder that is removed at the end of the process."""

    def __init__(self):
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        (self.folder / PID_FILE).write_text(str(os.getpid()))
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def new(self) -> Session:
        with self._lock:
            self._drop_old()
            token = secrets.token_urlsafe(32)
            folder = self.folder / secrets.token_hex(8)
            folder.mkdir(mode=0o700)
            self._sessions[token] = Session(token, folder)
            return self._sessions[token]

    def get(self, token: str | None) -> Session | None:
        session = self._sessions.get(token or "")
        if session is not None:
            session.seen = time.monotonic()
        return session

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _drop_old(self) -> None:
        idle = [s for s in self._sessions.values() if s.job is None or not s.job.is_active]
        idle.sort(key=lambda s: (s.photo is not None or bool(s.history), s.seen))
        surplus = len(self._sessions) - MAX_SESSIONS + 1
        for index, session in enumerate(idle):
            if index < surplus or time.monotonic() - session.seen > IDLE_SECONDS:
                del self._sessions[session.token]
                shutil.rmtree(session.folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the folders of studios that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            os.kill(int((folder / PID_FILE).read_text()), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, AttributeError):
            continue  # someone's who lives, or a system without such numbers

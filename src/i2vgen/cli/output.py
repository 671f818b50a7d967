"""Outputs: checked before any work, written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2vgen.cli.report import WriteError, counted

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_TEXT_BYTES = 48 * 1024  # of prompts, escaped; a file keeps 64 KB of settings
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(path: str, is_forced: bool) -> None:
    """Raise ValueError if `write_video` could not write to `path`, or would replace something unasked."""
    from i2vgen.media import check_writable
    from i2vgen.media.frame_series import frame_files

    check_writable(path)
    target = Path(path).expanduser()
    is_series = target.is_dir() or target.suffix.lower() in ("", ".png")
    exists = bool(frame_files(target)) if is_series else target.exists()
    if exists and not is_forced:
        raise ValueError(f"output {path!r} exists: choose another name, or replace it with --force")


def check_picture_output(path: str, is_forced: bool) -> None:
    """The same for a single picture."""
    from i2vgen.media import check_writable

    target = Path(path).expanduser()
    if target.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"contact sheet {path!r}: use one of the suffixes {', '.join(PICTURE_SUFFIXES)}")
    check_writable(target.with_suffix(".webp"))
    if target.is_dir():
        raise ValueError(f"contact sheet {path!r} is a directory: choose another name")
    if target.exists() and not is_forced:
        raise ValueError(f"contact sheet {path!r} exists: choose another name, or replace it with --force")


def check_fps(path: str, fps: float) -> None:
    """Raise ValueError for a rate that the format of `path` does not have."""
    from i2vgen.media import writers

    writers.check_fps(path, fps)


def check_texts(**texts: str | None) -> None:
    """Raise ValueError if the texts are more than a file can keep beside the video."""
    for name, text in texts.items():
        if text is not None and len(json.dumps(text)) > MAX_TEXT_BYTES // len(texts):
            raise ValueError(f"{name} has {len(text)} characters, more than can be kept with the video: shorten it")


def write_video_file(path: str, frames: np.ndarray, fps: float, settings: dict[str, Any]) -> Path:
    """`i2vgen.media.write_video`; raises WriteError where the machine, not the request, is at fault."""
    from i2vgen.media import MediaError, write_video

    try:
        return write_video(path, frames, fps, settings=settings)
    except MediaError as error:
        if error.__cause__ is None:
            raise
        raise WriteError(str(error)) from error


def write_picture(path: str | Path, image: Image.Image) -> Path:
    """Write a picture under a temporary name, then rename it. Raises WriteError."""
    target = Path(path).expanduser()
    temporary = target.with_name(f".{target.stem[:60]}.{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise WriteError(f"{str(path)!r} could not be written ({error}): free some space") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def video_facts(path: Path, frames: np.ndarray, fps: float) -> dict[str, Any]:
    """What the result says of a written video."""
    count, height, width = frames.shape[:3]
    return {"output": str(path), "frames": count, "width": width, "height": height, "fps": fps}


def summary_line(facts: dict[str, Any], seconds: float) -> str:
    size = f"{facts['width']}x{facts['height']}"
    frames = counted(facts["frames"], "frame")
    return f"{facts['output']}: {frames}, {size}, {facts['fps']:g} fps, made in {seconds:.1f} s"

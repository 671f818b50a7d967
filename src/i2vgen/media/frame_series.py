"""A video as PNG files: a folder of frames, or a series `name_%04d.png`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import Image

FOLDER_PATTERN = "frame_%04d.png"
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FPS_TAG = "i2vgen_fps"
_NUMBER = re.compile(r"%0?(\d?)d")


def frame_name(pattern: str, index: int) -> str:
    """`pattern` with its one %d, %4d or %04d replaced by `index`, zero filled; other % signs stay."""
    return _NUMBER.sub(lambda match: f"{index:0{int(match[1] or 1)}d}", pattern)


def frame_target(path: str | os.PathLike) -> tuple[Path, str]:
    """(folder, pattern) that frames go to: `x_%04d.png` as it is, `x.png` as `x_%04d.png`, else a folder."""
    path = Path(path).expanduser()
    if path.is_dir() or path.suffix.lower() != ".png":
        return path, FOLDER_PATTERN
    if len(_NUMBER.findall(path.name)) == 1:
        return path.parent, path.name
    return path.parent, f"{path.stem}_%04d{path.suffix}"


def frame_files(path: str | os.PathLike) -> list[Path]:
    """Frames of a folder (its pictures, in natural order) or of a series, whichever `path` names; maybe none.

    A `.png` path that is itself a file is that one frame.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            files = [file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES and file.is_file()]
            return sorted((file for file in files if file.name[0] != "."), key=_natural_key)
        if path.suffix.lower() != ".png" or path.is_file() or not path.parent.is_dir():
            return [path] if path.suffix.lower() == ".png" and path.is_file() else []
        folder, pattern = frame_target(path)
        before, digits, after = _NUMBER.split(pattern, maxsplit=1)
        width = int(digits or 1)
        number = rf"(\d{{{width}}}|[1-9]\d{{{width},}})"
        series = re.compile(re.escape(before) + number + re.escape(after))
        return sorted((f for f in folder.iterdir() if series.fullmatch(f.name)), key=_natural_key)
    except (OSError, ValueError):
        return []


def _natural_key(file: Path) -> list:
    parts = re.split(r"(\d+)", file.name)
    return [int(part) if part.isdigit() else part.lower() for part in parts]


def frames_fps(first: Path) -> float | None:
    """Rate that `write_video` noted in the first frame, frames per second; None if there is none."""
    try:
        with Image.open(first) as image:
            fps = float(image.info[FPS_TAG])
    except (KeyError, ValueError, TypeError, OSError):
        return None
    return fps if 0 < fps < 1000 else None

"""Names of the files that a batch writes: stable, unique, and safe on every system."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

FORMATS = ("mp4", "webm", "gif", "webp", "png")
MAX_STEM_BYTES = 120
SLUG_LENGTH = 48
FORBIDDEN = set('<>:"/\\|?*')
# Devices on Windows, whatever the suffix.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def slug(text: str, length: int = SLUG_LENGTH) -> str:
    """Letters and digits of any script in lower case, words joined by "-", whole words as far as `length`."""
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", plain))
    result = words[0][:length] if words else ""
    for word in words[1:]:
        if len(result) + 1 + len(word) > length:
            break
        result += "-" + word
    return result


def automatic_stem(number: int, image: str, prompt: str) -> str:
    """ "0003-castle-the-camera-pans-left" for row 3: its number, the picture's name, the prompt."""
    picture = "" if image[:5].lower() == "data:" else image
    if picture[:8].lower().startswith(("http://", "https://")):
        picture = unquote(urlsplit(picture).path)
    words = [slug(PurePosixPath(picture.replace("\\", "/")).stem, 24), slug(prompt)]
    return _within("-".join([f"{number:04d}", *(word for word in words if word)]))


def given_stem(name: str, default_format: str) -> tuple[str, str]:
    """(stem, format) of a name that a list gives; a known suffix decides the format.

    Raises ValueError for a name that leads to another folder, is not possible on some system, is hidden, or
    is too long.
    """
    stem, dot, suffix = name.rpartition(".")
    if not dot or suffix.lower() not in FORMATS:
        stem, suffix = name, default_format
    suffix = suffix.lower()
    if FORBIDDEN & set(name) or not name.isprintable():
        raise ValueError(f"output {name[:60]!r}: a plain name, without folders or any of {' '.join(sorted(FORBIDDEN))}")
    if not stem or stem[0] in ". " or stem[-1] in ". ":
        raise ValueError(f"output {name[:60]!r}: it may not be empty, nor begin or end with a dot or a space")
    if stem.split(".")[0].strip().lower() in DEVICES:
        raise ValueError(f"output {name[:60]!r}: this name is reserved")
    if suffix == "png" and "." in stem:
        raise ValueError(f"output {name[:60]!r}: png is a folder of frames, with no dot in its name")
    if len(stem.encode("utf-8", "replace")) > MAX_STEM_BYTES:
        raise ValueError(f"output {name[:60]!r}...: longer than {MAX_STEM_BYTES} bytes")
    return stem, suffix


def file_name(stem: str, format: str, repeat: int) -> str:
    """The first repeat has the plain stem, so that more repeats later change no name."""
    stem = stem if repeat == 0 else f"{stem}-r{repeat + 1}"
    return stem if format == "png" else f"{stem}.{format}"


def same_file_key(name: str) -> str:
    """Equal for names that some file system takes for the same: case and accents' spelling."""
    return unicodedata.normalize("NFC", name.casefold())


def _within(stem: str) -> str:
    data = stem.encode()
    return stem if len(data) <= MAX_STEM_BYTES else data[:MAX_STEM_BYTES].decode("utf-8", "ignore").rstrip("-")

"""The settings that made a video, kept inside its file as JSON and read back from it.

Where: MP4 and WebM a container tag `i2vgen`; GIF a comment; WebP the EXIF image description; PNG a text
chunk `i2vgen` of the first frame, and for a folder also `settings.json`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
from PIL import Image

from i2vgen.media.frame_series import frame_files
from i2vgen.media.images import DECODER_ERRORS, open_image
from i2vgen.media.readers import open_container
from i2vgen.media.sources import MediaError, describe, local_file

MAX_SETTINGS_BYTES = 64 * 1024
SETTINGS_TAG = "i2vgen"
SETTINGS_FILE = "settings.json"
EXIF_IMAGE_DESCRIPTION = 0x010E
# Tells our GIF comment or EXIF description from any other text there.
SETTINGS_PREFIX = "i2vgen:"


def encode_settings(settings: dict[str, Any]) -> str:
    """Settings as JSON text in plain ASCII, which every container keeps unchanged.

    Raises `MediaError` if `settings` is not a dict, holds something that JSON has no form for (NaN too), or
    takes more than 64 KB.
    """
    if not isinstance(settings, dict):
        raise MediaError(f"settings is a {type(settings).__name__}: give a dict")
    for key, value in settings.items():
        if not isinstance(key, str):
            raise MediaError(f"settings key {key!r} is a {type(key).__name__}: use text")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise MediaError(f"settings[{key!r}] cannot be kept as JSON ({error}): use text or numbers") from error
    text = json.dumps(settings, allow_nan=False)
    if len(text) > MAX_SETTINGS_BYTES:
        raise MediaError(f"settings takes {len(text)} bytes, more than {MAX_SETTINGS_BYTES}: leave some out")
    return text


def decode_settings(text: str, name: str) -> dict[str, Any]:
    """The dict that `encode_settings` wrote. Raises `MediaError` if `text` is too long or not such JSON."""
    if len(text) > MAX_SETTINGS_BYTES:
        raise MediaError(f"{name}: settings of {len(text)} bytes, more than {MAX_SETTINGS_BYTES}: not ours")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MediaError(f"{name}: the settings are not valid JSON ({error}): the file was altered") from error
    if not isinstance(settings, dict):
        raise MediaError(f"{name}: the settings are a {type(settings).__name__}, not a dict: not ours")
    return settings


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Settings of a video, animation, PNG frame, folder of frames or `name_%04d.png` series.

    Raises `MediaError` if the file is missing or unreadable, has no settings, or they are invalid.
    """
    name = describe(path)
    text = _stored_text(path, name)
    if text is None:
        raise MediaError(f"{name} has no i2vgen settings: it was made or changed by another program")
    return decode_settings(text, name)


def _stored_text(path: str | os.PathLike, name: str) -> str | None:
    folder = Path(path).expanduser()
    if folder.is_dir() and (folder / SETTINGS_FILE).is_file():
        with (folder / SETTINGS_FILE).open("rb") as file:
            return file.read(MAX_SETTINGS_BYTES + 1).decode("utf-8", "replace")
    frames = frame_files(path)
    file = frames[0] if frames else local_file(path)
    with file.open("rb") as stream:
        header = stream.read(12)
        is_picture = header.startswith((b"\x89PNG", b"GIF8")) or header[:4] + header[8:] == b"RIFFWEBP"
        return _text_of_picture(stream, name) if is_picture else _text_of_video(file, name)


def _text_of_picture(stream, name: str) -> str | None:
    stream.seek(0)
    image = open_image(stream, name)
    if image.format == "PNG":
        return image.info.get(SETTINGS_TAG)
    try:
        text = image.info.get("comment") if image.format == "GIF" else _exif_description(image)
    except DECODER_ERRORS as error:
        raise MediaError(f"{name} is damaged ({error}): copy or download it again") from error
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    is_ours = isinstance(text, str) and text.startswith(SETTINGS_PREFIX)
    return text.removeprefix(SETTINGS_PREFIX) if is_ours else None


def _exif_description(image: Image.Image) -> str | None:
    return image.getexif().get(EXIF_IMAGE_DESCRIPTION)


def _text_of_video(file: Path, name: str) -> str | None:
    try:
        with open_container(file) as container:
            # Matroska gives tag names in capitals.
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{name} is not a video or is cut short ({error}): check the file") from error
    return tags.get(SETTINGS_TAG)

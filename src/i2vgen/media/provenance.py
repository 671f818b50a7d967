"""What the settings of a video keep of the picture or video that it was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from i2vgen.media.images import load_image


def load_image_with_source(source: str) -> tuple[Image.Image, dict[str, Any]]:
    """(picture, {"path", "sha256"}): where it is, and the hash of its pixels. Raises as `load_image`."""
    image = load_image(source)
    return image, source_record(source, np.asarray(image))


def source_record(source: str, pixels: np.ndarray) -> dict[str, Any]:
    return {"path": lasting_name(source), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}


def lasting_name(source: str) -> str | None:
    """The absolute path or the address of a source; None for a data URL, which holds the picture itself."""
    if source[:5].lower() == "data:":
        return None
    if source[:8].lower().startswith(("http://", "https://")):
        return source
    return str(Path(source).expanduser().resolve())

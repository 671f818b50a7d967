"""The picture of a request: read by its content within bounds, kept as a plain PNG without its metadata."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from PIL import Image

from i2vgen.media import MediaError, load_image
from i2vgen.server.errors import ApiError

# Longer sides than any model uses are reduced before the picture is kept.
MAX_KEPT_SIDE = 4096
# Pictures decoded at the same time: each may take max_image_pixels x 7 bytes.
DECODING = threading.BoundedSemaphore(2)


def read_picture(source: bytes | str, max_pixels: int) -> Image.Image:
    """RGB, upright, of bytes or a `data:` URL. Raises ApiError 400 for anything else, too large or damaged.

    The declared type and file name are not looked at.
    """
    if isinstance(source, str) and source[:5].lower() != "data:":
        message = (
            "input_reference: give the picture as a file, or as a data:image/...;base64 URL; addresses are not read"
        )
        raise ApiError(400, message, "invalid_image", "input_reference")
    try:
        with DECODING:
            image = load_image(source, max_pixels=max_pixels)
            image.thumbnail((MAX_KEPT_SIDE, MAX_KEPT_SIDE), Image.Resampling.LANCZOS)
    except MediaError as error:
        raise ApiError(400, f"input_reference: {error}", "invalid_image", "input_reference") from error
    return image


def as_png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png", compress_level=1)
    return data.getvalue()


def write_thumbnail(frames, path: Path, longest_side: int = 512) -> None:
    """The middle frame of uint8 (f h w 3), as JPEG."""
    image = Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    image.save(path, "jpeg", quality=88)


def write_spritesheet(frames, label: str, path: Path) -> None:
    """A contact sheet of the clip, up to 8 frames in a strip, as JPEG."""
    from i2vgen.media import contact_sheet

    contact_sheet([frames], [label], frames_per_video=8, thumbnail_size=200).save(path, "jpeg", quality=88)

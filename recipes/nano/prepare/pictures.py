"""Pictures as the pack holds them: photos with a short side of at most 512 px, cut-outs trimmed to 192 px."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from prepare.errors import PrepareError
from prepare.limits import MAX_PIXELS

PHOTO_SHORT_SIDE, PHOTO_QUALITY, TEST_QUALITY = 512, 88, 90
# Pictures in 4K went through a smaller copy when the pack was first made; this keeps every byte as it was.
COPY_WIDTH, COPY_QUALITY = 1920, 92
SPRITE_LONG_SIDE = 192
VISIBLE_ALPHA = 8  # of 255: what is fainter does not count for the trim


def open_picture(data: bytes, name: str) -> Image.Image:
    """Raises PrepareError for what is no whole picture, or one of more pixels than any that is used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
            if image.width * image.height > MAX_PIXELS:
                raise PrepareError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, PrepareError):
            raise
        raise PrepareError(f"{name} is no picture that can be read ({error})") from error
    return image


def encode_photo(
    data: bytes, name: str, quality: int = PHOTO_QUALITY, crop: list[int] | None = None, is_4k: bool = False
) -> bytes:
    """JPEG with a short side of at most 512 px, never enlarged. `crop` is left, top, right, bottom in source px."""
    image = open_picture(data, name).convert("RGB")
    if crop is not None:
        left, top, right, bottom = crop
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise PrepareError(f"{name}: crop {crop} lies outside of {image.width} x {image.height}")
        image = image.crop(tuple(crop))
    if is_4k:
        image = image.resize((COPY_WIDTH, round(COPY_WIDTH * image.height / image.width)), Image.Resampling.BICUBIC)
        image = Image.open(io.BytesIO(_jpeg(image, quality=COPY_QUALITY)))
    scale = min(1.0, PHOTO_SHORT_SIDE / min(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return _jpeg(image, quality=quality, optimize=True)


def _jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def encode_sprite(data: bytes, name: str) -> bytes:
    """Lossless WebP with straight alpha, trimmed, its long side at most 192 px, never enlarged."""
    image = open_picture(data, name).convert("RGBA")
    rows, columns = np.nonzero(np.asarray(image.getchannel("A")) > VISIBLE_ALPHA)
    if not len(rows):
        raise PrepareError(f"{name} is transparent all over")
    image = image.crop((int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    scale = min(1.0, SPRITE_LONG_SIDE / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if size != image.size:
        image = _resized(image, size)
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=True, quality=100, method=6)
    return out.getvalue()


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Colours are weighed by their alpha, so that none of what is transparent bleeds into the edge."""
    pixels = np.asarray(image, dtype=np.float32).copy()
    pixels[..., :3] *= pixels[..., 3:] / 255
    planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(4)]
    red, green, blue, alpha = (
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS)) for plane in planes
    )
    alpha = np.clip(alpha, 0, 255)[..., None]
    colours = np.stack([red, green, blue], axis=-1) / (np.maximum(alpha, 1) / 255)
    straight = np.where(alpha >= 1, np.concatenate([colours, alpha], axis=-1), 0)
    return Image.fromarray(np.round(np.clip(straight, 0, 255)).astype(np.uint8), "RGBA")

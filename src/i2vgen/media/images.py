"""Any still picture a user may have -> an upright RGB image of bounded size."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

from i2vgen.media.arrays import array_to_uint8, image_tensor_to_uint8
from i2vgen.media.sources import MediaError, describe, read_source

MAX_PIXELS = 64 * 1024 * 1024

# Named, so that formats which run other programs (EPS) or have no signature (TGA) are never tried.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000")

# What Pillow's decoders raise on damaged files.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def load_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as RGB, upright, on a white ground.

    `source`: a path, an http(s) or `data:` URL, bytes, a binary file object, a PIL image, a numpy array
    (h w) or (h w 1|3|4) in uint8, uint16 or float in [0, 1], or a tensor (c h w) or (1 c h w) in [0, 1], or
    in [-1, 1] when it has negatives. EXIF orientation is applied, transparency is laid on white, 16 bits
    are scaled to 8, and an animation gives its first frame.

    A picture of more than `max_pixels` is refused before it is decoded, except a baseline JPEG that the
    decoder can reduce by 2, 4 or 8 on the way to fit. Raises `MediaError` naming the source and the remedy.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        _check_size(source.size, name, max_pixels)
        with _decoding(name):
            return _to_rgb(ImageOps.exif_transpose(source), name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name, max_pixels)
    if isinstance(source, Tensor):
        return _from_array(image_tensor_to_uint8(source, name), name, max_pixels)

    data = read_source(source)
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        image = open_image(file, name)
        with _decoding(name):
            _reduce_to_fit(image, name, max_pixels)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name)


def open_image(file: BinaryIO, name: str) -> Image.Image:
    """Open a picture without decoding it; only `FORMATS`. Raises `MediaError` if it is not one."""
    header = file.read(64)
    file.seek(0)
    try:
        # Pillow's own bound would refuse a huge JPEG before it can be reduced: ask its reader directly.
        if header.startswith(b"\xff\xd8\xff"):
            with _decoding(name):
                return JpegImagePlugin.JpegImageFile(file)
        Image.init()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])
    except UnidentifiedImageError as error:
        raise MediaError(f"{name} is not a picture that can be read: {_guess(header)}") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels ({error}): make it smaller first") from error
    except MediaError:
        raise
    except DECODER_ERRORS as error:
        raise MediaError(f"{name} is damaged or cut short ({error}): copy or download it again") from error


def _guess(header: bytes) -> str:
    text = header.lstrip().lower()
    if header[4:8] == b"ftyp" and header[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif"):
        return "it is HEIC or AVIF, convert it to JPEG or PNG first"
    if header[4:8] == b"ftyp" or header.startswith(b"\x1a\x45\xdf\xa3"):
        return "it is a video, take a frame of it with load_video"
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page, give the address of the picture itself"
    if text.startswith((b"<svg", b"<?xml", b"%pdf", b"%!ps")):
        return "it is a drawing or document, export it as PNG first"
    if all(byte in b"\t\r\n" or byte >= 32 for byte in header) and b"\x00" not in header:
        return "it holds text, whatever its name says; give a JPEG, PNG or WebP file"
    return f"unknown content, give one of {', '.join(FORMATS)}"


@contextmanager
def _decoding(name: str):
    try:
        yield
    except (MediaError, UnidentifiedImageError):
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels ({error}): make it smaller first") from error
    except DECODER_ERRORS as error:
        raise MediaError(f"{name} is damaged or cut short ({error}): copy or download it again") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name} has zero size ({width} x {height}): give a picture with pixels")
    if width * height > max_pixels:
        raise MediaError(
            f"{name} has {width} x {height} pixels, more than max_pixels = {max_pixels}: "
            "make it smaller first, or raise max_pixels"
        )


def _reduce_to_fit(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    # A progressive JPEG is held whole, as coefficients, whatever size comes out.
    is_reducible = isinstance(image, JpegImagePlugin.JpegImageFile) and not image.info.get("progressive")
    if width * height > max_pixels and is_reducible:
        for factor in (2, 4, 8):
            if -(-width // factor) * -(-height // factor) <= max_pixels:
                image.draft(image.mode, (width // factor, height // factor))
                break
    _check_size(image.size, name, max_pixels)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise MediaError(f"{name} has {image.mode} values outside 0..65535: save it with 8 or 16 bits")
        rgb = Image.fromarray(array_to_uint8(values.astype(np.uint16), name)).convert("RGB")
    elif image.mode == "F":
        rgb = Image.fromarray(array_to_uint8(np.asarray(image), name)).convert("RGB")
    elif image.has_transparency_data:
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        layer = image.convert(straight).convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    is_colour = array.ndim == 3 and array.shape[-1] in (1, 3, 4)
    if array.ndim != 2 and not is_colour:
        raise MediaError(f"{name}: an image array must be (h w) or (h w c) with c = 1, 3 or 4, channels last")
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    pixels = array_to_uint8(array, name)
    if is_colour and array.shape[-1] == 1:
        pixels = pixels[..., 0]
    return _to_rgb(Image.fromarray(pixels), name)

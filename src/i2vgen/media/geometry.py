"""Sizes: resizing, cropping and padding of pictures, and the tensors that the models take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2vgen.media.sources import MediaError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# A resize before the crop may not make more pixels than this (a 10000 x 1 strip would).
MAX_RESIZED_PIXELS = 1 << 28


def center_crop_wide(image: Image.Image, size: tuple[int, int], exact: bool = False) -> Image.Image:
    """Scale `image` until it covers `size` = (width, height), then cut out the centre.

    The default resamples the centred region of the right aspect ratio in one step (LANCZOS when shrinking,
    BICUBIC when enlarging), so every target pixel has a source.

    `exact=True` is the original CenterCropWide to the pixel: BOX in both directions to
    (w // scale, h // scale), whose floor often falls one short of the target, and then the crop has a black
    left column or top row. Raises `MediaError` if a side is below 1, or the picture is too elongated.
    """
    width, height = _checked_size(size)
    if not exact:
        return _resize_cover(image, width, height)
    scale = min(image.width / width, image.height / height)
    resized = round(image.width // scale), round(image.height // scale)
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise MediaError(
            f"image of {image.width} x {image.height} is too elongated for {width} x {height}: crop it first"
        )
    image = image.resize(resized, Image.Resampling.BOX)
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def fit_image(image: Image.Image, width: int, height: int, mode: str = "crop") -> Image.Image:
    """Bring `image` to width x height keeping its proportions.

    `mode="crop"` covers the target and cuts what hangs over (`center_crop_wide`); `mode="pad"` shows the
    whole picture, centred on black. Raises `MediaError` for another mode or a side below 1.
    """
    width, height = _checked_size((width, height))
    if mode == "crop":
        return _resize_cover(image, width, height)
    if mode != "pad":
        raise MediaError(f"mode is {mode!r}: use 'crop' or 'pad'")
    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = min(inner[0], width), min(inner[1], height)
    canvas = Image.new("RGB", (width, height))
    resized = image.convert("RGB").resize(inner, _filter(scale))
    canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (3 h w) float32 in [-1, 1], the range of the VAE."""
    return _unit_tensor(image).sub_(0.5).div_(0.5)


def clip_crop(image: Image.Image, size: int = 224, crop_size: int | None = None, exact: bool = False) -> Image.Image:
    """The square centre of `image` at size x size, as the CLIP image tower sees it.

    The original first crops to a square of the model's native width (`crop_size`), then resizes that to 224
    bilinearly; with `crop_size` and `exact=True` the result equals it to the pixel. Without `crop_size` the
    square is resized in one step.
    """
    if crop_size is None:
        return center_crop_wide(image, (size, size), exact)
    return center_crop_wide(image, (crop_size, crop_size), exact).resize((size, size), Image.Resampling.BILINEAR)


def clip_input(
    image: Image.Image,
    size: int = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    crop_size: int | None = None,
    exact: bool = False,
) -> Tensor:
    """(3 size size) float32, normalised by `mean` and `std` per channel; the crop is `clip_crop`."""
    pixels = _unit_tensor(clip_crop(image, size, crop_size, exact))
    return pixels.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])


def nearest_valid_size(width: int, height: int, multiple: int) -> tuple[int, int]:
    """(width, height), each brought to the nearest multiple (halves go up), at least one multiple."""
    if multiple < 1:
        raise MediaError(f"multiple is {multiple}: it must be at least 1")
    width, height = _checked_size((width, height))
    return tuple(max(multiple, (side + multiple // 2) // multiple * multiple) for side in (width, height))


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"size is {width} x {height}: width and height must be at least 1")
    return int(width), int(height)


def _filter(scale: float) -> Image.Resampling:
    return Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC


def _resize_cover(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / image.width, height / image.height)
    region = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - region[0]) / 2, (image.height - region[1]) / 2
    box = (left, top, left + region[0], top + region[1])
    return image.convert("RGB").resize((width, height), _filter(scale), box=box)


def _unit_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).contiguous().float().div_(255)

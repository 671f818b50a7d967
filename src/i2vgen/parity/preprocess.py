"""Replays of preprocessing: pictures cropped and resized to the pixel, and the tensors made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from i2vgen.media import MediaError, center_crop_wide, clip_crop, clip_input, image_to_tensor, load_image
from i2vgen.parity.calls import ParityError
from i2vgen.parity.checks import Check, absolute, equal
from i2vgen.parity.golden import INDEX, Case, read_json, read_tensors, tensor
from i2vgen.parity.recipe import Networks

TOLERANCE = 1e-6  # absolute, of normalised values
CLIP_SIZE = 224
ENDINGS = ("_vae.png", "_clip.png", ".safetensors")
SIZE = re.compile(r"(\d+)x(\d+)")  # width x height


def preprocess_cases(folder: Path, _networks: Networks) -> Iterator[Case]:
    """`<name>.png` at each size that its entry lists: the crop for the VAE, the one for CLIP, and both tensors."""
    for name, entry in read_json(folder / INDEX).items():
        sizes = [key for key in entry if SIZE.fullmatch(key)]
        for size in sizes:
            stem = folder / f"{name}_{size}"
            files = [folder / f"{name}.png", *(stem.with_name(stem.name + end) for end in ENDINGS)]
            yield Case(folder.name, stem.name, tuple(files), partial(_replay, files, size))


def _replay(files: list[Path], size: str) -> list[Check]:
    source, vae_crop, clip_crop_file, tensors = files
    width, height = (int(side) for side in SIZE.fullmatch(size).groups())
    image, recorded = _read(source), read_tensors(tensors)
    crop = center_crop_wide(image, (width, height), exact=True)
    pixels = [
        ("VAE crop", crop, _read(vae_crop)),
        ("CLIP crop", clip_crop(image, CLIP_SIZE, crop_size=width, exact=True), _read(clip_crop_file)),
    ]
    checks = []
    for what, ours, theirs in pixels:
        checks.append(equal(f"{what} size", list(ours.size), list(theirs.size)))
        if checks[-1].is_ok:
            checks.append(absolute(what, _levels(ours), _levels(theirs), 0.0))
    normalised = {
        "vae_input_every8": image_to_tensor(crop)[None],
        "clip_input_every8": clip_input(image, crop_size=width, exact=True),
    }
    for name, value in normalised.items():
        checks.append(absolute(name, value[..., ::8, ::8], tensor(recorded, name), TOLERANCE))
    return checks


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise ParityError(f"{path.name} is missing")
    try:
        return load_image(path)
    except MediaError as error:
        raise ParityError(str(error)) from None


def _levels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB")))

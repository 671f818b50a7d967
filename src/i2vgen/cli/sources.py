"""What commands start from: models, pictures and videos, each with what settings keep of it."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2vgen.cli.report import readable_bytes, readable_seconds, warn

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from i2vgen.media import Video
    from i2vgen.pipelines import BaseOptions, CascadePipeline, RefineOptions

LONG_RUN_SECONDS = 10.0


def quiet_libraries() -> None:
    """Silence notices and progress bars of the libraries under us; the package's own warnings stay."""
    import diffusers
    import transformers

    warnings.filterwarnings("ignore")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)


def named_model(model: str) -> str:
    """`model` as settings keep it: a folder by its absolute path, "nano" and hub ids as they are."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if model != "nano" and folder.is_dir() else model


@dataclass(frozen=True)
class Lora:
    """An adapter that a command was given, or that settings name."""

    path: str
    weight: float = 1.0
    stage: str | None = None  # None: what its file says, or else the command's first stage
    sha256: str | None = None  # None: any content


def parse_loras(texts: Sequence[str] | None) -> list[Lora]:
    """PATH or PATH:WEIGHT. Raises ValueError for a weight that is no number."""
    loras = []
    for text in texts or ():
        path, colon, weight = text.rpartition(":")
        if not colon or Path(text).expanduser().exists() or "/" in weight or "\\" in weight:
            loras.append(Lora(text))
            continue
        try:
            loras.append(Lora(path, float(weight)))
        except ValueError:
            raise ValueError(f"--lora {text!r}: {weight!r} is no weight; write PATH or PATH:WEIGHT") from None
        if not path or not math.isfinite(float(weight)):
            raise ValueError(f"--lora {text!r}: write PATH or PATH:WEIGHT, with a finite weight")
    return loras


def open_cascade(
    model: str,
    device: str,
    dtype: str,
    refiner: str | None = None,
    loras: Sequence[Lora] = (),
    only_stage: str | None = None,
) -> CascadePipeline:
    """Load a cascade for a command, with the refiner of another model if one is named, and adapters.

    `only_stage`: the one that the command runs. Raises ValueError for an unknown model, device or dtype, and for an
    adapter that does not fit, is of another stage than `only_stage`, or is not the one of its hash.
    """
    quiet_libraries()
    from i2vgen.checkpoints.adapters import open_adapter, require_peft
    from i2vgen.pipelines import load_cascade

    if loras:  # before anything slow
        require_peft()
    refiner = None if refiner is None else named_model(refiner)
    files = [open_adapter(lora.path) for lora in loras]
    cascade = load_cascade(named_model(model), device=device, dtype=dtype, refiner=refiner)
    weights = {}
    for lora, file in zip(loras, files, strict=True):
        stage = lora.stage or file.stage or only_stage
        if only_stage not in (None, stage):
            raise ValueError(f"--lora {lora.path}: is for the {stage} stage, which does not run here: leave it out")
        name = cascade.load_lora_weights(lora.path, stage=stage)
        weights[name] = lora.weight
        found = cascade.adapter_records()[name]["sha256"]
        if lora.sha256 not in (None, found):
            raise ValueError(f"--lora {lora.path}: is not the file of then, its content differs: give --lora PATH")
    if weights:
        cascade.set_adapters(list(weights), list(weights.values()))
    return cascade


def open_image(source: str) -> tuple[Image.Image, dict[str, Any]]:
    """(picture, what settings keep of it)"""
    from i2vgen.media.provenance import load_image_with_source

    return load_image_with_source(source)


def open_video(source: str, max_frames: int | None) -> tuple[Video, dict[str, Any]]:
    """(video, what settings keep of it); the hash is of the frames that are used."""
    from i2vgen.media import load_video
    from i2vgen.media.provenance import source_record

    video = load_video(source, max_frames=max_frames)
    return video, source_record(source, video.frames)


def announce(
    cascade: CascadePipeline,
    base: BaseOptions | None,
    refine: RefineOptions | None,
    num_frames: int | None = None,
    repeats: int = 1,
    refine_strength: float | None = None,
) -> None:
    """Say how long a long run will take. Raises ValueError if it cannot fit into memory by far."""
    from i2vgen.cli.info import memory_of
    from i2vgen.pipelines.estimate import estimate

    device: torch.device = cascade.vae.device
    dtype = (cascade.refine_unet if cascade.unet is None else cascade.unet).dtype
    guess = estimate(cascade, base, refine, device, dtype, num_frames, refine_strength)
    needed, installed = readable_bytes(guess.memory_bytes), memory_of(device)
    if installed and guess.memory_bytes > installed:
        has = f"{device} has {readable_bytes(installed)}"
        if guess.memory_bytes > 2 * installed:
            raise ValueError(f"this would need about {needed} and {has}: use a smaller --size or fewer --frames")
        warn(f"this may need {needed} and {has}")
    if guess.seconds * repeats > LONG_RUN_SECONDS:
        duration = readable_seconds(guess.seconds * repeats)
        print(f"about {duration} and {needed} of memory on {device} (a rough estimate)", file=sys.stderr)

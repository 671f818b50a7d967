"""Loading a UNet from whatever its weights came in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from i2vgen.checkpoints.configs import source_of, unet_config
from i2vgen.checkpoints.errors import CheckpointError, nearest
from i2vgen.checkpoints.reading import CONFIG_FILE, existing_path, open_tensors, read_json
from i2vgen.checkpoints.tables import Shape, same_names
from i2vgen.checkpoints.unet_keys import UNET_DEFAULTS, sd_unet_table, unet_table
from i2vgen.models.unet import I2VGenXLUNet

STABLE_DIFFUSION_PREFIX = "model.diffusion_model."  # of the UNet in a whole latent-diffusion checkpoint
Read = Callable[[str], torch.Tensor]


def load_unet(
    path_or_state_dict: str | Path | Mapping[str, Any],
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> I2VGenXLUNet:
    """The released UNet in evaluation mode, on the CPU, giving what its original code gives.

    path_or_state_dict: a file, a folder with a UNet's files (or with a folder `unet`), or tensors by name, plain or
        as {"state_dict": ..., "step": ...}. Tensors that already have `dtype` are used as they are, not copied.
    source: "vgen-i2vgen-xl", "vgen-sr600", "modelscope-image2video", "modelscope-vid2vid", or "diffusers" for its
        I2VGenXLUNet and UNet3DConditionModel; None finds it out, except between the two refiners (vgen-sr600 and
        modelscope-vid2vid), whose keys are the same.
    config: fields of I2VGenXLUNet that take the place of those read off the shapes (and off a folder's
        config.json). `image_latents_scale` is 2.0 for diffusers' weights too: their converter did not double them.
    dtype: of the weights; None keeps that of the file.

    Raises CheckpointError, naming the key, for keys that are unknown or missing, shapes that are wrong, and weights
    that are NaN or infinite.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise CheckpointError(f"dtype: {dtype} is not a floating-point type")
    overrides = dict(config or {})
    for field in overrides:
        if field not in UNET_DEFAULTS:
            raise CheckpointError(f"config: I2VGenXLUNet has no field {field!r}{nearest(field, UNET_DEFAULTS)}")
    path = None if isinstance(path_or_state_dict, Mapping) else _unet_path(path_or_state_dict)
    with _open(path_or_state_dict if path is None else path) as (shapes, read):
        source = source_of(shapes) if source is None else source
        beside = _config_beside(path)
        heads = {**UNET_DEFAULTS, **beside, **overrides}["transformer_in_heads"]
        fields = {**beside, **unet_config(shapes, source, heads), **overrides}
        with torch.device("meta"):
            unet = I2VGenXLUNet(**fields)
        targets = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
        table = same_names("diffusers UNet", targets) if source == "diffusers" else unet_table(fields)
        table.check_shapes(shapes, targets)
        converted = table.convert(lambda key: _checked(key, read(key), dtype))
        weights = {key: _owned(tensor) for key, tensor in converted}
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


@torch.no_grad()
def load_spatial(unet: I2VGenXLUNet, path_or_state_dict: str | Path | Mapping[str, Any]) -> list[str]:
    """Start a fresh video UNet from an image model: Stable Diffusion 2's UNet, in latent-diffusion layout (also
    inside a whole checkpoint) or diffusers' UNet2DConditionModel (also a folder). Its config must be of the same
    widths. Returns the keys that keep their fresh values: temporal layers and conditioning heads.

    Fresh temporal layers are the identity and the content channels of `conv_in` are set to zero, so each frame comes
    out as the image model gives it for the same context. The tokens of the image heads are part of that context from
    the beginning, as in the original.
    """
    path = None if isinstance(path_or_state_dict, Mapping) else _unet_path(path_or_state_dict)
    with _open(path_or_state_dict if path is None else path) as (shapes, read):
        prefix = STABLE_DIFFUSION_PREFIX if any(k.startswith(STABLE_DIFFUSION_PREFIX) for k in shapes) else ""
        shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        table = sd_unet_table(unet.config, is_diffusers="conv_in.weight" in shapes)
        state = unet.state_dict()
        targets = {key: tuple(state[key].shape) for key in table.targets}
        first, channels, *kernel = targets["conv_in.weight"]
        targets["conv_in.weight"] = (first, unet.config.in_channels, *kernel)
        table.check_shapes(shapes, targets)
        dtype = state["conv_in.weight"].dtype
        weights = dict(table.convert(lambda key: _checked(key, read(prefix + key), dtype)))
        content = torch.zeros(first, channels - unet.config.in_channels, *kernel, dtype=dtype)
        weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"].cpu(), content], dim=1)
        for key, weight in weights.items():
            state[key].copy_(weight)
    return [key for key in state if key not in weights]


@contextmanager
def _open(path_or_state_dict: Path | Mapping[str, Any]) -> Iterator[tuple[dict[str, Shape], Read]]:
    """Shapes by key, and a function that reads a tensor."""
    if isinstance(path_or_state_dict, Path):
        tensors = open_tensors(path_or_state_dict)
        try:
            yield dict(tensors.shapes), lambda key: tensors.read(key).clone()  # else it is the mapped file
        finally:
            tensors.close()
        return
    state = path_or_state_dict
    if isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"state dict: {key!r} is a {type(value).__name__}, expected tensors by name")
    yield {key: tuple(value.shape) for key, value in state.items()}, lambda key: state[key].detach()


def _unet_path(path: str | Path) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"path_or_state_dict: got a {type(path).__name__}, expected a path or tensors by name")
    path = existing_path(path)
    return path / "unet" if (path / "unet").is_dir() else path


def _config_beside(path: Path | None) -> dict[str, Any]:
    """Our fields in diffusers' config.json beside the weights."""
    file = None if path is None else (path if path.is_dir() else path.parent) / CONFIG_FILE
    if file is None or not file.is_file():
        return {}
    config = read_json(file)
    if config.get("_class_name") not in ("I2VGenXLUNet", "UNet3DConditionModel"):
        return {}
    return {field: config[field] for field in UNET_DEFAULTS if config.get(field) is not None}


def _checked(key: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor in `dtype`."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{key}: weights are {tensor.dtype}, expected a floating-point type")
    converted = tensor.to(dtype or tensor.dtype)
    if not converted.is_meta and not torch.isfinite(converted).all():
        reason = f"does not fit {dtype}" if torch.isfinite(tensor).all() else "holds NaN or infinity"
        raise CheckpointError(f"{key}: {reason}")
    return converted


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """With memory of its own, if it is a part of another."""
    is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)

"""Between numbers and pixels: arrays and tensors to uint8 and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from i2vgen.media.sources import MediaError

# Resampling overshoots [0, 1] by a little; more than this means other units (0..255, -1..1).
RANGE_TOLERANCE = 0.02


def array_to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Array of any shape in uint8, uint16 (0..65535) or float in [0, 1] -> uint8, rounded to nearest.

    Raises `MediaError` for another dtype, NaN or infinite values, and values outside [0, 1].
    """
    if array.size == 0:
        raise MediaError(f"{name} has zero size: every side must be at least 1")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        raise MediaError(f"{name} has dtype {array.dtype}: give uint8, uint16 or float in [0, 1]")
    if not np.isfinite(array).all():
        raise MediaError(f"{name} has NaN or infinite values: check the step that made it")
    low, high = float(array.min()), float(array.max())
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise MediaError(
            f"{name} has values in [{low:.4g}, {high:.4g}]: floats must be in [0, 1] "
            "(use x / 255 for 0..255, (x + 1) / 2 for -1..1)"
        )
    return np.rint(array.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)


def image_tensor_to_uint8(tensor: Tensor, name: str) -> np.ndarray:
    """Tensor (c h w) or (1 c h w), c = 1, 3 or 4 -> uint8 (h w c).

    Floats are read as [-1, 1] when any value is negative, else as [0, 1]; uint8 is taken as it is.
    """
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise MediaError(f"{name}: an image tensor must be (c h w) or (1 c h w) with c = 1, 3 or 4")
    if tensor.numel() == 0:
        raise MediaError(f"{name} has zero size: every side must be at least 1")
    if tensor.is_floating_point():
        tensor = tensor.detach().float()
        # Clamped, since a resampled [0, 1] picture may dip slightly below zero.
        if tensor.amin() < -RANGE_TOLERANCE:
            tensor = (tensor + 1) / 2
    elif tensor.dtype != torch.uint8:
        raise MediaError(f"{name} has dtype {tensor.dtype}: give a float tensor in [0, 1] or [-1, 1], or uint8")
    return array_to_uint8(tensor.permute(1, 2, 0).cpu().numpy(), name)


def frames_to_uint8(frames: Tensor, exact: bool = False) -> np.ndarray:
    """Frames (1 3 f h w) or (3 f h w) in [-1, 1] -> uint8 (f h w 3); values outside are clamped.

    Rounds to nearest. `exact=True` truncates, as the original code does when it writes a video.
    Raises `MediaError` for another shape, a batch of more than one, and NaN or infinite values.
    """
    if frames.ndim == 5:
        if frames.shape[0] != 1:
            raise MediaError(f"frames has a batch of {frames.shape[0]}: convert one video at a time")
        frames = frames[0]
    if frames.ndim != 4 or frames.shape[0] != 3 or frames.numel() == 0:
        raise MediaError(f"frames has shape {tuple(frames.shape)}: expected (1 3 f h w) or (3 f h w), none zero")
    if not frames.is_floating_point():
        raise MediaError(f"frames has dtype {frames.dtype}: expected floats in [-1, 1]")
    if not torch.isfinite(frames).all():
        raise MediaError("frames has NaN or infinite values: try float32, or check the step that made them")
    pixels = np.empty((*frames.shape[1:], 3), np.uint8)
    for index, frame in enumerate(frames.detach().unbind(1)):
        scaled = (frame.float() * 0.5 + 0.5).clamp(0, 1) * 255
        scaled = scaled if exact else scaled.round()
        pixels[index] = scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels


def frames_to_tensor(pixels: np.ndarray) -> Tensor:
    """Frames uint8 (f h w 3) -> float32 (1 3 f h w) in [-1, 1]; the inverse of `frames_to_uint8`."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise MediaError(f"frames has dtype {pixels.dtype}, shape {pixels.shape}: expected uint8 (f h w 3)")
    frames = torch.from_numpy(np.array(pixels.transpose(3, 0, 1, 2), order="C")).float()
    return frames.div_(127.5).sub_(1)[None]

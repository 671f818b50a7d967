"""Closeness of pictures: PSNR, SSIM, and how well a clip's first frame keeps the input image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from i2vgen.media import center_crop_wide

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
RANGE_SLACK = 0.01


def psnr(first: np.ndarray | torch.Tensor, second: np.ndarray | torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all values together; infinite for equal input.

    Both inputs: uint8 `(... h w c)`, or floating `(... c h w)` or `(... c f h w)` in [-1, 1]; same layout and
    shape. Raises ValueError for different shapes, another dtype or values outside [-1, 1].
    """
    first, second = _pair(first, second)
    error = float(np.mean((first - second) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(first: np.ndarray | torch.Tensor, second: np.ndarray | torch.Tensor) -> float:
    """Mean structural similarity, at most 1, over channels, frames and all whole windows.

    Wang et al. 2004: Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, population moments.
    Inputs and errors as `psnr`; also ValueError when a side is below 11 pixels.
    """
    first, second = _pair(first, second)
    if min(first.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"frames of {first.shape[-2:]} (h w): SSIM needs {SSIM_WINDOW} pixels a side")
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = _smooth(first), _smooth(second)
    variance_a = _smooth(first * first) - mean_a**2
    variance_b = _smooth(second * second) - mean_b**2
    covariance = _smooth(first * second) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float(np.mean(luminance * structure))


def first_frame_psnr(frames: np.ndarray, image: Image.Image) -> float:
    """PSNR in dB of a clip's first frame against the input image, scaled and cropped to the clip's size.

    `frames`: uint8 `(f h w 3)`; `image`: RGB of any size. Raises ValueError for another shape or dtype.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames={frames.dtype} {frames.shape}: expected uint8 of shape (f h w 3)")
    height, width = frames.shape[1:3]
    return psnr(frames[0], np.asarray(center_crop_wide(image, (width, height))))


def _pair(first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = _unit_range(first, "first"), _unit_range(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"first and second differ in shape ({first.shape} and {second.shape}, channels first)")
    return first, second


def _unit_range(frames: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """float64 in [0, 1] with height and width last."""
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        frames = (frames.double() if frames.is_floating_point() else frames).numpy()
    if frames.ndim < 3 or frames.size == 0:
        raise ValueError(f"{name}={frames.shape}: expected uint8 (... h w c) or floating (... c h w)")
    if frames.dtype == np.uint8:
        return np.moveaxis(frames, -1, -3).astype(np.float64) / 255
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"{name} has dtype {frames.dtype}: expected uint8, or floating in [-1, 1]")
    if not np.abs(frames).max() <= 1 + RANGE_SLACK:
        raise ValueError(f"{name} reaches {np.abs(frames).max()}: floating frames must lie in [-1, 1]; clamp them")
    return (frames.astype(np.float64) + 1) / 2


def _smooth(planes: np.ndarray) -> np.ndarray:
    """Gaussian mean over each whole window: `(... h w)` -> `(... h-10 w-10)`."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    rows, columns = (side - SSIM_WINDOW + 1 for side in planes.shape[-2:])
    planes = sum(weight * planes[..., k : k + rows, :] for k, weight in enumerate(weights))
    return sum(weight * planes[..., :, k : k + columns] for k, weight in enumerate(weights))

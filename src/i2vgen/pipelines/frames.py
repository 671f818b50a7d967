"""The refiner's input: videos of any kind as one tensor, their size, and windows in time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from i2vgen.media import frames_to_tensor, load_video


def as_videos(video: Any) -> torch.Tensor:
    """What `VideoRefinePipeline` takes as video(s) -> (b 3 f h w) in [-1, 1] on the CPU."""
    if isinstance(video, torch.Tensor):
        videos = list(video) if video.ndim == 5 else [video]
    elif isinstance(video, list) and video and not hasattr(video[0], "getbbox"):
        videos = video
    else:
        videos = [video]
    tensors = [v.float().cpu() if isinstance(v, torch.Tensor) else _load(v) for v in videos]
    for tensor in tensors:
        if tensor.ndim != 4 or tensor.shape[0] != 3 or 0 in tensor.shape:
            raise ValueError(f"video: expected (3 f h w), got shape {tuple(tensor.shape)}")
        if tensor.shape != tensors[0].shape:
            raise ValueError("video: videos of one call must have the same length and size; refine them one by one")
        if not torch.isfinite(tensor).all():
            raise ValueError("video: holds NaN or infinity")
        if tensor.abs().max() > 1.1:
            raise ValueError(f"video: tensors must be in [-1, 1], got a value of {tensor.abs().max():.4g}")
    return torch.stack(tensors)


def _load(source: Any) -> torch.Tensor:
    if isinstance(source, list):
        source = np.stack([np.asarray(frame.convert("RGB")) for frame in source])
    return frames_to_tensor(load_video(source).frames)[0]


def size_like(videos: torch.Tensor, height: int | None, width: int | None, area: int) -> tuple[int, int]:
    """(height, width): what is None follows the proportions of the videos (b 3 f h w), in even numbers."""
    h, w = videos.shape[-2:]
    if height is None and width is None:
        height = max(2, round(math.sqrt(area * h / w) / 2) * 2)
    if width is None:
        return height, max(2, round(height * w / h / 2) * 2)
    return height or max(2, round(width * h / w / 2) * 2), width


def resize_frames(frames: torch.Tensor, height: int, width: int, resize: str = "crop") -> torch.Tensor:
    """(b 3 f h w) -> (b 3 f height width): "crop" covers the size (antialiased bilinear) and cuts the centre,
    "stretch" is the original's: bilinear without antialiasing, whatever the proportions."""
    b, _, f, h, w = frames.shape
    if resize == "stretch":
        flat = F.interpolate(frames.transpose(1, 2).flatten(0, 1), size=(height, width), mode="bilinear")
        return flat.unflatten(0, (b, f)).transpose(1, 2)
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    flat = frames.transpose(1, 2).flatten(0, 1)
    if size != (h, w):
        flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    flat = flat[..., top : top + height, left : left + width]
    return flat.unflatten(0, (b, f)).transpose(1, 2)


def frame_windows(num_frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """Half-open windows of `length` frames that cover all frames, neighbours sharing at least `overlap`."""
    if num_frames <= length:
        return [(0, num_frames)]
    if not 0 <= overlap < length:
        raise ValueError(f"window_overlap must be from 0 to below window_frames {length}, got {overlap}")
    count = -(-(num_frames - overlap) // (length - overlap))
    starts = [round(i * (num_frames - length) / (count - 1)) for i in range(count)]
    return [(s, s + length) for s in starts]

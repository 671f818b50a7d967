"""Classifier-free guidance, with the rescale that keeps its contrast in bounds."""

from __future__ import annotations

import torch

from .process import compute_dtype


def apply_guidance(
    cond: torch.Tensor, uncond: torch.Tensor, guidance_scale: float, guidance_rescale: float = 0.0
) -> torch.Tensor:
    """Guided prediction uncond + guidance_scale (cond - uncond), in the shape `(b ...)` and dtype of `cond`.

    `guidance_rescale` in [0, 1] moves the standard deviation of every item (unbiased, over all but the batch
    dimension) from the guided one, at 0, to that of `cond`, at 1. Half precision is computed in float32.

    Raises ValueError when the shapes differ or `guidance_rescale` lies outside [0, 1].
    Sources: arXiv 2207.12598; arXiv 2305.08891, section 3.4.
    """
    if cond.shape != uncond.shape:
        raise ValueError(
            f"cond has shape {tuple(cond.shape)} and uncond {tuple(uncond.shape)}; predict both for one batch"
        )
    if not 0.0 <= guidance_rescale <= 1.0:
        raise ValueError(f"guidance_rescale is {guidance_rescale}; choose a value from 0 to 1")
    if guidance_scale == 1.0:
        return cond
    dtype = compute_dtype(cond)
    full_cond, full_uncond = cond.to(dtype), uncond.to(dtype)
    guided = full_uncond + guidance_scale * (full_cond - full_uncond)
    if guidance_rescale > 0.0:
        shape = (-1,) + (1,) * (cond.ndim - 1)
        ratio = full_cond.flatten(1).std(dim=1) / (guided.flatten(1).std(dim=1) + 1e-12)
        guided = guided * (guidance_rescale * ratio + (1 - guidance_rescale)).reshape(shape)
    return guided.to(cond.dtype)

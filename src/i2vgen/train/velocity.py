"""What the UNet learns: the velocity of noised latents, with noise that also shifts whole frames."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from i2vgen.schedulers.schedules import (
    alphas_cumprod_from_betas,
    alphas_from_sigmas,
    cosine_betas,
    logsnr_cosine_interp_sigmas,
    rescale_zero_terminal_snr,
)


def noise_levels(stage: str) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma (1000) float32 of the schedule that a stage is trained on."""
    if stage == "base":
        alphas_cumprod = alphas_cumprod_from_betas(rescale_zero_terminal_snr(cosine_betas()))
        return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()
    sigmas = logsnr_cosine_interp_sigmas()
    return alphas_from_sigmas(sigmas), sigmas


def training_noise(shape: torch.Size, generator: torch.Generator, offset: float) -> torch.Tensor:
    """Noise for latents of `shape` (b c f h w), plus `offset` times one draw a channel and frame.

    The second draw, of the original too (0.1), lets the mean brightness be noised.
    """
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn((*shape[:3], 1, 1), generator=generator)


def noised_and_target(
    latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (b c f h w) at the levels `t` (b) of the tables `alpha` and `sigma`, and their velocity."""
    alpha, sigma = (x[t][:, None, None, None, None] for x in (alpha, sigma))
    return alpha * latents + sigma * noise, alpha * noise - sigma * latents


def velocity_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over everything: a batch counts its videos alike."""
    return F.mse_loss(predicted, target)

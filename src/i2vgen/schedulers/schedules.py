"""Noise schedules of the I2VGen-XL family, as pure functions of their numbers.

`alpha` and `sigma` are variance preserving (alpha^2 + sigma^2 = 1); `karras_sigma` is sigma / alpha.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch


def cosine_betas(num_train_timesteps: int = 1000, cosine_s: float = 0.008) -> torch.Tensor:
    """Betas `(num_train_timesteps,)`, float64, of the cosine schedule, each at most 0.999.

    Source: arXiv 2102.09672, eq. 17.
    """

    def alpha_bar(u: float) -> float:
        return math.cos((u + cosine_s) / (1 + cosine_s) * math.pi / 2) ** 2

    edges = [alpha_bar(i / num_train_timesteps) for i in range(num_train_timesteps + 1)]
    betas = [min(1.0 - after / before, 0.999) for before, after in pairwise(edges)]
    return torch.tensor(betas, dtype=torch.float64)


def linear_sd_betas(
    num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> torch.Tensor:
    """Betas `(num_train_timesteps,)`, float64, whose square roots are evenly spaced (Stable Diffusion)."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
    return roots**2


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Betas whose last alphas_cumprod is exactly 0 and whose first one is unchanged; same shape and dtype.

    Source: arXiv 2305.08891, algorithm 1.
    """
    alpha = alphas_cumprod_from_betas(betas).sqrt()
    first, last = alpha[0], alpha[-1]
    alphas_cumprod = ((alpha - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def alphas_cumprod_from_betas(betas: torch.Tensor) -> torch.Tensor:
    """alpha^2 of every timestep: the running product of 1 - beta; same shape and dtype as `betas`."""
    return torch.cumprod(1 - betas, dim=0)


def sigmas_from_betas(betas: torch.Tensor) -> torch.Tensor:
    """Variance-preserving sigma of every timestep; same shape and dtype as `betas`.

    Of `cosine_betas()` it is the schedule that the refiner of VGen inverts its input video with.
    """
    return torch.sqrt(1 - alphas_cumprod_from_betas(betas))


def alphas_from_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """alpha = sqrt(1 - sigma^2); same shape and dtype as `sigmas`."""
    return torch.sqrt(1 - sigmas**2)


def logsnr_cosine_interp_sigmas(
    num_train_timesteps: int = 1000,
    scale_min: float = 2.0,
    scale_max: float = 4.0,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
) -> torch.Tensor:
    """Variance-preserving sigmas `(num_train_timesteps,)`, float32, of the refiner; the last one is 1.

    A cosine schedule in log SNR (arXiv 2301.11093), shifted by 2 log(1 / scale) with a scale that goes from
    `scale_min` at t=0 to `scale_max` at the end. In float32 throughout, as in the original, whose zero
    terminal SNR comes from the rounding of the last sigma. alpha = sqrt(1 - sigma^2) is then known to 1e-6
    of its value for t <= 599, 3e-5 at t=900.
    """
    angle_min, angle_max = (math.atan(math.exp(-0.5 * logsnr)) for logsnr in (logsnr_min, logsnr_max))
    position = torch.linspace(1, 0, num_train_timesteps)
    logsnr = -2 * torch.log(torch.tan(angle_min + position * (angle_max - angle_min)))
    logsnr_start = logsnr + 2 * math.log(1 / scale_min)
    logsnr_end = logsnr + 2 * math.log(1 / scale_max)
    logsnr = position * logsnr_start + (1 - position) * logsnr_end
    sigmas = torch.sqrt(torch.sigmoid(-logsnr))
    if sigmas.max() != 1.0:  # zero terminal SNR; with the released scales sigma already rounds to 1
        lowest, highest = sigmas.min(), sigmas.max()
        sigmas = lowest + (1 - lowest) / (highest - lowest) * (sigmas - lowest)
    return sigmas

"""What both stages are trained on: noise with an offset, noised latents, the velocity, its mean square a clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from i2vgen.schedulers.process import diffuse, velocity
from i2vgen.schedulers.schedules import (
    alphas_cumprod_from_betas,
    alphas_from_sigmas,
    cosine_betas,
    logsnr_cosine_interp_sigmas,
    rescale_zero_terminal_snr,
)


@dataclass(frozen=True)
class NoiseLevels:
    """alpha and sigma (1000) of the schedule that a stage is trained on."""

    alphas: torch.Tensor
    sigmas: torch.Tensor

    @classmethod
    def of_stage(cls, stage: str, dtype: torch.dtype = torch.float32) -> NoiseLevels:
        """ "base": cosine with zero terminal SNR; "refine": cosine in log SNR, interpolated between two shifts."""
        if stage == "base":
            alphas_cumprod = alphas_cumprod_from_betas(rescale_zero_terminal_snr(cosine_betas()))
            return cls(alphas_cumprod.sqrt().to(dtype), (1 - alphas_cumprod).sqrt().to(dtype))
        sigmas = logsnr_cosine_interp_sigmas()
        return cls(alphas_from_sigmas(sigmas).to(dtype), sigmas.to(dtype))

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t (b c f h w) = alpha x_0 + sigma noise, `t` (b)."""
        return diffuse(latents, noise, t, self.alphas, self.sigmas)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v (b c f h w) = alpha noise - sigma x_0."""
        return velocity(latents, noise, t, self.alphas, self.sigmas)


def offset_noise(base: torch.Tensor, offset: torch.Tensor, strength: float) -> torch.Tensor:
    """`base` (b c f h w) and `offset` (b c f 1 1), both unit normal: base + strength * offset, so that the mean
    brightness of a frame is noised too (VGen: strength 0.1)."""
    return base + strength * offset


def draw_noise(shape: torch.Size, seed: int, step: int, rows: torch.Tensor, strength: float) -> torch.Tensor:
    """Noise (b c f h w) of one step, each row of the whole batch (`rows`, (b)) from a generator of its own: the same
    for any number of processes, in any micro-batch."""
    noise = torch.empty(shape)
    for index, row in enumerate(rows.tolist()):
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 65_537 + row) % 2**63)
        base = torch.randn(shape[1:], generator=generator)
        noise[index] = offset_noise(base, torch.randn((*shape[1:3], 1, 1), generator=generator), strength)
    return noise


def clip_errors(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean square (b) of each clip's velocity."""
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)

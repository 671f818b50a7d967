"""What the samplers share: the forward process, the noise of one step, the result of one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class StepOutput(BaseOutput):
    """Result of one sampler step: the next, less noisy sample and the current estimate of x_0."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


def compute_dtype(sample: torch.Tensor) -> torch.dtype:
    """float64 for float64 samples, float32 for all others: half precision is never computed in."""
    return torch.float64 if sample.dtype == torch.float64 else torch.float32


def timestep_to_int(timestep: int | torch.Tensor) -> int:
    """One timestep as a Python int; ValueError for a tensor that holds several."""
    if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
        raise ValueError(f"timestep has shape {tuple(timestep.shape)}; a step takes one timestep for the batch")
    return int(timestep)


def diffuse(
    original_samples: torch.Tensor,
    noise: torch.Tensor,
    timesteps: int | torch.Tensor,
    alphas: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """x_t = alpha x_0 + sigma noise, for samples of any shape `(b ...)`, in their dtype.

    `timesteps` is an int, a scalar, or `(b,)`; `alphas` and `sigmas` are tables over the timesteps.
    """
    alpha, sigma = _coefficients(original_samples, timesteps, alphas, sigmas)
    noised = alpha * original_samples.to(alpha.dtype) + sigma * noise.to(alpha.dtype)
    return noised.to(original_samples.dtype)


def velocity(
    sample: torch.Tensor,
    noise: torch.Tensor,
    timesteps: int | torch.Tensor,
    alphas: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """The target of v prediction, v = alpha noise - sigma x_0; arguments as in `diffuse`, `sample` is x_0.

    Source: arXiv 2202.00512, appendix D.
    """
    alpha, sigma = _coefficients(sample, timesteps, alphas, sigmas)
    return (alpha * noise.to(alpha.dtype) - sigma * sample.to(alpha.dtype)).to(sample.dtype)


def step_noise(
    sample: torch.Tensor, generator: Generators = None, variance_noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Unit normal noise in the shape of `sample` `(b ...)`, drawn in `compute_dtype(sample)`.

    One generator serves the whole batch; a list holds one per item, and then every item gets the noise that
    it would get alone. A given `variance_noise` is used as it is and nothing is drawn.

    Raises ValueError when both are given, or when the list does not hold one generator per item.
    """
    dtype = compute_dtype(sample)
    if variance_noise is not None:
        if generator is not None:
            raise ValueError("generator and variance_noise are both given; pass one of them")
        return variance_noise.to(sample.device, dtype)
    if isinstance(generator, list) and len(generator) != len(sample):
        raise ValueError(f"generator holds {len(generator)} generators for {len(sample)} samples; pass one per sample")
    return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)


def _coefficients(
    sample: torch.Tensor, timesteps: int | torch.Tensor, alphas: torch.Tensor, sigmas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = compute_dtype(sample)
    index = torch.as_tensor(timesteps, device=sample.device).reshape(-1)
    shape = (-1,) + (1,) * (sample.ndim - 1)
    return tuple(table.to(dtype).to(sample.device)[index].reshape(shape) for table in (alphas, sigmas))

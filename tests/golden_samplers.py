"""What the tests of samplers share: recorded cases, a model with a formula, and a model that knows the answer."""

from __future__ import annotations

from pathlib import Path

import torch

GOLDEN = Path(__file__).parent / "golden"
SHAPE = (2, 4, 3, 6, 5)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def analytic_model(x: torch.Tensor, t: int | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.tanh(x) * (1 + 0.1 * y) + 0.01 * int(t) / 1000


def perfect_velocity(scheduler, x0: torch.Tensor, x: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """The v from which a sampler at x and t reads exactly x0."""
    alpha, sigma = scheduler.alphas[int(t)].item(), scheduler.sigmas[int(t)].item()
    return (alpha * x - x0) / sigma


def seeded(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

"""The samplers' recorded cases, the model they were recorded with, and what their tests share."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from i2vgen.schedulers import apply_guidance

GOLDEN = Path(__file__).parent / "golden"
SAMPLER_CASES = json.loads((GOLDEN / "samplers" / "INDEX.json").read_text())["cases"]
SHAPE = (2, 4, 3, 6, 5)


def cases_with(call_part: str) -> list[str]:
    return [name for name, case in SAMPLER_CASES.items() if call_part in case["call"]]


def argument(name: str, key: str, default: float | None = None) -> float | None:
    found = re.search(rf"\b{key}=([\d.]+)", SAMPLER_CASES[name]["call"])
    return float(found[1]) if found else default


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def analytic_model(x: torch.Tensor, t: int | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.tanh(x) * (1 + 0.1 * y) + 0.01 * int(t) / 1000


def guided(name: str, golden: dict[str, torch.Tensor], x: torch.Tensor, t: int | torch.Tensor):
    scale = argument(name, "guide_scale")
    if scale is None:
        return analytic_model(x, t, golden["y_cond"] if "y_cond" in golden else golden["y"])
    cond, uncond = (analytic_model(x, t, golden[key]) for key in ("y_cond", "y_uncond"))
    return apply_guidance(cond, uncond, scale, argument(name, "guide_rescale", 0.0))


def perfect_velocity(scheduler, x0: torch.Tensor, x: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """The v from which a sampler at x and t reads exactly x0."""
    alpha, sigma = scheduler.alphas[int(t)].item(), scheduler.sigmas[int(t)].item()
    return (alpha * x - x0) / sigma


def seeded(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

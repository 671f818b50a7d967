"""The original's samplers, written out once more from their definitions and apart from our schedulers, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Model = Callable[[torch.Tensor, int], torch.Tensor]  # (variance-preserving state, t) -> v


def ddim(
    model: Model, x: torch.Tensor, acp: torch.Tensor, steps: int, eta: float, noise: Iterator[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """States and timesteps of a run on `acp` (alphas_cumprod) whose steps are 1 + k * stride, from the last."""
    stride = len(acp) // steps
    times = [min(1 + k, len(acp) - 1) for k in range(0, len(acp), stride)][::-1]
    states = [x]
    for t in times:
        a, before = acp[t], acp[max(t - stride, 0)]
        x0 = a.sqrt() * x - (1 - a).sqrt() * model(x, t)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        std = eta * ((1 - before) / (1 - a) * (1 - a / before)).sqrt()
        x = before.sqrt() * x0 + (1 - before - std**2).sqrt() * eps + std * next(noise)
        states.append(x)
    t = torch.tensor(times)[:, None].expand(-1, len(x)).contiguous()
    return {"x": torch.stack(states), "t": t, "final": x}


def sdedit(
    model: Model,
    noised: torch.Tensor,
    sigmas: torch.Tensor,
    solver: str,
    steps: int,
    t_max: int,
    discretization: str,
    eta: float,
    noise: Iterator[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """States of k-diffusion's solvers on x / alpha; `sigmas` are the variance-preserving ones of all timesteps."""
    log_ratio = (sigmas / (1 - sigmas**2).sqrt()).log()
    levels = steps + (solver != "heun")
    if discretization == "trailing":
        times = torch.arange(t_max, -1, -(t_max + 1) / levels, dtype=torch.float64)[:levels]
    elif discretization == "leading":
        times = torch.arange(0, t_max + 1, (t_max + 1) / levels, dtype=torch.float64)[:levels].flip(0)
    else:
        times = torch.linspace(t_max, 0, levels, dtype=torch.float64)
    times = times[:steps].clamp(min=0)
    low, high, part = times.floor().long(), times.ceil().long(), times.frac()
    ve = torch.cat([((1 - part) * log_ratio[low] + part * log_ratio[high]).exp(), torch.zeros(1)])
    inputs, given, predictions = [], [], []

    def denoise(x: torch.Tensor, i: int) -> torch.Tensor:
        t = int(times[i].round())
        state = x / (1 + ve[i] ** 2).sqrt()
        x0 = (1 - sigmas[t] ** 2).sqrt() * state - sigmas[t] * model(state, t)
        inputs.append(state), given.append(t), predictions.append(x0)
        return x0

    x, previous, last_step = noised * ve[0], None, None
    for i in range(steps):
        x0 = denoise(x, i)
        if ve[i + 1] == 0:
            x = x0
        elif solver == "heun":
            slope = (x - x0) / ve[i]
            guess = x + (ve[i + 1] - ve[i]) * slope
            slope_there = (guess - denoise(guess, i + 1)) / ve[i + 1]
            x = x + (ve[i + 1] - ve[i]) * (slope + slope_there) / 2
        else:
            h = (ve[i] / ve[i + 1]).log()
            gain = -torch.expm1(-h - eta * h)
            x = ve[i + 1] / ve[i] * (-eta * h).exp() * x + gain * x0
            if previous is not None:
                x = x + 0.5 * gain * (h / last_step) * (x0 - previous)
            x = x + ve[i + 1] * (-torch.expm1(-2 * eta * h)).sqrt() * next(noise)
            previous, last_step = x0, h
    t = torch.tensor(given)[:, None].expand(-1, len(x)).contiguous()
    return {"model_input": torch.stack(inputs), "t": t, "x0_pred": torch.stack(predictions), "sigmas": ve, "final": x}

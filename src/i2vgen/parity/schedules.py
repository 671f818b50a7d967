"""Replays of noise schedules: betas, refiner sigmas, and what the original derives from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from i2vgen.parity.calls import Call, ParityError, literal, parse_calls, split_top
from i2vgen.parity.checks import Check, absolute, elementwise
from i2vgen.parity.golden import INDEX, Case, indexed, read_json, read_tensors
from i2vgen.parity.recipe import Networks
from i2vgen.schedulers import (
    alphas_cumprod_from_betas,
    alphas_from_sigmas,
    cosine_betas,
    linear_sd_betas,
    logsnr_cosine_interp_sigmas,
    rescale_zero_terminal_snr,
    sigmas_from_betas,
)

TOLERANCE = 1e-9  # relative, float64
TOLERANCE_FLOAT32 = 1e-6  # relative
ALPHA_SQUARED_TOLERANCE = 2**-21  # absolute: four spacings of float32 at 1, from which 1 - sigma^2 is taken

Tables = dict[str, torch.Tensor]


def schedule_cases(folder: Path, _networks: Networks) -> Iterator[Case]:
    entries = read_json(folder / INDEX)
    calls = {name: entry.get("call", "") for name, entry in entries.items() if isinstance(entry, dict)}

    def replay(name: str, entry: Mapping[str, Any]) -> list[Check]:
        recorded = read_tensors(folder / f"{name}.safetensors", entry)
        ours = tables_of(_written_out(name, calls))
        checks = []
        for key, expected in recorded.items():
            if (known := _find(ours, key)) is None:
                raise ParityError(f"there is no table {key!r} of ours to compare with; known: {', '.join(ours)}")
            checks.append(_compare(key, ours[known], expected))
        return checks

    yield from indexed(folder, replay)


def tables_of(call: str) -> Tables:
    """All tables of the schedule that a call of the original builds."""
    options: dict[str, Any] = {}
    for part in parse_calls(call):
        options |= _options_of(part)
    num = options.get("num_timesteps", options.get("n", 1000))
    if "logsnr_cosine_interp" in call:
        bounds = {n: options[n] for n in ("scale_min", "scale_max", "logsnr_min", "logsnr_max") if n in options}
        sigmas = logsnr_cosine_interp_sigmas(num, **bounds)
        return {"sigmas": sigmas, "sigma_schedule": sigmas, "alphas": alphas_from_sigmas(sigmas)}
    if "linear_sd" in call:
        ends = {"beta_start": options.get("init_beta"), "beta_end": options.get("last_beta")}
        return derived(linear_sd_betas(num, **{n: v for n, v in ends.items() if v is not None}))
    if "cosine" not in call:
        raise ParityError(f"call: no schedule that is known (cosine, linear_sd, logsnr_cosine_interp) in {call!r}")
    betas = cosine_betas(num, options.get("cosine_s", 0.008))
    if "sigma_schedule" in call:  # the refiner's inversion: the original rescales only sigmas that end below 0.9999
        sigmas = sigmas_from_betas(betas)
        return {"sigmas": sigmas, "sigma_schedule": sigmas, "alphas": alphas_from_sigmas(sigmas)}
    return derived(rescale_zero_terminal_snr(betas) if options.get("zero_terminal_snr") else betas)


def derived(betas: torch.Tensor) -> Tables:
    """Everything that the original keeps beside the betas, float64 `(n,)` each (arXiv 2006.11239, eq. 6 and 7)."""
    acp = alphas_cumprod_from_betas(betas)
    before = torch.cat([torch.ones(1, dtype=acp.dtype), acp[:-1]])
    after = torch.cat([acp[1:], torch.zeros(1, dtype=acp.dtype)])
    variance = betas * (1 - before) / (1 - acp)
    return {
        "betas": betas,
        "alphas_cumprod": acp,
        "alphas_cumprod_prev": before,
        "alphas_cumprod_next": after,
        "sqrt_alphas_cumprod": acp.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - acp).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - acp).log(),
        "sqrt_recip_alphas_cumprod": (1 / acp).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / acp - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - acp),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - acp),
    }


def _compare(key: str, value: torch.Tensor, expected: torch.Tensor) -> Check:
    if expected.dtype == torch.float64:
        return elementwise(key, value, expected, TOLERANCE)
    if "alphas" in key:
        return absolute(f"{key}^2", value.double().square(), expected.double().square(), ALPHA_SQUARED_TOLERANCE)
    return elementwise(key, value, expected, TOLERANCE_FLOAT32)


def _find(ours: Tables, key: str) -> str | None:
    """The table that a recorded name means: its own, or the longest that it ends in (`vgen_forward_sigmas`)."""
    endings: Callable[[str], bool] = lambda name: key == name or key.endswith("_" + name)  # noqa: E731
    return max(filter(endings, ours), key=len, default=None)


def _options_of(call: Call) -> dict[str, Any]:
    """The options of a call and of the calls and mappings inside its arguments, as one."""
    options = {}
    for name, value in call.options.items():
        if isinstance(value, str) and value.startswith("{"):
            pairs = (part.partition(":") for part in split_top(value[1:-1]))
            options |= {key.strip().strip("'\""): literal(text) for key, _, text in pairs}
        elif isinstance(value, str) and "(" in value:
            for inner in parse_calls(value):
                options |= _options_of(inner)
        else:
            options[name] = value
    return options


def _written_out(name: str, calls: Mapping[str, str]) -> str:
    """The call of a case; "same, zero_terminal_snr False" is the one before it with a value changed."""
    call = calls[name]
    if not call.startswith("same"):
        return call
    names = list(calls)
    place = names.index(name)
    if place == 0:
        raise ParityError(f"call: {call!r} refers to a case before it, and there is none")
    full = _written_out(names[place - 1], calls)
    for change in split_top(call)[1:]:
        option, _, value = change.replace("=", " ").partition(" ")
        full, count = re.subn(rf"\b{re.escape(option)}\b(\s*[:=]\s*)[^,)}}]+", rf"{option}\g<1>{value.strip()}", full)
        if not count:
            raise ParityError(f"call: {option!r} does not occur in {full!r}")
    return full

"""Replays of training losses, through what our trainer draws, noises and minimises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from i2vgen.parity.calls import ParityError, analytic_model
from i2vgen.parity.checks import Check, absolute, relative
from i2vgen.parity.golden import Case, indexed, read_tensors, tensor
from i2vgen.parity.recipe import Networks
from i2vgen.parity.samplers import ddim_fields
from i2vgen.schedulers import I2VGenDDIMScheduler
from i2vgen.train.objective import NoiseLevels, clip_errors, offset_noise

TOLERANCE = 1e-5  # relative
NOISE_TOLERANCE = 1e-6  # absolute: a sum of two numbers
OFFSET = re.compile(r"([\d.]+)\s*\*\s*offset")


def training_cases(folder: Path, _networks: Networks) -> Iterator[Case]:
    yield from indexed(folder, lambda name, entry: _replay(folder / f"{name}.safetensors", entry))


def _replay(path: Path, entry: Mapping[str, Any]) -> list[Check]:
    recorded, call = read_tensors(path, entry), entry.get("call", "")
    x0, t = tensor(recorded, "x0"), tensor(recorded, "t")
    model = analytic_model(entry.get("model", ""))
    offset = float(found[1]) if (found := OFFSET.search(call)) else 0.1
    fields, levels = ddim_fields(call), NoiseLevels.of_stage("base")
    if fields["prediction_type"] != "v_prediction":
        raise ParityError("call: the trainer learns the velocity, not the noise")
    if fields["beta_schedule"] != "cosine" or not fields["rescale_betas_zero_snr"]:
        scheduler = I2VGenDDIMScheduler(**fields)
        levels = NoiseLevels(scheduler.alphas.float(), scheduler.sigmas.float())

    has_parts = {"base_noise", "offset_noise"} <= recorded.keys()
    mixed = offset_noise(recorded["base_noise"], recorded["offset_noise"], offset) if has_parts else None
    noise = recorded.get("noise", mixed)
    if noise is None:
        raise ParityError("there is no noise, and no base_noise with offset_noise")
    checks = []
    if mixed is not None:
        checks.append(absolute("noise", mixed, noise, NOISE_TOLERANCE))
    if mixed is not None and "seed" in entry and x0.dtype == torch.float32:
        generator = torch.Generator().manual_seed(entry["seed"])
        draws = [torch.randn(shape, generator=generator) for shape in (x0.shape, (*x0.shape[:3], 1, 1))]
        drawn = offset_noise(*draws, offset)
        checks.append(absolute("drawn noise", drawn, noise, NOISE_TOLERANCE))
    noised, target = levels.noised(x0, noise, t), levels.target(x0, noise, t)
    predicted = model(noised, t, tensor(recorded, "y"))
    loss = clip_errors(predicted, target)
    computed = {"xt": noised, "v_target": target, "model_out": predicted, "loss": loss}
    tensor(recorded, "loss")
    return checks + [relative(n, value, recorded[n], TOLERANCE) for n, value in computed.items() if n in recorded]

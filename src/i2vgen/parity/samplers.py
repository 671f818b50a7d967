"""Replays of sampling: recorded states and noise through our schedulers, with an analytic model or a tiny UNet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from i2vgen.parity.calls import Call, ParityError, analytic_model, conditions, parse_calls
from i2vgen.parity.checks import Check, elementwise, equal, relative
from i2vgen.parity.golden import Case, indexed, read_tensors, tensor
from i2vgen.parity.networks import run_unet
from i2vgen.parity.recipe import Networks
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler, apply_guidance

STATE_TOLERANCE = 1e-5  # relative, of states with the analytic model
STATE_TOLERANCE_FLOAT64 = 1e-9
CASCADE_TOLERANCE = 1e-3  # relative, of states with a UNet: guidance makes rounding grow
FLOAT32_SPACING = 2.0**-23  # of alpha^2 = 1 - sigma^2 in the refiner's float32 schedule

Condition = dict[str, torch.Tensor]
Predict = Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]  # (x, t (b), condition) -> v


@dataclass(frozen=True)
class Recording:
    """One sampler run of the original: its call in words, its tensors, the model that it was given."""

    call: str
    tensors: Mapping[str, torch.Tensor]
    predict: Predict
    tolerance: float

    def state(self, what: str, value: torch.Tensor, expected: torch.Tensor) -> Check:
        return relative(what, value, expected, self.tolerance)

    def guided(self, call: Call, options: Mapping[str, Any]) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """The prediction (x, t) -> v that the sampler sees, guided if the call has a scale."""
        given = self._conditions(call)
        scale = options["guide_scale"]
        if (scale is None) != (len(given) == 1):
            raise ParityError(f"{call.method}: guide_scale={scale} with {len(given)} entries in model_kwargs")

        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            times = torch.full((len(x),), int(t))
            outputs = [self.predict(x, times, condition) for condition in given]
            if scale is None:
                return outputs[0]
            return apply_guidance(*outputs, scale, options["guide_rescale"] or 0.0)

        return predict

    def _conditions(self, call: Call) -> list[Condition]:
        written = conditions(call)
        if len(written) > 2:
            raise ParityError(f"{call.method}: {len(written)} entries in model_kwargs, expected one or two")
        first: Condition = {name: tensor(self.tensors, source) for name, source in written[0].items()}
        others = [
            {n: torch.zeros_like(tensor(first, n)) if s == "zeros" else tensor(self.tensors, s) for n, s in e.items()}
            for e in written[1:]
        ]
        return [first, *others]


def sampler_cases(folder: Path, _networks: Networks) -> Iterator[Case]:
    def replay(name: str, entry: Mapping[str, Any]) -> list[Check]:
        tensors = read_tensors(folder / f"{name}.safetensors", entry)
        model = analytic_model(_field(entry, "model"))
        is_double = any(value.dtype == torch.float64 for value in tensors.values())
        tolerance = STATE_TOLERANCE_FLOAT64 if is_double else STATE_TOLERANCE
        recording = Recording(
            _field(entry, "call"), tensors, lambda x, t, given: model(x, t, tensor(given, "y")), tolerance
        )
        return replay_calls(recording)

    yield from indexed(folder, replay)


def cascade_cases(folder: Path, networks: Networks) -> Iterator[Case]:
    """Samplers driven by a tiny UNet: the entry names the model after "recipe, "."""

    def replay(name: str, entry: Mapping[str, Any]) -> list[Check]:
        tensors = read_tensors(folder / f"{name}.safetensors", entry)
        unet = networks.unet(_field(entry, "weights").rpartition(",")[2].strip())
        recording = Recording(
            _field(entry, "call"), tensors, lambda x, t, given: run_unet(unet, x, t, given), CASCADE_TOLERANCE
        )
        return replay_calls(recording)

    yield from indexed(folder, replay)


def replay_calls(recording: Recording) -> list[Check]:
    """All sampler calls of a recording, in order."""
    known = {"ddim_sample_loop": _sample_ddim, "ddim_reverse_sample_loop": _invert, "sample": _refine}
    calls = [call for call in parse_calls(recording.call) if call.method in known]
    if not calls:
        raise ParityError(f"call: no sampler that is known ({', '.join(known)}) in {recording.call!r}")
    return [check for call in calls for check in known[call.method](recording, call)]


def ddim_fields(call: str) -> dict[str, Any]:
    """Fields of I2VGenDDIMScheduler for the diffusion that a call of the original names in words."""
    fields: dict[str, Any] = {"prediction_type": "epsilon" if re.search(r"\beps\b", call) else "v_prediction"}
    if "linear_sd" in call or ("ModelScope" in call and "cosine" not in call):
        fields |= {"beta_schedule": "linear_sd", "rescale_betas_zero_snr": False}
        if ends := re.search(r"(\d*\.\d+)\.\.(\d*\.\d+)", call):
            fields |= {"beta_start": float(ends[1]), "beta_end": float(ends[2])}
        return fields
    named = re.search(r"(?:zero_terminal_snr|ztsnr)\W*(False)?", call)
    # a call that names no schedule at all is VGen's default, which has zero terminal SNR
    is_zero_snr = named[1] is None if named else "cosine" not in call
    return fields | {"beta_schedule": "cosine", "rescale_betas_zero_snr": is_zero_snr}


def _sample_ddim(recording: Recording, call: Call) -> list[Check]:
    defaults = {"noise": None, "guide_scale": None, "guide_rescale": None, "ddim_timesteps": 20, "eta": 0.0}
    options = call.take(defaults)
    tensors, eta = recording.tensors, options["eta"]
    scheduler = I2VGenDDIMScheduler(**ddim_fields(recording.call))
    scheduler.set_timesteps(options["ddim_timesteps"])
    states, times = tensor(tensors, "x"), tensor(tensors, "t")
    if mismatch := _timesteps(scheduler.timesteps.tolist(), times):
        return mismatch
    noise = tensor(tensors, "noise") if eta > 0 else None
    predict, checks = recording.guided(call, options), []
    x = tensors.get(options["noise"] or "x_T", states[0])
    for i, t in enumerate(scheduler.timesteps.tolist()):
        checks.append(recording.state(f"x[{i}]", x, states[i]))
        drawn = None if noise is None else noise[i]
        x = scheduler.step(predict(x, t), t, x, eta=eta, variance_noise=drawn).prev_sample
    return [*checks, recording.state("x[-1]", x, states[-1]), recording.state("final", x, tensor(tensors, "final"))]


def _invert(recording: Recording, call: Call) -> list[Check]:
    is_refiner = "DDIMSR" in recording.call  # it inverts to a level that the call names, not to pure noise
    levels = {"reverse_steps": 600} if is_refiner else {}
    defaults = {"x0": None, "guide_scale": None, "guide_rescale": None, "ddim_timesteps": 20}
    options = call.take(defaults | levels)
    fields = ddim_fields(recording.call) | ({"rescale_betas_zero_snr": False} if is_refiner else {})
    scheduler = I2VGenDDIMScheduler(**fields)
    end = options["reverse_steps"] - 1 if is_refiner else None
    pairs = scheduler.inversion_timesteps(options["ddim_timesteps"], end)

    tensors = recording.tensors
    is_part = "inversion_x" in tensors  # of a recording that goes on to sample
    names = ("inversion_x", "inversion_t", "inverted") if is_part else ("x", "t", "final")
    states, times, final = (tensor(tensors, name) for name in names)
    if mismatch := _timesteps([t for t, _ in pairs], times):
        return mismatch
    predict, checks = recording.guided(call, options), []
    x = tensors.get(options["x0"] or next(iter(call.positional), "x0"), states[0])
    for i, (t, next_t) in enumerate(pairs):
        checks.append(recording.state(f"{names[0]}[{i}]", x, states[i]))
        x = scheduler.invert_step(predict(x, t), t, next_t, x)
    return [*checks, recording.state(f"{names[0]}[-1]", x, states[-1]), recording.state(names[2], x, final)]


def _refine(recording: Recording, call: Call) -> list[Check]:
    defaults = {"noise": None, "guide_scale": None, "guide_rescale": None}
    solver = {"solver": "euler_a", "steps": 20, "t_max": None, "t_min": None, "discretization": None, "eta": 1.0}
    options = call.take(defaults | solver)
    tensors = recording.tensors
    scheduler = VideoRefineScheduler(
        solver=options["solver"],
        eta=options["eta"],
        discretization=options["discretization"] or "linspace",
    )
    if options["t_min"]:
        raise ParityError(f"sample: t_min={options['t_min']} is not supported, our levels end at 0")
    start = scheduler.config.num_train_timesteps - 1 if options["t_max"] is None else options["t_max"]
    scheduler.set_timesteps(options["steps"], start_timestep=start)
    inputs, times = tensor(tensors, "model_input"), tensor(tensors, "t")
    if mismatch := _timesteps(scheduler.timesteps.tolist(), times):
        return mismatch
    checks = _levels(scheduler, tensors)
    noised, noised_checks = _noised(tensors, scheduler, start)
    checks += noised_checks

    predict = recording.guided(call, options)
    draws = iter(tensors.get("sde_noise", ()))
    x = noised * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps.tolist()):
        checks.append(recording.state(f"model_input[{i}]", scheduler.scale_model_input(x, t), inputs[i]))
        drawn = next(draws, None) if _draws_noise(scheduler, i) else None
        if drawn is None and _draws_noise(scheduler, i):
            raise ParityError(f"sde_noise: there is no draw for step {i}")
        output = scheduler.step(predict(x, t), t, x, variance_noise=drawn)
        if "x0_pred" in tensors:
            checks.append(recording.state(f"x0_pred[{i}]", output.pred_original_sample, tensors["x0_pred"][i]))
        x = output.prev_sample
    return [*checks, recording.state("final", x, tensor(tensors, "final"))]


def _noised(
    tensors: Mapping[str, torch.Tensor], scheduler: VideoRefineScheduler, start: int
) -> tuple[torch.Tensor, list[Check]]:
    """The recorded state that a refiner starts from: an inverted video, or x0 noised to the level `start`."""
    if "inverted" in tensors:
        return tensors["inverted"], []
    if not {"x0", "noise"} <= tensors.keys():
        return tensor(tensors, "noised"), []
    ours = scheduler.add_noise(tensors["x0"], tensors["noise"], start)
    noised = tensors.get("noised", ours)
    # x0 and noise may stand beside a start that was not made of them: then no mixture of the two gives it
    parts = torch.stack([tensors["x0"].flatten(), tensors["noise"].flatten()], dim=1).double()
    target = noised.flatten().double()
    rest = target - parts @ torch.linalg.lstsq(parts, target[:, None]).solution[:, 0]
    is_mixture = rest.norm() < 1e-3 * target.norm()
    return noised, [relative("noised", ours, noised, STATE_TOLERANCE)] if is_mixture else []


def _levels(scheduler: VideoRefineScheduler, tensors: Mapping[str, torch.Tensor]) -> list[Check]:
    """sigma / alpha of the solver's levels, and the timesteps before rounding, where they were recorded.

    The original keeps its schedule in float32, which leaves alpha^2 = 1 / (1 + (sigma / alpha)^2) open by one
    spacing of float32: relative errors may grow with its inverse.
    """
    checks = []
    if "sigmas" in tensors:
        levels = scheduler.karras_sigmas
        alpha_squared = 1 / (1 + levels.square())
        allowance = 1 + FLOAT32_SPACING / alpha_squared.clamp(min=FLOAT32_SPACING) / STATE_TOLERANCE
        checks.append(elementwise("sigmas", levels, tensors["sigmas"], STATE_TOLERANCE, allowance))
    if "t_float" in tensors:
        checks += _timesteps(scheduler.timesteps.tolist(), tensors["t_float"].round().long())
    return checks


def _draws_noise(scheduler: VideoRefineScheduler, step: int) -> bool:
    """Whether the original draws in this step: not in the last one, and not from pure noise."""
    if scheduler.config.solver != "dpmpp_2m_sde" or scheduler.config.eta == 0:
        return False
    return step + 1 < scheduler.num_inference_steps and math.isfinite(scheduler.karras_sigmas[step])


def _timesteps(ours: list[int], recorded: torch.Tensor) -> list[Check]:
    """A failed check if the run has other timesteps (steps b) than recorded: no state can be compared then."""
    for column in recorded.reshape(len(recorded), -1).T.tolist():
        check = equal("t", ours, column)
        if not check.is_ok:
            return [check]
    return []


def _field(entry: Mapping[str, Any], name: str) -> str:
    if not isinstance(entry.get(name), str):
        raise ParityError(f"the case's JSON has no {name!r}")
    return entry[name]

"""How a run begins: the scheduler that it takes, and the timesteps that it goes through."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch

from i2vgen.pipelines.options import BaseOptions, RefineOptions
from i2vgen.schedulers import I2VGenDDIMScheduler


def scheduler_with(scheduler: Any, **fields: Any) -> Any:
    """`scheduler` itself, or one like it where `fields` that are not None or "" differ from its configuration.

    Raises ValueError naming a field that its class does not have.
    """
    changes = {k: v for k, v in fields.items() if v not in (None, "") and scheduler.config.get(k) != v}
    for name in changes:
        if name not in scheduler.config:
            raise ValueError(
                f"{name}: a {type(scheduler).__name__} cannot do that; without it (and without exact) it runs"
            )
    return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler


def base_scheduler(scheduler: Any, options: BaseOptions) -> Any:
    """The scheduler of a base run, its timesteps still to be set."""
    return scheduler_with(
        scheduler,
        timestep_spacing=options.timestep_spacing,
        final_alpha_cumprod=options.final_alpha_cumprod,
    )


def takes_start(scheduler: Any) -> bool:
    """Whether all steps of a run can lie below a chosen level; diffusers' schedulers run a share of a whole way."""
    return "start_timestep" in inspect.signature(scheduler.set_timesteps).parameters


def set_refine_timesteps(
    scheduler: Any, options: RefineOptions, start: int, share: float, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Start a refining run: (timesteps of its evaluations, the level that the video is brought to).

    A scheduler with a `start_timestep` spreads all steps below `start`. Others take the last `share` of
    num_inference_steps, as diffusers' VideoToVideoSDPipeline does, so that 50 steps at 0.6 are 30 evaluations.
    """
    if takes_start(scheduler):
        scheduler.set_timesteps(min(options.num_inference_steps, start), start_timestep=start, device=device)
        return scheduler.timesteps, scheduler.start_timestep
    scheduler.set_timesteps(options.num_inference_steps, device=device)
    taken = min(max(1, int(options.num_inference_steps * share)), options.num_inference_steps)
    begin = (options.num_inference_steps - taken) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    return timesteps, int(timesteps[0])


def inversion_pairs(options: RefineOptions, start: int) -> list[tuple[int, int]]:
    """(timestep, next timestep) of each evaluation of the inversion to `start`; none where noise is added."""
    if options.inversion_steps == 0:
        return []
    return inversion_scheduler().inversion_timesteps(min(options.inversion_steps, start + 1), start)


def inversion_scheduler() -> I2VGenDDIMScheduler:
    """sr600 inverts on the plain cosine schedule, whatever schedule it then samples on."""
    return I2VGenDDIMScheduler(rescale_betas_zero_snr=False)


def count_base(scheduler: Any, options: BaseOptions) -> int:
    """Steps of a base run, each one evaluation, or two with guidance."""
    scheduler = copy.deepcopy(base_scheduler(scheduler, options))
    scheduler.set_timesteps(options.num_inference_steps)
    return len(scheduler.timesteps)


def count_refine(scheduler: Any, options: RefineOptions, start: int, share: float) -> tuple[int, int]:
    """(steps of the inversion, steps of the refining run); the first are evaluated once, without guidance."""
    timesteps, _ = set_refine_timesteps(copy.deepcopy(scheduler), options, start, share, torch.device("cpu"))
    return len(inversion_pairs(options, start)), len(timesteps)

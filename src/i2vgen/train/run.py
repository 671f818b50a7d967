"""One run from its configuration: the task, the processes, and the estimate of a dry run."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch

from i2vgen.train.config import TrainConfig, load_config
from i2vgen.train.loop import Task, TrainingError, fit
from i2vgen.train.workers import Workers, start_workers, stop_workers

DRY_STEPS = 2  # that count, after one to warm up
TASKS = ("vae", "towers", "motion_prior", "object_prior", "denoiser")
SHARED_TASKS = ("denoiser",)  # the others are small, and run in one process


@dataclass(frozen=True)
class Estimate:
    """What the first steps of a run tell of the whole."""

    parameters: int  # trained
    frozen: int
    memory_bytes: int  # peak of this process so far, on the device that trains
    seconds_per_step: float
    waited_share: float
    num_steps: int

    @property
    def hours(self) -> float:
        return self.num_steps * self.seconds_per_step / 3600

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f} M parameters trained, {self.frozen / 1e6:.1f} M frozen\n"
            f"peak memory {self.memory_bytes / 1e9:.2f} GB\n"
            f"{self.seconds_per_step:.2f} s a step, {100 * self.waited_share:.0f} % of it waiting for data\n"
            f"{self.num_steps} steps: about {self.hours:.1f} h"
        )


def make_task(config: TrainConfig, workers: Workers | None = None) -> Task:
    """Raises ValueError for a task that is none of ours. Only the chosen task's modules are imported."""
    workers = workers or Workers()
    if config.task not in TASKS:
        raise ValueError(f"config: task must be one of {', '.join(TASKS)}, got {config.task!r}")
    if workers.count > 1 and config.task not in SHARED_TASKS:
        raise ValueError(f"config: the task {config.task} runs in one process, not in {workers.count}")
    if config.task == "vae":
        from i2vgen.train.vae import VAETask

        return VAETask(config)
    if config.task == "towers":
        from i2vgen.train.towers import TowersTask

        return TowersTask(config)
    if config.task == "motion_prior":
        from i2vgen.train.motion_prior import MotionPriorTask

        return MotionPriorTask(config)
    if config.task == "object_prior":
        from i2vgen.train.object_prior import ObjectPriorTask

        return ObjectPriorTask(config)
    from i2vgen.train.denoiser import DenoiserTask

    return DenoiserTask(config, workers)


def run(config: TrainConfig) -> None:
    """Train as `config` says, in as many processes as torchrun started.

    Raises ValueError for a configuration that cannot be used, TrainingError if the run cannot go on.
    """
    workers = start_workers(config.run.device)
    try:
        fit(make_task(config, workers), config, workers)
    finally:
        stop_workers()


def estimate(config: TrainConfig) -> Estimate:
    """Take a few steps, write nothing, and say what the run would need. Raises as `run`."""
    workers = start_workers(config.run.device)
    try:
        task = make_task(config, workers)
        measured = fit(task, config, workers, max_steps=1 + DRY_STEPS)
        seconds, waited = sum(measured.seconds[1:]), sum(measured.waited[1:])
        steps = max(1, len(measured.seconds) - 1)
        sizes = [(p.numel(), p.requires_grad) for p in task.model.parameters()]
        return Estimate(
            parameters=sum(n for n, trained in sizes if trained),
            frozen=sum(n for n, trained in sizes if not trained),
            memory_bytes=_peak_memory(workers.device),
            seconds_per_step=seconds / steps,
            waited_share=waited / max(1e-9, seconds),
            num_steps=config.optim.num_steps,
        )
    finally:
        stop_workers()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: list[str]) -> int:
    """`CONFIG.toml [section.key=value ...]`; 0 done, 1 the run failed, 2 the configuration is wrong."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m i2vgen.train CONFIG.toml [section.key=value ...]")
        return 0 if arguments else 2
    try:
        run(load_config(arguments[0], arguments[1:]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

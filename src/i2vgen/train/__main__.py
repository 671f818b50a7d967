"""`python -m i2vgen.train CONFIG.toml [section.key=value ...]`"""

from __future__ import annotations

import sys

from i2vgen.train.config import TrainConfig, load_config
from i2vgen.train.loop import Task, fit


def make_task(config: TrainConfig) -> Task:
    """Raises ValueError for a task that is none of ours. Only the chosen task's modules are imported."""
    if config.task == "vae":
        from i2vgen.train.vae import VAETask

        return VAETask(config)
    if config.task == "towers":
        from i2vgen.train.towers import TowersTask

        return TowersTask(config)
    if config.task == "motion_prior":
        from i2vgen.train.motion_prior import MotionPriorTask

        return MotionPriorTask(config)
    if config.task == "denoiser":
        from i2vgen.train.denoiser import DenoiserTask

        return DenoiserTask(config)
    raise ValueError(f"config: task must be vae, towers, motion_prior or denoiser, got {config.task!r}")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m i2vgen.train CONFIG.toml [section.key=value ...]")
        return 0 if arguments else 2
    try:
        config = load_config(arguments[0], arguments[1:])
        task = make_task(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    fit(task, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`i2vgen train`: a training run from its configuration file."""

from __future__ import annotations

from typing import Annotated

import typer

from i2vgen.cli.report import print_json


def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, for how long.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the file, changed.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, write nothing, estimate memory and time.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run, print one JSON document.")] = False,
) -> None:
    """Train a model, or go on with a run that was stopped.

    Examples:

      i2vgen train recipes/nano/base.toml

      i2vgen train recipes/nano/base.toml optim.num_steps=20000 run.dir=runs/mine

      i2vgen train recipes/nano/base.toml --dry-run

      torchrun --nproc-per-node 8 -m i2vgen.train recipes/xl/base.toml

    Everything lands in run.dir of the file: config.json, log.jsonl, tensorboard/, checkpoints/, samples/, export/.
    The same command goes on from the newest checkpoint, in as many processes as it is started with.
    """
    from dataclasses import asdict

    from i2vgen.cli.sources import quiet_libraries
    from i2vgen.train.config import load_config
    from i2vgen.train.run import estimate, run

    quiet_libraries()
    chosen = load_config(config, overrides or [])
    if not dry_run:
        if json:
            raise ValueError("--json: only with --dry-run; a run writes its log to log.jsonl")
        run(chosen)
        return
    found = estimate(chosen)
    if json:
        print_json(asdict(found) | {"hours": round(found.hours, 3)})
    else:
        print(found)

"""Checkpoints of a run, written by all its processes, readable by any number of others.

`RUN/checkpoints/step-0000250/` is a torch.distributed.checkpoint folder. It is written under another name and
renamed when complete, so that whatever stops the run, the last good one stays.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from i2vgen.train.workers import Workers

FOLDER = re.compile(r"step-(\d{7,})")
FACTS = "run.json"  # written last


def saved_steps(run_dir: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, rising."""
    folders = (run_dir / "checkpoints").glob("step-*")
    matches = [FOLDER.fullmatch(f.name) for f in folders if (f / FACTS).is_file()]
    return sorted(int(m[1]) for m in matches if m)


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:07d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor],
    workers: Workers,
    keep: int,
) -> Path:
    """Write the state after `step` steps and drop all but the `keep` newest checkpoints."""
    final = checkpoint_dir(run_dir, step)
    partial = final.with_name(f".{final.name}")
    if workers.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    workers.wait()
    with _quiet():
        dcp.save(_state(model, optimizer, ema), checkpoint_id=partial, no_dist=workers.count == 1)
    if workers.is_first:
        (partial / FACTS).write_text(json.dumps({"step": step, "processes": workers.count}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in saved_steps(run_dir)[:-keep]:
            shutil.rmtree(checkpoint_dir(run_dir, old))
    workers.wait()
    return final


def load_checkpoint(
    run_dir: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor],
    workers: Workers,
) -> int:
    """Take up the newest checkpoint of the run and return its step; 0 if there is none.

    Raises ValueError if it was made by another model.
    """
    steps = saved_steps(run_dir)
    if not steps:
        return 0
    folder = checkpoint_dir(run_dir, steps[-1])
    state = _state(model, optimizer, ema)
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=folder, no_dist=workers.count == 1)
    except (RuntimeError, ValueError, KeyError, dcp.api.CheckpointException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"run.dir: the checkpoint {folder} does not fit this configuration ({reason}); use another run.dir"
        ) from error
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=False),
    )
    return steps[-1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remark that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a checkpoint holds; loading fills these very tensors. Frozen weights are part of it, but not those that an
    adapter is trained beside: they stay where the run had them from."""
    is_adapted = bool(getattr(model, "peft_config", None))
    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=is_adapted))
    return {"model": weights, "optimizer": moments, "ema": ema}

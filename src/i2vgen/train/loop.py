"""The training loop shared by every task: optimiser, schedule, EMA, checkpoints, log, resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from i2vgen.train.config import TrainConfig


class Task(Protocol):
    """What a task brings to the loop. `model` holds every trained parameter."""

    model: nn.Module

    def batch(self, step: int) -> Any:
        """Data of one step; a pure function of (config, step), so that a resumed run sees the same data."""

    def loss(self, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, float]]: ...

    def evaluate(self) -> dict[str, float]: ...

    def export(self, folder: Path) -> None:
        """Write the components (from the EMA weights, which the loop has swapped in)."""


def fit(task: Task, config: TrainConfig) -> None:
    """Train `task` to `config.optim.num_steps`, continuing from the checkpoint of the run folder if there is one."""
    run_dir = Path(config.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    optim = config.optim
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=optim.learning_rate,
        betas=tuple(optim.betas),
        weight_decay=optim.weight_decay,
        fused=True,
    )
    ema = [p.detach().clone() for p in parameters]
    step = _load_checkpoint(run_dir, task.model, optimizer, ema)
    (run_dir / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))

    started, window, window_start = time.monotonic(), [], time.monotonic()
    batches = _prefetch(task, step, optim.num_steps)
    bar = tqdm(total=optim.num_steps, initial=step, desc=config.task, unit="step", dynamic_ncols=True, mininterval=5)
    with open(run_dir / "log.jsonl", "a") as log:

        def report(record: dict) -> None:
            log.write(json.dumps(record) + "\n")
            log.flush()

        for step, batch in batches:
            rate = _learning_rate(step, optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, metrics = task.loss(batch, step)
            if not torch.isfinite(loss):
                raise RuntimeError(f"loss is {loss.item()} at step {step}; the last checkpoint in {run_dir} is good")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
            optimizer.step()
            decay = min(optim.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - decay)

            done = step + 1
            window.append(metrics)
            bar.update(1)
            if done % config.run.log_every == 0:
                means = {
                    k: sum(m[k] for m in window if k in m) / sum(k in m for m in window) for k in set().union(*window)
                }
                pace = (time.monotonic() - window_start) / len(window)
                report(
                    {
                        "step": done,
                        "lr": rate,
                        "grad_norm": float(norm),
                        "seconds_per_step": round(pace, 3),
                        **means,
                    }
                )
                bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()})
                window, window_start = [], time.monotonic()
            stop = config.run.max_minutes and time.monotonic() - started > 60 * config.run.max_minutes
            last = done == optim.num_steps or stop
            if done % config.run.evaluate_every == 0 or last:
                with _swapped(parameters, ema):
                    record = task.evaluate()
                report({"step": done, **{f"val_{k}": v for k, v in record.items()}})
            if done % config.run.save_every == 0 or last:
                _save_checkpoint(run_dir, done, task.model, optimizer, ema)
            if last:
                break
    bar.close()
    with _swapped(parameters, ema):
        task.export(run_dir / "export")


def _learning_rate(step: int, optim: Any) -> float:
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, optim.num_steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * cosine


def _prefetch(task: Task, first: int, last: int, depth: int = 3):
    """Yield (step, batch) with the batches made ahead in one background thread."""
    ready: queue.Queue = queue.Queue(maxsize=depth)

    def work() -> None:
        for step in range(first, last):
            try:
                ready.put((step, task.batch(step)))
            except BaseException as error:
                ready.put((step, error))
                return
        ready.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (item := ready.get()) is not None:
        if isinstance(item[1], BaseException):
            raise RuntimeError(f"making the batch of step {item[0]} failed") from item[1]
        yield item


@contextmanager
def _swapped(parameters: list[torch.Tensor], ema: list[torch.Tensor]) -> Iterator[None]:
    """Within the block the parameters hold the EMA weights."""

    def swap() -> None:
        for p, e in zip(parameters, ema, strict=True):
            p.data, e.data = e.data, p.data

    swap()
    try:
        yield
    finally:
        swap()


def _save_checkpoint(run_dir: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: list) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema,
        "torch_rng": torch.get_rng_state(),
    }
    path = run_dir / "checkpoint.pt"
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _load_checkpoint(run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: list) -> int:
    path = run_dir / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for target, source in zip(ema, state["ema"], strict=True):
        target.copy_(source)
    torch.set_rng_state(state["torch_rng"])
    return state["step"]

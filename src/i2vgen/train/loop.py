"""The training loop shared by every task: optimiser, learning rate, average, checkpoints, log, resume."""

from __future__ import annotations

import dataclasses
import json
import math
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from i2vgen.train.checkpoints import load_checkpoint, save_checkpoint
from i2vgen.train.config import OptimConfig, TrainConfig
from i2vgen.train.ema import Average
from i2vgen.train.watch import Watch
from i2vgen.train.workers import Workers, share_model, split_rows, to_device, whole_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TrainingError(RuntimeError):
    """A run that cannot go on: the loss is no number, or its data cannot be had."""


class Task(Protocol):
    """What a task brings to the loop. `model` holds every trained parameter.

    May also have `parameter_groups() -> list[dict]` (with `lr_scale`), and `samples() -> {name: frames}`.
    """

    model: nn.Module

    def batch(self, step: int) -> Any:
        """This process's rows of a step; a function of (config, step), so that a resumed run sees the same data."""

    def loss(self, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, float]]: ...

    def evaluate(self) -> dict[str, float]: ...

    def export(self, folder: Path) -> None:
        """Write the components (from the averaged weights, which the loop has put into the model)."""


@dataclasses.dataclass
class Measured:
    """What the steps of a dry run took."""

    first_step: int
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each step
    waited: list[float] = dataclasses.field(default_factory=list)  # of these, for data


def fit(task: Task, config: TrainConfig, workers: Workers | None = None, max_steps: int | None = None) -> Measured:
    """Train `task` to `config.optim.num_steps`, from the newest checkpoint of the run folder if there is one.

    `max_steps`: take so many steps and return, leaving no trace (the command's --dry-run).
    Raises TrainingError naming the step if the loss is no number; the last checkpoint stays.
    """
    workers = workers or Workers()
    run, optim = config.run, config.optim
    is_dry = max_steps is not None
    run_dir = Path(run.dir)
    step_module = share_model(task, workers, run.strategy, DTYPES[run.dtype])
    optimizer = _optimizer(task, optim)
    average = Average(task.model, optim.ema_decay)
    first = 0
    if not is_dry:
        run_dir.mkdir(parents=True, exist_ok=True)
        first = load_checkpoint(run_dir, task.model, optimizer, average.tensors, workers)
        if workers.is_first:
            (run_dir / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))
    last = min(optim.num_steps, first + max_steps) if is_dry else optim.num_steps
    measured = Measured(first)
    watch = Watch(run_dir, config.task, first, last, workers) if not is_dry else None
    stop = _StopSignal()
    window = _Window()
    started = ended = time.monotonic()
    try:
        for step, batch, waited in _prefetch(task, first, last):
            torch.manual_seed((run.seed * 1_000_003 + step) * 1_009 + workers.rank)  # dropout, the same after a resume
            metrics, norm, rate = _train_step(step_module, task, optimizer, batch, step, config, workers)
            average.update(step)
            done = step + 1
            if is_dry:
                now = time.monotonic()
                measured.seconds.append(now - ended)
                measured.waited.append(waited)
                ended = now
                continue
            watch.advance()
            window.add(metrics, waited)
            if done % run.log_every == 0:
                watch.scalars(done, {"lr": rate, "grad_norm": norm, **workers.mean(window.means())})
                window = _Window()
            late = bool(run.max_minutes) and time.monotonic() - started > 60 * run.max_minutes
            is_last = workers.any(stop.is_set or late) or done == last
            if done % run.evaluate_every == 0 or is_last:
                with average.in_model():
                    watch.scalars(done, {f"val_{k}": v for k, v in workers.mean(task.evaluate()).items()})
            if run.sample_every and hasattr(task, "samples") and (done % run.sample_every == 0 or is_last):
                with average.in_model():
                    watch.videos(done, task.samples())
            if done % run.save_every == 0 or is_last:
                save_checkpoint(run_dir, done, task.model, optimizer, average.tensors, workers, run.keep_checkpoints)
            if is_last:
                break
        if not is_dry:
            with average.in_model():
                trained, task.model = task.model, whole_model(task.model)
                if workers.is_first:
                    task.export(run_dir / "export")
                task.model = trained
            workers.wait()
    finally:
        stop.close()
        if watch is not None:
            watch.close()
    return measured


def _train_step(
    step_module: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    step: int,
    config: TrainConfig,
    workers: Workers,
) -> tuple[dict[str, float], float, float]:
    """One update; returns (metrics, gradient norm, learning rate)."""
    optim = config.optim
    rate = _learning_rate(step, optim)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    metrics: dict[str, float] = {}
    parts = split_rows(to_device(batch, workers.device), optim.accumulation)
    for index, (part, share) in enumerate(parts):
        waits = index + 1 < len(parts) and hasattr(step_module, "no_sync")
        with step_module.no_sync() if waits else nullcontext():
            loss, values = step_module(part, step)
            if workers.any(not math.isfinite(loss.item())):
                raise TrainingError(
                    f"loss is {loss.item()} at step {step}: the run stops; its last checkpoint is good. "
                    "A lower optim.learning_rate or run.dtype=float32 may help"
                )
            (loss * share).backward()
        for name, value in values.items():
            metrics[name] = metrics.get(name, 0.0) + share * value
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is {norm} at step {step}: the run stops; its last checkpoint is good")
    optimizer.step()
    return metrics, norm, rate


def _optimizer(task: Task, optim: OptimConfig) -> torch.optim.Optimizer:
    if hasattr(task, "parameter_groups"):
        groups = task.parameter_groups()
    else:
        groups = [{"params": [p for p in task.model.parameters() if p.requires_grad]}]
    return torch.optim.AdamW(
        groups, lr=optim.learning_rate, betas=tuple(optim.betas), weight_decay=optim.weight_decay, fused=True
    )


def _learning_rate(step: int, optim: OptimConfig) -> float:
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, optim.num_steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * cosine


def _prefetch(task: Task, first: int, last: int, depth: int = 3) -> Iterator[tuple[int, Any, float]]:
    """Yield (step, batch, seconds waited for it), the batches made ahead in one background thread."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    is_over = threading.Event()

    def put(item: Any) -> None:
        while not is_over.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def work() -> None:
        for step in range(first, last):
            if is_over.is_set():
                return
            try:
                put((step, task.batch(step)))
            except BaseException as error:
                return put((step, error))
        put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            asked = time.monotonic()
            item = ready.get()
            if item is None:
                return
            step, batch = item
            if isinstance(batch, BaseException):
                raise TrainingError(f"making the batch of step {step} failed: {batch}") from batch
            yield step, batch, time.monotonic() - asked
    finally:
        is_over.set()


class _Window:
    """Metrics since the last line of the log."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.waited, self.start = 0.0, time.monotonic()

    def add(self, metrics: dict[str, float], waited: float) -> None:
        self.rows.append(metrics)
        self.waited += waited

    def means(self) -> dict[str, float]:
        names = dict.fromkeys(name for row in self.rows for name in row)
        means = {n: float(np.mean([row[n] for row in self.rows if n in row])) for n in names}
        seconds = time.monotonic() - self.start
        return {
            "seconds_per_step": round(seconds / len(self.rows), 4),
            "data_wait_share": round(self.waited / seconds, 4),
            **means,
        }


class _StopSignal:
    """SIGTERM and Ctrl-C end the run after the step in hand, with a checkpoint."""

    def __init__(self) -> None:
        self.is_set = False
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._set)

    def _set(self, number: int, frame: Any) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True

    def close(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

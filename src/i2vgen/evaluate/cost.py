"""Measure "cost": time and peak memory of one video with the default preset, in a process of its own."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from i2vgen.evaluate.bars import Report, Table, at_most, number
from i2vgen.evaluate.runs import finished, num_errors

REPEATS = 3
PROMPT = "the camera pans to the right"
MAX_SECONDS = 60
MAX_WEIGHTS = 48  # MiB


@dataclass(frozen=True)
class CostItem:
    photo: Path
    prompt: str = PROMPT

    @property
    def key(self) -> str:
        return self.photo.name


@dataclass(frozen=True)
class Machine:
    """How the model is loaded, as `i2vgen.pipelines.load_cascade` takes it."""

    model: str
    device: str
    dtype: str
    refiner: str | None = None
    refine: bool = True


def plan(photos: dict[Path, str]) -> list[CostItem]:
    """The first photo; the time does not depend on what it shows."""
    return [CostItem(next(iter(photos)))]


def work(item: CostItem, machine: Machine) -> tuple[dict, dict[str, np.ndarray]]:
    """A fresh process loads the model and makes the video `REPEATS` times."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, str(item.photo), item.prompt, machine).result(), {}


def measure(photo: str, prompt: str, machine: Machine) -> dict:
    """Load, make, and say what it took: seconds, bytes, size, processors. To be run in a fresh process."""
    from i2vgen.evaluate.animator import CascadeAnimator
    from i2vgen.media import load_image
    from i2vgen.pipelines import load_cascade

    begin = time.perf_counter()
    # the libraries' notices and bars; what goes wrong is raised
    with contextlib.redirect_stderr(io.StringIO()):
        cascade = load_cascade(machine.model, machine.device, machine.dtype, machine.refiner)
    animator = CascadeAnimator(cascade, machine.refine)
    loaded = time.perf_counter() - begin
    seconds = []
    for seed in range(REPEATS):
        begin = time.perf_counter()
        made = animator.animate(load_image(photo), prompt, seed)
        seconds.append(time.perf_counter() - begin)
    device = cascade.vae.device
    modules = {id(m): m for m in cascade.components.values() if isinstance(m, torch.nn.Module)}
    parameters = sum(p.numel() for module in modules.values() for p in module.parameters())
    return {
        "load_seconds": loaded,
        "seconds": seconds,
        "memory": peak_memory(),
        "device_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(cascade.unet.dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "num_processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "num_parameters": parameters,
        "weights": weights_size(machine),
        "size": list(made.frames.shape[:3]),
    }


def peak_memory() -> int | None:
    """Most bytes of this process that were in memory at once; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss, which keeps the largest value of the process that started this one
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(lines[0].split()[1]) * 1024 if lines else None
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def weights_size(machine: Machine) -> int:
    """Bytes of the weight files of the model's folder, and of the refiner's where that is another."""
    from i2vgen.pipelines import CascadePipeline
    from i2vgen.pipelines.loading import resolve_folder

    total = 0
    for name in (machine.model, machine.refiner):
        if name is not None:
            folder = Path(resolve_folder(name, CascadePipeline, {}))
            total += sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return total


def report(results: dict, notes: list[str]) -> Report:
    clips = finished(results)
    clip = clips[0] if clips else None
    seconds = clip and float(np.median(clip["seconds"]))
    megabytes = clip and clip["weights"] / 2**20
    bars = [
        at_most("whole cascade with the default preset, median of the runs", seconds, MAX_SECONDS, "s"),
        at_most("weights", megabytes, MAX_WEIGHTS, "MiB"),
    ]
    rows = [_row(clip)] if clip else []
    header = ("device", "dtype", "threads", "processors", "frames", "size", "load, s", "runs, s")
    header += ("peak memory, MB", "peak on the device, MB", "parameters, M")
    notes = [
        f'One video of the first photo, "{PROMPT}", {REPEATS} times in a fresh process; the memory is that of the '
        "whole process with its libraries.",
        *notes,
    ]
    return Report("cost", bars, [Table("", header, rows)], notes, len(results["clips"]), num_errors(results))


def _row(clip: dict) -> tuple[str, ...]:
    frames, height, width = clip["size"]
    return (
        clip["device"],
        clip["dtype"],
        str(clip["num_threads"]),
        str(clip["num_processors"]),
        str(frames),
        f"{width}x{height}",
        number(clip["load_seconds"]),
        ", ".join(number(value) for value in clip["seconds"]),
        number(clip["memory"], 0, 1e-6),
        number(clip["device_memory"], 0, 1e-6),
        number(clip["num_parameters"], 1, 1e-6),
    )


def worst_first(results: dict) -> list[str]:
    return []

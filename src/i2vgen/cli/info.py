"""`i2vgen info`: versions, devices, the bundled model, and what a request would take."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import print_json, readable_bytes, readable_seconds
from i2vgen.cli.show import setting_lines

if TYPE_CHECKING:
    import torch

    from i2vgen.pipelines import BaseOptions, CascadePipeline, RefineOptions

REFINED_FRAMES = 16  # of the video that a refiner alone is estimated for, where none are asked for
EXTRAS = {"train": ("cv2",), "evaluate": ("cv2",), "dev": ("pytest",)}


def info(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Estimate a run of this model.", rich_help_panel="A request"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Size of the result.", rich_help_panel="A request", metavar="WxH"),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", help="Number of frames.", rich_help_panel="A request")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Steps of the base stage, or of a refiner alone.", rich_help_panel="A request"),
    ] = None,
    no_refine: Annotated[
        bool, typer.Option("--no-refine", help="The base stage alone.", rich_help_panel="A request")
    ] = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    json: o.Json = False,
) -> None:
    """Say what is installed, which devices there are, and how long a run would take.

    Examples:

      i2vgen info

      i2vgen info --model ./my-model --size 1280x720 --frames 16

      i2vgen info --model ./Video-to-Video --frames 32
    """
    o.check_numbers(frames=frames, steps=steps)
    chosen_size = o.parse_size(size)
    from i2vgen.cli.sources import quiet_libraries
    from i2vgen.pipelines.loading import NANO_DIR

    quiet_libraries()
    facts = machine_facts()
    has_nano = (NANO_DIR / "model_index.json").is_file()
    facts["nano"] = {"folder": str(NANO_DIR), "is_present": has_nano}
    is_request = any(value is not None for value in (model, size, frames, steps))
    if is_request or has_nano:
        facts["estimate"] = request_facts(
            model or "nano", chosen_size, frames, steps, not no_refine, device, dtype.value
        )
    if json:
        print_json(facts)
        return
    print("\n".join(setting_lines(_readable(facts), 100)))


def machine_facts() -> dict[str, Any]:
    """Versions, devices, extras. Memory in bytes."""
    import av
    import torch

    from i2vgen.pipelines.cascade import versions

    devices = [_cpu_facts()]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name, has_bf16 = torch.cuda.get_device_name(device), torch.cuda.is_bf16_supported()
        devices.append({"name": str(device), "model": name, "memory": memory_of(device), "has_bfloat16": has_bf16})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "model": platform.processor(), "memory": memory_of(torch.device("cpu"))})
    extras = {name: all(importlib.util.find_spec(m) for m in modules) for name, modules in EXTRAS.items()}
    ffmpeg = getattr(av, "ffmpeg_version_info", None) or "unknown"
    libraries = {"av": importlib.metadata.version("av"), "ffmpeg": ffmpeg}
    return {"versions": versions() | libraries, "devices": devices, "extras": extras}


def _cpu_facts() -> dict[str, Any]:
    import torch

    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return {
        "name": "cpu",
        "model": platform.machine(),
        "memory": memory_of(torch.device("cpu")),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        # bfloat16 runs on any CPU; fast only with these instructions
        "has_bfloat16": any(name in flags.split() for name in ("avx512_bf16", "amx_bf16", "bf16")),
    }


def memory_of(device: torch.device) -> int | None:
    """Bytes installed; None where the system does not say."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def request_facts(
    model: str,
    size: tuple[int, int] | None,
    num_frames: int | None,
    steps: int | None,
    is_refined: bool,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """Estimated seconds and bytes of a run; reads configurations, no weights."""
    from i2vgen.pipelines.estimate import estimate, skeleton
    from i2vgen.pipelines.loading import parse_device, parse_dtype

    cascade = skeleton(model)
    cascade.model_name = model
    target = parse_device(device)
    base, refine = requested_stages(cascade, size, num_frames, steps, is_refined)
    num_frames = REFINED_FRAMES if num_frames is None else num_frames
    guess = estimate(cascade, base, refine, target, parse_dtype(dtype, target), num_frames)
    final = refine or base
    return {
        "model": model,
        "device": str(target),
        "dtype": str(parse_dtype(dtype, target)).removeprefix("torch."),
        "size": f"{final.width}x{final.height}",
        "base_size": f"{base.width}x{base.height}" if base else None,
        "frames": base.num_frames if base else num_frames,
        "steps": base.num_inference_steps if base else None,
        "refine_steps": refine.num_inference_steps if refine else None,
        "seconds": round(guess.seconds, 2),
        "seconds_of_stages": {name: round(seconds, 2) for name, seconds in guess.stages.items()},
        "memory": round(guess.memory_bytes),
        "multiply_adds": guess.multiply_adds,
    }


def requested_stages(
    cascade: CascadePipeline, size: tuple[int, int] | None, num_frames: int | None, steps: int | None, is_refined: bool
) -> tuple[BaseOptions | None, RefineOptions | None]:
    """The options of the stages that the request is for; of a refiner alone, with `steps` as its own."""
    from i2vgen.cli.generate import stage_options
    from i2vgen.cli.refine import refine_options

    if cascade.base is None:
        if not is_refined:
            raise ValueError(f"model {cascade.model_name!r} is a refiner alone: leave --no-refine out")
        own = cascade.refiner.options
        return None, refine_options(cascade, (own.width, own.height), size, steps, None, None)
    own = cascade.base.options
    return stage_options(
        cascade,
        (own.width, own.height),
        size,
        is_refined and cascade.refiner is not None,
        num_frames=num_frames,
        num_inference_steps=steps,
    )


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    readable: dict[str, Any] = dict(facts["versions"])
    for device in facts["devices"]:
        memory = readable_bytes(device["memory"]) if device["memory"] else "memory unknown"
        cores = f", {device['num_cores']} cores, {device['num_threads']} threads" if "num_cores" in device else ""
        bf16 = {True: ", fast bfloat16", False: ", no fast bfloat16"}.get(device.get("has_bfloat16"), "")
        readable[device["name"]] = f"{device['model']}, {memory}{cores}{bf16}"
    readable["extras"] = ", ".join(name for name, is_there in facts["extras"].items() if is_there) or "none"
    readable["nano"] = f"{facts['nano']['folder']} ({'present' if facts['nano']['is_present'] else 'missing'})"
    if "estimate" in facts:
        guess = dict(facts["estimate"])
        guess["seconds"] = f"about {readable_seconds(guess['seconds'])} (within a factor of 2)"
        guess["seconds_of_stages"] = ", ".join(
            f"{name} {readable_seconds(seconds)}" for name, seconds in guess["seconds_of_stages"].items()
        )
        guess["memory"] = f"about {readable_bytes(guess['memory'])} (within a factor of 2)"
        guess["multiply_adds"] = f"{guess['multiply_adds']:.3g}"
        readable["estimate"] = guess
    return readable

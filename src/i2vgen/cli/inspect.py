"""`i2vgen inspect`: what a checkpoint is."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import print_json, readable_bytes
from i2vgen.cli.show import setting_lines

if TYPE_CHECKING:
    from i2vgen.checkpoints.detect import Detected

FOREIGN = ("unet", "vae", "text", "vision", "clip", "sd", "modelscope", "vgen")


def inspect(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Weights: a file, or a folder of any layout.", show_default=False),
    ],
    keys: Annotated[
        bool,
        typer.Option("--keys", help="List every tensor with its shape and dtype.", rich_help_panel=o.OUTPUT),
    ] = False,
    json: o.Json = False,
) -> None:
    """Say what a checkpoint is: which network of which variant, and whether it is complete.

    Reads names and shapes only; a pickle is opened as weights, so that nothing in it can run.

    Examples:

      i2vgen inspect sr_step_110000_ema.pth

      i2vgen inspect ./i2vgen-xl --json

      i2vgen inspect open_clip_pytorch_model.bin --keys
    """
    from i2vgen.cli.sources import quiet_libraries

    quiet_libraries()  # before transformers is imported further, which warns
    from i2vgen.checkpoints.detect import detect
    from i2vgen.checkpoints.jobs import problem

    found = detect(file)
    wrong = problem(found)
    tensors = tensors_of(found) if keys else {}
    if json:
        print_json(facts(found) | {"problem": wrong or None} | ({"tensors": tensors} if keys else {}))
        return
    print("\n".join(setting_lines(readable(found, wrong), min(shutil.get_terminal_size().columns, 100))))
    for part, entries in tensors.items():
        print(f"\n{part or 'tensors'}")
        width = max((len(key) for key in entries), default=0) + 2
        for key, (shape, dtype) in entries.items():
            name = "".join(c if c.isprintable() else " " for c in key)
            print(f"  {name:<{width}}{'x'.join(map(str, shape)) or 'number':<20} {dtype}")


def tensors_of(found: Detected) -> dict[str, dict[str, tuple[list[int], str]]]:
    """Name of the part ("" for a file) -> key -> (shape, dtype)."""
    from i2vgen.checkpoints.reading import open_tensors

    parts = {name: part for name, part in found.components.items() if part.path is not None} or {"": found}
    listed = {}
    for name, part in parts.items():
        with open_tensors(part.path) as tensors:
            listed[name] = {
                key: (list(tensors.shapes[key]), str(tensors.dtypes[key]).removeprefix("torch."))
                for key in sorted(tensors)
            }
    return listed


def facts(found: Detected) -> dict[str, Any]:
    """The whole of it, for programs."""
    return {
        "path": str(found.path) if found.path is not None else None,
        "kind": found.kind,
        "variant": found.variant or None,
        "source": found.source or None,
        "candidates": list(found.candidates),
        "class": found.class_name or None,
        "format": found.format or None,
        "files": found.num_files,
        "tensors_count": found.num_tensors,
        "parameters": found.num_parameters,
        "dtypes": dict(found.dtypes),
        "bytes": found.size,
        "step": found.step,
        "components": {name: facts(part) for name, part in found.components.items()},
    }


def readable(found: Detected, wrong: str) -> dict[str, Any]:
    rows: dict[str, Any] = {"path": str(found.path), "is": found.label}
    if found.source and found.source != found.kind:
        rows["layout"] = found.source
    if found.candidates:
        rows["layout"] = f"{' or '.join(found.candidates)}: their keys are the same"
    if found.evidence:
        rows["variant by"] = found.evidence
    if found.class_name:
        rows["class"] = found.class_name
    files = "" if found.num_files == 1 else f", {found.num_files} files"
    rows["size"] = f"{readable_bytes(found.size)} ({found.format}{files})"
    rows["parameters"] = f"{found.num_parameters:,} in {found.num_tensors} tensors"
    if found.dtypes:
        several = len(found.dtypes) > 1
        rows["dtype"] = ", ".join(f"{name} ({n})" if several else name for name, n in found.dtypes.items())
    if found.step is not None:
        rows["step"] = str(found.step)
    if found.components:
        rows["networks"] = {
            name: f"{part.label}, {part.num_parameters:,} parameters, layout {part.source or 'unclear'}"
            for name, part in found.components.items()
        }
    if found.kind not in ("unknown", "lora", "sd-unet"):
        rows["keys"] = wrong or "all known, none missing, shapes fit"
    rows |= _next(found) if not wrong else {}
    return rows


def _next(found: Detected) -> dict[str, str]:
    """The command that makes it usable."""
    path = shlex.quote(str(found.path))
    if found.kind == "pipeline":
        return {"to use it": f"i2vgen generate IMAGE PROMPT -o video.mp4 --model {path}"}
    if found.kind in FOREIGN and found.source not in ("diffusers", "transformers"):
        sources = " or ".join(f"--source {source}" for source in found.candidates)
        return {"to convert it": f"i2vgen convert {path} FOLDER {sources}".rstrip()}
    return {}

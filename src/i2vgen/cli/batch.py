"""`i2vgen batch`: a list of pictures and prompts, one model, resumable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2vgen.batch import Item, item_states, model_identity, plan_items, read_list, run_batch
from i2vgen.batch.interrupts import terminate_as_interrupt
from i2vgen.batch.names import FORMATS
from i2vgen.batch.results import RESULTS_NAME
from i2vgen.cli import options as o
from i2vgen.cli.batch_report import ClusterConsole, Console, print_plan
from i2vgen.cli.output import write_picture
from i2vgen.cli.preview import SHEET_NAME
from i2vgen.cli.report import counted, print_json
from i2vgen.cli.sources import named_model, open_cascade, parse_loras, quiet_libraries

if TYPE_CHECKING:
    from i2vgen.pipelines import CascadePipeline

SHEET_VIDEOS = 40
Format = Enum("Format", {name: name for name in FORMATS}, type=str)


def batch(
    list_file: Annotated[
        str,
        typer.Argument(metavar="LIST", help="File of items, - for standard input; see above.", show_default=False),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="Folder for videos and results.", rich_help_panel=o.OUTPUT, show_default=False
        ),
    ],
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            "-n",
            help="Videos of each row, other seeds. \\[1]",
            rich_help_panel=o.VIDEO,
            show_default=False,
        ),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            help="Of row 1; each row adds 1000, each repeat 1. \\[0]",
            rich_help_panel=o.VIDEO,
            show_default=False,
        ),
    ] = 0,
    no_refine: o.NoRefine = False,
    frames: o.Frames = None,
    size: o.Size = None,
    fps: o.Fps = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    negative_prompt: o.NegativePrompt = None,
    refine_steps: o.RefineSteps = None,
    refine_strength: o.RefineStrength = None,
    fit: o.FitOption = o.Fit.crop,
    exact: o.Exact = False,
    model: o.Model = "nano",
    refiner: o.Refiner = None,
    lora: o.Lora = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            help="Items of one shape sampled together. \\[1]",
            rich_help_panel=o.MODEL,
            show_default=False,
        ),
    ] = 1,
    engine: Annotated[
        o.Engine,
        typer.Option(
            "--engine",
            help="local, or ray: spread over a Ray cluster. \\[local]",
            rich_help_panel=o.MODEL,
            show_default=False,
            metavar="NAME",
        ),
    ] = o.Engine.local,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            help="Models side by side on the cluster. \\[its GPUs]",
            rich_help_panel=o.MODEL,
            show_default=False,
        ),
    ] = None,
    clip_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="mp4, webm, gif, webp, or png: a folder of frames each. \\[mp4]",
            rich_help_panel=o.OUTPUT,
            show_default=False,
            metavar="SUFFIX",
        ),
    ] = Format.mp4,
    contact_sheet: Annotated[
        bool,
        typer.Option(
            "--contact-sheet",
            help=f"Also write {SHEET_NAME}, some frames of every video.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the items, estimate the time, and stop.", rich_help_panel=o.OUTPUT),
    ] = False,
    stop_on_error: Annotated[
        bool,
        typer.Option("--stop-on-error", help="Stop at the first item that fails.", rich_help_panel=o.OUTPUT),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed/--no-retry-failed",
            help="Try items again that failed in an earlier run. \\[try]",
            rich_help_panel=o.OUTPUT,
            show_default=False,
        ),
    ] = True,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Replace videos made with other settings, or by something else.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    json: o.Json = False,
) -> None:
    """Make a video of every row of a list.

    The list is one of

      lines of  image|||caption

      CSV whose first row names the columns

      JSONL, one object a line

    Columns or keys: image, prompt (or caption), seed, repeats, output (the
    file's name), negative_prompt, size, frames, fps, steps, guidance, fit,
    exact, refine (true or false), refine_prompt, refine_steps, refine_strength.
    What a row does not say, the options say. Relative images are looked for
    beside the list, then here. Blank lines and # lines are skipped. A model that
    reads no text leaves the captions to its refiner.

    Run the same command again to go on after a stop: finished videos stay,
    failed and half-made ones are made again. A row or model that changed
    since its video was made is refused, unless --force. results.jsonl in the
    folder says what became of each item. The exit code is 1 if any failed.

    Examples:

      i2vgen batch shots.txt -o videos

      i2vgen batch shots.csv -o videos --repeats 4 --format webp --contact-sheet

      i2vgen batch shots.jsonl -o videos --dry-run
    """
    # 1. Check, before anything slow
    o.check_numbers(
        seed,
        guidance,
        refine_strength,
        repeats=repeats,
        batch_size=batch_size,
        frames=frames,
        fps=fps,
        steps=steps,
        refine_steps=refine_steps,
    )
    given = {
        "size": o.parse_size(size),
        "frames": frames,
        "fps": fps,
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "refine": False if no_refine else None,
        "refine_steps": refine_steps,
        "refine_strength": refine_strength,
        "fit": fit.value if fit is not o.Fit.crop else None,
        "exact": True if exact else None,
    }
    loras = parse_loras(lora)
    folder = Path(output).expanduser()
    with _many_lines():
        rows = read_list(list_file)
        items = plan_items(rows, seed, repeats, clip_format.value, given)
        quiet_libraries()
        identity = model_identity(
            named_model(model),
            dtype.value,
            refiner and named_model(refiner),
            [(adapter.path, adapter.weight) for adapter in loras],
        )
        if dry_run:
            raise typer.Exit(
                print_plan(item_states(items, folder, identity), model, refiner, device, dtype.value, json)
            )

        # 2. Make them
        if replicas is not None and engine is not o.Engine.ray:
            raise ValueError("--replicas is of --engine ray: add that, or leave it out")
        from i2vgen.batch.ray_cascades import ray_cascades

        is_cluster = engine is o.Engine.ray
        report = ClusterConsole(folder, is_quiet=json) if is_cluster else Console(folder, is_quiet=json)

        def load_here() -> CascadePipeline:
            return open_cascade(model, device, dtype.value, refiner, loras)

        try:
            with ray_cascades(replicas) if is_cluster else nullcontext() as cluster, terminate_as_interrupt():
                result = run_batch(
                    items,
                    folder,
                    load=(lambda: cluster(load_here)) if is_cluster else load_here,
                    model=identity,
                    batch_size=batch_size,
                    force=force,
                    retry_failed=retry_failed,
                    stop_on_error=stop_on_error,
                    report=report,
                )
        except KeyboardInterrupt:
            print(f"{report.num_finished} of {report.total} made; the same command goes on", file=sys.stderr)
            raise

    # 3. Say what became of it
    document = {
        "folder": str(folder),
        "results": str(folder / RESULTS_NAME),
        "items": len(items),
        "done": len(result.done),
        "skipped": len(result.skipped),
        "failed": len(result.failed),
        "seconds": round(sum(entry["seconds"] for entry in result.done), 3),
    }
    if contact_sheet and (result.done or result.skipped):
        done = {*result.skipped, *(entry["output"] for entry in result.done)}
        document["contact_sheets"] = _write_sheets(folder, [item for item in items if item.output in done])
    if json:
        entries = {entry["output"]: entry for entry in [*result.done, *result.failed]}
        print_json(document | {"entries": list(entries.values()), "skipped_outputs": result.skipped})
    else:
        print(_summary(document, result.is_stopped))
    raise typer.Exit(1 if result.failed else 0)


def _summary(document: dict[str, Any], is_stopped: bool) -> str:
    left = document["items"] - document["done"] - document["skipped"] - document["failed"]
    parts = [f"{document['done']} done", f"{document['skipped']} skipped (done before)", f"{document['failed']} failed"]
    parts += [f"{left} not tried" for _ in range(is_stopped and left > 0)]
    lines = [f"{counted(document['items'], 'item')}: {', '.join(parts)}; see {document['results']}"]
    lines += [f"{path}: some frames of every video" for path in document.get("contact_sheets", ())]
    return "\n".join(lines)


@contextmanager
def _many_lines():
    """Of an error of several lines the first are printed as they are, the last becomes the command's error."""
    try:
        yield
    except ValueError as error:
        *first, last = str(error).split("\n")
        if not first:
            raise
        print("\n".join(first), file=sys.stderr)
        raise ValueError(last) from error


def _write_sheets(folder: Path, items: Sequence[Item]) -> list[str]:
    """Contact sheets of the items' videos, `SHEET_VIDEOS` on each."""
    import numpy as np

    from i2vgen.media import contact_sheet, load_video

    paths = []
    for start in range(0, len(items), SHEET_VIDEOS):
        videos = []
        for item in items[start : start + SHEET_VIDEOS]:
            frames = load_video(folder / item.output).frames
            videos.append(frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).round().astype(int)])
        labels = [f"{item.output}: {item.prompt}" for item in items[start : start + SHEET_VIDEOS]]
        path = folder / SHEET_NAME
        path = path if start == 0 else path.with_stem(f"{path.stem}-{start // SHEET_VIDEOS + 1}")
        paths.append(str(write_picture(path, contact_sheet(videos, labels, columns=2))))
    return paths

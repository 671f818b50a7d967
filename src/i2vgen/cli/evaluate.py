"""`i2vgen evaluate`: a model against the bars of nano's model card."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import print_json
from i2vgen.cli.sources import announce, named_model, open_cascade

MATERIAL = "What it is measured on"
FAILED, BELOW_BARS = 1, 3


class Measure(str, Enum):
    all = "all"
    motion = "motion"
    vae = "vae"
    truth = "truth"
    spectrum = "spectrum"
    objects = "objects"
    film = "film"
    cost = "cost"


class Wordings(str, Enum):
    held_out = "held-out"
    seen = "seen"


def evaluate(
    what: Annotated[list[Measure], typer.Argument(metavar="WHAT...", help="Measures, or all.", show_default=False)],
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="Folder for the results.", rich_help_panel=o.OUTPUT, show_default=False),
    ],
    pack: Annotated[
        str | None,
        typer.Option(
            "--pack",
            help="Data folder with test photos, cut-outs and film shots.",
            rich_help_panel=MATERIAL,
            metavar="DIR",
        ),
    ] = None,
    photos: Annotated[
        str | None,
        typer.Option("--photos", help="Your own photos instead.", rich_help_panel=MATERIAL, metavar="DIR"),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            "--captions", help="Their captions, lines of file and caption.", rich_help_panel=MATERIAL, metavar="JSONL"
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Seeds a clip, from 0. \\[3]", rich_help_panel=MATERIAL, show_default=False)
    ] = 3,
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Only the first so many photos, or shots.", rich_help_panel=MATERIAL),
    ] = None,
    wordings: Annotated[
        Wordings,
        typer.Option(
            "--wordings",
            help="held-out: not used in training; or seen. \\[held-out]",
            rich_help_panel=MATERIAL,
            metavar="WHICH",
            show_default=False,
        ),
    ] = Wordings.held_out,
    no_refine: o.NoRefine = False,
    model: o.Model = "nano",
    refiner: o.Refiner = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a bar is missed.", rich_help_panel=o.OUTPUT)
    ] = False,
    json: o.Json = False,
) -> None:
    """Measure a model on photos that it has never seen.

    motion: camera moves as told, speed words, stillness, first frame. vae: the VAE alone. truth: against pans, tilts
    and zooms of larger photos. spectrum: what the refiner adds. objects: things that move as told. film: against
    held-out shots. cost: time and memory.

    Examples:

      i2vgen evaluate motion --photos my-photos --limit 2 --seeds 1 -o results

      i2vgen evaluate all --pack nano-data --dtype bfloat16 -o results

    Writes a table (.md), every clip's figures (.json) and a sheet of frames (.png) for each measure, and summary.md.
    The same command goes on where it was stopped.
    """
    # 1. Check, before anything slow
    o.check_numbers(seeds=seeds, limit=limit)
    measures = _measures(what, has_pack=pack is not None)
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {output!r} is a file: name a folder")
    if (pack is None) == (photos is None):
        raise ValueError("give either --pack DIR (a data folder) or --photos DIR (your own photos)")
    if captions is not None and photos is None:
        raise ValueError("--captions: only with --photos; a pack has captions of its own")
    from i2vgen.batch.items import model_identity

    try:
        from i2vgen.evaluate.measures import Choices, plan, run, write_summary
    except ModuleNotFoundError as error:
        raise ValueError(f"evaluating needs {error.name}: pip install 'i2vgen[evaluate]'") from error
    from i2vgen.evaluate.animator import CascadeAnimator
    from i2vgen.evaluate.cost import Machine
    from i2vgen.evaluate.held_out import from_pack, from_photos
    from i2vgen.evaluate.runs import num_waiting

    held_out = from_photos(photos, captions) if pack is None else from_pack(pack)
    choices = Choices(seeds, limit, wordings.value)
    plans = {measure: plan(measure, held_out, choices) for measure in measures}

    # 2. Load the model; say how long it will take
    cascade = open_cascade(model, device, dtype.value, refiner)
    base, refine = _stage_options(cascade, held_out, not no_refine)
    settings = {
        "model": named_model(model),
        "refiner": None if refiner is None else named_model(refiner),
        "weights": model_identity(named_model(model), refiner=None if refiner is None else named_model(refiner)),
        "refine": not no_refine,
        "wordings": wordings.value,
        "device": cascade.vae.device.type,
        "dtype": str(cascade.unet.dtype).removeprefix("torch."),  # what "auto" came to
    }
    animator = CascadeAnimator(cascade, not no_refine)
    machine = Machine(settings["model"], str(cascade.vae.device), settings["dtype"], settings["refiner"], not no_refine)
    left = {measure: num_waiting(measure, items, folder, settings) for measure, items in plans.items()}
    num_clips = sum(left[measure] for measure in measures if measure != "vae")
    if num_clips:
        announce(cascade, base, refine, repeats=num_clips)

    # 3. One measure after the other
    reports = []
    notes = [
        f"Seeds 0 to {seeds - 1}; wordings: {wordings.value}"
        + (f"; first {limit} photos or shots only" if limit is not None else ""),
        f"Model {settings['model']}, {settings['dtype']} on {settings['device']}, "
        + ("both stages" if settings["refine"] else "base stage alone"),
    ]
    for measure in measures:
        report = run(measure, plans[measure], held_out, animator, machine, folder, settings, notes)
        reports.append(report)
        if not json:
            print(report.to_markdown(), flush=True)

    # 4. The bars together
    table = write_summary(reports, folder, settings)
    if json:
        print_json({"settings": settings, "output": str(folder), "reports": [report.to_json() for report in reports]})
    else:
        print(f"## summary\n\n{table}\n\n{folder}: tables, figures and sheets")
    if any(report.num_errors for report in reports):
        raise typer.Exit(FAILED)
    if strict and not all(bar.is_met for report in reports for bar in report.bars):
        raise typer.Exit(BELOW_BARS)


def _measures(what: list[Measure], has_pack: bool) -> list[str]:
    """Names in the order asked for, each once; "all" is all that the material allows."""
    names = []
    for measure in what:
        if measure is Measure.all:
            every = [m.value for m in Measure if m is not Measure.all and (has_pack or m is not Measure.film)]
            names += [name for name in every if name not in names]
        elif measure.value not in names:
            names.append(measure.value)
    return names


def _stage_options(cascade, held_out, is_refined: bool):
    from i2vgen.cli.generate import stage_options
    from i2vgen.media import load_image

    return stage_options(cascade, load_image(next(iter(held_out.photos))).size, None, is_refined)

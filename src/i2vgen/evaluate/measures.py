"""All measures under one name each: what they make, what they measure, what they report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from i2vgen.evaluate import camera, cost, objects, reconstruction, refinement, truth
from i2vgen.evaluate.animator import Animator
from i2vgen.evaluate.bars import Bar, Report, bars_table
from i2vgen.evaluate.held_out import HeldOut
from i2vgen.evaluate.runs import finished, run_items, write_sheet, write_text

MODULES = {
    "motion": camera,
    "vae": reconstruction,
    "truth": truth,
    "spectrum": refinement,
    "objects": objects,
    "film": truth,
    "cost": cost,
}
MEASURES = tuple(MODULES)
SUMMARY = "summary"


@dataclass(frozen=True)
class Choices:
    """`limit`: photos, or shots of the film; None for all."""

    num_seeds: int = 3
    limit: int | None = None
    wordings: str = "held-out"


def plan(measure: str, held_out: HeldOut, choices: Choices) -> list:
    """Every clip of a measure. Raises ValueError for a measure unknown, or that the material does not allow."""
    if measure not in MODULES:
        raise ValueError(f"measure {measure!r}: use one of {', '.join(MEASURES)}")
    photos = held_out.first(choices.limit).photos
    if measure == "film":
        if not held_out.shots:
            raise ValueError("film: it needs the shots of a pack; give its folder with --pack")
        return truth.plan_film(held_out.shots[: choices.limit], choices.num_seeds)
    if measure in ("vae", "cost"):
        return MODULES[measure].plan(photos)
    if measure == "objects":
        return objects.plan(photos, held_out.things, choices.num_seeds, choices.wordings)
    return MODULES[measure].plan(photos, choices.num_seeds, choices.wordings)


def run(
    measure: str,
    items: Sequence,
    held_out: HeldOut,
    animator: Animator | None,
    machine: cost.Machine,
    folder: str | Path,
    settings: dict,
    notes: Sequence[str] = (),
) -> Report:
    """Do what is left of `items`, write table, sheet and charts to `folder`, and return the report.

    Files: MEASURE.json (every clip), MEASURE.md, MEASURE-sheet.png (the worst first), strips/MEASURE/, and
    MEASURE-*.png for "spectrum". `animator` may be None for "cost" alone. Raises ValueError as `run_items`.
    """
    module = MODULES[measure]
    if measure == "cost":
        results = run_items(measure, items, lambda item: cost.work(item, machine), folder, settings)
    elif measure == "film":
        results = run_items(
            measure, items, lambda item: truth.work_film(item, animator, held_out.pack), folder, settings
        )
    else:
        results = run_items(measure, items, lambda item: module.work(item, animator), folder, settings)
    make_report = truth.report_film if measure == "film" else module.report
    report = make_report(results, [*notes, *wordings_of(results)])
    if measure == "spectrum":
        refinement.write_charts(results, folder)
    write_sheet(folder, measure, module.worst_first(results))
    write_text(Path(folder) / f"{measure}.md", report.to_markdown())
    return report


def wordings_of(results: dict) -> list[str]:
    """A note with up to 40 different prompts of a run and its errors, so that a table says how it was made."""
    notes = []
    prompts = sorted({clip["prompt"] for clip in finished(results)} - {""})
    if prompts:
        shown = prompts if len(prompts) <= 40 else prompts[:: -(-len(prompts) // 40)]
        which = "Prompts" if len(shown) == len(prompts) else f"{len(shown)} of {len(prompts)} prompts"
        notes.append(f"{which}: " + "; ".join(f'"{prompt}"' for prompt in shown))
    errors = sorted({clip["error"] for clip in results["clips"].values() if "error" in clip})
    return notes + [f"Failed: {error}" for error in errors[:5]]


def write_summary(reports: Sequence[Report], folder: str | Path, settings: dict) -> str:
    """Add the reports to summary.json of `folder`, and write summary.md; returns the table of all bars.

    Measures of earlier runs in the same folder stay in, if they were made with the same settings.
    """
    path = Path(folder) / f"{SUMMARY}.json"
    kept = {}
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            kept = earlier["reports"] if earlier["settings"] == settings else {}
        except (ValueError, KeyError, TypeError):
            kept = {}
    kept = kept | {report.measure: report.to_json() for report in reports}
    kept = {measure: kept[measure] for measure in MEASURES if measure in kept}
    write_text(path, json.dumps({"settings": settings, "reports": kept}, indent=1))
    bars = [Bar(**bar) for report in kept.values() for bar in report["bars"]]
    table = bars_table(bars)
    lines = [f"Model {settings.get('model')}, {settings.get('dtype')} on {settings.get('device')}", "", table]
    write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")
    return table

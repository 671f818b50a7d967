"""`i2vgen data prepare` and `i2vgen data show`: raw videos and pictures into shards, and what sources hold."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import counted, print_json, readable_bytes
from i2vgen.data.prepare_config import PrepareConfig

KEEP, WRITE, HOW = "What is kept", "How it is written", "How it runs"
DEFAULTS = {field.name: field.default for field in fields(PrepareConfig)}

data = typer.Typer(no_args_is_help=True, help="Prepare training data and look at it.")


def _limit(name: str, text: str, panel: str = KEEP):
    return typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel=panel, show_default=True)


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC",
        help="Folders of videos and pictures, .jsonl lists (file, caption), .tar shards; * and {000..099} work.",
        show_default=False,
    ),
]
Outside = Annotated[
    bool, typer.Option("--allow-outside", help="A .jsonl may name files outside of its folder.", rich_help_panel=HOW)
]


@data.command()
def prepare(
    sources: Sources,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for shards and report.", show_default=False)
    ],
    min_seconds: Annotated[float, _limit("min_seconds", "Shortest shot.")] = DEFAULTS["min_seconds"],
    max_seconds: Annotated[float, _limit("max_seconds", "Longer shots are divided.")] = DEFAULTS["max_seconds"],
    min_side: Annotated[int, _limit("min_side", "Least short side of a source, px.")] = DEFAULTS["min_side"],
    min_contrast: Annotated[float, _limit("min_contrast", "Least deviation of brightness, 0 to 127.")] = DEFAULTS[
        "min_contrast"
    ],
    min_motion: Annotated[float, _limit("min_motion", "Least optical flow, short sides a second.")] = DEFAULTS[
        "min_motion"
    ],
    max_motion: Annotated[float, _limit("max_motion", "Most optical flow.")] = DEFAULTS["max_motion"],
    min_sharpness: Annotated[
        float, _limit("min_sharpness", "Least sharpness; the contact sheet shows that of each clip.")
    ] = DEFAULTS["min_sharpness"],
    aesthetic: Annotated[
        str, _limit("aesthetic", "module:function that scores frames, uint8 (f h w 3), as one number.")
    ] = "",
    min_aesthetic: Annotated[float | None, _limit("min_aesthetic", "Least score of --aesthetic.")] = None,
    require_captions: Annotated[
        bool, typer.Option("--require-captions", help="Leave out what has no caption.", rich_help_panel=KEEP)
    ] = False,
    caption_from_name: Annotated[
        bool,
        typer.Option("--caption-from-name", help="Files without a caption get their name.", rich_help_panel=WRITE),
    ] = False,
    short_side: Annotated[int, _limit("short_side", "Larger clips are scaled down to it, px.", WRITE)] = DEFAULTS[
        "short_side"
    ],
    max_fps: Annotated[float, _limit("max_fps", "Faster clips are thinned out.", WRITE)] = DEFAULTS["max_fps"],
    gop: Annotated[int, _limit("gop", "Frames from one key frame to the next.", WRITE)] = DEFAULTS["gop"],
    crf: Annotated[int, _limit("crf", "H.264 quality, lower is better.", WRITE)] = DEFAULTS["crf"],
    shard_megabytes: Annotated[int, _limit("shard_megabytes", "Size of a shard.", WRITE)] = DEFAULTS["shard_megabytes"],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.", rich_help_panel=HOW)] = 1,
    allow_outside: Outside = False,
    json: o.Json = False,
) -> None:
    """Cut videos into shots, leave out what is not worth training on, and pack the rest into shards.

    Captions come from .txt or .json files beside the videos, or from the list. The folder gets the shards,
    statistics.json, left_out.jsonl (what was left out, and why) and three pictures to look at. Run it again after
    an interruption, or with more sources: what is done stays.

    Example:

      i2vgen data prepare holiday-videos photos -o data/holiday
    """
    from i2vgen.data.prepare import prepare as run

    given = locals()
    config = PrepareConfig(**{field.name: given[field.name] for field in fields(PrepareConfig)})
    with _FileBar() as bar:
        statistics = run(sources, output, config, workers, allow_outside, bar)
    if json:
        print_json({"folder": str(output), **statistics})
        return
    print("\n".join(_statistics_lines(statistics)))
    print(f"\n{statistics['shards']} shards and the report are in {output}; look at kept.png and histograms.png there")


@data.command()
def show(
    sources: Sources,
    split: Annotated[str, typer.Option("--split", help="Only rows of this split.")] = "",
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.png", help="Write a contact sheet.", show_default=False)
    ] = None,
    allow_outside: Outside = False,
    json: o.Json = False,
) -> None:
    """Print what sources hold, and which lengths and rates the default recipe can draw from them.

    Example:

      i2vgen data show data/holiday --sheet holiday.png
    """
    from i2vgen.data.clip_config import ClipDataConfig
    from i2vgen.data.clip_report import source_report, source_sheet

    config = ClipDataConfig(list(sources), split=split, require_captions=False, allow_outside=allow_outside)
    with _FileBar() as bar:
        table, report = source_report(config, lambda done, total: bar("index", done, total))
    if sheet is not None:
        source_sheet(table, sheet)
    if json:
        print_json(report)
        return
    print("\n".join(_statistics_lines(report)))
    if report["draws"]:
        print("\ndefault recipe    share of batches   clips that serve it")
    for draw in report["draws"]:
        what = "pictures" if draw["kind"] == "image" else f"{counted(draw['num_frames'], 'frame')} at {draw['fps']:g}"
        clips = ", ".join(f"{count} as {size}" for size, count in draw["clips"].items()) or "none"
        print(f"{what:<18}{draw['share']:>8.1%}           {clips}")
    for problem in report["problems"]:
        print(problem)


class _FileBar:
    """One bar a stage on stderr, where that is a terminal."""

    def __enter__(self) -> _FileBar:
        self.bar, self.stage = None, ""
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self.bar is None or stage != self.stage or self.bar.total != total:
            self.__exit__()
            self.stage = stage
            self.bar = tqdm(total=total, desc=stage, unit="file", file=sys.stderr, disable=None)
        self.bar.update(done - self.bar.n)


def _statistics_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['videos']} videos ({found['hours'] * 60:.1f} min) and {found['images']} pictures, "
        f"{readable_bytes(found['gigabytes'] * 1e9)}; {found['without_caption']} without a caption"
    ]
    lines.append("")
    lines.append(f"{'':<16}{'least':>10}{'5%':>10}{'median':>10}{'95%':>10}{'most':>10}")
    for name, values in found["quantiles"].items():
        shown = "".join(f"{values[q]:>10.4g}" for q in ("0%", "5%", "50%", "95%", "100%"))
        lines.append(f"{name.replace('_', ' '):<16}{shown}")
    sizes = ", ".join(f"{count} x {size}" for size, count in found["nearest_default_bucket"].items())
    lines.append(f"{'nearest size':<16}  {sizes}")
    if found.get("left_out"):
        reasons = ", ".join(f"{count} x {reason}" for reason, count in found["left_out_by_reason"].items())
        lines.append(f"{'left out':<16}  {reasons}")
    return lines

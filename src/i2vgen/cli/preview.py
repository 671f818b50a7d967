"""`i2vgen preview`: several seeds through the base stage alone, to choose a motion from."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from i2vgen.cli import options as o
from i2vgen.cli.generate import has_refiner, stage_options
from i2vgen.cli.output import (
    check_fps,
    check_output,
    check_picture_output,
    check_texts,
    summary_line,
    video_facts,
    write_picture,
    write_video_file,
)
from i2vgen.cli.report import Progress, print_json
from i2vgen.cli.sources import announce, open_cascade, open_image, parse_loras

SHEET_NAME = "contact-sheet.png"


class ClipFormat(str, Enum):
    mp4 = "mp4"
    webm = "webm"
    gif = "gif"
    webp = "webp"


def preview(
    image: o.Image,
    prompt: o.Prompt,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the clips and the sheet.",
            rich_help_panel=o.OUTPUT,
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int, typer.Option("--seeds", help="How many. \\[6]", rich_help_panel=o.VIDEO, show_default=False)
    ] = 6,
    first_seed: Annotated[
        int,
        typer.Option(
            "--first-seed",
            help="The first; the others follow. \\[0]",
            rich_help_panel=o.VIDEO,
            show_default=False,
        ),
    ] = 0,
    frames: o.Frames = None,
    size: o.Size = None,
    fps: o.Fps = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    negative_prompt: o.NegativePrompt = None,
    fit: o.FitOption = o.Fit.crop,
    exact: o.Exact = False,
    model: o.Model = "nano",
    refiner: o.Refiner = None,
    lora: o.Lora = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    clip_format: Annotated[
        ClipFormat,
        typer.Option(
            "--format",
            help="Of the clips: mp4, webm, gif, webp. \\[mp4]",
            rich_help_panel=o.OUTPUT,
            show_default=False,
            metavar="SUFFIX",
        ),
    ] = ClipFormat.mp4,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Try several seeds with the base stage alone.

    Writes a small clip for each seed as soon as it is done, and a contact sheet of all. Then go on with the
    seed that you like: i2vgen generate with --seed has the same motion, sharper and larger.

    Example:

      i2vgen preview photo.jpg "the camera pans to the right" --seeds 6 -o previews

    --size is that of the final video, as for generate; the clips have the size of its base stage. A --refiner is
    not run here, but its size and the command to go on with follow from it.
    """
    # 1. Check, before anything slow
    o.check_numbers(first_seed, guidance, seeds=seeds, frames=frames, fps=fps, steps=steps)
    o.check_numbers(first_seed + seeds - 1)
    chosen_size, loras = o.parse_size(size), parse_loras(lora)
    folder = Path(output).expanduser()
    all_seeds = range(first_seed, first_seed + seeds)
    names = {seed: str(folder / f"seed-{seed:05d}.{clip_format.value}") for seed in all_seeds}
    for name in names.values():
        check_output(name, force)
    check_picture_output(str(folder / SHEET_NAME), force)
    check_texts(prompt=prompt, negative_prompt=negative_prompt)
    picture, source = open_image(image)

    # 2. Load the model; the base stage gets the size that `generate` would give it
    cascade = open_cascade(model, device, dtype.value, refiner, loras)
    changes = {
        "num_frames": frames,
        "target_fps": fps,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
    }
    is_refined_later = has_refiner(cascade)
    base, _ = stage_options(cascade, picture.size, chosen_size, is_refined_later, exact=exact, **changes)
    check_fps(names[first_seed], base.target_fps)
    announce(cascade, base, None, repeats=seeds)

    # 3. One seed after the other
    clips, seconds = [], 0.0
    for seed, name in names.items():
        with Progress({"base": base.num_inference_steps}, prefix=f"seed {seed}, ") as progress:
            result = cascade(
                picture,
                prompt=prompt if cascade.has_text or not is_refined_later else "",
                negative_prompt=negative_prompt,
                seed=seed,
                refine=False,
                size=(base.width, base.height),
                **changes,
                fit=fit.value,
                exact=exact,
                progress=progress,
            )
        path = write_video_file(name, result.frames[0], result.fps, result.settings[0] | {"image": source})
        facts = video_facts(path, result.frames[0], result.fps)
        clips.append((seed, result.frames[0], facts))
        seconds += progress.seconds
        if not json:
            print(summary_line(facts, progress.seconds), flush=True)

    # 4. The sheet, and how to go on
    from i2vgen.media import contact_sheet

    sheet = contact_sheet([video for _, video, _ in clips], [f"seed {seed}" for seed, _, _ in clips], columns=2)
    sheet_path = write_picture(folder / SHEET_NAME, sheet)
    given = changes | {"size": size, "negative_prompt": negative_prompt, "fit": fit.value, "exact": exact}
    given |= {"model": model, "refiner": refiner, "lora": lora}
    command = next_command(image, prompt, first_seed, given | {"device": device, "dtype": dtype.value})
    if json:
        listed = [{"seed": seed, **facts} for seed, _, facts in clips]
        document = {
            "clips": listed,
            "contact_sheet": str(sheet_path),
            "seconds": round(seconds, 3),
            "next": command,
        }
        print_json(document)
    else:
        print(f"{sheet_path}: all {seeds} at a glance\nGo on with the seed you like:\n  {command}")


def next_command(image: str, prompt: str, seed: int, given: dict[str, Any]) -> str:
    """The command line that makes the whole video of a seed; `given` are the preview's options."""
    defaults = {"fit": "crop", "model": "nano", "device": "auto", "dtype": "auto"}
    names = {
        "num_frames": "frames",
        "target_fps": "fps",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance",
    }
    words = ["i2vgen", "generate", image, prompt, "-o", f"seed-{seed:05d}.mp4", "--seed", str(seed)]
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list):
            words += [word for one in value for word in (f"--{name}", one)]
        elif value not in (None, False, defaults.get(name)):
            words += [f"--{names.get(name, name).replace('_', '-')}", str(value)]
    return shlex.join(words)

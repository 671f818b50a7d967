"""`i2vgen generate`: the whole cascade, from a picture to a refined video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2vgen.cli import options as o
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
from i2vgen.cli.report import Progress, print_json, warn
from i2vgen.cli.sources import announce, open_cascade, open_image, parse_loras

if TYPE_CHECKING:
    from i2vgen.pipelines import BaseOptions, CascadePipeline, RefineOptions


def generate(
    image: o.Image,
    prompt: o.Prompt,
    output: o.Output,
    no_refine: o.NoRefine = False,
    seed: o.Seed = 0,
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
    contact_sheet: Annotated[
        str | None,
        typer.Option(
            "--contact-sheet",
            help="Also write a picture of some frames.",
            rich_help_panel=o.OUTPUT,
            metavar="PATH",
        ),
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Turn a picture and a prompt into a video.

    Examples:

      i2vgen generate photo.jpg "the camera pans to the right" -o video.mp4

      i2vgen generate photo.jpg "snow falls" -o video.webp --seed 7 --size 448x256

      i2vgen generate photo.jpg "" -o draft.gif --no-refine --frames 8

    The same command gives the same video again. To choose among several motions first, see i2vgen preview.
    """
    # 1. Check, before anything slow
    o.check_numbers(seed, guidance, refine_strength, frames=frames, fps=fps, steps=steps, refine_steps=refine_steps)
    chosen_size, loras = o.parse_size(size), parse_loras(lora)
    check_output(output, force)
    if contact_sheet is not None:
        check_picture_output(contact_sheet, force)
    check_texts(prompt=prompt, negative_prompt=negative_prompt)
    picture, source = open_image(image)

    # 2. Load the model, settle the options
    if no_refine and refiner is not None:
        raise ValueError("--refiner and --no-refine: give one of them")
    cascade = open_cascade(model, device, dtype.value, refiner, loras)
    is_refined = not no_refine and has_refiner(cascade, refine_steps=refine_steps, refine_strength=refine_strength)
    base, refine = stage_options(
        cascade,
        picture.size,
        chosen_size,
        is_refined,
        num_frames=frames,
        target_fps=fps,
        num_inference_steps=steps,
        guidance_scale=guidance,
        refine_steps=refine_steps,
        exact=exact,
    )
    check_fps(output, base.target_fps)
    announce(cascade, base, refine, refine_strength=refine_strength)

    # 3. Sample
    request = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "refine": is_refined,
        "size": chosen_size,
        "num_frames": frames,
        "target_fps": fps,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "refine_steps": refine_steps,
        "refine_strength": refine_strength,
        "fit": fit.value,
        "exact": exact,
    }
    with Progress(expected_steps(base, refine)) as progress:
        result = cascade(picture, **request, progress=progress)

    # 4. Write
    finish(output, result, source, progress.seconds, json, contact_sheet, prompt)


def has_refiner(cascade: CascadePipeline, **given: Any) -> bool:
    """Whether the model has a refiner; if not, a line on stderr says so.

    Raises ValueError if not and some of its options are `given`; None is not.
    """
    if cascade.refiner is not None:
        return True
    for name, value in given.items():
        if value is not None:
            option = f"--{name.replace('_', '-')} {value}"
            raise ValueError(f"model {cascade.model_name!r} has no refinement stage: leave {option} out")
    warn(f"model {cascade.model_name!r} has no refinement stage: the video is that of its base stage")
    return False


def stage_options(
    cascade: CascadePipeline,
    image_size: tuple[int, int],
    size: tuple[int, int] | None,
    is_refined: bool,
    refine_steps: int | None = None,
    exact: bool = False,
    **changes: Any,
) -> tuple[BaseOptions, RefineOptions | None]:
    """The options that the cascade will run with. Raises ValueError before any work if it cannot."""
    from i2vgen.pipelines.options import replaced

    if cascade.base is None:
        raise ValueError(f"model {cascade.model_name!r} is a refiner alone: use i2vgen refine, or give it as --refiner")
    if is_refined and cascade.refiner is None:
        raise ValueError(f"model {cascade.model_name!r} has no refinement stage: add --no-refine")
    base_size, final_size = cascade.sizes_for(image_size, size, is_refined, exact)
    base = replaced(cascade.base.options, width=base_size[0], height=base_size[1], **changes)
    base = cascade.base.exact_options(base) if exact else base
    cascade.base.check_size(base.height, base.width)
    if not is_refined:
        return base, None
    width, height = final_size
    refine = replaced(cascade.refiner.options, width=width, height=height, num_inference_steps=refine_steps)
    return base, cascade.refiner.exact_options(refine) if exact else refine


def expected_steps(base: BaseOptions | None, refine: RefineOptions | None) -> dict[str, int]:
    """Steps of each stage as far as they are known before it starts; it tells the true number with its first."""
    steps = {} if base is None else {"base": base.num_inference_steps}
    return steps if refine is None else steps | {"refine": refine.num_inference_steps + refine.inversion_steps}


def finish(
    output: str,
    result: Any,
    source: dict[str, Any],
    seconds: float,
    is_json: bool,
    contact_sheet: str | None = None,
    label: str = "",
) -> None:
    """Write the one video of a `CascadeOutput`, with its settings, and say so."""
    frames, settings = result.frames[0], result.settings[0] | {"image": source}
    path = write_video_file(output, frames, result.fps, settings)
    facts = video_facts(path, frames, result.fps)
    if contact_sheet is not None:
        from i2vgen.media import contact_sheet as drawn_sheet

        facts["contact_sheet"] = str(write_picture(contact_sheet, drawn_sheet([frames], [label])))
    if is_json:
        print_json(facts | {"seconds": round(seconds, 3), "settings": settings})
    else:
        print(summary_line(facts, seconds))

"""`i2vgen refine`: the refinement stage alone, on any video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2vgen.cli import options as o
from i2vgen.cli.generate import expected_steps
from i2vgen.cli.output import (
    check_fps,
    check_output,
    check_texts,
    summary_line,
    video_facts,
    write_video_file,
)
from i2vgen.cli.report import Progress, print_json
from i2vgen.cli.sources import announce, open_cascade, open_image, open_video, parse_loras

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from i2vgen.pipelines import CascadePipeline, RefineOptions

# Not `o.Steps`: there is no base stage here.
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", help="Steps of the refinement. \\[the model's]", rich_help_panel=o.VIDEO, show_default=False
    ),
]


def refine(
    video: Annotated[
        str,
        typer.Argument(metavar="VIDEO", help="Video, animation, or folder of frames.", show_default=False),
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What is seen, in a few words.", show_default=False)],
    output: o.Output,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Width x height of the result. \\[the video's proportions at the model's short side]",
            rich_help_panel=o.VIDEO,
            metavar="WxH",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            help="How much may change, above 0 to 1; 0.6 is what refiners are trained for. \\[the model's]",
            rich_help_panel=o.VIDEO,
            show_default=False,
        ),
    ] = None,
    steps: Steps = None,
    guidance: o.Guidance = None,
    negative_prompt: o.NegativePrompt = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            help="The picture the video was made from, for models that look at it. \\[the first frame]",
            rich_help_panel=o.VIDEO,
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    exact: o.Exact = False,
    seed: o.Seed = 0,
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="At most so many frames. \\[all]", rich_help_panel=o.VIDEO, show_default=False),
    ] = None,
    model: o.Model = "nano",
    lora: o.Lora = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Make a video sharper and larger, keeping its motion and its frame rate.

    Example:

      i2vgen refine clip.mp4 "a lighthouse at dusk" -o sharp.mp4

      i2vgen refine clip.gif "a dog runs" -o sharp.webp --size 640x360 --strength 0.4
    """
    # 1. Check, before anything slow
    o.check_numbers(seed, guidance, strength, frames=frames, steps=steps)
    chosen_size, loras = o.parse_size(size), parse_loras(lora)
    check_output(output, force)
    check_texts(prompt=prompt, negative_prompt=negative_prompt)
    clip, source = open_video(video, frames)
    check_fps(output, clip.fps)
    picture, picture_source = open_image(image) if image is not None else (None, None)

    # 2. Load the model, settle the options
    cascade = open_cascade(model, device, dtype.value, None, loras, only_stage="refine")
    video_size = clip.frames.shape[2:0:-1]
    options = refine_options(cascade, video_size, chosen_size, steps, guidance, negative_prompt, exact)
    settings = {
        "kind": "refine",
        "model": cascade.model_name,
        "lora": [used for used in cascade.lora_settings() if used["stage"] == "refine"],
        "exact": exact,
        "prompt": prompt,
        "seed": seed,
        "fit": "crop",
        "fps": clip.fps,
        "num_frames": len(clip.frames),
        "refine": asdict(options),
        "refine_strength": strength,
        "video": source,
        "image": picture_source,
    }
    refine_and_write(cascade, clip.frames, picture, settings, options, output, json)


def refine_options(
    cascade: CascadePipeline,
    video_size: tuple[int, int],
    size: tuple[int, int] | None,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
    exact: bool = False,
) -> RefineOptions:
    """The options that the refiner will run with; sizes are (width, height)."""
    from i2vgen.pipelines.options import replaced

    if cascade.refiner is None:
        raise ValueError(f"model {cascade.model_name!r} has no refinement stage: choose another --model")
    own = cascade.refiner.options
    width, height = size or ((own.width, own.height) if exact else cascade.refined_size(*video_size))
    if min(width, height) < 8:
        raise ValueError(f"size {width}x{height}: each side must be at least 8 pixels")
    options = replaced(
        own,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        negative_prompt=negative_prompt,
    )
    return cascade.refiner.exact_options(options) if exact else options


def refine_and_write(
    cascade: CascadePipeline,
    frames: np.ndarray,
    image: Image.Image | None,
    settings: dict[str, Any],
    options: RefineOptions,
    output: str,
    is_json: bool,
) -> None:
    """Refine frames uint8 (f h w 3) as `settings` and `options` say, write the result, and say so."""
    announce(cascade, None, options, len(frames), refine_strength=settings["refine_strength"])
    with Progress(expected_steps(None, options)) as progress:
        refined, settings = refined_frames(cascade, frames, image, settings, options, progress)
    path = write_video_file(output, refined, settings["fps"], settings)
    facts = video_facts(path, refined, settings["fps"])
    if is_json:
        print_json(facts | {"seconds": round(progress.seconds, 3), "settings": settings})
    else:
        print(summary_line(facts, progress.seconds))


def refined_frames(
    cascade: CascadePipeline,
    frames: np.ndarray,
    image: Image.Image | None,
    settings: dict[str, Any],
    options: RefineOptions,
    progress: Callable[[str, int, int], None],
) -> tuple[np.ndarray, dict[str, Any]]:
    """(refined frames uint8 (f h w 3), the settings with what this machine adds to them)

    `progress` is called as ("refine", steps done, steps in all).
    """
    import torch

    from i2vgen.media import frames_to_uint8
    from i2vgen.pipelines.cascade import versions

    def report(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
        progress("refine", step + 1, pipeline.num_timesteps)
        return {}

    own, cascade.refiner.options = cascade.refiner.options, options
    try:
        result = cascade.refiner(
            prompt=settings["prompt"],
            video=frames,
            image=image,
            height=options.height,
            width=options.width,
            refine_strength=settings["refine_strength"],
            target_fps=max(1, round(settings["fps"])),  # the rate that the model is told is a whole number
            generator=torch.Generator().manual_seed(settings["seed"]),
            output_type="pt",
            callback_on_step_end=report,
            fit=settings["fit"],
        ).frames[0]
    finally:
        cascade.refiner.options = own
    made_by = {
        "device": cascade.vae.device.type,
        "dtype": str(cascade.refine_unet.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    return frames_to_uint8(result.transpose(0, 1).mul(2).sub(1), options.truncate_pixels), settings | made_by

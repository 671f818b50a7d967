"""Arguments and options that several commands share, and how their text becomes values."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from i2vgen.batch.fields import parse_size as parse_size

VIDEO, MODEL, OUTPUT = "The video", "Model and machine", "Output"


class Fit(str, Enum):
    crop = "crop"
    pad = "pad"


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Engine(str, Enum):
    local = "local"
    ray = "ray"


def _option(text: str, *names: str, panel: str, metavar: str | None = None, **more):
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=False, **more)


Image = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="Picture to animate: a file or an http(s) address.", show_default=False),
]
Prompt = Annotated[
    str, typer.Argument(metavar="PROMPT", help='What happens, in a line; "" for no text.', show_default=False)
]
File = Annotated[
    str,
    typer.Argument(metavar="FILE", help="Video, animation, or folder of frames, made by i2vgen.", show_default=False),
]
Output = Annotated[
    str,
    _option(
        "File to write: .mp4, .webm, .gif, .webp, .png (a series), or a folder for frames.",
        "--output",
        "-o",
        panel=OUTPUT,
    ),
]
Force = Annotated[bool, _option("Replace an output that exists.", "--force", "-f", panel=OUTPUT)]
Json = Annotated[bool, _option("Print one JSON document on stdout, and nothing else there.", "--json", panel=OUTPUT)]

Seed = Annotated[
    int,
    _option("Number that all randomness follows; another seed, another video. \\[0]", "--seed", panel=VIDEO),
]
Frames = Annotated[int | None, _option("Number of frames. \\[the model's]", "--frames", panel=VIDEO)]
Size = Annotated[
    str | None,
    _option(
        "Width x height of the result, such as 448x256: the base stage runs at its own size and the refiner brings the "
        "video to this one; without refiner the base runs at it. \\[the model's, in the image's proportions]",
        "--size",
        panel=VIDEO,
        metavar="WxH",
    ),
]
Fps = Annotated[
    int | None,
    _option("Frames a second, told to the model and written. \\[the model's]", "--fps", panel=VIDEO),
]
Steps = Annotated[int | None, _option("Steps of the base stage. \\[the model's]", "--steps", panel=VIDEO)]
Guidance = Annotated[
    float | None,
    _option("How strictly the text is followed; 1 turns it off. \\[the model's]", "--guidance", panel=VIDEO),
]
NegativePrompt = Annotated[
    str | None,
    _option("What to keep away from. \\[the model's]", "--negative-prompt", panel=VIDEO, metavar="TEXT"),
]
NoRefine = Annotated[bool, _option("Stop after the base stage: small and fast.", "--no-refine", panel=VIDEO)]
RefineSteps = Annotated[
    int | None, _option("Steps of the refinement stage. \\[the model's]", "--refine-steps", panel=VIDEO)
]
RefineStrength = Annotated[
    float | None,
    _option("How much the refinement may change, above 0 to 1. \\[the model's]", "--refine-strength", panel=VIDEO),
]
FitOption = Annotated[
    Fit,
    _option("How the picture is brought to the size: crop or pad. \\[crop]", "--fit", panel=VIDEO, metavar="HOW"),
]

Model = Annotated[
    str,
    _option("nano, a model folder, or a hub id such as owner/name. \\[nano]", "--model", "-m", panel=MODEL),
]
Refiner = Annotated[
    str | None,
    _option("Folder or hub id of the refiner. \\[the model's own]", "--refiner", panel=MODEL, metavar="MODEL"),
]
Lora = Annotated[
    list[str] | None,
    _option(
        "LoRA: a file, folder or hub id, and its weight; may be repeated. \\[weight 1]",
        "--lora",
        panel=MODEL,
        metavar="PATH[:WEIGHT]",
    ),
]
Exact = Annotated[
    bool,
    _option("As the model's original code did it, its quirks and sizes included.", "--exact", panel=VIDEO),
]
Device = Annotated[str, _option("auto, cpu, cuda, cuda:1, mps. \\[auto]", "--device", panel=MODEL, metavar="NAME")]
DtypeOption = Annotated[
    Dtype, _option("auto, float32, bfloat16, float16. \\[auto]", "--dtype", panel=MODEL, metavar="NAME")
]


def check_numbers(
    seed: int = 0, guidance: float | None = None, refine_strength: float | None = None, **counts: int | None
) -> None:
    """Raise ValueError naming the option for a number out of range; None is the model's own choice."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give a whole number of at least 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: give a whole number from 0 to 2^63 - 1")
    if guidance is not None and not 0 <= guidance <= 100:
        raise ValueError(f"--guidance {guidance}: give a number from 0 to 100")
    if refine_strength is not None and not 0 < refine_strength <= 1:
        raise ValueError(f"refinement strength {refine_strength}: give a number above 0 and at most 1")

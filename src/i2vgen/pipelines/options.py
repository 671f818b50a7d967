"""What a generation can be told, and the defaults of each model of the family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

RESIZES = ("crop", "stretch")


@dataclass(frozen=True)
class BaseOptions:
    """Settings of the base stage. Sizes in pixels. The last group are quirks of the original, see `exact_base`."""

    height: int = 704
    width: int = 1280
    num_frames: int = 16
    target_fps: int = 16  # told to the model
    num_inference_steps: int = 50
    guidance_scale: float = 9.0
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    eta: float = 0.0
    offset_noise: float = 0.0  # ModelScope's image2video adds 0.1 to its starting noise
    decode_chunk_size: int = 1

    exact_images: bool = False  # pictures prepared to the pixel as the original, its black row included
    text_pad_token_id: int | None = None  # open_clip pads text with 0; None: as the tokenizer pads
    timestep_spacing: str = ""  # "original": 30 steps are 31 evaluations; "": the scheduler's own
    final_alpha_cumprod: str = ""  # "first": the last step ends at the level of t=0; "": the scheduler's own
    truncate_pixels: bool = False  # to uint8 by cutting the fraction off, not by rounding


@dataclass(frozen=True)
class RefineOptions:
    """Settings of the refinement stage. The last group are quirks of the original, see `exact_refine`."""

    height: int = 720
    width: int = 1280
    num_inference_steps: int = 30  # with a scheduler of diffusers, of the whole way; the strength's share is run
    refine_timestep: int = 599  # the noise level that the video is brought to, of 1000
    inversion_steps: int = 0  # steps of DDIM inversion to that level, as sr600 was made for; 0: noise is added
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.2
    negative_prompt: str = ""
    positive_prompt: str = ""  # appended to the prompt
    clip_skip: int = 1  # layers of the text tower left out at its end; 0 for towers that were cut when saved
    detail: float = 0.0  # share of the photo's own detail given back where it is seen to move; needs a motion prior
    window_frames: int = 32  # longer videos are denoised in overlapping windows
    window_overlap: int = 8
    decode_chunk_size: int = 1

    resize: str = "crop"  # "stretch": bilinear, without antialiasing, whatever the proportions
    text_pad_token_id: int | None = None  # open_clip pads text with 0; None: as the tokenizer pads
    exact_start: bool | None = None  # the solver's start of the original; None: as the scheduler says
    truncate_pixels: bool = False  # to uint8 by cutting the fraction off, not by rounding


def replaced(options, shown_as: dict[str, str] | None = None, **changes):
    """`options` with those `changes` that are not None.

    Raises ValueError for a number out of range, naming its field, or what `shown_as` calls that.
    """
    shown_as = shown_as or {}
    result = dataclasses.replace(options, **{k: v for k, v in changes.items() if v is not None})
    for name in ("height", "width", "num_frames", "target_fps", "num_inference_steps", "decode_chunk_size"):
        value = getattr(result, name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{shown_as.get(name, name)} must be a whole number of at least 1, got {value!r}")
    for name in ("inversion_steps", "clip_skip"):
        value = getattr(result, name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{shown_as.get(name, name)} must be a whole number of at least 0, got {value!r}")
    for name, most in (("guidance_scale", 100), ("guidance_rescale", 1), ("eta", 1), ("detail", 1)):
        value = getattr(result, name, 0)
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise ValueError(f"{shown_as.get(name, name)} must be a number from 0 to {most}, got {value!r}")
    if getattr(result, "resize", "crop") not in RESIZES:
        raise ValueError(f"resize is {result.resize!r}; use one of {', '.join(RESIZES)}")
    return result

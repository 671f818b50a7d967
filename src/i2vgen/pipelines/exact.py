"""What reproduces the original code of each stage, end to end: `exact=True` sets these option fields.

The original has more habits than released weights rely on, and some are plain defects. Left alone, a stage does
better; `exact_base` and `exact_refine` set what reproduces it:

    field                exact        otherwise                          why
    exact_images         True         one resampling, no black border    the crop is often one pixel short
    text_pad_token_id    0            as the tokenizer pads (49407)      open_clip pads with 0, unmasked
    timestep_spacing     "original"   the scheduler's own                30 steps are 31 evaluations
    final_alpha_cumprod  "first"      the scheduler's own                the last step ends at the level of t=0
    negative_prompt      as released  i2vgen-xl: none                    diffusers' default is none
    positive_prompt      as released  as the folder says                 the refiner was shown with it
    offset_noise         image2video: 0.1  as the folder says            it starts from offset noise
    resize               "stretch"    antialiased, proportions kept      bilinear to 1280x720, whatever came in
    exact_start          True         as the scheduler says              scaled by sigma / alpha, not 1 / alpha
    truncate_pixels      True         rounded to nearest                 numpy's astype("uint8")
"""

from __future__ import annotations

import dataclasses

from i2vgen.checkpoints.variants import (
    REFINER_NEGATIVE_PROMPT,
    SR600_POSITIVE_PROMPT,
    VGEN_NEGATIVE_PROMPT,
    VID2VID_POSITIVE_PROMPT,
    variant_defaults,
)
from i2vgen.pipelines.options import BaseOptions, RefineOptions


def exact_base(options: BaseOptions, is_image_only: bool) -> BaseOptions:
    """`options` with what reproduces the original of the base stage; the table is in this module's docstring.

    A negative prompt that the model has by itself stays. `is_image_only`: image2video, which reads no text and
    starts from offset noise.
    """
    return dataclasses.replace(
        options,
        exact_images=True,
        text_pad_token_id=0,
        timestep_spacing="original",
        final_alpha_cumprod="first",
        truncate_pixels=True,
        negative_prompt="" if is_image_only else options.negative_prompt or VGEN_NEGATIVE_PROMPT,
        offset_noise=variant_defaults("image2video")[0]["offset_noise"] if is_image_only else options.offset_noise,
    )


def exact_refine(options: RefineOptions, is_sr600: bool) -> RefineOptions:
    """`options` with what reproduces the original of the refiner; prompts that the model has by itself stay."""
    positive = SR600_POSITIVE_PROMPT if is_sr600 else VID2VID_POSITIVE_PROMPT
    return dataclasses.replace(
        options,
        resize="stretch",
        text_pad_token_id=0,
        exact_start=True,
        truncate_pixels=True,
        negative_prompt=options.negative_prompt or REFINER_NEGATIVE_PROMPT,
        positive_prompt=options.positive_prompt or positive,
    )

"""What a generation can be told, and the defaults of each model of the family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

ORIGINAL_NEGATIVE_PROMPT = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, "
    "disconnected limbs, Ugly faces, incomplete arms"
)  # the one of VGen's inference configurations
ORIGINAL_POSITIVE_PROMPT = (
    "Cinematic, High Contrast, highly detailed, Unreal Engine 5, no blur, full length ultra-wide angle shot "
    "a cinematic scene, 4k resolution, cinematic shot, 8k, smooth"
)  # what VGen's refiner appends to the caption


@dataclass(frozen=True)
class BaseOptions:
    """Settings of the base stage. Sizes in pixels."""

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


@dataclass(frozen=True)
class RefineOptions:
    """Settings of the refinement stage."""

    height: int = 720
    width: int = 1280
    num_inference_steps: int = 30
    refine_timestep: int = 599  # the noise level that the video is brought to, of 1000
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.2
    negative_prompt: str = ""
    positive_prompt: str = ""  # appended to the prompt
    window_frames: int = 32  # longer videos are denoised in overlapping windows
    window_overlap: int = 8
    decode_chunk_size: int = 1


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
    for name, most in (("guidance_scale", 100), ("guidance_rescale", 1), ("eta", 1)):
        value = getattr(result, name, 0)
        if not isinstance(value, int | float) or not 0 <= value <= most:
            raise ValueError(f"{shown_as.get(name, name)} must be a number from 0 to {most}, got {value!r}")
    return result

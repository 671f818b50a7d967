"""A request for a video: its fields, checked and settled before it enters the queue."""

from __future__ import annotations

import difflib
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from i2vgen.batch.fields import FIELDS as BATCH_FIELDS
from i2vgen.media import MediaError
from i2vgen.media.writers import check_fps
from i2vgen.pipelines.facts import ModelFacts
from i2vgen.pipelines.presets import PRESETS, preset_values
from i2vgen.server.config import Limits
from i2vgen.server.errors import ApiError, bad_field


@dataclass(frozen=True)
class Parameter:
    """A field of a request: `rule` names what converts it (see `batch.fields`), `kind` is its type in JSON."""

    meaning: str
    kind: str
    rule: str = ""
    example: Any = None


PARAMETERS = {
    "prompt": Parameter("What happens, in a line; may be empty.", "string", "prompt", "the camera pans to the right"),
    "input_reference": Parameter(
        'The picture to animate: a file (JPEG, PNG, WebP, ...), or {"image_url": a base64 data: URL}.', "file"
    ),
    "model": Parameter("A name from /v1/models; may be left out.", "string"),
    "size": Parameter("Width x height of the result, in pixels; the picture's proportions by default.", "string"),
    "seconds": Parameter("Length of the clip, in seconds; num_frames says it exactly.", "number", example=2),
    "num_frames": Parameter("Number of frames; the model's own by default.", "integer", "frames"),
    "fps": Parameter("Frames a second, told to the model and written.", "integer", "fps"),
    "num_inference_steps": Parameter("Steps of the base stage.", "integer", "steps"),
    "guidance_scale": Parameter("How strictly the text is followed, 0 to 100; 1 turns it off.", "number", "guidance"),
    "negative_prompt": Parameter("What to keep away from.", "string", "negative_prompt"),
    "seed": Parameter("Number that all randomness follows, 0 to 2^63 - 1; drawn by default.", "integer", "seed"),
    "refine": Parameter("False stops after the base stage.", "boolean", "refine"),
    "preset": Parameter("; ".join(f"{n}: {p.meaning}" for n, p in PRESETS.items()) + ".", "string"),
    "refine_prompt": Parameter("Text for the refinement stage; the prompt by default.", "string", "refine_prompt"),
    "refine_steps": Parameter("Steps of the refinement stage.", "integer", "refine_steps"),
    "refine_strength": Parameter("How much the refinement may change, above 0 to 1.", "number", "refine_strength"),
    "fit": Parameter("How the picture is brought to the size: crop or pad.", "string", "fit"),
    "width": Parameter("With height, the same as size.", "integer", "frames"),
    "height": Parameter("With width, the same as size.", "integer", "frames"),
    "user": Parameter("Taken and not used.", "string"),
}
# Fields of the other servers of this API that mean nothing to these models: taken, and named in the answer.
FOREIGN = (
    "boundary_ratio",
    "enable_frame_interpolation",
    "enable_teacache",
    "extra_params",
    "flow_shift",
    "frame_interpolation_exp",
    "guidance_scale_2",
    "max_sequence_length",
    "metadata",
    "response_format",
    "true_cfg_scale",
)


@dataclass(frozen=True)
class VideoRequest:
    """All that makes a video besides its picture. `size` None: chosen by the picture's proportions."""

    model: str
    prompt: str
    negative_prompt: str | None
    seed: int
    refine: bool
    size: tuple[int, int] | None
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    refine_prompt: str | None
    refine_steps: int | None
    refine_strength: float | None
    fit: str
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> VideoRequest:
        """From the JSON that a job keeps."""
        size = values["size"]
        return cls(**{**values, "size": size and tuple(size), "ignored": tuple(values["ignored"])})

    def shape(self, sizes: Any) -> str:
        """Equal for requests that may be sampled together; `sizes` are those of base and result."""
        alone = {"prompt", "seed", "ignored", "negative_prompt", "refine_prompt"}
        shared = {name: value for name, value in asdict(self).items() if name not in alone}
        # Text may differ, but not between given and the model's own.
        shared |= {"sizes": sizes, "has": [self.negative_prompt is None, self.refine_prompt is None]}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    @property
    def seconds(self) -> str:
        return f"{self.num_frames / self.fps:.4g}"


def parse_fields(given: Mapping[str, Any], names: tuple[str, ...], facts: ModelFacts, limits: Limits) -> VideoRequest:
    """The request that form fields or JSON values mean, for a model with these facts; `names`: what it is served as.

    Raises ApiError 400 naming the field, what it was and what to give; 404 for another model.
    """
    # 1. Names
    ignored = tuple(sorted(set(given) & set(FOREIGN)))
    for name in given:
        if name not in PARAMETERS and name not in ignored:
            near = difflib.get_close_matches(name, PARAMETERS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(PARAMETERS)}"
            raise ApiError(400, f"unknown field {name[:60]!r}: {hint}", "unknown_parameter", name[:60])
    model = given.get("model") or names[0]
    if model not in names:
        shown = repr(model)[:80]
        raise ApiError(404, f"model {shown}: this service has {', '.join(names)}", "model_not_found", "model")

    # 2. Values, each on its own
    values = {
        name: _converted(name, value)
        for name, value in given.items()
        if name in PARAMETERS and PARAMETERS[name].rule and value is not None and (value != "" or "prompt" in name)
    }
    if "prompt" not in values:
        raise ApiError(400, "prompt: say what happens", "missing_required_parameter", "prompt")
    for name in ("prompt", "negative_prompt", "refine_prompt"):
        if len(values.get(name, "")) > limits.max_prompt_characters:
            remedy = f"it has {len(values[name])} characters, at most {limits.max_prompt_characters} are taken"
            raise bad_field(name, values[name], remedy)

    # 3. Together, with the preset and the model's own below what is given
    preset = given.get("preset") or "standard"
    if preset not in PRESETS:
        raise bad_field("preset", preset, f"use one of {', '.join(PRESETS)}")
    chosen = preset_values(preset, facts.base_options, facts.refine_options) | values
    if chosen["refine"] and facts.refine_options is None:
        raise bad_field("refine", True, "this model has no refinement stage")
    if values.get("negative_prompt") and not facts.has_text:
        raise bad_field("negative_prompt", values["negative_prompt"], "this model reads no text: leave it out")
    if values["prompt"] and not facts.has_text and not chosen["refine"]:
        values["prompt"], ignored = "", (*ignored, "prompt")
    fps = values.get("fps", facts.base_options.target_fps)
    request = VideoRequest(
        model=model,
        prompt=values["prompt"],
        negative_prompt=values.get("negative_prompt"),
        seed=values.get("seed", secrets.randbelow(2**31)),
        refine=chosen["refine"],
        size=_size(given, values),
        num_frames=values.get("num_frames") or _frames(given.get("seconds"), fps) or facts.base_options.num_frames,
        fps=fps,
        num_inference_steps=chosen["num_inference_steps"],
        guidance_scale=values.get("guidance_scale", facts.base_options.guidance_scale),
        refine_prompt=values.get("refine_prompt"),
        refine_steps=_refine_steps(chosen, facts),
        refine_strength=values.get("refine_strength"),
        fit=values.get("fit", "crop"),
        ignored=ignored,
    )
    _check_bounds(request, limits)
    return request


def settle(request: VideoRequest, image_size: tuple[int, int], facts: ModelFacts, limits: Limits) -> tuple[str, str]:
    """(size of the result as "WxH", shape). Raises ApiError 400 for a size that the model cannot make."""
    try:
        sizes = facts.sizes_for(image_size, request.size, request.refine)
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", "size") from error
    width, height = sizes[1]
    if max(*sizes[0], width, height) > limits.max_side:
        raise bad_field("size", f"{width}x{height}", f"a side may have at most {limits.max_side} pixels")
    if width * height * request.num_frames > limits.max_video_pixels:
        remedy = f"with {request.num_frames} frames, more than {limits.max_video_pixels} pixels in all: ask for less"
        raise bad_field("size", f"{width}x{height}", remedy)
    return f"{width}x{height}", request.shape(sizes)


def _converted(name: str, value: Any) -> Any:
    try:
        return BATCH_FIELDS[PARAMETERS[name].rule].convert(value)
    except ValueError as error:
        raise bad_field(name, value, str(error)) from None


def _size(given: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[int, int] | None:
    text, size = given.get("size"), None
    if text not in (None, "", "auto"):
        try:
            size = BATCH_FIELDS["size"].convert(text)
        except ValueError as error:
            raise bad_field("size", text, str(error)) from None
    sides = values.get("width"), values.get("height")
    if sides == (None, None):
        return size
    if None in sides:
        raise ApiError(400, "width and height: give both, or size", "invalid_value", "width")
    if size not in (None, sides):
        raise bad_field("size", text, f"width and height say {sides[0]}x{sides[1]}: give one of them")
    return sides


def _frames(seconds: Any, fps: int) -> int | None:
    if seconds in (None, ""):
        return None
    try:
        value = float(seconds) if not isinstance(seconds, bool) else 0.0
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value <= 3600:
        raise bad_field("seconds", seconds, "give a number above 0, such as 2")
    return max(1, round(value * fps))


def _refine_steps(chosen: Mapping[str, Any], facts: ModelFacts) -> int | None:
    return chosen.get("refine_steps", facts.refine_options.num_inference_steps) if chosen["refine"] else None


def _check_bounds(request: VideoRequest, limits: Limits) -> None:
    bounds = {
        "num_frames": limits.max_frames,
        "num_inference_steps": limits.max_steps,
        "refine_steps": limits.max_steps,
    }
    for name, most in bounds.items():
        value = getattr(request, name)
        if value is not None and value > most:
            raise bad_field(name, value, f"at most {most} are allowed here")
    try:
        check_fps("video.mp4", request.fps)
    except MediaError as error:
        raise bad_field("fps", request.fps, str(error)) from None

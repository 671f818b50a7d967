"""What the form says, checked, and brought to the arguments of the cascade; and back from the settings of a file."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from i2vgen.batch.fields import parse_size
from i2vgen.cli.generate import stage_options
from i2vgen.cli.output import check_texts
from i2vgen.pipelines.presets import PRESETS, preset_values

if TYPE_CHECKING:
    from i2vgen.pipelines import BaseOptions, CascadePipeline, RefineOptions

MAX_TAKES, MAX_FRAMES, MAX_STEPS, MAX_FPS, MAX_PROMPT = 8, 256, 500, 60, 2000
MAX_SIDE = 4096
# The fields of the form, in their order.
FORM = (
    "prompt", "negative_prompt", "num_takes", "seed", "is_locked", "shape", "size", "preset", "num_frames",
    "target_fps", "num_inference_steps", "guidance_scale", "refine_steps", "refine_strength", "fit",
)  # fmt: skip
AS_PHOTO, OWN_PRESET = "As the photo", "standard"
SHAPES = {
    AS_PHOTO: None,
    "Wide 16:9": (16, 9),
    "Photo 3:2": (3, 2),
    "Square": (1, 1),
    "Portrait 2:3": (2, 3),
    "Tall 9:16": (9, 16),
}


@dataclass(frozen=True)
class Wish:
    """A request for takes and their refinement; None is the model's own choice."""

    prompt: str = ""
    negative_prompt: str | None = None
    num_takes: int = 4
    seed: int = 0
    is_locked: bool = False  # the same seeds again, not new ones
    shape: str = AS_PHOTO
    size: tuple[int, int] | None = None  # of the refined video, in place of a shape
    preset: str = OWN_PRESET
    num_frames: int | None = None
    target_fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    refine_steps: int | None = None
    refine_strength: float | None = None
    fit: str = "crop"

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_takes))

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the model's base options."""
        names = ("num_frames", "target_fps", "num_inference_steps", "guidance_scale")
        return {name: getattr(self, name) for name in names}


def read_wish(form: dict[str, Any]) -> Wish:
    """The wish that the page's fields tell, drawing a new seed where it is not locked.

    Raises ValueError with a sentence for a field out of range.
    """
    prompt = read_text(form.get("prompt"), "The prompt")
    negative = read_text(form.get("negative_prompt"), "The negative prompt")
    check_texts(prompt=prompt, negative_prompt=negative)
    size = (form.get("size") or "").strip().lower().replace("×", "x").replace(" ", "")
    chosen = parse_size(size) if size else None
    if chosen is not None and max(chosen) > MAX_SIDE:
        raise ValueError(f"Size {size}: a side may have at most {MAX_SIDE} pixels.")
    is_locked = bool(form.get("is_locked"))
    num_takes = read_whole(form.get("num_takes"), "Takes", 1, MAX_TAKES, 4)
    seed = read_whole(form.get("seed"), "The seed", 0, 2**53 - MAX_TAKES, 0)
    for name, known in (("shape", SHAPES), ("preset", PRESETS), ("fit", ("crop", "pad"))):
        if form.get(name) is not None and form[name] not in known:
            raise ValueError(f"{name.capitalize()} {form[name]!r}: choose one of {', '.join(known)}.")
    return Wish(
        prompt=prompt or "",
        negative_prompt=negative or None,
        num_takes=num_takes,
        seed=seed if is_locked else secrets.randbelow(1_000_000),
        is_locked=is_locked,
        shape=form.get("shape") or AS_PHOTO,
        size=chosen,
        preset=form.get("preset") or OWN_PRESET,
        num_frames=read_whole(form.get("num_frames"), "Frames", 1, MAX_FRAMES),
        target_fps=read_whole(form.get("target_fps"), "Frames a second", 1, MAX_FPS),
        num_inference_steps=read_whole(form.get("num_inference_steps"), "Steps", 1, MAX_STEPS),
        guidance_scale=read_number(form.get("guidance_scale"), "Guidance", 0, 100),
        refine_steps=read_whole(form.get("refine_steps"), "Refinement steps", 1, MAX_STEPS),
        refine_strength=read_number(form.get("refine_strength"), "Refinement strength", 0.01, 1),
        fit=form.get("fit") or "crop",
    )


def settled(
    wish: Wish, cascade: CascadePipeline, photo_size: tuple[int, int]
) -> tuple[Wish, BaseOptions, RefineOptions | None]:
    """The wish with its size and steps decided, and the options that both stages will run with.

    Raises ValueError for what the model cannot make.
    """
    has_refiner = cascade.refiner is not None
    own = preset_values(wish.preset, cascade.base.options, cascade.refiner.options if has_refiner else None)
    for name, stage in (("num_inference_steps", cascade.base), ("refine_steps", cascade.refiner)):
        # The form begins with the model's own steps: only others were chosen in place of the preset's.
        if name in own and getattr(wish, name) in (None, stage.options.num_inference_steps):
            wish = replace(wish, **{name: own[name]})
    size = wish.size
    if size is None and SHAPES[wish.shape] is not None:
        size = cascade.default_sizes(*SHAPES[wish.shape])[1 if has_refiner else 0]
    wish = replace(wish, size=size)
    base, refine = stage_options(cascade, photo_size, size, has_refiner, refine_steps=wish.refine_steps, **wish.changes)
    return wish, base, refine


def form_of_settings(settings: dict[str, Any], cascade: CascadePipeline) -> dict[str, Any]:
    """Values of the form's fields that make the video of these settings once more.

    They come from a file, and are not believed: what is not of its type is left to the model.
    Raises ValueError for settings of another kind than a picture's animation.
    """
    if settings.get("kind") != "generate":
        raise ValueError("These settings are of a refined video, not of an animated photo: use them on the other tab.")
    base = settings["base"] if isinstance(settings.get("base"), dict) else {}
    refine = settings["refine"] if isinstance(settings.get("refine"), dict) else {}
    size = [_kept((refine or base).get(name), int) for name in ("width", "height")]
    if all(size) and min(size) > 0 and not refine:
        size = cascade.refined_size(*size)
    return {
        "prompt": _kept(settings.get("prompt"), str) or "",
        "negative_prompt": _kept(settings.get("negative_prompt"), str) or "",
        "seed": _kept(settings.get("seed"), int) or 0,
        "is_locked": True,
        "shape": AS_PHOTO,
        "size": f"{size[0]}x{size[1]}" if all(size) else "",
        "preset": OWN_PRESET,
        "num_frames": _kept(base.get("num_frames"), int),
        "target_fps": _kept(base.get("target_fps"), int),
        "num_inference_steps": _kept(base.get("num_inference_steps"), int),
        "guidance_scale": _kept(base.get("guidance_scale"), int, float),
        "refine_steps": _kept(refine.get("num_inference_steps"), int),
        "refine_strength": _kept(settings.get("refine_strength"), int, float),
        "fit": settings["fit"] if settings.get("fit") in ("crop", "pad") else "crop",
    }


def _kept(value: Any, *kinds: type) -> Any:
    return value if isinstance(value, kinds) and not isinstance(value, bool) else None


def read_text(value: Any, label: str) -> str:
    text = " ".join(str(value or "").split())
    if len(text) > MAX_PROMPT:
        raise ValueError(f"{label} has {len(text)} characters: {MAX_PROMPT} are the most.")
    return text


def read_number(value: Any, label: str, least: float, most: float) -> float | None:
    # A number field that was never shown is sent as 0 when it is empty.
    if value is None or value == "" or (value == 0 and least > 0):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{label}: give a number from {least:g} to {most:g}, not {value!r}.")
    return value


def read_whole(value: Any, label: str, least: int, most: int, default: int | None = None) -> int | None:
    number = read_number(value, label, least, most)
    if number is None:
        return default
    if number != int(number):
        raise ValueError(f"{label}: give a whole number, not {value!r}.")
    return int(number)

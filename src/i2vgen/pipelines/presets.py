"""Named choices between speed and quality, for any model: how many steps, and whether the refiner runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from i2vgen.pipelines.options import BaseOptions, RefineOptions


@dataclass(frozen=True)
class Preset:
    """Steps are shares of the model's own; `refine` None: wherever the model has a refiner."""

    meaning: str
    steps: float = 1.0
    refine_steps: float = 1.0
    refine: bool | None = None


PRESETS = {
    "draft": Preset("half the steps, base stage only: for a first look", steps=0.5, refine=False),
    "standard": Preset("as the model was tuned"),
    "fine": Preset("twice the steps in both stages", steps=2.0, refine_steps=2.0),
}


def preset_values(name: str, base: BaseOptions, refine: RefineOptions | None) -> dict[str, Any]:
    """The arguments of a cascade that preset `name` means, for stages with these options.

    Returns `refine`, `num_inference_steps` and, where the refiner runs, `refine_steps`. Raises ValueError for an
    unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: use one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    is_refined = refine is not None and preset.refine is not False
    values = {"refine": is_refined, "num_inference_steps": max(1, round(base.num_inference_steps * preset.steps))}
    if is_refined:
        values["refine_steps"] = max(1, round(refine.num_inference_steps * preset.refine_steps))
    return values

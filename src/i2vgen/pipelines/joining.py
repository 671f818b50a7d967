"""Loading a cascade: from one folder, or its stages from two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from i2vgen.pipelines.base import I2VGenXLPipeline
from i2vgen.pipelines.cascade import SHARED, CascadePipeline
from i2vgen.pipelines.loading import folder_role, parse_device, parse_dtype
from i2vgen.pipelines.refine import VideoRefinePipeline


def load_cascade(
    model: str | Path = "nano",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    refiner: str | Path | None = None,
) -> CascadePipeline:
    """Load a cascade, ready on `device` (None: the best at hand) in `dtype`.

    Args:
        model: "nano", a folder or a hub id of a cascade, of a base model, or of a refiner alone, which leaves the
            cascade without base stage.
        refiner: the same, of the refiner to use in place of the model's own. What it has in common with the base
            model, as the towers of the released models, is held once.

    Raises ModelError for a folder that cannot be used, ValueError for a device or dtype unknown here.
    """
    device = parse_device(device)
    dtype = parse_dtype(dtype, device)
    is_refiner = folder_role(model) == "refiner"
    if is_refiner and refiner is not None:
        raise ValueError(f"model {str(model)!r} and refiner {str(refiner)!r} are both refiners: give a base model")
    if is_refiner:
        pipeline = joined(None, load_refiner(model, dtype))
    elif refiner is not None:
        pipeline = joined(I2VGenXLPipeline.from_pretrained(model, torch_dtype=dtype), load_refiner(refiner, dtype))
        pipeline.refiner_name = str(refiner)
    else:
        pipeline = CascadePipeline.from_pretrained(model, torch_dtype=dtype)
    pipeline.model_name = str(model)
    pipeline.to(device)
    for part in (pipeline, pipeline.base, pipeline.refiner):
        if part is not None:
            part.set_progress_bar_config(disable=True)
    return pipeline


def load_refiner(model: str | Path, dtype: torch.dtype) -> VideoRefinePipeline:
    """The refiner of a cascade, or a refiner alone. Raises ValueError for a base model."""
    role = folder_role(model)
    if role == "base":
        raise ValueError(f"refiner: {str(model)!r} is a base model; give the folder of a refiner or of a cascade")
    if role == "refiner":
        return VideoRefinePipeline.from_pretrained(model, torch_dtype=dtype)
    cascade = CascadePipeline.from_pretrained(model, torch_dtype=dtype, unet=None)
    if cascade.refiner is None:
        raise ValueError(f"refiner: {str(model)!r} has no refinement stage")
    return cascade.refiner


def joined(base: I2VGenXLPipeline | None, refiner: VideoRefinePipeline) -> CascadePipeline:
    """Both stages in one cascade; parts that are equal to the last bit are held once."""
    refine = {"refine_unet": refiner.unet, "refine_scheduler": refiner.scheduler}
    defaults = {"refine_defaults": dict(refiner.config.refine_defaults)}
    if base is None:
        shared = {name: getattr(refiner, name) for name in SHARED}
        return CascadePipeline(**shared, unet=None, scheduler=None, **refine, **defaults)
    for name in SHARED:
        own = getattr(refiner, name)
        refine[f"refine_{name}"] = None if own is None or is_same(own, getattr(base, name)) else own
    parts = {name: getattr(base, name) for name in (*SHARED, "unet", "scheduler")}
    return CascadePipeline(**parts, **refine, base_defaults=dict(base.config.base_defaults), **defaults)


def is_same(a: Any, b: Any) -> bool:
    """Whether two components of a pipeline do the same: class, configuration, and all weights or words."""
    if type(a) is not type(b):
        return False
    if not isinstance(a, torch.nn.Module):
        return _described(a) == _described(b)
    if _described(a.config) != _described(b.config):
        return False
    ours, others = a.state_dict(), b.state_dict()
    return ours.keys() == others.keys() and all(
        value.shape == others[key].shape and torch.equal(value, others[key]) for key, value in ours.items()
    )


def _described(part: Any) -> dict[str, Any]:
    """What a configuration, tokenizer or feature extractor says, without where it was loaded from."""
    if hasattr(part, "get_vocab"):
        settings = (part.model_max_length, part.pad_token_id, part.bos_token_id, part.eos_token_id)
        return {"vocabulary": part.get_vocab(), "settings": settings}
    described = part.to_dict() if hasattr(part, "to_dict") else dict(part)
    return {key: value for key, value in described.items() if not key.startswith("_")}

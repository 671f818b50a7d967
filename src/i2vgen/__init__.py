"""I2VGen-XL: a still image and a line of text become a video, in two stages."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> where it is; imported when first asked for, so that `import i2vgen` stays quick
_HOMES = {
    "CascadePipeline": "i2vgen.pipelines",
    "I2VGenXLPipeline": "i2vgen.pipelines",
    "VideoRefinePipeline": "i2vgen.pipelines",
    "load_cascade": "i2vgen.pipelines",
    "I2VGenXLUNet": "i2vgen.models.unet",
    "load_unet": "i2vgen.checkpoints",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'i2vgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

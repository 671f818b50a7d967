"""What `i2vgen data prepare` keeps of raw videos and pictures, and how it writes them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from i2vgen.data.errors import DataError

if TYPE_CHECKING:
    import numpy as np


@dataclass
class PrepareConfig:
    """Limits are inclusive. A shot that breaks several is put down to the first, in this order."""

    min_seconds: float = 1.0
    max_seconds: float = 20.0  # longer shots are divided evenly
    min_side: int = 256  # px, short side of the source
    min_contrast: float = 8.0  # standard deviation of luma, 0..127; fades and black are below
    min_motion: float = 0.004  # short sides a second; slideshows and frozen pictures are below
    max_motion: float = 1.5  # whip pans and shaking are above
    min_sharpness: float = 0.08  # standard deviation of the Laplacian over that of luma; see data/shots.py
    aesthetic: str = ""  # "module:function" that scores frames, uint8 (f h w 3), as one number
    min_aesthetic: float | None = None

    require_captions: bool = False  # leave out what has no caption
    caption_from_name: bool = False  # for files without one: the words of the file's name

    short_side: int = 512  # px; larger clips are scaled down to it
    max_fps: float = 30.0  # faster ones lose every second, third, ... frame
    gop: int = 12  # frames from one key frame to the next
    crf: int = 18  # H.264 quality, lower is better
    shard_megabytes: int = 256

    def check(self) -> None:
        """Raises DataError naming the first field that cannot be."""
        for name, least, most in (
            ("min_seconds", 0, 3600),
            ("max_seconds", 0.1, 86400),
            ("min_side", 1, 8192),
            ("min_contrast", 0, 127),
            ("min_motion", 0, math.inf),
            ("max_motion", 0, math.inf),
            ("min_sharpness", 0, math.inf),
            ("short_side", 16, 8192),
            ("max_fps", 1, 1000),
            ("gop", 1, 1000),
            ("crf", 0, 51),
            ("shard_megabytes", 1, 65536),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise DataError(f"{name} is {value!r}: give a number from {least} to {most}")
        for low, high in (("min_seconds", "max_seconds"), ("min_motion", "max_motion")):
            if getattr(self, low) > getattr(self, high):
                raise DataError(f"{low} is {getattr(self, low):g}, above {high} = {getattr(self, high):g}")
        self.scorer()

    def scorer(self) -> Callable[[np.ndarray], float] | None:
        """The aesthetic function; None if none is set. Raises DataError if it cannot be imported."""
        if not self.aesthetic:
            if self.min_aesthetic is not None:
                raise DataError("min_aesthetic needs a score: set aesthetic to module:function")
            return None
        module, separator, name = self.aesthetic.partition(":")
        try:
            function = getattr(importlib.import_module(module), name) if separator else None
        except (ImportError, ValueError, AttributeError) as error:
            raise DataError(f"aesthetic: {self.aesthetic!r} cannot be imported ({error})") from error
        if not callable(function):
            raise DataError(f"aesthetic is {self.aesthetic!r}: write module:function")
        return function

    def problem(self, measures: dict[str, float], kind: str) -> str:
        """The first limit that a shot or picture breaks, such as "motion 0.001 < 0.004"; "" if none."""
        of_video = ["seconds"] if kind == "video" else []
        names = [*of_video, "side", "contrast", *(["motion"] if kind == "video" else []), "sharpness", "aesthetic"]
        for name in names:
            value = measures.get(name)
            if value is None:
                continue
            least = getattr(self, f"min_{name}")
            # Longer shots have been divided, up to a frame.
            most = self.max_motion if name == "motion" else math.inf
            if least is not None and value < least:
                return f"{name} {value:.4g} < {least:g}"
            if value > most:
                return f"{name} {value:.4g} > {most:g}"
        return ""

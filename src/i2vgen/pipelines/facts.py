"""What is known of a cascade without its weights: its options and its rules of sizes; small enough to send around."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from i2vgen.media import nearest_valid_size
from i2vgen.pipelines.cascade import CascadePipeline
from i2vgen.pipelines.options import BaseOptions, RefineOptions


@dataclass(frozen=True)
class ModelFacts:
    """Options and sizes of a cascade; `multiple`: base sizes in pixels are multiples of it."""

    base_options: BaseOptions
    refine_options: RefineOptions | None
    multiple: int
    has_text: bool

    @classmethod
    def of(cls, cascade: CascadePipeline) -> ModelFacts:
        """Raises ValueError for a refiner alone."""
        if cascade.base is None:
            raise ValueError(f"model {cascade.model_name!r} is a refiner alone: serve a model that animates pictures")
        refine = None if cascade.refiner is None else cascade.refiner.options
        return cls(cascade.base.options, refine, cascade.multiple, cascade.has_text)

    @property
    def base(self) -> SimpleNamespace:
        return SimpleNamespace(options=self.base_options, check_size=self._check_size)

    @property
    def refiner(self) -> SimpleNamespace | None:
        return None if self.refine_options is None else SimpleNamespace(options=self.refine_options)

    # A cascade's own rules, which ask for nothing but what is above
    default_sizes = CascadePipeline.default_sizes
    refined_size = CascadePipeline.refined_size
    sizes_for = CascadePipeline.sizes_for

    def _check_size(self, height: int, width: int) -> None:
        if height % self.multiple or width % self.multiple:
            near = "x".join(map(str, nearest_valid_size(width, height, self.multiple)))
            raise ValueError(f"without refinement both sides must be multiples of {self.multiple}; nearest is {near}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelFacts:
        values: dict[str, Any] = json.loads(text)
        refine = values["refine_options"]
        return cls(
            BaseOptions(**values["base_options"]),
            None if refine is None else RefineOptions(**refine),
            values["multiple"],
            values["has_text"],
        )

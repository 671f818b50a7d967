"""Recipes that turn images, prompts and videos into videos."""

from i2vgen.pipelines.base import I2VGenXLPipeline, I2VGenXLPipelineOutput
from i2vgen.pipelines.cascade import CascadeOutput, CascadePipeline
from i2vgen.pipelines.joining import load_cascade
from i2vgen.pipelines.loading import ModelError, NonFiniteError
from i2vgen.pipelines.options import BaseOptions, RefineOptions
from i2vgen.pipelines.refine import VideoRefinePipeline

__all__ = [
    "BaseOptions",
    "CascadeOutput",
    "CascadePipeline",
    "I2VGenXLPipeline",
    "I2VGenXLPipelineOutput",
    "ModelError",
    "NonFiniteError",
    "RefineOptions",
    "VideoRefinePipeline",
    "load_cascade",
]

"""Measurements of a video or a model; `i2vgen evaluate` runs them against the bars of nano's model card."""

from i2vgen.evaluate.fidelity import first_frame_psnr, psnr, ssim
from i2vgen.evaluate.motion import (
    GlobalMotion,
    expected_sign,
    global_motion,
    mean_flow,
    motion_is_dominant,
    motion_is_right,
    peak_flow,
)

__all__ = [
    "GlobalMotion",
    "expected_sign",
    "first_frame_psnr",
    "global_motion",
    "mean_flow",
    "motion_is_dominant",
    "motion_is_right",
    "peak_flow",
    "psnr",
    "ssim",
]

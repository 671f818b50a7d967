"""Noise schedules and samplers; no models in here."""

from .ddim import I2VGenDDIMScheduler
from .guidance import apply_guidance
from .process import StepOutput
from .refine import VideoRefineScheduler
from .schedules import (
    alphas_cumprod_from_betas,
    alphas_from_sigmas,
    cosine_betas,
    linear_sd_betas,
    logsnr_cosine_interp_sigmas,
    rescale_zero_terminal_snr,
    sigmas_from_betas,
)

__all__ = [
    "I2VGenDDIMScheduler",
    "StepOutput",
    "VideoRefineScheduler",
    "alphas_cumprod_from_betas",
    "alphas_from_sigmas",
    "apply_guidance",
    "cosine_betas",
    "linear_sd_betas",
    "logsnr_cosine_interp_sigmas",
    "rescale_zero_terminal_snr",
    "sigmas_from_betas",
]

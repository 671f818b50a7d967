"""Sample videos while a run trains: the stage's own sampler in a few steps, from fixed noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from i2vgen.media import frames_to_uint8
from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler, apply_guidance
from i2vgen.train.config import DenoiserConfig
from i2vgen.train.objective import draw_noise


def load_vae(folder: str) -> PatchAutoencoder | AutoencoderKL:
    """The autoencoder of a component folder, whichever of the two classes it names."""
    name = PatchAutoencoder.load_config(folder).get("_class_name")
    return (PatchAutoencoder if name == "PatchAutoencoder" else AutoencoderKL).from_pretrained(folder).eval()


@torch.no_grad()
def sample_videos(
    unet: I2VGenXLUNet,
    options: DenoiserConfig,
    given: dict[str, torch.Tensor | None],
    latents: torch.Tensor,
    empty_text: torch.Tensor,
) -> list[np.ndarray]:
    """One uint8 (f h w 3) for each of `given` (arguments of `encode_conditions`). The base stage starts from noise,
    the refiner from `latents` (b c f h w) brought to its highest noise level."""
    device = latents.device
    noise = draw_noise(latents.shape, 0, 0, torch.arange(len(latents)), 0.0).to(device)
    conditions = [unet.encode_conditions(latents.shape[2], **given)]
    if options.sample_guidance > 1:
        nothing: dict[str, Any] = dict(given)
        if given["encoder_hidden_states"] is not None:
            nothing["encoder_hidden_states"] = empty_text.to(device).expand(len(latents), -1, -1)
        if given["image_embeddings"] is not None:
            nothing["image_embeddings"] = torch.zeros_like(given["image_embeddings"])
        conditions.append(unet.encode_conditions(latents.shape[2], **nothing))
    if options.stage == "base":
        scheduler: Any = I2VGenDDIMScheduler(timestep_spacing="trailing", final_alpha_cumprod="one")
        scheduler.set_timesteps(options.sample_steps, device=device)
        x = noise
    else:
        scheduler = VideoRefineScheduler(solver="dpmpp_2m")
        scheduler.set_timesteps(options.sample_steps, start_timestep=options.max_timestep, device=device)
        x = scheduler.add_noise(latents, noise, options.max_timestep)
    for t in scheduler.timesteps:
        velocity = [unet(x, t, conditions=c).sample.float() for c in conditions]
        guided = apply_guidance(*velocity, options.sample_guidance) if len(velocity) > 1 else velocity[0]
        x = scheduler.step(guided, t, x).prev_sample
    vae = load_vae(options.vae_dir).to(device)
    videos = []
    for video in x / vae.config.scaling_factor:
        frames = torch.cat([vae.decode(frame[None]).sample for frame in video.transpose(0, 1)])
        videos.append(frames_to_uint8(frames.transpose(0, 1).clamp(-1, 1).cpu()))
    return videos

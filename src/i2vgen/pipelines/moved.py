"""The image as a motion prior moves it, and the detail that only its pixels have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

AGREEMENT = 0.4  # mean square of latents at which a place shows the moved image to 1 / e


@dataclass(frozen=True)
class Moved:
    """Frame 0 is the image itself."""

    latents: torch.Tensor  # (b c f h/8 w/8), scaled
    pixels: torch.Tensor | None = None  # (b 3 f h w) in [-1, 1], on the CPU


@torch.no_grad()
def encode_moved(
    unet: Any,
    vae: Any,
    pixels: torch.Tensor,
    image_latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    fps: torch.Tensor,
    num_frames: int,
    chunk_size: int = 8,
) -> Moved | None:
    """Where the UNet's priors put the image `pixels` (b 3 1 h w) in [-1, 1]; None for a UNet without.

    Pixels are moved and then encoded, which keeps details that moved latents lose.
    """
    if not unet.config.use_motion_prior or num_frames == 1:
        return None
    moved = unet.move_image(pixels.to(prompt_embeds.device), prompt_embeds, fps, num_frames)
    flat = moved[:, :, 1:].transpose(1, 2).flatten(0, 1)
    means = [vae.encode(c.to(vae.device, vae.dtype)).latent_dist.mean for c in flat.split(chunk_size)]
    latents = torch.cat(means).unflatten(0, (len(pixels), num_frames - 1)).transpose(1, 2) * vae.config.scaling_factor
    return Moved(torch.cat([image_latents, latents.to(image_latents)], dim=2), moved.float().cpu())


def restore_detail(frames: torch.Tensor, latents: torch.Tensor, moved: Moved, strength: float) -> torch.Tensor:
    """Decoded `frames` (b 3 f h w) with the moved image's own pixels where they show it.

    The autoencoder keeps only a part of a photo's detail, and sampling adds grain of its own to each frame. Where the
    latents (b c f h/8 w/8) of the result are those of the moved image, its pixels are what they stand for; the more
    they differ, the less is taken of it.
    """
    away = (latents.float() - moved.latents.float()).square().mean(dim=1)  # (b f h/8 w/8)
    away = F.avg_pool2d(away, 3, stride=1, padding=1, count_include_pad=False).cpu()
    share = strength * torch.exp(-away / AGREEMENT)
    share = F.interpolate(share, size=frames.shape[-2:], mode="bilinear", align_corners=False)[:, None]
    return torch.lerp(frames, moved.pixels, share).clamp_(-1, 1)

"""Training of nano's motion prior: the image latents, moved as the text says, should land on the later frames."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from i2vgen.models.autoencoder import PATCH, PatchAutoencoder
from i2vgen.models.object_prior import ObjectPrior
from i2vgen.models.prior import VARIANCE_SAMPLES, MotionPrior
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.cache import Bucket, load_cache
from i2vgen.train.config import DenoiserConfig, TrainConfig
from i2vgen.train.object_prior import PRIOR_FILE as OBJECT_PRIOR_FILE
from i2vgen.train.tower_reading import Towers

PRIOR_FILE = "motion_prior.safetensors"
NUM_FRAMES = 4


class MotionPriorTask:
    """Photometric: no motion is told, only the mean square between moved latents and the clip's counts."""

    def __init__(self, config: TrainConfig):
        self.config, options = config, config.denoiser
        torch.manual_seed(config.run.seed)
        towers = Towers(options.towers_dir)
        self.buckets = load_cache(Path(config.data.cache_dir) / "train", options.only_targets)
        self.val_buckets = load_cache(Path(config.data.cache_dir) / "test", options.only_targets)
        self.embeddings = [towers.embed(b) for b in self.buckets]
        self.val_embeddings = [towers.embed(b) for b in self.val_buckets]
        channels = self.buckets[0].latents.shape[2]
        self.model = MotionPrior(towers.empty_text.shape[-1], channels)
        counts = np.array([len(b.captions) for b in self.buckets], float)
        self.shares = counts / counts.sum()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (b f c h w), text (b n d), fps (b)."""
        rng = np.random.default_rng([self.config.run.seed, 5, step])
        index = int(rng.choice(len(self.buckets), p=self.shares))
        bucket = self.buckets[index]
        rows = torch.from_numpy(rng.integers(len(bucket.captions), size=self.config.optim.batch_size))
        stride = int(rng.integers(1, 6))
        frames = torch.arange(NUM_FRAMES) * stride
        fps = torch.full((len(rows),), self.config.data.fps / stride)
        return bucket.latents[rows][:, frames].float(), self.embeddings[index][0][rows].float(), fps

    def loss(self, batch: tuple, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        latents, text, fps = batch
        clips = latents.transpose(1, 2)
        moved = self.model.move(clips[:, :, :1], text, fps, clips.shape[2])
        loss = (moved - clips)[:, :, 1:].square().mean()
        still = (clips[:, :, :1] - clips)[:, :, 1:].square().mean()
        return loss, {"loss": loss.item(), "of_still": (loss / still).item()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        errors, stills = [], []
        for bucket, (text, _) in zip(self.val_buckets, self.val_embeddings, strict=True):
            clips = bucket.latents.float().transpose(1, 2)
            fps = torch.full((len(clips),), float(self.config.data.fps))
            moved = self.model.move(clips[:, :, :1], text.float(), fps, clips.shape[2])
            errors.append((moved - clips).square().mean().item())
            stills.append((clips[:, :, :1] - clips).square().mean().item())
        return {"loss": float(np.mean(errors)), "still": float(np.mean(stills))}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict(), folder / PRIOR_FILE)


class PixelMover(nn.Module):
    """Moves images as the pipelines do: in pixels, encoded afterwards. Cached clips keep latents only, so the
    image is decoded first."""

    def __init__(self, prior: MotionPrior, vae_dir: str, objects: ObjectPrior | None = None):
        super().__init__()
        # copies, so that no training mode, sharding or averaging of the UNet reaches them
        self.prior = copy.deepcopy(prior).eval()
        self.objects = copy.deepcopy(objects).eval() if objects is not None else None
        self.vae = PatchAutoencoder.from_pretrained(vae_dir).eval()

    @torch.no_grad()
    def move(self, image_latents: torch.Tensor, text: torch.Tensor, fps: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Image latents (b c 1 h w) -> (b c f h w)."""
        scale = self.vae.config.scaling_factor
        with torch.autocast(image_latents.device.type, torch.bfloat16):
            pixels = self.vae.decode(image_latents[:, :, 0] / scale).sample.float().clamp(-1, 1)
        return torch.cat([image_latents, self.move_pixels(pixels.unsqueeze(2), text, fps, num_frames)], dim=2)

    @torch.no_grad()
    def move_pixels(self, image: torch.Tensor, text: torch.Tensor, fps: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Pixels (b 3 1 h w) in [-1, 1] -> latents (b c f-1 h w) of the frames after the image."""
        picture = (image.float(), text, fps, num_frames)
        moved = self.prior.move(*picture) if self.objects is None else self.objects.move(self.prior, *picture)
        flat = rearrange(moved[:, :, 1:], "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
        if not len(flat):
            h, w = (side // PATCH for side in image.shape[-2:])
            return flat.new_zeros(len(image), self.vae.config.latent_channels, 0, h, w)
        with torch.autocast(flat.device.type, torch.bfloat16):
            latents = self.vae.encode(flat).latent_dist.mean.float()
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(image)) * self.vae.config.scaling_factor


def set_priors(unet: I2VGenXLUNet, options: DenoiserConfig) -> ObjectPrior | None:
    """Load trained priors into a UNet where the options name them, freeze them, and return that of objects."""
    priors = [(unet.motion_prior, options.prior_dir, PRIOR_FILE)]
    if unet.config.use_object_prior:
        priors.append((unet.object_prior, options.object_prior_dir, OBJECT_PRIOR_FILE))
    for prior, folder, name in priors:
        if folder:
            prior.load_state_dict(load_file(Path(folder) / name))
        prior.requires_grad_(False)
    return unet.object_prior if unet.config.use_object_prior else None


@torch.no_grad()
def residual_variances(mover: PixelMover, buckets: list[Bucket], embeddings: list) -> torch.Tensor:
    """(16 c): mean square of what the frames of cached clips (16 at 8 fps) differ from the moved image by."""
    totals = []
    for bucket, (text, _) in zip(buckets, embeddings, strict=True):
        device = next(mover.parameters()).device
        clips = bucket.latents[:40].float().transpose(1, 2).to(device)
        fps = torch.full((len(clips),), 8.0, device=device)
        moved = mover.move(clips[:, :, :1], text[:40].float().to(device), fps, VARIANCE_SAMPLES)
        totals.append((clips - moved).square().mean(dim=(0, 3, 4)).T)
    return torch.stack(totals).mean(0)

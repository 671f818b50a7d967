"""Batches of videos and pictures, encoded on the way by the frozen autoencoder and towers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from i2vgen.data.clip_loader import ClipBatch, ClipLoader
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.config import TrainConfig
from i2vgen.train.motion_prior import PixelMover, set_priors
from i2vgen.train.objective import NoiseLevels
from i2vgen.train.samples import load_vae
from i2vgen.train.tower_reading import Towers
from i2vgen.train.workers import Workers

ENCODE_FRAMES = 8  # at a time


class LiveClips:
    """Clips of `data.clips`. Pixels are read by threads; latents and embeddings are made on the training device."""

    def __init__(self, config: TrainConfig, unet: I2VGenXLUNet, levels: NoiseLevels, workers: Workers):
        self.config, self.workers = config, workers
        run_dir = Path(config.run.dir)
        shares = {"seed": config.run.seed, "rank": workers.rank, "world_size": workers.count}
        self.loader = ClipLoader(config.data.clips, **shares, bad_files_path=run_dir / "bad_files.jsonl")
        self.val_loader = None
        if config.data.val_sources:
            changes = {"sources": config.data.val_sources, "weights": [], "image_share": 0.0}
            self.val_loader = ClipLoader(dataclasses.replace(config.data.clips, **changes), **shares)
        self.towers = Towers(config.denoiser.towers_dir, workers.device)
        self.empty_text = self.towers.empty_text
        self.vae = load_vae(config.denoiser.vae_dir).to(workers.device)
        self.mover = None
        if unet.config.use_motion_prior:
            objects = set_priors(unet, config.denoiser)
            self.mover = PixelMover(unet.motion_prior, config.denoiser.vae_dir, objects).to(workers.device)

    def batch(self, step: int) -> dict:
        """This process's rows: the clips, and `rows` (b), their numbers in the batch of all processes."""
        return self._with_rows(self.loader.batch(step))

    def held_out(self) -> dict | None:
        """Clips of `data.val_sources`, always the same; None if there are none."""
        return None if self.val_loader is None else self._with_rows(self.val_loader.batch(0))

    def _with_rows(self, clips: ClipBatch) -> dict:
        count, first = len(clips.captions), len(clips.captions) * self.workers.rank
        return {
            "frames": clips.frames,
            "captions": clips.captions,
            "fps": clips.fps,
            "rows": torch.arange(first, first + count),
        }

    @torch.no_grad()
    def encoded(self, batch: dict) -> dict[str, torch.Tensor]:
        """latents (b c f h w) sampled from the posterior, text (b n d), image (b d), fps (b), rows (b), maybe moved."""
        device = self.workers.device
        frames = batch["frames"].to(device).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)
        generator = torch.Generator().manual_seed(int(batch["rows"][0]))
        latents = []
        for video in frames.transpose(1, 2):
            parts = [self.vae.encode(part).latent_dist for part in video.split(ENCODE_FRAMES)]
            mean, std = torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])
            latents.append((mean + std * torch.randn(mean.shape, generator=generator).to(device)).transpose(0, 1))
        encoded = {
            "latents": torch.stack(latents).float() * self.vae.config.scaling_factor,
            "text": self.towers.encode_text(batch["captions"]),
            "image": self.towers.encode_image(square(frames[:, :, 0]).add(1).div(2)),
            "fps": batch["fps"].to(device),
            "rows": batch["rows"],
        }
        if self.mover is not None:
            moved = self.mover.move_pixels(frames[:, :, :1], encoded["text"], encoded["fps"], frames.shape[2])
            encoded["moved"] = torch.cat([encoded["latents"][:, :, :1], moved], dim=2)
        return encoded


def square(images: torch.Tensor) -> torch.Tensor:
    """(b 3 h w) -> the middle square of each."""
    h, w = images.shape[-2:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return images[..., top : top + side, left : left + side]

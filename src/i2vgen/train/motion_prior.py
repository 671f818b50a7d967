"""Training of nano's motion prior: the image latents, moved as the text says, should land on the later frames."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file

from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.models.object_prior import ObjectPrior
from i2vgen.models.prior import VARIANCE_SAMPLES, MotionPrior
from i2vgen.train.cache import Bucket, load_cache
from i2vgen.train.config import TrainConfig
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


class PixelMover:
    """Moves images as the pipelines do: in pixels, encoded afterwards. Cached clips keep latents only, so the
    image is decoded first."""

    def __init__(self, prior: MotionPrior, vae_dir: str, objects: ObjectPrior | None = None):
        # copies, because batches are made in another thread than the one that trains
        self.prior = copy.deepcopy(prior).eval()
        self.objects = copy.deepcopy(objects).eval() if objects is not None else None
        self.vae = PatchAutoencoder.from_pretrained(vae_dir).eval()

    @torch.no_grad()
    def move(self, image_latents: torch.Tensor, text: torch.Tensor, fps: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Image latents (b c 1 h w) -> (b c f h w)."""
        scale = self.vae.config.scaling_factor
        with torch.autocast("cpu", torch.bfloat16):
            pixels = self.vae.decode(image_latents[:, :, 0] / scale).sample.float().clamp(-1, 1)
        picture = (pixels.unsqueeze(2), text, fps, num_frames)
        moved = self.prior.move(*picture) if self.objects is None else self.objects.move(self.prior, *picture)
        frames = moved[:, :, 1:]
        if num_frames == 1:
            return image_latents
        flat = rearrange(frames, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            moved = self.vae.encode(flat).latent_dist.mean.float() * scale
        return torch.cat([image_latents, rearrange(moved, "(b f) c h w -> b c f h w", b=len(pixels))], dim=2)


@torch.no_grad()
def residual_variances(mover: PixelMover, buckets: list[Bucket], embeddings: list) -> torch.Tensor:
    """(16 c): mean square of what the frames of cached clips (16 at 8 fps) differ from the moved image by."""
    totals = []
    for bucket, (text, _) in zip(buckets, embeddings, strict=True):
        clips = bucket.latents[:40].float().transpose(1, 2)
        fps = torch.full((len(clips),), 8.0)
        moved = mover.move(clips[:, :, :1], text[:40].float(), fps, VARIANCE_SAMPLES)
        totals.append((clips - moved).square().mean(dim=(0, 3, 4)).T)
    return torch.stack(totals).mean(0)

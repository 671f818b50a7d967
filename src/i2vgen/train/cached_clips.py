"""Batches of clips kept as latents, for small models: everything but the UNet has been run ahead."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from i2vgen.data.motion import true_speeds
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.cache import Bucket, load_cache
from i2vgen.train.config import TrainConfig
from i2vgen.train.motion_prior import PixelMover, residual_variances, set_priors
from i2vgen.train.objective import NoiseLevels
from i2vgen.train.tower_reading import Towers
from i2vgen.train.workers import Workers

# frames -> strides that a cached clip of 16 frames offers at that length
STRIDES = {1: [1], 4: [4, 5, 5], 6: [3], 8: [1, 2, 2], 16: [1]}
NUM_HELD_OUT = 16


class CachedClips:
    """Clips of `data.cache_dir`, with text and image embeddings, and moved images for a UNet with a motion prior."""

    def __init__(self, config: TrainConfig, unet: I2VGenXLUNet, levels: NoiseLevels, workers: Workers):
        self.config, self.options, self.workers = config, config.denoiser, workers
        self.frames = [int(f) for f in self.options.frame_weights]
        if unknown := set(self.frames) - set(STRIDES):
            raise ValueError(f"denoiser.frame_weights: {sorted(unknown)[0]} frames; known counts: {sorted(STRIDES)}")
        weights = np.array(list(self.options.frame_weights.values()))
        self.frame_shares = weights / weights.sum()
        self.buckets = load_cache(Path(config.data.cache_dir) / "train", self.options.only_targets)
        self.val_buckets = load_cache(Path(config.data.cache_dir) / "test", self.options.only_targets)
        self.towers = Towers(self.options.towers_dir)
        self.empty_text = self.towers.empty_text
        self.embeddings = [self.towers.embed(b) for b in self.buckets]
        self.val_embeddings = [self.towers.embed(b) for b in self.val_buckets]
        self.truths, self.val_truths = ([known_motion(b) for b in bs] for bs in (self.buckets, self.val_buckets))
        self.mover = self._make_mover(unet, levels) if unet.config.use_motion_prior else None
        counts = np.array([len(b.captions) for b in self.buckets], float)
        self.bucket_shares = counts / counts.sum()

    def _make_mover(self, unet: I2VGenXLUNet, levels: NoiseLevels) -> PixelMover:
        """The priors in the UNet; those newly trained also learn the schedule of this stage and their own error."""
        mover = PixelMover(unet.motion_prior, self.options.vae_dir, set_priors(unet, self.options))
        mover.to(self.workers.device)
        if self.options.prior_dir:
            variances = residual_variances(mover, self.buckets, self.embeddings, self.truths)
            unet.motion_prior.set_statistics(levels.alphas, levels.sigmas, variances)
        return mover

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """This process's rows: latents (b c f h w), text (b n d), image (b d), fps (b), rows (b)."""
        rng = np.random.default_rng([self.config.run.seed, 4, step])
        num_frames = int(rng.choice(self.frames, p=self.frame_shares))
        index = int(rng.choice(len(self.buckets), p=self.bucket_shares))
        bucket, (text, image) = self.buckets[index], self.embeddings[index]
        size = min(self._batch_size(bucket.latents.shape, num_frames), len(bucket.captions))
        chosen = torch.from_numpy(rng.choice(len(bucket.captions), size=size, replace=False))
        stride = int(rng.choice(STRIDES[num_frames]))
        start = int(rng.integers(bucket.latents.shape[1] - stride * (num_frames - 1)))

        mine = self.workers.rows(size)
        chosen = chosen[mine]
        latents = bucket.latents[chosen, start : start + stride * (num_frames - 1) + 1 : stride]
        latents = latents.float().transpose(1, 2)
        texts, fps = text[chosen].float(), torch.full((len(chosen),), self.config.data.fps / stride)
        return {
            "latents": latents,
            "text": texts,
            "image": image[chosen].float(),
            "fps": fps,
            "rows": torch.arange(size)[mine],
            "speeds": self.truths[index][0][chosen],
            "velocity": self.truths[index][1][chosen],
        }

    def _batch_size(self, shape: torch.Size, num_frames: int) -> int:
        """About as many latent pixels in every batch: `batch_size` clips of 4 square frames, shared evenly."""
        smallest = min(b.latents.shape[-1] * b.latents.shape[-2] for b in self.buckets)
        size = self.config.optim.batch_size * 4 / max(num_frames, 2) * smallest / (shape[-1] * shape[-2])
        count = self.workers.count
        return math.ceil(max(2, round(size)) / count) * count

    def held_out(self) -> dict[str, torch.Tensor]:
        """Clips of 16 frames that are never trained on, as `batch` gives them."""
        bucket, (text, image) = self.val_buckets[0], self.val_embeddings[0]
        rows = slice(0, NUM_HELD_OUT)
        latents = bucket.latents[rows].float().transpose(1, 2)
        fps = torch.full((len(latents),), float(self.config.data.fps))
        batch = {"latents": latents, "text": text[rows].float(), "image": image[rows].float(), "fps": fps}
        batch["speeds"], batch["velocity"] = (part[rows] for part in self.val_truths[0])
        return batch | {"captions": bucket.captions[rows], "rows": torch.arange(len(latents))}

    def encoded(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch, encoded ahead, with the image moved as the clip moves, which says more than its words: what the
        words ask for is the priors' business. Both guidance branches share it, so it does not go with the text."""
        if self.mover is None:
            return dict(batch)
        latents = batch["latents"]
        truth = batch["speeds"], batch["velocity"]
        moved = self.mover.move(latents[:, :, :1], batch["text"], batch["fps"], latents.shape[2], truth)
        return {**batch, "moved": moved}


def known_motion(bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
    """Camera speeds (k 4) and object velocity (k 2) of clips made by program; NaN for those of the film."""
    unknown = ([math.nan] * 4, [math.nan] * 2)
    rows = [true_speeds(targets) if targets else unknown for targets in bucket.targets]
    return torch.tensor([camera for camera, _ in rows]), torch.tensor([path for _, path in rows])

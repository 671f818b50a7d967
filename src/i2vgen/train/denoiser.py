"""Training of the UNet of either stage on cached latents: v-prediction, condition dropout, any frame count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.schedulers.schedules import (
    alphas_cumprod_from_betas,
    alphas_from_sigmas,
    cosine_betas,
    logsnr_cosine_interp_sigmas,
    rescale_zero_terminal_snr,
)
from i2vgen.train.cache import load_cache
from i2vgen.train.config import TrainConfig
from i2vgen.train.motion_prior import PRIOR_FILE, PixelMover, residual_variances
from i2vgen.train.tower_reading import Towers

# frames -> strides that a cached clip of 16 frames offers at that length
STRIDES = {1: [1], 4: [4, 5, 5], 6: [3], 8: [1, 2, 2], 16: [1]}
EVALUATED_TIMESTEPS = {"base": (999, 900, 700, 400), "refine": (599, 450, 250, 100)}


class DenoiserTask:
    def __init__(self, config: TrainConfig):
        self.config, self.options = config, config.denoiser
        if self.options.stage not in EVALUATED_TIMESTEPS:
            raise ValueError(f"denoiser.stage must be base or refine, got {self.options.stage!r}")
        torch.manual_seed(config.run.seed)
        if config.run.init_from:
            self.model = I2VGenXLUNet.from_pretrained(config.run.init_from, **self.options.model)
        else:
            self.model = I2VGenXLUNet(**self.options.model)
        self.model.train()
        self.frames = [int(f) for f in self.options.frame_weights]
        if unknown := set(self.frames) - set(STRIDES):
            raise ValueError(f"denoiser.frame_weights: {sorted(unknown)[0]} frames; known counts: {sorted(STRIDES)}")
        weights = np.array(list(self.options.frame_weights.values()))
        self.frame_shares = weights / weights.sum()
        self.alpha, self.sigma = noise_levels(self.options.stage)

        self.buckets = load_cache(Path(config.data.cache_dir) / "train", self.options.only_targets)
        self.val_buckets = load_cache(Path(config.data.cache_dir) / "test", self.options.only_targets)
        self.towers = Towers(self.options.towers_dir)
        self.embeddings = [self.towers.embed(b) for b in self.buckets]
        self.val_embeddings = [self.towers.embed(b) for b in self.val_buckets]
        if self.model.config.use_motion_prior:
            self._set_motion_prior()
        counts = np.array([len(b.captions) for b in self.buckets], float)
        self.bucket_shares = counts / counts.sum()

    def _set_motion_prior(self) -> None:
        """Take over the trained motion prior, frozen, with the schedule of this stage."""
        prior = self.model.motion_prior
        prior.load_state_dict(load_file(Path(self.options.prior_dir) / PRIOR_FILE))
        prior.requires_grad_(False)
        self.mover = PixelMover(prior, self.options.vae_dir)
        variances = residual_variances(self.mover, self.buckets, self.embeddings)
        prior.set_statistics(self.alpha, self.sigma, variances)

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        options = self.options
        rng = np.random.default_rng([self.config.run.seed, 4, step])
        num_frames = int(rng.choice(self.frames, p=self.frame_shares))
        index = int(rng.choice(len(self.buckets), p=self.bucket_shares))
        bucket, (text, image) = self.buckets[index], self.embeddings[index]
        # about as many latent pixels in every batch: batch_size clips of 4 square frames
        area = bucket.latents.shape[-1] * bucket.latents.shape[-2]
        smallest = min(b.latents.shape[-1] * b.latents.shape[-2] for b in self.buckets)
        size = max(2, round(self.config.optim.batch_size * 4 / max(num_frames, 2) * smallest / area))
        rows = rng.choice(len(bucket.captions), size=min(size, len(bucket.captions)), replace=False)
        stride = int(rng.choice(STRIDES[num_frames]))
        start = int(rng.integers(bucket.latents.shape[1] - stride * (num_frames - 1)))
        chosen = torch.from_numpy(rows)
        latents = bucket.latents[chosen, start : start + stride * (num_frames - 1) + 1 : stride]
        keep = rng.random(len(rows))
        drop_both = keep < options.both_dropout
        drop_text = drop_both | (rng.random(len(rows)) < options.text_dropout)
        drop_image = drop_both | (rng.random(len(rows)) < options.image_dropout)
        empty_text = self.towers.empty_text
        u = rng.random(len(rows)) ** options.timestep_power
        latents = latents.float().transpose(1, 2)
        fps = torch.full((len(rows),), self.config.data.fps / stride)
        moved = {}
        if self.model.config.use_motion_prior:  # both guidance branches share it, so text dropout leaves it
            moved = {"moved": self.mover.move(latents[:, :, :1], text[chosen].float(), fps, num_frames)}
        return {
            **moved,
            "latents": latents,
            "text": torch.where(torch.from_numpy(drop_text)[:, None, None], empty_text, text[chosen].float()),
            "image": image[chosen].float() * ~torch.from_numpy(drop_image)[:, None],
            "fps": fps,
            "t": torch.from_numpy(np.minimum(options.max_timestep, u * (options.max_timestep + 1)).astype(np.int64)),
        }

    def _predict(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted and true velocity (b c f h w)."""
        latents, t = batch["latents"], batch["t"]
        noise = torch.randn(latents.shape, generator=generator)
        # one draw a channel and frame, so that the mean brightness is noised too
        noise = noise + self.options.offset_noise * torch.randn((*latents.shape[:3], 1, 1), generator=generator)
        alpha, sigma = (x[t][:, None, None, None, None] for x in (self.alpha, self.sigma))
        image_latents, moved = latents[:, :, :1], batch.get("moved")
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.run.dtype == "bfloat16"):
            conditions = self.model.encode_conditions(
                latents.shape[2], batch["text"], batch["image"], image_latents, batch["fps"], moved
            )
            velocity = self.model(alpha * latents + sigma * noise, t, conditions=conditions).sample
        return velocity.float(), alpha * noise - sigma * latents

    def loss(self, batch: dict[str, torch.Tensor], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + step)
        predicted, target = self._predict(batch, generator)
        loss = F.mse_loss(predicted, target)
        return loss, {"loss": loss.item(), f"loss_{batch['latents'].shape[2]}f": loss.item()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out clips of 16 frames: velocity error by timestep, and that of repeating frame 0 at the first."""
        self.model.eval()
        result: dict[str, float] = {}
        bucket, (text, image) = self.val_buckets[0], self.val_embeddings[0]
        rows = slice(0, 16)
        latents = bucket.latents[rows].float().transpose(1, 2)
        fps = torch.full((len(latents),), float(self.config.data.fps))
        moved = {}
        if self.model.config.use_motion_prior:
            moved = {"moved": self.mover.move(latents[:, :, :1], text[rows].float(), fps, latents.shape[2])}
        for t in EVALUATED_TIMESTEPS[self.options.stage]:
            batch = {
                **moved,
                "latents": latents,
                "text": text[rows].float(),
                "image": image[rows].float(),
                "fps": fps,
                "t": torch.full((len(latents),), t),
            }
            predicted, target = self._predict(batch, torch.Generator().manual_seed(t))
            result[f"loss_t{t}"] = F.mse_loss(predicted, target).item()
            if t == 999:
                result["frame0_t999"] = F.mse_loss(predicted[:, :, 0], target[:, :, 0]).item()
        result["still_mse"] = F.mse_loss(latents[:, :, :1].expand_as(latents), latents).item()
        self.model.train()
        return result

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder / "unet")


def noise_levels(stage: str) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma (1000) float32 of the schedule that a stage is trained on."""
    if stage == "base":
        alphas_cumprod = alphas_cumprod_from_betas(rescale_zero_terminal_snr(cosine_betas()))
        return alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()
    sigmas = logsnr_cosine_interp_sigmas()
    return alphas_from_sigmas(sigmas), sigmas

"""Training of nano's autoencoder on photos, film frames and cut-outs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from i2vgen.data.pack import Pack
from i2vgen.models.autoencoder import PATCH, PatchAutoencoder
from i2vgen.train.config import TrainConfig


class VAETask:
    def __init__(self, config: TrainConfig):
        self.config, self.options = config, config.vae
        torch.manual_seed(config.run.seed)
        if config.run.init_from:
            self.model = PatchAutoencoder.from_pretrained(config.run.init_from)
        else:
            self.model = PatchAutoencoder(**config.vae.model)
        self.pack = Pack(config.data.pack_dir, "train")
        self.val_photos = [p.image for p in Pack(config.data.pack_dir, "val").photos]
        self.film = [
            self.pack.film_frames(shot.start_frame + shift, 1)[0]
            for shot in self.pack.shots
            for shift in range(0, shot.end_frame - shot.start_frame, 16)
        ]
        areas = np.sqrt([p.image.shape[0] * p.image.shape[1] for p in self.pack.photos])
        self.photo_shares = areas / areas.sum()
        cv2.setNumThreads(1)
        if not config.run.init_from:
            self._set_principal_components()
        self.model.to(memory_format=torch.channels_last)

    def _set_principal_components(self) -> None:
        """Start from the principal components of patches, with gains between pixel scale and unit variance."""
        rng = np.random.default_rng([self.config.run.seed, 1])
        crops = torch.from_numpy(np.stack([self._crop(rng) for _ in range(400)])).permute(0, 3, 1, 2)
        patches = F.unfold(crops.double().div(127.5).sub(1), PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 192)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        order = values.argsort(descending=True)[: self.model.config.latent_channels]
        gains = values[order].clamp_min(1e-8) ** -0.25
        self.model.set_transform(vectors[:, order].T.float(), gains.float())

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        size = self.options.crop_size
        kind = rng.random()
        if kind < 0.3:
            source = self.film[rng.integers(len(self.film))]
        else:
            source = self.pack.photos[rng.choice(len(self.photo_shares), p=self.photo_shares)].image
        height, width = source.shape[:2]
        short = min(height, width)
        side = int(np.exp(rng.uniform(np.log(min(size, short)), np.log(short))))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = source[top : top + side, left : left + side]
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
        if kind > 0.93:
            sprite = self.pack.sprites[rng.integers(len(self.pack.sprites))].image
            scale = size * rng.uniform(0.4, 0.95) / max(sprite.shape[:2])
            sprite = cv2.resize(sprite, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
            h, w = sprite.shape[:2]
            y, x = rng.integers(size - h + 1), rng.integers(size - w + 1)
            alpha = sprite[..., 3:] / 255
            crop = crop.copy()
            crop[y : y + h, x : x + w] = sprite[..., :3] * alpha + crop[y : y + h, x : x + w] * (1 - alpha)
        return crop[:, ::-1] if rng.random() < 0.5 else crop

    def batch(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([self.config.run.seed, step])
        crops = np.stack([self._crop(rng) for _ in range(self.config.optim.batch_size)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2)

    def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        images = batch.float().div(127.5).sub(1).to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.run.dtype == "bfloat16"):
            posterior = self.model.encode(images).latent_dist
            latents = posterior.sample(generator=generator)
            decoded = self.model.decode(latents).sample
        error = decoded.float() - images
        reconstruction = (error.square() + 1e-4).sqrt().mean()
        gradient = _differences(error)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction + self.options.gradient_weight * gradient + self.options.kl_weight * kl
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        return loss, {"loss": loss.item(), "psnr": psnr.item(), "kl": kl.item()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR of held-out photos at 256 px short side, float32, posterior sampled as the pipelines do."""
        scores, stds = [], []
        generator = torch.Generator().manual_seed(0)
        for photo in self.val_photos[:12]:
            image = torch.from_numpy(_square(photo, 256)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
            posterior = self.model.encode(image).latent_dist
            decoded = self.model.decode(posterior.sample(generator=generator)).sample.clamp(-1, 1)
            scores.append(-10 * torch.log10((decoded - image).square().mean() / 4).item())
            stds.append(posterior.mean.square().mean().item())
        return {"psnr": float(np.mean(scores)), "latent_rms": float(np.sqrt(np.mean(stds)))}

    def export(self, folder: Path) -> None:
        rms = self.evaluate()["latent_rms"]
        self.model.register_to_config(scaling_factor=round(1 / rms, 5))
        self.model.save_pretrained(folder / "vae")


def _differences(error: torch.Tensor) -> torch.Tensor:
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _square(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)

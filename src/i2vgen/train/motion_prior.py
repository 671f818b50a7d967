"""Training of nano's motion prior, from words to speeds, and the moving of images by it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from i2vgen.data.motion import sample_caption, true_speeds
from i2vgen.data.pack import Pack
from i2vgen.models.autoencoder import PATCH, PatchAutoencoder
from i2vgen.models.object_prior import ObjectPrior
from i2vgen.models.prior import VARIANCE_SAMPLES, MotionPrior
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.cache import Bucket
from i2vgen.train.config import DenoiserConfig, TrainConfig
from i2vgen.train.object_prior import PRIOR_FILE as OBJECT_PRIOR_FILE
from i2vgen.train.tower_reading import Towers

PRIOR_FILE = "motion_prior.safetensors"
NUM_VAL_CAPTIONS = 400


class MotionPriorTask:
    """Words to speeds: captions made by program, whose motion is known."""

    def __init__(self, config: TrainConfig):
        self.config = config
        torch.manual_seed(config.run.seed)
        self.towers = Towers(config.denoiser.towers_dir)
        self.pack = Pack(config.data.pack_dir, "train")
        self.model = MotionPrior(self.towers.empty_text.shape[-1], config.denoiser.model["in_channels"])
        # a normal amount of each motion counts alike
        self.units = torch.tensor(true_speeds(dict.fromkeys(("pan", "tilt", "zoom", "roll"), 1.0))[0])
        val_pack = Pack(config.data.pack_dir, "test")
        self.val_batch = self._make(val_pack, np.random.default_rng([config.run.seed, 9]), NUM_VAL_CAPTIONS)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Text (b n d), speeds (b 4)."""
        rng = np.random.default_rng([self.config.run.seed, 5, step])
        return self._make(self.pack, rng, self.config.optim.batch_size)

    def _make(self, pack: Pack, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        captions, targets = zip(*(sample_caption(pack, rng) for _ in range(count)), strict=True)
        speeds = torch.tensor([true_speeds(t)[0] for t in targets])
        return self.towers.encode_text(list(captions)), speeds

    def loss(self, batch: tuple, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        text, speeds = batch
        loss = F.smooth_l1_loss(self.model.speeds(text) / self.units, speeds / self.units, beta=0.1)
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On captions of held-out photos and cut-outs: mean error, in normal amounts, and right signs."""
        text, speeds = self.val_batch
        self.model.eval()
        found = self.model.speeds(text)
        self.model.train()
        errors = ((found - speeds) / self.units).abs().mean(dim=0)
        is_asked = speeds != 0
        signs = (found.sign() == speeds.sign())[is_asked].float().mean()
        is_still = (found[~is_asked] == 0).float().mean()
        named = dict(zip(("pan", "tilt", "zoom", "roll"), errors.tolist(), strict=True))
        return {f"error_{k}": v for k, v in named.items()} | {"signs": signs.item(), "still": is_still.item()}

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
    def move(
        self,
        image_latents: torch.Tensor,
        text: torch.Tensor,
        fps: torch.Tensor,
        num_frames: int,
        truth: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Image latents (b c 1 h w) -> (b c f h w). `truth`: camera speeds (b 4) and the object's velocity (b 2), NaN
        where nobody knows them, to move by in place of what the text asks for."""
        scale = self.vae.config.scaling_factor
        with torch.autocast(image_latents.device.type, torch.bfloat16):
            pixels = self.vae.decode(image_latents[:, :, 0] / scale).sample.float().clamp(-1, 1)
        moved = self.move_pixels(pixels.unsqueeze(2), text, fps, num_frames, truth)
        return torch.cat([image_latents, moved], dim=2)

    @torch.no_grad()
    def move_pixels(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        fps: torch.Tensor,
        num_frames: int,
        truth: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Pixels (b 3 1 h w) in [-1, 1] -> latents (b c f-1 h w) of the frames after the image."""
        picture = (image.float(), text, fps, num_frames)
        speeds = velocity = None
        if truth is not None:
            speeds = torch.where(truth[0].isnan(), self.prior.speeds(text).float(), truth[0])
        if truth is not None and self.objects is not None:
            velocity = torch.where(truth[1].isnan(), self.objects(image[:, :, 0], text)[1].float(), truth[1])
        if self.objects is None:
            moved = self.prior.move(*picture, speeds)
        else:
            moved = self.objects.move(self.prior, *picture, speeds, velocity)
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
def residual_variances(mover: PixelMover, buckets: list[Bucket], embeddings: list, truths: list) -> torch.Tensor:
    """(16 c): mean square of what the frames of cached clips (16 at 8 fps) differ from the moved image by."""
    totals = []
    for bucket, (text, _), truth in zip(buckets, embeddings, truths, strict=True):
        device = next(mover.parameters()).device
        clips = bucket.latents[:40].float().transpose(1, 2).to(device)
        fps = torch.full((len(clips),), 8.0, device=device)
        known = tuple(part[:40].to(device) for part in truth)
        moved = mover.move(clips[:, :, :1], text[:40].float().to(device), fps, VARIANCE_SAMPLES, known)
        totals.append((clips - moved).square().mean(dim=(0, 3, 4)).T)
    return torch.stack(totals).mean(0)

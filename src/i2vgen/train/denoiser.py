"""Training of the UNet of either stage: v-prediction, condition dropout, any frame count."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from i2vgen.checkpoints.reading import open_tensors
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.config import TrainConfig
from i2vgen.train.objective import NoiseLevels, clip_errors, draw_noise
from i2vgen.train.workers import Workers, to_device

MAX_BATCH = 65536  # rows of all processes together
ADDED_PARTS = ("motion_prior.", "motion_embedding.", "object_prior.")  # that a trained UNet may be given later
EVALUATED_TIMESTEPS = {"base": (999, 900, 700, 400), "refine": (599, 450, 250, 100)}


class ClipSource(Protocol):
    """Where the batches come from: latents made ahead, or videos encoded on the way."""

    empty_text: torch.Tensor  # (n d), the text tower's tokens of no text

    def batch(self, step: int) -> dict:
        """This process's rows of a step, with `rows` (b), their numbers in the batch of all processes."""

    def held_out(self) -> dict | None:
        """Clips that are never trained on, with their `captions`, always the same; None if there are none."""

    def encoded(self, batch: dict) -> dict[str, torch.Tensor]:
        """latents (b c f h w), text (b n d), image (b d), fps (b), and what else `batch` had."""


class DenoiserTask:
    def __init__(self, config: TrainConfig, workers: Workers | None = None):
        self.config, self.options = config, config.denoiser
        self.workers = workers or Workers()
        if self.options.stage not in EVALUATED_TIMESTEPS:
            raise ValueError(f"denoiser.stage must be base or refine, got {self.options.stage!r}")
        torch.manual_seed(config.run.seed)
        self.model = initial_unet(config)
        self.model.train()
        if config.run.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.levels = NoiseLevels.of_stage(self.options.stage)
        self.source = clip_source(config, self.model, self.levels, self.workers)

    def batch(self, step: int) -> dict:
        """The source's rows, with timesteps `t` (b) and which conditions they go without."""
        batch, options = self.source.batch(step), self.options
        rows = batch["rows"]
        rng = np.random.default_rng([self.config.run.seed, 8, step])
        draws = torch.from_numpy(rng.random((MAX_BATCH, 3)))[rows]
        keep, drop_text, u = draws.unbind(1)
        drop_both = keep < options.both_dropout
        t = u**options.timestep_power * (options.max_timestep + 1)
        return {
            **batch,
            "t": t.long().clamp_max(options.max_timestep),
            "drop_text": drop_both | (drop_text < options.text_dropout),
            "drop_image": drop_both | (keep > 1 - options.image_dropout),
        }

    def loss(self, batch: dict, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        encoded = self.source.encoded(batch)
        latents, device = encoded["latents"], encoded["latents"].device
        empty = self.source.empty_text.to(device)
        encoded["text"] = torch.where(batch["drop_text"][:, None, None], empty, encoded["text"])
        encoded["image"] = encoded["image"] * ~batch["drop_image"][:, None]
        strength = self.options.offset_noise
        noise = draw_noise(latents.shape, self.config.run.seed, step, batch["rows"], strength).to(device)
        loss = clip_errors(self._predict(encoded, noise, batch["t"]), self.levels.target(latents, noise, batch["t"]))
        loss = loss.mean()
        return loss, {"loss": loss.item(), f"loss_{latents.shape[2]}f": loss.item()}

    def _predict(self, encoded: dict[str, torch.Tensor], noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Velocity (b c f h w) of the noised latents."""
        latents = encoded["latents"]
        noised, dtype = self.levels.noised(latents, noise, t), torch.bfloat16
        with torch.autocast(latents.device.type, dtype, enabled=self.config.run.dtype == "bfloat16"):
            conditions = self.model.encode_conditions(latents.shape[2], **self.given(encoded))
            return self.model(noised, t, conditions=conditions).sample

    def given(self, encoded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
        """What of `encoded` this UNet is conditioned on, by the names of `encode_conditions`."""
        has = self.model.config
        return {
            "encoder_hidden_states": encoded["text"] if self.options.use_text else None,
            "image_embeddings": encoded["image"] if has.use_image_embeddings else None,
            "image_latents": encoded["latents"][:, :, :1] if has.use_image_latents else None,
            "fps": encoded["fps"] if has.use_fps else None,
            "moved": encoded.get("moved"),
        }

    def parameter_groups(self) -> list[dict]:
        """All trained weights, those of the pretrained spatial layers at `optim.spatial_scale` of the rate."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        scale = self.config.optim.spatial_scale
        if scale == 1.0:
            return [{"params": list(trained.values())}]
        from i2vgen.checkpoints.unet_keys import sd_unet_table

        spatial = sd_unet_table(dict(self.model.config)).targets
        return [
            {"params": [p for name, p in trained.items() if name not in spatial]},
            {"params": [p for name, p in trained.items() if name in spatial], "lr_scale": scale},
        ]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out clips: velocity error by timestep, and the mean square of a still image."""
        clips = self.source.held_out()
        if clips is None:
            return {}
        self.model.eval()
        result: dict[str, float] = {}
        encoded = self.source.encoded(to_device(clips, self.workers.device))
        latents = encoded["latents"]
        for t in EVALUATED_TIMESTEPS[self.options.stage]:
            noise = draw_noise(latents.shape, 0, t, encoded["rows"], self.options.offset_noise).to(latents.device)
            times = torch.full((len(latents),), t, device=latents.device)
            predicted, target = self._predict(encoded, noise, times), self.levels.target(latents, noise, times)
            result[f"loss_t{t}"] = clip_errors(predicted, target).mean().item()
        result["still_mse"] = F.mse_loss(latents[:, :, :1].expand_as(latents), latents).item()
        self.model.train()
        return result

    def samples(self) -> dict[str, np.ndarray]:
        """Videos of the first held-out (or else training) clips, from the same noise: caption -> uint8 (f h w 3)."""
        from i2vgen.train.samples import sample_videos

        clips = self.source.held_out() or self.source.batch(0)
        self.model.eval()
        encoded = self.source.encoded(to_device(clips, self.workers.device))
        first = {name: value[: self.options.num_samples] for name, value in encoded.items()}
        videos = sample_videos(self.model, self.options, self.given(first), first["latents"], self.source.empty_text)
        self.model.train()
        names = [f"{i}-{caption[:40]}" for i, caption in enumerate(clips["captions"])]
        return {_file_stem(name): frames for name, frames in zip(names, videos, strict=False)}

    def export(self, folder: Path) -> None:
        """The UNet as the component folder `unet`, or its adapter alone."""
        if self.config.lora.rank:
            from i2vgen.train.lora import export_adapter

            export_adapter(self.model, folder, self.options.stage)
        else:
            self.model.save_pretrained(folder / "unet")


def initial_unet(config: TrainConfig) -> I2VGenXLUNet:
    """The UNet that a run starts from: trained weights, with an adapter or not, a pretrained image model's spatial
    layers, or new ones."""
    options = config.denoiser
    if config.lora.rank:
        return _adapted(config)
    if config.run.init_from:
        return _continued(config.run.init_from, options.model)
    unet = I2VGenXLUNet(**options.model)
    if options.spatial_from:
        from i2vgen.checkpoints import load_spatial

        load_spatial(unet, options.spatial_from)
    return unet


def _adapted(config: TrainConfig) -> I2VGenXLUNet:
    from i2vgen.train.lora import inject_adapter

    if config.lora.rank < 0 or not config.run.init_from or config.denoiser.prior_dir:
        raise ValueError(
            f"lora.rank {config.lora.rank}: an adapter has a rank above 0, needs the trained UNet's folder as "
            "run.init_from, and keeps its priors (no denoiser.prior_dir)"
        )
    unet = _continued(config.run.init_from, config.denoiser.model)
    inject_adapter(unet, config.lora)
    return unet


def _continued(folder: str, changes: dict) -> I2VGenXLUNet:
    """The UNet of a component folder with changed fields; parts that a change adds are new."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"run.init_from: no config.json in {folder!r}; name the folder of a UNet")
    unet = I2VGenXLUNet.from_config({**I2VGenXLUNet.load_config(folder), **changes})
    with open_tensors(folder) as weights:
        state = {key: weights.read(key) for key in weights.keys()}  # noqa: SIM118 (not a dict)
        found = unet.load_state_dict(state, strict=False)
    missing = [key for key in found.missing_keys if not key.startswith(ADDED_PARTS)]
    if missing or found.unexpected_keys:
        wrong = (missing or found.unexpected_keys)[0]
        raise ValueError(f"run.init_from: {folder} does not fit denoiser.model: {wrong}")
    return unet


def clip_source(config: TrainConfig, unet: I2VGenXLUNet, levels: NoiseLevels, workers: Workers) -> ClipSource:
    if config.data.cache_dir:
        from i2vgen.train.cached_clips import CachedClips

        return CachedClips(config, unet, levels, workers)
    from i2vgen.train.live_clips import LiveClips

    return LiveClips(config, unet, levels, workers)


def _file_stem(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")

"""Training of nano's object prior: cut-outs set on photos, of which we know the outline and where they will go."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from i2vgen.data.motion import AMOUNTS, DURATION, ClipMaker
from i2vgen.data.pack import Pack
from i2vgen.models.object_prior import SHORT_SIDE, STILL, ObjectPrior, look
from i2vgen.train.config import TrainConfig
from i2vgen.train.tower_reading import Towers

PRIOR_FILE = "object_prior.safetensors"
ENLARGEMENT = 4 / 3  # clips are made larger than the network looks at them, as users' pictures are
SPEED = AMOUNTS["object"]["normal"] / DURATION  # frames a second for a target of 1
SPEED_WEIGHT = 4.0
FIRST_FRAME = np.zeros(1)


class ObjectPriorTask:
    def __init__(self, config: TrainConfig):
        self.config = config
        torch.manual_seed(config.run.seed)
        cv2.setNumThreads(1)
        self.towers = Towers(config.denoiser.towers_dir)
        self.model = ObjectPrior(self.towers.empty_text.shape[-1]).to(memory_format=torch.channels_last)
        self.train = ClipMaker(Pack(config.data.pack_dir, "train"), config.data.kind_weights)
        val = ClipMaker(Pack(config.data.pack_dir, "test"), {"sprite": 0.75, "camera": 0.25})
        self.val_batches = [self._make(val, np.random.default_rng([config.run.seed, 7, i]), 32) for i in range(4)]

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.config.run.seed, 6, step])
        return self._make(self.train, rng, self.config.optim.batch_size)

    def _make(self, maker: ClipMaker, rng: np.random.Generator, count: int) -> dict[str, torch.Tensor]:
        """Pictures (b 3 h w), text (b n d), masks (b 1 h w), velocity (b 2), and which rows have a known mask (b)."""
        data = self.config.data
        weights = np.array(data.size_weights) / sum(data.size_weights)
        width, height = data.sizes[int(rng.choice(len(data.sizes), p=weights))]
        scale = SHORT_SIDE * ENLARGEMENT / min(width, height)
        size = (round(width * scale), round(height * scale))
        clips = [maker.make(size, FIRST_FRAME, rng) for _ in range(count)]
        pictures = np.stack([c.frames[0] for c in clips])
        masks = [np.zeros(size[::-1], np.float32) if c.mask is None else c.mask for c in clips]
        velocity = [[c.targets.get("object_x", 0.0), c.targets.get("object_y", 0.0)] for c in clips]
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return {
            "pixels": pixels,
            "text": self.towers.encode_text([c.caption for c in clips]),
            "masks": torch.from_numpy(np.stack(masks))[:, None],
            "has_mask": torch.tensor([c.mask is not None for c in clips]),
            "velocity": torch.tensor(velocity, dtype=torch.float32) * SPEED,
        }

    def loss(self, batch: dict[str, torch.Tensor], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.run.dtype == "bfloat16"):
            logits, velocity = (x.float() for x in self.model(batch["pixels"], batch["text"]))
        truth = look(batch["masks"])
        rows = batch["has_mask"].float()[:, None, None, None]
        share = rows.mean().clamp_min(1e-6)
        cross = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * rows).mean() / share
        mask = logits.sigmoid() * rows
        overlap = (2 * (mask * truth).sum((1, 2, 3)) + 1) / ((mask + truth * rows).sum((1, 2, 3)) + 1)
        dice = ((1 - overlap) * rows.flatten()).sum() / rows.sum().clamp_min(1)
        speed = F.smooth_l1_loss(velocity, batch["velocity"], beta=0.02)
        loss = cross + 0.5 * dice + SPEED_WEIGHT * speed
        return loss, {"loss": loss.item(), "cross": cross.item(), "dice": dice.item(), "speed": speed.item()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On held-out cut-outs and photos: overlap of masks, right directions, and stillness where it is due."""
        self.model.eval()
        overlaps, directions, stills = [], [], []
        for batch in self.val_batches:
            logits, velocity = self.model(batch["pixels"], batch["text"])
            truth = look(batch["masks"]) > 0.5
            mask = logits > 0
            inside = (mask & truth).sum((1, 2, 3)) / (mask | truth).sum((1, 2, 3)).clamp_min(1)
            rows, wanted = batch["has_mask"], batch["velocity"]
            overlaps += inside[rows].tolist()
            is_along = (velocity * wanted).sum(1) > 0.5 * wanted.norm(dim=1) * velocity.norm(dim=1)
            directions += (is_along & (velocity.norm(dim=1) > STILL))[rows].tolist()
            stills += (velocity.norm(dim=1) < STILL)[~rows].tolist()
        self.model.train()
        means = {"overlap": overlaps, "direction": directions, "still": stills}
        return {name: float(np.mean(values)) for name, values in means.items() if values}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / PRIOR_FILE)

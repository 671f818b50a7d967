"""Training of nano's text and image towers: a small CLIP, whose text side also has to tell motions apart.

Contrast between captions and pictures gives the image tower its meaning. The pictures of a clip with left and
right exchanged are alike, so contrast alone leaves the text tower blind to direction: a linear read-out of the
motion (camera axes, object direction, effect) from the text embedding adds that.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from i2vgen.data import captions as words
from i2vgen.data.motion import TARGET_NAMES, ClipMaker
from i2vgen.data.pack import Pack
from i2vgen.train.cache import THUMBNAIL, thumbnail
from i2vgen.train.config import TrainConfig
from i2vgen.train.tokenizer import train_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


class TowersTask:
    def __init__(self, config: TrainConfig):
        self.config = config
        torch.manual_seed(config.run.seed)
        self.train = ClipMaker(Pack(config.data.pack_dir, "train"), config.data.kind_weights)
        self.val = ClipMaker(Pack(config.data.pack_dir, "test"), config.data.kind_weights)
        cv2.setNumThreads(1)
        text = config.towers.text
        self.tokenizer = train_tokenizer(
            self._texts(),
            config.towers.vocab_size,
            text["max_position_embeddings"],
            Path(config.run.dir) / "tokenizer",
        )
        ids = {"bos_token_id": self.tokenizer.bos_token_id, "eos_token_id": self.tokenizer.eos_token_id}
        text_config = CLIPTextConfig(vocab_size=len(self.tokenizer), pad_token_id=ids["eos_token_id"], **ids, **text)
        vision_config = CLIPVisionConfig(image_size=THUMBNAIL, **config.towers.vision)
        width = vision_config.projection_dim
        self.model = nn.ModuleDict(
            {
                "text": CLIPTextModel(text_config),
                "vision": CLIPVisionModelWithProjection(vision_config),
                "text_projection": nn.Linear(text_config.hidden_size, width, bias=False),
                "motion": nn.Linear(text_config.hidden_size, len(TARGET_NAMES)),
            }
        )
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.model.register_parameter("scale", self.scale)
        self.val_batch = self._make(self.val, np.random.default_rng([config.run.seed, 2]), 128)

    def _texts(self) -> list[str]:
        pack = self.train.pack
        texts = [p.caption for p in pack.photos] + [s.caption for s in pack.sprites] + [s.caption for s in pack.shots]
        rng = np.random.default_rng(0)
        for name in words.CAMERA_PHRASES:
            for speed in words.SPEED_WORDS:
                texts += [words.camera_phrase(name, speed, rng) for _ in range(40)]
        for phrases in (
            *words.AMBIENT_PHRASES.values(),
            *words.OBJECT_VERBS.values(),
            *words.DIRECTION_PHRASES.values(),
        ):
            texts += phrases * 10
        return texts

    def _make(
        self, maker: ClipMaker, rng: np.random.Generator, count: int
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Captions, first frames (b 3 64 64) uint8, motion targets (b k)."""
        texts, frames, targets = [], [], torch.zeros(count, len(TARGET_NAMES))
        for row in range(count):
            clip = maker.make((96, 96), np.linspace(0, 1, 2), rng)
            texts.append(clip.caption)
            frames.append(thumbnail(clip.frames[0]))
            for name, value in clip.targets.items():
                targets[row, TARGET_NAMES.index(name)] = value
        return texts, torch.from_numpy(np.stack(frames)), targets

    def batch(self, step: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self.config.run.seed, 3, step])
        return self._make(self.train, rng, self.config.optim.batch_size)

    def _forward(self, batch: tuple) -> tuple[torch.Tensor, dict[str, float]]:
        texts, frames, targets = batch
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pixels = (frames.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        # the layer that the pipelines read: one before the last, through the final norm
        outputs = self.model["text"](tokens, output_hidden_states=True)
        text_model = getattr(self.model["text"], "text_model", self.model["text"])
        hidden = text_model.final_layer_norm(outputs.hidden_states[-2])
        pooled = hidden[torch.arange(len(texts)), (tokens == self.tokenizer.eos_token_id).int().argmax(1)]
        image = F.normalize(self.model["vision"](pixels).image_embeds, dim=-1)
        text = F.normalize(self.model["text_projection"](pooled), dim=-1)
        logits = self.scale.exp().clamp(max=100) * text @ image.T
        same = torch.arange(len(texts))
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        motion = F.mse_loss(self.model["motion"](pooled), targets)
        loss = contrast + self.config.towers.motion_weight * len(TARGET_NAMES) * motion
        accuracy = (logits.argmax(1) == same).float().mean()
        return loss, {
            "loss": loss.item(),
            "contrast": contrast.item(),
            "accuracy": accuracy.item(),
            "motion_rmse": motion.sqrt().item(),
        }

    def loss(self, batch: tuple, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        self.model.train()
        return self._forward(batch)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        return self._forward(self.val_batch)[1]

    def export(self, folder: Path) -> None:
        self.model["text"].save_pretrained(folder / "text_encoder")
        self.model["vision"].save_pretrained(folder / "image_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        size = {"height": THUMBNAIL, "width": THUMBNAIL}
        processor = CLIPImageProcessor(
            size={"shortest_edge": THUMBNAIL},
            crop_size=size,
            do_center_crop=True,
            image_mean=MEAN,
            image_std=STD,
        )
        processor.save_pretrained(folder / "feature_extractor")

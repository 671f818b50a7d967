"""The frozen text and image towers, read as the pipelines read them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from i2vgen.train.cache import Bucket
from i2vgen.train.workers import CPU


class Towers:
    """Tokenizer, text tower, image tower and feature extractor of a model folder, on `device`."""

    def __init__(self, folder: str, device: torch.device = CPU):
        root = Path(folder)
        self.device = device
        self.tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(root / "text_encoder").eval().float().to(device)
        self.vision = CLIPVisionModelWithProjection.from_pretrained(root / "image_encoder").eval().float().to(device)
        processor = CLIPImageProcessor.from_pretrained(root / "feature_extractor")
        self.mean = torch.tensor(processor.image_mean, device=device)[:, None, None]
        self.std = torch.tensor(processor.image_std, device=device)[:, None, None]
        self.empty_text = self.encode_text([""])[0]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """(b n d): one layer before the last, through the final norm."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden = self.text(tokens.to(self.device), output_hidden_states=True).hidden_states[-2]
        return getattr(self.text, "text_model", self.text).final_layer_norm(hidden)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Square pictures (b 3 h w) in [0, 1] -> projected embeddings (b d), not normalised."""
        side = self.vision.config.image_size
        seen = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.vision((seen - self.mean) / self.std).image_embeds

    @torch.no_grad()
    def embed(self, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens (k n d) and image embeddings (k d) of all clips, float16."""
        texts, images = [], []
        for start in tqdm(range(0, len(bucket.captions), 256), desc="embedding captions", leave=False):
            rows = slice(start, start + 256)
            texts.append(self.encode_text(bucket.captions[rows]).half())
            images.append(self.encode_image(bucket.thumbnails[rows].float() / 255).half())
        return torch.cat(texts), torch.cat(images)

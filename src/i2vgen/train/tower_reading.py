"""The frozen text and image towers, read as the pipelines read them."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from i2vgen.train.cache import Bucket


class Towers:
    def __init__(self, folder: str):
        root = Path(folder)
        self.tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(root / "text_encoder").eval()
        self.vision = CLIPVisionModelWithProjection.from_pretrained(root / "image_encoder").eval()
        processor = CLIPImageProcessor.from_pretrained(root / "feature_extractor")
        self.mean = torch.tensor(processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_std)[:, None, None]
        self.empty_text = self.encode_text([""])[0]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """(b n d): one layer before the last, through the final norm."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden = self.text(tokens, output_hidden_states=True).hidden_states[-2]
        return getattr(self.text, "text_model", self.text).final_layer_norm(hidden)

    @torch.no_grad()
    def embed(self, bucket: Bucket) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens (k n d) and image embeddings (k d) of all clips, float16."""
        texts, images = [], []
        for start in tqdm(range(0, len(bucket.captions), 256), desc="embedding captions", leave=False):
            rows = slice(start, start + 256)
            texts.append(self.encode_text(bucket.captions[rows]).half())
            pixels = (bucket.thumbnails[rows].float() / 255 - self.mean) / self.std
            images.append(self.vision(pixels).image_embeds.half())
        return torch.cat(texts), torch.cat(images)

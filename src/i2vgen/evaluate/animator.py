"""The model under test, as the measures see it: a photo and words in, uint8 frames out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from i2vgen.media import frames_to_tensor, frames_to_uint8
from i2vgen.pipelines import CascadePipeline
from i2vgen.pipelines.conditioning import decode_latents, encode_pixels


@dataclass(frozen=True)
class Made:
    """`frames`, `base_frames`: uint8 (f h w 3); the base stage's are None unless asked for."""

    frames: np.ndarray
    base_frames: np.ndarray | None
    seconds: float


class Animator(Protocol):
    num_frames: int
    fps: int

    def size_for(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the video for a picture of (width, height)."""

    def animate(self, image: Image.Image, prompt: str, seed: int, keep_base: bool = False) -> Made: ...

    def reconstruct(self, frames: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Frames through the VAE and back; with a seed each latent is drawn from its posterior, else its mean."""


class CascadeAnimator:
    """A loaded cascade with its default preset; `refine` False stops after the base stage."""

    def __init__(self, cascade: CascadePipeline, refine: bool = True):
        self.cascade, self.refine = cascade, refine
        self.num_frames = cascade.base.options.num_frames
        self.fps = cascade.base.options.target_fps
        self.vae = cascade.refiner.vae if refine else cascade.vae

    def size_for(self, image_size: tuple[int, int]) -> tuple[int, int]:
        base, final = self.cascade.sizes_for(image_size, None, self.refine)
        return final if self.refine else base

    def animate(self, image: Image.Image, prompt: str, seed: int, keep_base: bool = False) -> Made:
        begin = time.perf_counter()
        result = self.cascade(
            image,
            prompt,
            seed=seed,
            refine=self.refine,
            size=self.size_for(image.size),
            keep_base=keep_base,
        )
        return Made(result.frames[0], result.base_frames[0], time.perf_counter() - begin)

    def reconstruct(self, frames: np.ndarray, seed: int | None = None) -> np.ndarray:
        pixels = frames_to_tensor(frames)
        if seed is None:
            return frames_to_uint8(self._through_means(pixels)[0])
        generator = torch.Generator().manual_seed(seed)
        latents = encode_pixels(self.vae, pixels, [generator])
        with torch.no_grad():
            return frames_to_uint8(decode_latents(self.vae, latents, chunk_size=4)[0])

    @torch.no_grad()
    def _through_means(self, pixels: torch.Tensor) -> torch.Tensor:
        chunks = pixels[0].transpose(0, 1).to(self.vae.device, self.vae.dtype).split(4)
        means = torch.cat([self.vae.encode(chunk).latent_dist.mode() for chunk in chunks])
        latents = means.transpose(0, 1)[None] * self.vae.config.scaling_factor
        return decode_latents(self.vae, latents, chunk_size=4)

"""What enters the UNet beside the noisy latents: image latents as features and tokens, embeddings, fps."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from i2vgen.models.attention import Attention, FeedForward


def sinusoidal_embedding(values: torch.Tensor, dim: int) -> torch.Tensor:
    """(b) -> (b dim) float32: cosines, then sines, of `values` times 10000^(-i / (dim / 2))."""
    half = dim // 2
    exponent = torch.arange(half, device=values.device, dtype=torch.float32) / half
    angles = values.float()[:, None] * torch.exp(-math.log(10000) * exponent)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def with_frame_planes(image_latents: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Image latents (b c 1 h w) -> (b c f h w): frame 0 the image, frame k the constant k / (f - 1).

    The constants tell each frame its place in the video; the network has no other position encoding in time.
    """
    b, c, _, h, w = image_latents.shape
    if num_frames == 1:
        return image_latents
    places = torch.arange(1, num_frames, device=image_latents.device, dtype=torch.float32) / (num_frames - 1)
    planes = places.to(image_latents.dtype)[None, None, :, None, None].expand(b, c, -1, h, w)
    return torch.cat([image_latents[:, :, :1], planes], dim=2)


class TimestepEmbedding(nn.Module):
    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def content_projection(channels: int) -> nn.Sequential:
    """Image latents and frame planes, frame by frame -> features of as many channels."""
    return nn.Sequential(
        nn.Conv2d(channels, channels * 4, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels * 4, channels * 4, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels * 4, channels, 3, padding=1),
    )


class ContentTemporalEncoder(nn.Module):
    """Lets the frames of each pixel exchange content features: one attention, one feed-forward."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, num_heads=2, head_dim=dim)
        self.ff = FeedForward(dim, 4 * dim, is_gated=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(b c f h w) -> (b c f h w)."""
        h, w = features.shape[-2:]
        x = rearrange(features, "b c f h w -> (b h w) f c")
        x = x + self.attn1(self.norm1(x))
        x = x + self.ff(x)
        return rearrange(x, "(b h w) f c -> b c f h w", h=h, w=w)


def local_token_encoder(channels: int, context_dim: int) -> nn.Sequential:
    """Image latents of any size -> 8 x 8 features of the context's width, the 64 local tokens."""
    return nn.Sequential(
        nn.Conv2d(channels, channels * 8, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d((32, 32)),
        nn.Conv2d(channels * 8, channels * 16, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels * 16, context_dim, 3, stride=2, padding=1),
    )


def two_layer(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim))

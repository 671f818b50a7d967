"""Attention, feed-forward and the two transformers: over the pixels of a frame, over the frames of a pixel.

Tokens are kept as `(b f n d)`: batch, frames, pixels of a frame, features. That is the memory order of a
channels-last feature map, so moving between maps and tokens copies nothing.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

MAX_PLAIN_SCORES = 2**25


class Attention(nn.Module):
    """Multi-head attention with the projections of the released weights: q, k, v without bias, out with."""

    def __init__(self, query_dim: int, num_heads: int, head_dim: int, context_dim: int | None = None):
        super().__init__()
        inner_dim = num_heads * head_dim
        self.num_heads = num_heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Identity()])

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """`x` (b n d), `context` (b m e), or None to attend to `x` itself."""
        context = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.num_heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = attend(q, k, v)
        return self.to_out[0](rearrange(out, "b h n d -> b n (h d)"))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v on (b h n d).

    On a CPU, plain batched products are two to four times as fast as torch's fused kernel while the scores
    fit in a moderate amount of memory.
    """
    num_scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if q.device.type == "cpu" and num_scores <= MAX_PLAIN_SCORES:
        return torch.matmul(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).softmax(dim=-1), v)
    return F.scaled_dot_product_attention(q, k, v)


class GEGLU(nn.Module):
    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class GELU(nn.Module):
    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner_dim: int, is_gated: bool = True):
        super().__init__()
        activation = GEGLU(dim, inner_dim) if is_gated else GELU(dim, inner_dim)
        self.net = nn.ModuleList([activation, nn.Identity(), nn.Linear(inner_dim, dim)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, then attention to the context (or a second self-attention), then feed-forward."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, context_dim: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, num_heads, head_dim, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, 4 * dim)


class SpatialTransformer(nn.Module):
    """Pixels of a frame attend to each other, then to the context of their video."""

    def __init__(self, channels: int, num_heads: int, head_dim: int, context_dim: int, norm_num_groups: int):
        super().__init__()
        inner_dim = num_heads * head_dim
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner_dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner_dim, num_heads, head_dim, context_dim)])
        self.proj_out = nn.Linear(inner_dim, channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """`x` ((b f) c h w), `context` (b n d): one context for all frames of a video."""
        h, w = x.shape[-2:]
        b = context.shape[0]
        tokens = self.proj_in(rearrange(self.norm(x), "bf c h w -> bf (h w) c"))
        for block in self.transformer_blocks:
            tokens = tokens + block.attn1(block.norm1(tokens))
            queries = rearrange(block.norm2(tokens), "(b f) n c -> b (f n) c", b=b)
            attended = block.attn2(queries, context)
            tokens = tokens + attended.view(tokens.shape)
            tokens = tokens + block.ff(block.norm3(tokens))
        return x + rearrange(self.proj_out(tokens), "bf (h w) c -> bf c h w", h=h, w=w)


class TemporalTransformer(nn.Module):
    """The frames of each pixel attend to each other, twice; no position encoding, as in the original.

    Starts as the identity, so that a UNet begun from an image model gives that model's frames.
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int, norm_num_groups: int):
        super().__init__()
        inner_dim = num_heads * head_dim
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner_dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner_dim, num_heads, head_dim, None)])
        self.proj_out = nn.Linear(inner_dim, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`x` ((b f) c h w). The norm takes its statistics over all frames of a video."""
        h, w = x.shape[-2:]
        normed = self.norm(rearrange(x, "(b f) c h w -> b c (f h) w", f=num_frames))
        tokens = self.proj_in(rearrange(normed, "b c (f h) w -> (b h w) f c", f=num_frames))
        for block in self.transformer_blocks:
            tokens = tokens + block.attn1(block.norm1(tokens))
            tokens = tokens + block.attn2(block.norm2(tokens))
            tokens = tokens + block.ff(block.norm3(tokens))
        return x + rearrange(self.proj_out(tokens), "(b h w) f c -> (b f) c h w", h=h, w=w)

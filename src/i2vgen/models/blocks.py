"""Convolutional blocks and the levels of the UNet.

Feature maps are `((b f) c h w)` in channels-last memory, i.e. (b f h w c). A temporal convolution sees the
same memory as `(b c f (h w))`, a two-dimensional map whose height is time.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from i2vgen.models.attention import SpatialTransformer, TemporalTransformer


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, with the time embedding added in between."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, norm_num_groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, time_embedding: torch.Tensor) -> torch.Tensor:
        """`x` ((b f) c h w), `time_embedding` after its SiLU: (b d), one for all frames of a video, or ((b f) d)."""
        h = self.conv1(F.silu(self.norm1(x)))
        shift = self.time_emb_proj(time_embedding)
        h = h + shift.repeat_interleave(x.shape[0] // shift.shape[0], dim=0)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class TemporalConvolution(nn.Sequential):
    """Norm, SiLU and a convolution over three frames; the sequence holds the parameters under saved names."""

    def __init__(self, channels: int, norm_num_groups: int, dropout: float | None):
        layers = [nn.GroupNorm(norm_num_groups, channels), nn.SiLU()]
        if dropout is not None:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (b c f n)."""
        *before, convolution = self
        for layer in before:
            x = layer(x)
        return F.conv2d(x, convolution.weight.squeeze(-1), convolution.bias, padding=(1, 0))


class TemporalConvBlock(nn.Module):
    """Four temporal convolutions added to the input; the last starts at zero, the block as identity."""

    def __init__(self, channels: int, norm_num_groups: int, dropout: float):
        super().__init__()
        self.conv1 = TemporalConvolution(channels, norm_num_groups, None)
        self.conv2 = TemporalConvolution(channels, norm_num_groups, dropout)
        self.conv3 = TemporalConvolution(channels, norm_num_groups, dropout)
        self.conv4 = TemporalConvolution(channels, norm_num_groups, dropout)
        nn.init.zeros_(self.conv4[-1].weight)
        nn.init.zeros_(self.conv4[-1].bias)

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        """`x` ((b f) c h w)."""
        h, w = x.shape[-2:]
        y = rearrange(x, "(b f) c h w -> b c f (h w)", f=num_frames)
        y = self.conv4(self.conv3(self.conv2(self.conv1(y))))
        return x + rearrange(y, "b c f (h w) -> (b f) c h w", h=h, w=w)


class Downsample(nn.Module):
    def __init__(self, channels: int, has_odd_height: bool):
        super().__init__()
        # the refiners pad one more row above and below, so that 90 rows go 90, 46, 24, 13
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=(2, 1) if has_odd_height else 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, has_odd_height: bool):
        super().__init__()
        self.has_odd_height = has_odd_height
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.has_odd_height:
            x = x[:, :, 1:-1]
        return self.conv(x)


class Level(nn.Module):
    """One resolution of the UNet; a layer: residual, temporal convolution, spatial and temporal attention."""

    def __init__(
        self,
        layer_channels: list[tuple[int, int]],
        time_dim: int,
        context_dim: int,
        head_dim: int,
        norm_num_groups: int,
        dropout: float,
        has_attention: bool,
        resample: nn.Module | None = None,
        is_up: bool = False,
    ):
        """`layer_channels`: (in, out) channels of each layer."""
        super().__init__()
        outs = [out for _, out in layer_channels]
        self.resnets = nn.ModuleList(
            [ResidualBlock(i, o, time_dim, norm_num_groups, dropout) for i, o in layer_channels]
        )
        self.temp_convs = nn.ModuleList([TemporalConvBlock(o, norm_num_groups, dropout) for o in outs])
        if has_attention:
            self.attentions = nn.ModuleList(
                [SpatialTransformer(o, o // head_dim, head_dim, context_dim, norm_num_groups) for o in outs]
            )
            self.temp_attentions = nn.ModuleList(
                [TemporalTransformer(o, o // head_dim, head_dim, norm_num_groups) for o in outs]
            )
        if resample is not None:
            setattr(self, "upsamplers" if is_up else "downsamplers", nn.ModuleList([resample]))
        self.has_attention = has_attention
        self.gradient_checkpointing = False

    def run_layer(
        self,
        index: int,
        x: torch.Tensor,
        time_embedding: torch.Tensor,
        context: torch.Tensor,
        num_frames: int,
    ) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layer, index, x, time_embedding, context, num_frames, use_reentrant=False)
        return self._layer(index, x, time_embedding, context, num_frames)

    def _layer(
        self,
        index: int,
        x: torch.Tensor,
        time_embedding: torch.Tensor,
        context: torch.Tensor,
        num_frames: int,
    ) -> torch.Tensor:
        x = self.resnets[index](x, time_embedding)
        x = self.temp_convs[index](x, num_frames)
        if self.has_attention:
            x = self.attentions[index](x, context)
            x = self.temp_attentions[index](x, num_frames)
        return x


class MidBlock(nn.Module):
    """Residual, attention, residual at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        time_dim: int,
        context_dim: int,
        head_dim: int,
        norm_num_groups: int,
        dropout: float,
    ):
        super().__init__()
        heads = channels // head_dim
        self.resnets = nn.ModuleList(
            [ResidualBlock(channels, channels, time_dim, norm_num_groups, dropout) for _ in range(2)]
        )
        self.temp_convs = nn.ModuleList([TemporalConvBlock(channels, norm_num_groups, dropout) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialTransformer(channels, heads, head_dim, context_dim, norm_num_groups)])
        self.temp_attentions = nn.ModuleList([TemporalTransformer(channels, heads, head_dim, norm_num_groups)])

    def forward(
        self, x: torch.Tensor, time_embedding: torch.Tensor, context: torch.Tensor, num_frames: int
    ) -> torch.Tensor:
        x = self.temp_convs[0](self.resnets[0](x, time_embedding), num_frames)
        x = self.temp_attentions[0](self.attentions[0](x, context), num_frames)
        return self.temp_convs[1](self.resnets[1](x, time_embedding), num_frames)


def amplify_decoder(x: torch.Tensor, skip: torch.Tensor, gain: float, skip_scale: float) -> tuple:
    """sr600's edit of a decoder input: the first half of the channels times `gain`, the lowest frequencies of
    the skip connection times `skip_scale` (after FreeU, arXiv 2309.11497, without its per-sample gain)."""
    half = x.shape[1] // 2
    x = torch.cat([x[:, :half] * gain, x[:, half:]], dim=1)
    h, w = skip.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(skip.float(), dim=(-2, -1)), dim=(-2, -1))
    mask = torch.ones(h, w, device=skip.device)
    mask[h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1] = skip_scale
    filtered = torch.fft.ifftn(torch.fft.ifftshift(spectrum * mask, dim=(-2, -1)), dim=(-2, -1)).real
    return x, filtered.to(skip.dtype)

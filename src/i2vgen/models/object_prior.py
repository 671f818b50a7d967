"""nano's object prior: which thing in the picture the text sets in motion, and which way it goes.

A small network reads picture and text and answers with a soft mask and a velocity. The masked part is lifted off,
what was behind it is filled in from its surroundings, and the two are moved each on its own way.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from i2vgen.models.prior import MotionPrior

SHORT_SIDE = 96  # pixels of the picture that the network looks at
MULTIPLE = 8
STILL = 0.07  # frames a second; what is slower stays where it is
STRAIGHT = 0.45  # the smaller component, as a share of the larger, below which an object goes straight
MASK_GAIN = 1.6  # a steeper edge than the network's own, which hesitates at coarse outlines


class ConvBlock(nn.Module):
    """Two convolutions; the text scales and shifts the features between them."""

    def __init__(self, in_channels: int, out_channels: int, text_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(8, out_channels)
        self.text = nn.Linear(text_dim, 2 * out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, out_channels)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        scale, shift = self.text(text)[:, :, None, None].chunk(2, dim=1)
        x = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        return F.silu(self.norm2(self.conv2(x)))


class ObjectPrior(nn.Module):
    def __init__(self, context_dim: int, widths: tuple[int, ...] = (16, 32, 64, 96), text_dim: int = 96):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(context_dim, text_dim), nn.SiLU())
        self.speed = nn.Sequential(nn.Linear(text_dim, text_dim), nn.SiLU(), nn.Linear(text_dim, 2))
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList([ConvBlock(i, o, text_dim) for i, o in zip(inputs, widths, strict=True)])
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList([ConvBlock(deep + skip, skip, text_dim) for deep, skip in pairs])
        self.out = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, pixels: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixels` (b 3 h w) in [-1, 1], `text` (b n d) -> mask logits (b 1 h' w') on a grid of about SHORT_SIDE,
        and velocity (b 2), in frame widths and heights a second, positive to the right and down."""
        words = self.text(text.mean(dim=1))
        x, skips = look(pixels.to(text.dtype)), []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x, words)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1), words)
        return self.out(x), self.speed(words)

    def move(
        self,
        camera: MotionPrior,
        image: torch.Tensor,
        text: torch.Tensor,
        fps: torch.Tensor,
        num_frames: int,
        speeds: torch.Tensor | None = None,
        velocity: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pixels (b 3 1 h w) in [-1, 1] -> (b 3 f h w), `camera` moving all and the object besides. `speeds` (b 4) of
        the camera and `velocity` (b 2) of the object take the place of what the text asks for."""
        size = image.shape[-2:]
        logits, asked = self(image[:, :, 0], text)
        velocity = asked.float() if velocity is None else velocity
        velocity = velocity * (velocity.abs() > STRAIGHT * velocity.abs().amax(dim=1, keepdim=True))
        is_moving = (velocity.norm(dim=1) > STILL).float()
        mask = F.interpolate((MASK_GAIN * logits.float()).sigmoid(), size=size, mode="bilinear", align_corners=False)
        mask = mask * is_moving[:, None, None, None]
        if not is_moving.any():
            return camera.move(image, text, fps, num_frames, speeds)

        picture = image[:, :, 0].float()
        # the wider hole takes the object's rim out of the background too
        hole = F.max_pool2d(mask, 2 * (min(size) // 48) + 1, stride=1, padding=min(size) // 48)
        empty = fill(picture, 1 - hole)[:, :, None].to(image.dtype)
        background = camera.move(empty, text, fps, num_frames, speeds)
        layer = torch.cat([picture * mask, mask], dim=1)
        seconds = torch.arange(num_frames, device=text.device)[None] / fps.float()[:, None]
        moved = shift(layer, velocity[:, None] * seconds[..., None])
        frames = background.float() * (1 - moved[:, 3:]) + moved[:, :3]
        return torch.cat([image.float(), frames[:, :, 1:]], dim=2).to(image.dtype)


def look(pixels: torch.Tensor) -> torch.Tensor:
    """(b 3 h w) -> the size at which the network looks, both sides multiples of MULTIPLE."""
    h, w = pixels.shape[-2:]
    scale = SHORT_SIDE / min(h, w)
    size = tuple(max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (h, w))
    seen = F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return seen.to(pixels.dtype).contiguous(memory_format=torch.channels_last)


def fill(picture: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """`picture` (b c h w) where `known` (b 1 h w) is 1, elsewhere averages of what is around, nearest first."""
    h, w = picture.shape[-2:]
    if min(h, w) < 2:
        return picture
    summed = F.avg_pool2d(torch.cat([picture * known, known], dim=1), 2, ceil_mode=True, count_include_pad=False)
    weight = summed[:, -1:]
    coarse = fill(summed[:, :-1] / weight.clamp_min(1e-4), (weight * 2).clamp(max=1))
    coarse = F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)
    return picture * known + coarse * (1 - known)


def shift(layer: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """`layer` (b c h w) moved by `offsets` (b f 2), in widths and heights -> (b c f h w), zero where nothing comes."""
    b, f = offsets.shape[:2]
    matrices = torch.zeros(b * f, 2, 3, device=layer.device)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1
    matrices[:, :, 2] = -2 * rearrange(offsets, "b f i -> (b f) i")  # affine grids span from -1 to 1
    frames = layer.repeat_interleave(f, dim=0)
    grid = F.affine_grid(matrices, frames.shape, align_corners=False)
    moved = F.grid_sample(frames, grid, "bilinear", "zeros", align_corners=False)
    return rearrange(moved, "(b f) c h w -> b c f h w", b=b)

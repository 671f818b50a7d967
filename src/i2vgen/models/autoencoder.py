"""nano's autoencoder: an orthogonal patch transform with a convolutional correction on either side.

It has the interface of diffusers' AutoencoderKL. The transform alone (principal components of 8 x 8 patches)
already reconstructs, so the convolutions only learn what is missing: it trains in minutes where an
AutoencoderKL of the same cost needs hours, and nearly all of its work is done at 1/4 and 1/8 resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.nn import functional as F

PATCH = 8


@dataclass
class EncoderOutput(BaseOutput):
    latent_dist: DiagonalGaussianDistribution


class ConvBlock(nn.Module):
    """Residual pair of 3x3 convolutions without norm; starts as identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Images (b 3 h w) in [-1, 1], h and w multiples of 8 <-> latents (b c h/8 w/8).

    `scaling_factor` brings latents to unit variance, as in AutoencoderKL: the pipelines multiply by it.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        encoder_channels: tuple[int, int] = (96, 128),
        decoder_channels: tuple[int, int, int] = (160, 96, 32),
        layers_per_block: int = 2,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (
            1,
            1,
            1,
            1,
        ),  # four levels: a factor of 8, for diffusers' pipelines
    ):
        super().__init__()
        quarter, eighth = encoder_channels
        self.analysis = nn.Conv2d(3, latent_channels, PATCH, stride=PATCH, bias=False)
        self.synthesis = nn.ConvTranspose2d(latent_channels, 3, PATCH, stride=PATCH, bias=False)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            *[ConvBlock(quarter) for _ in range(layers_per_block)],
            nn.Conv2d(quarter, eighth, 4, stride=2, padding=1),
            *[ConvBlock(eighth) for _ in range(layers_per_block)],
            nn.SiLU(),
            nn.Conv2d(eighth, 2 * latent_channels, 3, padding=1),
        )
        eighth, quarter, half = decoder_channels
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            *[ConvBlock(eighth) for _ in range(layers_per_block + 1)],
            nn.Conv2d(eighth, quarter * 4, 3, padding=1),
            nn.PixelShuffle(2),
            *[ConvBlock(quarter) for _ in range(layers_per_block)],
            nn.Conv2d(quarter, half * 4, 3, padding=1),
            nn.PixelShuffle(2),
            *[ConvBlock(half) for _ in range(layers_per_block)],
            nn.SiLU(),
            nn.Conv2d(half, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        for last in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.encoder[-1].bias[latent_channels:], -5.0)  # a small posterior variance

    @torch.no_grad()
    def set_transform(self, components: torch.Tensor, gains: torch.Tensor) -> None:
        """Orthonormal patch `components` (c 192), flattened as (3 8 8); `gains` (c) of the latents."""
        kernel = components.reshape(-1, 3, PATCH, PATCH)
        self.analysis.weight.copy_(kernel * gains[:, None, None, None])
        self.synthesis.weight.copy_(kernel / gains[:, None, None, None])

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple:
        correction = self.encoder(x)
        mean, logvar = correction.chunk(2, dim=1)
        posterior = DiagonalGaussianDistribution(torch.cat([self.analysis(x) + mean, logvar], dim=1))
        return EncoderOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        image = self.synthesis(z) + self.decoder(z)
        return DecoderOutput(sample=image) if return_dict else (image,)

"""The spatio-temporal UNet of the whole family: base, image-only base and refiners differ in fields only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from i2vgen.models.attention import TemporalTransformer
from i2vgen.models.blocks import Downsample, Level, MidBlock, Upsample, amplify_decoder
from i2vgen.models.conditioning import (
    ContentTemporalEncoder,
    TimestepEmbedding,
    content_projection,
    local_token_encoder,
    sinusoidal_embedding,
    two_layer,
    with_frame_planes,
)
from i2vgen.models.object_prior import ObjectPrior
from i2vgen.models.prior import MotionEmbedding, MotionPrior


@dataclass
class UNetOutput(BaseOutput):
    """`sample`: (b c f h w), the predicted velocity."""

    sample: torch.Tensor


@dataclass
class Conditions:
    """All that the UNet needs beside latents and timestep, and that no step changes."""

    context: torch.Tensor  # (b n d): text, then local tokens, then global tokens
    content: torch.Tensor | None  # (b c f h w)
    fps_embedding: torch.Tensor | None  # (b d)
    motion: torch.Tensor | None = None  # (b f d), added to the time embedding
    moved: torch.Tensor | None = None  # (b c f h w), the image latents where the motion prior puts them
    fps: torch.Tensor | None = None  # (b)


class I2VGenXLUNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the velocity of noisy video latents.

    Saved names are those of diffusers' `I2VGenXLUNet` and `UNet3DConditionModel`. Levels with attention are
    those whose block type starts with "CrossAttn".

    Beyond the fields that those two have:
        transformer_in_heads: heads of the initial temporal transformer (its inner width is heads x head dim).
        use_fps, use_image_embeddings, use_image_latents: which conditioning heads exist.
        num_image_tokens: global tokens made from the image embedding.
        image_latents_scale: factor on the content features. 2.0, because the original adds them twice and its
            weights are trained so; diffusers' port has 1.0.
        has_odd_height: the refiners' padding, for latent heights of 2 mod 8 (720 px: 90 rows).
        use_decoder_edits: sr600's gains in the first two decoder layers.
        use_motion_prior: nano's `MotionPrior` and `MotionEmbedding`. The released networks learn motion by
            cross-attention to the text alone, from millions of videos; nano has two hours.
        use_object_prior: nano's `ObjectPrior`, which moves a thing in the picture by itself.
        dropout: in training, in residual blocks and temporal convolutions.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Level", "MidBlock", "TemporalTransformer"]
    # for training with sharded weights: what is gathered at a time, and where one enters beside `forward`
    sharded_blocks = (
        "ResidualBlock",
        "TemporalConvBlock",
        "SpatialTransformer",
        "TemporalTransformer",
        "Downsample",
        "Upsample",
    )
    forward_methods = ("encode_conditions", "move_image")

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_attention_heads: int | None = None,
        transformer_in_heads: int = 8,
        use_fps: bool = True,
        use_image_embeddings: bool = True,
        use_image_latents: bool = True,
        num_image_tokens: int = 4,
        image_latents_scale: float = 2.0,
        has_odd_height: bool = False,
        use_decoder_edits: bool = False,
        use_motion_prior: bool = False,
        use_object_prior: bool = False,
        dropout: float = 0.1,
    ):
        super().__init__()
        if use_motion_prior and not (use_image_latents and use_fps):
            raise ValueError("use_motion_prior: needs use_image_latents and use_fps")
        if use_object_prior and not use_motion_prior:
            raise ValueError("use_object_prior: needs use_motion_prior")
        _check_config(down_block_types, up_block_types, block_out_channels, attention_head_dim, norm_num_groups)
        first, last = block_out_channels[0], block_out_channels[-1]
        time_dim = 4 * first
        common = (time_dim, cross_attention_dim, attention_head_dim, norm_num_groups, dropout)

        # conditions
        self.time_embedding = TimestepEmbedding(first, time_dim)
        if use_fps:
            self.fps_embedding = two_layer(first, time_dim, time_dim)
            nn.init.zeros_(self.fps_embedding[-1].weight)  # starts without effect, as in the original
            nn.init.zeros_(self.fps_embedding[-1].bias)
        if use_image_embeddings:
            self.context_embedding = two_layer(cross_attention_dim, time_dim, cross_attention_dim * num_image_tokens)
        if use_image_latents:
            self.image_latents_proj_in = content_projection(in_channels)
            self.image_latents_temporal_encoder = ContentTemporalEncoder(in_channels)
            self.image_latents_context_embedding = local_token_encoder(in_channels, cross_attention_dim)

        if use_motion_prior:
            self.motion_prior = MotionPrior(cross_attention_dim, in_channels)
            self.motion_embedding = MotionEmbedding(cross_attention_dim, time_dim)
        if use_object_prior:
            self.object_prior = ObjectPrior(cross_attention_dim)

        # in
        self.conv_in = nn.Conv2d(in_channels * (2 if use_image_latents else 1), first, 3, padding=1)
        self.transformer_in = TemporalTransformer(first, transformer_in_heads, attention_head_dim, norm_num_groups)

        # down
        self.down_blocks = nn.ModuleList()
        skip_channels = [first]
        channels = first
        for index, (kind, width) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            layers = [(channels if i == 0 else width, width) for i in range(layers_per_block)]
            is_last = index == len(block_out_channels) - 1
            down = None if is_last else Downsample(width, has_odd_height)
            self.down_blocks.append(Level(layers, *common, kind.startswith("CrossAttn"), down))
            skip_channels += [width] * (layers_per_block + (not is_last))
            channels = width

        # mid
        self.mid_block = MidBlock(last, *common)

        # up
        self.up_blocks = nn.ModuleList()
        for index, (kind, width) in enumerate(zip(up_block_types, reversed(block_out_channels), strict=True)):
            layers = []
            for _ in range(layers_per_block + 1):
                layers.append((channels + skip_channels.pop(), width))
                channels = width
            is_last = index == len(block_out_channels) - 1
            up = None if is_last else Upsample(width, has_odd_height)
            self.up_blocks.append(Level(layers, *common, kind.startswith("CrossAttn"), up, is_up=True))

        # out
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, first)
        self.conv_out = nn.Conv2d(first, out_channels, 3, padding=1)

    @apply_forward_hook  # offloading moves the weights before this too, not before `forward` alone
    def encode_conditions(
        self,
        num_frames: int,
        encoder_hidden_states: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
        image_latents: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        moved: torch.Tensor | None = None,
    ) -> Conditions:
        """Compute once what is the same in every step.

        encoder_hidden_states (b n d) text tokens; image_embeddings (b 1 d) or (b d), or None to leave the
        global tokens out; image_latents (b c h w), (b c 1 h w), or (b c f h w) with the frame planes already
        in place; fps (b); moved: the moved latents of another call, so that the branch without text shares the
        motion of the one with text. Raises ValueError if a condition that the configuration has is missing.
        """
        config = self.config
        tokens = [] if encoder_hidden_states is None else [encoder_hidden_states]
        content = fps_embedding = motion = None
        if config.use_image_latents:
            if image_latents is None:
                raise ValueError("image_latents: this UNet is conditioned on image latents, got None")
            if image_latents.ndim == 4:
                image_latents = image_latents.unsqueeze(2)
            local = self.image_latents_context_embedding(image_latents[:, :, 0])
            tokens.append(rearrange(local, "b d h w -> b (h w) d"))
            if config.use_motion_prior:
                if encoder_hidden_states is None or fps is None:
                    raise ValueError("encoder_hidden_states, fps: this UNet reads its motion from them, got None")
                motion = self.motion_embedding(encoder_hidden_states, fps, num_frames)
                if moved is None:
                    moved = self.motion_prior.move(image_latents[:, :, :1], encoder_hidden_states, fps, num_frames)
            content = self._content_features(image_latents if moved is None else moved, num_frames)
        if config.use_image_embeddings and image_embeddings is not None:
            embedded = self.context_embedding(image_embeddings.reshape(len(image_embeddings), -1))
            tokens.append(embedded.view(len(embedded), config.num_image_tokens, config.cross_attention_dim))
        if config.use_fps:
            if fps is None:
                raise ValueError("fps: this UNet is conditioned on the frame rate, got None")
            embedding = sinusoidal_embedding(fps, config.block_out_channels[0])
            fps_embedding = self.fps_embedding(embedding.to(self.dtype))
        if not tokens:
            raise ValueError("encoder_hidden_states: nothing to attend to (no text, no image)")
        return Conditions(torch.cat(tokens, dim=1), content, fps_embedding, motion, moved, fps)

    @apply_forward_hook
    def move_image(self, image: torch.Tensor, text: torch.Tensor, fps: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Pixels (b 3 1 h w) -> (b 3 f h w) as the priors move them; see `MotionPrior.move`, `ObjectPrior.move`."""
        text = text.to(self.dtype)
        if self.config.use_object_prior:
            return self.object_prior.move(self.motion_prior, image, text, fps, num_frames)
        return self.motion_prior.move(image, text, fps, num_frames)

    def _content_features(self, image_latents: torch.Tensor, num_frames: int) -> torch.Tensor:
        if image_latents.shape[2] != num_frames:
            image_latents = with_frame_planes(image_latents[:, :, :1], num_frames)
        b = len(image_latents)
        features = self.image_latents_proj_in(rearrange(image_latents, "b c f h w -> (b f) c h w"))
        features = self.image_latents_temporal_encoder(rearrange(features, "(b f) c h w -> b c f h w", b=b))
        return features * self.config.image_latents_scale

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        fps: torch.Tensor | None = None,
        image_latents: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        conditions: Conditions | None = None,
    ) -> UNetOutput | tuple[torch.Tensor]:
        """Noisy latents `sample` (b c f h w) at `timestep` (scalar or (b)) -> velocity of the same shape.

        Give either `conditions` (see `encode_conditions`) or the raw ones. `timestep_cond` and
        `cross_attention_kwargs` exist for the field's call signature and must be empty.
        Raises ValueError for a latent size that the levels cannot halve.
        """
        if timestep_cond is not None or cross_attention_kwargs:
            raise ValueError("timestep_cond and cross_attention_kwargs are not supported: leave them None")
        b, _, f, height, width = sample.shape
        self.check_latent_size(height, width)
        if conditions is None:
            conditions = self.encode_conditions(f, encoder_hidden_states, image_embeddings, image_latents, fps)

        # time
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(b)
        embedding = self.time_embedding(sinusoidal_embedding(t, self.config.block_out_channels[0]).to(sample.dtype))
        if conditions.fps_embedding is not None:
            embedding = embedding + conditions.fps_embedding
        if conditions.motion is not None:
            embedding = rearrange(embedding[:, None] + conditions.motion, "b f d -> (b f) d")
        embedding = F.silu(embedding)
        context = conditions.context

        # in
        x = sample if conditions.content is None else torch.cat([sample, conditions.content], dim=1)
        x = rearrange(x, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
        x = self.transformer_in(self.conv_in(x), f)

        # down
        skips = [x]
        for level in self.down_blocks:
            for index in range(len(level.resnets)):
                x = level.run_layer(index, x, embedding, context, f)
                skips.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                skips.append(x)

        # mid
        x = self.mid_block(x, embedding, context, f)

        # up
        edits = [(1.1, 0.6), (1.2, 0.4)] if self.config.use_decoder_edits else []
        for level in self.up_blocks:
            for index in range(len(level.resnets)):
                skip = skips.pop()
                if edits:
                    x, skip = amplify_decoder(x, skip, *edits.pop(0))
                x = torch.cat([x, skip], dim=1)
                x = level.run_layer(index, x, embedding, context, f)
            if hasattr(level, "upsamplers"):
                x = level.upsamplers[0](x)

        # out
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        x = rearrange(x, "(b f) c h w -> b c f h w", b=b)
        if conditions.moved is not None:
            prior = self.motion_prior.velocity(sample, conditions.moved, t.long(), conditions.fps)
            x = (x.float() + prior).to(sample.dtype)
        return UNetOutput(sample=x) if return_dict else (x,)

    def check_latent_size(self, height: int, width: int) -> None:
        """Raise ValueError, naming the nearest valid size, if latents do not fit the levels."""
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        remainder = 2 if self.config.has_odd_height else 0
        if height % factor == remainder % factor and width % factor == 0 and min(height, width) > 0:
            return
        near_height = max(factor, round((height - remainder) / factor) * factor) + remainder
        near_width = max(factor, round(width / factor) * factor)
        raise ValueError(
            f"latent size (height, width) = ({height}, {width}): height must be {remainder} mod {factor} "
            f"and width a multiple of {factor}; nearest valid ({near_height}, {near_width})"
        )


def _check_config(
    down_block_types: tuple[str, ...],
    up_block_types: tuple[str, ...],
    block_out_channels: tuple[int, ...],
    head_dim: int,
    groups: int,
) -> None:
    if not len(down_block_types) == len(up_block_types) == len(block_out_channels):
        raise ValueError(
            f"block_out_channels {tuple(block_out_channels)}, down_block_types {tuple(down_block_types)} and "
            f"up_block_types {tuple(up_block_types)} must have one entry a level"
        )
    for width in block_out_channels:
        if width % head_dim or width % groups:
            raise ValueError(
                f"block_out_channels: {width} is not a multiple of attention_head_dim {head_dim} and of "
                f"norm_num_groups {groups}"
            )

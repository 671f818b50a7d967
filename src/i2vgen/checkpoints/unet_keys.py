"""Key tables of UNets: the layout of VGen and ModelScope, and Stable Diffusion's for the spatial layers.

Both descend from latent-diffusion's UNet: all blocks of one side lie in one list (`input_blocks.7`), and the
modules of a block have numbers (`input_blocks.7.1`). The tables name a block's layers; one walk over the
configuration finds the blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.tables import Entry, KeyTable, leaves, same_names
from i2vgen.models.unet import I2VGenXLUNet

UNET_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(I2VGenXLUNet.__init__).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}

TIME_EMBEDDING = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
OUT = {"conv_norm_out": "out.0", "conv_out": "out.2"}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
SHORTCUT = {"conv_shortcut": "skip_connection"}
# norm and convolution of each; the first has no dropout between them. The spelling is the original's.
TEMPORAL_CONVOLUTION = {
    f"conv{n}.{layer}": f"temopral_conv.conv{n}.{layer}" for n in (1, 2, 3, 4) for layer in (0, 2 if n == 1 else 3)
}
ATTENTION_INPUTS = [f"transformer_blocks.0.attn{n}.to_{x}" for n in (1, 2) for x in "qkv"]
TRANSFORMER_PROJECTIONS = ["proj_in", "proj_out"]
TRANSFORMER_INSIDE = [
    "norm",
    *(f"transformer_blocks.0.norm{n}" for n in (1, 2, 3)),
    *ATTENTION_INPUTS,
    *(f"transformer_blocks.0.attn{n}.to_out.0" for n in (1, 2)),
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
]
FPS = {f"fps_embedding.{n}": f"fps_embedding.{n}" for n in (0, 2)}
IMAGE_EMBEDDINGS = {f"context_embedding.{n}": f"context_embedding.{n}" for n in (0, 2)}
IMAGE_LATENTS = {
    **{f"image_latents_proj_in.{n}": f"local_image_concat.{n}" for n in (0, 2, 4)},
    **{f"image_latents_context_embedding.{n}": f"local_image_embedding.{n}" for n in (0, 3, 5)},
    "image_latents_temporal_encoder.norm1": "local_temporal_encoder.layers.0.0.norm",
    "image_latents_temporal_encoder.attn1.to_out.0": "local_temporal_encoder.layers.0.0.fn.to_out.0",
    "image_latents_temporal_encoder.ff.net.0.proj": "local_temporal_encoder.layers.0.1.net.0.0",
    "image_latents_temporal_encoder.ff.net.2": "local_temporal_encoder.layers.0.1.net.2",
}
FUSED_TARGET = "image_latents_temporal_encoder.attn1.to_{}.weight"
FUSED_SOURCE = "local_temporal_encoder.layers.0.0.fn.to_qkv.weight"


@dataclass(frozen=True)
class Layout:
    """What parts VGen's descendants of the latent-diffusion UNet from Stable Diffusion's."""

    name: str
    has_time: bool  # temporal convolutions inside residual blocks, temporal transformers after the spatial ones
    downsampler: str  # its name within a block


VGEN = Layout("VGen UNet", has_time=True, downsampler="op")
STABLE_DIFFUSION = Layout("Stable Diffusion UNet", has_time=False, downsampler="0.op")


def unet_table(config: Mapping[str, Any]) -> KeyTable:
    """VGen's or ModelScope's UNet -> our I2VGenXLUNet, for the fields in `config` (others: our defaults).

    Raises CheckpointError for nano's priors, which that layout has no keys for.
    """
    config = {**UNET_DEFAULTS, **config}
    if config["use_motion_prior"]:
        raise CheckpointError("use_motion_prior: VGen's layout has no keys for nano's priors; use diffusers' layout")
    return KeyTable(VGEN.name, [*_heads(config), *_blocks(config, VGEN)])


def sd_unet_table(config: Mapping[str, Any], is_diffusers: bool = False) -> KeyTable:
    """Stable Diffusion 2's UNet -> the spatial keys of ours, in latent-diffusion layout (without the prefix
    "model.diffusion_model.") or, `is_diffusers`, as UNet2DConditionModel names them, which is as we do.

    `conv_in.weight` is among them; ours may have more input channels.
    """
    table = KeyTable(STABLE_DIFFUSION.name, _blocks({**UNET_DEFAULTS, **config}, STABLE_DIFFUSION))
    return same_names(STABLE_DIFFUSION.name, (e.target for e in table.entries)) if is_diffusers else table


def _heads(config: Mapping[str, Any]) -> Iterator[Entry]:
    if config["use_fps"]:
        yield from leaves(FPS, "", "")
    if config["use_image_embeddings"]:
        yield from leaves(IMAGE_EMBEDDINGS, "", "")
    if config["use_image_latents"]:
        yield from leaves(IMAGE_LATENTS, "", "")
        for part, x in enumerate("qkv"):
            yield Entry(FUSED_TARGET.format(x), FUSED_SOURCE, part, parts=3)


def _blocks(config: Mapping[str, Any], layout: Layout) -> Iterator[Entry]:
    widths, num_layers = tuple(config["block_out_channels"]), config["layers_per_block"]
    last = len(widths) - 1
    yield from leaves(TIME_EMBEDDING, "", "")
    yield from leaves({"conv_in": "input_blocks.0.0"}, "", "")
    if layout.has_time:
        yield from _transformer("transformer_in.", "input_blocks.0.1.", is_temporal=True)

    # down
    place, channels, skips = 1, widths[0], [widths[0]]
    for level, (kind, width) in enumerate(zip(config["down_block_types"], widths, strict=True)):
        for index in range(num_layers):
            has_attention = kind.startswith("CrossAttn")
            block = (f"down_blocks.{level}.", index, f"input_blocks.{place}.")
            yield from _layer(*block, channels != width, has_attention, layout)
            channels, place = width, place + 1
            skips.append(width)
        if level < last:
            name = f"input_blocks.{place}.{layout.downsampler}"
            yield from leaves({f"down_blocks.{level}.downsamplers.0.conv": name}, "", "")
            place += 1
            skips.append(width)

    # mid
    for index, number in enumerate((0, 3 if layout.has_time else 2)):
        yield from _residual("mid_block.", index, f"middle_block.{number}.", False, layout)
    yield from _attentions("mid_block.", 0, "middle_block.", layout)

    # up
    place = 0
    for level, (kind, width) in enumerate(zip(config["up_block_types"], reversed(widths), strict=True)):
        has_attention = kind.startswith("CrossAttn")
        for index in range(num_layers + 1):
            block = (f"up_blocks.{level}.", index, f"output_blocks.{place}.")
            yield from _layer(*block, channels + skips.pop() != width, has_attention, layout)
            channels, place = width, place + 1
        if level < last:
            number = 1 + has_attention * (1 + layout.has_time)
            name = f"output_blocks.{place - 1}.{number}.conv"
            yield from leaves({f"up_blocks.{level}.upsamplers.0.conv": name}, "", "")

    yield from leaves(OUT, "", "")


def _layer(
    target: str, index: int, source: str, has_shortcut: bool, has_attention: bool, layout: Layout
) -> Iterator[Entry]:
    yield from _residual(target, index, f"{source}0.", has_shortcut, layout)
    if has_attention:
        yield from _attentions(target, index, source, layout)


def _residual(target: str, index: int, source: str, has_shortcut: bool, layout: Layout) -> Iterator[Entry]:
    yield from leaves(RESIDUAL | SHORTCUT if has_shortcut else RESIDUAL, f"{target}resnets.{index}.", source)
    if layout.has_time:
        yield from leaves(TEMPORAL_CONVOLUTION, f"{target}temp_convs.{index}.", source)


def _attentions(target: str, index: int, source: str, layout: Layout) -> Iterator[Entry]:
    yield from _transformer(f"{target}attentions.{index}.", f"{source}1.", is_temporal=False)
    if layout.has_time:
        yield from _transformer(f"{target}temp_attentions.{index}.", f"{source}2.", is_temporal=True)


def _transformer(target: str, source: str, is_temporal: bool) -> Iterator[Entry]:
    """The temporal ones project by convolutions of length 1."""
    yield from leaves({n: n for n in TRANSFORMER_PROJECTIONS}, target, source, dropped=int(is_temporal))
    yield from leaves({n: n for n in TRANSFORMER_INSIDE}, target, source, without_bias=ATTENTION_INPUTS)

"""Key table of latent-diffusion's first stage -> diffusers' AutoencoderKL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from i2vgen.checkpoints.tables import Entry, KeyTable, leaves

ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
QUANTISATION = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
SHORTCUT = {"conv_shortcut": "nin_shortcut"}
ATTENTION_NORM = {"group_norm": "norm"}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}  # 1 x 1 convolutions


def vae_table(config: Mapping[str, Any]) -> KeyTable:
    """First stage, without a prefix ("first_stage_model." in a whole checkpoint) -> AutoencoderKL.

    `config`: AutoencoderKL's `block_out_channels` and `layers_per_block`.
    """
    widths, num_layers = tuple(config["block_out_channels"]), config["layers_per_block"]
    return KeyTable(
        "VAE",
        [
            *leaves(QUANTISATION, "", ""),
            *_side("encoder", "down", widths, num_layers, widths[0]),
            *_side("decoder", "up", widths[::-1], num_layers + 1, widths[-1]),
        ],
    )


def _side(side: str, way: str, widths: tuple[int, ...], num_layers: int, channels: int) -> Iterator[Entry]:
    """Encoder or decoder; the foreign decoder counts its levels from the last."""
    yield from leaves(ENDS, f"{side}.", f"{side}.")
    yield from _mid(f"{side}.mid_block.", f"{side}.mid.")
    last = len(widths) - 1
    for level, width in enumerate(widths):
        target = f"{side}.{way}_blocks.{level}."
        source = f"{side}.{way}.{level if way == 'down' else last - level}."
        for index in range(num_layers):
            names = RESIDUAL | SHORTCUT if channels != width else RESIDUAL
            yield from leaves(names, f"{target}resnets.{index}.", f"{source}block.{index}.")
            channels = width
        if level < last:
            yield from leaves({f"{way}samplers.0.conv": f"{way}sample.conv"}, target, source)


def _mid(target: str, source: str) -> Iterator[Entry]:
    for index in (0, 1):
        yield from leaves(RESIDUAL, f"{target}resnets.{index}.", f"{source}block_{index + 1}.")
    yield from leaves(ATTENTION_NORM, f"{target}attentions.0.", f"{source}attn_1.")
    yield from leaves(ATTENTION, f"{target}attentions.0.", f"{source}attn_1.", dropped=2)

"""Configurations of components, read off the keys and shapes of their checkpoints.

What shapes cannot say (numbers of heads, of norm groups, paddings, edits) follows from the source, from what all
released weights have in common, or from an argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from i2vgen.checkpoints.clip_keys import VISION_PREFIX
from i2vgen.checkpoints.errors import CheckpointError, nearest
from i2vgen.checkpoints.tables import Shape

NO_HEADS = {"use_fps": False, "use_image_embeddings": False, "use_image_latents": False}
# source of a UNet -> fields that it implies; diffusers' classes share names, and their heads are seen in the keys
SOURCES: dict[str, dict[str, bool]] = {
    "vgen-i2vgen-xl": {"use_fps": True, "use_image_embeddings": True, "use_image_latents": True},
    "vgen-sr600": {**NO_HEADS, "has_odd_height": True, "use_decoder_edits": True},
    "modelscope-image2video": {"use_fps": True, "use_image_embeddings": True, "use_image_latents": False},
    "modelscope-vid2vid": {**NO_HEADS, "has_odd_height": True},
    "diffusers": {},
}
# field -> prefix of its head's keys: in VGen's layout, in ours
HEAD_PREFIXES = {
    "use_fps": ("fps_embedding.", "fps_embedding."),
    "use_image_embeddings": ("context_embedding.", "context_embedding."),
    "use_image_latents": ("local_image_", "image_latents_"),
}
PRIOR_PREFIXES = {"use_motion_prior": "motion_prior.", "use_object_prior": "object_prior."}  # nano's, in our layout
VGEN_KEYS = {
    "time": "time_embed.0.weight",
    "in": "input_blocks.0.0.weight",
    "transformer_in": "input_blocks.0.1.proj_in.weight",
    "context": "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "image_tokens": "context_embedding.2.weight",
    "out": "out.2.weight",
}
OUR_KEYS = {
    "time": "time_embedding.linear_1.weight",
    "in": "conv_in.weight",
    "transformer_in": "transformer_in.proj_in.weight",
    "context": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "image_tokens": "context_embedding.2.weight",
    "out": "conv_out.weight",
}
Level = tuple[int, int, bool]  # channels, layers, has attention


def source_of(keys: Iterable[str]) -> str:
    """Which source a video UNet's keys belong to.

    Raises CheckpointError when they are no video UNet's, or of one of the two refiners, whose keys are the same.
    """
    keys = list(keys)
    is_ours = _is_ours(keys)
    if not any("temopral_conv" in key or "temp_convs" in key for key in keys):
        raise CheckpointError("UNet: an image model without temporal layers; load_spatial starts a video UNet from it")
    if is_ours:
        return "diffusers"
    heads = _heads(keys, is_ours)
    sources = [name for name, fields in SOURCES.items() if fields and heads.items() <= fields.items()]
    if len(sources) > 1:
        raise CheckpointError(
            f"UNet: {' and '.join(sources)} have the same keys and differ in what they compute; say which as source"
        )
    if not sources:
        raise CheckpointError(f"UNet: no source has these heads: {_describe(heads)}")
    return sources[0]


def unet_config(shapes: Mapping[str, Shape], source: str, transformer_in_heads: int = 8) -> dict[str, Any]:
    """Fields of our I2VGenXLUNet for the keys and shapes of a UNet of `source`, one of SOURCES.

    The head width is that of the first temporal transformer, which has `transformer_in_heads` heads. Not seen in
    shapes and left out: norm_num_groups, image_latents_scale. A UNet3DConditionModel pads as diffusers does
    (has_odd_height False). Raises CheckpointError when source and keys do not agree.
    """
    if source not in SOURCES:
        raise CheckpointError(f"source: {source!r} is unknown; use one of {', '.join(SOURCES)}")
    is_ours = source == "diffusers"
    if is_ours != _is_ours(shapes):
        layout, fitting = ("VGen's", "another") if is_ours else ("diffusers'", "'diffusers'")
        raise CheckpointError(f"source {source!r}: these keys are in {layout} layout; source should be {fitting}")
    heads = _heads(shapes, is_ours)
    if not heads.items() <= (SOURCES[source] or heads).items():
        fitting = [name for name, fields in SOURCES.items() if fields and heads.items() <= fields.items()]
        raise CheckpointError(
            f"source {source!r} has other heads than these keys ({_describe(heads)}); "
            f"source should be {' or '.join(fitting) or 'another'}"
        )
    keys = OUR_KEYS if is_ours else VGEN_KEYS
    down, up = _our_levels(shapes) if is_ours else _vgen_levels(shapes)
    inner_width = _shape(shapes, keys["transformer_in"], 2 if is_ours else 3)[0]
    head_dim = _divide("transformer_in_heads", keys["transformer_in"], inner_width, transformer_in_heads)
    context_dim = _shape(shapes, keys["context"], 2)[1]
    config = {
        "in_channels": _shape(shapes, keys["in"], 4)[1] // (2 if heads["use_image_latents"] else 1),
        "out_channels": _shape(shapes, keys["out"], 4)[0],
        "block_out_channels": tuple(width for width, _, _ in down),
        "layers_per_block": down[0][1],
        "down_block_types": tuple("CrossAttnDownBlock3D" if has else "DownBlock3D" for _, _, has in down),
        "up_block_types": tuple("CrossAttnUpBlock3D" if has else "UpBlock3D" for _, _, has in up),
        "cross_attention_dim": context_dim,
        "attention_head_dim": head_dim,
        "transformer_in_heads": transformer_in_heads,
        **heads,
        **SOURCES[source],
    }
    if heads["use_image_embeddings"]:
        rows = _shape(shapes, keys["image_tokens"], 2)[0]
        config["num_image_tokens"] = _divide("cross_attention_dim", keys["image_tokens"], rows, context_dim)
    if is_ours:
        config |= {field: True for field, prefix in PRIOR_PREFIXES.items() if any(k.startswith(prefix) for k in shapes)}
    return config


def vae_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Fields of diffusers' AutoencoderKL for the shapes of a latent-diffusion first stage, without a prefix."""
    first = "encoder.down.{}.block.0.conv1.weight"
    widths = [_shape(shapes, first.format(0), 4)[0]]
    while first.format(len(widths)) in shapes:
        widths.append(_shape(shapes, first.format(len(widths)), 4)[0])
    return {
        "in_channels": _shape(shapes, "encoder.conv_in.weight", 4)[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight", 4)[0],
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(shapes, "post_quant_conv.weight", 4)[0],
        "norm_num_groups": 32,
        "act_fn": "silu",
        "scaling_factor": 0.18215,
    }


def text_config(shapes: Mapping[str, Shape], head_width: int = 64) -> dict[str, Any]:
    """Fields of CLIPTextConfig for the shapes of open_clip's text tower; `head_width` is ViT-H-14's by default."""
    vocab_size, width = _shape(shapes, "token_embedding.weight", 2)
    return {
        **_tower(shapes, "", width, head_width),
        "vocab_size": vocab_size,
        "max_position_embeddings": _shape(shapes, "positional_embedding", 2)[0],
        "projection_dim": _shape(shapes, "text_projection", 2)[1] if "text_projection" in shapes else width,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 0,  # open_clip pads with zeros
    }


def vision_config(shapes: Mapping[str, Shape], head_width: int = 80) -> dict[str, Any]:
    """Fields of CLIPVisionConfig for the shapes of open_clip's image tower; `head_width` is ViT-H-14's by default."""
    positions_key = f"{VISION_PREFIX}positional_embedding"
    width, channels, patch_size, _ = _shape(shapes, f"{VISION_PREFIX}conv1.weight", 4)
    positions = _shape(shapes, positions_key, 2)[0]
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise CheckpointError(f"{positions_key}: {positions} positions are not a class token and a square of patches")
    return {
        **_tower(shapes, VISION_PREFIX, width, head_width),
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "projection_dim": _shape(shapes, f"{VISION_PREFIX}proj", 2)[1],
    }


def _tower(shapes: Mapping[str, Shape], prefix: str, width: int, head_width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": _shape(shapes, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": _count(shapes, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": _divide("head_width", f"{prefix}transformer", width, head_width),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def _vgen_levels(shapes: Mapping[str, Shape]) -> tuple[list[Level], list[Level]]:
    down: list[list[tuple[int, bool]]] = [[]]
    for place in range(1, len(shapes)):
        if f"input_blocks.{place}.op.weight" in shapes:
            down.append([])
        elif (key := f"input_blocks.{place}.0.in_layers.2.weight") in shapes:
            down[-1].append((_shape(shapes, key, 4)[0], f"input_blocks.{place}.1.norm.weight" in shapes))
        else:
            break
    up: list[list[tuple[int, bool]]] = [[]]
    for place in range(len(shapes)):
        key = f"output_blocks.{place}.0.in_layers.2.weight"
        if key not in shapes:
            break
        has_attention = f"output_blocks.{place}.1.norm.weight" in shapes
        up[-1].append((_shape(shapes, key, 4)[0], has_attention))
        if f"output_blocks.{place}.{3 if has_attention else 1}.conv.weight" in shapes:
            up.append([])
    return _levels("input_blocks", down), _levels("output_blocks", up)


def _our_levels(shapes: Mapping[str, Shape]) -> tuple[list[Level], list[Level]]:
    sides = []
    for side in ("down_blocks", "up_blocks"):
        levels: list[list[tuple[int, bool]]] = []
        while (key := f"{side}.{len(levels)}.resnets.0.conv1.weight") in shapes:
            prefix = f"{side}.{len(levels)}."
            num_layers = _count(shapes, re.escape(prefix) + r"resnets\.(\d+)\.")
            levels.append([(_shape(shapes, key, 4)[0], f"{prefix}attentions.0.norm.weight" in shapes)] * num_layers)
        sides.append(_levels(side, levels))
    return sides[0], sides[1]


def _levels(side: str, levels: list[list[tuple[int, bool]]]) -> list[Level]:
    if not levels or not all(levels):
        raise CheckpointError(f"UNet: {side} has no residual layer at level {levels.index([]) if levels else 0}")
    return [(layers[0][0], len(layers), layers[0][1]) for layers in levels]


def _is_ours(keys: Iterable[str]) -> bool:
    """Whether a UNet's keys have diffusers' names, not VGen's."""
    keys = list(keys)
    if any(key.startswith(("down_blocks.", "conv_in.")) for key in keys):
        return True
    if any(key.startswith("input_blocks.") for key in keys):
        return False
    raise CheckpointError(f"UNet: these are not the keys of a UNet: {', '.join(sorted(keys)[:3]) or 'none'}")


def _heads(keys: Iterable[str], is_ours: bool) -> dict[str, bool]:
    keys = list(keys)
    return {field: any(k.startswith(prefix[is_ours]) for k in keys) for field, prefix in HEAD_PREFIXES.items()}


def _describe(heads: Mapping[str, bool]) -> str:
    return ", ".join(f"{field}={has}" for field, has in heads.items())


def _shape(shapes: Mapping[str, Shape], key: str, ndim: int) -> Shape:
    if key not in shapes:
        raise CheckpointError(f"missing key {key}{nearest(key, shapes)}")
    shape = tuple(shapes[key])
    if len(shape) != ndim or 0 in shape:
        raise CheckpointError(f"{key} has shape {list(shape)}, expected {ndim} dimensions, none of them empty")
    return shape


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    """How many different numbers the keys have where `pattern` has its group."""
    return len({match[1] for key in shapes if (match := re.match(pattern, key))})


def _divide(field: str, key: str, total: int, by: int) -> int:
    if by < 1 or total % by:
        raise CheckpointError(f"{field}: width {total} of {key} is not a multiple of {by}; give another {field}")
    return total // by

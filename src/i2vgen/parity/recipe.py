"""The recipe that gives the tiny models their weights, drawn by the ORIGINAL keys, and the models filled with it."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2vgen.checkpoints import load_unet
from i2vgen.checkpoints.clip_keys import text_prefix_on_disk, text_table, vision_table
from i2vgen.checkpoints.configs import SOURCES, text_config, vae_config, vision_config
from i2vgen.checkpoints.tables import Shape
from i2vgen.checkpoints.unet_keys import unet_table
from i2vgen.checkpoints.vae_keys import vae_table
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.parity.calls import ParityError
from i2vgen.parity.golden import CONFIG, read_json

# class of the original -> source of its checkpoints
UNET_SOURCES = {
    "UNetSD_I2VGen": "vgen-i2vgen-xl",
    "UNetSD_SR600": "vgen-sr600",
    "Img2VidSDUNet": "modelscope-image2video",
    "Vid2VidSDUNet": "modelscope-vid2vid",
}
# the models of the recorded set, for a folder that has no JSON of theirs
TINY_UNETS = {
    "vgen_i2vgen_xl": "UNetSD_I2VGen",
    "vgen_sr600": "UNetSD_SR600",
    "modelscope_img2vid": "Img2VidSDUNet",
    "modelscope_vid2vid": "Vid2VidSDUNet",
}
TINY_ARGUMENTS = {"dim": 64, "dim_mult": [1, 1, 1, 2], "head_dim": 16}
# arguments that all of these classes have, with their usual values
UNET_ARGUMENTS = {
    "in_dim": 4,
    "out_dim": 4,
    "dim": 320,
    "dim_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "head_dim": 64,
    "num_res_blocks": 2,
    "attn_scales": [1.0, 0.5, 0.25],
    "context_dim": 1024,
    "num_tokens": 4,
}
# arguments that build another network when they have another value
UNET_FIXED = {"temporal_attention": True, "temporal_attn_times": 1, "y_dim": 1024}


def draw(key: str, shapes: Mapping[str, Shape]) -> np.ndarray:
    """The tensor of the original `key`, from a generator seeded by its name; float32 throughout.

    `shapes` are those of the whole state dict: whether a bias belongs to a norm is seen in its sibling weight.
    """
    shape, single = tuple(shapes[key]), np.float32
    z = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape, dtype=single)
    kind = kind_of(key, shapes)
    if kind == "matrix":
        return z * single(min(max(1 / math.sqrt(math.prod(shape[1:])), 0.05), 0.2))
    if kind == "norm_weight":
        return single(1) + single(0.1) * z
    return single(0.1 if kind == "norm_bias" else 0.05) * z


def kind_of(key: str, shapes: Mapping[str, Shape]) -> str:
    """What the recipe takes a tensor for, by keys and shapes alone."""
    if len(shapes[key]) != 1:
        return "matrix" if len(shapes[key]) else "scalar"
    if key.endswith(".weight"):
        return "norm_weight"
    is_norm = key.endswith(".bias") and len(shapes.get(key[:-5] + ".weight", ())) == 1
    return "norm_bias" if is_norm else "vector"


def drawn_state(shapes: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """A whole state dict of the original; 0-dim tensors, which no output depends on, are left out."""
    return {key: torch.from_numpy(draw(key, shapes)) for key, shape in shapes.items() if len(shape)}


def fingerprint(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Numbers of keys by kind, sums, and the SHA-256 of all weights in the order of their keys."""
    digest, total, squares, elements = hashlib.sha256(), 0.0, 0.0, 0
    by_kind: dict[str, int] = {}
    for key in sorted(shapes):
        kind = kind_of(key, shapes)
        by_kind[kind] = by_kind.get(kind, 0) + 1
        if kind == "scalar":
            continue
        values = draw(key, shapes)
        digest.update(values.astype("<f4").tobytes())
        total += values.sum(dtype=np.float64)
        squares += np.square(values, dtype=np.float64).sum()
        elements += values.size
    return {
        "keys": len(shapes),
        "by_kind": by_kind,
        "elements": elements,
        "weights_sha256": digest.hexdigest(),
        "sum": total,
        "sum_of_squares": squares,
    }


class Networks:
    """The networks of the golden sets `roots`, built once each; the JSON there has their arguments.

    What the first set has comes before what the others have.
    """

    def __init__(self, roots: Sequence[Path]):
        self.roots = roots
        self._unets: dict[str, I2VGenXLUNet] = {}

    def find(self, relative: str) -> Path | None:
        """A file of the sets, by its place within one."""
        return next((root / relative for root in self.roots if (root / relative).is_file()), None)

    def unet(self, name: str) -> I2VGenXLUNet:
        """Our UNet with the weights of the recorded model `tiny/<name>`, through `load_unet`."""
        if name not in self._unets:
            source, fields = self._unet_fields(name)
            state = drawn_state(self.unet_shapes(name))
            self._unets[name] = load_unet(state, source=source, config=fields)
        return self._unets[name]

    def unet_shapes(self, name: str) -> dict[str, Shape]:
        """Original keys and shapes of a recorded UNet."""
        _, fields = self._unet_fields(name)
        with torch.device("meta"):
            unet = I2VGenXLUNet(**fields)
        return unet_table(fields).source_shapes(shapes_of(unet))

    def _unet_fields(self, name: str) -> tuple[str, dict[str, Any]]:
        path = f"tiny/{name}/{CONFIG}"
        if name in TINY_UNETS and self.find(path) is None:
            config = {"cls": TINY_UNETS[name], "kwargs": TINY_ARGUMENTS}
        else:
            config = self._json(path)
        source = UNET_SOURCES.get(config.get("cls"))
        if source is None:
            raise ParityError(f"cls: {config.get('cls')!r} is unknown; known: {', '.join(UNET_SOURCES)}")
        return source, unet_fields(config.get("kwargs", {})) | SOURCES[source]

    def vae(self) -> AutoencoderKL:
        state = drawn_state(self.vae_shapes())
        vae = AutoencoderKL(**vae_config({key: tuple(value.shape) for key, value in state.items()}))
        vae.load_state_dict(dict(vae_table(vae.config).convert(state.__getitem__)))
        return vae.eval()

    def vae_shapes(self) -> dict[str, Shape]:
        described = self._json(f"vae_tiny/{CONFIG}")
        arguments = described["ddconfig"]
        if arguments.get("attn_resolutions") or described.get("embed_dim") != arguments["z_channels"]:
            raise ParityError("ddconfig: AutoencoderKL has attention in its middle alone, and embed_dim = z_channels")
        widths = tuple(arguments["ch"] * factor for factor in arguments["ch_mult"])
        with torch.device("meta"):
            vae = AutoencoderKL(
                in_channels=arguments["in_channels"],
                out_channels=arguments["out_ch"],
                block_out_channels=widths,
                down_block_types=("DownEncoderBlock2D",) * len(widths),
                up_block_types=("UpDecoderBlock2D",) * len(widths),
                layers_per_block=arguments["num_res_blocks"],
                latent_channels=arguments["z_channels"],
            )
        return vae_table(vae.config).source_shapes(shapes_of(vae))

    def towers(self) -> tuple[CLIPTextModel, torch.Tensor, CLIPVisionModelWithProjection]:
        """The text tower, its projection (width embed_dim), and the image tower."""
        shapes = self.tower_shapes()
        state = drawn_state(shapes)
        described = self._tower_arguments()
        text_arguments, vision_arguments = described["text_cfg"], described["vision_cfg"]
        head_width = text_arguments["width"] // text_arguments["heads"]
        text = CLIPTextModel(CLIPTextConfig(**text_config(shapes, head_width)))
        weights = dict(text_table(text_arguments["layers"]).convert(state.__getitem__))
        prefix = text_prefix_on_disk()
        text.load_state_dict({prefix + key: value for key, value in weights.items()})
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**vision_config(shapes, vision_arguments.get("head_width", 64)))
        )
        vision.load_state_dict(dict(vision_table(vision_arguments["layers"]).convert(state.__getitem__)))
        return text.eval(), state["text_projection"], vision.eval()

    def tower_shapes(self) -> dict[str, Shape]:
        """Original keys and shapes of both towers."""
        described = self._tower_arguments()
        text, vision = described["text_cfg"], described["vision_cfg"]
        if described.get("quick_gelu"):
            raise ParityError("model_config: quick_gelu is not the activation of I2VGen-XL's towers")
        if vision["width"] % vision.get("head_width", 64) or text["width"] % text["heads"]:
            raise ParityError("model_config: a width is not a multiple of its heads")
        with torch.device("meta"):
            text_model = CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=text["width"],
                    intermediate_size=4 * text["width"],
                    num_hidden_layers=text["layers"],
                    num_attention_heads=text["heads"],
                    vocab_size=text["vocab_size"],
                    max_position_embeddings=text["context_length"],
                    bos_token_id=text["vocab_size"] - 2,
                    eos_token_id=text["vocab_size"] - 1,
                )
            )
            vision_model = CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=vision["width"],
                    intermediate_size=4 * vision["width"],
                    num_hidden_layers=vision["layers"],
                    num_attention_heads=vision["width"] // vision.get("head_width", 64),
                    image_size=vision["image_size"],
                    patch_size=vision["patch_size"],
                    projection_dim=described["embed_dim"],
                )
            )
        prefix = text_prefix_on_disk()
        text_shapes = {key.removeprefix(prefix): shape for key, shape in shapes_of(text_model).items()}
        return {
            **text_table(text["layers"]).source_shapes(text_shapes),
            "text_projection": (text["width"], described["embed_dim"]),
            "logit_scale": (),
            **vision_table(vision["layers"]).source_shapes(shapes_of(vision_model)),
        }

    def _tower_arguments(self) -> dict[str, Any]:
        return self._json(f"clip_tiny/{CONFIG}")["model_config"]

    def _json(self, relative: str) -> dict[str, Any]:
        return read_json(self.find(relative) or self.roots[0] / relative)


def unet_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of an original UNet -> fields of ours.

    Arguments that change nothing in these networks (use_sim_mask, default_fps, concat_dim, ...) are left out.
    """
    for name, expected in UNET_FIXED.items():
        if arguments.get(name, expected) != expected:
            raise ParityError(f"kwargs: {name}={arguments[name]!r} builds another network, expected {expected!r}")
    values = {name: arguments.get(name, default) for name, default in UNET_ARGUMENTS.items()}
    has_attention = [0.5**level in values["attn_scales"] for level in range(len(values["dim_mult"]))]
    return {
        "in_channels": values["in_dim"],
        "out_channels": values["out_dim"],
        "block_out_channels": tuple(values["dim"] * factor for factor in values["dim_mult"]),
        "down_block_types": tuple("CrossAttnDownBlock3D" if has else "DownBlock3D" for has in has_attention),
        "up_block_types": tuple("CrossAttnUpBlock3D" if has else "UpBlock3D" for has in has_attention[::-1]),
        "layers_per_block": values["num_res_blocks"],
        "cross_attention_dim": values["context_dim"],
        "attention_head_dim": values["head_dim"],
        "transformer_in_heads": values["num_heads"],
        "num_image_tokens": values["num_tokens"],
    }


def shapes_of(module: torch.nn.Module) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}

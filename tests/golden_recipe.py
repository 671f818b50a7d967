"""The recipe that gives the tiny models of the golden set their weights, and what was recorded from them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from i2vgen.models.unet import I2VGenXLUNet

GOLDEN = Path(__file__).parent / "golden"
REFINER = {
    "use_image_latents": False,
    "use_image_embeddings": False,
    "use_fps": False,
    "has_odd_height": True,
}
# name of the recorded model: (file with its original keys and shapes, fields of our UNet)
VARIANTS = {
    "vgen_i2vgen_xl": ("vgen_i2vgen_xl", {}),
    "modelscope_img2vid": ("modelscope_img2vid", {"use_image_latents": False}),
    "modelscope_vid2vid": ("modelscope_vid2vid", REFINER),
    "vgen_sr600": ("modelscope_vid2vid", {**REFINER, "use_decoder_edits": True}),
}


def draw_weight(key: str, shapes: dict[str, list[int]]) -> np.ndarray:
    """The tensor of the ORIGINAL key, from a generator seeded by its name; float32 throughout."""
    shape, single = tuple(shapes[key]), np.float32
    z = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape, dtype=single)
    if len(shape) >= 2:
        return z * single(min(max(1 / math.sqrt(math.prod(shape[1:])), 0.05), 0.2))
    if key.endswith(".weight"):
        return single(1) + single(0.1) * z
    if key.endswith(".bias") and len(shapes[key[:-5] + ".weight"]) == 1:
        return single(0.1) * z
    return single(0.05) * z


def golden_unet(name: str) -> I2VGenXLUNet:
    """Our UNet with the weights of the recorded model `name`."""
    shapes_name, fields = VARIANTS[name]
    shapes = json.loads((GOLDEN / "tiny" / f"tiny_{shapes_name}.json").read_text())
    sources = json.loads((GOLDEN / "tiny" / "map_tiny_vgen_i2vgen_xl_to_diffusers.json").read_text())["map"]
    with torch.device("meta"):
        unet = I2VGenXLUNet(block_out_channels=(64, 64, 64, 128), attention_head_dim=16, **fields).eval()
    state = {}
    for key, value in unet.state_dict().items():
        source = sources[key]
        weight = torch.from_numpy(draw_weight(source["source"], shapes))
        start, stop = source.get("rows", (0, None))
        state[key] = weight[start:stop].reshape(value.shape)
    unet.load_state_dict(state, assign=True)
    return unet


def golden_case(name: str, case: str) -> dict[str, torch.Tensor]:
    """Recorded inputs and output; floats are stored as float16 and were run in float32."""
    tensors = load_file(GOLDEN / "tiny" / name / f"{case}.safetensors")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def run_golden(unet: I2VGenXLUNet, name: str, case: dict[str, torch.Tensor]) -> torch.Tensor:
    if name == "modelscope_img2vid":  # its `y` is the image embedding
        return unet(case["x"], case["t"], fps=case["fps"], image_embeddings=case["y"]).sample
    if name != "vgen_i2vgen_xl":
        return unet(case["x"], case["t"], encoder_hidden_states=case["y"]).sample
    image = case["local_image"]
    return unet(
        case["x"],
        case["t"],
        fps=case["fps"],
        image_latents=image if image.ndim == 4 else image[:, :, 0],  # the original reads frame 0 alone
        image_embeddings=case.get("image"),
        encoder_hidden_states=case["y"],
    ).sample

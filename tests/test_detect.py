"""What a checkpoint is: every released file at its full size, by keys and shapes alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from golden_recipe import GOLDEN
from i2vgen.checkpoints.detect import detect, detect_shapes
from i2vgen.checkpoints.jobs import jobs_to_diffusers, problem
from i2vgen.checkpoints.reading import open_tensors
from i2vgen.checkpoints.writing import DTYPE_NAMES, num_bytes


def manifest(name: str) -> dict[str, list[int]]:
    return json.loads(gzip.decompress((GOLDEN / "manifests" / f"{name}.json.gz").read_bytes()))


def hollow(path: Path, shapes: dict, dtype: torch.dtype = torch.float32) -> Path:
    """A safetensors file with these tensors, all zero, that takes no room on the disk but its header."""
    header, offset = {}, 0
    for key, shape in shapes.items():
        end = offset + num_bytes((tuple(shape), dtype))
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


RELEASED_FILES = {
    "i2vgen_xl_00854500.pth": ("vgen_i2vgen_xl", "unet", "i2vgen-xl", "vgen-i2vgen-xl", "its keys"),
    "sr_step_110000_ema.pth": ("vgen_sr600", "unet", "sr600", "vgen-sr600", "its file name"),
    "img2video_ldm_0779000.pth": ("modelscope_img2vid", "unet", "image2video", "modelscope-image2video", "its keys"),
    "non_ema_0035000.pth": ("modelscope_vid2vid", "unet", "vid2vid-xl", "modelscope-vid2vid", "its file name"),
    "v2-1_512-ema-pruned.ckpt": ("sd21_first_stage_model", "vae", "", "ldm", "its keys"),
    "vae.ckpt": ("vgen_autoencoderkl", "vae", "", "ldm", "its keys"),
    "open_clip_pytorch_model.bin": ("openclip_vith14_full", "clip", "", "open_clip", "its keys"),
    "text.bin": ("openclip_vith14_text", "text", "", "open_clip", "its keys"),
    "visual.bin": ("openclip_vith14_visual", "vision", "", "open_clip", "its keys"),
}
LANDS_IN = {
    "vgen_i2vgen_xl": ["diffusers_i2vgenxl_unet"],
    "sd21_first_stage_model": ["diffusers_autoencoderkl"],
    "vgen_autoencoderkl": ["diffusers_autoencoderkl"],
    "openclip_vith14_full": ["transformers4_clip_text_vith14", "transformers_clip_vision_vith14"],
    "openclip_vith14_text": ["transformers4_clip_text_vith14"],
    "openclip_vith14_visual": ["transformers_clip_vision_vith14"],
}


@pytest.mark.parametrize("file_name", RELEASED_FILES)
def test_full_size_files_are_known_and_every_key_lands(tmp_path, file_name):
    name, kind, variant, source, evidence = RELEASED_FILES[file_name]
    shapes = manifest(name)
    path = hollow(tmp_path / file_name, shapes)
    found = detect(path)
    assert (found.kind, found.variant, found.source) == (kind, variant, source)
    assert found.evidence == ("" if evidence == "its keys" else evidence)
    assert (found.num_tensors, found.dtypes) == (len(shapes), {"float32": len(shapes)})

    landed, used = [], set()
    for job in jobs_to_diffusers(path).jobs:
        with open_tensors(job.path) as tensors:
            specs = job.specs(tensors, torch.float16)
            used |= {key for key in tensors if job.owns(key)}
        assert all(dtype == torch.float16 for _, dtype in specs.values())
        assert {key: shape for key, (shape, _) in specs.items()} == job.targets
        landed.append({key: list(shape) for key, (shape, _) in specs.items()})
    assert used == set(shapes)
    for specs, target in zip(landed, LANDS_IN.get(name, []), strict=name in LANDS_IN):
        expected = {key.replace("vision_model.vision_model", "vision_model"): s for key, s in manifest(target).items()}
        assert specs == expected


def test_refiners_are_told_apart_by_name_task_or_not_at_all(tmp_path):
    shapes = {key: tuple(shape) for key, shape in manifest("vgen_sr600").items()}
    both = ("vgen-sr600", "modelscope-vid2vid")
    for name, task, expected in (
        ("sr600.pth", "", "vgen-sr600"),
        ("VID2VID.pth", "", "modelscope-vid2vid"),
        ("pytorch_model.pt", "video-to-video", "modelscope-vid2vid"),
        ("pytorch_model.pt", "", ""),
        ("vid2vid_sr600.pth", "", ""),
    ):
        found = detect_shapes(shapes, name, task=task)
        assert (found.source, found.candidates) == (expected, () if expected else both)
        assert ("sr600 or vid2vid-xl" in found.label) == (not expected)


def test_diffusers_and_other_weights_are_known():
    shapes = {key: tuple(shape) for key, shape in manifest("diffusers_i2vgenxl_unet").items()}
    assert detect_shapes(shapes).label == "video UNet, i2vgen-xl"
    assert detect_shapes(shapes).source == "diffusers"
    vae = {key: tuple(shape) for key, shape in manifest("diffusers_autoencoderkl").items()}
    assert (detect_shapes(vae).kind, detect_shapes(vae).source) == ("vae", "diffusers")
    for name, kind in (
        ("transformers_clip_text_vith14", "text"),
        ("transformers4_clip_text_vith14", "text"),
        ("transformers_clip_vision_vith14", "vision"),
    ):
        found = detect_shapes({key: tuple(shape) for key, shape in manifest(name).items()})
        assert (found.kind, found.source) == (kind, "transformers")
    assert detect_shapes({"unet.down.attn.to_q.lora_A.weight": (4, 8)}).kind == "lora"
    assert detect_shapes({"some.weight": (4, 8)}).kind == "unknown"
    image = {"input_blocks.0.0.weight": (8, 4, 3, 3), "middle_block.1.t.attn2.to_k.weight": (8, 1024)}
    assert detect_shapes(image).label == "image UNet of Stable Diffusion, sd-2"
    whole = {f"model.diffusion_model.{key}": shape for key, shape in image.items()}
    whole |= {f"first_stage_model.{key}": tuple(shape) for key, shape in manifest("vgen_autoencoderkl").items()}
    found = detect_shapes(whole)
    assert (found.kind, found.variant, sorted(found.components)) == ("sd", "sd-2", ["unet", "vae"])


def test_a_missing_or_unknown_key_is_named(tmp_path):
    shapes = manifest("vgen_autoencoderkl")
    short = {key: shape for key, shape in shapes.items() if key != "encoder.norm_out.bias"}
    assert "missing key encoder.norm_out.bias" in problem(detect(hollow(tmp_path / "a.ckpt", short)))
    wrong = problem(detect(hollow(tmp_path / "b.ckpt", shapes | {"encoder.norm_outt.bias": [3]})))
    assert "unknown key encoder.norm_outt.bias; nearest known: encoder.norm_out.bias" in wrong
    bent = problem(detect(hollow(tmp_path / "c.ckpt", shapes | {"encoder.norm_out.bias": [3]})))
    assert "encoder.norm_out.bias has shape [3], expected [512]" in bent
    assert problem(detect(hollow(tmp_path / "d.ckpt", shapes))) == ""

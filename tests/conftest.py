"""Tiny cascades with random weights, built on the spot, a photo with structure, and the command line on them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2vgen.cli import main
from i2vgen.media import write_video
from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.pipelines import CascadePipeline, load_cascade
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler
from i2vgen.train.tokenizer import train_tokenizer
from training_parts import make_pack

TINY_UNET = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
TINY_BASE_DEFAULTS = {
    "height": 64,
    "width": 64,
    "num_frames": 4,
    "target_fps": 8,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
}
TINY_REFINE_DEFAULTS = {"height": 96, "width": 96, "num_inference_steps": 2, "guidance_scale": 1.5}
SENTENCES = ["a dog runs over the grass", "the camera pans left, snow falls", "waves at sunset, zoom in"]


def seeded(build, seed: int, noise: float = 0.03) -> torch.nn.Module:
    """The module with initial weights from `seed`, all perturbed, so that nothing is left at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
    return module


def tiny_unet(seed: int = 0, **fields) -> I2VGenXLUNet:
    return seeded(lambda: I2VGenXLUNet(**{**TINY_UNET, **fields}), seed)


def tiny_towers(folder: Path) -> dict:
    """Tokenizer, text and image tower, and feature extractor, under the names that pipelines give them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CLIPImageProcessor

    tokenizer = train_tokenizer(SENTENCES, vocab_size=600, max_length=16, folder=folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 32}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        num_hidden_layers=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **layers,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, num_hidden_layers=1, **layers)
    return {
        "text_encoder": seeded(lambda: CLIPTextModel(text), 1),
        "tokenizer": tokenizer,
        "image_encoder": seeded(lambda: CLIPVisionModelWithProjection(vision), 2),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }


@pytest.fixture(scope="session")
def tiny_cascade_dir(tmp_path_factory) -> Path:
    """A cascade folder that `load_cascade` takes: 64x64, 4 frames, refined to 96x96."""
    folder = tmp_path_factory.mktemp("models") / "tiny-cascade"
    channels = {"encoder_channels": (8, 8), "decoder_channels": (8, 8, 8), "layers_per_block": 1}
    CascadePipeline(
        vae=seeded(lambda: PatchAutoencoder(latent_channels=4, **channels), 3),
        **tiny_towers(folder.parent / "tiny-cascade-tokenizer"),
        unet=tiny_unet(4),
        scheduler=I2VGenDDIMScheduler(timestep_spacing="trailing", final_alpha_cumprod="one"),
        refine_unet=tiny_unet(5),
        refine_scheduler=VideoRefineScheduler(),
        base_defaults=TINY_BASE_DEFAULTS,
        refine_defaults=TINY_REFINE_DEFAULTS,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_dir(tmp_path_factory) -> Path:
    """A folder as the hub's ali-vilab/i2vgen-xl is laid out, every component saved by diffusers itself."""
    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": 4,
    }
    parts = {
        "vae": seeded(lambda: AutoencoderKL(**blocks, **widths), 6),
        **tiny_towers(folder.parent / "tiny-xl-tokenizer"),
        "unet": seeded(lambda: DiffusersI2VGenXLUNet(**TINY_UNET), 7),
        "scheduler": DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            rescale_betas_zero_snr=True,
            set_alpha_to_one=True,
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="leading",
            prediction_type="v_prediction",
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {"_class_name": "I2VGenXLPipeline", "_diffusers_version": "0.26.0"}
    transformers_parts = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")
    index |= {
        n: ["transformers" if n in transformers_parts else "diffusers", type(p).__name__] for n, p in parts.items()
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def tiny_cascade(tiny_cascade_dir) -> CascadePipeline:
    """The tiny cascade on the CPU in float32, shared by all tests: for those that change nothing in it."""
    return load_cascade(str(tiny_cascade_dir), device="cpu", dtype="float32")


@pytest.fixture
def cascade(tiny_cascade_dir) -> CascadePipeline:
    """The same, freshly loaded: a test may change it."""
    return load_cascade(str(tiny_cascade_dir), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """90 x 60 pixels: a sky that darkens, a sun, hills and a fence."""
    y, x = np.mgrid[0:60, 0:90].astype(np.float32)
    picture = np.stack([90 + y, 140 + 0.8 * y, 230 - 0.6 * y], axis=-1)
    picture[(x - 66) ** 2 + (y - 15) ** 2 < 81] = (250, 220, 120)
    picture[y > 42 + 5 * np.sin(x / 9)] = (60, 120, 50)
    picture[(y > 48) & (x % 12 < 3)] = (120, 80, 50)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photo_path(photo, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    photo.save(path)
    return path


@pytest.fixture(scope="session")
def pack_dir(tmp_path_factory) -> Path:
    return make_pack(tmp_path_factory.mktemp("pack"))


# The command line


@pytest.fixture
def run(capsys, monkeypatch):
    """run("show", path) -> its code, stdout and stderr."""
    monkeypatch.setattr("i2vgen.pipelines.estimate.MEASURE_SECONDS", 0.0)

    def call(*arguments):
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def generate(run, photo_path, tiny_cascade_dir):
    """run("generate", ...) with the photo and the tiny cascade filled in."""

    def call(output, *options, image=photo_path, prompt="a dog runs", model=tiny_cascade_dir):
        return run("generate", image, prompt, "-o", output, "--model", model, "--device", "cpu", *options)

    return call


@pytest.fixture
def clip(tmp_path):
    """Five frames, 40 x 24, that drift, at 12.5 a second."""
    pixels = np.stack([np.roll(np.linspace(0, 255, 40 * 24 * 3).reshape(24, 40, 3), i, 1) for i in range(5)])
    return write_video(tmp_path / "clip.webp", pixels.astype(np.uint8), 12.5)

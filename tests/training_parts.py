"""A tiny training pack, configurations of every task, and what several tests of training share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from i2vgen.media import write_video


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    fine = rng.integers(0, 60, (height, width, 3))
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), int) + fine - 30
    return np.clip(image, 0, 255).astype(np.uint8)


def make_pack(root: Path) -> Path:
    """A pack with three photos, one cut-out and a film of two shots."""
    (root / "film").mkdir()
    photos = []
    for index, split in enumerate(["train", "train", "val"]):
        Image.fromarray(texture(300, 400, index)).save(root / f"p{index}.png")
        photos.append({"file": f"p{index}.png", "split": split, "caption": f"a texture {index}", "subject": "texture"})
    disc = np.zeros((40, 60, 4), np.uint8)
    disc[4:-4, 4:-4] = (230, 30, 30, 255)
    Image.fromarray(disc).save(root / "s.webp", lossless=True)
    sprites = [
        {"file": "s.webp", "split": s, "caption": "a red box", "kind": "other", "facing": "none"}
        for s in ("train", "test")
    ]
    frames = np.stack([np.full((96, 160, 3), 20 + k, np.uint8) for k in range(120)])
    write_video(root / "film" / "bbb.mp4", frames, 24.0, quality="high")
    shots = [
        {"start_frame": 0, "end_frame": 60, "motion": 1.0, "caption": "it gets brighter", "split": "train"},
        {"start_frame": 60, "end_frame": 120, "motion": 1.0, "caption": "it gets brighter", "split": "test"},
    ]
    for name, rows in (("photos", photos), ("sprites", sprites), ("film/shots", shots)):
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return root


VAE_TOML = """
task = "vae"
[run]
dir = "{root}/vae"
evaluate_every = 100
[data]
pack_dir = "{pack}"
[optim]
num_steps = 2
batch_size = 2
[vae]
crop_size = 64
[vae.model]
latent_channels = 16
encoder_channels = [16, 16]
decoder_channels = [16, 16, 16]
layers_per_block = 1
"""
TOWERS_TOML = """
task = "towers"
[run]
dir = "{root}/towers"
evaluate_every = 100
[data]
pack_dir = "{pack}"
kind_weights = {{ camera = 0.5, sprite = 0.5 }}
[optim]
num_steps = 2
batch_size = 4
[towers]
vocab_size = 600
[towers.text]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 16
projection_dim = 32
[towers.vision]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
patch_size = 16
projection_dim = 32
"""
MOTION_TOML = """
task = "motion_prior"
[run]
dir = "{root}/motion_prior"
evaluate_every = 100
[data]
pack_dir = "{pack}"
[optim]
num_steps = 5
batch_size = 4
[denoiser]
towers_dir = "{root}/towers/export"
[denoiser.model]
in_channels = 16
"""
OBJECT_TOML = """
task = "object_prior"
[run]
dir = "{root}/object_prior"
evaluate_every = 100
[data]
pack_dir = "{pack}"
sizes = [[64, 64], [96, 64]]
size_weights = [0.5, 0.5]
kind_weights = {{ sprite = 0.8, camera = 0.2 }}
[optim]
num_steps = 2
batch_size = 3
[denoiser]
towers_dir = "{root}/towers/export"
"""
DENOISER_TOML = """
task = "denoiser"
[run]
dir = "{root}/{stage}"
evaluate_every = 100
[data]
pack_dir = "{pack}"
cache_dir = "{root}/cache"
num_clips = 4
num_val_clips = 2
sizes = [[64, 64]]
size_weights = [1.0]
kind_weights = {{ camera = 0.5, sprite = 0.3, film = 0.2 }}
[optim]
num_steps = 3
batch_size = 2
[denoiser]
stage = "{stage}"
max_timestep = {last}
vae_dir = "{root}/vae/export/vae"
towers_dir = "{root}/towers/export"
prior_dir = "{root}/motion_prior/export"
object_prior_dir = "{root}/object_prior/export"
[denoiser.model]
use_motion_prior = true
use_object_prior = true
in_channels = 16
out_channels = 16
block_out_channels = [32, 32]
down_block_types = ["DownBlock3D", "CrossAttnDownBlock3D"]
up_block_types = ["CrossAttnUpBlock3D", "UpBlock3D"]
layers_per_block = 1
norm_num_groups = 8
cross_attention_dim = 32
attention_head_dim = 16
transformer_in_heads = 2
"""


def write_config(folder: Path, name: str, text: str, **values: object) -> str:
    path = folder / f"{name}.toml"
    path.write_text(text.format(**values))
    return str(path)

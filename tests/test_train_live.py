"""Training on videos and pictures as they are: the same conditions as from a cache, and a run that learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.media import write_video
from i2vgen.train.config import load_config
from i2vgen.train.denoiser import DenoiserTask
from i2vgen.train.run import main
from training_parts import texture

LIVE_TOML = """
task = "denoiser"
[run]
dir = "{run}"
log_every = 1
sample_every = 2
[data.clips]
sources = ["{clips}"]
buckets = [[64, 64], [96, 64]]
frame_choices = [4]
fps_choices = [8.0]
image_share = 0.3
num_workers = 0
batch_sizes = {{ 1 = 4, 4 = 2 }}
cache_dir = "{run}/index"
[optim]
num_steps = 3
warmup_steps = 1
[denoiser]
vae_dir = "{model}/vae"
towers_dir = "{model}"
num_samples = 1
sample_steps = 1
[denoiser.model]
block_out_channels = [32, 32]
down_block_types = ["CrossAttnDownBlock3D", "DownBlock3D"]
up_block_types = ["UpBlock3D", "CrossAttnUpBlock3D"]
layers_per_block = 1
norm_num_groups = 8
cross_attention_dim = 32
attention_head_dim = 8
dropout = 0.0
"""


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos that pan, two pictures, captions beside them."""
    root = tmp_path_factory.mktemp("clips")
    for index in range(3):
        image = texture(80, 200, index)
        frames = np.stack([image[:64, 2 * k : 2 * k + (64, 96)[index % 2]] for k in range(24)])
        write_video(root / f"v{index}.mp4", frames, 12.0)
        (root / f"v{index}.txt").write_text("the camera pans right")
    for index in range(2):
        Image.fromarray(texture(70, 90, 10 + index)).save(root / f"p{index}.png")
        (root / f"p{index}.txt").write_text("a texture")
    return root


@pytest.fixture
def config(clips_dir: Path, tiny_xl_dir: Path, tmp_path: Path) -> str:
    path = tmp_path / "live.toml"
    path.write_text(LIVE_TOML.format(run=tmp_path / "run", clips=clips_dir, model=tiny_xl_dir))
    return str(path)


def test_videos_and_pictures_train(config: str, clips_dir: Path, tmp_path: Path) -> None:
    assert main([config, f"data.val_sources=['{clips_dir}']"]) == 0
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3]
    assert "val_loss_t999" in records[-1]
    assert (run / "export" / "unet" / "config.json").is_file()
    assert list((run / "samples").glob("step-*/*.mp4"))


def test_clips_are_encoded_as_the_pipelines_do(config: str) -> None:
    task = DenoiserTask(load_config(config))
    batch = next(b for b in map(task.batch, range(20)) if b["frames"].shape[1] == 4)
    encoded = task.source.encoded(batch)
    b, f, h, w, _ = batch["frames"].shape
    assert encoded["latents"].shape == (b, 4, f, h // 8, w // 8)
    assert encoded["text"].shape[0] == len(batch["captions"]) == b
    assert encoded["image"].shape == (b, 32)
    vae = task.source.vae
    with torch.no_grad():
        frames = batch["frames"].permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)
        posterior = vae.encode(frames[0].transpose(0, 1)).latent_dist
    mean = posterior.mean.transpose(0, 1) * vae.config.scaling_factor
    off = (encoded["latents"][0] - mean).abs().mean() / (posterior.std.mean() * vae.config.scaling_factor)
    assert 0.5 < off < 1.2  # a draw from the posterior: 0.8 standard deviations off on average
    again = task.source.encoded(task.batch(next(s for s in range(20) if task.batch(s)["frames"].shape[1] == 4)))
    assert torch.equal(encoded["latents"], again["latents"])


def test_dropped_conditions_have_the_asked_shares(config: str) -> None:
    fields = ["denoiser.text_dropout=0.3", "denoiser.image_dropout=0.2", "denoiser.both_dropout=0.1"]
    task = DenoiserTask(load_config(config, fields))
    task.source.batch = lambda step: {"rows": torch.arange(2000)}
    batch = task.batch(0)
    text, image = batch["drop_text"].float(), batch["drop_image"].float()
    assert text.mean() == pytest.approx(0.1 + 0.9 * 0.3, abs=0.04)
    assert image.mean() == pytest.approx(0.3, abs=0.04)
    assert (text * image).mean() > 0.1
    assert batch["t"].min() >= 0
    assert batch["t"].max() == 999


def test_the_refiner_sees_its_noise_levels_only(config: str) -> None:
    task = DenoiserTask(load_config(config, ["denoiser.stage=refine", "denoiser.max_timestep=599"]))
    task.source.batch = lambda step: {"rows": torch.arange(5000)}
    t = task.batch(0)["t"]
    assert 595 <= t.max() <= 599
    assert abs(t.float().mean() - 299.5) < 15


def test_missing_sources_are_named(config: str, capsys: pytest.CaptureFixture) -> None:
    assert main([config, "data.clips.sources=[]"]) == 2
    assert "sources is empty" in capsys.readouterr().err

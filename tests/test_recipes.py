"""Every recipe in the repository reads, and describes a network that can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.config import load_config
from i2vgen.train.run import TASKS

ROOT = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(ROOT.rglob("*.toml"))


def test_there_are_recipes_of_both_sizes() -> None:
    assert {"nano", "xl"} <= {path.parent.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipe_reads(path: Path) -> None:
    config = load_config(path)
    assert config.task in TASKS
    assert config.run.dir.startswith("runs/")
    assert 0 < config.optim.final_learning_rate <= config.optim.learning_rate < 0.1
    if config.task != "denoiser":
        return
    assert config.denoiser.max_timestep == (999 if config.denoiser.stage == "base" else 599)
    fields = dict(config.denoiser.model)
    if config.run.init_from.startswith("src/"):  # the bundled weights
        fields = {**I2VGenXLUNet.load_config(ROOT.parent / config.run.init_from), **fields}
    with torch.device("meta"):
        unet = I2VGenXLUNet.from_config(fields)
    if config.data.clips.sources:
        config.data.clips.check()
        for width, height in config.data.clips.buckets:
            unet.check_latent_size(height // 8, width // 8)

"""`i2vgen refine`, `show` and `info`, the help of all commands, and the version."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import i2vgen
from conftest import TINY_REFINE_DEFAULTS, tiny_unet
from golden_recipe import REFINER
from i2vgen.cli.info import requested_stages
from i2vgen.cli.output import summary_line
from i2vgen.media import load_video, read_settings, write_video
from i2vgen.pipelines import VideoRefinePipeline, load_cascade
from i2vgen.pipelines.estimate import estimate
from model_folders import image2video_folder, vgen_folder, video2video_folder


def test_refine_keeps_proportions_and_rate(run, tmp_path, clip, tiny_cascade_dir):
    path = tmp_path / "sharp.webp"
    result = run(
        "refine", clip, "a gradient", "-o", path, "--frames", 4, "--model", tiny_cascade_dir, "--device", "cpu"
    )
    assert result.code == 0, result.err
    video = load_video(path)
    assert video.frames.shape == (4, 96, 160, 3)
    assert video.fps == 12.5
    settings = read_settings(path)
    assert (settings["kind"], settings["video"]["path"], settings["num_frames"]) == ("refine", str(clip), 4)


def test_show(run, tmp_path):
    settings = {"kind": "generate", "prompt": "word " * 60 + "\x1b[31m", "base": {"steps": 3, "eta": 0.0}}
    settings |= {"refine": None, "negative_prompt": "", "lora": [], "image": {"path": None}, "exact": False}
    write_video(tmp_path / "a.gif", np.zeros((2, 8, 8, 3), np.uint8), 5, settings=settings)
    result = run("show", tmp_path / "a.gif")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "kind     generate"
    names = [line.split()[0] for line in lines if not line.startswith("   ")]
    assert names == ["kind", "prompt", "base", "steps", "eta", "exact"]
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in result.out
    assert json.loads(run("show", tmp_path / "a.gif", "--json").out) == settings
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    plain = run("show", tmp_path / "plain.png")
    assert (plain.code, plain.out) == (2, "")
    assert "has no i2vgen settings" in plain.err


def test_info_estimates_without_reading_weights(run, tiny_cascade_dir):
    result = run("info", "--model", tiny_cascade_dir, "--device", "cpu", "--json")
    facts = json.loads(result.out)
    assert facts["versions"]["i2vgen"] == i2vgen.__version__
    assert facts["devices"][0]["num_cores"] == os.cpu_count()
    guess = facts["estimate"]
    assert (guess["size"], guess["base_size"], guess["refine_steps"]) == ("96x96", "64x64", 2)
    more = json.loads(run("info", "--model", tiny_cascade_dir, "--steps", 4, "--no-refine", "--json").out)["estimate"]
    less = json.loads(run("info", "--model", tiny_cascade_dir, "--steps", 2, "--no-refine", "--json").out)["estimate"]
    assert 1.8 < more["multiply_adds"] / less["multiply_adds"] < 2
    text = run("info", "--model", tiny_cascade_dir, "--size", "192x96", "--frames", 8)
    assert "within a factor of 2" in text.out
    assert "128x64" in text.out


@pytest.mark.parametrize(
    "build, stages",
    [(image2video_folder, ["base"]), (video2video_folder, ["refine"]), (vgen_folder, ["base", "refine"])],
)
def test_info_estimates_released_folders_as_they_are_loaded(run, tmp_path, monkeypatch, build, stages):
    folder = build(tmp_path / "model")
    monkeypatch.setattr("i2vgen.checkpoints.components.Component.load", lambda *_: pytest.fail("weights were read"))
    size = ("--size", "96x64", "--frames", 2)
    result = run("info", "--model", folder, "--device", "cpu", *size, "--steps", 3, "--json")
    assert result.code == 0, result.err
    guess = json.loads(result.out)["estimate"]
    assert sorted(guess["seconds_of_stages"]) == sorted(["decode", *stages])
    assert (guess["size"], guess["frames"], guess["base_size"] is None) == ("96x64", 2, "base" not in stages)
    assert guess["steps" if "base" in stages else "refine_steps"] == 3
    monkeypatch.undo()

    cascade = load_cascade(folder, device="cpu", dtype="float32")
    base, refine = requested_stages(cascade, (96, 64), 2, 3, True)
    loaded = estimate(cascade, base, refine, torch.device("cpu"), torch.float32, 2)
    assert (loaded.multiply_adds, round(loaded.memory_bytes)) == (guess["multiply_adds"], guess["memory"])


def test_info_on_a_refiner_alone(run, tmp_path, tiny_cascade):
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    parts = {name: getattr(tiny_cascade.refiner, name) for name in names}
    refiner = VideoRefinePipeline(**parts, unet=tiny_unet(9, **REFINER), refine_defaults=TINY_REFINE_DEFAULTS)
    refiner.save_pretrained(tmp_path / "refiner")
    result = run("info", "--model", tmp_path / "refiner", "--device", "cpu", "--json")
    assert result.code == 0, result.err
    guess = json.loads(result.out)["estimate"]
    assert (guess["size"], guess["base_size"], guess["steps"], guess["refine_steps"]) == ("96x96", None, None, 2)
    text = run("info", "--model", tmp_path / "refiner", "--device", "cpu").out
    assert "refine_steps" in text
    assert "base_size" not in text
    refused = run("info", "--model", tmp_path / "refiner", "--no-refine")
    assert (refused.code, "refiner alone" in refused.err) == (2, True)


def test_version_and_help(run):
    assert run("--version").out == f"i2vgen {i2vgen.__version__}\n"
    for command in ("generate", "preview", "refine", "again", "show", "info"):
        result = run(command, "--help")
        assert result.code == 0
        assert f"i2vgen {command}" in result.out
    assert "Steps of the base stage" in run("generate", "--help").out
    words = " ".join(run("generate", "--help").out.replace("│", " ").split())
    assert "the base stage runs at its own size and the refiner brings the video to this one" in words
    assert "Steps of the refinement" in run("refine", "--help").out
    assert run("dream").code == 2


def test_one_frame_is_no_plural():
    facts = {"output": "a.mp4", "frames": 1, "width": 8, "height": 8, "fps": 8}
    assert summary_line(facts, 1.0).startswith("a.mp4: 1 frame, 8x8")
    assert summary_line(facts | {"frames": 2}, 1.0).startswith("a.mp4: 2 frames, 8x8")


def test_help_does_not_import_torch():
    code = "import sys; from i2vgen.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

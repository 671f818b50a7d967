"""`i2vgen refine`, `show` and `info`, the help of all commands, and the version."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image

import i2vgen
from i2vgen.media import load_video, read_settings, write_video


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
    settings = {"kind": "generate", "prompt": "word " * 60 + "\x1b[31m", "base": {"steps": 3}, "refine": None}
    write_video(tmp_path / "a.gif", np.zeros((2, 8, 8, 3), np.uint8), 5, settings=settings)
    result = run("show", tmp_path / "a.gif")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "kind     generate"
    assert "  steps  3" in lines
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


def test_version_and_help(run):
    assert run("--version").out == f"i2vgen {i2vgen.__version__}\n"
    for command in ("generate", "preview", "refine", "again", "show", "info"):
        result = run(command, "--help")
        assert result.code == 0
        assert f"i2vgen {command}" in result.out
    assert "Steps of the base stage" in run("generate", "--help").out
    assert "Steps of the refinement" in run("refine", "--help").out
    assert run("dream").code == 2


def test_help_does_not_import_torch():
    code = "import sys; from i2vgen.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

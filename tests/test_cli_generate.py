"""`i2vgen generate` on the tiny cascade: what it writes, says, and keeps as settings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from i2vgen.media import load_video, read_settings


def test_generate_writes_a_refined_video_with_its_settings(generate, tmp_path, photo_path, tiny_cascade_dir):
    path = tmp_path / "new" / "folder" / "a.mp4"
    result = generate(path, "--seed", 5, "--contact-sheet", tmp_path / "sheet.png")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{path}: 4 frames, 144x96, 8 fps, made in ")
    assert result.out.count("\n") == 1
    video = load_video(path)
    assert video.frames.shape == (4, 96, 144, 3)
    assert video.fps == 8
    settings = read_settings(path)
    assert (settings["kind"], settings["seed"], settings["model"]) == ("generate", 5, str(tiny_cascade_dir))
    assert settings["image"]["path"] == str(photo_path)
    assert Image.open(tmp_path / "sheet.png").width > 400
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.mp4"]


@pytest.mark.parametrize("name", ["a.gif", "frames"])
def test_suffix_decides_the_format(generate, tmp_path, name):
    assert generate(tmp_path / name, "--no-refine", "--steps", 1, "--frames", 3, "--fps", 5).code == 0
    video = load_video(tmp_path / name)
    assert len(video.frames) == 3
    assert video.fps == pytest.approx(5)


def test_options_reach_the_model(generate, tmp_path):
    numbers = "--frames 3 --size 120x80 --fps 6 --steps 1 --refine-steps 1 --guidance 1.0 --refine-strength 0.3"
    words = "--negative-prompt blurry --fit pad --dtype float32"
    assert generate(tmp_path / "a.mp4", *numbers.split(), *words.split()).code == 0
    settings = read_settings(tmp_path / "a.mp4")
    base, refine = settings["base"], settings["refine"]
    assert (base["num_frames"], base["target_fps"], base["num_inference_steps"], base["guidance_scale"]) == (3, 6, 1, 1)
    assert (refine["width"], refine["height"], refine["num_inference_steps"]) == (120, 80, 1)
    assert (settings["refine_strength"], settings["negative_prompt"], settings["fit"]) == (0.3, "blurry", "pad")
    assert load_video(tmp_path / "a.mp4").frames.shape == (3, 80, 120, 3)


def test_json_is_the_only_thing_on_stdout(generate, run, tmp_path):
    result = generate(tmp_path / "a.webp", "--no-refine", "--json")
    document = json.loads(result.out)
    assert document["output"] == str(tmp_path / "a.webp")
    assert (document["frames"], document["fps"], document["width"], document["height"]) == (4, 8, 96, 64)
    assert document["settings"] == read_settings(tmp_path / "a.webp")
    for failed in (
        run("show", tmp_path / "none.mp4", "--json"),
        run("show", "--json"),
        run("generate", "--seed", "x", "--json"),
    ):
        assert failed.code == 2
        assert set(json.loads(failed.out)) == {"error"}


def test_empty_prompt_and_long_prompt(generate, tmp_path):
    assert generate(tmp_path / "a.webp", "--no-refine", "--steps", 1, prompt="").err == ""
    result = generate(tmp_path / "b.webp", "--steps", 1, "--refine-steps", 1, prompt="a dog runs " * 909)
    assert result.code == 0
    assert result.err.startswith("warning: prompt: the text tower reads 16 tokens")
    assert result.err.count("\n") == 1
    assert len(read_settings(tmp_path / "b.webp")["prompt"]) == 9999


def test_force_replaces(generate, tmp_path):
    (tmp_path / "old.webp").write_text("old")
    assert generate(tmp_path / "old.webp", "--no-refine", "--steps", 1, "--force").code == 0
    assert len(load_video(tmp_path / "old.webp").frames) == 4


def test_as_a_process(tmp_path, photo_path, tiny_cascade_dir):
    command = [sys.executable, "-m", "i2vgen", "generate", photo_path, "waves", "-o", tmp_path / "a.mp4", "--json"]
    options = ["--model", tiny_cascade_dir, "--device", "cpu", "--no-refine", "--steps", "1"]
    result = subprocess.run(command + options, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["frames"] == 4

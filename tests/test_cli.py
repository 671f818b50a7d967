"""The command line on the tiny cascade: every command, every exit code, and no half files."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import i2vgen
from i2vgen.cli import main
from i2vgen.media import load_video, read_settings, write_video
from i2vgen.pipelines.cascade import CascadePipeline
from i2vgen.pipelines.loading import NonFiniteError


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
def no_sampling(monkeypatch):
    """Any call of a cascade fails the test."""

    def refuse(*_, **__):
        pytest.fail("sampling began")

    monkeypatch.setattr(CascadePipeline, "__call__", refuse)


@pytest.fixture
def clip(tmp_path):
    """Five frames, 40 x 24, that drift, at 12.5 a second."""
    pixels = np.stack([np.roll(np.linspace(0, 255, 40 * 24 * 3).reshape(24, 40, 3), i, 1) for i in range(5)])
    return write_video(tmp_path / "clip.webp", pixels.astype(np.uint8), 12.5)


def frames_of(path):
    return load_video(path).frames


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
    options = {
        "--frames": 3,
        "--size": "120x80",
        "--fps": 6,
        "--steps": 1,
        "--refine-steps": 1,
        "--guidance": 1.0,
    }
    words = [word for pair in options.items() for word in pair]
    more = ("--refine-strength", 0.3, "--negative-prompt", "blurry", "--fit", "pad", "--dtype", "float32")
    assert generate(tmp_path / "a.mp4", *words, *more).code == 0
    settings = read_settings(tmp_path / "a.mp4")
    base, refine = settings["base"], settings["refine"]
    assert (base["num_frames"], base["target_fps"], base["num_inference_steps"], base["guidance_scale"]) == (
        3,
        6,
        1,
        1,
    )
    assert (refine["width"], refine["height"], refine["num_inference_steps"]) == (120, 80, 1)
    assert (settings["refine_strength"], settings["negative_prompt"], settings["fit"]) == (
        0.3,
        "blurry",
        "pad",
    )
    assert frames_of(tmp_path / "a.mp4").shape == (3, 80, 120, 3)


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


def test_preview_gives_the_base_motion_of_generate(run, generate, tmp_path, photo_path, tiny_cascade_dir):
    model = ("--model", tiny_cascade_dir, "--device", "cpu")
    folder = tmp_path / "previews"
    result = run(
        "preview",
        photo_path,
        "a dog's run",
        "--seeds",
        2,
        "--first-seed",
        3,
        "-o",
        folder,
        "--format",
        "webp",
        *model,
    )
    assert result.code == 0, result.err
    assert sorted(p.name for p in folder.iterdir()) == [
        "contact-sheet.png",
        "seed-00003.webp",
        "seed-00004.webp",
    ]
    assert generate(tmp_path / "b.webp", "--no-refine", "--seed", 4, prompt="a dog's run").code == 0
    assert (frames_of(folder / "seed-00004.webp") == frames_of(tmp_path / "b.webp")).all()
    assert not (frames_of(folder / "seed-00003.webp") == frames_of(tmp_path / "b.webp")).all()

    command = shlex.split(result.out.strip().splitlines()[-1])
    assert command[:5] == ["i2vgen", "generate", str(photo_path), "a dog's run", "-o"]
    command[5] = str(tmp_path / "full.webp")
    assert run(*command[1:]).code == 0
    settings, previewed = read_settings(tmp_path / "full.webp"), read_settings(folder / "seed-00003.webp")
    assert (settings["seed"], settings["base"]) == (3, previewed["base"])
    assert (
        run(
            "preview",
            photo_path,
            "",
            "-o",
            folder,
            "--seeds",
            2,
            "--first-seed",
            3,
            "--format",
            "webp",
            *model,
        ).code
        == 2
    )


def test_preview_takes_the_size_of_the_final_video(run, tmp_path, photo_path, tiny_cascade_dir):
    result = run(
        "preview", photo_path, "", "-o", tmp_path / "p", "--seeds", 1, "--size", "192x96", "--json",
        "--model", tiny_cascade_dir, "--device", "cpu", "--steps", 1,
    )  # fmt: skip
    document = json.loads(result.out)
    assert [(c["seed"], c["width"], c["height"]) for c in document["clips"]] == [(0, 128, 64)]
    assert "--size 192x96 --model" in document["next"]


def test_refine_keeps_proportions_and_rate(run, tmp_path, clip, tiny_cascade_dir):
    path = tmp_path / "sharp.webp"
    result = run(
        "refine",
        clip,
        "a gradient",
        "-o",
        path,
        "--frames",
        4,
        "--model",
        tiny_cascade_dir,
        "--device",
        "cpu",
    )
    assert result.code == 0, result.err
    video = load_video(path)
    assert video.frames.shape == (4, 96, 160, 3)
    assert video.fps == 12.5
    settings = read_settings(path)
    assert (settings["kind"], settings["video"]["path"], settings["num_frames"]) == ("refine", str(clip), 4)


def test_again_repeats_a_generation_frame_by_frame(run, generate, tmp_path, photo, tiny_cascade_dir):
    picture = tmp_path / "p.png"
    photo.save(picture)
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    options = (
        "--seed",
        9,
        "--size",
        "108x88",
        "--steps",
        1,
        "--refine-steps",
        1,
        "--refine-strength",
        0.4,
        "--fit",
        "pad",
    )
    assert generate(first, *options, "--negative-prompt", "fog", image=picture).code == 0
    result = run("again", first, "-o", second)
    assert (result.code, result.err) == (0, "")
    assert (frames_of(second) == frames_of(first)).all()
    assert read_settings(second) == read_settings(first)

    assert run("again", first, "-o", tmp_path / "c.png", "--seed", 10).code == 0
    assert not (frames_of(tmp_path / "c.png") == frames_of(first)).all()

    moved = picture.rename(tmp_path / "q.png")
    gone = run("again", first, "-o", tmp_path / "d.png")
    assert gone.code == 2
    assert "--image PATH" in gone.err
    assert run("again", first, "-o", tmp_path / "d.png", "--image", moved).code == 0
    photo.rotate(180).save(picture)
    other = run("again", first, "-o", tmp_path / "e.png")
    assert other.code == 2
    assert "its pixels differ" in other.err


def test_again_repeats_a_refinement(run, tmp_path, clip, tiny_cascade_dir, photo_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    options = ("--model", tiny_cascade_dir, "--device", "cpu", "--strength", 0.5, "--seed", 2, "--steps", 1)
    assert (
        run("refine", clip, "a gradient", "-o", first, "--frames", 3, "--image", photo_path, *options).code
        == 0
    )
    result = run("again", first, "-o", second)
    assert (result.code, result.err) == (0, "")
    assert (frames_of(second) == frames_of(first)).all()
    moved = clip.rename(tmp_path / "moved.webp")
    assert run("again", first, "-o", second, "--force").code == 2
    assert run("again", first, "-o", second, "--force", "--video", moved).code == 0


def test_again_warns_of_other_versions_and_refuses_other_kinds(run, generate, tmp_path):
    assert generate(tmp_path / "a.webp", "--no-refine", "--steps", 1).code == 0
    settings, frames = read_settings(tmp_path / "a.webp"), frames_of(tmp_path / "a.webp")
    settings["versions"]["torch"] = "1.0"
    write_video(tmp_path / "old.webp", frames, 8, settings=settings)
    result = run("again", tmp_path / "old.webp", "-o", tmp_path / "new.webp")
    assert result.code == 0
    assert "warning: frames may differ a little: torch 1.0 then" in result.err
    for change, said in (
        ({"kind": "dream"}, "kind 'dream'"),
        ({"seed": "x"}, "seed = 'x'"),
        ({"base": settings["base"] | {"flow": 1}}, "base.flow"),
    ):
        write_video(tmp_path / "odd.webp", frames, 8, settings=settings | change)
        result = run("again", tmp_path / "odd.webp", "-o", tmp_path / "x.webp")
        assert result.code == 2
        assert said in result.err


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
    more = json.loads(run("info", "--model", tiny_cascade_dir, "--steps", 4, "--no-refine", "--json").out)[
        "estimate"
    ]
    less = json.loads(run("info", "--model", tiny_cascade_dir, "--steps", 2, "--no-refine", "--json").out)[
        "estimate"
    ]
    assert 1.8 < more["multiply_adds"] / less["multiply_adds"] < 2
    text = run("info", "--model", tiny_cascade_dir, "--size", "192x96", "--frames", 8)
    assert "within a factor of 2" in text.out
    assert "128x64" in text.out


def test_empty_prompt_and_long_prompt(generate, tmp_path):
    assert generate(tmp_path / "a.webp", "--no-refine", "--steps", 1, prompt="").err == ""
    result = generate(tmp_path / "b.webp", "--steps", 1, "--refine-steps", 1, prompt="a dog runs " * 909)
    assert result.code == 0
    assert result.err.startswith("warning: prompt: the text tower reads 16 tokens")
    assert result.err.count("\n") == 1
    assert len(read_settings(tmp_path / "b.webp")["prompt"]) == 9999


def test_prompt_too_long_to_keep_is_said_before_sampling(generate, tmp_path, no_sampling):
    result = generate(tmp_path / "a.mp4", prompt="\N{DOG}" * 10000)
    assert result.code == 2
    assert result.err.startswith("error: prompt has 10000 characters")


@pytest.mark.parametrize(
    "options, said",
    [
        (("--size", "wide"), "size 'wide': give width x height"),
        (("--size", "100x70", "--no-refine"), "nearest valid 96x64"),
        (("--size", "4x4"), "size 4x4"),
        (("--size", "90000x90000"), "use a smaller --size"),
        (("--frames", 0), "--frames 0"),
        (("--frames", -2), "--frames -2"),
        (("--frames", "many"), "--frames"),
        (("--steps", 0), "--steps 0"),
        (("--refine-steps", -1), "--refine-steps -1"),
        (("--refine-strength", 1.5), "refinement strength 1.5"),
        (("--guidance", "nan"), "--guidance nan"),
        (("--seed", -1), "--seed -1"),
        (("--fps", 0), "--fps 0"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--dtype", "int8"), "int8"),
        (("--fit", "stretch"), "stretch"),
        (("--contact-sheet", "sheet.txt"), "'sheet.txt'"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_bad_options_stop_before_sampling(generate, tmp_path, no_sampling, options, said):
    result = generate(tmp_path / "a.mp4", *options)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert said in result.err
    assert not list(tmp_path.iterdir())


def test_bad_pictures(generate, tmp_path, photo, no_sampling):
    photo.resize((300, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, said in (("none.jpg", "does not exist"), ("text.jpg", "holds text"), ("cut.jpg", "cut short")):
        result = generate(tmp_path / "a.mp4", image=tmp_path / name)
        assert result.code == 2
        assert result.err.startswith("error: ")
        assert said in result.err
        assert name in result.err


def test_bad_models(generate, tmp_path, tiny_cascade_dir, no_sampling):
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "model_index.json").write_text((tiny_cascade_dir / "model_index.json").read_text())
    for model, said in (
        (tmp_path / "none", "no folder at"),
        (tmp_path, "model_index.json"),
        (partial, "is missing"),
    ):
        result = generate(tmp_path / "a.mp4", model=model)
        assert result.code == 2
        assert said in result.err


def test_bad_outputs_are_said_before_sampling(generate, tmp_path, no_sampling):
    (tmp_path / "file").write_text("")
    (tmp_path / "old.mp4").write_text("")
    for name, said in (
        ("a.xyz", "unknown suffix"),
        ("file/a.mp4", "not a directory"),
        ("old.mp4", "--force"),
    ):
        result = generate(tmp_path / name)
        assert result.code == 2
        assert said in result.err
    assert "a GIF shows at most 50" in generate(tmp_path / "a.gif", "--fps", 60).err


def test_force_replaces(generate, tmp_path):
    (tmp_path / "old.webp").write_text("old")
    assert generate(tmp_path / "old.webp", "--no-refine", "--steps", 1, "--force").code == 0
    assert len(frames_of(tmp_path / "old.webp")) == 4


def test_full_disk_is_our_failure_and_leaves_no_file(generate, tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("i2vgen.media.writers._write_webp", full)
    result = generate(tmp_path / "a.webp", "--no-refine", "--steps", 1)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (NonFiniteError("base stage: NaN"), 1, "error: base stage: NaN\n"),
        (MemoryError(), 1, "error: out of memory (MemoryError): use a smaller --size or fewer --frames\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (an error inside i2vgen; --debug shows where)\n"),
    ],
)
def test_failures_while_sampling(generate, tmp_path, monkeypatch, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(CascadePipeline, "__call__", fail)
    result = generate(tmp_path / "a.mp4")
    assert (result.code, result.err) == (code, said)
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(run, tmp_path, monkeypatch):
    assert "Traceback" not in run("show", tmp_path / "none").err
    assert "Traceback" in run("show", tmp_path / "none", "--debug").err
    monkeypatch.setenv("I2VGEN_DEBUG", "1")
    assert "Traceback" in run("show", tmp_path / "none").err


def test_version_and_help(run):
    assert run("--version").out == f"i2vgen {i2vgen.__version__}\n"
    for command in ("generate", "preview", "refine", "again", "show", "info"):
        result = run(command, "--help")
        assert result.code == 0
        assert f"i2vgen {command}" in result.out
    assert run("dream").code == 2


def test_help_does_not_import_torch():
    code = "import sys; from i2vgen.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_as_a_process(tmp_path, photo_path, tiny_cascade_dir):
    command = [
        sys.executable,
        "-m",
        "i2vgen",
        "generate",
        photo_path,
        "waves",
        "-o",
        tmp_path / "a.mp4",
        "--json",
    ]
    options = ["--model", tiny_cascade_dir, "--device", "cpu", "--no-refine", "--steps", "1"]
    result = subprocess.run(command + options, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["frames"] == 4

"""A cascade from the folders of two models: what is held once, settings, and the command line."""

from __future__ import annotations

import dataclasses
import json
from itertools import product

import numpy as np
import pytest
import torch

from conftest import TINY_REFINE_DEFAULTS, seeded, tiny_unet
from golden_recipe import REFINER
from i2vgen.media import load_video, read_settings
from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.pipelines import CascadePipeline, I2VGenXLPipeline, VideoRefinePipeline, load_cascade
from i2vgen.pipelines.estimate import estimate
from i2vgen.pipelines.joining import is_same, joined
from i2vgen.schedulers import VideoRefineScheduler


def tiny_refiner(cascade, **parts) -> VideoRefinePipeline:
    """Text alone and odd heights, as the released ones; towers and VAE of the cascade unless given."""
    parts = {name: parts.get(name, getattr(cascade, name)) for name in ("vae", "text_encoder", "tokenizer")} | {
        "unet": tiny_unet(9, **REFINER),
        "scheduler": VideoRefineScheduler(),
    }
    pipe = VideoRefinePipeline(**parts, refine_defaults={**TINY_REFINE_DEFAULTS, "height": 80, "width": 80})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def refiner_dir(tiny_cascade, tmp_path_factory):
    """A refiner's folder whose VAE is another than the cascade's, and whose text tower is the same."""
    folder = tmp_path_factory.mktemp("models") / "tiny-refiner"
    tiny_refiner(tiny_cascade, vae=other_vae()).save_pretrained(folder)
    return folder


def other_vae() -> PatchAutoencoder:
    channels = {"encoder_channels": (8, 8), "decoder_channels": (8, 8, 8), "layers_per_block": 1}
    return seeded(lambda: PatchAutoencoder(latent_channels=4, **channels), 33)


def test_equal_parts_are_held_once_and_others_twice(tiny_cascade_dir, refiner_dir):
    cascade = load_cascade(tiny_cascade_dir, device="cpu", dtype="float32", refiner=refiner_dir)
    assert cascade.refiner.text_encoder is cascade.base.text_encoder
    assert cascade.refiner.tokenizer is cascade.base.tokenizer
    assert cascade.refiner.vae is not cascade.base.vae
    assert cascade.refine_text_encoder is None
    assert cascade.refine_vae is cascade.refiner.vae
    assert cascade.refiner.unet.config.has_odd_height
    assert (cascade.model_name, cascade.refiner_name) == (str(tiny_cascade_dir), str(refiner_dir))


def test_it_equals_one_stage_after_the_other(tiny_cascade, tiny_cascade_dir, refiner_dir, photo):
    cascade = load_cascade(tiny_cascade_dir, device="cpu", dtype="float32", refiner=refiner_dir)
    result = cascade(photo, "a dog", seed=4, keep_base=True)
    alone = tiny_cascade(photo, "a dog", seed=4, refine=False, size=result.base_frames[0].shape[2:0:-1])
    assert np.array_equal(alone.frames[0], result.base_frames[0])
    assert not np.array_equal(result.frames[0], tiny_cascade(photo, "a dog", seed=4).frames[0])
    assert min(result.frames[0].shape[1:3]) == 80


def test_parts_differ_by_weights_configuration_or_words(tiny_cascade):
    assert is_same(tiny_cascade.vae, tiny_cascade.vae)
    assert not is_same(tiny_cascade.vae, other_vae())
    assert not is_same(tiny_cascade.vae, tiny_cascade.unet)
    assert not is_same(tiny_cascade.vae, None)
    assert not is_same(tiny_unet(1, dropout=0.2), tiny_unet(1))
    assert is_same(tiny_cascade.tokenizer, tiny_cascade.tokenizer)
    assert is_same(tiny_cascade.feature_extractor, tiny_cascade.feature_extractor)


def test_saved_and_loaded_it_is_the_same(tiny_cascade, tiny_cascade_dir, refiner_dir, photo, tmp_path):
    cascade = load_cascade(tiny_cascade_dir, device="cpu", dtype="float32", refiner=refiner_dir)
    cascade.save_pretrained(tmp_path / "joined")
    loaded = load_cascade(tmp_path / "joined", device="cpu", dtype="float32")
    expected, result = (c(photo, "a dog", num_frames=2).frames[0] for c in (cascade, loaded))
    assert np.array_equal(expected, result)


def test_refiner_of_another_cascade_serves(tiny_cascade, tiny_cascade_dir, tiny_xl_dir, photo):
    cascade = load_cascade(tiny_xl_dir, device="cpu", dtype="float32", refiner=tiny_cascade_dir)
    assert isinstance(cascade.base, I2VGenXLPipeline)
    assert cascade.refiner.options == tiny_cascade.refiner.options
    cascade.base.options = dataclasses.replace(cascade.base.options, height=64, width=64)
    frames = cascade(photo, "a dog", num_frames=2, num_inference_steps=1).frames[0]
    assert frames.shape == (2, 96, 144, 3)


def test_refiner_alone_takes_videos_and_no_images(refiner_dir, photo):
    cascade = load_cascade(refiner_dir, device="cpu", dtype="float32")
    assert cascade.base is None
    with pytest.raises(ValueError, match="refiner alone"):
        cascade(photo, "a dog")
    assert cascade.refiner("a dog", torch.zeros(3, 1, 24, 24), output_type="pt").frames.shape == (1, 1, 3, 80, 80)


def test_image_only_base_with_a_refiner_that_reads_text(tiny_cascade, photo):
    parts = {name: tiny_cascade.base.components[name] for name in ("vae", "image_encoder", "feature_extractor")}
    parts |= {"unet": tiny_unet(8, use_image_latents=False), "scheduler": tiny_cascade.scheduler}
    defaults = dict(tiny_cascade.config.base_defaults)
    base = I2VGenXLPipeline(**parts, text_encoder=None, tokenizer=None, base_defaults=defaults)
    cascade = joined(base, tiny_refiner(tiny_cascade))
    for stage in (cascade.base, cascade.refiner):
        stage.set_progress_bar_config(disable=True)
    assert cascade.refine_text_encoder is tiny_cascade.text_encoder
    frames = [cascade(photo, refine_prompt=text, num_frames=2).frames[0] for text in ("a dog", "waves at sunset")]
    assert not np.array_equal(*frames)
    as_prompt = cascade(photo, "a dog", num_frames=2)
    assert np.array_equal(frames[0], as_prompt.frames[0])
    assert as_prompt.settings[0]["prompt"] == "a dog"
    with pytest.raises(ValueError, match='give "" as PROMPT'):
        cascade(photo, "a dog", num_frames=2, refine=False)


def test_wrong_roles_are_named(tiny_cascade_dir, tiny_xl_dir, refiner_dir):
    with pytest.raises(ValueError, match=r"refiner.*base model"):
        load_cascade(tiny_cascade_dir, device="cpu", refiner=tiny_xl_dir)
    with pytest.raises(ValueError, match="both refiners"):
        load_cascade(refiner_dir, device="cpu", refiner=refiner_dir)
    with pytest.raises(ValueError, match="nowhere"):
        load_cascade(tiny_cascade_dir, device="cpu", refiner="./nowhere")


def test_estimate_counts_both_vaes_and_the_inversion(tiny_cascade, tiny_cascade_dir, refiner_dir, monkeypatch):
    monkeypatch.setattr("i2vgen.pipelines.estimate.MEASURE_SECONDS", 0.0)
    cascade = load_cascade(tiny_cascade_dir, device="cpu", dtype="float32", refiner=refiner_dir)
    options = cascade.refiner.options
    inverted = dataclasses.replace(options, inversion_steps=2 * options.num_inference_steps)
    machine = torch.device("cpu"), torch.float32
    plain, longer = (estimate(cascade, None, o, *machine, num_frames=3) for o in (options, inverted))
    ratio = (longer.multiply_adds - plain.multiply_adds) / plain.multiply_adds
    assert 0.3 < ratio < 1.1  # as many evaluations again, less what the VAE takes
    shared = joined(tiny_cascade.base, tiny_refiner(tiny_cascade))
    less = estimate(shared, None, options, *machine, num_frames=3).memory_bytes
    assert plain.memory_bytes - less == sum(p.numel() for p in other_vae().parameters()) * 4


# The command line


def test_generate_with_a_refiner_and_again(run, generate, refiner_dir, tmp_path):
    result = generate(tmp_path / "first.webp", "--refiner", refiner_dir, "--frames", 2, "--seed", 3)
    assert result.code == 0, result.err
    assert read_settings(tmp_path / "first.webp")["refiner"] == str(refiner_dir)
    assert run("again", tmp_path / "first.webp", "-o", tmp_path / "again.webp").code == 0
    frames, again = (load_video(tmp_path / name).frames for name in ("first.webp", "again.webp"))
    assert np.array_equal(frames, again)


def test_refine_with_the_folder_of_a_refiner(run, generate, refiner_dir, clip, tmp_path):
    result = run("refine", clip, "a bar", "-o", tmp_path / "out.webp", "--model", refiner_dir, "--device", "cpu")
    assert result.code == 0, result.err
    assert run("again", tmp_path / "out.webp", "-o", tmp_path / "again.webp").code == 0
    result = generate(tmp_path / "video.webp", model=refiner_dir)
    assert result.code == 2
    assert "refiner alone" in result.err


def test_preview_names_the_refiner_in_what_follows(run, photo_path, refiner_dir, tiny_cascade_dir, tmp_path):
    settings = ["--model", tiny_cascade_dir, "--refiner", refiner_dir, "--device", "cpu", "--frames", 2]
    result = run("preview", photo_path, "a dog", "-o", tmp_path, "--seeds", 1, "--json", *settings)
    assert result.code == 0, result.err
    assert f"--refiner {refiner_dir}" in json.loads(result.out)["next"]


@pytest.fixture(scope="module")
def image_only_dir(tiny_cascade, tmp_path_factory):
    """A base model that reads no text, as image2video."""
    folder = tmp_path_factory.mktemp("models") / "image-only"
    parts = {name: tiny_cascade.base.components[name] for name in ("vae", "image_encoder", "feature_extractor")}
    parts |= {"unet": tiny_unet(8, use_image_latents=False), "scheduler": tiny_cascade.scheduler}
    defaults = {**tiny_cascade.config.base_defaults, "num_frames": 2, "num_inference_steps": 1}
    base = I2VGenXLPipeline(**parts, text_encoder=None, tokenizer=None, base_defaults=defaults)
    base.save_pretrained(folder)
    return folder


def test_a_prompt_that_the_base_does_not_read_is_for_the_refiner(run, generate, image_only_dir, refiner_dir, tmp_path):
    refined = ("--refiner", refiner_dir)
    for name, prompt in (("a.webp", "a dog"), ("b.webp", "waves at sunset")):
        result = generate(tmp_path / name, *refined, prompt=prompt, model=image_only_dir)
        assert (result.code, result.err) == (0, "")
    frames, others = (load_video(tmp_path / name).frames for name in ("a.webp", "b.webp"))
    assert not np.array_equal(frames, others)
    assert run("again", tmp_path / "a.webp", "-o", tmp_path / "c.webp").code == 0
    assert np.array_equal(frames, load_video(tmp_path / "c.webp").frames)
    for options in ((), ("--no-refine",)):
        result = generate(tmp_path / "d.webp", *options, model=image_only_dir)
        assert result.code == 2
        assert 'give "" as PROMPT' in result.err
    assert generate(tmp_path / "d.webp", "--no-refine", prompt="", model=image_only_dir).err == ""


def test_preview_leaves_such_a_prompt_to_what_follows(run, photo_path, image_only_dir, refiner_dir, tmp_path):
    where = ("-o", tmp_path, "--seeds", 1, "--json", "--model", image_only_dir, "--device", "cpu")
    result = run("preview", photo_path, "a dog", *where, "--refiner", refiner_dir)
    assert result.code == 0, result.err
    assert "'a dog'" in json.loads(result.out)["next"]
    assert 'give "" as PROMPT' in run("preview", photo_path, "a dog", *where, "--force").err


def test_batch_with_captions_that_the_base_does_not_read(run, photo_path, image_only_dir, refiner_dir, tmp_path):
    (tmp_path / "shots.txt").write_text(f"{photo_path}|||a dog\n{photo_path}|||waves at sunset\n")
    where = ("--model", image_only_dir, "--device", "cpu", "--format", "webp", "--json")
    refined = run("batch", tmp_path / "shots.txt", "-o", tmp_path / "a", *where, "--refiner", refiner_dir, "--seed", 3)
    assert (refined.code, refined.err) == (0, "")
    names = [entry["output"] for entry in json.loads(refined.out)["entries"]]
    assert [read_settings(tmp_path / "a" / name)["prompt"] for name in names] == ["a dog", "waves at sunset"]

    alone = run("batch", tmp_path / "shots.txt", "-o", tmp_path / "b", *where, "--no-refine")
    assert alone.code == 0
    (line,) = alone.err.splitlines()
    assert "reads no text: prompts are ignored" in line
    assert [read_settings(tmp_path / "b" / name)["prompt"] for name in names] == ["", ""]


def test_a_base_model_makes_its_video_and_a_line_says_so(run, photo_path, image_only_dir, tmp_path):
    where = ("--model", image_only_dir, "--device", "cpu")
    (tmp_path / "shots.txt").write_text(f"{photo_path}|||\n")
    commands = (
        ("generate", photo_path, "", "-o", tmp_path / "a.webp"),
        ("preview", photo_path, "", "-o", tmp_path / "p", "--seeds", 1, "--format", "webp"),
        ("batch", tmp_path / "shots.txt", "-o", tmp_path / "b", "--format", "webp"),
    )
    for command in commands:
        result = run(*command, *where)
        assert result.code == 0, result.err
        (line,) = result.err.splitlines()
        assert "has no refinement stage" in line
    made = [load_video(path).frames for path in (tmp_path / "a.webp", *tmp_path.glob("[pb]/*.webp"))]
    assert len(made) == 3
    assert all(np.array_equal(frames, made[0]) for frames in made)
    for command, option in product((commands[0], commands[2]), (("--refine-steps", 2), ("--refine-strength", 0.5))):
        result = run(*command, *where, "--force", *option)
        assert result.code == 2
        assert "has no refinement stage" in result.err
        assert "leave it out" in result.err or f"leave {option[0]} {option[1]} out" in result.err
    planned = run(*commands[2][:3], tmp_path / "new", "--dry-run", *where)
    assert (planned.code, "problem" in planned.out) == (0, False)


def test_refiner_without_refinement_is_an_error(generate, refiner_dir, tmp_path):
    result = generate(tmp_path / "video.webp", "--refiner", refiner_dir, "--no-refine")
    assert result.code == 2
    assert "--refiner" in result.err


def test_a_cascade_class_needs_no_base(tiny_cascade):
    refiner = tiny_refiner(tiny_cascade)
    assert isinstance(joined(None, refiner), CascadePipeline)

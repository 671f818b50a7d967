"""A cascade from the folders of two models: what is held once, settings, and the command line."""

from __future__ import annotations

import dataclasses
import json

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


def test_refiner_without_refinement_is_an_error(generate, refiner_dir, tmp_path):
    result = generate(tmp_path / "video.webp", "--refiner", refiner_dir, "--no-refine")
    assert result.code == 2
    assert "--refiner" in result.err


def test_a_cascade_class_needs_no_base(tiny_cascade):
    refiner = tiny_refiner(tiny_cascade)
    assert isinstance(joined(None, refiner), CascadePipeline)

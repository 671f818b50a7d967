"""`exact=True`: every stage as the original does it, and nothing of that otherwise."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from conftest import TINY_BASE_DEFAULTS, TINY_REFINE_DEFAULTS
from golden_recipe import GOLDEN, golden_unet
from golden_samplers import relative
from i2vgen.checkpoints.variants import REFINER_NEGATIVE_PROMPT, VGEN_NEGATIVE_PROMPT
from i2vgen.media import frames_to_uint8, load_video, read_settings, write_video
from i2vgen.pipelines import BaseOptions, RefineOptions
from i2vgen.pipelines.conditioning import encode_prompts, prepare_image
from i2vgen.pipelines.exact import exact_base, exact_refine
from i2vgen.pipelines.frames import resize_frames
from i2vgen.pipelines.options import replaced
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# What the preset sets


def test_preset_of_the_base_stage():
    exact = exact_base(BaseOptions(), is_image_only=False)
    assert exact == BaseOptions(
        exact_images=True,
        text_pad_token_id=0,
        timestep_spacing="original",
        final_alpha_cumprod="first",
        truncate_pixels=True,
        negative_prompt=VGEN_NEGATIVE_PROMPT,
    )
    assert exact_base(exact, is_image_only=False) == exact
    assert exact_base(BaseOptions(negative_prompt="x"), is_image_only=False).negative_prompt == "x"
    image_only = exact_base(BaseOptions(), is_image_only=True)
    assert (image_only.offset_noise, image_only.negative_prompt) == (0.1, "")


def test_preset_of_the_refiner():
    exact = exact_refine(RefineOptions(), is_sr600=False)
    assert (exact.resize, exact.text_pad_token_id, exact.exact_start, exact.truncate_pixels) == (
        "stretch",
        0,
        True,
        True,
    )
    assert exact.negative_prompt == REFINER_NEGATIVE_PROMPT
    assert "unreal engine, taken using a Canon" in exact.positive_prompt
    assert "portrait Photography" in exact_refine(RefineOptions(), is_sr600=True).positive_prompt
    assert exact_refine(exact, is_sr600=False) == exact


# What the fields do


def test_padding_with_zero_changes_the_tokens_after_the_end_alone(tiny_cascade):
    tower = tiny_cascade.tokenizer, tiny_cascade.text_encoder
    own, zero = encode_prompts(*tower, ["a dog"]), encode_prompts(*tower, ["a dog"], 1, 0)
    length = len(tiny_cascade.tokenizer("a dog").input_ids)
    torch.testing.assert_close(zero[:, :length], own[:, :length])
    assert (zero[:, length:] - own[:, length:]).abs().max() > 1e-3
    same = encode_prompts(*tower, ["a dog"], 1, tiny_cascade.tokenizer.pad_token_id)
    assert torch.equal(same, own)


def test_no_layer_skipped_is_the_last_hidden_state(tiny_cascade):
    tower = tiny_cascade.tokenizer, tiny_cascade.text_encoder
    assert torch.equal(encode_prompts(*tower, ["a dog"], 0), encode_prompts(*tower, ["a dog"], None))


def test_pictures_have_the_black_border_of_the_original_only_when_asked():
    source = Image.open(GOLDEN / "preprocess" / "odd.png")
    recorded = np.array(Image.open(GOLDEN / "preprocess" / "odd_448x256_vae.png"))
    assert not recorded[:, 0].any()
    for is_exact in (True, False):
        _, pixels = prepare_image(source, 448, 256, "crop", is_exact)
        assert np.array_equal(frames_to_uint8(pixels)[0], recorded) == is_exact
        assert frames_to_uint8(pixels)[0][:, 0].any() != is_exact


def test_stretching_is_plain_bilinear():
    frames = torch.rand(1, 3, 2, 20, 30, generator=seed())
    expected = F.interpolate(frames[0].transpose(0, 1), size=(10, 12), mode="bilinear").transpose(0, 1)
    assert torch.equal(resize_frames(frames, 10, 12, "stretch")[0], expected)
    assert not torch.equal(resize_frames(frames, 10, 12)[0], expected)
    with pytest.raises(ValueError, match="resize"):
        replaced(RefineOptions(), resize="squash")


# The base stage


@pytest.mark.parametrize("is_exact, expected", [(True, 31), (False, 30)])
def test_thirty_steps_are_31_evaluations_in_the_original(cascade, photo, is_exact, expected):
    steps = []
    cascade.base(
        "a dog",
        photo,
        num_inference_steps=30,
        num_frames=1,
        guidance_scale=1.0,
        output_type="latent",
        exact=is_exact,
        callback_on_step_end=lambda pipe, index, t, tensors: steps.append(pipe.num_timesteps),
    )
    assert steps == [expected] * expected
    assert cascade.base.scheduler.config.timestep_spacing == "trailing"


def test_the_base_stage_replays_the_original(cascade, photo, monkeypatch):
    golden = load_file(GOLDEN / "e2e_tiny" / "i2vgen_ddim_5.safetensors")
    golden = {k: v.float() if v.is_floating_point() else v for k, v in golden.items()}
    monkeypatch.setattr("i2vgen.pipelines.base.encode_images_clip", lambda *_: golden["image"])
    monkeypatch.setattr("i2vgen.pipelines.base.encode_pixels", lambda *_: golden["local_image"][:, :, :1])
    cascade.base.unet = golden_unet("vgen_i2vgen_xl")
    cascade.base.vae_scale_factor = 8
    cascade.base.scheduler = I2VGenDDIMScheduler(timestep_spacing="trailing", final_alpha_cumprod="one")
    states = []
    settings = {
        "height": 64,
        "width": 128,
        "num_frames": 4,
        "num_inference_steps": 5,
        "guidance_scale": 9.0,
        "target_fps": int(golden["fps"]),
        "prompt_embeds": golden["y_cond"],
        "negative_prompt_embeds": golden["y_uncond"],
        "latents": golden["x_T"],
        "output_type": "latent",
    }
    final = cascade.base(
        None,
        photo,
        exact=True,
        callback_on_step_end=lambda pipe, index, t, tensors: states.append((int(t), tensors["latents"])),
        **settings,
    ).frames
    assert [t for t, _ in states] == golden["t"][:, 0].tolist()
    for (_, state), expected in zip(states, golden["x"][1:], strict=True):
        assert relative(state, expected) < 1e-3
    assert relative(final, golden["final"]) < 1e-3
    assert relative(cascade.base(None, photo, **settings).frames, golden["final"]) > 1e-2


def test_negative_prompt_of_the_original(cascade, photo, monkeypatch):
    seen = []

    def remember(tokenizer, text_encoder, prompts, clip_skip, pad):
        seen.append((prompts, pad))
        return encode_prompts(tokenizer, text_encoder, prompts, clip_skip, pad)

    monkeypatch.setattr("i2vgen.pipelines.base.encode_prompts", remember)
    cascade.base("a dog", photo, exact=True, output_type="latent")
    cascade.base("a dog", photo, exact=True, negative_prompt="blurry", output_type="latent")
    cascade.base("a dog", photo, output_type="latent")
    assert seen[1::2] == [([VGEN_NEGATIVE_PROMPT], 0), (["blurry"], 0), ([""], None)]


def test_a_scheduler_that_cannot_do_it_is_named(cascade, photo):
    cascade.base.scheduler = DPMSolverMultistepScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match=r"final_alpha_cumprod|timestep_spacing"):
        cascade.base("a dog", photo, exact=True)


def test_pictures_are_truncated(cascade, photo, monkeypatch):
    monkeypatch.setattr("i2vgen.pipelines.base.decode_latents", lambda *_: torch.full((1, 3, 1, 64, 64), 0.2 / 127.5))
    for is_exact, expected in ((True, 127), (False, 128)):  # of 127.7
        picture = cascade.base("a dog", photo, num_frames=1, exact=is_exact).frames[0][0]
        assert np.unique(np.array(picture)).tolist() == [expected]


# The refiner


def test_the_refiner_starts_as_the_original_although_its_scheduler_does_not(cascade):
    refiner = cascade.refiner
    video = torch.linspace(-1, 1, 3 * 2 * 24 * 40).reshape(3, 2, 24, 40)
    refiner.scheduler = VideoRefineScheduler(exact_start=True)
    settings = {"output_type": "latent", "exact": True}
    expected = refiner("a bar", video, generator=seed(), **settings).frames
    refiner.scheduler = VideoRefineScheduler(exact_start=False)
    assert torch.equal(refiner("a bar", video, generator=seed(), **settings).frames, expected)
    refiner.options = dataclasses.replace(refiner.exact_options(refiner.options), exact_start=False)
    size = {"height": refiner.options.height, "width": refiner.options.width}
    other = refiner("a bar", video, generator=seed(), output_type="latent", **size).frames
    assert not torch.equal(other, expected)


def test_one_frame_is_refined_though_the_original_could_not(cascade):
    assert cascade.refiner("a bar", torch.zeros(3, 1, 24, 40), exact=True, output_type="pt").frames.shape[1] == 1


# The cascade and the command line


def test_the_cascade_has_the_sizes_of_the_models(cascade, photo):
    result = cascade(photo, "a dog", exact=True)
    settings = result.settings[0]
    assert settings["exact"]
    assert settings["base"]["text_pad_token_id"] == 0
    assert (settings["base"]["width"], settings["base"]["height"]) == (
        TINY_BASE_DEFAULTS["width"],
        TINY_BASE_DEFAULTS["height"],
    )
    assert (settings["refine"]["width"], settings["refine"]["height"]) == (
        TINY_REFINE_DEFAULTS["width"],
        TINY_REFINE_DEFAULTS["height"],
    )
    assert settings["negative_prompt"] == VGEN_NEGATIVE_PROMPT
    default = cascade(photo, "a dog")
    assert not default.settings[0]["exact"]
    assert default.settings[0]["base"]["width"] != TINY_BASE_DEFAULTS["width"]


def test_again_repeats_an_exact_generation(run, generate, tmp_path):
    first = generate(tmp_path / "first.webp", "--exact", "--seed", "5")
    assert first.code == 0, first.err
    stored = read_settings(tmp_path / "first.webp")
    assert stored["exact"] is True
    assert run("again", tmp_path / "first.webp", "-o", tmp_path / "again.webp").code == 0
    frames, again = (load_video(tmp_path / name).frames for name in ("first.webp", "again.webp"))
    assert np.array_equal(frames, again)
    generate(tmp_path / "default.webp", "--seed", "5")
    assert load_video(tmp_path / "default.webp").frames.shape != frames.shape


def test_refine_and_again_exactly(run, clip, tmp_path, tiny_cascade_dir):
    settings = ("--model", tiny_cascade_dir, "--device", "cpu")
    first = run("refine", clip, "a bar", "-o", tmp_path / "first.webp", "--exact", "--json", *settings)
    assert first.code == 0, first.err
    options = json.loads(first.out)["settings"]["refine"]
    assert (options["resize"], options["width"], options["height"]) == ("stretch", 96, 96)
    assert run("again", tmp_path / "first.webp", "-o", tmp_path / "again.webp").code == 0
    frames, again = (load_video(tmp_path / name).frames for name in ("first.webp", "again.webp"))
    assert frames.shape[1:3] == (96, 96)
    assert np.array_equal(frames, again)


def test_preview_leads_on_to_the_same_exact_video(run, photo_path, tmp_path, tiny_cascade_dir):
    result = run(
        "preview",
        photo_path,
        "a dog",
        "-o",
        tmp_path / "previews",
        "--seeds",
        1,
        "--exact",
        "--json",
        "--model",
        tiny_cascade_dir,
        "--device",
        "cpu",
    )
    assert result.code == 0, result.err
    assert " --exact" in json.loads(result.out)["next"]


def test_altered_settings_are_named(run, tmp_path, generate):
    generate(tmp_path / "first.webp", "--no-refine")
    settings = read_settings(tmp_path / "first.webp") | {"exact": "yes"}
    write_video(tmp_path / "altered.webp", load_video(tmp_path / "first.webp").frames, 8, settings=settings)
    result = run("again", tmp_path / "altered.webp", "-o", tmp_path / "again.webp")
    assert result.code == 2
    assert "exact" in result.err

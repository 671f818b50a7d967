"""The family's variants: their figures, sr600's inversion, image2video without text, refiners of diffusers."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet3DConditionModel
from PIL import ImageOps
from safetensors.torch import load_file

from conftest import TINY_UNET, seeded, tiny_towers, tiny_unet
from golden_recipe import GOLDEN, REFINER, golden_unet
from golden_samplers import perfect_velocity, relative
from i2vgen.checkpoints.variants import VARIANTS, variant_defaults
from i2vgen.pipelines import BaseOptions, I2VGenXLPipeline, RefineOptions, VideoRefinePipeline
from i2vgen.pipelines.start import count_refine, inversion_pairs, inversion_scheduler
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler
from i2vgen.schedulers.ddim import fields_of_diffusers


def tiny_kl(seed: int = 6) -> AutoencoderKL:
    """8 pixels a latent, as Stable Diffusion's."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return seeded(
        lambda: AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4), seed
    )


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict:
    return tiny_towers(tmp_path_factory.mktemp("towers") / "tokenizer")


def refiner(towers, unet, scheduler, **defaults) -> VideoRefinePipeline:
    text = {name: towers[name] for name in ("text_encoder", "tokenizer")}
    pipe = VideoRefinePipeline(vae=tiny_kl(), **text, unet=unet, scheduler=scheduler, refine_defaults=defaults)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(num_frames: int = 4, height: int = 80, width: int = 128) -> torch.Tensor:
    """(3 f h w) in [-1, 1]: a slope that moves."""
    slope = torch.linspace(-0.8, 0.8, width).expand(3, height, width)
    return torch.stack([slope.roll(5 * f, -1) for f in range(num_frames)], dim=1)


# Figures


@pytest.mark.parametrize("name", VARIANTS)
def test_defaults_are_options_and_fields_of_the_scheduler(name):
    defaults, fields = variant_defaults(name)
    is_base = "num_frames" in defaults
    (BaseOptions if is_base else RefineOptions)(**defaults)
    scheduler = (I2VGenDDIMScheduler if is_base else VideoRefineScheduler)(**fields)
    assert all(scheduler.config[field] == value for field, value in fields.items())
    defaults["height"] = fields["solver"] = None
    assert variant_defaults(name)[0]["height"] is not None


def test_solver_mode_of_vid2vid():
    assert variant_defaults("vid2vid-xl")[1]["solver"] == "dpmpp_2m_sde"
    defaults, fields = variant_defaults("vid2vid-xl", "normal")
    assert (defaults["num_inference_steps"], fields["solver"]) == (50, "heun")
    with pytest.raises(ValueError, match=r"vid2vid.*sr600"):
        variant_defaults("vid2vid")


# sr600


def test_sr600_through_the_pipeline_replays_the_original(towers, monkeypatch):
    golden = {k: v.float() for k, v in load_file(GOLDEN / "e2e_tiny" / "sr600_inv4_sample5.safetensors").items()}
    noises, states = iter(golden["sde_noise"]), []
    prompts = []

    def encode_prompts(tokenizer, text_encoder, texts, clip_skip, pad, added):
        prompts.append((texts, added, clip_skip, pad))
        return golden["y_cond" if len(prompts) == 1 else "y_uncond"]

    monkeypatch.setattr("i2vgen.pipelines.refine.encode_prompts", encode_prompts)
    monkeypatch.setattr("i2vgen.pipelines.refine.encode_pixels", lambda *_: golden["x0"])
    monkeypatch.setattr("i2vgen.schedulers.refine.step_noise", lambda *_: next(noises))
    defaults, fields = variant_defaults("sr600")
    defaults |= {"height": 80, "width": 128, "num_inference_steps": 5, "inversion_steps": 4}
    pipe = refiner(towers, golden_unet("vgen_sr600"), VideoRefineScheduler(**fields), **defaults)

    def follow(pipeline, step, t, tensors):
        states.append((int(t), tensors["latents"]))

    final = pipe("a cat", video(), exact=True, output_type="latent", callback_on_step_end=follow).frames
    expected_timesteps = [*golden["inversion_t"][:, 0].tolist(), *golden["t"][:, 0].tolist()]
    assert [t for t, _ in states] == expected_timesteps
    assert pipe.num_timesteps == len(states) == 9
    assert relative(states[3][1], golden["inverted"]) < 1e-3
    assert relative(final, golden["final"]) < 1e-3
    assert prompts[0][0] == ["a cat"]
    assert prompts[0][1].startswith("cinematic, High Contrast")
    assert prompts[1][0][0].startswith("worst quality")
    assert prompts[1][1] == ""
    assert {(skip, pad) for *_, skip, pad in prompts} == {(1, 0)}


def test_thirty_steps_to_699_are_31_evaluations():
    options = RefineOptions(**variant_defaults("sr600")[0])
    pairs = inversion_pairs(options, options.refine_timestep)
    assert len(pairs) == 31
    assert (pairs[0], pairs[-1]) == ((0, 23), (690, 699))
    assert count_refine(VideoRefineScheduler(), options, 699, 0.7) == (31, 30)
    assert inversion_pairs(RefineOptions(), 599) == []


@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
def test_inversion_and_sampling_with_a_perfect_model_return_the_input(towers, monkeypatch, guidance_scale):
    """In windows too. The model knows x_0, and the schedule of each phase."""
    defaults = variant_defaults("sr600")[0] | {"window_frames": 4, "window_overlap": 2, "guidance_rescale": 0.0}
    pipe = refiner(towers, tiny_unet(3, **REFINER), VideoRefineScheduler(start_timestep=699), **defaults)
    clean, calls = [], []
    inverter = inversion_scheduler()
    encode = sys.modules["i2vgen.pipelines.refine"].encode_pixels

    def remember(*arguments):
        clean.append(encode(*arguments))
        return clean[0]

    def predict(latents, t, windows, conditions):
        calls.append(len(windows))
        is_inversion = len(calls) <= 5
        return perfect_velocity(inverter if is_inversion else pipe.scheduler, clean[0], latents, max(1, int(t)))

    monkeypatch.setattr("i2vgen.pipelines.refine.encode_pixels", remember)
    monkeypatch.setattr(pipe, "_predict", predict)
    pipe.options = dataclasses.replace(pipe.options, inversion_steps=5)
    result = pipe(
        "", video(6, 16, 32), 80, 128, num_inference_steps=3, guidance_scale=guidance_scale, output_type="latent"
    ).frames
    torch.testing.assert_close(result, clean[0], atol=1e-3, rtol=1e-3)
    assert set(calls) == {2}


def test_an_inverted_start_draws_no_noise_and_its_evaluations_count(towers, monkeypatch):
    scheduler = VideoRefineScheduler(solver="dpmpp_2m", start_timestep=699)
    pipe = refiner(towers, tiny_unet(3, **REFINER), scheduler, **variant_defaults("sr600")[0])
    latents = torch.randn(1, 4, 2, 10, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("i2vgen.pipelines.refine.encode_pixels", lambda *_: latents)

    def refine(seed, steps, progress=None):
        pipe.options = dataclasses.replace(pipe.options, inversion_steps=steps)
        return pipe(
            "x",
            video(2),
            80,
            64,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=progress,
        ).frames

    assert torch.equal(refine(0, 3), refine(1, 3))
    assert not torch.equal(refine(0, 0), refine(1, 0))
    progress = []
    refine(0, 3, lambda pipe, index, t, tensors: progress.append((index, int(t), pipe.num_timesteps)))
    assert [index for index, _, _ in progress] == list(range(6))
    assert [t for _, t, _ in progress][:4] == [0, 233, 466, 699]
    assert {total for _, _, total in progress} == {6}


# image2video


def test_image2video_needs_no_text_and_starts_from_offset_noise(towers, photo):
    defaults, fields = variant_defaults("image2video")
    defaults |= {"height": 64, "width": 128, "num_inference_steps": 2, "num_frames": 5}
    vision = {name: towers[name] for name in ("image_encoder", "feature_extractor")}
    pipe = I2VGenXLPipeline(
        vae=tiny_kl(),
        text_encoder=None,
        tokenizer=None,
        **vision,
        unet=tiny_unet(8, use_image_latents=False),
        scheduler=I2VGenDDIMScheduler(**fields),
        base_defaults=defaults,
    )
    pipe.set_progress_bar_config(disable=True)

    def generate(image=photo, **settings):
        settings = {"generator": torch.Generator().manual_seed(3), "output_type": "latent", **settings}
        return pipe(image=image, **settings).frames

    result = generate()
    assert result.shape == (1, 4, 5, 8, 16)
    generator = torch.Generator().manual_seed(3)  # nothing else is drawn before it, as in the original
    noise = torch.randn(1, 4, 5, 8, 16, generator=generator)
    offset = torch.randn(1, 4, 5, 1, 1, generator=generator)
    torch.testing.assert_close(generate(latents=noise + 0.1 * offset), result)
    assert relative(generate(latents=noise), result) > 1e-3
    assert relative(generate(ImageOps.flip(photo)), result) > 1e-4
    assert relative(generate(target_fps=24), result) > 1e-5
    assert not torch.equal(generate(guidance_scale=1.0), result)


def test_image2video_through_the_pipeline_replays_the_original(towers, monkeypatch, photo):
    golden = load_file(GOLDEN / "e2e_tiny" / "img2vid_ddim_5.safetensors")
    monkeypatch.setattr("i2vgen.pipelines.base.encode_images_clip", lambda *_: golden["y"].float())
    defaults, fields = variant_defaults("image2video")
    defaults |= {"height": 64, "width": 128, "num_inference_steps": 5, "num_frames": 4}
    parts = {"vae": tiny_kl(), "text_encoder": None, "tokenizer": None, "image_encoder": None}
    pipe = I2VGenXLPipeline(
        **parts,
        feature_extractor=None,
        unet=golden_unet("modelscope_img2vid"),
        scheduler=I2VGenDDIMScheduler(**fields),
        base_defaults=defaults | {"target_fps": int(golden["fps"])},
    )
    pipe.set_progress_bar_config(disable=True)
    final = pipe(image=photo, latents=golden["x_T"].float(), exact=True, output_type="latent").frames
    assert relative(final, golden["final"]) < 1e-3


# Refiners of diffusers


def test_ddim_of_diffusers_means_the_same():
    for settings in (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing", "steps_offset": 1},
    ):
        theirs = DDIMScheduler(clip_sample=False, **settings)
        ours = I2VGenDDIMScheduler(**fields_of_diffusers(settings, is_base=False))
        theirs.set_timesteps(10)
        ours.set_timesteps(10)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
        expected = x = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in ours.timesteps:
            x = ours.step(0.3 * x.sin(), t, x).prev_sample
            expected = theirs.step(0.3 * expected.sin(), t, expected).prev_sample
        assert relative(x, expected) < 1e-4
    with pytest.raises(ValueError, match="beta_schedule"):
        fields_of_diffusers({}, is_base=False)
    assert fields_of_diffusers({"beta_schedule": "scaled_linear"}, is_base=True)["final_alpha_cumprod"] == "first"


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler", "ours"])
@pytest.mark.parametrize("strength", [0.6, 0.31])
def test_it_equals_the_pipeline_of_diffusers(towers, monkeypatch, kind, strength):
    """The same weights, video and noise through diffusers' VideoToVideoSDPipeline, laid out as zeroscope_v2_XL is."""
    theirs_module = video_to_video_module()
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }
    make = DPMSolverMultistepScheduler if kind.startswith("DPM") else DDIMScheduler
    scheduler = make.from_config(config)
    unet = seeded(lambda: UNet3DConditionModel(**TINY_UNET), 11)
    ours_unet = tiny_unet(0, **{**REFINER, "has_odd_height": False})
    ours_unet.load_state_dict(unet.state_dict())
    ours_scheduler = make.from_config(config)
    if kind == "ours":
        ours_scheduler = I2VGenDDIMScheduler(**fields_of_diffusers(config, is_base=False))
    ours = refiner(towers, ours_unet, ours_scheduler, **variant_defaults("diffusers-video-to-video")[0])
    text = {name: towers[name] for name in ("text_encoder", "tokenizer")}
    theirs = theirs_module.VideoToVideoSDPipeline(vae=ours.vae, **text, unet=unet, scheduler=scheduler)
    theirs.set_progress_bar_config(disable=True)

    def frame_major(shape, generator=None, device=None, dtype=None):
        """Noise (f c h w) with the numbers that ours draws as (c f h w)."""
        f, c, h, w = shape
        return torch.randn(c, f, h, w, generator=generator).transpose(0, 1)

    monkeypatch.setattr(theirs_module, "randn_tensor", frame_major)
    settings = {"num_inference_steps": 6, "guidance_scale": 15.0, "negative_prompt": "blurry", "output_type": "latent"}
    frames = video(3, 48, 64)
    expected = theirs(
        "a dog runs",
        frames.transpose(0, 1).add(1).div(2)[None],
        strength=strength,
        generator=torch.Generator().manual_seed(2),
        **settings,
    ).frames
    steps = []
    result = ours(
        "a dog runs",
        frames,
        48,
        64,
        refine_strength=strength,
        generator=torch.Generator().manual_seed(2),
        callback_on_step_end=lambda *step: steps.append(step),
        **settings,
    ).frames
    assert len(steps) == ours.num_timesteps == int(6 * strength)
    assert relative(result, expected) < 1e-4


def video_to_video_module():
    try:
        from diffusers.pipelines.text_to_video_synthesis import pipeline_text_to_video_synth_img2img as module
    except ImportError:  # its place since it is deprecated
        from diffusers.pipelines.deprecated.text_to_video_synthesis import (
            pipeline_text_to_video_synth_img2img as module,
        )
    return module

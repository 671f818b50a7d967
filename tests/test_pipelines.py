"""The base pipeline: what the seed governs, batches, arguments, outputs, and folders from the hub."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet
from PIL import Image, ImageOps

from conftest import tiny_unet
from i2vgen.models.conditioning import with_frame_planes
from i2vgen.pipelines import I2VGenXLPipeline, NonFiniteError
from i2vgen.pipelines.conditioning import encode_prompts

DIFFUSERS_PARAMETERS = [
    "prompt",
    "image",
    "height",
    "width",
    "target_fps",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "eta",
    "num_videos_per_prompt",
    "decode_chunk_size",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "output_type",
    "return_dict",
    "cross_attention_kwargs",
    "clip_skip",
]


@pytest.fixture(scope="module")
def base(tiny_cascade) -> I2VGenXLPipeline:
    return tiny_cascade.base


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def run(pipe, image, prompt="a dog runs", seeds=0, **kwargs):
    generator = [seed(s) for s in seeds] if isinstance(seeds, list) else seed(seeds)
    kwargs = {"output_type": "pt", "generator": generator, **kwargs}
    return pipe(prompt=prompt, image=image, **kwargs).frames


def assert_near(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# What the seed governs


def test_same_seed_gives_identical_frames_and_another_seed_others(base, photo):
    first, again, other = run(base, photo, seeds=3), run(base, photo, seeds=3), run(base, photo, seeds=4)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_global_random_state_neither_matters_nor_changes(base, photo):
    torch.manual_seed(1)
    first = run(base, photo, eta=1.0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = run(base, photo, eta=1.0)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_governs_the_sample_of_the_image(base, photo):
    """With the starting noise given and eta 0, only the VAE's posterior is left to the seed."""
    latents = torch.randn(1, 4, 4, 8, 8, generator=seed(0))
    first, again, other = (run(base, photo, seeds=s, latents=latents) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_video_is_the_same_alone_and_in_a_batch(base, photo, eta):
    prompts, images = ["a dog runs", "waves at sunset"], [photo, ImageOps.mirror(photo)]
    together = run(base, images, prompts, [5, 6], eta=eta)
    for i in range(2):
        assert_near(run(base, images[i], prompts[i], [5 + i], eta=eta)[0], together[i])


def test_decoding_in_chunks_equals_whole(base, photo):
    assert_near(run(base, photo, decode_chunk_size=3), run(base, photo, decode_chunk_size=4), 1e-5)


def test_no_generator_follows_the_global_seed(base, photo):
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(run(base, photo, generator=None, eta=1.0))
    assert torch.equal(*results)


# Sizes, lengths, batches


@pytest.mark.parametrize(("height", "width", "num_frames"), [(64, 64, 1), (96, 48, 3), (32, 80, 2)])
def test_sizes_and_lengths(base, photo, height, width, num_frames):
    frames = run(base, photo, height=height, width=width, num_frames=num_frames)
    assert frames.shape == (1, num_frames, 3, height, width)
    assert frames.min() >= 0
    assert frames.max() <= 1


def test_size_that_does_not_fit_names_the_nearest(base, photo):
    with pytest.raises(ValueError, match=r"70x64.*nearest valid 64x64"):
        run(base, photo, width=70)


def test_fit_pad_shows_another_picture_than_crop(base, photo):
    assert (run(base, photo, fit="pad") - run(base, photo, fit="crop")).abs().max() > 1e-3


def test_several_prompts_share_one_image_and_several_images_one_prompt(base, photo):
    prompts = run(base, photo, ["a dog runs", "snow falls"], [1, 1])
    assert prompts.shape[0] == 2
    assert (prompts[0] - prompts[1]).abs().max() > 1e-4
    images = run(base, [photo, ImageOps.flip(photo)], "a dog runs", [1, 1])
    assert_near(images[0], prompts[0])
    assert (images[0] - images[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": ["a", "b"], "image": 3},
        {"prompt": ["a", "b"], "negative_prompt": ["c", "d", "e"]},
        {"prompt": ["a", "b"], "generator": [None]},
        {"image": 0},
    ],
)
def test_counts_that_disagree_raise(base, photo, arguments):
    number = arguments.pop("image", None)
    with pytest.raises(ValueError, match=r"prompt|generator|image"):
        run(base, photo if number is None else [photo] * number, **arguments)


def test_several_videos_for_a_prompt(base, photo):
    videos = run(base, photo, ["a dog runs", "snow falls"], [1, 2, 3, 4], num_videos_per_prompt=2)
    assert videos.shape[0] == 4
    assert_near(videos[1], run(base, photo, "a dog runs", [2])[0])
    assert_near(videos[2], run(base, photo, "snow falls", [3])[0])


def test_one_generator_for_two_videos_gives_two_videos(base, photo):
    first, second = run(base, photo, num_videos_per_prompt=2)
    assert (first - second).abs().max() > 0.01


def test_a_batch_of_images_as_one_tensor(base, photo):
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    videos = run(base, torch.stack([pixels, pixels]), "a dog runs", [1, 2])
    assert_near(videos[1], run(base, photo, "a dog runs", [2])[0])


# Tensors given and taken


def test_starting_latents_and_embeddings_may_be_given(base, photo):
    embeds = encode_prompts(base.tokenizer, base.text_encoder, ["a dog runs", ""])
    given = {"prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:]}
    assert_near(run(base, photo, None, **given), run(base, photo, "a dog runs"), 1e-5)
    latents = torch.randn(1, 4, 4, 8, 8, generator=seed(9))
    assert (run(base, photo, latents=latents) - run(base, photo, latents=-latents)).abs().max() > 0.01


@pytest.mark.parametrize(
    "name, shape",
    [("latents", (1, 4, 4, 8, 6)), ("prompt_embeds", (1, 16, 31)), ("negative_prompt_embeds", (3, 16, 32))],
)
def test_tensor_of_a_wrong_shape_is_named(base, photo, name, shape):
    given = {name: torch.zeros(shape)}
    if name != "latents":
        given = {"prompt": None, "prompt_embeds": torch.zeros(2, 16, 32), **given}
    with pytest.raises(ValueError, match=name):
        run(base, photo, **given)


def test_guidance_of_one_needs_no_negative_prompt(base, photo):
    plain, other = (run(base, photo, guidance_scale=1.0, negative_prompt=n) for n in ("", "snow"))
    assert torch.equal(plain, other)
    assert not torch.equal(*(run(base, photo, negative_prompt=n) for n in ("", "snow")))


def test_output_types_hold_the_same_video(base, photo):
    tensor = run(base, photo)
    array = run(base, photo, output_type="np")
    pictures = run(base, photo, output_type="pil")
    latents = run(base, photo, output_type="latent")
    np.testing.assert_array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert [type(p) for p in pictures[0]] == [Image.Image] * 4
    np.testing.assert_allclose(np.asarray(pictures[0][2]) / 255, array[0, 2], atol=0.5 / 255 + 1e-6)
    assert latents.shape == (1, 4, 4, 8, 8)
    assert base(image=photo, output_type="latent", generator=seed(0), return_dict=False)[0].shape == latents.shape


def test_callback_sees_each_step_and_may_replace_latents(base, photo):
    seen = []

    def replace(pipe, step, timestep, tensors):
        seen.append((pipe is base, step, int(timestep), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else None

    names = ["latents", "prompt_embeds"]
    latents = run(
        base,
        photo,
        output_type="latent",
        callback_on_step_end=replace,
        callback_on_step_end_tensor_inputs=names,
    )
    assert seen == [(True, 0, 999, names), (True, 1, 499, names)]
    assert latents.abs().max() == 0
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        run(base, photo, callback_on_step_end=replace, callback_on_step_end_tensor_inputs=["velocity"])


def test_long_prompt_is_cut_with_a_warning(base, photo, caplog):
    with caplog.at_level(logging.WARNING):
        run(base, photo, "a dog runs over the grass " * 5)
    assert "cut off" in caplog.text


# Wrong arguments


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_frames", 0),
        ("num_frames", -3),
        ("num_inference_steps", 0),
        ("num_inference_steps", 2.5),
        ("height", 0),
        ("target_fps", -1),
        ("decode_chunk_size", 0),
        ("num_videos_per_prompt", 0),
        ("guidance_scale", float("nan")),
        ("guidance_rescale", 2.0),
        ("eta", float("nan")),
        ("output_type", "gif"),
        ("fit", "stretch"),
        ("clip_skip", 9),
        ("cross_attention_kwargs", {"scale": 0.5}),
        ("prompt_embeds", torch.zeros(1, 16, 32)),
        ("prompt", 5),
    ],
)
def test_bad_argument_is_named(base, photo, name, value):
    with pytest.raises(ValueError, match=name):
        run(base, photo, **{name: value})


def test_image_must_be_given_and_finite(base):
    with pytest.raises(ValueError, match="image"):
        run(base, None)
    with pytest.raises(ValueError, match=r"image.*NaN"):
        run(base, torch.full((3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match=r"image.*nowhere\.png"):
        run(base, "nowhere.png")


@pytest.mark.parametrize(
    "part, stage",
    [
        ("unet.conv_out", "base stage"),
        ("vae.encoder.1", "encoding of the image"),
        ("vae.decoder.0", "decoding"),
    ],
)
def test_numbers_that_blow_up_name_the_stage(cascade, photo, part, stage):
    component, _, inner = part.partition(".")
    torch.nn.init.constant_(getattr(cascade.base, component).get_submodule(inner).weight, float("nan"))
    with pytest.raises(NonFiniteError, match=stage):
        run(cascade.base, photo)


# Others' parts


def test_call_has_all_parameters_that_diffusers_had():
    parameters = list(inspect.signature(I2VGenXLPipeline.__call__).parameters)[1:]
    assert parameters[: len(DIFFUSERS_PARAMETERS)] == DIFFUSERS_PARAMETERS


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_schedulers_of_diffusers_serve_too(cascade, photo, kind):
    cascade.base.scheduler = kind(prediction_type="v_prediction")
    first, again = run(cascade.base, photo), run(cascade.base, photo)
    assert torch.equal(first, again)


def test_image_only_model_runs_without_a_text_tower(cascade, photo):
    parts = {**cascade.base.components, "text_encoder": None, "tokenizer": None}
    parts["unet"] = tiny_unet(8, use_image_latents=False)
    pipe = I2VGenXLPipeline(**parts, base_defaults={**cascade.base.config.base_defaults, "offset_noise": 0.1})
    pipe.set_progress_bar_config(disable=True)
    assert run(pipe, photo, None).shape == (1, 4, 3, 64, 64)
    assert not torch.equal(run(pipe, photo, None), run(pipe, ImageOps.flip(photo), None))
    with pytest.raises(ValueError, match="no text encoder"):
        run(pipe, photo, "a dog")


def test_hub_folder_runs_with_the_documented_call(tiny_xl_dir, photo):
    pipe = I2VGenXLPipeline.from_pretrained(tiny_xl_dir, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.image_latents_scale == 2.0
    assert pipe.options.num_inference_steps == 50
    frames = pipe(
        prompt="Papers were floating in the air on a table in the library",
        image=photo,
        num_inference_steps=1,
        negative_prompt="blurry",
        guidance_scale=9.0,
        decode_chunk_size=1,
        generator=torch.manual_seed(8888),
        height=64,
        width=64,
    ).frames[0]
    assert len(frames) == 16
    assert frames[0].size == (64, 64)


class DiffusersUNet:
    """diffusers' own UNet behind the two calls that the pipeline makes."""

    def __init__(self, unet: DiffusersI2VGenXLUNet):
        self.unet, self.dtype = unet, unet.dtype
        self.config = FrozenDict({**unet.config, "use_motion_prior": False, "use_image_latents": True})

    def encode_conditions(self, num_frames, prompt_embeds, image_embeddings, image_latents, fps, moved=None):
        return {
            "encoder_hidden_states": prompt_embeds,
            "image_embeddings": image_embeddings,
            "image_latents": with_frame_planes(image_latents, num_frames),
            "fps": fps,
        }

    def __call__(self, sample, t, conditions):
        return self.unet(sample, t, **conditions)


def test_hub_folder_with_content_added_once_equals_the_unet_of_diffusers(tiny_xl_dir, photo):
    pipe = I2VGenXLPipeline.from_pretrained(tiny_xl_dir)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "num_frames": 3, "output_type": "latent"}
    doubled = run(pipe, photo, **settings)
    pipe.unet.register_to_config(image_latents_scale=1.0)
    once = run(pipe, photo, **settings)
    pipe.unet = DiffusersUNet(DiffusersI2VGenXLUNet.from_pretrained(tiny_xl_dir / "unet"))
    assert_near(once, run(pipe, photo, **settings), 1e-3)
    assert (doubled - once).abs().max() > 0.01

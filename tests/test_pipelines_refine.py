"""The refinement pipeline: windows, sizes, strength, the seed, and wrong arguments."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY_REFINE_DEFAULTS, tiny_unet
from golden_recipe import REFINER
from i2vgen.models.unet import UNetOutput
from i2vgen.pipelines import NonFiniteError, VideoRefinePipeline
from i2vgen.pipelines.refine import frame_windows, resize_frames, size_like


@pytest.fixture(scope="module")
def refiner(tiny_cascade) -> VideoRefinePipeline:
    return tiny_cascade.refiner


@pytest.fixture
def text_refiner(tiny_cascade) -> VideoRefinePipeline:
    """As the released ones: text alone, odd heights. Windows of 8 frames."""
    defaults = {**TINY_REFINE_DEFAULTS, "window_frames": 8, "window_overlap": 3, "num_inference_steps": 1}
    parts = {n: getattr(tiny_cascade.refiner, n) for n in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = VideoRefinePipeline(**parts, unet=tiny_unet(9, **REFINER), refine_defaults=defaults)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(num_frames: int = 3, height: int = 24, width: int = 40) -> torch.Tensor:
    """(3 f h w) in [-1, 1]: a bar that moves over a slope."""
    frames = torch.linspace(-1, 1, width).expand(3, num_frames, height, width).clone()
    for f in range(num_frames):
        frames[:, f, :, (3 * f) % width : (3 * f) % width + 6] = 0.9
    return frames


def run(pipe, source, prompt="a bar", seeds=0, **kwargs):
    seeds = [torch.Generator().manual_seed(s) for s in (seeds if isinstance(seeds, list) else [seeds])]
    settings = {"generator": seeds, "output_type": "pt", "height": 32, "width": 48}
    return pipe(prompt, source, **{**settings, **kwargs}).frames


def test_seed_governs_all_and_batches_change_nothing(refiner):
    together = run(refiner, torch.stack([video(), -video()]), ["a bar", "a wall"], [1, 2])
    before = torch.get_rng_state()
    alone = run(refiner, -video(), "a wall", [2])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(alone, run(refiner, -video(), "a wall", [2]))
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=0)
    assert (alone - run(refiner, -video(), "a wall", [3])).abs().max() > 1e-3


def test_words_of_the_model_are_cut_in_silence_and_those_of_the_user_are_not(text_refiner, caplog):
    positive = "cinematic, hyper detailed photo, ultra HD"
    text_refiner.options = replace(text_refiner.options, positive_prompt=positive)
    long = run(text_refiner, video(), "a dog runs")
    assert not caplog.records
    text_refiner.options = replace(text_refiner.options, positive_prompt="")
    assert not torch.equal(long, run(text_refiner, video(), "a dog runs"))  # they were shown to the model
    text_refiner.options = replace(text_refiner.options, positive_prompt=positive)
    run(text_refiner, video(), "a dog runs over the grass and waves at the sunset and at the snow")
    (record,) = caplog.records
    assert "the snow" in record.getMessage()
    assert "cinematic" not in record.getMessage()


def test_without_generator_the_global_seed_is_followed(refiner):
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(run(refiner, video(), generator=None))
    assert torch.equal(*results)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 33, 47), (5, 50, 26), (40, 18, 30)])
def test_any_size_and_length(text_refiner, num_frames, height, width):
    frames = run(text_refiner, video(num_frames), height=height, width=width)
    assert frames.shape == (1, num_frames, 3, height, width)
    assert torch.isfinite(frames).all()


def test_portrait_with_the_image_given(refiner, photo):
    seen = run(refiner, video(2, 40, 24), image=photo, height=50, width=30)
    assert seen.shape == (1, 2, 3, 50, 30)
    assert (seen - run(refiner, video(2, 40, 24), height=50, width=30)).abs().max() > 1e-4


def test_size_left_open_follows_the_video(refiner):
    assert size_like(video()[None], None, None, 96 * 160) == (96, 160)
    assert size_like(video()[None], 48, None, 1) == (48, 80)
    assert size_like(video()[None], None, 81, 1) == (48, 81)
    frames = run(refiner, video(1), height=None, width=None)
    assert frames.shape[-1] > frames.shape[-2]
    assert abs(frames.shape[-1] * frames.shape[-2] / 96**2 - 1) < 0.05


def test_sources_of_a_video_are_alike(refiner):
    pixels = ((video().permute(1, 2, 3, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    tensor = torch.from_numpy(pixels).permute(3, 0, 1, 2) / 127.5 - 1
    expected = run(refiner, tensor)
    for source in (pixels, [Image.fromarray(p) for p in pixels], tensor[None], [tensor]):
        torch.testing.assert_close(run(refiner, source), expected, atol=1e-5, rtol=0)


def test_less_strength_keeps_more_of_the_video(text_refiner):
    source = resize_frames(video()[None], 32, 48)
    reference = text_refiner.vae.decode(text_refiner.vae.encode(source[0].transpose(0, 1)).latent_dist.mean)
    reference = reference.sample.clamp(-1, 1).add(1).div(2)
    far, near = (run(text_refiner, video(), refine_strength=s, num_inference_steps=4)[0] for s in (1.0, 0.01))
    assert (near - reference).abs().mean() < 0.7 * (far - reference).abs().mean()


def test_strength_of_six_tenths_is_the_default(text_refiner):
    assert torch.equal(run(text_refiner, video()), run(text_refiner, video(), refine_strength=0.6))
    assert not torch.equal(run(text_refiner, video()), run(text_refiner, video(), refine_strength=0.5))


def test_more_steps_than_levels_are_cut(text_refiner):
    assert run(text_refiner, video(1), refine_strength=0.004, num_inference_steps=30).shape[1] == 1


# Windows


@pytest.mark.parametrize("length, overlap", [(8, 3), (8, 0), (8, 7), (32, 8), (1, 0), (5, 4)])
def test_windows_cover_all_frames_and_share_the_overlap(length, overlap):
    for num_frames in range(1, 120):
        windows = frame_windows(num_frames, length, overlap)
        assert windows[0][0] == 0
        assert windows[-1][1] == num_frames
        assert all(stop - start == min(length, num_frames) for start, stop in windows)
        assert all(a[1] - b[0] >= overlap and a[0] < b[0] for a, b in pairwise(windows))


def test_overlap_as_long_as_the_window_is_an_error():
    with pytest.raises(ValueError, match="window_overlap"):
        frame_windows(20, 8, 8)


def test_windows_blend_to_the_whole_when_frames_do_not_depend_on_each_other(text_refiner, monkeypatch):
    def frame_by_frame(sample, t, conditions):
        calls.append(sample.shape[2])
        return UNetOutput(sample=0.4 * sample.sin())

    calls = []
    monkeypatch.setattr(text_refiner.unet, "forward", frame_by_frame)
    blended = run(text_refiner, video(20), num_inference_steps=3)
    assert set(calls) == {8}
    calls.clear()
    text_refiner.options = text_refiner.options.__class__(**{**vars(text_refiner.options), "window_frames": 20})
    whole = run(text_refiner, video(20), num_inference_steps=3)
    assert set(calls) == {20}
    torch.testing.assert_close(blended, whole, atol=1e-5, rtol=0)


def test_a_window_that_covers_all_equals_no_window(text_refiner):
    short = run(text_refiner, video(8))
    text_refiner.options = text_refiner.options.__class__(**{**vars(text_refiner.options), "window_frames": 100})
    assert torch.equal(short, run(text_refiner, video(8)))


# Wrong arguments


@pytest.mark.parametrize(
    "name, value",
    [
        ("height", 0),
        ("width", -8),
        ("num_inference_steps", 0),
        ("guidance_scale", float("nan")),
        ("refine_strength", 0),
        ("refine_strength", 1.2),
        ("refine_strength", float("nan")),
        ("target_fps", 0),
        ("output_type", "mp4"),
        ("negative_prompt", ["a", "b"]),
        ("prompt", 7),
    ],
)
def test_bad_argument_is_named(refiner, name, value):
    with pytest.raises(ValueError, match=name):
        run(refiner, video(1), **({"prompt": value} if name == "prompt" else {name: value}))


@pytest.mark.parametrize(
    "source",
    [
        video(1)[:2],
        video(1) * float("nan"),
        video(1) * 255,
        [video(1), video(2)],
        torch.zeros(3, 0, 8, 8),
    ],
)
def test_bad_video_is_named(refiner, source):
    with pytest.raises(ValueError, match="video"):
        run(refiner, source)


def test_numbers_that_blow_up_name_the_stage(cascade):
    torch.nn.init.constant_(cascade.refine_unet.conv_out.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="refinement stage"):
        run(cascade.refiner, video(1))


def test_saved_and_loaded_it_gives_the_same(text_refiner, tmp_path):
    text_refiner.save_pretrained(tmp_path)
    loaded = VideoRefinePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.options == text_refiner.options
    assert loaded.unet.config.has_odd_height
    assert torch.equal(run(loaded, video(1)), run(text_refiner, video(1)))

"""The cascade: both stages in one call, sizes and settings, its folders, and folders that cannot be used."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import ImageOps
from safetensors.torch import load_file, save_file

from i2vgen.pipelines import I2VGenXLPipeline, ModelError, VideoRefinePipeline, load_cascade
from i2vgen.pipelines.loading import parse_device, parse_dtype
from i2vgen.pipelines.options import replaced

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same_frames(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))


def test_same_seed_gives_identical_frames_and_settings(tiny_cascade, photo):
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        results.append(tiny_cascade(photo, "a dog runs", seed=5, keep_base=True))
    first, second = results
    assert same_frames(first, second)
    assert first.settings == second.settings
    assert first.frames[0].dtype == np.uint8
    assert first.frames[0].shape == (4, 96, 144, 3)
    assert first.base_frames[0].shape == (4, 64, 96, 3)
    assert first.fps == 8
    assert not same_frames(first, tiny_cascade(photo, "a dog runs", seed=6))
    assert not same_frames(first, tiny_cascade(photo, "snow falls", seed=5))


def test_settings_reproduce_the_video(tiny_cascade, photo):
    out = tiny_cascade(photo, "a dog", seed=3, num_frames=2, refine_strength=0.3, refine_steps=1, guidance_scale=3.0)
    settings = json.loads(json.dumps(out.settings[0]))
    assert settings["negative_prompt"] == ""
    again = tiny_cascade(
        photo,
        settings["prompt"],
        seed=settings["seed"],
        size=(settings["refine"]["width"], settings["refine"]["height"]),
        num_frames=settings["base"]["num_frames"],
        num_inference_steps=settings["base"]["num_inference_steps"],
        guidance_scale=settings["base"]["guidance_scale"],
        refine_steps=settings["refine"]["num_inference_steps"],
        refine_strength=settings["refine_strength"],
    )
    assert same_frames(out, again)


def test_a_video_is_the_same_alone_and_in_a_batch(tiny_cascade, photo):
    images, prompts = [photo, ImageOps.mirror(photo)], ["a dog runs", "snow falls"]
    together = tiny_cascade(images, prompts, seed=[1, 2], num_frames=2)
    for i in range(2):
        alone = tiny_cascade(images[i], prompts[i], seed=1 + i, num_frames=2)
        difference = np.abs(alone.frames[0].astype(int) - together.frames[i])
        assert difference.max() <= 1
        assert together.settings[i]["seed"] == 1 + i
        assert together.settings[i]["prompt"] == prompts[i]


def test_refiner_gets_what_the_base_stage_made_in_memory(tiny_cascade, photo, monkeypatch):
    given = {}
    original = VideoRefinePipeline.__call__

    def spy(self, **kwargs):
        given.update(kwargs)
        return original(self, **kwargs)

    monkeypatch.setattr(VideoRefinePipeline, "__call__", spy)
    out = tiny_cascade(photo, "a dog", seed=1, num_frames=2, refine_prompt="sharp")
    video = given["video"]
    decoded = tiny_cascade.vae.decode(out.base_latents[0].transpose(0, 1)).sample.clamp(-1, 1).transpose(0, 1)
    torch.testing.assert_close(video[0], decoded.detach(), atol=1e-5, rtol=0)  # float, never rounded to 8 bits
    assert given["prompt"] == "sharp"
    assert out.settings[0]["refine_prompt"] == "sharp"


def test_without_refinement_the_base_frames_are_the_result(tiny_cascade, photo):
    plain = tiny_cascade(photo, "a dog", seed=1, refine=False)
    both = tiny_cascade(photo, "a dog", seed=1, keep_base=True)
    np.testing.assert_array_equal(plain.frames[0], both.base_frames[0])
    assert plain.base_frames == [None]
    assert plain.settings[0]["refine"] is None


@pytest.mark.parametrize("size", [(50, 98), (101, 75), (96, 96)])
def test_size_of_the_result_may_be_anything(tiny_cascade, photo, size):
    out = tiny_cascade(photo, "a dog", size=size, num_frames=1, keep_base=True, fit="pad")
    assert out.frames[0].shape == (1, size[1], size[0], 3)
    height, width = out.base_frames[0].shape[1:3]
    assert min(height, width) == 64
    assert (height > width) == (size[1] > size[0])


@pytest.mark.parametrize(
    "image_size, base, final",
    [
        ((900, 600), (96, 64), (144, 96)),
        ((600, 900), (64, 96), (96, 144)),
        ((700, 700), (64, 64), (96, 96)),
        ((5000, 10), (112, 64), (168, 96)),
        ((10, 5000), (64, 112), (96, 168)),
    ],
)
def test_default_size_follows_the_picture(tiny_cascade, image_size, base, final):
    assert tiny_cascade.default_sizes(*image_size) == (base, final)


def test_default_size_goes_as_far_as_the_model_does(cascade):
    cascade.base.options = replaced(cascade.base.options, width=192)
    assert cascade.default_sizes(600, 300) == ((128, 64), (192, 96))
    assert cascade.default_sizes(5000, 10) == ((192, 64), (288, 96))
    assert cascade.default_sizes(10, 5000) == ((64, 192), (96, 288))


@pytest.mark.parametrize("is_refined", [True, False])
def test_asked_size_may_be_four_times_as_long_as_narrow(tiny_cascade, photo, is_refined):
    assert tiny_cascade.sizes_for(photo.size, (256, 64), is_refined) == ((256, 64), (256, 64))
    for size in ((272, 64), (64, 272)):
        with pytest.raises(ValueError, match=f"size {size[0]}x{size[1]}.*at most 4 times.*256"):
            tiny_cascade.sizes_for(photo.size, size, is_refined)


def test_progress_counts_both_stages(tiny_cascade, photo):
    seen = []
    tiny_cascade(photo, "a dog", num_frames=1, refine_steps=3, progress=lambda *a: seen.append(a))
    assert seen == [("base", 1, 2), ("base", 2, 2), ("refine", 1, 3), ("refine", 2, 3), ("refine", 3, 3)]


def test_releasing_stages_changes_nothing(cascade, photo):
    expected = cascade(photo, "a dog", seed=1, num_frames=2)
    cascade.release_stages = True
    for _ in range(2):
        assert same_frames(cascade(photo, "a dog", seed=1, num_frames=2), expected)


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_frames", 0),
        ("num_frames", -1),
        ("num_inference_steps", 0),
        ("refine_steps", 0),
        ("guidance_scale", float("nan")),
        ("refine_guidance_scale", -1.0),
        ("refine_strength", 0.0),
        ("target_fps", 0),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", []),
        ("size", (4, 96)),
        ("size", (96, 400)),
        ("fit", "stretch"),
        ("refine_prompt", ["a", "b", "c"]),
        ("image", torch.full((3, 8, 8), float("nan"))),
    ],
)
def test_bad_argument_is_named_before_any_work(tiny_cascade, photo, monkeypatch, name, value):
    monkeypatch.setattr(tiny_cascade.unet, "forward", lambda *a, **k: pytest.fail("the model ran"))
    arguments = {"image": photo, "prompt": ["a", "b"] if name == "refine_prompt" else "a dog", name: value}
    with pytest.raises(ValueError, match=name):
        tiny_cascade(**arguments)


def test_size_without_refinement_must_fit_the_base(tiny_cascade, photo):
    with pytest.raises(ValueError, match="nearest valid 80x64"):
        tiny_cascade(photo, size=(75, 64), refine=False)


# Folders


def test_saved_again_and_loaded_it_gives_the_same(tiny_cascade, photo, tmp_path):
    tiny_cascade.save_pretrained(tmp_path)
    loaded = load_cascade(tmp_path, device="cpu")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "I2VGenXLUNet"]
    assert loaded.base.options == tiny_cascade.base.options
    assert loaded.refiner.options == tiny_cascade.refiner.options
    assert same_frames(loaded(photo, "a dog", seed=1), tiny_cascade(photo, "a dog", seed=1))


def test_base_stage_alone_loads_from_a_cascade_folder(tiny_cascade_dir, tiny_cascade, photo):
    pipe = I2VGenXLPipeline.from_pretrained(tiny_cascade_dir)
    pipe.set_progress_bar_config(disable=True)
    settings = {"image": photo, "prompt": "a dog", "output_type": "pt"}
    frames = [p(**settings, generator=torch.Generator().manual_seed(1)).frames for p in (pipe, tiny_cascade.base)]
    assert torch.equal(*frames)


def test_folder_of_the_base_stage_is_a_cascade_without_refinement(tiny_xl_dir, photo):
    cascade = load_cascade(tiny_xl_dir, device="cpu")
    with pytest.raises(ValueError, match="refine=False"):
        cascade(photo, "a dog")
    out = cascade(photo, "a dog", refine=False, size=(64, 64), num_frames=2, num_inference_steps=1)
    assert out.frames[0].shape == (2, 64, 64, 3)


def test_loaded_in_bfloat16_it_runs(tiny_cascade_dir, photo):
    cascade = load_cascade(tiny_cascade_dir, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in cascade.refine_unet.parameters()} == {torch.bfloat16}
    out = cascade(photo, "a dog", num_frames=2)
    assert out.frames[0].shape == (2, 96, 144, 3)
    assert out.settings[0]["dtype"] == "bfloat16"


@pytest.fixture
def copied(tiny_cascade_dir, tmp_path):
    return shutil.copytree(tiny_cascade_dir, tmp_path / "copy")


@pytest.mark.parametrize("component", ["unet", "refine_unet", "vae", "tokenizer", "scheduler"])
def test_missing_component_is_named(copied, component):
    shutil.rmtree(copied / component)
    with pytest.raises(ModelError, match=f"'{component}'"):
        load_cascade(copied, device="cpu")


def test_component_that_the_index_does_not_name(copied):
    index = json.loads((copied / "model_index.json").read_text())
    index.pop("image_encoder")
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="'image_encoder'"):
        load_cascade(copied, device="cpu")


@pytest.mark.parametrize("change", ["another shape", "missing", "unexpected", "cut short"])
@pytest.mark.parametrize("component, key", [("refine_unet", "conv_in.weight"), ("vae", "analysis.weight")])
def test_weights_that_do_not_fit_are_named(copied, component, key, change):
    path = copied / component / WEIGHTS
    if change == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
        key = component
    else:
        state = load_file(path)
        value = state.pop(key)
        if change == "another shape":
            state[key] = value[:, :1].clone()
        elif change == "unexpected":
            state[key], state["surplus.weight"], key = value, value.clone(), "surplus.weight"
        save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"(?s){component}.*{re.escape(key)}" if change != "cut short" else component):
        load_cascade(copied, device="cpu")


def test_text_tower_of_another_shape_is_an_error(copied):
    path = copied / "text_encoder" / "model.safetensors"
    state = load_file(path)
    key = next(k for k in state if k.endswith("token_embedding.weight"))
    state[key] = state[key][:, :8].clone()
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="token_embedding"):
        load_cascade(copied, device="cpu")


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "nowhere"])
def test_unknown_folder_is_named(model):
    with pytest.raises(ModelError, match=re.escape(model)):
        load_cascade(model, device="cpu")


def test_hub_that_cannot_be_reached_is_a_model_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    for name in ("download", "load_config"):
        monkeypatch.setattr(DiffusionPipeline, name, refuse)
    with pytest.raises(ModelError, match="owner/name"):
        load_cascade("owner/name", device="cpu")


def test_folder_without_or_with_a_damaged_index(copied, tmp_path):
    (copied / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load_cascade(copied, device="cpu")
    (copied / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_cascade(copied, device="cpu")


@pytest.mark.parametrize("name", ["base_defaults", "refine_defaults"])
@pytest.mark.parametrize("key, said", [("hieght", "use height"), ("zzz", "use height or width or")])
def test_unknown_default_of_a_folder_is_named(copied, name, key, said):
    index = json.loads((copied / "model_index.json").read_text())
    index[name][key] = 64
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"{name}: unknown key '{key}'; {said}"):
        load_cascade(copied, device="cpu")


def test_devices_and_dtypes_by_name():
    assert parse_device("cpu").type == "cpu"
    assert parse_dtype("auto", torch.device("cpu")) == torch.float32
    assert parse_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(ValueError, match="gpu"):
        parse_device("gpu")
    with pytest.raises(ValueError, match="CUDA devices"):
        parse_device("cuda:99")
    with pytest.raises(ValueError, match="use float16"):
        parse_dtype("float-16", torch.device("cpu"))

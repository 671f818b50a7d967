"""Folders as ModelScope and VGen released them load as they are, and say what is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import save_file

from conftest import TINY_UNET, seeded
from i2vgen.checkpoints import CheckpointError
from i2vgen.checkpoints.components import plan, write_small_files
from i2vgen.checkpoints.folders import find_folder
from i2vgen.checkpoints.reading import open_tensors
from i2vgen.checkpoints.released import RELEASED
from i2vgen.checkpoints.tokenizer import clip_tokenizer
from i2vgen.pipelines import CascadePipeline, I2VGenXLPipeline, ModelError, VideoRefinePipeline, load_cascade
from i2vgen.pipelines.loading import folder_role
from i2vgen.train.tokenizer import train_tokenizer
from model_folders import (
    hub_folder,
    image2video_folder,
    tiny_image_tower,
    tiny_text_tower,
    tiny_unet,
    tiny_vae,
    vgen_folder,
    video2video_folder,
)

BUILDERS = {"image2video": image2video_folder, "vid2vid-xl": video2video_folder, "vgen": vgen_folder}
# folder, pipeline, source of its UNet, towers it has
LOADED = [
    ("image2video", I2VGenXLPipeline, "modelscope-image2video", {"image_encoder"}),
    ("vid2vid-xl", VideoRefinePipeline, "modelscope-vid2vid", {"text_encoder"}),
    ("vgen", I2VGenXLPipeline, "vgen-i2vgen-xl", {"text_encoder", "image_encoder"}),
    ("vgen", VideoRefinePipeline, "vgen-sr600", {"text_encoder"}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture
def copied(folders, tmp_path):
    """copied("vgen") -> a folder of its own that a test may damage; files are links, so replace, do not write."""

    def copy(name):
        return Path(shutil.copytree(folders[name], tmp_path / name, copy_function=os.link))

    return copy


def configure(folder, part=None, **entries):
    """Change configuration.json of a copied folder."""
    path = folder / "configuration.json"
    configuration = json.loads(path.read_text())
    (configuration["model"][part] if part else configuration).update(entries)
    path.unlink()
    path.write_text(json.dumps(configuration))


def same_weights(module, expected):
    found, wanted = module.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def fields(part):
    """Its configuration as JSON keeps it."""
    return json.loads(json.dumps({k: v for k, v in part.config.items() if not k.startswith("_")}))


def check_towers(pipeline, towers):
    same_weights(pipeline.vae, tiny_vae())
    for name, build in (("text_encoder", tiny_text_tower), ("image_encoder", tiny_image_tower)):
        assert (getattr(pipeline, name) is not None) == (name in towers)
        if name in towers:
            same_weights(getattr(pipeline, name), build())
    assert (pipeline.tokenizer is not None) == ("text_encoder" in towers)
    assert (pipeline.feature_extractor is not None) == ("image_encoder" in towers)


@pytest.mark.parametrize("name, cls, source, towers", LOADED)
def test_folder_loads_as_it_is(folders, name, cls, source, towers):
    pipeline = cls.from_pretrained(folders[name])
    same_weights(pipeline.unet, tiny_unet(source))
    assert fields(pipeline.unet) == fields(tiny_unet(source))
    check_towers(pipeline, towers)
    assert not any(module.training for module in pipeline.components.values() if hasattr(module, "training"))


def test_configuration_json_is_honoured(copied):
    folder = copied("image2video")
    configure(folder, "model_cfg", max_frames=5, target_fps=6, latent_hei=4, latent_wid=10)
    options = I2VGenXLPipeline.from_pretrained(folder).options
    assert (options.num_frames, options.target_fps, options.height, options.width) == (5, 6, 8, 20)
    assert (options.guidance_scale, options.offset_noise, options.num_inference_steps) == (3.0, 0.1, 50)
    assert find_folder(folder).settings.seed == 666


@pytest.mark.parametrize("mode, solver, steps", [("fast", "dpmpp_2m_sde", 30), ("normal", "heun", 50)])
def test_solver_mode(copied, mode, solver, steps):
    folder = copied("vid2vid-xl")
    configure(folder, "model_args", solver_mode=mode)
    pipeline = VideoRefinePipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.solver == solver
    assert pipeline.options.num_inference_steps == steps
    assert (pipeline.options.height, pipeline.options.width) == (20, 32)


def test_vgen_folder_is_a_whole_cascade(folders):
    cascade = load_cascade(str(folders["vgen"]), device="cpu", dtype="bfloat16")
    assert cascade.unet.config.use_image_latents
    assert cascade.refine_unet.config.use_decoder_edits
    assert cascade.refiner.options.inversion_steps == 30
    assert {cascade.unet.dtype, cascade.refine_unet.dtype, cascade.vae.dtype, cascade.text_encoder.dtype} == {
        torch.bfloat16
    }


def test_dtype_of_each_component_and_components_given(folders):
    tokenizer = clip_tokenizer()
    dtypes = {"unet": torch.bfloat16, "default": torch.float32}
    pipeline = I2VGenXLPipeline.from_pretrained(folders["vgen"], torch_dtype=dtypes, tokenizer=tokenizer)
    assert (pipeline.unet.dtype, pipeline.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pipeline.tokenizer is tokenizer


def test_unet_file_with_the_rest_around_it(copied):
    folder = copied("vgen")
    (folder / "i2vgen_xl_00854500.pth").rename(folder / "non_ema_00002000.pth")  # as VGen's training calls it
    for file, cls, source in (
        ("non_ema_00002000.pth", I2VGenXLPipeline, "vgen-i2vgen-xl"),
        ("sr_step_110000_ema.pth", VideoRefinePipeline, "vgen-sr600"),
    ):
        same_weights(cls.from_pretrained(folder / file).unet, tiny_unet(source))
    (folder / "sr_step_110000_ema.pth").rename(folder / "mine.pth")
    with pytest.raises(ModelError, match=r"mine\.pth.*vgen-sr600 and modelscope-vid2vid"):
        VideoRefinePipeline.from_pretrained(folder / "mine.pth")


@pytest.mark.parametrize("name, cls, source, towers", [LOADED[0], LOADED[3]])
def test_written_in_diffusers_layout_it_loads_the_same(folders, tmp_path, name, cls, source, towers):
    released, is_refiner = find_folder(folders[name]), cls is VideoRefinePipeline
    for component in plan(released, is_refiner):
        with open_tensors(component.file) as tensors:
            component.table.check_sources(key for key in tensors.keys() if component.owns(key))  # noqa: SIM118
            weights = {key: value.clone() for key, value in component.table.convert(tensors.read)}
        component.write_config(tmp_path / component.name)
        stem = "model" if component.library == "transformers" else "diffusion_pytorch_model"
        save_file(weights, tmp_path / component.name / f"{stem}.safetensors", {"format": "pt"})
    write_small_files(released, tmp_path, is_refiner)

    loaded, direct = cls.from_pretrained(tmp_path), cls.from_pretrained(folders[name])
    check_towers(loaded, towers)
    same_weights(loaded.unet, direct.unet)
    assert loaded.options == direct.options
    for part in ("scheduler", "unet"):
        assert fields(getattr(loaded, part)) == fields(getattr(direct, part))
    if "text_encoder" in towers:
        assert loaded.tokenizer("a dog").input_ids == direct.tokenizer("a dog").input_ids
    assert folder_role(tmp_path) == ("refiner" if is_refiner else "base")


def test_both_stages_are_written_as_a_cascade(folders, tmp_path):
    released = find_folder(folders["vgen"])
    assert {component.name for component in plan(released)} == {
        "unet",
        "refine_unet",
        "vae",
        "text_encoder",
        "image_encoder",
    }
    write_small_files(released, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "CascadePipeline"
    assert index["refine_unet"] == ["diffusers", "UNet3DConditionModel"]
    assert (tmp_path / "refine_scheduler" / "scheduler_config.json").is_file()
    assert index["base_defaults"]["num_frames"] == 16
    assert index["refine_defaults"]["inversion_steps"] == 30


def test_roles(folders, tiny_cascade_dir, tiny_xl_dir):
    roles = {name: folder_role(folder) for name, folder in folders.items()}
    assert roles == {"image2video": "base", "vid2vid-xl": "refiner", "vgen": "cascade"}
    assert (folder_role(tiny_cascade_dir), folder_role(tiny_xl_dir), folder_role("nano")) == (
        "cascade",
        "base",
        "cascade",
    )


def test_other_folders_are_none_of_these(tmp_path, tiny_xl_dir):
    assert find_folder(tmp_path) is None
    assert find_folder(tiny_xl_dir) is None
    (tmp_path / "configuration.json").write_text('{"framework": "pytorch"}')  # hubs put such a file everywhere
    assert find_folder(tmp_path) is None
    assert find_folder(tmp_path / "no such") is None


# What is wrong is said


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    "file, purpose",
    [("v2-1_512-ema-pruned.ckpt", "the VAE"), ("open_clip_pytorch_model.bin", "text and image towers")],
)
def test_missing_file_is_named_with_its_purpose(copied, name, file, purpose):
    folder = copied(name)
    (folder / file).unlink()
    with pytest.raises(ModelError, match=rf"{file} is missing, .*{purpose}.*had from"):
        I2VGenXLPipeline.from_pretrained(folder)


def test_no_place_is_claimed_for_sr600(copied):
    folder = copied("vgen")
    (folder / "i2vgen_xl_00854500.pth").unlink()
    (folder / "v2-1_512-ema-pruned.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"is missing, the VAE .*had from ModelScope's damo/I2VGen-XL$"):
        find_folder(folder)
    assert RELEASED["sr600"].where == ""


def test_missing_unet_is_named(copied):
    folder = copied("image2video")
    (folder / "img2video_ldm_0779000.pth").unlink()
    with pytest.raises(
        ModelError, match=r"img2video_ldm_0779000\.pth is missing.*damo/Image-to-Video, revision v1.1.0"
    ):
        I2VGenXLPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "name, cls, kind",
    [
        ("image2video", VideoRefinePipeline, "no refiner"),
        ("vid2vid-xl", I2VGenXLPipeline, "no base stage"),
        ("vid2vid-xl", CascadePipeline, "no base stage"),
    ],
)
def test_wrong_stage_is_said(folders, name, cls, kind):
    with pytest.raises(ModelError, match=kind):
        cls.from_pretrained(folders[name])


@pytest.mark.parametrize(
    "part, field, value",
    [
        ("model_args", "ckpt_unet", "../img2video_ldm_0779000.pth"),
        ("model_args", "ckpt_clip", "/etc/passwd"),
        ("model_args", "ckpt_autoencoder", 3),
        ("model_args", "seed", -1),
        ("model_args", "solver_mode", None),
        ("model_cfg", "max_frames", 0),
        ("model_cfg", "max_frames", "32"),
        ("model_cfg", "target_fps", True),
        ("model_cfg", "latent_hei", 10**30),
        ("model_cfg", "latent_wid", 5.5),
        (None, "task", "text-to-video-synthesis"),
    ],
)
def test_bad_configuration_is_named(copied, part, field, value):
    folder = copied("image2video")
    configure(folder, part, **{field: value})
    with pytest.raises(CheckpointError, match=rf"configuration\.json: {field}"):
        find_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_damaged_configuration_is_said(copied, text):
    folder = copied("image2video")
    (folder / "configuration.json").unlink()
    (folder / "configuration.json").write_text(text)
    with pytest.raises(ModelError, match=r"configuration\.json"):
        I2VGenXLPipeline.from_pretrained(folder)


def replace(path, change):
    """The file anew, with its weights changed."""
    content = torch.load(path, weights_only=True)
    change(content.get("state_dict", content))
    path.unlink()
    torch.save(content, path)


BIAS = "first_stage_model.decoder.conv_in.bias"


@pytest.mark.parametrize(
    "file, key, value",
    [
        ("v2-1_512-ema-pruned.ckpt", "first_stage_model.decoder.conv_in.bais", torch.zeros(32)),
        ("v2-1_512-ema-pruned.ckpt", BIAS, torch.zeros(3)),
        ("v2-1_512-ema-pruned.ckpt", BIAS, torch.full((32,), float("nan"))),
        ("v2-1_512-ema-pruned.ckpt", BIAS, torch.zeros(32, dtype=torch.int64)),
        ("open_clip_pytorch_model.bin", "visual.transformer.resblocks.1.ln_3.weight", torch.zeros(32)),
        ("open_clip_pytorch_model.bin", "visual.ln_post.weight", None),
        ("open_clip_pytorch_model.bin", "ln_final.weight", None),
        ("i2vgen_xl_00854500.pth", "out.2.weight", None),
        ("i2vgen_xl_00854500.pth", "something.else", torch.zeros(1)),
    ],
)
def test_bad_weights_are_named(copied, file, key, value):
    folder = copied("vgen")
    replace(folder / file, lambda weights: weights.pop(key) if value is None else weights.update({key: value}))
    ours = key.removeprefix("first_stage_model.").replace(".", r"\.")  # the names are the same here
    with pytest.raises(CheckpointError, match=ours):
        for component in plan(find_folder(folder), is_refiner=False):
            if component.file.name == file:
                component.load()


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("file", ["v2-1_512-ema-pruned.ckpt", "open_clip_pytorch_model.bin", "sr_step_110000_ema.pth"])
@pytest.mark.parametrize("is_plain", [True, False])
def test_malicious_pickle_is_refused(copied, tmp_path, file, is_plain):
    folder, target = copied("vgen"), tmp_path / "written"
    (folder / file).unlink()
    if is_plain:
        (folder / file).write_bytes(pickle.dumps({"state_dict": Attack(target)}))
    else:
        torch.save({"state_dict": Attack(target)}, folder / file)
    with pytest.raises(ModelError, match=file):
        VideoRefinePipeline.from_pretrained(folder)
    assert not target.exists()


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "image_encoder"])
def test_malicious_pickle_in_a_diffusers_folder_is_refused(tmp_path, component):
    folder, target = hub_folder(tmp_path / "hub"), tmp_path / "written"
    for file in (folder / component).glob("*.safetensors"):
        file.unlink()
    name = "pytorch_model.bin" if component.endswith("encoder") else "diffusion_pytorch_model.bin"
    torch.save({"a": Attack(target)}, folder / component / name)
    with pytest.raises(ModelError, match=rf"component '{component}': .*{name} is refused: .*Nothing was executed"):
        I2VGenXLPipeline.from_pretrained(folder)
    assert not target.exists()


@pytest.mark.parametrize(
    "change", [{"vae": "AutoencoderKL"}, {"vae": ["diffusers", 5]}, {"tokenizer": ["transformers"]}, {"unet": {}}]
)
def test_bad_entries_of_the_index_are_named(tmp_path, change):
    folder = hub_folder(tmp_path / "hub")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(ModelError, match=f"{next(iter(change))} is .*expected"):
        I2VGenXLPipeline.from_pretrained(folder)


def test_code_in_a_folder_is_not_run(tmp_path):
    folder, target = hub_folder(tmp_path / "hub"), tmp_path / "written"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["own", "Own"]}))
    (folder / "own.py").write_text(f"open({str(target)!r}, 'w')\nclass Own: pass\n")
    assert folder_role(folder) == "base"
    with pytest.raises(ModelError, match="custom code"):
        I2VGenXLPipeline.from_pretrained(folder)
    assert not target.exists()


# The tokenizer


@pytest.mark.parametrize(
    "text, ids",
    [  # recorded from open_clip's tokenizer
        ("", [49406, 49407]),
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("  Leading\tand\nnew  lines ", [49406, 3833, 537, 686, 3418, 49407]),
        ("Don't they've we'll I'M IT'S", [49406, 847, 713, 889, 1200, 649, 1342, 328, 880, 585, 568, 49407]),
        ("naïve — “quotes” …", [49406, 1097, 35689, 563, 2005, 728, 506, 5808, 728, 507, 959, 49407]),
        ("日本語 🚀", [49406, 39121, 44353, 34002, 508, 13542, 49407]),
        ("3.1 2024年 100%", [49406, 274, 269, 272, 273, 271, 273, 275, 38780, 368, 272, 271, 271, 260, 49407]),
    ],
)
def test_tokenizer_gives_clips_ids(text, ids):
    assert clip_tokenizer()(text).input_ids == ids


def test_tokenizer_has_clips_vocabulary():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (49406, 49407, 77)
    assert tokenizer("word " * 200, truncation=True).input_ids[-1] == 49407
    assert tokenizer.decode(tokenizer("A dog  running", add_special_tokens=False).input_ids) == "a dog running"


def test_tokenizer_of_the_folder_wins(copied):
    folder = copied("vid2vid-xl")
    own = train_tokenizer(["a dog runs"], vocab_size=600, max_length=16, folder=folder / "tokenizer")
    found = VideoRefinePipeline.from_pretrained(folder).tokenizer
    assert len(found) == len(own)
    assert found.model_max_length == 77  # what the tower reads


def test_tokenizer_that_does_not_fit_is_said(copied):
    folder = copied("vid2vid-xl")
    replace(
        folder / "open_clip_pytorch_model.bin",
        lambda weights: weights.update({"token_embedding.weight": torch.zeros(600, 32)}),
    )
    with pytest.raises(ModelError, match="49408 tokens, the text tower 600"):
        VideoRefinePipeline.from_pretrained(folder)


# Refiners of diffusers


def test_any_video_to_video_folder_is_a_refiner(tmp_path):
    folder = hub_folder(tmp_path)
    shutil.rmtree(folder / "unet")
    widths = {"layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 8}
    fields = {k: v for k, v in TINY_UNET.items() if k not in widths}
    theirs = seeded(lambda: UNet3DConditionModel(**fields, **widths), 5)
    theirs.save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    del index["image_encoder"], index["feature_extractor"]
    index |= {"_class_name": "TextToVideoSDPipeline", "unet": ["diffusers", "UNet3DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))

    pipeline = VideoRefinePipeline.from_pretrained(folder)
    assert folder_role(folder) == "refiner"
    assert pipeline.options.clip_skip == 0
    assert not pipeline.unet.config.has_odd_height
    inputs = torch.randn(1, 4, 3, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    context = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = pipeline.unet(*inputs, encoder_hidden_states=context).sample
        expected = theirs(*inputs, encoder_hidden_states=context).sample
    assert torch.allclose(ours, expected, atol=2e-5)

"""Key tables against the full-size manifests: every key and every shape lands, in both directions."""

from __future__ import annotations

import gzip
import json
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from golden_recipe import GOLDEN, REFINER
from i2vgen.checkpoints import CheckpointError
from i2vgen.checkpoints.clip_keys import TEXT_PREFIX_4, split_towers, text_prefix_on_disk, text_table, vision_table
from i2vgen.checkpoints.configs import SOURCES, source_of, text_config, unet_config, vae_config, vision_config
from i2vgen.checkpoints.tables import Entry, KeyTable
from i2vgen.checkpoints.unet_keys import sd_unet_table, unet_table
from i2vgen.checkpoints.vae_keys import vae_table
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.parity.recipe import draw

HEADS = ("use_fps", "use_image_embeddings", "use_image_latents")
UNETS = {
    "vgen_i2vgen_xl": "vgen-i2vgen-xl",
    "vgen_sr600": "vgen-sr600",
    "modelscope_img2vid": "modelscope-image2video",
    "modelscope_vid2vid": "modelscope-vid2vid",
}
FULL_SIZE = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
}


@cache
def manifest(name: str) -> dict:
    return json.loads(gzip.decompress((GOLDEN / "manifests" / f"{name}.json.gz").read_bytes()))


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in manifest(name).items()}


def on_meta(build) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build().state_dict().items()}


def assert_lands(table: KeyTable, source: dict, target: dict) -> None:
    """Every key and shape, both ways, and nothing left."""
    assert table.target_shapes(source) == target
    back = table.source_shapes(target)
    assert back == {key: shape for key, shape in source.items() if key not in table.unused}
    table.check_shapes(source, target)


def as_recorded(table: KeyTable, recorded: dict) -> None:
    """The table has the entries of a recorded map, all of them, with the same splits and transforms."""
    found = {}
    for entry in table.entries:
        how = {"source": entry.source}
        if entry.parts > 1:
            how["rows"] = f"part {entry.part} of {entry.parts} along dim 0"
        if entry.dropped:
            how["transform"] = "drop trailing size-1 dims"
        if entry.is_transposed:
            how["transform"] = "transpose"
        found[entry.target] = how
    expected = {
        target: {k: v for k, v in how.items() if k not in ("source_shape", "shape")}
        for target, how in recorded["map"].items()
    }
    assert found == expected
    assert table.unused == set(recorded["unused_source_keys"])


# UNets


@pytest.mark.parametrize("name", UNETS)
def test_full_size_unets_land_key_by_key(name):
    source = shapes_of(name)
    config = unet_config(source, UNETS[name])
    assert {field: config[field] for field in FULL_SIZE} == FULL_SIZE
    assert_lands(unet_table(config), source, on_meta(lambda: I2VGenXLUNet(**config)))


def test_full_size_base_lands_on_diffusers_names():
    source, target = shapes_of("vgen_i2vgen_xl"), shapes_of("diffusers_i2vgenxl_unet")
    assert_lands(unet_table({}), source, target)
    as_recorded(unet_table({}), manifest("map_vgen_i2vgen_xl_to_diffusers"))
    assert {f: unet_config(target, "diffusers")[f] for f in FULL_SIZE} == FULL_SIZE
    assert unet_config(target, "diffusers").items() <= unet_config(source, "vgen-i2vgen-xl").items()


@pytest.mark.parametrize("name", UNETS)
def test_heads_and_quirks_follow_from_the_source(name):
    config = unet_config(shapes_of(name), UNETS[name])
    has = {
        "vgen_i2vgen_xl": (True, True, True),
        "modelscope_img2vid": (True, True, False),
    }.get(name, (False, False, False))
    assert tuple(config[field] for field in HEADS) == has
    assert config.get("has_odd_height", False) == (not any(has))
    assert config.get("use_decoder_edits", False) == (name == "vgen_sr600")
    assert config.get("num_image_tokens") == (4 if has[1] else None)


def test_source_is_found_from_the_keys_unless_two_share_them():
    assert source_of(manifest("vgen_i2vgen_xl")) == "vgen-i2vgen-xl"
    assert source_of(manifest("modelscope_img2vid")) == "modelscope-image2video"
    assert source_of(manifest("diffusers_i2vgenxl_unet")) == "diffusers"
    with pytest.raises(CheckpointError, match=r"vgen-sr600 and modelscope-vid2vid .* source"):
        source_of(manifest("vgen_sr600"))
    with pytest.raises(CheckpointError, match="not the keys of a UNet"):
        source_of(manifest("vgen_autoencoderkl"))
    with pytest.raises(CheckpointError, match="load_spatial"):
        source_of(sd_unet_table({}).sources)


def test_wrong_source_says_which_it_should_be():
    with pytest.raises(CheckpointError, match="modelscope-image2video"):
        unet_config(shapes_of("modelscope_img2vid"), "vgen-i2vgen-xl")
    with pytest.raises(CheckpointError, match=r"unknown.*vgen-sr600"):
        unet_config(shapes_of("vgen_sr600"), "sr600")


SHALLOW = {
    "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
    "up_block_types": ("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 16,
    "in_channels": 3,
    "out_channels": 5,
    "num_image_tokens": 2,
}


@pytest.mark.parametrize(
    ("source", "fields"),
    [(source, {**SHALLOW, **fields}) for source, fields in SOURCES.items() if fields]
    + [("diffusers", {**SHALLOW, "use_fps": False}), ("diffusers", {**SHALLOW, "use_motion_prior": True})],
)
def test_any_config_is_read_back_off_its_own_shapes(source, fields):
    """Levels with attention anywhere, other depths and widths: config -> shapes -> config, through the table."""
    shapes = on_meta(lambda: I2VGenXLUNet(**fields))
    if source != "diffusers":
        table = unet_table(fields)
        shapes = table.source_shapes(shapes)
        assert table.targets == set(on_meta(lambda: I2VGenXLUNet(**fields)))
    found = unet_config(shapes, source)
    if not fields.get("use_image_embeddings", True):
        fields = {k: v for k, v in fields.items() if k != "num_image_tokens"}
    assert {**found, **fields} == found


def test_priors_of_nano_have_no_place_in_vgens_layout():
    with pytest.raises(CheckpointError, match="use_motion_prior"):
        unet_table({"use_motion_prior": True})


def test_spatial_table_is_stable_diffusions_unet_and_leaves_time_and_heads():
    ours = on_meta(lambda: I2VGenXLUNet(use_image_latents=False))
    image_model = on_meta(
        lambda: UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
    )
    spatial = sd_unet_table({})
    assert len(spatial.sources) == 686
    assert {key: ours[key] for key in spatial.targets} == image_model
    assert_lands(sd_unet_table({}, is_diffusers=True), image_model, image_model)
    left = ("transformer_in.", "temp_convs.", "temp_attentions.", "fps_embedding.", "context_embedding.")
    assert all(any(name in key for name in left) for key in ours.keys() - spatial.targets)
    named = {
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "mid_block.resnets.1.norm1.weight": "middle_block.2.in_layers.0.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.proj_in.weight": "output_blocks.11.1.proj_in.weight",
    }
    assert {e.target: e.source for e in spatial.entries if e.target in named} == named


# VAE


def test_full_size_vae_lands_key_by_key():
    source, target = shapes_of("vgen_autoencoderkl"), shapes_of("diffusers_autoencoderkl")
    config = vae_config(source)
    assert config["block_out_channels"] == (128, 256, 512, 512)
    assert (config["layers_per_block"], config["latent_channels"]) == (2, 4)
    assert_lands(vae_table(config), source, target)
    assert on_meta(lambda: AutoencoderKL(**config)) == target


def test_full_size_vae_in_a_whole_checkpoint_has_a_prefix():
    source, target = shapes_of("sd21_first_stage_model"), shapes_of("diffusers_autoencoderkl")
    table = vae_table(vae_config(shapes_of("vgen_autoencoderkl"))).with_prefix("first_stage_model.")
    assert_lands(table, source, target)
    as_recorded(table, manifest("map_sd21_first_stage_to_diffusers_autoencoderkl"))


@torch.no_grad()
def test_vae_computes_what_the_original_did():
    recorded = read_golden("vae_tiny")
    shapes = shapes_of("tiny_vae")
    config = vae_config(shapes)
    vae = AutoencoderKL(**config).eval()
    vae.load_state_dict(dict(vae_table(config).convert(lambda key: torch.from_numpy(draw(key, shapes)))))
    moments = vae.quant_conv(vae.encoder(recorded["image"]))
    assert (moments - recorded["moments"]).abs().max() <= 2e-5
    assert (vae.decode(recorded["z"]).sample - recorded["decoded"]).abs().max() <= 2e-5


# Towers


def test_full_size_text_tower_lands_key_by_key():
    source, target = shapes_of("openclip_vith14_text"), shapes_of("transformers_clip_text_vith14")
    config = text_config(source)
    assert config.items() >= manifest("SUMMARY")["transformers_clip_text_vith14"]["config"].items()
    table = text_table(config["num_hidden_layers"])
    assert_lands(table, source, target)
    as_recorded(table, manifest("map_openclip_vith14_text_to_transformers"))
    older = text_table(24).with_prefix(target=TEXT_PREFIX_4)
    assert_lands(older, source, shapes_of("transformers4_clip_text_vith14"))


def test_full_size_image_tower_lands_key_by_key():
    source, target = shapes_of("openclip_vith14_visual"), shapes_of("transformers_clip_vision_vith14")
    config = vision_config(source)
    assert config.items() >= manifest("SUMMARY")["transformers_clip_vision_vith14"]["config"].items()
    table = vision_table(config["num_hidden_layers"])
    assert_lands(table, source, target)
    as_recorded(table, manifest("map_openclip_vith14_visual_to_transformers"))
    assert on_meta(lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**config))) == target


def test_whole_open_clip_checkpoint_is_its_two_towers():
    text, vision = split_towers(manifest("openclip_vith14_full"))
    assert set(text) == set(manifest("openclip_vith14_text"))
    assert set(vision) == set(manifest("openclip_vith14_visual"))
    text_table(24).check_sources(text)
    vision_table(32).check_sources(vision)
    text_table(24).check_sources(set(text) - {"text_projection", "logit_scale"})  # they may be missing


@torch.no_grad()
def test_towers_compute_what_the_original_did():
    recorded = read_golden("clip_tiny")
    shapes = shapes_of("tiny_clip")
    text_shapes, vision_shapes = ({key: shapes[key] for key in keys} for keys in split_towers(shapes))

    def read(key):
        return torch.from_numpy(draw(key, shapes))

    config = text_config(text_shapes, head_width=12)
    text = CLIPTextModel(CLIPTextConfig(**config)).eval()
    prefix = text_prefix_on_disk()
    text.load_state_dict(dict(text_table(config["num_hidden_layers"]).with_prefix(target=prefix).convert(read)))
    hidden = text(recorded["tokens"], output_hidden_states=True).hidden_states
    norm = text.get_submodule(f"{prefix}final_layer_norm")
    assert (norm(hidden[-2]) - recorded["y_words"]).abs().max() <= 2e-5
    assert (norm(hidden[-1]) - recorded["y_words_last"]).abs().max() <= 2e-5

    config = vision_config(vision_shapes, head_width=16)
    assert (config["image_size"], config["patch_size"]) == (56, 14)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
    vision.load_state_dict(dict(vision_table(config["num_hidden_layers"]).convert(read)))
    embedding = vision(recorded["image"]).image_embeds
    assert (embedding - recorded["image_embed"]).abs().max() <= 2e-5


def test_head_width_that_does_not_divide_is_an_error():
    shapes = shapes_of("tiny_clip")
    with pytest.raises(CheckpointError, match=r"head_width.*48.*64"):
        text_config({key: shapes[key] for key in split_towers(shapes)[0]})
    with pytest.raises(CheckpointError, match=r"head_width.*64.*80"):
        vision_config({key: shapes[key] for key in split_towers(shapes)[1]})


def test_names_on_disk_are_those_that_transformers_writes(tmp_path):
    small = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9,
        max_position_embeddings=4, bos_token_id=7, eos_token_id=8,
    )  # fmt: skip
    CLIPTextModel(small).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        text_table(1).with_prefix(target=text_prefix_on_disk()).check_targets(file.keys())


def read_golden(name: str) -> dict[str, torch.Tensor]:
    tensors = {}
    with safe_open(GOLDEN / name / "case0.safetensors", framework="pt") as file:
        for key in file.offset_keys():
            tensor = file.get_tensor(key)
            tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


# What is wrong is named


def test_unknown_and_missing_keys_are_named_with_the_nearest():
    keys = set(manifest("modelscope_vid2vid"))
    table = unet_table(REFINER)
    with pytest.raises(CheckpointError, match=r"unknown key input_blocks\.1\.0\.temporal_conv.*temopral_conv"):
        table.check_sources(keys | {"input_blocks.1.0.temporal_conv.conv1.0.weight"})
    with pytest.raises(CheckpointError, match=r"missing key out\.2\.bias.*nearest known: out\."):
        table.check_sources(keys - {"out.2.bias"})


def test_wrong_shapes_are_named_with_the_expected_one():
    source = shapes_of("modelscope_vid2vid")
    config = unet_config(source, "modelscope-vid2vid")
    target = on_meta(lambda: I2VGenXLUNet(**config))
    for key, bad in {"out.0.bias": (321,), "input_blocks.0.1.proj_in.weight": (512, 320)}.items():
        with pytest.raises(CheckpointError) as error:
            unet_table(config).check_shapes({**source, key: bad}, target)
        assert f"{key} has shape {list(bad)}, expected {list(source[key])}" in str(error.value)


@pytest.mark.parametrize("key", ["time_embed.0.weight", "input_blocks.1.0.in_layers.2.weight", "out.2.weight"])
def test_config_of_damaged_shapes_is_an_error_that_names_the_key(key):
    source = shapes_of("modelscope_vid2vid")
    for bad in ({k: s for k, s in source.items() if k != key}, {**source, key: (4,)}, {**source, key: ()}):
        with pytest.raises(CheckpointError, match=r"input_blocks|time_embed|out") as error:
            config = unet_config(bad, "modelscope-vid2vid")
            unet_table(config).check_shapes(bad, on_meta(lambda config=config: I2VGenXLUNet(**config)))
        assert key.split(".")[0] in str(error.value)


def test_tables_that_are_not_one_to_one_cannot_be_built():
    with pytest.raises(ValueError, match="twice"):
        KeyTable("bad", [Entry("a", "x"), Entry("a", "y")])
    with pytest.raises(ValueError, match="exactly once"):
        KeyTable("bad", [Entry("a", "x", 0, 3), Entry("b", "x", 2, 3)])


def test_tables_invert_on_values():
    """Split, dropped and transposed tensors come back bit by bit."""
    table = KeyTable(
        "small",
        [
            *(Entry(f"to_{x}.weight", "qkv", part, parts=3) for part, x in enumerate("qkv")),
            Entry("proj", "conv", dropped=2),
            Entry("projection", "proj", is_transposed=True),
        ],
    )
    source = {"qkv": torch.randn(6, 4), "conv": torch.randn(2, 3, 1, 1), "proj": torch.randn(2, 5)}
    ours = dict(table.convert(source.__getitem__))
    assert ours["to_k.weight"].equal(source["qkv"][2:4])
    assert ours["projection"].equal(source["proj"].T)
    back = dict(table.convert_back(ours.__getitem__))
    assert back.keys() == source.keys()
    assert all(back[key].equal(value) for key, value in source.items())

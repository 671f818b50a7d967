"""`load_unet` gives the original's numbers from its own keys; `load_spatial` starts a UNet from an image model."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet
from safetensors.torch import save_file

from conftest import TINY_UNET, seeded, tiny_unet
from golden_recipe import GOLDEN, golden_case, golden_state
from i2vgen.checkpoints import CheckpointError, load_spatial, load_unet
from i2vgen.checkpoints.unet_keys import sd_unet_table, unet_table
from i2vgen.models.conditioning import with_frame_planes
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.parity.networks import run_unet

SMALL = {"block_out_channels": (64, 64, 64, 128), "attention_head_dim": 16}
SOURCES = {
    "vgen_i2vgen_xl": "vgen-i2vgen-xl",
    "modelscope_img2vid": "modelscope-image2video",
    "modelscope_vid2vid": "modelscope-vid2vid",
    "vgen_sr600": "vgen-sr600",
}
CASES = [
    (name, path.stem)
    for name in SOURCES
    for path in sorted((GOLDEN / "tiny" / name).glob("case*.safetensors"))
]  # fmt: skip


@pytest.fixture(scope="module")
def original_states() -> dict[str, dict[str, torch.Tensor]]:
    """Recipe weights under their original keys."""
    return {name: golden_state(name) for name in SOURCES}


@pytest.fixture(scope="module")
def refiner_state(original_states) -> dict[str, torch.Tensor]:
    return original_states["modelscope_vid2vid"]


# The original's numbers


def test_there_are_cases_of_every_source():
    assert {name for name, _ in CASES} == set(SOURCES)


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.no_grad()
def test_original_weights_give_the_original_output(original_states, name, case):
    unet = load_unet(original_states[name], source=SOURCES[name], config=SMALL)
    assert isinstance(unet, I2VGenXLUNet)
    assert not unet.training
    recorded = golden_case(name, case)
    assert (run_unet(unet, recorded["x"], recorded["t"], recorded) - recorded["output"]).abs().max() <= 2e-5


@pytest.mark.parametrize("name", ["vgen_i2vgen_xl", "modelscope_img2vid"])
def test_the_way_back_gives_the_original_state_dict_bit_by_bit(original_states, name):
    unet = load_unet(original_states[name])
    ours = unet.state_dict()
    back = dict(unet_table(unet.config).convert_back(ours.__getitem__))
    assert back.keys() == original_states[name].keys()
    assert all(back[key].equal(value) for key, value in original_states[name].items())


@pytest.mark.parametrize("name", SOURCES)
def test_released_sizes_load(name):
    """Every key and shape of the full-size files, without memory."""
    manifest = json.loads(gzip.decompress((GOLDEN / "manifests" / f"{name}.json.gz").read_bytes()))
    weights = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    unet = load_unet(weights, source=SOURCES[name])
    assert sum(p.numel() for p in unet.parameters()) == sum(value.numel() for value in weights.values())
    assert unet.config.block_out_channels == (320, 640, 1280, 1280)


@torch.no_grad()
def test_a_file_with_its_step_gives_the_same_without_source_or_config(original_states, tmp_path):
    name = "vgen_i2vgen_xl"
    torch.save({"state_dict": original_states[name], "step": 854500}, tmp_path / "i2vgen_xl.pth")
    unet = load_unet(tmp_path / "i2vgen_xl.pth")
    assert unet.config.block_out_channels == SMALL["block_out_channels"]
    assert (unet.config.attention_head_dim, unet.config.image_latents_scale) == (16, 2.0)
    (tmp_path / "i2vgen_xl.pth").unlink()  # the weights are in memory
    recorded = golden_case(name, "case1")
    assert (run_unet(unet, recorded["x"], recorded["t"], recorded) - recorded["output"]).abs().max() <= 2e-5


def test_wrapped_and_plain_state_dicts_are_the_same(refiner_state):
    wrapped = load_unet({"state_dict": refiner_state, "step": 3}, source="modelscope-vid2vid").state_dict()
    plain = load_unet(refiner_state, source="modelscope-vid2vid").state_dict()
    assert wrapped.keys() == plain.keys()
    assert all(wrapped[key].equal(value) for key, value in plain.items())


def test_weights_that_fit_are_not_copied_and_others_are_converted(refiner_state):
    key = "out.2.weight"
    unet = load_unet(refiner_state, source="vgen-sr600")
    assert unet.conv_out.weight.data_ptr() == refiner_state[key].data_ptr()
    assert unet.conv_out.weight.requires_grad
    assert not refiner_state[key].requires_grad
    half = load_unet(refiner_state, source="vgen-sr600", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.conv_out.weight.equal(refiner_state[key].bfloat16())
    kept = load_unet({k: v.half() for k, v in refiner_state.items()}, source="vgen-sr600", dtype=None)
    assert kept.dtype == torch.float16


def test_config_overrides_what_the_source_implies(refiner_state):
    config = {"has_odd_height": False, "use_decoder_edits": True, "dropout": 0.0}
    unet = load_unet(refiner_state, source="modelscope-vid2vid", config=config)
    assert {field: unet.config[field] for field in config} == config


# diffusers


def diffusers_inputs() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(2, 4, 3, 4, 6, generator=g),
        "timestep": torch.tensor([801, 35]),
        "fps": torch.tensor([8, 16]),
        "image_latents": with_frame_planes(torch.randn(2, 4, 1, 4, 6, generator=g), 3),
        "image_embeddings": torch.randn(2, 1, 32, generator=g),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=g),
    }


@torch.no_grad()
def test_diffusers_base_with_content_once_is_diffusers_and_doubled_by_default(tmp_path):
    theirs = seeded(lambda: DiffusersI2VGenXLUNet(**TINY_UNET), 1)
    theirs.save_pretrained(tmp_path / "unet", variant="fp16")
    given = diffusers_inputs()
    expected = theirs(**given).sample
    groups = {"norm_num_groups": TINY_UNET["norm_num_groups"]}
    for weights, config in ((tmp_path, {}), (tmp_path / "unet", {}), (theirs.state_dict(), groups)):
        once = load_unet(weights, source="diffusers", config={**config, "image_latents_scale": 1.0})
        torch.testing.assert_close(once(**given).sample, expected, atol=2e-5, rtol=0)
    doubled = load_unet(tmp_path)
    assert doubled.config.image_latents_scale == 2.0
    assert (doubled(**given).sample - expected).abs().max() > 1e-3


@torch.no_grad()
def test_diffusers_video_unet_gives_what_diffusers_does(tmp_path):
    theirs = seeded(lambda: UNet3DConditionModel(**TINY_UNET), 2)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    given = {k: v for k, v in diffusers_inputs().items() if k in ("sample", "timestep", "encoder_hidden_states")}
    expected = theirs(**given).sample
    for weights in (tmp_path, next(iter(tmp_path.glob("*.index.json")))):
        ours = load_unet(weights, source="diffusers")
        assert not ours.config.has_odd_height
        torch.testing.assert_close(ours(**given).sample, expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_own_folder_comes_back_with_all_its_fields(tmp_path):
    fields = {"use_fps": False, "transformer_in_heads": 4, "image_latents_scale": 1.5, "use_image_embeddings": False}
    ours = tiny_unet(3, **fields)
    ours.save_pretrained(tmp_path)
    given = {k: v for k, v in diffusers_inputs().items() if k not in ("fps", "image_embeddings")}
    for weights in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        loaded = load_unet(weights)
        shared = {k: v for k, v in ours.config.items() if not k.startswith("_")}
        assert {k: loaded.config[k] for k in shared} == shared
        assert loaded(**given).sample.equal(ours(**given).sample)


# Errors


def test_two_refiners_have_the_same_keys_so_the_source_must_be_given(refiner_state):
    with pytest.raises(CheckpointError, match=r"vgen-sr600 and modelscope-vid2vid.*source"):
        load_unet(refiner_state)


def changed(state, **keys):
    return {k: v for k, v in {**state, **keys}.items() if v is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out.2.bias": None}, r"missing key out\.2\.bias.*nearest known"),
        ({"out.2.bais": torch.zeros(4)}, r"unknown key out\.2\.bais.*nearest known: out\.2\.bias"),
        ({"out.2.bias": torch.zeros(5)}, r"out\.2\.bias has shape \[5\], expected \[4\]"),
        ({"out.2.bias": torch.full((4,), torch.nan)}, r"out\.2\.bias: holds NaN"),
        ({"out.2.bias": torch.zeros(4, dtype=torch.int64)}, r"out\.2\.bias.*int64"),
        ({"out.2.bias": "weights"}, r"'out\.2\.bias' is a str"),
        ({"input_blocks.4.0.in_layers.2.weight": torch.zeros(128, 64, 3, 3)}, r"input_blocks\.4\.0"),
    ],
)
def test_what_is_wrong_with_a_state_dict_is_named(refiner_state, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_unet(changed(refiner_state, **change), source="modelscope-vid2vid")


def test_wrong_arguments_are_named(refiner_state, tmp_path):
    with pytest.raises(CheckpointError, match="modelscope-vid2vid"):
        load_unet(refiner_state, source="vgen-i2vgen-xl")
    with pytest.raises(CheckpointError, match="VGen's layout"):
        load_unet(refiner_state, source="diffusers")
    with pytest.raises(CheckpointError, match=r"diffusers' layout.*'diffusers'"):
        load_unet({"conv_in.weight": torch.zeros(1)}, source="vgen-i2vgen-xl")
    with pytest.raises(CheckpointError, match="NoneType"):
        load_unet(None)
    with pytest.raises(CheckpointError, match=r"config.*block_channels.*block_out_channels"):
        load_unet(refiner_state, source="vgen-sr600", config={"block_channels": (64,)})
    with pytest.raises(CheckpointError, match=r"shape.*expected"):
        load_unet(refiner_state, source="vgen-sr600", config={"cross_attention_dim": 512})
    with pytest.raises(CheckpointError, match="dtype"):
        load_unet(refiner_state, source="vgen-sr600", dtype=torch.int8)
    with pytest.raises(CheckpointError, match=r"bfloat16|float16"):
        huge = changed(refiner_state, **{"out.2.bias": torch.full((4,), 1e30)})
        load_unet(huge, source="vgen-sr600", dtype=torch.float16)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_unet(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="not the keys of a UNet"):
        load_unet({})
    with pytest.raises(CheckpointError, match="tensors by name"):
        load_unet({3: torch.zeros(1)})


# Starting from an image model

IMAGE_MODEL = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": (4, 8),  # numbers of heads, as in Stable Diffusion 2's configuration
    "use_linear_projection": True,
}
WIDTHS = {"block_out_channels": (32, 64)}


def fresh_unet(**fields) -> I2VGenXLUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return I2VGenXLUNet(**{**TINY_UNET, **WIDTHS, **fields}).eval()


@pytest.fixture(scope="module")
def image_model() -> UNet2DConditionModel:
    return seeded(lambda: UNet2DConditionModel(**IMAGE_MODEL), 5, noise=0.1)


@torch.no_grad()
def each_frame(model, sample, timestep, context) -> torch.Tensor:
    return torch.stack([model(x, timestep, context).sample for x in sample.unbind(2)], dim=2)


@torch.no_grad()
def test_started_without_heads_each_frame_is_the_image_models(image_model):
    """Text alone: the temporal layers are the identity, so nothing parts the two."""
    unet = fresh_unet(use_fps=False, use_image_embeddings=False, use_image_latents=False)
    kept = load_spatial(unet, image_model.state_dict())
    assert all("temp_" in key or key.startswith("transformer_in.") for key in kept)
    given = diffusers_inputs()
    sample, t, text = given["sample"], given["timestep"], given["encoder_hidden_states"]
    expected = each_frame(image_model, sample, t, text)
    assert expected.std() > 0.1
    torch.testing.assert_close(unet(sample, t, encoder_hidden_states=text).sample, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_started_with_all_heads_the_image_enters_by_its_tokens_alone(image_model):
    """Neither fps nor content features disturb; the tokens of the image are context, as in the original."""
    unet = fresh_unet()
    load_spatial(unet, image_model.state_dict())
    given = diffusers_inputs()
    sample, t = given.pop("sample"), given.pop("timestep")
    conditions = unet.encode_conditions(3, **given)
    assert conditions.content.abs().max() > 0
    expected = each_frame(image_model, sample, t, conditions.context)
    output = unet(sample, t, conditions=conditions).sample
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    text_only = each_frame(image_model, sample, t, given["encoder_hidden_states"])
    assert (output - text_only).abs().max() > 1e-4


def test_all_layouts_of_an_image_model_start_the_same_and_leave_the_rest(image_model, tmp_path):
    unet = fresh_unet()
    theirs = image_model.state_dict()
    table = sd_unet_table(unet.config)
    original = dict(table.convert_back(theirs.__getitem__))
    whole = {f"model.diffusion_model.{key}": value for key, value in original.items()}
    whole |= {"first_stage_model.quant_conv.bias": torch.ones(8), "model_ema.decay": torch.tensor(0.9)}
    torch.save({"state_dict": whole, "global_step": 5}, tmp_path / "v2-1.ckpt")
    image_model.save_pretrained(tmp_path / "sd" / "unet")
    save_file(original, tmp_path / "unet.safetensors")
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    results = []
    for weights in (theirs, original, tmp_path / "v2-1.ckpt", tmp_path / "sd", tmp_path / "unet.safetensors"):
        target = fresh_unet()
        kept = load_spatial(target, weights)
        state = target.state_dict()
        assert set(kept) == state.keys() - theirs.keys()
        assert all(state[key].equal(before[key]) for key in kept)
        assert all(state[key].equal(value) for key, value in theirs.items() if key != "conv_in.weight")
        assert state["conv_in.weight"][:, :4].equal(theirs["conv_in.weight"])
        assert not state["conv_in.weight"][:, 4:].any()
        results.append(state)
    assert len(results) == 5


def test_started_unet_learns_in_every_layer(image_model):
    """Zeroed projections block gradients only at the first step: after one, all that follows from them moves."""
    unet = fresh_unet()
    load_spatial(unet, image_model.state_dict())
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        unet(**diffusers_inputs()).sample.square().mean().backward()
        optimizer.step()
    still = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def test_an_image_model_that_does_not_fit_changes_nothing(image_model):
    unet = fresh_unet()
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    theirs = image_model.state_dict()
    bad = {
        r"conv_out\.weight.*NaN": {**theirs, "conv_out.weight": torch.full((4, 32, 3, 3), torch.nan)},
        r"conv_in\.weight has shape \[32, 9, 3, 3\], expected \[32, 4": {
            **theirs,
            "conv_in.weight": torch.zeros(32, 9, 3, 3),
        },
        r"proj_in\.weight has shape": {**theirs, "mid_block.attentions.0.proj_in.weight": torch.zeros(64, 64, 1, 1)},
        r"unknown key add_embedding": {**theirs, "add_embedding.linear_1.weight": torch.zeros(1)},
        r"missing key conv_out\.bias": {k: v for k, v in theirs.items() if k != "conv_out.bias"},
    }
    for message, state in bad.items():
        with pytest.raises(CheckpointError, match=message):
            load_spatial(unet, state)
    assert all(value.equal(before[key]) for key, value in unet.state_dict().items())
    with pytest.raises(CheckpointError, match="load_spatial"):
        load_unet(theirs)

"""The UNet's properties, and the same network in diffusers' classes."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet3DConditionModel
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet as DiffusersI2VGenXLUNet
from safetensors.torch import load_file, save_file

from conftest import TINY_UNET, seeded, tiny_unet
from golden_recipe import REFINER, golden_case, golden_unet
from i2vgen.models.blocks import amplify_decoder
from i2vgen.models.conditioning import with_frame_planes
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.parity.networks import run_unet


@pytest.fixture(scope="module")
def unet() -> I2VGenXLUNet:
    return tiny_unet(0)


def inputs(b: int = 2, f: int = 3, h: int = 4, w: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(b, 4, f, h, w, generator=g),
        "timestep": torch.tensor([801, 35])[:b],
        "fps": torch.tensor([8, 16])[:b],
        "image_latents": torch.randn(b, 4, h, w, generator=g),
        "image_embeddings": torch.randn(b, 1, 32, generator=g),
        "encoder_hidden_states": torch.randn(b, 5, 32, generator=g),
    }


# The original's numbers are replayed in test_parity.py


@torch.no_grad()
def test_decoder_edits_are_what_parts_the_two_refiners():
    case = golden_case("vgen_sr600", "case0")
    plain = run_unet(golden_unet("modelscope_vid2vid"), case["x"], case["t"], case)
    assert (plain - case["output"]).norm() / case["output"].norm() > 0.05


def test_decoder_edit_scales_only_the_lowest_frequencies():
    x, skip = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    same_x, same_skip = amplify_decoder(x, skip, 1.0, 1.0)
    torch.testing.assert_close(same_x, x)
    torch.testing.assert_close(same_skip, skip, atol=1e-6, rtol=0)
    gained, filtered = amplify_decoder(x, torch.full_like(skip, 3.0), 1.5, 0.4)
    torch.testing.assert_close(gained, torch.cat([x[:, :2] * 1.5, x[:, 2:]], dim=1))
    torch.testing.assert_close(filtered, torch.full_like(skip, 1.2))


# Full size, without memory


def full_size_shapes(cls, **fields) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in cls(**fields).state_dict().items()}


def num_parameters(shapes: dict[str, torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes.values())


def test_full_size_base_has_the_keys_and_shapes_of_diffusers():
    ours = full_size_shapes(I2VGenXLUNet)
    assert ours == full_size_shapes(DiffusersI2VGenXLUNet)
    assert num_parameters(ours) == 1_420_469_224


def test_full_size_refiner_has_the_keys_and_shapes_of_diffusers():
    ours = full_size_shapes(I2VGenXLUNet, **REFINER)
    assert ours == full_size_shapes(UNet3DConditionModel)
    assert num_parameters(ours) == 1_411_233_860


def test_full_size_image_only_base_has_as_many_parameters_as_the_original():
    assert num_parameters(full_size_shapes(I2VGenXLUNet, use_image_latents=False)) == 1_419_843_396


# The same network as diffusers', but for the factor on the content features


@torch.no_grad()
def test_unet_equals_diffusers_with_content_added_once():
    theirs = seeded(lambda: DiffusersI2VGenXLUNet(**TINY_UNET), 1)
    given = inputs()
    planes = with_frame_planes(given["image_latents"][:, :, None], 3)
    expected = theirs(**{**given, "image_latents": planes}).sample
    outputs = {}
    for scale in (1.0, 2.0):
        ours = I2VGenXLUNet(**TINY_UNET, image_latents_scale=scale).eval()
        ours.load_state_dict(theirs.state_dict())
        outputs[scale] = ours(**given).sample
    torch.testing.assert_close(outputs[1.0], expected, atol=2e-5, rtol=0)
    assert (outputs[2.0] - expected).abs().max() > 1e-3


# Training


def gradients(unet: I2VGenXLUNet) -> dict[str, torch.Tensor | None]:
    unet.zero_grad(set_to_none=True)
    unet(**inputs()).sample.square().mean().backward()
    return {name: p.grad for name, p in unet.named_parameters()}


def test_every_parameter_gets_a_gradient(unet):
    found = gradients(unet)
    assert [name for name, g in found.items() if g is None or not g.abs().max() > 0] == []
    assert all(torch.isfinite(g).all() for g in found.values())


def test_gradient_checkpointing_changes_no_gradient(unet, monkeypatch):
    import i2vgen.models.blocks as blocks

    calls = []
    checkpoint = blocks.checkpoint
    monkeypatch.setattr(blocks, "checkpoint", lambda *args, **kw: calls.append(1) or checkpoint(*args, **kw))
    plain = gradients(unet)
    assert not calls
    unet.enable_gradient_checkpointing()
    try:
        checkpointed = gradients(unet)
    finally:
        unet.disable_gradient_checkpointing()
    assert calls
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5, msg=name)


# Conditions


@torch.no_grad()
def test_conditions_computed_once_are_the_same_as_given_each_time(unet):
    given = inputs()
    raw = {k: given[k] for k in ("fps", "image_latents", "image_embeddings", "encoder_hidden_states")}
    conditions = unet.encode_conditions(3, **raw)
    assert conditions.context.shape == (2, 5 + 64 + 4, 32)
    once = unet(given["sample"], given["timestep"], conditions=conditions, return_dict=False)[0]
    torch.testing.assert_close(once, unet(**given).sample, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["timestep", "fps", "image_latents", "image_embeddings", "encoder_hidden_states"])
@torch.no_grad()
def test_every_condition_matters(unet, name):
    given = inputs()
    changed = given[name].flip(0) if name in ("timestep", "fps") else -given[name]
    assert (unet(**{**given, name: changed}).sample - unet(**given).sample).abs().max() > 1e-5


@torch.no_grad()
def test_a_video_is_the_same_alone_and_in_a_batch(unet):
    given = inputs()
    together = unet(**given).sample
    for i in range(2):
        alone = unet(**{k: v[i : i + 1] for k, v in given.items()}).sample
        torch.testing.assert_close(alone[0], together[i], atol=2e-5, rtol=0)


@torch.no_grad()
def test_image_latents_may_have_a_frame_axis_or_planes(unet):
    given = inputs()
    image = given.pop("image_latents")[:, :, None]
    expected = unet(**given, image_latents=image[:, :, 0]).sample
    for variant in (image, with_frame_planes(image, 3)):
        torch.testing.assert_close(unet(**given, image_latents=variant).sample, expected, atol=0, rtol=0)


@torch.no_grad()
def test_frames_influence_each_other_and_know_their_place(unet):
    given = inputs(b=1)
    base = unet(**given).sample
    changed = {**given, "sample": given["sample"].clone()}
    changed["sample"][:, :, 2] += 1
    assert (unet(**changed).sample - base)[:, :, 0].abs().max() > 1e-5
    reversed_in_time = unet(**{**given, "sample": given["sample"].flip(2)}).sample.flip(2)
    assert (reversed_in_time - base).abs().max() > 1e-4


@torch.no_grad()
def test_one_frame(unet):
    given = inputs(b=1, f=1)
    output = unet(**given).sample
    assert output.shape == given["sample"].shape
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("missing", ["fps", "image_latents"])
def test_missing_condition_is_named(unet, missing):
    given = inputs()
    given.pop(missing)
    with pytest.raises(ValueError, match=missing):
        unet(**given)


def test_nothing_to_attend_to_is_an_error():
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        tiny_unet(0, **REFINER)(torch.zeros(1, 4, 1, 4, 4), 5)


def test_unsupported_arguments_are_refused(unet):
    with pytest.raises(ValueError, match="cross_attention_kwargs"):
        unet(**inputs(), cross_attention_kwargs={"scale": 1})
    with pytest.raises(ValueError, match="timestep_cond"):
        unet(**inputs(), timestep_cond=torch.zeros(1))


# Sizes


@pytest.mark.parametrize(("size", "nearest"), [((5, 6), "(4, 6)"), ((4, 7), "(4, 8)"), ((0, 6), "(2, 6)")])
def test_bad_latent_size_names_the_nearest_valid(unet, size, nearest):
    with pytest.raises(ValueError) as error:
        unet.check_latent_size(*size)
    assert nearest in str(error.value)


def test_forward_checks_the_size(unet):
    given = inputs(h=5)
    with pytest.raises(ValueError, match="latent size"):
        unet(**given)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((90, 160), None), ((88, 160), "(90, 160)"), ((91, 163), "(90, 160)"), ((0, 8), "(10, 8)")],
)
def test_sizes_of_the_refiner_with_odd_heights(size, nearest):
    with torch.device("meta"):
        unet = I2VGenXLUNet(block_out_channels=(64,) * 4, **REFINER)
    if nearest is None:
        unet.check_latent_size(*size)
        return
    with pytest.raises(ValueError) as error:
        unet.check_latent_size(*size)
    assert nearest in str(error.value)


# Files and precision


@torch.no_grad()
def test_saved_and_loaded_it_gives_the_same(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    loaded = I2VGenXLUNet.from_pretrained(tmp_path)
    assert loaded.config.image_latents_scale == 2.0
    assert not loaded.training
    torch.testing.assert_close(loaded(**inputs()).sample, unet(**inputs()).sample, atol=0, rtol=0)


@torch.no_grad()
def test_bfloat16_is_finite_and_near(unet):
    given = inputs()
    expected = unet(**given).sample
    low = tiny_unet(0).to(torch.bfloat16)
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
    output = low(**given).sample
    assert output.dtype == torch.bfloat16
    assert torch.isfinite(output).all()
    assert (output.float() - expected).norm() / expected.norm() < 0.05


def test_weight_of_another_shape_is_named(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["mid_block.resnets.0.conv1.weight"] = torch.zeros(8, 32, 3, 3)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match=r"mid_block\.resnets\.0\.conv1\.weight"):
        I2VGenXLUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"block_out_channels": (32, 32, 32)},
        {"block_out_channels": (32, 36)},
        {"down_block_types": ("DownBlock3D",)},
    ],
)
def test_configuration_that_does_not_fit_is_an_error(fields):
    with pytest.raises(ValueError, match="block_out_channels"):
        I2VGenXLUNet(**{**TINY_UNET, **fields})

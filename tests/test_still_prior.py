"""The still prior: what a UNet says before it has learned anything."""

from __future__ import annotations

import pytest
import torch

from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.denoiser import noise_levels


@pytest.fixture(scope="module")
def untrained() -> I2VGenXLUNet:
    unet = I2VGenXLUNet(
        block_out_channels=(32, 32),
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=16,
        use_still_prior=True,
    ).eval()
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet


@pytest.mark.parametrize("stage", ["base", "refine"])
@pytest.mark.parametrize("t", [999, 700, 300, 60])
def test_it_is_the_best_linear_guess(untrained: I2VGenXLUNet, stage: str, t: int) -> None:
    """Frame 0 comes back exactly; for the others no multiple of the sample or the image improves the guess."""
    alpha, sigma = noise_levels(stage)
    spread = torch.tensor([1.5, 0.8, 0.5, 0.3])
    variances = torch.cat([torch.zeros(1, 4), (spread**2).expand(15, 4)])
    untrained.set_still_prior(alpha, sigma, variances)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 4, 1, 16, 16, generator=generator)
    latents = image + spread[:, None, None, None] * torch.randn(4, 4, 5, 16, 16, generator=generator)
    latents[:, :, 0] = image[:, :, 0]
    noise = torch.randn(latents.shape, generator=generator)
    sample = alpha[t] * latents + sigma[t] * noise
    conditions = untrained.encode_conditions(5, torch.zeros(4, 3, 32), None, image, torch.full((4,), 8))
    with torch.no_grad():
        velocity = untrained(sample, t, conditions=conditions).sample
    error = velocity - (alpha[t] * noise - sigma[t] * latents)
    assert error[:, :, 0].abs().max() < 1e-3
    for regressor in (sample[:, :, 1:], image.expand_as(latents)[:, :, 1:]):
        for channel in range(4):
            slope = (error[:, channel, 1:] * regressor[:, channel]).mean() / regressor[:, channel].square().mean()
            assert slope.abs() < 0.08  # the gains themselves go from 0.1 to 10


def test_it_is_saved_with_the_weights(untrained: I2VGenXLUNet, tmp_path) -> None:
    untrained.set_still_prior(*noise_levels("base"), torch.rand(16, 4))
    untrained.save_pretrained(tmp_path)
    again = I2VGenXLUNet.from_pretrained(tmp_path)
    for name in ("still_levels", "still_variances"):
        assert torch.equal(getattr(again, name), getattr(untrained, name))
        assert getattr(again, name).abs().max() > 0


def test_the_released_networks_do_without() -> None:
    with torch.device("meta"):
        assert not any("still" in name for name in I2VGenXLUNet().state_dict())

"""nano's motion prior: moving the image as told, and what a UNet says before it has learned anything."""

from __future__ import annotations

import math

import pytest
import torch

from i2vgen.models.prior import MotionPrior
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.objective import NoiseLevels

SPREAD = torch.tensor([1.5, 0.8, 0.5, 0.3])


def prior_with(pan: float = 0.0, tilt: float = 0.0, zoom: float = 0.0, roll: float = 0.0) -> MotionPrior:
    """Speeds a second, whatever the text."""
    prior = MotionPrior(8, 4)
    with torch.no_grad():
        prior.out.bias.copy_(torch.tensor([pan, tilt, zoom, roll]))
    return prior


def ramp(height: int = 16, width: int = 24) -> torch.Tensor:
    """(1 4 1 h w): x, y, distance from the centre and their product, in half frames."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height * 2 - 1, (torch.arange(width) + 0.5) / width * 2 - 1, indexing="ij"
    )
    return torch.stack([x, y, (x**2 + y**2).sqrt(), x * y])[None, :, None]


def moved(prior: MotionPrior, image: torch.Tensor, num_frames: int = 5, fps: float = 4.0) -> torch.Tensor:
    with torch.no_grad():
        return prior.move(image, torch.zeros(1, 3, 8), torch.tensor([fps]), num_frames)


def test_the_first_frame_is_the_image() -> None:
    image = torch.randn(1, 4, 1, 16, 24)
    assert torch.equal(moved(prior_with(pan=0.3, roll=0.2), image)[:, :, :1], image)


@pytest.mark.parametrize(("axis", "channel"), [("pan", 0), ("tilt", 1)])
@pytest.mark.parametrize("speed", [0.4, -0.4])
def test_a_pan_moves_the_window_in_proportion_to_time(axis: str, channel: int, speed: float) -> None:
    """The centre of frame k shows what lies speed * seconds away, so content goes the other way."""
    video = moved(prior_with(**{axis: speed}), ramp())
    middle = video[0, channel, :, 6:10, 10:14].mean(dim=(1, 2))
    expected = torch.arange(5) / 4 * speed
    assert torch.allclose(middle, expected, atol=0.02)


@pytest.mark.parametrize("speed", [0.5, -0.5])
def test_a_zoom_scales_about_the_centre(speed: float) -> None:
    image = ramp()
    video = moved(prior_with(zoom=speed), image)
    factor = (video[0, 0, 4, 4:12, 6:18] / image[0, 0, 0, 4:12, 6:18]).median().item()
    assert factor == pytest.approx(math.exp(-speed), rel=0.02)  # zoomed in, the window is smaller


def test_a_roll_keeps_shapes_in_frames_that_are_not_square() -> None:
    """Turned by a quarter of a circle a second, the window's right edge direction points down, in pixels."""
    image = ramp(32, 16)
    video = moved(prior_with(roll=math.pi / 2), image, num_frames=2, fps=1.0)
    x_in_pixels = video[0, 0, 1, 12:20, 4:12] * 8
    y = torch.arange(12, 20) + 0.5 - 16
    assert torch.allclose(x_in_pixels.mean(dim=1), -y, atol=0.3)


def test_the_same_seconds_give_the_same_frame_at_any_rate() -> None:
    prior, image = prior_with(pan=0.3, zoom=0.2), torch.randn(1, 4, 1, 16, 24)
    slow, fast = moved(prior, image, 3, 2.0), moved(prior, image, 9, 8.0)
    assert torch.allclose(slow[:, :, 2], fast[:, :, 8], atol=1e-5)


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
        use_motion_prior=True,
    ).eval()
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet


@pytest.mark.parametrize("stage", ["base", "refine"])
@pytest.mark.parametrize("t", [999, 700, 300, 60])
def test_the_prior_is_the_best_linear_guess(untrained: I2VGenXLUNet, stage: str, t: int) -> None:
    """Frame 0 comes back exactly; for the others no multiple of the sample or the image improves the guess."""
    levels = NoiseLevels.of_stage(stage)
    alpha, sigma = levels.alphas, levels.sigmas
    variances = torch.cat([torch.zeros(1, 4), (SPREAD**2).expand(15, 4)])
    untrained.motion_prior.set_statistics(alpha, sigma, variances)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 4, 1, 16, 16, generator=generator)
    latents = image + SPREAD[:, None, None, None] * torch.randn(4, 4, 5, 16, 16, generator=generator)
    latents[:, :, 0] = image[:, :, 0]
    noise = torch.randn(latents.shape, generator=generator)
    sample = alpha[t] * latents + sigma[t] * noise
    with torch.no_grad():
        conditions = untrained.encode_conditions(5, torch.zeros(4, 3, 32), None, image, torch.full((4,), 8))
        velocity = untrained(sample, t, conditions=conditions).sample
    error = velocity - (alpha[t] * noise - sigma[t] * latents)
    assert error[:, :, 0].abs().max() < 1e-3
    for regressor in (sample[:, :, 1:], image.expand_as(latents)[:, :, 1:]):
        for channel in range(4):
            slope = (error[:, channel, 1:] * regressor[:, channel]).mean() / regressor[:, channel].square().mean()
            assert slope.abs() < 0.08  # the gains themselves go from 0.1 to 10


def test_statistics_are_saved_with_the_weights(untrained: I2VGenXLUNet, tmp_path) -> None:
    levels = NoiseLevels.of_stage("base")
    untrained.motion_prior.set_statistics(levels.alphas, levels.sigmas, torch.rand(16, 4))
    untrained.save_pretrained(tmp_path)
    again = I2VGenXLUNet.from_pretrained(tmp_path)
    for name in ("levels", "variances"):
        assert torch.equal(getattr(again.motion_prior, name), getattr(untrained.motion_prior, name))
        assert getattr(again.motion_prior, name).abs().max() > 0


def test_both_branches_can_share_the_motion(untrained: I2VGenXLUNet) -> None:
    image, fps = torch.randn(1, 4, 1, 16, 16), torch.tensor([8])
    first = untrained.encode_conditions(4, torch.ones(1, 3, 32), None, image, fps)
    second = untrained.encode_conditions(4, torch.zeros(1, 3, 32), None, image, fps, first.moved)
    assert second.moved is first.moved


def test_the_released_networks_do_without() -> None:
    with torch.device("meta"):
        assert not any("motion" in name for name in I2VGenXLUNet().state_dict())
    with pytest.raises(ValueError, match="use_motion_prior"):
        I2VGenXLUNet(use_motion_prior=True, use_image_latents=False)

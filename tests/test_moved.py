"""The moved image's own pixels, where the result shows it."""

from __future__ import annotations

import pytest
import torch

from i2vgen.pipelines.moved import Moved, encode_moved, restore_detail
from i2vgen.pipelines.options import RefineOptions, replaced


def moved_and_frames() -> tuple[Moved, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 2, 32, 48, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, 2, 4, 6, generator=generator)
    return Moved(latents, pixels), torch.zeros_like(pixels)


def test_where_latents_agree_the_pixels_come_back() -> None:
    moved, frames = moved_and_frames()
    restored = restore_detail(frames, moved.latents, moved, 1.0)
    torch.testing.assert_close(restored, moved.pixels)


def test_where_they_differ_the_frames_stay() -> None:
    moved, frames = moved_and_frames()
    other = moved.latents.clone()
    other[..., 3:] += 10.0
    restored = restore_detail(frames, other, moved, 1.0)
    torch.testing.assert_close(restored[..., 28:], frames[..., 28:])
    assert (restored[..., :12] - moved.pixels[..., :12]).abs().max() < 0.05


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_is_a_share(strength: float) -> None:
    moved, frames = moved_and_frames()
    torch.testing.assert_close(restore_detail(frames, moved.latents, moved, strength), strength * moved.pixels)


def test_networks_without_a_motion_prior_move_nothing(tiny_cascade) -> None:
    assert encode_moved(tiny_cascade.unet, tiny_cascade.vae, *([None] * 4), num_frames=4) is None


def test_the_option_has_a_range() -> None:
    assert RefineOptions().detail == 0.0
    with pytest.raises(ValueError, match="detail must be a number from 0 to 1"):
        replaced(RefineOptions(detail=1.5))

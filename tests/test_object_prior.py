"""The object prior: what it lifts off moves as asked, what it leaves stays, and known motion means what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from i2vgen.data.motion import DURATION, ClipMaker, sample_caption, true_speeds
from i2vgen.data.pack import Pack
from i2vgen.models.object_prior import ObjectPrior, fill, look, shift
from i2vgen.models.prior import MotionPrior
from i2vgen.models.unet import I2VGenXLUNet

WIDTH = 32


@pytest.fixture
def camera() -> MotionPrior:
    return MotionPrior(WIDTH, 4).eval()  # starts as stillness


def box_prior(box: tuple[int, int, int, int], size: int = 96) -> ObjectPrior:
    """A prior that masks a box (top, left, bottom, right) of the grid it looks at, whatever the picture."""
    prior = ObjectPrior(WIDTH).eval()
    logits = torch.full((1, 1, size, size), -20.0)
    top, left, bottom, right = box
    logits[:, :, top:bottom, left:right] = 20.0
    prior.forward = lambda pixels, text: (logits.expand(len(pixels), -1, -1, -1), torch.zeros(len(pixels), 2))
    return prior


def picture() -> torch.Tensor:
    """(1 3 1 96 96): grey, with a white box at rows 32 to 64, columns 16 to 48."""
    image = torch.zeros(1, 3, 1, 96, 96)
    image[..., 32:64, 16:48] = 1.0
    return image


TEXT, FPS = torch.zeros(1, 3, WIDTH), torch.tensor([8.0])


def test_the_masked_box_moves_and_the_rest_stays(camera: MotionPrior) -> None:
    prior = box_prior((32, 16, 64, 48))
    frames = prior.move(camera, picture(), TEXT, FPS, 9, velocity=torch.tensor([[0.25, 0.0]]))
    assert torch.equal(frames[:, :, 0], picture()[:, :, 0])
    last = frames[0, 0, 8]  # one second: a quarter of the width, 24 pixels
    assert last[34:62, 42:70].min() > 0.9
    assert last[34:62, 18:38].abs().max() < 0.1  # filled from the grey around
    assert last[:30].abs().max() < 0.02
    assert last[66:].abs().max() < 0.02


@pytest.mark.parametrize(
    ("velocity", "rows", "columns"), [((0, -0.25), (8, 40), (16, 48)), ((-0.16, 0), (32, 64), (1, 32))]
)
def test_it_goes_where_the_velocity_points(camera, velocity, rows, columns) -> None:
    frames = box_prior((32, 16, 64, 48)).move(camera, picture(), TEXT, FPS, 9, velocity=torch.tensor([velocity]))
    inside = frames[0, 0, 8, rows[0] + 2 : rows[1] - 2, columns[0] + 2 : columns[1] - 2]
    assert inside.min() > 0.9


def test_too_slow_to_see_is_still(camera: MotionPrior) -> None:
    frames = box_prior((32, 16, 64, 48)).move(camera, picture(), TEXT, FPS, 4, velocity=torch.tensor([[0.02, 0.0]]))
    torch.testing.assert_close(frames, picture().expand(-1, -1, 4, -1, -1), atol=1e-5, rtol=0)


def test_the_smaller_component_is_dropped(camera: MotionPrior) -> None:
    prior = box_prior((32, 16, 64, 48))
    straight = prior.move(camera, picture(), TEXT, FPS, 5, velocity=torch.tensor([[0.2, 0.0]]))
    askew = prior.move(camera, picture(), TEXT, FPS, 5, velocity=torch.tensor([[0.2, 0.05]]))
    assert torch.equal(straight, askew)


def test_camera_and_object_move_each_on_its_own_way(camera: MotionPrior) -> None:
    stripes = torch.zeros(1, 3, 1, 96, 96)
    stripes[..., ::16] = -1.0
    stripes[..., 32:64, 16:48] = 1.0
    speeds = torch.tensor([[0.5, 0.0, 0.0, 0.0]])  # half frames a second: the window goes right by a quarter
    velocity = torch.tensor([[0.25, 0.0]])
    last = box_prior((32, 16, 64, 48)).move(camera, stripes, TEXT, FPS, 9, speeds, velocity)[0, 0, 8]
    assert last[40:56, 44:68].min() > 0.8  # the box went right by 24
    assert last[2:20, 8].max() < -0.8  # the stripe of column 32 went left by 24
    assert last[2:20, 12].min() > -0.2


def test_filling_takes_the_nearest_around() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1.0
    known = torch.ones(1, 1, 32, 32)
    known[..., 12:16, 4:8] = 0
    filled = fill(image * known, known)
    assert torch.equal(filled * known, image * known)
    assert filled[..., 12:16, 4:8].abs().max() < 0.2


def test_shifting_leaves_zeros_behind() -> None:
    layer = torch.ones(1, 1, 8, 8)
    moved = shift(layer, torch.tensor([[[0.0, 0.0], [0.5, 0.0]]]))
    assert torch.equal(moved[0, 0, 0], layer[0, 0])
    assert moved[0, 0, 1, :, :4].abs().max() == 0
    assert moved[0, 0, 1, :, 4:].min() > 0.99


@pytest.mark.parametrize("size", [(128, 128), (90, 200), (200, 90), (33, 47)])
def test_any_picture_can_be_looked_at(size: tuple[int, int]) -> None:
    prior = ObjectPrior(WIDTH)
    image = torch.rand(2, 3, *size) * 2 - 1
    logits, velocity = prior(image, torch.zeros(2, 5, WIDTH))
    assert logits.shape[-2:] == look(image).shape[-2:]
    assert velocity.shape == (2, 2)
    assert all(side % 8 == 0 for side in logits.shape[-2:])


def test_every_weight_of_the_network_learns() -> None:
    prior = ObjectPrior(WIDTH)
    logits, velocity = prior(torch.rand(2, 3, 96, 96), torch.rand(2, 5, WIDTH))
    (logits.square().mean() + (velocity - 1).square().mean()).backward()
    assert [n for n, p in prior.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("seed", range(4))
def test_the_image_moved_by_known_speeds_is_the_clip(pack_dir: Path, camera: MotionPrior, seed: int) -> None:
    maker = ClipMaker(Pack(pack_dir), {"camera": 1.0})
    clip = maker.make((96, 64), np.arange(8) / 8 / DURATION, np.random.default_rng(seed))
    speeds, _ = true_speeds(clip.targets)
    frames = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    moved = camera.move(frames[:, :, :1], TEXT, FPS, 8, torch.tensor([speeds]))
    inner = (..., slice(20, 44), slice(30, 66))  # away from what comes into view
    error = (moved - frames)[inner].square().mean()
    assert error < 0.3 * (frames[:, :, :1] - frames)[inner].square().mean() + 1e-3


def test_captions_alone_are_drawn_as_for_clips(pack_dir: Path) -> None:
    pack = Pack(pack_dir)
    drawn = [sample_caption(pack, np.random.default_rng(seed)) for seed in range(60)]
    assert drawn[7] == sample_caption(pack, np.random.default_rng(7))
    assert any("object_x" in targets for _, targets in drawn)
    for caption, targets in drawn:
        if targets.get("object_x", 0) < 0:
            assert "left" in caption
        if "zoom" in targets:
            assert true_speeds(targets)[0][2] * targets["zoom"] > 0


def test_it_needs_the_motion_prior() -> None:
    with pytest.raises(ValueError, match="use_object_prior"):
        I2VGenXLUNet(use_object_prior=True)

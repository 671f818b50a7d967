"""The bundled weights: they are small enough, and they move as told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from i2vgen.evaluate.fidelity import first_frame_psnr
from i2vgen.evaluate.motion import global_motion
from i2vgen.media import load_image
from i2vgen.pipelines import CascadePipeline, load_cascade
from i2vgen.pipelines.loading import NANO_DIR

PHOTO = Path(__file__).parent.parent / "examples" / "castle.jpg"


@pytest.fixture(scope="module")
def nano() -> CascadePipeline:
    return load_cascade("nano", device="cpu", dtype="float32")


def test_the_weights_are_small() -> None:
    sizes = [f.stat().st_size for f in NANO_DIR.rglob("*") if f.is_file()]
    assert sum(sizes) <= 48 * 2**20
    assert max(sizes) < 16 * 2**20


def test_opposite_words_give_opposite_motion(nano: CascadePipeline) -> None:
    """Base stage only, both in one batch; and each is what it is alone."""
    prompts = ["the camera pans left", "the camera pans right"]
    both = nano(PHOTO, prompts, seed=[1, 2], refine=False)
    left, right = (global_motion(frames) for frames in both.frames)
    assert left.dx > 0.08
    assert right.dx < -0.08
    alone = nano(PHOTO, prompts[1], seed=2, refine=False)
    difference = both.frames[1].astype(int) - alone.frames[0].astype(int)
    assert np.abs(difference).max() <= 1  # 1e-4 of the range, rounded to a grey level


def test_the_first_frame_is_the_photo_and_the_seed_is_kept(nano: CascadePipeline) -> None:
    first, second = (nano(PHOTO, "the camera zooms in", seed=5, num_frames=8).frames[0] for _ in range(2))
    assert min(first.shape[1:3]) >= 256
    assert np.array_equal(first, second)
    assert first_frame_psnr(first, load_image(PHOTO)) > 24
    assert global_motion(first).scale > 1.03

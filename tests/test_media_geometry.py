"""Cropping and scaling against the recorded pictures, and tensors to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2vgen.media import (
    MediaError,
    center_crop_wide,
    clip_input,
    fit_image,
    frames_to_tensor,
    frames_to_uint8,
    image_to_tensor,
    load_image,
    nearest_valid_size,
)

GOLDEN = Path(__file__).parent / "golden" / "preprocess"


def test_exact_has_the_black_column_and_the_default_does_not():
    image, size = load_image(GOLDEN / "odd.png"), (448, 256)
    assert np.asarray(center_crop_wide(image, size, exact=True))[:, 0].max() == 0
    white = Image.new("RGB", image.size, "white")
    assert np.asarray(center_crop_wide(white, size, exact=True)).min() == 0
    for source in ((320, 240), (512, 512), (101, 999), (999, 101), (1, 1), (10000, 1), (447, 256)):
        for target in ((448, 256), (256, 448), (7, 5), (1280, 704)):
            crop = center_crop_wide(Image.new("RGB", source, "white"), target)
            assert crop.size == target
            assert np.asarray(crop).min() == 255


def test_default_crop_keeps_the_centre_and_proportions():
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    crop = np.asarray(center_crop_wide(Image.fromarray(pixels), (80, 40)))
    # 200 x 100 of the source is seen; the white third of it is 40 of 80 columns, in the middle.
    assert crop[:, 22:58].min() > 250
    assert crop[:, :18].max() < 5
    assert crop[:, 62:].max() < 5


def test_exact_refuses_a_strip_that_would_fill_memory():
    with pytest.raises(MediaError, match="too elongated"):
        center_crop_wide(Image.new("RGB", (60000, 2)), (1280, 704), exact=True)


def test_fit_pads_or_crops():
    image = Image.new("RGB", (40, 20), "white")
    padded = np.asarray(fit_image(image, 30, 30, "pad"))
    assert padded.shape == (30, 30, 3)
    assert padded[8:22].min() == 255
    assert padded[:7].max() == padded[23:].max() == 0
    assert np.asarray(fit_image(image, 30, 30)).min() == 255
    assert fit_image(Image.new("RGB", (1000, 1)), 16, 16, "pad").size == (16, 16)
    with pytest.raises(MediaError, match="mode is 'stretch'"):
        fit_image(image, 30, 30, "stretch")
    with pytest.raises(MediaError, match="0 x 30"):
        fit_image(image, 0, 30)


def test_clip_input_takes_other_numbers():
    image = Image.new("RGB", (50, 40), (255, 0, 51))
    values = clip_input(image, size=8, mean=(0, 0, 0.2), std=(1, 1, 2))
    assert values.shape == (3, 8, 8)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))


def test_image_to_tensor_range():
    values = image_to_tensor(Image.fromarray(np.array([[[0, 255, 128]]], np.uint8)))
    torch.testing.assert_close(values[:, 0, 0], torch.tensor([-1.0, 1.0, 128 / 127.5 - 1]))


def test_frames_to_uint8_rounds_and_exact_truncates():
    frames = torch.tensor([-3.0, -1.0, 0.0, 0.9999 * 2 - 1, 1.0, 2.0]).expand(1, 3, 1, 2, 6)
    assert frames_to_uint8(frames).shape == (1, 2, 6, 3)
    assert frames_to_uint8(frames)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    assert frames_to_uint8(frames[0], exact=True)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_level_survives_the_tensor(dtype):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    back = frames_to_uint8(frames_to_tensor(pixels).to(dtype))
    # bfloat16 has 8 bits: a level may move by one.
    assert abs(back.astype(int) - pixels).max() <= (0 if dtype == torch.float32 else 1)


def test_bad_frames_are_named():
    good = torch.zeros(1, 3, 2, 4, 4)
    good[0, 0, 1, 0, 0] = float("nan")
    for frames, words in [
        (good, "frames has NaN"),
        (torch.full((3, 1, 2, 2), float("inf")), "frames has NaN or infinite"),
        (torch.zeros(2, 3, 1, 4, 4), "frames has a batch of 2"),
        (torch.zeros(1, 4, 1, 4, 4), "frames has shape"),
        (torch.zeros(3, 0, 4, 4), "frames has shape"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "frames has dtype"),
    ]:
        with pytest.raises(MediaError, match=words):
            frames_to_uint8(frames)
    with pytest.raises(MediaError, match="float64"):
        frames_to_tensor(np.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize(
    "given, expected",
    [((100, 100), (96, 96)), ((112, 113), (128, 128)), ((1, 64), (32, 64)), ((15, 49), (32, 64))],
)
def test_nearest_valid_size(given, expected):
    assert nearest_valid_size(*given, 32) == expected


def test_nearest_valid_size_refuses():
    with pytest.raises(MediaError, match="multiple is 0"):
        nearest_valid_size(10, 10, 0)
    with pytest.raises(MediaError, match="-1 x 10"):
        nearest_valid_size(-1, 10, 8)

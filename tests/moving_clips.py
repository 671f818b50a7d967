"""Clips with a known motion, and pictures with enough structure to follow."""

from __future__ import annotations

import math

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

HEIGHT, WIDTH, NUM_FRAMES = 128, 192, 10


def make_texture(seed=0, side=480):
    """Smooth colour noise at several sizes plus rectangles, `(side side 3)` uint8."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((side, side, 3), np.float32)
    for cells in (6, 15, 40, 90):
        layer = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        texture += cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC)
    texture = 128 + 25 * texture
    for x, y, w, h in rng.integers([0, 0, 15, 15], [side, side, 70, 70], size=(40, 4)):
        texture[y : y + h, x : x + w] += rng.uniform(-70, 70, 3)
    return np.clip(texture, 0, 255).astype(np.uint8)


def make_clip(dx=0.0, dy=0.0, scale=1.0, roll=0.0, num_frames=NUM_FRAMES, seed=0):
    """Content that ends up moved right and down, `scale` times as large and turned clockwise by `roll`."""
    texture = cv2.GaussianBlur(make_texture(seed), (0, 0), 0.8)
    middle = (texture.shape[0] - 1) / 2
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    frames = []
    for share in np.linspace(0, 1, num_frames):
        angle, size = math.radians(roll * share), 0.6 * scale**share
        turn = size * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        offset = centre + share * np.array([dx * WIDTH, dy * HEIGHT]) - turn @ [middle, middle]
        matrix = np.hstack([turn, offset[:, None]])
        frames.append(cv2.warpAffine(texture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR))
    return np.stack(frames)

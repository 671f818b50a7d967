"""Drawn stand-ins for things that a pack has no held-out cut-out of: nothing of the kind was in any training."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIDE = 192  # longest side of a drawing
SUPERSAMPLED = 4
COLOURS = (((198, 42, 38), (250, 214, 90)), ((36, 92, 178), (240, 240, 236)), ((44, 132, 74), (245, 168, 60)))
INK, GLASS = (38, 36, 40), (176, 208, 228)


def draw_thing(noun: str, variant: int) -> tuple[np.ndarray, str]:
    """(uint8 (h w 4) with straight alpha, the side it faces) of a "bird", "fish", "car" or "balloon".

    `variant` chooses the colours. Raises ValueError for another noun.
    """
    if noun not in _DRAW:
        raise ValueError(f"noun={noun!r}: use one of {', '.join(_DRAW)}")
    draw, size, facing = _DRAW[noun]
    canvas = Image.new("RGBA", tuple(SUPERSAMPLED * side for side in size))
    main, other = COLOURS[variant % len(COLOURS)]
    draw(_Pen(ImageDraw.Draw(canvas), canvas.size), main, other)
    # premultiplied while it shrinks, so that no black creeps in from the transparent parts
    pixels = np.asarray(canvas, np.float32)
    alpha = pixels[..., 3:] / 255
    channels = [pixels[..., :3] * alpha, pixels[..., 3:]]
    planes = np.concatenate(channels, axis=2)
    height, width = size[1], size[0]
    small = planes.reshape(height, SUPERSAMPLED, width, SUPERSAMPLED, 4).mean(axis=(1, 3))
    colour = small[..., :3] / np.maximum(small[..., 3:] / 255, 1e-3)
    return np.clip(np.concatenate([colour, small[..., 3:]], axis=2) + 0.5, 0, 255).astype(np.uint8), facing


class _Pen:
    """Draws in fractions of the canvas."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: tuple[int, int]):
        self.draw, self.size = draw, size

    def _at(self, numbers):
        return [value * self.size[index % 2] for index, value in enumerate(numbers)]

    def ellipse(self, box, colour) -> None:
        self.draw.ellipse(self._at(box), fill=(*colour, 255))

    def polygon(self, points, colour) -> None:
        self.draw.polygon(self._at(points), fill=(*colour, 255))

    def box(self, box, colour, radius: float = 0.0) -> None:
        self.draw.rounded_rectangle(self._at(box), radius * self.size[1], fill=(*colour, 255))


def _car(pen: _Pen, main, other) -> None:
    pen.polygon((0.2, 0.48, 0.32, 0.1, 0.68, 0.1, 0.82, 0.48), main)
    pen.polygon((0.26, 0.45, 0.35, 0.18, 0.48, 0.18, 0.48, 0.45), GLASS)
    pen.polygon((0.52, 0.45, 0.52, 0.18, 0.65, 0.18, 0.75, 0.45), GLASS)
    pen.box((0.02, 0.42, 0.98, 0.8), main, 0.12)
    pen.box((0.02, 0.58, 0.98, 0.65), other)
    pen.ellipse((0.91, 0.46, 0.98, 0.58), (255, 246, 200))
    for x in (0.24, 0.76):
        pen.ellipse((x - 0.11, 0.56, x + 0.11, 0.99), INK)
        pen.ellipse((x - 0.05, 0.68, x + 0.05, 0.87), (190, 190, 194))
        pen.box((x - 0.045, 0.765, x + 0.045, 0.785), INK)


def _balloon(pen: _Pen, main, other) -> None:
    pen.ellipse((0.02, 0.0, 0.98, 0.72), main)
    pen.ellipse((0.22, 0.0, 0.78, 0.72), other)
    pen.ellipse((0.38, 0.0, 0.62, 0.72), main)
    pen.polygon((0.14, 0.55, 0.86, 0.55, 0.6, 0.84, 0.4, 0.84), main)
    pen.polygon((0.34, 0.55, 0.66, 0.55, 0.56, 0.84, 0.44, 0.84), other)
    pen.box((0.02, 0.3, 0.98, 0.35), INK)
    pen.box((0.38, 0.86, 0.62, 1.0), (128, 84, 44), 0.02)
    pen.box((0.38, 0.9, 0.62, 0.92), (88, 56, 30))


def _fish(pen: _Pen, main, other) -> None:
    pen.polygon((0.0, 0.1, 0.26, 0.5, 0.0, 0.9, 0.08, 0.5), other)
    pen.polygon((0.4, 0.22, 0.6, 0.0, 0.72, 0.25), other)
    pen.ellipse((0.14, 0.14, 1.0, 0.86), main)
    for x in (0.36, 0.52, 0.68):
        pen.polygon((x, 0.2, x + 0.06, 0.2, x + 0.03, 0.8, x - 0.03, 0.8), other)
    pen.ellipse((0.82, 0.34, 0.92, 0.5), (255, 255, 255))
    pen.ellipse((0.855, 0.38, 0.905, 0.47), INK)


def _bird(pen: _Pen, main, other) -> None:
    pen.polygon((0.0, 0.44, 0.3, 0.5, 0.3, 0.62, 0.0, 0.66), INK)
    pen.ellipse((0.18, 0.36, 0.86, 0.74), main)
    pen.polygon((0.34, 0.5, 0.66, 0.5, 0.42, 0.0), other)
    pen.polygon((0.4, 0.42, 0.6, 0.42, 0.45, 0.12), INK)
    pen.polygon((0.38, 0.6, 0.6, 0.62, 0.36, 1.0), other)
    pen.ellipse((0.72, 0.3, 0.94, 0.6), main)
    pen.polygon((0.92, 0.4, 1.0, 0.46, 0.92, 0.52), (240, 170, 40))
    pen.ellipse((0.82, 0.37, 0.88, 0.46), INK)


_DRAW = {
    "bird": (_bird, (SIDE, 120), "right"),
    "fish": (_fish, (SIDE, 116), "right"),
    "car": (_car, (SIDE, 92), "right"),
    "balloon": (_balloon, (132, SIDE), "none"),
}

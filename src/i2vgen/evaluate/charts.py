"""Line charts as pictures, drawn with what the package needs anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 44, 56
COLOURS = ((20, 20, 24), (200, 60, 40), (40, 110, 190), (60, 150, 80), (150, 90, 170))
BACKGROUND, GRID, INK = (255, 255, 255), (226, 226, 230), (40, 40, 46)


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x_label: str, y_label: str
) -> Image.Image:
    """`lines`: label -> (x, y), y drawn by its logarithm; points that are not positive are left out.

    Raises ValueError when there is no point to draw.
    """
    points = {
        label: [(float(x), math.log10(y)) for x, y in zip(*pair, strict=True) if y > 0 and math.isfinite(y)]
        for label, pair in lines.items()
    }
    every = [point for series in points.values() for point in series]
    if not every:
        raise ValueError("lines: no positive value to draw")
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = math.floor(min(y for _, y in every)), math.ceil(max(y for _, y in every))
    right, high = max(right, left + 1e-9), max(high, low + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    draw.text((LEFT, 12), title, font=ImageFont.load_default(16), fill=INK)
    for exponent in range(low, high + 1):
        y = at(left, exponent)[1]
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        draw.text((LEFT - 8, y), f"1e{exponent}", font=font, fill=INK, anchor="rm")
    for step in range(5):
        value = left + (right - left) * step / 4
        x = at(value, low)[0]
        draw.line((x, TOP, x, HEIGHT - BOTTOM), fill=GRID)
        draw.text((x, HEIGHT - BOTTOM + 8), f"{value:.3g}", font=font, fill=INK, anchor="mt")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12), x_label, font=font, fill=INK, anchor="mb")
    draw.text((8, TOP - 8), y_label, font=font, fill=INK, anchor="lb")
    for index, (label, series) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        draw.line([at(*point) for point in series], fill=colour, width=2, joint="curve")
        y = TOP + 10 + 20 * index
        draw.line((WIDTH - 230, y, WIDTH - 205, y), fill=colour, width=3)
        draw.text((WIDTH - 198, y), label, font=font, fill=INK, anchor="lm")
    return image

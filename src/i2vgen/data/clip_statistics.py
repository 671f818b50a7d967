"""Figures about a set of clips, and histograms of them as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2vgen.data.clip_config import ClipDataConfig
from i2vgen.data.clip_sampler import nearest_buckets

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
NUM_BINS = 24
PANEL_WIDTH, PANEL_HEIGHT, MARGIN, FONT_SIZE = 360, 190, 14, 13
PAPER, INK, FAINT, BAR = (250, 250, 248), (30, 30, 34), (150, 150, 155), (66, 110, 170)


def clip_statistics(rows: Sequence[dict[str, Any]], measures: Sequence[dict[str, float]] = ()) -> dict[str, Any]:
    """Counts, hours and quantiles of clips given as rows with kind, width, height, fps, duration, captions, size.

    `measures`: further numbers of each clip by name (motion, sharpness, ...), some may be missing.
    """
    videos = [row for row in rows if row["kind"] == "video"]
    words = [len(row["captions"][0].split()) for row in rows if row["captions"]]
    columns = {
        "seconds": [row["duration"] for row in videos],
        "fps": [row["fps"] for row in videos],
        "short_side": [min(row["width"], row["height"]) for row in rows],
        "aspect": [row["width"] / row["height"] for row in rows],
        "caption_words": words,
    }
    for name in sorted({name for row in measures for name in row}):
        if name not in columns and name != "side":
            columns[name] = [row[name] for row in measures if name in row]
    buckets = ClipDataConfig().buckets
    in_bucket: Counter[str] = Counter()
    if rows:
        sides = np.array([(row["width"], row["height"]) for row in rows], float)
        numbers = nearest_buckets(sides[:, 0], sides[:, 1], buckets)
        in_bucket = Counter("x".join(map(str, buckets[number])) for number in numbers)
    return {
        "clips": len(rows),
        "videos": len(videos),
        "images": len(rows) - len(videos),
        "hours": round(sum(row["duration"] for row in videos) / 3600, 4),
        "gigabytes": round(sum(row["size"] for row in rows) / 1e9, 4),
        "without_caption": len(rows) - len(words),
        "nearest_default_bucket": dict(in_bucket.most_common()),
        "quantiles": {name: _quantiles(values) for name, values in columns.items() if values},
        "values": {name: values for name, values in columns.items() if values},
    }


def histograms(values: dict[str, list[float]], limits: dict[str, tuple[float | None, float | None]]) -> Image.Image:
    """One panel for each name; `limits` are drawn as lines (lowest and highest that is kept)."""
    columns = min(3, max(1, len(values)))
    num_rows = max(1, -(-len(values) // columns))
    sheet = Image.new("RGB", (columns * PANEL_WIDTH + MARGIN, num_rows * PANEL_HEIGHT + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (name, numbers) in enumerate(values.items()):
        left = MARGIN + number % columns * PANEL_WIDTH
        top = MARGIN + number // columns * PANEL_HEIGHT
        _panel(draw, font, (left, top), name, np.asarray(numbers, float), limits.get(name, (None, None)))
    return sheet


def _panel(draw, font, corner: tuple[int, int], name: str, numbers: np.ndarray, limits) -> None:
    left, top = corner
    width, height = PANEL_WIDTH - MARGIN, PANEL_HEIGHT - 4 * FONT_SIZE
    # A few extreme values would leave one bar.
    low, high = np.percentile(numbers, [1, 99])
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    counts, _ = np.histogram(numbers.clip(low, high), NUM_BINS, (low, high))
    draw.text((left, top), f"{name}: {len(numbers)} clips, median {np.median(numbers):.3g}", font=font, fill=INK)
    base = top + FONT_SIZE + 8 + height
    step = width / NUM_BINS
    for index, count in enumerate(counts):
        bar = round(height * count / max(1, counts.max()))
        x = left + index * step
        draw.rectangle((x, base - bar, x + step - 2, base), fill=BAR)
    draw.line((left, base + 1, left + width, base + 1), fill=INK)
    for limit in limits:
        if limit is not None and low <= limit <= high:
            x = left + (limit - low) / (high - low) * width
            draw.line((x, base - height, x, base), fill=(200, 60, 50), width=2)
    draw.text((left, base + 4), f"{low:.3g}", font=font, fill=FAINT)
    text = f"{high:.3g}"
    draw.text((left + width - font.getlength(text), base + 4), text, font=font, fill=FAINT)


def _quantiles(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, QUANTILES)
    return {f"{q}%": float(f"{value:.4g}") for q, value in zip(QUANTILES, found, strict=True)}

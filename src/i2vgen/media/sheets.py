"""Contact sheets: frames of several videos side by side, for a quick look."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2vgen.media.sources import MediaError

FONT_SIZE = 15
MARGIN = 12
GAP = 3
LABEL_LINES = 2
# More characters than two lines of any sheet can show.
MAX_LABEL = 1000
BACKGROUND, INK = (250, 250, 248), (30, 30, 34)


def contact_sheet(
    videos: Sequence[np.ndarray],
    labels: Sequence[str],
    columns: int = 1,
    frames_per_video: int = 4,
    thumbnail_size: int = 200,
) -> Image.Image:
    """Sheet with one strip of frames for each video, its label above, `columns` strips in a row.

    `videos`: uint8 (f h w 3), sizes may differ. `frames_per_video` frames, evenly spaced from first to last
    (fewer if the video is shorter), are shown with the longer side at `thumbnail_size` pixels. Labels wrap to
    two lines. Raises `MediaError` if there are no videos, the labels do not match, or a number is below 1.
    """
    if not videos:
        raise MediaError("videos is empty: give at least one")
    if len(labels) != len(videos):
        raise MediaError(f"labels has {len(labels)} entries for {len(videos)} videos: give one for each")
    for field, value in (
        ("columns", columns),
        ("frames_per_video", frames_per_video),
        ("thumbnail_size", thumbnail_size),
    ):
        if value < 1:
            raise MediaError(f"{field} is {value}: it must be at least 1")
    for index, video in enumerate(videos):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or video.size == 0:
            raise MediaError(f"videos[{index}] is {video.dtype} {video.shape}: expected uint8 (f h w 3)")

    font = ImageFont.load_default(FONT_SIZE)
    line_height = sum(font.getmetrics()) + 2
    strips = [_strip(video, frames_per_video, thumbnail_size) for video in videos]
    columns = min(columns, len(strips))
    num_rows = -(-len(strips) // columns)
    widths = [max(strip.width for strip in strips[column::columns]) for column in range(columns)]
    wrapped = [_wrap(str(label), font, widths[index % columns], LABEL_LINES) for index, label in enumerate(labels)]
    cells = [strip.height + line_height * len(lines) for strip, lines in zip(strips, wrapped, strict=True)]
    heights = [max(cells[row * columns : (row + 1) * columns]) for row in range(num_rows)]

    size = sum(widths) + MARGIN * (columns + 1), sum(heights) + MARGIN * (num_rows + 1)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (strip, lines) in enumerate(zip(strips, wrapped, strict=True)):
        row, column = divmod(index, columns)
        left = MARGIN * (column + 1) + sum(widths[:column])
        top = MARGIN * (row + 1) + sum(heights[:row])
        for line in lines:
            draw.text((left, top), line, font=font, fill=INK)
            top += line_height
        sheet.paste(strip, (left, top))
    return sheet


def _strip(video: np.ndarray, num_frames: int, thumbnail_size: int) -> Image.Image:
    height, width = video.shape[1:3]
    scale = thumbnail_size / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    num_frames = min(num_frames, len(video))
    indices = np.linspace(0, len(video) - 1, num_frames).round().astype(int)
    strip = Image.new("RGB", (num_frames * (size[0] + GAP) - GAP, size[1]), BACKGROUND)
    for position, index in enumerate(indices):
        frame = Image.fromarray(video[index]).resize(size, Image.Resampling.LANCZOS)
        strip.paste(frame, (position * (size[0] + GAP), 0))
    return strip


def _wrap(label: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Words of `label` in at most `max_lines` lines that fit `width` pixels; the rest becomes an ellipsis."""
    lines = [""]
    for word in label[:MAX_LABEL].split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
    return [_shorten(line, font, width) for line in lines if line]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    length = bisect_left(range(len(line)), True, key=lambda end: font.getlength(line[:end] + "...") > width)
    return line[: max(0, length - 1)].rstrip() + "..."

"""Videos whose frames carry their own number, so that a test can tell exactly which ones it got."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

NUM_BITS = 10


def numbered(index: int, width: int = 80, height: int = 48) -> np.ndarray:
    """uint8 (h w 3): one vertical bar a bit, white for 1, most significant first."""
    bits = [index >> bit & 1 for bit in reversed(range(NUM_BITS))]
    columns = np.repeat(bits, -(-width // NUM_BITS))[:width]
    return np.broadcast_to((columns * 235 + 10).astype(np.uint8)[None, :, None], (height, width, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    """The number in a frame of any size that shows the whole width."""
    width = frame.shape[1]
    centres = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    row = frame[frame.shape[0] // 2, centres].mean(axis=-1) > 127
    return int("".join("1" if bit else "0" for bit in row), 2)


def write_clip(
    path: Path | io.BytesIO,
    times: Iterable[float],
    first: int = 0,
    size: tuple[int, int] = (80, 48),
    gop: int = 12,
    pictures=None,
    format: str | None = None,
) -> None:
    """H.264 with B-frames and a key frame every `gop` frames; frame i is number `first` + i, shown at times[i] s."""
    times = list(times)
    target = path if isinstance(path, io.BytesIO) else str(path)
    with av.open(target, "w", format=format or (None if not isinstance(path, io.BytesIO) else "mp4")) as container:
        options = {"g": str(gop), "bf": "2", "sc_threshold": "0", "crf": "16", "preset": "ultrafast", "threads": "1"}
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 12000)
        for index, time in enumerate(times):
            pixels = numbered(first + index, *size) if pictures is None else pictures(index)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 12000), Fraction(1, 12000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def clip_bytes(times: Iterable[float], **options) -> bytes:
    file = io.BytesIO()
    write_clip(file, times, **options)
    return file.getvalue()


def photo_bytes(index: int, size: tuple[int, int] = (80, 48)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numbered(index, *size)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]

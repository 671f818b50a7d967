"""Writing videos: MP4, WebM, GIF, WebP and PNG frames, never half a file."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from i2vgen.media.arrays import frames_to_uint8
from i2vgen.media.frame_series import FOLDER_PATTERN, FPS_TAG, frame_name, frame_target
from i2vgen.media.settings import (
    EXIF_IMAGE_DESCRIPTION,
    SETTINGS_FILE,
    SETTINGS_PREFIX,
    SETTINGS_TAG,
    encode_settings,
)
from i2vgen.media.sources import MediaError, describe

SUFFIXES = (".mp4", ".webm", ".gif", ".webp", ".png")
CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
# Constant rate factor of H.264 and VP9 (lower is better), quality of WebP (0..100).
QUALITIES = {
    "small": {".mp4": 26, ".webm": 36, ".webp": 70},
    "standard": {".mp4": 16, ".webm": 22, ".webp": 90},
    "high": {".mp4": 10, ".webm": 12, ".webp": 98},
}
MAX_GIF_FPS = 50.0
BT709, LIMITED_RANGE = 1, 1


def check_writable(path: str | os.PathLike) -> None:
    """Make sure, before any work, that `write_video` can write to `path`; changes nothing on disk.

    Raises `MediaError` for an unknown suffix, a file where a folder is needed or the reverse, a folder that
    may not be written to, and a PyAV built without the encoder.
    """
    name = describe(path)
    try:
        target = Path(path).expanduser()
        suffix = target.suffix.lower()
        is_folder = target.is_dir() or not suffix
        if not is_folder and suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise MediaError(f"{name}: unknown suffix {target.suffix!r}: use {known}, or no suffix for a folder")
        if target.is_dir() and suffix in SUFFIXES:
            raise MediaError(f"{name} is a directory: choose another name, or remove it")
        if is_folder and target.exists() and not target.is_dir():
            raise MediaError(f"{name} is a file: give it a suffix such as .mp4, or choose another folder")
        ancestor = target if target.is_dir() else target.absolute().parent
        while not ancestor.exists():
            ancestor = ancestor.parent
        if not ancestor.is_dir():
            raise MediaError(f"{name}: {str(ancestor)!r} is not a directory: choose another folder")
        if not os.access(ancestor, os.W_OK | os.X_OK):
            raise MediaError(f"{name}: no permission to write in {str(ancestor)!r}: choose another folder")
    except (OSError, RuntimeError) as error:
        raise MediaError(f"{name} cannot be used as a path ({error}): choose another") from error
    if suffix in CODECS:
        try:
            av.codec.Codec(CODECS[suffix], "w")
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{name}: this PyAV has no {CODECS[suffix]} encoder: pip install av, or write .gif or .webp"
            ) from error


def check_fps(path: str | os.PathLike, fps: float) -> None:
    """Raise `MediaError` for a rate, frames a second, that the format of `path` does not have."""
    if not 0.01 <= fps <= 1000:
        raise MediaError(f"fps is {fps}: give a rate from 0.01 to 1000")
    if Path(path).suffix.lower() == ".gif" and fps > MAX_GIF_FPS:
        raise MediaError(f"fps is {fps:g}: a GIF shows at most {MAX_GIF_FPS:.0f}, write .webp or .mp4")


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray | Tensor,
    fps: float,
    settings: dict[str, Any] | None = None,
    quality: str = "standard",
) -> Path:
    """Write frames, uint8 (f h w 3) or a tensor (1 3 f h w) or (3 f h w) in [-1, 1], at `fps` a second.

    The suffix says how: `.mp4` (H.264, BT.709, playable while it downloads), `.webm` (VP9), `.gif`, `.webp`
    (animated), `name_%04d.png` or `name.png` (a series of PNG files), no suffix (a folder of PNG files).
    MP4 and WebM need even sides: an odd one gets its last row or column repeated once.
    `quality` is "small", "standard" or "high" (MP4, WebM, WebP). `settings` is kept inside the file, for
    `read_settings`. Missing folders are made.

    The file appears, or replaces an older one, only when it is complete. Returns its path, or that of the
    folder or series. Raises `MediaError` for what `check_writable` and `encode_settings` refuse, bad frames,
    fps or quality, and a failed write (disk full).
    """
    check_writable(path)
    target = Path(path).expanduser()
    suffix = "" if target.is_dir() else target.suffix.lower()
    pixels = frames_to_uint8(frames) if isinstance(frames, Tensor) else frames
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise MediaError(f"frames is {describe(frames)}: give uint8 (f h w 3), or a tensor (3 f h w) in [-1, 1]")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise MediaError(f"frames has shape {pixels.shape}: expected (f h w 3) with no side zero")
    check_fps(target, fps)
    if quality not in QUALITIES:
        raise MediaError(f"quality is {quality!r}: use one of {', '.join(QUALITIES)}")
    text = None if settings is None else encode_settings(settings)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if suffix in ("", ".png"):
            return _write_series(target, pixels, fps, text)
        with _replacing(target) as temporary:
            if suffix == ".gif":
                _write_gif(temporary, pixels, fps, text)
            elif suffix == ".webp":
                _write_webp(temporary, pixels, fps, text, QUALITIES[quality][suffix])
            else:
                _write_container(temporary, pixels, fps, text, QUALITIES[quality][suffix])
    except (OSError, av.error.FFmpegError) as error:
        raise MediaError(
            f"{describe(path)} could not be written ({error}): free some space or choose another folder"
        ) from error
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    temporary = target.with_name(f".{target.stem[:60]}.{uuid.uuid4().hex[:12]}{target.suffix.lower()}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_container(path: Path, pixels: np.ndarray, fps: float, text: str | None, crf: int) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    num_frames, height, width = pixels.shape[:3]
    mux_options, codec_options = {}, {"crf": str(crf)}
    if path.suffix == ".mp4":
        # Without use_metadata_tags the muxer drops tags that it does not know.
        mux_options["movflags"] = "+faststart+use_metadata_tags"
    else:
        codec_options |= {"b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"}
    with av.open(str(path.absolute()), "w", options=mux_options) as container:
        if text is not None:
            container.metadata[SETTINGS_TAG] = text
        stream = container.add_stream(CODECS[path.suffix], rate=rate, options=codec_options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE
        for index in range(num_frames):
            even = np.pad(pixels[index], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace="ITU709",
                src_color_range="JPEG",
                dst_color_range="MPEG",
                interpolation="BICUBIC",
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _durations(num_frames: int, fps: float, step: int) -> list[int]:
    """Milliseconds of each frame in multiples of `step`, so rounded that the end of none drifts."""
    ends = [round(index * 1000 / fps / step) * step for index in range(num_frames + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def _write_gif(path: Path, pixels: np.ndarray, fps: float, text: str | None) -> None:
    # One palette for the whole video, from pixels of every frame: still parts do not flicker.
    num_frames, height, width = pixels.shape[:3]
    stride = max(1, round((num_frames * height * width / 250_000) ** 0.5))
    sample = pixels[:, ::stride, ::stride]
    sample = Image.fromarray(sample.reshape(-1, sample.shape[2], 3))
    palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in pixels]
    extra = {} if text is None else {"comment": (SETTINGS_PREFIX + text).encode()}
    durations = _durations(num_frames, fps, 10)
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, **extra)


def _write_webp(path: Path, pixels: np.ndarray, fps: float, text: str | None, quality: int) -> None:
    images = [Image.fromarray(frame) for frame in pixels]
    exif = Image.Exif()
    if text is not None:
        exif[EXIF_IMAGE_DESCRIPTION] = SETTINGS_PREFIX + text
    durations = _durations(len(images), fps, 1)
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, quality=quality, exif=exif
    )


def _write_series(target: Path, pixels: np.ndarray, fps: float, text: str | None) -> Path:
    """PNG files, written to a hidden folder and moved at the end; older, longer series lose their rest."""
    folder, pattern = frame_target(target)
    is_folder = pattern == FOLDER_PATTERN
    temporary = folder.parent / f".{folder.name[:60]}.{uuid.uuid4().hex[:12]}"
    try:
        temporary.mkdir()
        for index, frame in enumerate(pixels):
            chunks = PngImagePlugin.PngInfo()
            if index == 0:
                chunks.add_text(FPS_TAG, repr(float(fps)))
                if text is not None:
                    chunks.add_text(SETTINGS_TAG, text)
            Image.fromarray(frame).save(temporary / frame_name(pattern, index), pnginfo=chunks)
        if is_folder and text is not None:
            (temporary / SETTINGS_FILE).write_text(text, encoding="ascii")
        folder.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
        index = len(pixels)
        while (stale := folder / frame_name(pattern, index)).is_file():
            stale.unlink()
            index += 1
        if is_folder and text is None:
            (folder / SETTINGS_FILE).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder if is_folder else folder / pattern

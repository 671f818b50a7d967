"""Frequency analysis of a video, after I2VGen-XL (arXiv 2311.04145): detail in space, flicker in time.

Frequencies are fractions of the highest one that the grid can hold (0.5 cycles a pixel, half the frame rate).
"""

from __future__ import annotations

import cv2
import numpy as np

from i2vgen.evaluate.motion import dense_flow, grey_frames

NUM_BINS = 32
UPPER_HALF = 0.5
FLICKER_MARGIN = 0.06  # of the frame's sides, left out: there the warped neighbours have no content


def spatial_power(frame: np.ndarray) -> np.ndarray:
    """Power of the luma in rings of frequency, float64 `(NUM_BINS + 1)`; their sum is the variance.

    `frame`: uint8 `(h w 3)`. Ring k holds radial frequencies from k / NUM_BINS on; the last ring the corners, which
    lie beyond the highest frequency of rows and columns. A Hann window keeps the frame's edges out.
    """
    power, radius = _power(frame)
    rings = np.minimum((radius * NUM_BINS).astype(int), NUM_BINS)
    return np.bincount(rings.ravel(), power.ravel(), NUM_BINS + 1)


def upper_energy(power: np.ndarray) -> float:
    """Energy of `spatial_power` at the radial frequencies from half the highest on."""
    return float(power[round(UPPER_HALF * NUM_BINS) :].sum())


def detail_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """How far the detail of two frames is the same, -1 to 1: correlation of their upper halves of the spectrum.

    Both uint8 `(h w 3)` of one size. Energy alone cannot tell detail from noise.
    """
    spectra = []
    for frame in (first, second):
        spectrum, radius = _spectrum(frame)
        spectra.append(np.where(radius >= UPPER_HALF, spectrum, 0))
    norm = np.sqrt(np.prod([np.sum(np.abs(s) ** 2) for s in spectra]))
    return float(np.real(np.vdot(spectra[0], spectra[1])) / norm) if norm > 0 else 0.0


def temporal_power(frames: np.ndarray) -> np.ndarray:
    """Mean power over all pixels at each temporal frequency, from 0 on: float64 `(f // 2 + 1)`.

    `frames`: uint8 `(f h w 3)`. The mean over time is taken out; a Hann window keeps first and last frame apart.
    """
    luma = np.stack(grey_frames(frames)).astype(np.float64)
    window = np.hanning(len(luma) + 2)[1:-1, None, None]
    spectrum = np.fft.rfft((luma - luma.mean(0)) * window, axis=0)
    return (np.abs(spectrum) ** 2).mean(axis=(1, 2)) / np.sum(window**2)


def flicker(frames: np.ndarray) -> float:
    """Mean absolute second difference in time along the motion, in grey levels (0 to 255).

    Each frame's neighbours are warped onto it by dense optical flow, |before - 2 x frame + after| is averaged over
    the pixels whose content both neighbours show. `frames`: uint8 `(f h w 3)`, at least 3. Even motion of a rigid
    picture gives little, noise of deviation s gives about 2 s. Raises ValueError for fewer frames.
    """
    if len(frames) < 3:
        raise ValueError(f"frames={frames.shape}: a second difference needs 3 frames or more")
    grey = grey_frames(frames)
    values = []
    for before, frame, after in zip(grey, grey[1:], grey[2:], strict=False):
        (past, past_valid), (future, future_valid) = _warped(before, frame), _warped(after, frame)
        difference = np.abs(past - 2 * frame.astype(np.float32) + future)
        values.append(difference[past_valid & future_valid].mean())
    return float(np.mean(values))


def _warped(other: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(`other` moved onto `frame` as float32, where that is content of `other`)"""
    height, width = frame.shape
    flow = dense_flow(frame, other)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    at_x, at_y = x + flow[..., 0], y + flow[..., 1]
    # Lanczos: a linear kernel would count the softness of its own half-pixel positions as flicker
    moved = cv2.remap(other.astype(np.float32), at_x, at_y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    valid = (at_x >= 3) & (at_x <= width - 4) & (at_y >= 3) & (at_y <= height - 4)
    rows, columns = round(FLICKER_MARGIN * height), round(FLICKER_MARGIN * width)
    inside = np.zeros_like(valid)
    inside[rows : height - rows, columns : width - columns] = True
    return moved, valid & inside


def _power(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spectrum, radius = _spectrum(frame)
    return np.abs(spectrum) ** 2, radius


def _spectrum(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(windowed spectrum of the luma without its mean, scaled to variance; radial frequency), both `(h w)`"""
    luma = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY).astype(np.float64)
    height, width = luma.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    luma = (luma - np.sum(luma * window) / window.sum()) * window
    spectrum = np.fft.fft2(luma) / np.sqrt(luma.size * np.sum(window**2))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) / 0.5
    return spectrum, radius

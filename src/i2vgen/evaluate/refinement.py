"""Measure "spectrum": does the refiner earn its stage, by the paper's own frequency analysis?

A larger photo is panned over for real; the model gets the first frame and the words for the pan. Refined frames,
the base stage's frames enlarged bicubically, and the real pan are then compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from i2vgen.evaluate.animator import Animator
from i2vgen.evaluate.bars import Report, Table, at_most, below, mean, number, within
from i2vgen.evaluate.charts import line_chart
from i2vgen.evaluate.real_moves import sharp_pan, times_of
from i2vgen.evaluate.runs import finished, num_errors, write_image
from i2vgen.evaluate.spectrum import NUM_BINS, detail_agreement, flicker, spatial_power, temporal_power, upper_energy
from i2vgen.evaluate.wordings import camera_wording
from i2vgen.media import load_image

KINDS = ("pan-left", "pan-right")
SOURCES = {"real": "real pan", "refined": "refined", "base": "base, bicubic"}


@dataclass(frozen=True)
class SpectrumItem:
    photo: Path
    kind: str
    seed: int
    prompt: str

    @property
    def key(self) -> str:
        return f"{self.photo.name}/{self.kind}/{self.seed}"


def plan(photos: dict[Path, str], num_seeds: int, wordings: str = "held-out") -> list[SpectrumItem]:
    """Both pans of every photo."""
    items = []
    for photo, caption in photos.items():
        for kind in KINDS:
            for seed in range(num_seeds):
                wording = camera_wording(kind, "plain", photo.name, seed, wordings)
                items.append(SpectrumItem(photo, kind, seed, f"{caption}, {wording}" if caption else wording))
    return items


def work(item: SpectrumItem, animator: Animator) -> tuple[dict, dict[str, np.ndarray]]:
    """Make and analyse one pan. A photo too small is recorded as skipped.

    The detail of the real pan is that of whole-pixel windows, its flicker that of an evenly moving one.
    """
    image = load_image(item.photo)
    record = {"photo": item.photo.name, "kind": item.kind, "seed": item.seed}
    size, times = animator.size_for(image.size), times_of(animator.num_frames, animator.fps)
    real = sharp_pan(np.asarray(image), item.kind, size, times)
    if real is None:
        return record | {"skipped": "the photo is too small to be panned over without being enlarged"}, {}
    windows = sharp_pan(np.asarray(image), item.kind, size, times, is_whole=True)
    made = animator.animate(Image.fromarray(windows[0]), item.prompt, item.seed, keep_base=True)
    base = enlarge(made.base_frames, size)
    through_vae = animator.reconstruct(real)
    record |= {
        "spatial": {
            name: mean_power(frames).tolist()
            for name, frames in (("real", windows), ("refined", made.frames), ("base", base))
        },
        "temporal": {
            name: temporal_power(frames).tolist()
            for name, frames in (("real", real), ("refined", made.frames), ("base", base), ("vae", through_vae))
        },
        "flicker": {
            name: flicker(frames)
            for name, frames in (("real", real), ("refined", made.frames), ("base", base), ("vae", through_vae))
        },
        "upper_vae": upper_energy(spatial_power(animator.reconstruct(windows[:1])[0])),
        "upper_first": upper_energy(spatial_power(windows[0])),
        "agreement": detail_agreement(made.frames[0], windows[0]),
        "agreement_base": detail_agreement(base[0], windows[0]),
        "seconds": made.seconds,
        "size": list(made.frames.shape[:3]),
    }
    return record, {"refined": made.frames, "base, bicubic": base, "real": real}


def mean_power(frames: np.ndarray) -> np.ndarray:
    """`spatial_power` averaged over the frames `(f h w 3)`."""
    return np.mean([spatial_power(frame) for frame in frames], axis=0)


def enlarge(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames `(f h w 3)` uint8 enlarged bicubically to `size` (W, H)."""
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def detail_ratio(clip: dict, name: str) -> float:
    """Energy in the upper half of the spectrum of "refined" or "base", of the real pan's."""
    return upper_energy(np.array(clip["spatial"][name])) / upper_energy(np.array(clip["spatial"]["real"]))


def report(results: dict, notes: list[str]) -> Report:
    clips = [clip for clip in finished(results) if "skipped" not in clip]
    refined, base = (geometric_mean(detail_ratio(clip, name) for clip in clips) for name in ("refined", "base"))
    flickers = {
        name: geometric_mean(c["flicker"][name] / c["flicker"]["real"] for c in clips) for name in (*SOURCES, "vae")
    }
    bars = [
        within(
            "refined frames, energy in the upper half of the spectrum, of the real photo's", refined, 0.75, 1.25, "x", 3
        ),
        below("base frames enlarged bicubically, the same", base, 0.6, "x", 3),
        at_most("temporal flicker of refined frames, of a real pan's", flickers["refined"], 1.3, "x", 3),
    ]
    rows = []
    for photo in [*sorted({clip["photo"] for clip in clips}), None]:
        of_photo = [clip for clip in clips if photo in (None, clip["photo"])]
        if of_photo:
            rows.append(_row(photo or "all", of_photo))
    vae = geometric_mean(clip["upper_vae"] / clip["upper_first"] for clip in clips)
    notes = [
        "Ratios are geometric means over clips. Upper half: radial frequencies from a quarter of a cycle a pixel on, "
        "of the luma under a Hann window, mean over all frames; the real frames are whole-pixel windows of the photo.",
        "Flicker: mean |before - 2 frame + after| of neighbours warped onto the frame by dense flow; the real pan is "
        "the same photo moved evenly with a Lanczos kernel.",
        "Detail that is the photo's: correlation of the upper halves of the spectra of first frame and photo.",
        f"The VAE alone, frame by frame, keeps {number(vae, 2)} of that energy, and gives a real pan "
        f"{number(flickers['vae'], 2)} x its flicker.",
        f"Left out because the photo is too small for the path: {len(finished(results)) - len(clips)}.",
        *notes,
    ]
    return Report(
        "spectrum", bars, [Table("By photo:", _HEADER, rows)], notes, len(results["clips"]), num_errors(results)
    )


def geometric_mean(ratios) -> float | None:
    ratios = np.array(list(ratios))
    return float(np.exp(np.log(np.maximum(ratios, 1e-9)).mean())) if len(ratios) else None


def write_charts(results: dict, folder: str | Path) -> list[Path]:
    """spectrum-spatial.png and spectrum-temporal.png: mean spectra over all clips; none without clips."""
    clips = [clip for clip in finished(results) if "skipped" not in clip]
    if not clips:
        return []
    spatial = {
        label: (
            (np.arange(NUM_BINS) + 0.5) / NUM_BINS,
            np.mean([clip["spatial"][name][:NUM_BINS] for clip in clips], axis=0),
        )
        for name, label in SOURCES.items()
    }
    temporal = {}
    for name, label in (SOURCES | {"vae": "real pan through the VAE"}).items():
        power = np.mean([clip["temporal"][name] for clip in clips], axis=0)
        temporal[label] = (np.linspace(0, 1, len(power)), power)
    charts = {
        "spatial": (spatial, "Spatial spectrum", "radial frequency, of the highest"),
        "temporal": (temporal, "Temporal spectrum", "temporal frequency, of half the frame rate"),
    }
    paths = []
    for name, (lines, title, x_label) in charts.items():
        paths.append(Path(folder) / f"spectrum-{name}.png")
        write_image(paths[-1], line_chart(lines, title, x_label, "power"))
    return paths


def worst_first(results: dict) -> list[str]:
    """Keys of the clips for the sheet, the farthest from the real detail first."""
    clips = {k: c for k, c in results["clips"].items() if "spatial" in c}
    return sorted(clips, key=lambda key: -abs(np.log(max(detail_ratio(clips[key], "refined"), 1e-9))))


_HEADER = ("photo", "clips", "refined / real", "base / real", "flicker / real", "base flicker / real")
_HEADER += ("detail that is the photo's, refined", "base")


def _row(label: str, clips: list[dict]) -> tuple[str, ...]:
    ratios = [geometric_mean(detail_ratio(clip, name) for clip in clips) for name in ("refined", "base")]
    ratios += [geometric_mean(c["flicker"][name] / c["flicker"]["real"] for c in clips) for name in ("refined", "base")]
    agreements = [mean(clip[name] for clip in clips) for name in ("agreement", "agreement_base")]
    return (label, str(len(clips)), *(number(value, 2) for value in (*ratios, *agreements)))

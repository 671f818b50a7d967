"""Measure "vae": how well the VAE alone keeps a photo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from i2vgen.evaluate.animator import Animator
from i2vgen.evaluate.bars import Report, Table, at_least, mean, number
from i2vgen.evaluate.fidelity import SSIM_WINDOW, psnr, ssim
from i2vgen.evaluate.runs import finished, num_errors
from i2vgen.evaluate.spectrum import spatial_power, upper_energy
from i2vgen.media import center_crop_wide, load_image

MAX_PSNR = 100.0


@dataclass(frozen=True)
class PhotoItem:
    photo: Path
    prompt: str = ""

    @property
    def key(self) -> str:
        return self.photo.name


def plan(photos: dict[Path, str]) -> list[PhotoItem]:
    return [PhotoItem(photo) for photo in photos]


def work(item: PhotoItem, animator: Animator) -> tuple[dict, dict[str, np.ndarray]]:
    """The photo at the video's size, through the VAE by the mean of the posterior."""
    image = load_image(item.photo)
    photo = np.asarray(center_crop_wide(image, animator.size_for(image.size)))[None]
    kept = animator.reconstruct(photo)
    record = {"photo": item.photo.name, "psnr": min(psnr(kept, photo), MAX_PSNR), "size": list(photo.shape[1:3])}
    record["ssim"] = ssim(kept, photo) if min(photo.shape[1:3]) >= SSIM_WINDOW else None
    energy = upper_energy(spatial_power(photo[0]))
    record["detail"] = upper_energy(spatial_power(kept[0])) / energy if energy > 0 else None
    return record, {"VAE": kept, "photo": photo}


def report(results: dict, notes: list[str]) -> Report:
    clips = finished(results)
    bars = [at_least("VAE alone on held-out photos, mean PSNR", mean(clip["psnr"] for clip in clips), 28, "dB")]
    rows = []
    for clip in clips:
        size = f"{clip['size'][1]}x{clip['size'][0]}"
        rows.append((clip["photo"], size, number(clip["psnr"]), number(clip["ssim"], 3), number(clip["detail"], 2)))
    header = ("photo", "size", "PSNR, dB", "SSIM", "detail kept (upper half of the spectrum)")
    return Report("vae", bars, [Table("", header, rows)], notes, len(results["clips"]), num_errors(results))


def worst_first(results: dict) -> list[str]:
    clips = {k: c for k, c in results["clips"].items() if "error" not in c}
    return sorted(clips, key=lambda key: clips[key]["psnr"])

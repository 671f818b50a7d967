"""Measures "truth" and "film": against a video that really followed the first frame.

The figure is the gain over the still image repeated: mean PSNR of frames 1 to the last, minus the same of frame 0
shown all the time. Frame 0 is left out, because the still image has it without error and so infinitely well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from i2vgen.data.pack import Pack, Shot
from i2vgen.evaluate.animator import Animator
from i2vgen.evaluate.bars import Report, Table, above, at_least, mean, number, share_text
from i2vgen.evaluate.fidelity import psnr
from i2vgen.evaluate.held_out import stable_rng
from i2vgen.evaluate.real_moves import TRUTH_KINDS, filmed, moved_still, times_of
from i2vgen.evaluate.runs import finished, num_errors
from i2vgen.evaluate.wordings import camera_wording
from i2vgen.media import center_crop_wide, load_image

MAX_PSNR = 100.0
FILM_FPS = 24


@dataclass(frozen=True)
class TruthItem:
    photo: Path
    kind: str
    seed: int
    prompt: str

    @property
    def key(self) -> str:
        return f"{self.photo.name}/{self.kind}/{self.seed}"


@dataclass(frozen=True)
class FilmItem:
    shot: Shot
    seed: int
    prompt: str

    @property
    def key(self) -> str:
        return f"{self.shot.start_frame}/{self.seed}"


def plan(photos: dict[Path, str], num_seeds: int, wordings: str = "held-out") -> list[TruthItem]:
    """Pans, tilts and zooms of every photo, plain speed."""
    items = []
    for photo, caption in photos.items():
        for kind in TRUTH_KINDS:
            for seed in range(num_seeds):
                wording = camera_wording(kind, "plain", photo.name, seed, wordings)
                items.append(TruthItem(photo, kind, seed, f"{caption}, {wording}" if caption else wording))
    return items


def plan_film(shots: list[Shot], num_seeds: int) -> list[FilmItem]:
    """Every shot from its first frame, told by its own caption."""
    return [FilmItem(shot, seed, shot.caption) for shot in shots for seed in range(num_seeds)]


def work(item: TruthItem, animator: Animator) -> tuple[dict, dict[str, np.ndarray]]:
    """Film the photo, give the model frame 0 and the words, compare. A photo too small is recorded as skipped."""
    image = load_image(item.photo)
    record = {"photo": item.photo.name, "kind": item.kind, "seed": item.seed}
    times = times_of(animator.num_frames, animator.fps)
    rng = stable_rng(item.photo.name, item.kind, item.seed)
    truth = filmed(np.asarray(image), item.kind, animator.size_for(image.size), times, rng)
    if truth is None:
        return record | {"skipped": "the photo is too small to be filmed without being enlarged"}, {}
    made = animator.animate(Image.fromarray(truth[0]), item.prompt, item.seed)
    record |= compare(made.frames, truth) | {"seconds": made.seconds, "size": list(made.frames.shape[:3])}
    record["ceiling"] = frame_psnr(moved_still(truth[0], item.kind, times), truth)
    return record, {"model": made.frames, "truth": truth}


def work_film(item: FilmItem, animator: Animator, pack: Pack) -> tuple[dict, dict[str, np.ndarray]]:
    """The shot at the model's rate, cropped to its size; a short shot is compared as far as it goes."""
    truth = shot_frames(pack, item.shot, animator)
    made = animator.animate(Image.fromarray(truth[0]), item.prompt, item.seed)
    record = {"shot": item.shot.start_frame, "motion": item.shot.motion, "seed": item.seed}
    record |= compare(made.frames[: len(truth)], truth)
    record |= {"seconds": made.seconds, "num_frames": len(truth), "size": list(made.frames.shape[:3])}
    return record, {"model": made.frames, "truth": truth}


def shot_frames(pack: Pack, shot: Shot, animator: Animator) -> np.ndarray:
    """uint8 `(f h w 3)` from the shot's first frame, at the model's rate and size, at most the model's frames.

    Raises ValueError for a model rate above the film's.
    """
    if animator.fps > FILM_FPS:
        raise ValueError(f"film: it has {FILM_FPS} frames a second and the model makes {animator.fps}")
    wanted = np.round(np.arange(animator.num_frames) * FILM_FPS / animator.fps).astype(int)
    wanted = wanted[wanted < shot.end_frame - shot.start_frame]
    frames = pack.film_frames(shot.start_frame, int(wanted[-1]) + 1)[wanted]
    size = animator.size_for(frames.shape[2:0:-1])
    return np.stack([np.asarray(center_crop_wide(Image.fromarray(frame), size)) for frame in frames])


def compare(frames: np.ndarray, truth: np.ndarray) -> dict:
    """Figures of a video against the truth, both uint8 `(f h w 3)`; ValueError where they differ in shape."""
    still = np.repeat(truth[:1], len(truth), axis=0)
    return {
        "psnr": frame_psnr(frames, truth),
        "still_psnr": frame_psnr(still, truth),
        "pooled": min(psnr(frames, truth), MAX_PSNR),
        "still_pooled": min(psnr(still, truth), MAX_PSNR),
        "first_psnr": min(psnr(frames[0], truth[0]), MAX_PSNR),
        # to see that the comparison is not blurred away: the still image moved as the video's content does
        "sharpness": float(_gradient(frames[1:]) / max(_gradient(truth[1:]), 1e-6)),
    }


def frame_psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean PSNR in dB of frames 1 to the last; an exact frame counts `MAX_PSNR`."""
    if frames.shape != truth.shape:
        raise ValueError(f"frames={frames.shape} and truth={truth.shape} differ in shape")
    return float(np.mean([min(psnr(a, b), MAX_PSNR) for a, b in zip(frames[1:], truth[1:], strict=True)]))


def _gradient(frames: np.ndarray) -> float:
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    return float(np.mean([np.abs(cv2.Laplacian(frame, cv2.CV_32F)).mean() for frame in grey]))


def report(results: dict, notes: list[str]) -> Report:
    clips = [clip for clip in finished(results) if "skipped" not in clip]
    gains = [clip["psnr"] - clip["still_psnr"] for clip in clips]
    bars = [at_least("pan, tilt or zoom of a larger photo, mean PSNR above the still image", mean(gains), 3, "dB", 2)]
    rows = [_row(kind, [clip for clip in clips if clip["kind"] == kind]) for kind in TRUTH_KINDS]
    rows = [row for row in [*rows, _row("all", clips)] if row]
    num_skipped = len(finished(results)) - len(clips)
    notes = [
        "PSNR: mean over frames 1 to the last; 'all frames' is that of the squared error of all frames together, "
        "the first included. 'Perfect motion': the first frame moved exactly as filmed, its edges mirrored.",
        "Amounts: what the words mean for nano, pan and tilt 18 % of the frame, zoom exp(0.24), in 15/8 s.",
        f"Left out because the photo is too small for the path: {num_skipped} of {len(finished(results))}.",
        *notes,
    ]
    table = Table("By motion, PSNR in dB:", _HEADER, rows)
    return Report("truth", bars, [table], notes, len(results["clips"]), num_errors(results))


def report_film(results: dict, notes: list[str]) -> Report:
    clips = finished(results)
    gains = [clip["psnr"] - clip["still_psnr"] for clip in clips]
    bars = [above("film, its held-out shots, mean PSNR above the still image", mean(gains), 0, "dB", 2)]
    rows = []
    for shot in sorted({clip["shot"] for clip in clips}):
        of_shot = [clip for clip in clips if clip["shot"] == shot]
        frames, height, width = (of_shot[0]["num_frames"], *of_shot[0]["size"][1:])
        label = f"frame {shot}, {width}x{height}, {frames} frames, motion {of_shot[0]['motion']:g}"
        rows.append(_row(label, of_shot)[:-1])
    if clips:
        rows.append(_row("all", clips)[:-1])
    notes = [
        "Shots from their first frame, at the model's rate, scaled and cropped at the centre to the model's size; "
        "a shot shorter than the video is compared as far as it goes.",
        "PSNR: mean over frames 1 to the last; motion: mean flow of the shot in px a frame at 512x288.",
        *notes,
    ]
    table = Table("By shot, PSNR in dB:", ("shot", *_HEADER[1:-1]), rows)
    return Report("film", bars, [table], notes, len(results["clips"]), num_errors(results))


_HEADER = ("motion", "clips", "model", "still", "gain", "better than still", "all frames: gain", "sharpness")
_HEADER += ("perfect motion: gain",)


def _row(label: str, clips: list[dict]) -> tuple[str, ...] | None:
    if not clips:
        return None
    gains = [clip["psnr"] - clip["still_psnr"] for clip in clips]
    return (
        label,
        str(len(clips)),
        number(mean(clip["psnr"] for clip in clips)),
        number(mean(clip["still_psnr"] for clip in clips)),
        number(mean(gains), 2, sign=True),
        share_text([gain > 0 for gain in gains]),
        number(mean(clip["pooled"] - clip["still_pooled"] for clip in clips), 2, sign=True),
        number(mean(clip["sharpness"] for clip in clips), 2),
        number(mean(clip["ceiling"] - clip["still_psnr"] for clip in clips if "ceiling" in clip), 2, sign=True),
    )


def worst_first(results: dict) -> list[str]:
    """Keys of the clips for the sheet, the least gain first."""
    clips = {k: c for k, c in results["clips"].items() if "psnr" in c}
    return sorted(clips, key=lambda key: clips[key]["psnr"] - clips[key]["still_psnr"])

"""The motion suite: does the video move the way its prompt says?

Photos x camera motions x seeds go through a generator; every clip is measured and written down at once, so a
stopped run goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from i2vgen.evaluate.fidelity import first_frame_psnr
from i2vgen.evaluate.motion import (
    EXPECTED_SIGNS,
    expected_sign,
    global_motion,
    mean_flow,
    motion_is_dominant,
    motion_is_right,
)
from i2vgen.media import load_image

WORDINGS: dict[str, tuple[str, ...]] = {
    "pan-left": ("the camera pans to the left", "the camera pans left", "camera panning left"),
    "pan-right": ("the camera pans to the right", "the camera pans right", "camera panning right"),
    "tilt-up": ("the camera tilts up", "the camera tilts upwards", "camera tilting up"),
    "tilt-down": ("the camera tilts down", "the camera tilts downwards", "camera tilting down"),
    "zoom-in": ("the camera zooms in", "the camera slowly zooms in", "camera zooming in"),
    "zoom-out": ("the camera zooms out", "the camera slowly zooms out", "camera zooming out"),
    "roll-clockwise": ("the camera rolls clockwise", "camera rolling clockwise"),
    "roll-counterclockwise": ("the camera rolls counterclockwise", "camera rolling counterclockwise"),
    "static": ("the camera is static", "the camera does not move", "static camera"),
}

# Never to be used in training captions: they show whether the words are understood or only recognised.
HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "pan-left": ("the camera turns toward the left side", "a leftward panning shot"),
    "pan-right": ("the camera turns toward the right side", "a rightward panning shot"),
    "tilt-up": ("the camera turns to look higher up", "an upward tilting shot"),
    "tilt-down": ("the camera turns to look lower down", "a downward tilting shot"),
    "zoom-in": ("the camera gets closer and closer", "a shot that zooms closer"),
    "zoom-out": ("the camera gets farther and farther away", "a shot that zooms back out"),
    "roll-clockwise": ("the camera is rotated clockwise around its lens axis",),
    "roll-counterclockwise": ("the camera is rotated counterclockwise around its lens axis",),
    "static": ("a locked-off shot from a tripod", "the camera stays perfectly still"),
}

KIND_GROUPS: dict[str, tuple[str, ...]] = {
    "pans": ("pan-left", "pan-right"),
    "tilts": ("tilt-up", "tilt-down"),
    "zooms": ("zoom-in", "zoom-out"),
    "rolls": ("roll-clockwise", "roll-counterclockwise"),
    "static": ("static",),
}

MAX_PSNR = 100.0  # dB; an exact copy is infinite, which JSON cannot hold

# (image path, prompt, seed) -> uint8 frames (f h w 3)
Generator = Callable[[Path, str, int], np.ndarray]


@dataclass(frozen=True)
class Item:
    """One clip to make: a photo, a camera motion and its wording, a seed."""

    photo: Path
    kind: str
    seed: int
    prompt: str
    is_held_out: bool = False

    @property
    def key(self) -> str:
        """Name of the clip in the results file, unique within a run."""
        return f"{self.photo.name}/{self.kind}/{self.seed}" + ("/held-out" if self.is_held_out else "")


def find_photos(photo_dir: str | Path, captions_path: str | Path | None = None) -> dict[Path, str]:
    """Photos (jpg, jpeg, png) of a folder in order of name, each with its caption or "".

    `captions_path`: JSONL with the keys `file` (matched by its last path part) and `caption`. Raises
    ValueError when the folder holds no photo or a line of the captions lacks a key.
    """
    captions: dict[str, str] = {}
    if captions_path is not None:
        for number, line in enumerate(Path(captions_path).read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not {"file", "caption"} <= row.keys():
                raise ValueError(f"{captions_path} line {number}: expected the keys file and caption, got {list(row)}")
            captions[Path(row["file"]).name] = row["caption"]
    folder = Path(photo_dir)
    photos = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not photos:
        raise ValueError(f"photos={folder}: no .jpg or .png file there; name a folder of photos")
    return {photo: captions.get(photo.name, "") for photo in photos}


def expand_kinds(names: Iterable[str]) -> list[str]:
    """Groups ("pans") and single kinds ("pan-left") -> kinds, each once; ValueError for another name."""
    kinds: list[str] = []
    for name in names:
        if name not in KIND_GROUPS and name not in EXPECTED_SIGNS:
            raise ValueError(f"kind={name!r} is unknown; use one of {', '.join([*KIND_GROUPS, *EXPECTED_SIGNS])}")
        kinds += [kind for kind in KIND_GROUPS.get(name, (name,)) if kind not in kinds]
    return kinds


def plan_items(photos: dict[Path, str], kinds: Sequence[str], num_seeds: int, wordings: str = "both") -> list[Item]:
    """Every clip of a run. `wordings`: "seen", "held-out" or "both" (one clip of each).

    The wording depends on the photo's name and the seed alone, so adding photos changes no other clip.
    Prompts are "caption, wording". Raises ValueError for another value of `wordings`, an unknown kind,
    or when two photos share a file name.
    """
    tables = {"seen": [WORDINGS], "held-out": [HELD_OUT_WORDINGS], "both": [WORDINGS, HELD_OUT_WORDINGS]}
    if wordings not in tables:
        raise ValueError(f"wordings={wordings!r}: use one of {', '.join(tables)}")
    items = []
    for photo, caption in photos.items():
        start = zlib.crc32(photo.name.encode())
        for kind in kinds:
            expected_sign(kind)
            for seed in range(num_seeds):
                for table in tables[wordings]:
                    wording = table[kind][(start + seed) % len(table[kind])]
                    prompt = f"{caption}, {wording}" if caption else wording
                    items.append(Item(photo, kind, seed, prompt, table is HELD_OUT_WORDINGS))
    if len({item.key for item in items}) < len(items):
        raise ValueError("photos: two of them share a file name; rename one")
    return items


def score_clip(item: Item, frames: np.ndarray, seconds: float) -> dict:
    """Measurements of one finished clip, ready for JSON. `frames`: uint8 `(f h w 3)`."""
    motion = global_motion(frames)
    return {
        "photo": item.photo.name,
        "kind": item.kind,
        "seed": item.seed,
        "prompt": item.prompt,
        "is_held_out": item.is_held_out,
        "motion": asdict(motion),
        "is_right": motion_is_right(item.kind, motion),
        "is_dominant": motion_is_dominant(item.kind, motion),
        "is_measured": motion.is_measured,
        "mean_flow": mean_flow(frames),
        "first_frame_psnr": min(first_frame_psnr(frames, load_image(item.photo)), MAX_PSNR),
        "size": list(frames.shape[:3]),
        "seconds": seconds,
    }


def run_suite(generate: Generator, items: Sequence[Item], results_path: str | Path, settings: dict) -> dict:
    """Generate and score the items that `results_path` does not hold yet; returns the results of all items.

    `settings`: what the clips depend on besides the item (model, stages), as JSON; stored with the results. A
    clip that fails is recorded under its key as `{"error": ...}`, the run goes on, and the next run tries it
    again. Results: `{"settings": ..., "clips": {key: score}}`, rewritten whole after every clip.
    Raises ValueError when the file was made with other settings.
    """
    path = Path(results_path)
    results = {"settings": settings, "clips": {}}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            raise ValueError(
                f"{path} was made with settings {results['settings']}, not {settings}: choose another folder"
            )
    clips = results["clips"]
    waiting = [item for item in items if not _is_finished(clips.get(item.key), item)]
    num_finished = len(items) - len(waiting)
    for item in tqdm(waiting, desc="motion", unit="clip", initial=num_finished, total=len(items)):
        try:
            start = time.perf_counter()
            frames = generate(item.photo, item.prompt, item.seed)
            clips[item.key] = score_clip(item, frames, time.perf_counter() - start)
        except Exception as error:
            clips[item.key] = {"prompt": item.prompt, "error": f"{type(error).__name__}: {error}"}
        write_text(path, json.dumps(results, indent=1))
    return {"settings": settings, "clips": {item.key: clips[item.key] for item in items}}


def _is_finished(clip: dict | None, item: Item) -> bool:
    return clip is not None and "error" not in clip and clip["prompt"] == item.prompt


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

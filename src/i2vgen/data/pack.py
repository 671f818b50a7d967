"""A training pack on disk: photos, cut-outs with alpha and captioned film shots, with fixed splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image


@dataclass
class Photo:
    image: np.ndarray  # uint8 (h w 3)
    caption: str
    subject: str


@dataclass
class Sprite:
    image: np.ndarray  # uint8 (h w 4), straight alpha
    caption: str
    kind: str
    facing: str  # "left" | "right" | "none"


@dataclass
class Shot:
    start_frame: int
    end_frame: int  # half-open
    motion: float  # mean flow in px per frame at 512x288
    caption: str


class Pack:
    """Photos and sprites in memory, the film behind random access. `split` is "train", "val" or "test"."""

    def __init__(self, pack_dir: str | Path, split: str = "train"):
        self.dir = Path(pack_dir)
        if not (self.dir / "photos.jsonl").is_file():
            raise ValueError(f"data.pack_dir: no photos.jsonl in {str(pack_dir)!r}")
        photo_split = {"test": "val"}.get(split, split)
        other_split = {"val": "test"}.get(split, split)
        self.photos = [
            Photo(np.asarray(Image.open(self.dir / row["file"]).convert("RGB")), row["caption"], row["subject"])
            for row in self._rows("photos.jsonl")
            if row["split"] == photo_split
        ]
        self.sprites = [
            Sprite(
                np.asarray(Image.open(self.dir / row["file"]).convert("RGBA")),
                row["caption"],
                row["kind"],
                row["facing"],
            )
            for row in self._rows("sprites.jsonl")
            if row["split"] == other_split
        ]
        self.shots = [
            Shot(row["start_frame"], row["end_frame"], row["motion"], row["caption"])
            for row in self._rows("film/shots.jsonl")
            if row["split"] == other_split
        ]
        self._container = None

    def _rows(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.dir / name).read_text().splitlines() if line.strip()]

    def film_frames(self, start: int, count: int, step: int = 1) -> np.ndarray:
        """Frames start, start + step, ... of the film, uint8 (count h w 3). Decodes from the key frame before."""
        if self._container is None:
            self._container = av.open(str(self.dir / "film" / "bbb.mp4"))
            self._container.streams.video[0].thread_type = "AUTO"
        stream = self._container.streams.video[0]
        rate, base = float(stream.average_rate), float(stream.time_base)
        self._container.seek(int((start + 0.5) / rate / base), stream=stream)
        frames = []
        for frame in self._container.decode(stream):
            index = round(float(frame.pts) * base * rate)
            if index >= start and (index - start) % step == 0:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == count:
                    return np.stack(frames)
        raise ValueError(f"film: asked for {count} frames from {start} in steps of {step}, got {len(frames)}")

"""What the measures are made on: photos, cut-outs and film shots that no training has seen."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from i2vgen.data.pack import Pack, Shot
from i2vgen.evaluate.drawings import draw_thing
from i2vgen.evaluate.wordings import OBJECT_NOUNS

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
# Kind of a pack's cut-outs that may stand for a noun; the other nouns are drawn.
SPRITE_KINDS = {"bird": "bird", "fish": "fish", "car": "vehicle"}
DRAWINGS_PER_NOUN = 2


@dataclass(frozen=True)
class Thing:
    """A cut-out: `image` uint8 (h w 4) with straight alpha, `facing` "left", "right" or "none"."""

    name: str
    noun: str
    image: np.ndarray = field(repr=False)
    facing: str


@dataclass
class HeldOut:
    """`photos`: path -> caption or "". `pack` is None for photos of one's own."""

    photos: dict[Path, str]
    things: list[Thing]
    pack: Pack | None = None

    @property
    def shots(self) -> list[Shot]:
        return [] if self.pack is None else self.pack.shots

    def first(self, limit: int | None) -> HeldOut:
        """The same with the first `limit` photos only."""
        return HeldOut(dict(list(self.photos.items())[:limit]), self.things, self.pack)


def from_pack(pack_dir: str | Path) -> HeldOut:
    """Photos of test.jsonl (of the split "val" where there is none), cut-outs and shots of the split "test".

    Raises ValueError for a folder without photos.jsonl, or whose split holds no photo.
    """
    pack = Pack(pack_dir, "test")
    index = pack.dir / "test.jsonl"
    rows = _rows(index) if index.is_file() else [r for r in _rows(pack.dir / "photos.jsonl") if r["split"] == "val"]
    photos = {pack.dir / row["file"]: row["caption"] for row in rows if row["file"].lower().endswith(PHOTO_SUFFIXES)}
    if not photos:
        raise ValueError(f"pack={str(pack_dir)!r}: it holds no photo for tests; use photos of your own")
    things = [
        Thing(f"{noun}-{index}", noun, sprite.image, sprite.facing)
        for noun, kind in SPRITE_KINDS.items()
        for index, sprite in enumerate(s for s in pack.sprites if s.kind == kind)
    ]
    return HeldOut(photos, _with_drawings(things), pack)


def from_photos(photo_dir: str | Path, captions_path: str | Path | None = None) -> HeldOut:
    """Photos of a folder and drawn things; raises as `find_photos`."""
    return HeldOut(find_photos(photo_dir, captions_path), _with_drawings([]))


def find_photos(photo_dir: str | Path, captions_path: str | Path | None = None) -> dict[Path, str]:
    """Photos (jpg, jpeg, png) of a folder in order of name, each with its caption or "".

    `captions_path`: JSONL with the keys `file` (matched by its last path part) and `caption`. Raises
    ValueError when the folder holds no photo or a line of the captions is not such a row.
    """
    captions = {} if captions_path is None else {Path(r["file"]).name: r["caption"] for r in _rows(captions_path)}
    folder = Path(photo_dir)
    photos = sorted(path for path in folder.glob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise ValueError(f"photos={str(folder)!r}: no .jpg or .png file there; name a folder of photos")
    return {photo: captions.get(photo.name, "") for photo in photos}


def stable_rng(*names: str | int) -> np.random.Generator:
    """A generator that depends on the names alone, so that adding photos changes no other clip."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, names)).encode()))


def _with_drawings(things: list[Thing]) -> list[Thing]:
    """The things, and drawn ones for the nouns that are missing."""
    found = {thing.noun for thing in things}
    drawn = [
        Thing(f"drawn-{noun}-{index}", noun, *draw_thing(noun, index))
        for noun in OBJECT_NOUNS
        if noun not in found
        for index in range(DRAWINGS_PER_NOUN)
    ]
    return sorted(things + drawn, key=lambda thing: OBJECT_NOUNS.index(thing.noun))


def _rows(path: str | Path) -> list[dict]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: it cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: no JSON ({error})") from error
        if not isinstance(row, dict) or not {"file", "caption"} <= row.keys():
            raise ValueError(f"{path} line {number}: expected an object with the keys file and caption")
        rows.append(row)
    return rows

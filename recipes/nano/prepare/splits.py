"""What is held out: by subject, scene or noun, in the order of a SHA-256, so that every rebuild agrees.

Nothing of a held-out group is trained on. Groups that are large are passed over: they would use up the hold-out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

VAL_PHOTOS, MAX_PHOTOS_OF_SUBJECT, MIN_SHORT_SIDE = 20, 3, 256
TEST_SHOTS, MAX_SHOTS_OF_SCENE, MIN_FRAMES = 12, 2, 24
TEST_NOUNS, MAX_SPRITES_OF_NOUN, MIN_SPRITES_OF_KIND = 12, 3, 8


def _order(prefix: str, names: Iterable[Any]) -> list[Any]:
    return sorted(names, key=lambda name: sha256(f"{prefix}:{name}".encode()).hexdigest())


def val_subjects(photos: list[Mapping[str, Any]]) -> set[str]:
    """Subjects of the held-out photos; rows with subject, width, height (px).

    Subjects are taken whole while the photos stay at most 20; passed over are those of more than 3 photos or with a
    photo of a short side under 256.
    """
    groups = defaultdict(list)
    for row in photos:
        groups[row["subject"]].append(min(row["width"], row["height"]))
    chosen, total = set(), 0
    for subject in _order("val", groups):
        sides = groups[subject]
        is_fit = len(sides) <= MAX_PHOTOS_OF_SUBJECT and min(sides) >= MIN_SHORT_SIDE
        if is_fit and total + len(sides) <= VAL_PHOTOS:
            chosen.add(subject)
            total += len(sides)
    return chosen


def test_scenes(shots: list[Mapping[str, Any]]) -> set[int]:
    """Scenes (camera takes) of the held-out shots; rows with scene and frames (a count).

    Scenes are taken whole up to 12 rows; passed over are those of more than 2 rows or with a row under 24 frames.
    """
    groups = defaultdict(list)
    for row in shots:
        groups[row["scene"]].append(row["frames"])
    chosen, total = set(), 0
    for scene in _order("bbb-scene", groups):
        lengths = groups[scene]
        is_fit = len(lengths) <= MAX_SHOTS_OF_SCENE and min(lengths) >= MIN_FRAMES
        if is_fit and total + len(lengths) <= TEST_SHOTS:
            chosen.add(scene)
            total += len(lengths)
    return chosen


def head_noun(file: str) -> str:
    """The last word of a sprite's name: "sprites/red-toy-wagon-1.webp" -> "wagon"."""
    return file.rsplit("/", 1)[-1].rsplit(".", 1)[0].rsplit("-", 1)[0].rsplit("-", 1)[-1]


def test_nouns(sprites: list[Mapping[str, Any]]) -> set[str]:
    """Head nouns of the held-out sprites; rows with file and kind.

    The first 12 nouns that have at most 3 sprites, all of a kind of which there are at least 8.
    """
    kinds = Counter(row["kind"] for row in sprites)
    groups = defaultdict(list)
    for row in sprites:
        groups[head_noun(row["file"])].append(row["kind"])
    fit = [
        noun
        for noun in _order("sprite", groups)
        if len(groups[noun]) <= MAX_SPRITES_OF_NOUN and all(kinds[kind] >= MIN_SPRITES_OF_KIND for kind in groups[noun])
    ]
    return set(fit[:TEST_NOUNS])

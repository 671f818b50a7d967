"""Words that ask for a motion, and how the wording of a clip is chosen."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from i2vgen.evaluate.motion import EXPECTED_SIGNS

# "{speed}" is "slowly", "quickly" or nothing.
WORDINGS: dict[str, tuple[str, ...]] = {
    "pan-left": ("the camera {speed} pans to the left", "the camera pans left {speed}", "camera panning left {speed}"),
    "pan-right": (
        "the camera {speed} pans to the right",
        "the camera pans right {speed}",
        "camera panning right {speed}",
    ),
    "tilt-up": ("the camera {speed} tilts up", "the camera tilts upwards {speed}", "camera tilting up {speed}"),
    "tilt-down": ("the camera {speed} tilts down", "the camera tilts downwards {speed}", "camera tilting down {speed}"),
    "zoom-in": ("the camera {speed} zooms in", "the camera zooms in {speed}", "camera zooming in {speed}"),
    "zoom-out": ("the camera {speed} zooms out", "the camera zooms out {speed}", "camera zooming out {speed}"),
    "roll-clockwise": ("the camera {speed} rolls clockwise", "camera rolling clockwise {speed}"),
    "roll-counterclockwise": ("the camera {speed} rolls counterclockwise", "camera rolling counterclockwise {speed}"),
    "static": ("the camera is static", "the camera does not move", "static camera"),
}

# Never to be used in training captions: they show whether the words are understood or only recognised.
HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "pan-left": ("the camera {speed} turns toward the left side", "a shot that {speed} pans leftward"),
    "pan-right": ("the camera {speed} turns toward the right side", "a shot that {speed} pans rightward"),
    "tilt-up": ("the camera {speed} turns to look higher up", "a shot that {speed} tilts toward the sky"),
    "tilt-down": ("the camera {speed} turns to look lower down", "a shot that {speed} tilts toward the ground"),
    "zoom-in": ("the camera {speed} gets closer and closer", "a shot that {speed} zooms closer"),
    "zoom-out": ("the camera {speed} gets farther and farther away", "a shot that {speed} zooms back out"),
    "roll-clockwise": (
        "the camera is {speed} rotated clockwise on its axis",
        "a shot that {speed} spins clockwise",
    ),
    "roll-counterclockwise": (
        "the camera is {speed} rotated counterclockwise on its axis",
        "a shot that {speed} spins counterclockwise",
    ),
    "static": ("a shot from a tripod that never moves", "the camera stays perfectly still"),
}

OBJECT_WORDINGS: tuple[str, ...] = ("a {noun} moves {where}", "the {noun} moves {where}")
HELD_OUT_OBJECT_WORDINGS: tuple[str, ...] = (
    "a {noun} heads toward the {side}",
    "the {noun} travels across toward the {side}",
    "a {noun} is going over toward the {side}",
)
OBJECT_SIDES = {"left": "left edge", "right": "right edge", "up": "top edge"}
OBJECT_PLACES = {"left": "to the left", "right": "to the right", "up": "up"}
OBJECT_NOUNS = ("bird", "fish", "car", "balloon")

SPEEDS = {"slowly": "slowly", "plain": "", "quickly": "quickly"}
CHOICES = ("held-out", "seen")

KIND_GROUPS: dict[str, tuple[str, ...]] = {
    "pans": ("pan-left", "pan-right"),
    "tilts": ("tilt-up", "tilt-down"),
    "zooms": ("zoom-in", "zoom-out"),
    "rolls": ("roll-clockwise", "roll-counterclockwise"),
    "static": ("static",),
}


def expand_kinds(names: Iterable[str]) -> list[str]:
    """Groups ("pans") and single kinds ("pan-left") -> kinds, each once; ValueError for another name."""
    kinds: list[str] = []
    for name in names:
        if name not in KIND_GROUPS and name not in EXPECTED_SIGNS:
            raise ValueError(f"kind={name!r} is unknown; use one of {', '.join([*KIND_GROUPS, *EXPECTED_SIGNS])}")
        kinds += [kind for kind in KIND_GROUPS.get(name, (name,)) if kind not in kinds]
    return kinds


def camera_wording(kind: str, speed: str, name: str, seed: int, wordings: str = "held-out") -> str:
    """The words for a camera motion; which ones depends on the photo's name and the seed alone.

    Raises ValueError for an unknown `kind`, `speed` (see `SPEEDS`) or `wordings` ("held-out", "seen").
    """
    if kind not in WORDINGS:
        raise ValueError(f"kind={kind!r} is not a known camera motion; use one of {', '.join(WORDINGS)}")
    if speed not in SPEEDS:
        raise ValueError(f"speed={speed!r}: use one of {', '.join(SPEEDS)}")
    table = _chosen(wordings, HELD_OUT_WORDINGS, WORDINGS)[kind]
    template = table[(zlib.crc32(name.encode()) + seed) % len(table)]
    return " ".join(template.replace("{speed}", SPEEDS[speed]).split())


def object_wording(noun: str, direction: str, name: str, seed: int, wordings: str = "held-out") -> str:
    """The words for a thing that moves "left", "right" or "up". Raises ValueError as `camera_wording`."""
    if direction not in OBJECT_SIDES:
        raise ValueError(f"direction={direction!r}: use one of {', '.join(OBJECT_SIDES)}")
    table = _chosen(wordings, HELD_OUT_OBJECT_WORDINGS, OBJECT_WORDINGS)
    template = table[(zlib.crc32(name.encode()) + seed) % len(table)]
    return template.format(noun=noun, side=OBJECT_SIDES[direction], where=OBJECT_PLACES[direction])


def _chosen(wordings: str, held_out, seen):
    if wordings not in CHOICES:
        raise ValueError(f"wordings={wordings!r}: use one of {', '.join(CHOICES)}")
    return held_out if wordings == "held-out" else seen

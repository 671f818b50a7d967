"""What is taken from the packages: lists of our own beside this file, one row a picture or shot.

`path` is the place in the package; "archive!path" is a file in a Qt resource file, "archive!jpeg" the largest JPEG in
an .edj file. `width` and `height` are those in the pack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prepare.errors import PrepareError
from prepare.packages import PACKAGES
from prepare.splits import head_noun, test_nouns, test_scenes, val_subjects

FOLDER = Path(__file__).resolve().parent
FREE_LICENCES = (
    "CC0-1.0",
    "Public-Domain",
    "CC-BY-2.0",
    "CC-BY-2.5",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
)
FILM_FILE, FILM_PACKAGE = "film/bbb.mp4", "moviepy"
FILM_ZIP = "docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
FILM_IN_ZIP = "moviepy_10_minutes/resources/bbb.mp4"
FILM_LICENCE = "CC-BY-3.0"

Row = dict[str, Any]


def _rows(name: str) -> list[Row]:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def check_free(rows: list[Row]) -> list[Row]:
    """`rows`, if all of them are CC0, public domain, CC-BY or BSD, and from a package that is known."""
    for row in rows:
        # A remark may follow in brackets.
        if row["licence"].split(" (")[0] not in FREE_LICENCES:
            raise PrepareError(
                f"{row['file']}: licence {row['licence']!r} is not taken: use one of {', '.join(FREE_LICENCES)}"
            )
        if row["package"] not in PACKAGES:
            raise PrepareError(f"{row['file']}: package {row['package']!r} has no version and hash in packages.py")
    return rows


def photos() -> list[Row]:
    """With `split`, "train" or "val"."""
    rows = check_free(_rows("photos.jsonl"))
    held_out = val_subjects(rows)
    return [row | {"split": "val" if row["subject"] in held_out else "train"} for row in rows]


def sprites() -> list[Row]:
    """With `split`, "train" or "test"."""
    rows = check_free(_rows("sprites.jsonl"))
    held_out = test_nouns(rows)
    return [row | {"split": "test" if head_noun(row["file"]) in held_out else "train"} for row in rows]


def shots() -> list[Row]:
    """With `index`, `start_frame`, `end_frame` (half-open, in the pack's film) and `split`, "train" or "test"."""
    rows, made, start = _rows("shots.jsonl"), [], 0
    held_out = test_scenes(rows)
    for index, row in enumerate(rows):
        split = "test" if row["scene"] in held_out else "train"
        made.append(row | {"index": index, "start_frame": start, "end_frame": start + row["frames"], "split": split})
        start += row["frames"]
    return made


def fixtures() -> list[Row]:
    """Photos and clips that are never trained on; `type` is "image" or "video"."""
    return check_free(_rows("test.jsonl"))

"""What a row of a list may say: the columns, and how text or a JSON value becomes a checked value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2**63 - 1
MAX_REPEATS = 1000
MAX_TEXT_BYTES = 15 * 1024  # escaped, of one text; a video keeps 64 KB of settings
FITS = ("crop", "pad")
TRUE, FALSE = ("true", "yes", "y", "on", "1"), ("false", "no", "n", "off", "0")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "448x256" -> (448, 256), width first. Raises ValueError for another form."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×*]\s*(\d{1,6})\s*", text, re.ASCII)
    if match is None:
        raise ValueError(f"size {text!r}: give width x height in pixels, such as 448x256")
    return int(match[1]), int(match[2])


def _whole(value: Any) -> int:
    """A whole number; 8.0 is one, as programs that write CSV make of 8 beside empty cells."""
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(r"[+-]?\d{1,30}(\.0*)?", text, re.ASCII):
            raise ValueError("give a whole number")
        return int(text.split(".")[0])
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value % 1:
        raise ValueError("give a whole number")
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("give a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError("give a number") from None


def _count(most: int = 1_000_000) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        count = _whole(value)
        if not 1 <= count <= most:
            raise ValueError(f"give a whole number from 1 to {most}")
        return count

    return convert


def _seed(value: Any) -> int:
    # A float has lost digits by now
    seed = _whole(value) if not isinstance(value, float) or abs(value) < 2**53 else -1
    if not 0 <= seed <= MAX_SEED:
        raise ValueError("give a whole number from 0 to 2^63 - 1")
    return seed


def _guidance(value: Any) -> float:
    if not 0 <= (guidance := _real(value)) <= 100:
        raise ValueError("give a number from 0 to 100")
    return guidance


def _strength(value: Any) -> float:
    if not 0 < (strength := _real(value)) <= 1:
        raise ValueError("give a number above 0 and at most 1")
    return strength


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("give text")
    if any(c < " " and c not in "\t\n\r" for c in value):
        raise ValueError("it has control characters: remove them")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("it has half a character (a lone surrogate): write it as UTF-8")
    if len(json.dumps(value)) > MAX_TEXT_BYTES:
        raise ValueError(f"{len(value)} characters are more than can be kept with the video: shorten it")
    return value


def _source(value: Any) -> str:
    if not (source := _text(value).strip()):
        raise ValueError("name a picture: a file or an http(s) address")
    return source


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        value = f"{_whole(value[0])}x{_whole(value[1])}"
    try:
        return parse_size(value)
    except (ValueError, TypeError):
        raise ValueError("give width x height in pixels, such as 448x256") from None


def _switch(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word is True or word in TRUE:
        return True
    if word is False or word in FALSE:
        return False
    raise ValueError("say true or false")


def _fit(value: Any) -> str:
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in FITS:
        raise ValueError(f"use {' or '.join(FITS)}")
    return word


@dataclass(frozen=True)
class Field:
    """A column: what it means, and `convert`, which raises ValueError with the remedy."""

    meaning: str
    convert: Callable[[Any], Any]


FIELDS = {
    "image": Field("picture to animate: a file or an http(s) address", _source),
    "prompt": Field("what happens", _text),
    "seed": Field("seed of the first repeat", _seed),
    "repeats": Field("videos of this row, their seeds counting up", _count(MAX_REPEATS)),
    "output": Field("name of the file, with or without suffix", _text),
    "negative_prompt": Field("what to keep away from", _text),
    "size": Field("width x height of the result", _size),
    "frames": Field("number of frames", _count()),
    "fps": Field("frames a second", _count(1000)),
    "steps": Field("steps of the base stage", _count()),
    "guidance": Field("how strictly the text is followed", _guidance),
    "fit": Field("crop or pad", _fit),
    "exact": Field("true does as the model's original code did", _switch),
    "refine": Field("false stops after the base stage", _switch),
    "refine_prompt": Field("text for the refinement stage", _text),
    "refine_steps": Field("steps of the refinement stage", _count()),
    "refine_strength": Field("how much the refinement may change", _strength),
}
# Other names that lists in the wild have for the same columns.
ALIASES = {"caption": "prompt", "text": "prompt", "image_path": "image", "name": "output", "num_frames": "frames"}
# The columns that change pixels, besides image, prompt and seed: what a settings hash is of.
OPTION_NAMES = tuple(n for n in FIELDS if n not in ("image", "prompt", "seed", "repeats", "output"))
# What a row that says nothing means, whatever the model.
USUAL = {"refine": True, "exact": False, "fit": "crop"}


def convert(name: str, value: Any) -> Any:
    """The checked value of column `name`. Raises ValueError naming the column, the value and the remedy."""
    try:
        return FIELDS[name].convert(value)
    except ValueError as error:
        shown = repr(value)
        raise ValueError(f"{name} {shown if len(shown) <= 60 else shown[:57] + '...'}: {error}") from None


def field_name(column: str) -> str:
    """The column that a header or key names, in any case and with - for _; "" for an unknown one."""
    name = column.strip().lower().replace("-", "_").replace(" ", "_")
    name = ALIASES.get(name, name)
    return name if name in FIELDS else ""

"""Camera moves as buttons: they write their words into the prompt, and are read back from it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Move:
    label: str
    sign: str
    words: str  # "{speed}" is an adverb or nothing


# The words say what the camera does, so "pans left" moves what is seen to the right.
MOVES = {
    "pan-left": Move("Pan left", "←", "the camera pans {speed} to the left"),
    "pan-right": Move("Pan right", "→", "the camera pans {speed} to the right"),
    "tilt-up": Move("Tilt up", "↑", "the camera tilts {speed} up"),
    "tilt-down": Move("Tilt down", "↓", "the camera tilts {speed} down"),
    "zoom-in": Move("Zoom in", "+", "the camera zooms {speed} in"),
    "zoom-out": Move("Zoom out", "−", "the camera zooms {speed} out"),
    "roll-clockwise": Move("Roll right", "↻", "the camera rolls {speed} clockwise"),
    "roll-counterclockwise": Move("Roll left", "↺", "the camera rolls {speed} counterclockwise"),
    "static": Move("Hold still", "■", "the camera does not move"),
}
SPEEDS = {"slow": "slowly", "normal": "", "fast": "quickly"}
_ADVERB = r"(?:(?P<speed>slowly|gently|quickly|fast|rapidly) )?"
_SPEED_OF = {"slowly": "slow", "gently": "slow", "quickly": "fast", "fast": "fast", "rapidly": "fast", None: "normal"}
# A move's words, with what joins them to the rest of the prompt.
_JOINT = r"(?:[,;]?\s*\band\b|[,;.])?\s*\b"
_PATTERNS = {
    name: re.compile(
        r"(?:[,;]?\s*\band\b|[,;.])?\s*\b" + move.words.replace("{speed} ", _ADVERB) + r"\b", re.IGNORECASE
    )
    for name, move in MOVES.items()
}


def phrase(name: str, speed: str = "normal") -> str:
    """ "the camera pans slowly to the left" """
    return " ".join(MOVES[name].words.replace("{speed}", SPEEDS[speed]).split())


def read_move(prompt: str) -> tuple[str | None, str]:
    """(move, speed) that the prompt tells in the words of the buttons; (None, "normal") if it tells none."""
    for name, pattern in _PATTERNS.items():
        match = pattern.search(prompt)
        if match is not None:
            adverb = match.groupdict().get("speed")
            return name, _SPEED_OF[adverb.lower() if adverb else None]
    return None, "normal"


def with_move(prompt: str, name: str, speed: str = "normal") -> str:
    """The prompt with this move in place of any other; the move that it tells already is taken out."""
    told, told_speed = read_move(prompt)
    rest = without_move(prompt)
    if told == name and (told_speed == speed or name == "static"):
        return rest
    words = phrase(name, speed)
    if not rest:
        return words
    return f"{rest} {words}" if rest.endswith((".", "!", "?", ",", ";")) else f"{rest}, {words}"


def with_speed(prompt: str, speed: str) -> str:
    """The prompt with its move at another speed; unchanged without a move."""
    name, _ = read_move(prompt)
    if name in (None, "static"):
        return prompt
    return _PATTERNS[name].sub(lambda match: _same_joint(match.group(0), phrase(name, speed)), prompt, count=1)


def without_move(prompt: str) -> str:
    for pattern in _PATTERNS.values():
        prompt = pattern.sub("", prompt)
    return prompt.strip().lstrip(",;. ").strip()


def _same_joint(old: str, words: str) -> str:
    """`words` behind the comma or "and" that came before the old ones."""
    start = old.lower().index("the camera")
    return old[:start] + words

"""What goes wrong with checkpoints, in one class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is: unknown, incomplete, damaged, or unsafe to open."""


class TensorError(CheckpointError):
    """One tensor that cannot be written: `key`, its name where it was to be written, and what is wrong with it."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


def nearest(key: str, known: Iterable[str]) -> str:
    """ "; nearest known: ..." for an error message, or nothing if no known key is near."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"; nearest known: {close[0]}" if close else ""

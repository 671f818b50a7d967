"""What can go wrong while the pack is made."""

from __future__ import annotations


class PrepareError(ValueError):
    """A package, a file in it or the output folder that cannot be used; the message names it and the remedy."""

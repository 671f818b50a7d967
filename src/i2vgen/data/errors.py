"""What can be wrong with training data."""

from __future__ import annotations


class DataError(ValueError):
    """A source, setting or clip that cannot be used; the message names it and the remedy."""


class ClipError(DataError):
    """One damaged clip: it is noted and another takes its place."""


class TooManyBadFilesError(DataError):
    """More damaged clips than the configuration allows."""


class MissingFileError(DataError):
    """A remote file that is not there."""


class StorageError(OSError):
    """A remote source that does not answer, after several tries; nothing is wrong with the clip itself."""

"""What a command tells: progress, warnings, results for people and for programs, estimates."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class WriteError(RuntimeError):
    """An output could not be written though it was given rightly: disk full, folder gone."""


class _StderrHandler(logging.Handler):
    """One `warning: ...` line each, the same text once."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if message not in self.seen:
            self.seen.add(message)
            print(f"warning: {message}", file=sys.stderr)


@contextmanager
def warnings_to_stderr() -> Iterator[None]:
    """While inside, what the package logs as a warning is one line on stderr."""
    logger, handler = logging.getLogger("i2vgen"), _StderrHandler()
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def warn(message: str) -> None:
    logging.getLogger("i2vgen.cli").warning("%s", message)


def print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


class Progress:
    """Bars on stderr, one a stage, with the time left; only where stderr is a terminal.

    Called by a pipeline as (stage, steps done, steps in all). `stages` gives the expected steps of each, or
    bytes with the unit "B".
    """

    def __init__(self, stages: dict[str, int], prefix: str = "", unit: str = " steps"):
        self.stages, self.prefix, self.unit = dict(stages), prefix, unit
        self.bar = None
        self.stage = ""
        self.begin = time.monotonic()

    def __enter__(self) -> Progress:
        self._open(next(iter(self.stages), ""))
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self._open(stage)
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        if done == total:
            self.stages.pop(stage, None)
            # The next bar opens now, so that its first step counts the time since the last.
            self._open(next(iter(self.stages), ""))

    def _open(self, stage: str) -> None:
        from tqdm import tqdm

        self._close()
        self.stage = stage
        if stage:
            layout = "{desc:<16} {bar:30} {n_fmt}/{total_fmt}{unit}, {elapsed} so far, {remaining} left"
            self.bar = tqdm(
                total=self.stages.get(stage),
                desc=self.prefix + stage,
                unit=self.unit,
                unit_scale=self.unit == "B",
                bar_format=layout,
                file=sys.stderr,
                disable=None,
            )

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def counted(count: int, name: str) -> str:
    """ "1 frame", "2 frames\""""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def readable_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def readable_bytes(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:.0f} KB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

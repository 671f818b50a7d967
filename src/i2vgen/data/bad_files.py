"""The count of damaged clips: each noted once by name, too many stop the run."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from i2vgen.data.errors import DataError, TooManyBadFilesError

_log = logging.getLogger(__name__)
NUM_NAMED = 3
# The share is judged as if at least this many clips (or all there are, if fewer) had been tried.
LEAST_TRIED = 200


class BadFiles:
    """Thread-safe; `path` is a JSON Lines file that all processes append to, None to keep no file.

    A clip that an earlier run has noted in it is not noted again.
    """

    def __init__(self, path: Path | None, max_share: float, num_clips: int, rank: int = 0):
        self.path, self.max_share, self.num_clips, self.rank = path, max_share, num_clips, rank
        self.problems: dict[str, str] = {}
        self._tried = bytearray(num_clips)
        self._num_tried = 0
        self._lock = threading.Lock()
        self._noted = _names_in(path)

    def tried(self, index: int) -> None:
        """Clip `index` is about to be read."""
        with self._lock:
            self._num_tried += not self._tried[index]
            self._tried[index] = 1

    def add_known(self, problems: dict[str, str], num_files: int) -> None:
        """What the index of all `num_files` files has found. Raises TooManyBadFilesError."""
        with self._lock:
            for name, problem in problems.items():
                self._note(name, problem)
            if len(problems) > self.max_share * num_files:
                self._stop(problems, num_files)

    def add(self, name: str, problem: str) -> None:
        """Raises TooManyBadFilesError once more than the allowed share of the clips tried are damaged."""
        with self._lock:
            if name in self.problems:
                return
            self.problems[name] = problem
            self._note(name, problem)
            if len(self.problems) > self.max_share * max(self._num_tried, min(self.num_clips, LEAST_TRIED)):
                self._stop(self.problems, self._num_tried)

    def _note(self, name: str, problem: str) -> None:
        if name not in self._noted:
            self._noted.add(name)
            _log.warning("damaged clip %s skipped: %s", name, problem)
            self._append({"name": name, "problem": problem, "rank": self.rank})

    def _stop(self, problems: dict[str, str], num_tried: int) -> None:
        first = "; ".join(f"{name} ({problem})" for name, problem in list(problems.items())[:NUM_NAMED])
        where = f" (all in {str(self.path)!r})" if self.path is not None else ""
        raise TooManyBadFilesError(
            f"{len(problems)} of {num_tried} clips are damaged, max_bad_share is {self.max_share:g}: {first}{where}; "
            "repair or remove them, or raise max_bad_share"
        )

    def __len__(self) -> int:
        return len(self.problems)

    def _append(self, row: dict) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One write, so that lines of several processes do not mix.
            with open(self.path, "ab", buffering=0) as file:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be written ({error}): free some space") from error


def _names_in(path: Path | None) -> set[str]:
    if path is None or not os.path.exists(path):
        return set()
    names = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            names.add(json.loads(line)["name"])
        except (ValueError, KeyError, TypeError):
            # The last line of a run that was killed.
            continue
    return names

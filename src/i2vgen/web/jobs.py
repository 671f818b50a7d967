"""One generation at a time: a queue of jobs that everyone sees, worked off by one thread."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from i2vgen.web.sentences import sentence_of

MAX_WAITING = 32  # jobs in line, of all sessions
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"

log = logging.getLogger("i2vgen.web")


class CancelledError(Exception):
    """Raised inside a job, by `Job.tick`, once its owner has asked to stop."""


class Job:
    """A piece of work with its progress.

    Args:
        owner: token of the session; a session has one unfinished job.
        title: what is being done, in a few words.
        work: called with the job; calls `plan` first, and `tick` after each step.
    """

    def __init__(self, owner: str, title: str, work: Callable[[Job], None]):
        self.owner, self.title, self.work = owner, title, work
        self.parts: list[float] = []
        self.state, self.text, self.error = WAITING, "", ""
        self.share = 0.0  # of the work that is done
        self.begun = self.ticked = self.left = 0.0
        self._stop = threading.Event()

    @property
    def is_active(self) -> bool:
        return self.state in (WAITING, RUNNING)

    @property
    def is_stopping(self) -> bool:
        return self.is_active and self._stop.is_set()

    def stop(self) -> None:
        """Ask the work to end; it does within one step."""
        self._stop.set()

    def plan(self, parts: Sequence[float]) -> None:
        """Expected seconds of each part of the work, in order."""
        self.parts = [max(1e-3, seconds) for seconds in parts]
        self.begun = self.ticked = time.monotonic()
        self.left = sum(self.parts)

    def tick(self, part: int, done: int, total: int, text: str) -> None:
        """Say that `done` of `total` steps of a part are done. Raises CancelledError if the owner wants no more."""
        if self._stop.is_set():
            raise CancelledError
        finished = sum(self.parts[:part]) + self.parts[part] * done / total
        now, expected = time.monotonic(), sum(self.parts)
        self.share, self.text = min(1.0, finished / expected), text
        spent = now - self.begun
        # The plan counts until a tenth is done; what was measured counts from then on.
        self.left = max(0.0, expected - spent) if self.share < 0.1 else spent / self.share * (1 - self.share)
        self.ticked = now

    def seconds_left(self) -> float:
        """A guess that also falls between the steps."""
        return max(0.0, self.left - (time.monotonic() - self.ticked))


class Line:
    """The jobs of all sessions, first come first served. `close` ends the thread after the current step."""

    def __init__(self):
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="i2vgen-studio-line", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Raises ValueError if too many wait, or if the owner has something in line already."""
        with self._changed:
            mine = [j for j in (*self._waiting, self._current) if j is not None and j.owner == job.owner]
            if any(j.is_active for j in mine):
                raise ValueError("Something of yours is still being made: wait for it or cancel it first.")
            if len(self._waiting) >= MAX_WAITING:
                raise ValueError(f"{MAX_WAITING} requests are waiting already: try again in a while.")
            self._waiting.append(job)
            self._changed.notify_all()

    def place(self, job: Job) -> int:
        """How many are before this one, the running one included; 0 for one that runs or is over."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._current is not None)

    def cancel(self, job: Job) -> None:
        job.stop()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = CANCELLED

    def close(self, timeout: float = 30.0) -> None:
        with self._changed:
            self._is_closed = True
            for job in itertools.chain(self._waiting, [self._current] if self._current else []):
                job.stop()
            self._changed.notify_all()
        self._thread.join(timeout)

    def _next(self) -> Job | None:
        with self._changed:
            self._current = None
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            self._current = self._waiting.pop(0)
            self._current.state = RUNNING
            return self._current

    def _run(self) -> None:
        while (job := self._next()) is not None:
            state: Any = DONE
            try:
                job.work(job)
            except CancelledError:
                state = CANCELLED
            except Exception as error:
                state, job.error = FAILED, sentence_of(error)
                if not isinstance(error, ValueError):
                    log.exception("%s failed", job.title)
            job.share = 1.0
            job.state = state

"""Functions of the operator, named "module:function", that see each clip before its caller does.

    safety(frames, job)    uint8 (f h w 3) -> None to let it pass, or why not, which the caller is told
    provenance(job)        -> a dict that is kept in the file's settings, under "provenance"
    sign(path, job)        may rewrite the finished MP4 in place, as tools that sign content credentials do

`job` is a dict: id, owner, request, created_at. An exception of a hook fails the job: nothing unchecked goes out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from i2vgen.server.config import ServiceConfig
from i2vgen.server.jobs import Job


class RefusedError(Exception):
    """The safety hook refused a clip; the message is for its caller."""


@dataclass(frozen=True)
class Hooks:
    safety: Callable[[np.ndarray, dict[str, Any]], str | None] | None = None
    provenance: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    sign: Callable[[Path, dict[str, Any]], None] | None = None

    @classmethod
    def of(cls, config: ServiceConfig) -> Hooks:
        """Raises ValueError for a name that leads to no function."""
        names = ("safety", "provenance", "sign")
        return cls(**{name: load_hook(name, getattr(config, name)) for name in names if getattr(config, name)})

    def check(self, frames: np.ndarray, job: Job) -> None:
        """Raises RefusedError."""
        reason = None if self.safety is None else self.safety(frames, described(job))
        if reason:
            raise RefusedError(str(reason)[:300])


def load_hook(option: str, name: str) -> Callable:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"--{option} {name!r}: write module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(f"--{option} {name!r}: {module} cannot be imported ({error})") from error
    if not callable(found):
        raise ValueError(f"--{option} {name!r}: {module} has no function {function!r}")
    return found


def described(job: Job) -> dict[str, Any]:
    return {"id": job.id, "owner": job.owner, "request": dict(job.request), "created_at": job.created_at}

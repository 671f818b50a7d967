"""A golden folder: its JSON, its tensors, and the list of its cases, so that no file is left out unseen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from i2vgen.parity.calls import ParityError
from i2vgen.parity.checks import Check

INDEX = "INDEX.json"
CONFIG = "config.json"


@dataclass(frozen=True)
class Case:
    """One row of the report: `run` compares, or raises an error that says why it cannot.

    A `run` that gives no checks has nothing to compare with in this folder.
    """

    group: str
    name: str
    files: tuple[Path, ...]
    run: Callable[[], list[Check]]


def broken(group: str, name: str, message: str, files: Iterable[Path] = ()) -> Case:
    """A case that fails with `message`."""

    def run() -> list[Check]:
        raise ParityError(message)

    return Case(group, name, tuple(files), run)


def indexed(folder: Path, replay: Callable[[str, Mapping[str, Any]], list[Check]]) -> Iterator[Case]:
    """A case for each object in a group's INDEX.json: `replay(name, entry)` has tensors in `<name>.safetensors`."""
    for name, entry in read_json(folder / INDEX).items():
        if not isinstance(entry, dict):
            continue
        path = folder / f"{name}.safetensors"
        yield Case(folder.name, name, (path,), partial(replay, name, entry))


def read_json(path: Path) -> dict[str, Any]:
    """Raises ParityError for a file that is missing or does not hold a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParityError(f"{path.name} is missing in {path.parent.name}/: it says how the cases were made") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ParityError(f"{path.name} in {path.parent.name}/ cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ParityError(f"{path.name} in {path.parent.name}/ holds a {type(content).__name__}, expected an object")
    return content


def read_tensors(path: Path, entry: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """The recorded tensors; float16, the form that inputs are stored in, becomes float32.

    `entry` is the case's JSON: the names and shapes in its "tensors" ([dtype, shape] each) or "shapes" are checked.
    Raises ParityError for a file that is missing or damaged, or differs from its JSON.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ParityError(f"{path.name} is missing") from None
    except (OSError, SafetensorError) as error:
        raise ParityError(f"{path.name} cannot be read: {error}") from None
    entry = entry or {}
    shapes = {name: shape for name, (_, shape) in entry.get("tensors", {}).items()} | entry.get("shapes", {})
    for name, shape in shapes.items():
        if name not in tensors:
            raise ParityError(f"{path.name} has no tensor {name!r}, which its JSON lists")
        if list(tensors[name].shape) != list(shape):
            raise ParityError(f"{path.name}: {name} has shape {list(tensors[name].shape)}, its JSON says {shape}")
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}


def tensor(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Raises ParityError naming the tensor that is not there."""
    if name not in tensors:
        raise ParityError(f"there is no tensor {name!r}; the file has {', '.join(sorted(tensors))}")
    return tensors[name]

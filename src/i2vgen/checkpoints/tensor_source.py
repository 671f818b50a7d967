"""Weights on disk, whatever their format: names, shapes and dtypes at once, content when asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from i2vgen.checkpoints.errors import CheckpointError, nearest

Shape = tuple[int, ...]

# A mapped page counts as memory of the process until the file is mapped anew.
MAPPED_BYTES = 64 * 1024 * 1024


class TensorSource:
    """Weights on disk: what is there is known at once, the content is read when asked for.

    path: what was opened; files: the files that hold the tensors; size: their bytes; format: "safetensors",
    "pickle" (PyTorch's zip), "old pickle" (before PyTorch 1.6, held in memory as a whole).
    shapes, dtypes: by key, in the file's order. metadata: what the file says beside its tensors, such as
    `step`. config: the `config.json` beside the weights of a component folder, or {}.
    """

    format = ""

    def __init__(self, path: Path, files: list[Path]):
        self.path, self.files = path, files
        self.size = sum(file.stat().st_size for file in files)
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, Any] = {}
        self.config: dict[str, Any] = {}

    def read(self, key: str) -> torch.Tensor:
        """The tensor, where possible a view of the mapped file: not to be written to.

        Raises CheckpointError for a key that is not there (naming the nearest one) or data that is damaged.
        """
        if key not in self.shapes:
            raise CheckpointError(f"{self.path}: no tensor {key}{nearest(key, self.shapes)}")
        return self._read(key)

    def _read(self, key: str) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files."""

    def keys(self) -> list[str]:
        return list(self.shapes)

    def num_bytes(self, key: str) -> int:
        return math.prod(self.shapes[key]) * self.dtypes[key].itemsize

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, key: object) -> bool:
        return key in self.shapes

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file whose reader gave up."""
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path} is damaged or cut short ({reason}): download it again")

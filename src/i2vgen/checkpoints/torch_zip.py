"""A file as `torch.save` writes it, tensor by tensor: a zip archive with a pickle and one stored entry a tensor."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = "archive"
ALIGNMENT = 64
# Fixed part of a local file header, and of the field with 64-bit sizes that zipfile adds to it.
HEADER_BYTES, ZIP64_BYTES = 30, 20
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


class TorchZipWriter:
    """`{"state_dict": {key: tensor}, **extra}`; `specs` says key -> (shape, dtype), `write` brings the content."""

    def __init__(self, path: Path, specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], extra: Mapping[str, Any]):
        self._names = {key: f"data/{number}" for number, key in enumerate(specs)}
        tensors = ((key, _Placeholder(str(n), *specs[key])) for n, key in enumerate(specs))
        document = {"state_dict": OrderedDict(tensors), **extra}
        content = io.BytesIO()
        _Pickler(content, protocol=2).dump(document)
        self._file = path.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        self._add("data.pkl", content.getvalue())
        self._add("byteorder", b"little")

    def write(self, key: str, tensor: torch.Tensor) -> None:
        self._add(self._names[key], raw_bytes(tensor))

    def _add(self, name: str, content: bytes | memoryview) -> None:
        entry = zipfile.ZipInfo(f"{ROOT}/{name}")
        # The content begins at a multiple of ALIGNMENT, for those who map the file; the padding is an extra
        # field of the header with the id that PyTorch uses for it.
        begin = self._file.tell() + HEADER_BYTES + len(entry.filename) + ZIP64_BYTES + 4
        padding = -begin % ALIGNMENT
        entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        with self._zip.open(entry, "w", force_zip64=True) as part:
            part.write(content)

    def close(self) -> None:
        try:
            self._add("version", b"3\n")
            self._zip.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._zip.fp = None  # else, after an error, its destructor complains of the closed file
            self._file.close()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a CPU tensor in order, without a copy where they lie so already."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


class _Placeholder:
    """Pickled as the call that rebuilds a tensor from the storage `number`."""

    def __init__(self, number: str, shape: tuple[int, ...], dtype: torch.dtype):
        self.number, self.shape, self.dtype = number, shape, dtype

    def __reduce__(self):
        strides, step = [], 1
        for side in reversed(self.shape):
            strides.insert(0, step)
            step *= max(side, 1)
        storage = _Storage(("storage", STORAGES[self.dtype], self.number, "cpu", step if 0 not in self.shape else 0))
        arguments = (storage, 0, tuple(self.shape), tuple(strides), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Storage:
    def __init__(self, identity: tuple):
        self.identity = identity


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple | None:
        return value.identity if isinstance(value, _Storage) else None

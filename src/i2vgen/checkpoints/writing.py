"""Writing weights tensor by tensor: safetensors in one file or several, and files that `torch.load` reads."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from i2vgen.checkpoints.errors import CheckpointError, TensorError, nearest
from i2vgen.checkpoints.reading import SAFETENSORS_DTYPES
from i2vgen.checkpoints.torch_zip import TorchZipWriter, raw_bytes

try:
    import fcntl
except ImportError:  # Windows: what killed processes left stays there
    fcntl = None

Shape = tuple[int, ...]
Spec = tuple[Shape, torch.dtype]

DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
MAX_SHARD_SIZE = 10 * 1000**3
OLD = ".old"  # in the hidden folder: what is being replaced
LOCKING_SECONDS = 5  # a hidden folder younger than that may not be locked yet
UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path for a file or folder to be made, which takes the place of `target` at the end.

    It is in a hidden folder beside `target`. After an error or an interruption `target` is as it was and nothing
    else is left; what a killed process left is put in order by the next that writes the same `target`.
    """
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    place = target.with_name(f".{target.name[:60]}.{uuid.uuid4().hex[:12]}")
    place.mkdir()
    lock = _lock(place)
    temporary, old = place / target.name, place / OLD
    is_done = False
    try:
        yield temporary
        if target.is_dir():  # a folder cannot be replaced in one step
            os.rename(target, old)
        os.replace(temporary, target)
        is_done = True
    finally:
        if old.exists() and not is_done:
            os.rename(old, target)
        shutil.rmtree(place, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        if not is_done:
            for folder in missing:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _recover(target: Path) -> None:
    """Remove what killed processes left beside `target`, and put back a folder that they had moved away."""
    left = re.compile(rf"\.{re.escape(target.name[:60])}\.[0-9a-f]{{12}}")
    for place in target.parent.iterdir():
        if not left.fullmatch(place.name) or place.is_symlink() or not place.is_dir():
            continue
        if time.time() - place.stat().st_mtime < LOCKING_SECONDS or (lock := _lock(place)) is None:
            continue  # another process is at work there
        if (place / OLD).exists() and not target.exists():
            os.rename(place / OLD, target)
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed or the process ends, None where that cannot be."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by another, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def parse_size(text: str | int) -> int:
    """ "5GB" -> 5,000,000,000 bytes; GiB are powers of two. Raises CheckpointError for another form."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(text).upper())
    if match is None or match[2] not in UNITS or not 1 <= float(match[1]) * UNITS[match[2]] < 2**63:
        raise CheckpointError(f"shard size {str(text)[:40]!r}: give a size such as 5GB or 500MB")
    return int(float(match[1]) * UNITS[match[2]])


def num_bytes(spec: Spec) -> int:
    shape, dtype = spec
    return math.prod(shape) * dtype.itemsize


def shards_of(specs: Mapping[str, Spec], max_size: int) -> list[list[str]]:
    """Keys of each file, in order, so that none is above `max_size` bytes unless one tensor alone is."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, spec in specs.items():
        if shards[-1] and size + num_bytes(spec) > max_size:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += num_bytes(spec)
    return shards


def write_safetensors(
    folder: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    stem: str = "diffusion_pytorch_model",
    max_shard_size: int = MAX_SHARD_SIZE,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a component's weights into `folder` as diffusers and transformers name them; returns the files.

    specs: key -> (shape, dtype) of all tensors; `tensors` brings them in any order, and each is converted to
    its dtype when its turn comes. With more than `max_shard_size` bytes there are several files
    (`stem-00001-of-00003.safetensors`) and an index. Raises CheckpointError for a tensor that is not in
    `specs`, missing, of another shape, not finite, or out of the dtype's range; the caller removes the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = shards_of(specs, max_shard_size)
    is_single = len(shards) == 1
    names = [
        f"{stem}.safetensors" if is_single else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    place = {key: (name, keys) for name, keys in zip(names, shards, strict=True) for key in keys}
    writers: dict[str, _SafetensorsWriter] = {}
    try:
        for key, tensor in _checked(specs, tensors):
            name, keys = place[key]
            if name not in writers:
                writers[name] = _SafetensorsWriter(folder / name, {key: specs[key] for key in keys}, metadata)
            writers[name].write(key, tensor)
            if not writers[name].missing:
                writers.pop(name).close()
    finally:
        for writer in writers.values():
            writer.close()
    files = [folder / name for name in names]
    if not is_single:
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        total = {"total_size": sum(map(num_bytes, specs.values()))}
        index = folder / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"metadata": total, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n")
        files.append(index)
    return files


def write_vgen_pth(
    path: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    step: int = 0,
) -> Path:
    """Write `{"state_dict": ..., "step": step}` as `torch.save` would, holding one tensor at a time.

    Arguments and errors as in `write_safetensors`; `torch.load(weights_only=True, mmap=True)` reads it.
    """
    writer = TorchZipWriter(path, specs, {"step": step})
    try:
        for key, tensor in _checked(specs, tensors):
            writer.write(key, tensor)
    finally:
        writer.close()
    return path


def _checked(
    specs: Mapping[str, Spec], tensors: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in their dtypes, each once, all of them."""
    written: set[str] = set()
    for key, tensor in tensors:
        if key not in specs or key in written:
            raise CheckpointError(f"{key}: no place for it in the file{nearest(key, set(specs) - written)}")
        shape, dtype = specs[key]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{key}: has shape {list(tensor.shape)}, expected {list(shape)}")
        written.add(key)
        yield key, in_dtype(key, tensor, dtype)
    missing = [key for key in specs if key not in written]
    if missing:
        raise CheckpointError(f"{missing[0]}: has not been written, nor have {len(missing) - 1} more")


def in_dtype(key: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Raises TensorError for a tensor with NaN or infinity, or with values that `dtype` cannot hold."""
    if not tensor.is_floating_point():
        return tensor.to(dtype)
    if not torch.isfinite(tensor).all():
        raise TensorError(key, "holds NaN or infinity: the checkpoint is damaged, get it again")
    converted = tensor.to(dtype)
    if dtype != tensor.dtype and not torch.isfinite(converted).all():
        largest, name = tensor.abs().max().item(), str(dtype).removeprefix("torch.")
        raise TensorError(key, f"its largest value {largest:.3g} is too large for {name}: use --dtype bfloat16")
    return converted


class _SafetensorsWriter:
    """One file: 8 bytes with the header's length, the header in JSON, then the tensors where it says.

    https://github.com/huggingface/safetensors#format
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str] | None):
        header: dict = {"__metadata__": {"format": "pt", **(metadata or {})}}
        self._offsets: dict[str, int] = {}
        offset = 0
        # wide dtypes first, so that every tensor lies at a multiple of its item size
        for key, spec in sorted(specs.items(), key=lambda item: -item[1][1].itemsize):
            shape, dtype = spec
            if dtype not in DTYPE_NAMES:
                raise CheckpointError(f"{key}: safetensors has no dtype {dtype}: choose one with --dtype")
            end = offset + num_bytes(spec)
            header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            self._offsets[key], offset = offset, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self.missing = set(specs)
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._begin + offset)

    def write(self, key: str, tensor: torch.Tensor) -> None:
        self._file.seek(self._begin + self._offsets[key])
        self._file.write(raw_bytes(tensor))
        self.missing.discard(key)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

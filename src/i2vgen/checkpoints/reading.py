"""Opening weights, one tensor at a time: safetensors, pickles read as weights only, and sharded folders of both."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.pickles import PickleFile
from i2vgen.checkpoints.tensor_source import MAPPED_BYTES, TensorSource, damaged

# What a folder's weights are called: diffusers, transformers, transformers before safetensors, open_clip.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "open_clip_pytorch_model")
SUFFIXES = (".safetensors", ".bin")
CONFIG_FILE = "config.json"
PARALLEL_PREFIX = "module."  # of every key, where a model was saved inside DistributedDataParallel
MAX_JSON_BYTES = 100 * 1024 * 1024
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile(TensorSource):
    """One `.safetensors` file."""

    format = "safetensors"

    def __init__(self, path: Path):
        super().__init__(path, [path])
        self._mapped = 0
        self._file = self._open()  # checks header, offsets and length
        try:
            self.metadata = dict(self._file.metadata() or {})
            if self.metadata.get("step", "").isdecimal() and len(self.metadata["step"]) < 19:
                self.metadata["step"] = int(self.metadata["step"])
            for key in sorted(self._file.keys()):
                part = self._file.get_slice(key)
                if part.get_dtype() not in SAFETENSORS_DTYPES:
                    raise CheckpointError(f"{path}: {key} has dtype {part.get_dtype()}, which is not supported")
                self.shapes[key] = tuple(part.get_shape())
                self.dtypes[key] = SAFETENSORS_DTYPES[part.get_dtype()]
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        try:
            return safe_open(self.files[0], framework="pt").__enter__()
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise damaged(self.files[0], error) from error

    def _read(self, key: str) -> torch.Tensor:
        self._mapped += self.num_bytes(key)
        if self._mapped > MAPPED_BYTES:
            self.close()
            self._mapped, self._file = self.num_bytes(key), self._open()
        try:
            return self._file.get_tensor(key)
        except (SafetensorError, RuntimeError) as error:
            raise damaged(self.files[0], error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)
            self._file = None


class ShardedFolder(TensorSource):
    """Several files and the index that says which tensor is in which.

    Raises CheckpointError for an index that is damaged, names a file outside its folder, or does not agree
    with the files.
    """

    def __init__(self, index: Path):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: holds no weight_map: download the folder again")
        for name in set(weight_map.values()):
            if not is_plain_path(name):
                raise CheckpointError(f"{index}: names {name!r}, which is not a file inside its folder: refused")
        names = sorted(set(weight_map.values()))
        for name in names:
            if not (index.parent / name).is_file():
                raise CheckpointError(f"{index}: file {name} is missing: download the folder again")
        super().__init__(index.parent, [index.parent / name for name in names])
        self._shards: dict[str, TensorSource] = {}
        try:
            for name in names:
                self._shards[name] = shard = open_file(index.parent / name)
                named = {key for key, file in weight_map.items() if file == name}
                for key in sorted(named ^ set(shard.keys())):
                    where = f"is not in {name}" if key in named else f"is in {name} and not in the index"
                    raise CheckpointError(f"{index}: tensor {key} {where}: download the folder again")
                self.shapes |= shard.shapes
                self.dtypes |= shard.dtypes
                self.metadata |= shard.metadata
        except BaseException:
            self.close()
            raise
        self.format = next(iter(self._shards.values())).format
        self._weight_map = weight_map

    def _read(self, key: str) -> torch.Tensor:
        return self._shards[self._weight_map[key]].read(key)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


class Unwrapped(TensorSource):
    """Another source without `PARALLEL_PREFIX`, which all of its keys begin with."""

    def __init__(self, wrapped: TensorSource):
        super().__init__(wrapped.path, wrapped.files)
        self.format, self.metadata, self._wrapped = wrapped.format, wrapped.metadata, wrapped
        self.shapes = {key.removeprefix(PARALLEL_PREFIX): shape for key, shape in wrapped.shapes.items()}
        self.dtypes = {key.removeprefix(PARALLEL_PREFIX): dtype for key, dtype in wrapped.dtypes.items()}

    def _read(self, key: str) -> torch.Tensor:
        return self._wrapped.read(PARALLEL_PREFIX + key)

    def close(self) -> None:
        self._wrapped.close()


def open_tensors(path: str | os.PathLike, variant: str | None = None) -> TensorSource:
    """Open a weights file, or a component folder with one file or several and their index.

    The content says what a file is, not its suffix. `variant` ("fp16") chooses among several in a folder;
    without it the plain files are taken, or the only variant there is. Where every key begins with "module.", as
    DistributedDataParallel has it, that is left out. Raises CheckpointError for a path that is missing, empty,
    damaged, cut short, of another kind, or unsafe to open.
    """
    path = existing_path(path)
    file = weights_of_folder(path, variant) if path.is_dir() else path
    is_index = file.name.endswith(".json") and ".index." in file.name
    source = ShardedFolder(file) if is_index else open_file(file)
    if len(source) and all(key.startswith(PARALLEL_PREFIX) for key in source):
        source = Unwrapped(source)
    if path.is_dir():
        source.path = path
        if (path / CONFIG_FILE).is_file():
            source.config = read_json(path / CONFIG_FILE)
    return source


def existing_path(path: str | os.PathLike) -> Path:
    try:
        path = Path(path).expanduser()
        is_there = path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{str(path)[:160]!r} cannot be used as a path ({error}): check it") from error
    if not is_there:
        raise CheckpointError(f"{path} does not exist: check the path (looked in {str(Path.cwd())!r})")
    return path


def open_file(path: Path) -> TensorSource:
    """One file of any of the formats."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: name a weights file, or a folder with one")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if not head:
        raise CheckpointError(f"{path} is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer to the weights, not the weights: fetch them with git lfs pull")
    # its header's length may begin with any byte, so that it comes before the one byte of old pickles
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_JSON_BYTES:
        return SafetensorsFile(path)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return PickleFile(path)
    kind = "holds a web page" if head.lstrip()[:1] == b"<" else "is neither safetensors nor a PyTorch file"
    raise CheckpointError(f"{path} {kind} (it begins with {head[:8]!r}): download it again, or name another file")


def weights_of_folder(folder: Path, variant: str | None = None) -> Path:
    """The weights file of a component folder, or its index.

    Raises CheckpointError if there is none, or if several variants leave it open which one is meant.
    """
    found = variants_of_folder(folder)
    if variant is not None and variant not in found:
        there = f"; there is {', '.join(sorted(v or 'the plain one' for v in found))}" if found else ""
        raise CheckpointError(f"{folder}: no weights of variant {variant!r}{there}")
    if not found:
        raise CheckpointError(f"{folder}: no weights in it ({STEMS[0]}.safetensors, {STEMS[1]}.safetensors, .bin, ...)")
    if variant is None and "" not in found and len(found) > 1:
        raise CheckpointError(f"{folder}: several variants ({', '.join(sorted(found))}): name one of their files")
    return found[variant or ""] if (variant or "") in found else next(iter(found.values()))


def variants_of_folder(folder: Path) -> dict[str, Path]:
    """Variant ("" the plain one) -> its file or index; safetensors before pickles, an index before one file."""
    names = sorted(entry.name for entry in folder.iterdir())
    found: dict[str, Path] = {}
    for suffix in map(re.escape, SUFFIXES):
        for stem in STEMS:
            # model.fp16.safetensors.index.json or model.safetensors.index.fp16.json; model.fp16.safetensors
            for pattern in (
                rf"{stem}(?:\.(\w+))?{suffix}\.index(?:\.(\w+))?\.json",
                rf"{stem}(?:\.(\w+))?()?{suffix}",
            ):
                for name in names:
                    match = re.fullmatch(pattern, name)
                    if match:
                        found.setdefault(match[1] or match[2] or "", folder / name)
    return found


def is_plain_path(name: object) -> bool:
    """A relative path that stays in its folder, on any system."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    windows = PureWindowsPath(name)
    is_rooted = PurePosixPath(name).is_absolute() or bool(windows.drive or windows.root)
    return not is_rooted and ".." not in windows.parts


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError for a file that is missing, huge, damaged, or no JSON object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: too long for a JSON file of a model ({path.stat().st_size} bytes)")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}): download it again") from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path}: holds {type(document).__name__}, not a JSON object: download it again")
    return dict(document)

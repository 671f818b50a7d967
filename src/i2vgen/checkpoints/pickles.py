"""PyTorch's own files (.pth, .pt, .ckpt, .bin), read as weights only: nothing that they hold is ever executed."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.tensor_source import MAPPED_BYTES, TensorSource, damaged

# Where training programs put the weights beside other things; the first that is there counts.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "ema", "params")


class ModelCheckpoint:
    """What stands in for Lightning's callback of that name, which its checkpoints mention beside the weights."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


class PickleFile(TensorSource):
    """One file of `torch.save`; see `TensorSource`.

    Raises CheckpointError for a pickle that would run anything but the rebuilding of tensors, and for a file
    that is damaged, compressed, or holds no tensors.
    """

    def __init__(self, path: Path):
        super().__init__(path, [path])
        if path.suffix == ".safetensors":  # torch.load goes by the name
            raise CheckpointError(f"{path} is a pickle in spite of its name: rename it to .pth if you trust it")
        self._is_zip = zipfile.is_zipfile(path)
        self.format = "pickle" if self._is_zip else "old pickle"
        if self._is_zip:
            _check_stored(path)
        self._mapped = 0
        document = self._load()
        self._wrapping = _wrapping(document, path)
        self._tensors = self._unwrap(document)
        for key, value in self._tensors.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{path}: holds the key {key!r}, not a name: this is not a state dict")
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
                what = type(value).__name__ if not isinstance(value, torch.Tensor) else f"{value.layout} tensor"
                raise CheckpointError(f"{path}: {key} is a {what}, not a plain tensor: this is not a state dict")
            self.shapes[key] = tuple(value.shape)
            self.dtypes[key] = value.dtype
        if self._wrapping is not None:
            plain = (str, int, float, bool)
            self.metadata = {str(k): v for k, v in document.items() if isinstance(v, plain) and not callable(v)}

    def _load(self) -> Any:
        # old pickles cannot be mapped: PyTorch wants the zip for that
        try:
            with torch.serialization.safe_globals([ModelCheckpoint]):
                return torch.load(self.files[0], map_location="cpu", weights_only=True, mmap=self._is_zip)
        except pickle.UnpicklingError as error:
            raise _refused(self.path, error) from error
        except MemoryError as error:  # a bytearray of a terabyte may be asked for
            raise CheckpointError(f"{self.path}: to open it takes more memory than there is; get it again") from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise damaged(self.path, error) from error

    def _unwrap(self, document: Mapping) -> Mapping[str, torch.Tensor]:
        return document if self._wrapping is None else document[self._wrapping]

    def _read(self, key: str) -> torch.Tensor:
        if self._tensors is None:
            raise CheckpointError(f"{self.path}: has been closed")
        self._mapped += self.num_bytes(key)
        if self._is_zip and self._mapped > MAPPED_BYTES:
            self._mapped, self._tensors = self.num_bytes(key), None
            self._tensors = self._unwrap(self._load())
        return self._tensors[key].detach()

    def close(self) -> None:
        self._tensors = None


def _wrapping(document: Any, path: Path) -> str | None:
    """The name under which the state dict lies, None if the document is one itself."""
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{path}: holds {type(document).__name__}, not a state dict: name another file")
    for name in WRAPPINGS:
        inner = document.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            return name
    if not any(isinstance(value, torch.Tensor) for value in document.values()):
        keys = ", ".join(str(key) for key in list(document)[:5])
        raise CheckpointError(f"{path}: holds no tensors ({keys or 'it is empty'}): name another file")
    return None


def _check_stored(path: Path) -> None:
    """PyTorch never compresses; a mapped file could not be read if another program had."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise damaged(path, error) from error
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a zip archive without weights: unpack it, or name another file")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path}: {entry.filename} is compressed, as PyTorch never does: refused")


def _refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text) or re.search(r"[Uu]nsupported (?:global|class):?\s*(\S+)", text)
    if found is None:
        return CheckpointError(
            f"{path} is refused: it is damaged, or a pickle of something else than weights. Nothing was executed; "
            "get it again, or as safetensors"
        )
    return CheckpointError(
        f"{path} is refused: to open it would run {found[1]}, which is no part of weights. Nothing was executed; "
        "get the weights as safetensors, or from a source you trust"
    )

"""What all pipelines share: loading and saving of folders, devices, dtypes, checks on numbers."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline

from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler

NANO_DIR = Path(__file__).resolve().parent.parent / "nano" / "weights"
OUR_CLASSES = {
    "I2VGenXLUNet": I2VGenXLUNet,
    "UNet3DConditionModel": I2VGenXLUNet,
    "PatchAutoencoder": PatchAutoencoder,
    "I2VGenDDIMScheduler": I2VGenDDIMScheduler,
    "DDIMScheduler": I2VGenDDIMScheduler,
    "VideoRefineScheduler": VideoRefineScheduler,
}
WEIGHT_LIBRARIES = ("diffusers", "transformers")
# A UNet3DConditionModel has no heads but text; the released refiners of that class pad odd heights.
REFINER_FIELDS = {
    "use_fps": False,
    "use_image_embeddings": False,
    "use_image_latents": False,
    "has_odd_height": True,
}


class ModelError(ValueError):
    """A model folder that cannot be used: missing, incomplete, or with weights of another shape."""


class NonFiniteError(RuntimeError):
    """A stage produced NaN or infinity."""


class FamilyPipeline(DiffusionPipeline):
    """A DiffusionPipeline whose UNets and schedulers are this package's, whatever class the folder names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> FamilyPipeline:
        """Load "nano", a folder in diffusers layout, or a hub id; keyword arguments as in diffusers.

        Raises ModelError for a folder that is missing, lacks a component, or holds weights of a wrong shape.
        """
        folder = resolve_folder(pretrained_model_name_or_path, cls, kwargs)
        try:
            index = json.loads((folder / "model_index.json").read_text())
        except ValueError as error:
            raise ModelError(f"model folder {folder}: model_index.json is damaged: {error}") from error
        expected, _ = cls._get_signature_keys(cls)
        for name in sorted(expected):
            entry = index.get(name)
            if name in kwargs or entry is None or entry[0] is None:
                continue
            if not (folder / name).is_dir():
                raise ModelError(f"model folder {folder}: component {name!r} is missing")
            component_class = _component_class(*entry)
            if component_class is not None:
                kwargs[name] = _load_component(folder, name, component_class, kwargs)
        missing = [n for n in expected if n not in index and n not in kwargs and n not in cls._optional_components]
        if missing:
            raise ModelError(f"model folder {folder}: model_index.json names no {missing[0]!r} for {cls.__name__}")
        try:
            pipeline = super().from_pretrained(str(folder), **kwargs)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"model folder {folder}: {error}") from error
        pipeline.model_name = str(pretrained_model_name_or_path)
        return pipeline

    def register_modules(self, **kwargs: Any) -> None:
        super().register_modules(**kwargs)
        for name, module in kwargs.items():  # saved folders name the classes that others can load
            if isinstance(module, I2VGenXLUNet):
                kind = "I2VGenXLUNet" if module.config.use_image_latents else "UNet3DConditionModel"
                self.register_to_config(**{name: ("diffusers", kind)})

    def require_finite(self, tensor: torch.Tensor, stage: str) -> torch.Tensor:
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{stage}: the result holds NaN or infinity (dtype {tensor.dtype}); try --dtype float32"
            )
        return tensor


def resolve_folder(name: str | Path, cls: type[DiffusionPipeline], kwargs: dict[str, Any]) -> Path:
    """The local folder of "nano", a path, or a hub id (downloaded into the hub's cache)."""
    folder = NANO_DIR if str(name) == "nano" else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ModelError(f"model folder {folder}: no model_index.json; is it a folder in diffusers layout?")
        return folder
    if folder == NANO_DIR:
        raise ModelError(f"model 'nano': its weights are not in {folder}; install i2vgen anew, or give another model")
    looks_local = str(name).startswith((".", "/", "~")) or str(name).count("/") != 1
    if looks_local or folder.exists():
        raise ModelError(f"model: no folder at {str(name)!r}; give 'nano', a folder, or a hub id such as owner/name")
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "variant")
    try:
        return Path(cls.download(str(name), **{k: kwargs[k] for k in hub if k in kwargs}))
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {name!r} is no folder here and could not be had from the hub: {error}") from error


def _component_class(library: str, name: str) -> type | None:
    """Ours where there is one; None for what diffusers should load by itself."""
    if name in OUR_CLASSES:
        return OUR_CLASSES[name]
    found = getattr(importlib.import_module(library), name, None) if library in WEIGHT_LIBRARIES else None
    return found if isinstance(found, type) and issubclass(found, torch.nn.Module) else None


def _load_component(folder: Path, name: str, cls: type, kwargs: dict[str, Any]) -> Any:
    try:
        if issubclass(cls, torch.nn.Module):
            return _load_weights(folder / name, name, cls, kwargs)
        return cls.from_pretrained(folder / name, **_scheduler_fields(cls, folder / name))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model folder {folder}: component {name!r}: {error}") from error


def _load_weights(path: Path, name: str, cls: type, kwargs: dict[str, Any]) -> torch.nn.Module:
    """Raises ValueError for weights that are missing, of a wrong shape, or (in our classes) unknown: the
    libraries would only log most of these and go on with random ones."""
    dtype = kwargs.get("torch_dtype") or torch.float32
    if isinstance(dtype, dict):
        dtype = dtype.get(name, dtype.get("default", torch.float32))
    options = {"torch_dtype": dtype, "variant": kwargs.get("variant"), "output_loading_info": True}
    is_ours = cls in OUR_CLASSES.values()
    if is_ours and cls.load_config(path).get("_class_name") == "UNet3DConditionModel":
        options.update(REFINER_FIELDS)
    if issubclass(cls, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # its own error does not say which; they are raised below
    model, found = cls.from_pretrained(path, **options)
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if found.get(kind) and (is_ours or kind != "unexpected_keys"):
            names = ", ".join(sorted(map(str, found[kind]))[:3])
            raise ValueError(f"{len(found[kind])} {kind.replace('_', ' ')}: {names}")
    return model


def _scheduler_fields(cls: type, path: Path) -> dict[str, Any]:
    """Fields that mean the same in diffusers' DDIMScheduler under other names."""
    config = cls.load_config(path)
    if config.get("_class_name") != "DDIMScheduler":
        return {}
    spacing = {"linspace": "trailing"}.get(config.get("timestep_spacing"), config.get("timestep_spacing", "leading"))
    return {"timestep_spacing": spacing}


def options_of_folder(kind: type, defaults: dict[str, Any], name: str) -> Any:
    """`kind` (BaseOptions or RefineOptions) with the `defaults` that a folder's model_index.json has under `name`.

    Raises ModelError naming a key that `kind` does not have.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for key in defaults:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ModelError(f"{name}: unknown key {key!r}; use {' or '.join(near or known)}")
    return kind(**defaults)


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def parse_device(name: str | torch.device | None) -> torch.device:
    """Raises ValueError for a device that this machine does not have."""
    if name is None or str(name) == "auto":
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps': this machine has none")
    return device


def parse_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """`name` or, for None and "auto", bfloat16 on a GPU that has it and float32 elsewhere."""
    if isinstance(name, torch.dtype):
        return name
    if name is None or name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"dtype {name!r} is unknown; use {' or '.join(near or known)}")
    return known[name]

"""What all pipelines share: loading and saving of folders, devices, dtypes, checks on numbers."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
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
# A UNet3DConditionModel has no heads but text; the released refiners of that class pad odd heights.
REFINER_FIELDS = {"use_fps": False, "use_image_embeddings": False, "use_image_latents": False, "has_odd_height": True}


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
        index = json.loads((folder / "model_index.json").read_text())
        expected, optional = cls._get_signature_keys(cls)
        for name in sorted(expected):
            entry = index.get(name)
            if name in kwargs or entry is None or entry[0] is None:
                continue
            if not (folder / name).is_dir():
                raise ModelError(f"model folder {folder}: component {name!r} is missing")
            if entry[1] in OUR_CLASSES:
                kwargs[name] = _load_component(folder, name, OUR_CLASSES[entry[1]], kwargs)
        missing = [n for n in expected if n not in index and n not in kwargs and n not in cls._optional_components]
        if missing:
            raise ModelError(f"model folder {folder}: model_index.json names no {missing[0]!r} for {cls.__name__}")
        try:
            pipeline = super().from_pretrained(str(folder), **kwargs)
        except OSError as error:
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
    looks_local = str(name).startswith((".", "/", "~")) or str(name).count("/") != 1
    if looks_local or folder.exists():
        raise ModelError(f"model: no folder at {str(name)!r}; give 'nano', a folder, or a hub id such as owner/name")
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "variant")
    try:
        return Path(cls.download(str(name), **{k: kwargs[k] for k in hub if k in kwargs}))
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {name!r} is no folder here and could not be had from the hub: {error}") from error


def _load_component(folder: Path, name: str, cls: type, kwargs: dict[str, Any]) -> Any:
    path = folder / name
    try:
        if hasattr(cls, "load_state_dict"):
            config = cls.load_config(path)
            fields = REFINER_FIELDS if config.get("_class_name") == "UNet3DConditionModel" else {}
            options = {"torch_dtype": kwargs.get("torch_dtype"), "variant": kwargs.get("variant"), **fields}
            return cls.from_pretrained(path, **options)
        return cls.from_pretrained(path, **_scheduler_fields(cls, path))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model folder {folder}: component {name!r}: {error}") from error


def _scheduler_fields(cls: type, path: Path) -> dict[str, Any]:
    """Fields that mean the same in diffusers' DDIMScheduler under other names."""
    config = cls.load_config(path)
    if config.get("_class_name") != "DDIMScheduler":
        return {}
    spacing = {"linspace": "trailing"}.get(config.get("timestep_spacing"), config.get("timestep_spacing", "leading"))
    return {"timestep_spacing": spacing}


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

"""What all pipelines share: loading and saving of folders, devices, dtypes, checks on numbers."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import get_device

from i2vgen.checkpoints.components import defaults_of, image_processor_of, plan, tokenizer_of
from i2vgen.checkpoints.folders import ReleasedFolder, find_folder
from i2vgen.checkpoints.reading import open_tensors, variants_of_folder
from i2vgen.checkpoints.released import RELEASED
from i2vgen.checkpoints.variants import variant_defaults
from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler
from i2vgen.schedulers.ddim import fields_of_diffusers

logger = logging.getLogger(__name__)

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
# diffusers' UNet3DConditionModel has no heads but text, and takes heights as it does
TEXT_ONLY_FIELDS = {
    "use_fps": False,
    "use_image_embeddings": False,
    "use_image_latents": False,
    "has_odd_height": False,
}
FOREIGN_REFINERS = ("TextToVideoSDPipeline", "VideoToVideoSDPipeline")
ROLES = {"CascadePipeline": "cascade", "VideoRefinePipeline": "refiner", **dict.fromkeys(FOREIGN_REFINERS, "refiner")}
STABLE_DIFFUSION_2_LAYERS = 23  # its diffusers folders leave the tower's last layer out


class ModelError(ValueError):
    """A model folder that cannot be used: missing, incomplete, or with weights of another shape."""


class NonFiniteError(RuntimeError):
    """A stage produced NaN or infinity."""


class FamilyPipeline(DiffusionPipeline):
    """A DiffusionPipeline whose UNets and schedulers are this package's, whatever class the folder names."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> FamilyPipeline:
        """Load "nano", a folder in diffusers layout, a hub id, or what ModelScope and VGen released as it is: their
        folder, or a UNet file with the rest around it. Keyword arguments as in diffusers.

        Raises ModelError for a folder that is missing, lacks a component, or holds weights of a wrong shape.
        """
        released = released_folder(pretrained_model_name_or_path)
        if released is not None:
            pipeline = cls(**parts_of_released(cls, released, kwargs))
            pipeline.model_name = str(pretrained_model_name_or_path)
            return pipeline
        folder = resolve_folder(pretrained_model_name_or_path, cls, kwargs)
        index = _read_index(folder)
        expected, _ = cls._get_signature_keys(cls)
        if index.get("_class_name") in FOREIGN_REFINERS and "refine_defaults" in inspect.signature(cls).parameters:
            kwargs.setdefault("refine_defaults", foreign_refine_defaults(folder))
        for name in sorted(expected):
            entry = _component_entry(folder, index, name)
            if name in kwargs or entry is None:
                continue
            if not (folder / name).is_dir():
                raise ModelError(f"model folder {folder}: component {name!r} is missing")
            component_class = _component_class(*entry)
            if component_class is not None:
                kwargs[name] = _load_component(folder, name, component_class, kwargs, index)
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

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """As in diffusers; without an accelerator, where diffusers raises, all stays on the CPU, with a warning."""
        if not self._stays_on_cpu(device):
            super().enable_model_cpu_offload(gpu_id=gpu_id, device=device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As `enable_model_cpu_offload`, layer by layer."""
        if not self._stays_on_cpu(device):
            super().enable_sequential_cpu_offload(gpu_id=gpu_id, device=device)

    def _stays_on_cpu(self, device: torch.device | str | None) -> bool:
        stays = device is None and get_device() == "cpu"
        if stays:
            logger.warning("offloading: this machine has no accelerator, the model stays on the CPU")
        return stays

    def require_finite(self, tensor: torch.Tensor, stage: str) -> torch.Tensor:
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{stage}: the result holds NaN or infinity (dtype {tensor.dtype}); try --dtype float32"
            )
        return tensor


def local_folder(name: str | Path) -> Path | None:
    """The folder of "nano" or a path; None for what can only be a hub id. Raises ModelError for neither."""
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
    return None


def resolve_folder(name: str | Path, cls: type[DiffusionPipeline], kwargs: dict[str, Any]) -> Path:
    """The local folder of "nano", a path, or a hub id (downloaded into the hub's cache)."""
    if (folder := local_folder(name)) is not None:
        return folder
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


def _load_component(folder: Path, name: str, cls: type, kwargs: dict[str, Any], index: dict[str, Any]) -> Any:
    try:
        if issubclass(cls, torch.nn.Module):
            return _load_weights(folder / name, name, cls, kwargs)
        is_base = index.get("_class_name") not in FOREIGN_REFINERS
        return cls.from_pretrained(folder / name, **scheduler_fields(cls, folder / name, is_base))
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"model folder {folder}: component {name!r}: {error}") from error


def _load_weights(path: Path, name: str, cls: type, kwargs: dict[str, Any]) -> torch.nn.Module:
    """Raises ValueError for weights that are missing, of a wrong shape, or (in our classes) unknown: the
    libraries would only log most of these and go on with random ones."""
    variant = _variant_of(path, kwargs.get("variant"))
    if not any(path.glob("*.safetensors")):
        open_tensors(path, variant).close()  # says what is wrong with a pickle, where the libraries do not
    options = {
        "torch_dtype": dtype_of(name, kwargs),
        "variant": variant,
        "output_loading_info": True,
    }
    is_ours = cls in OUR_CLASSES.values()
    options |= text_only_fields(cls.load_config(path)) if is_ours else {}
    if issubclass(cls, transformers.PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # its own error does not say which; they are raised below
    model, found = cls.from_pretrained(path, **options)
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if found.get(kind) and (is_ours or kind != "unexpected_keys"):
            names = ", ".join(sorted(map(str, found[kind]))[:3])
            raise ValueError(f"{len(found[kind])} {kind.replace('_', ' ')}: {names}")
    return model


def text_only_fields(config: dict[str, Any]) -> dict[str, Any]:
    """What a UNet's configuration of diffusers' UNet3DConditionModel leaves unsaid."""
    if config.get("_class_name") != "UNet3DConditionModel":
        return {}
    return {field: config.get(field, value) for field, value in TEXT_ONLY_FIELDS.items()}


def dtype_of(name: str, kwargs: dict[str, Any]) -> torch.dtype:
    """What `torch_dtype`, a dtype or a dict of them by component, says for the component `name`."""
    dtype = kwargs.get("torch_dtype") or torch.float32
    return dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype


def _variant_of(path: Path, variant: str | None) -> str | None:
    """`variant` where the component has files of it; else None for its plain files, or the only variant there is."""
    found = variants_of_folder(path)
    if variant in found:
        return variant
    return next(iter(found)) if "" not in found and len(found) == 1 else None


def scheduler_fields(cls: type, path: Path, is_base: bool) -> dict[str, Any]:
    """Fields that diffusers' DDIMScheduler has under other names, or with other defaults."""
    config = cls.load_config(path)
    return fields_of_diffusers(config, is_base) if config.get("_class_name") == "DDIMScheduler" else {}


def foreign_refine_defaults(folder: Path) -> dict[str, Any]:
    defaults, _ = variant_defaults("diffusers-video-to-video")
    config = _read_index(folder, "text_encoder/config.json") if (folder / "text_encoder").is_dir() else {}
    return defaults | {"clip_skip": int(config.get("num_hidden_layers", 0) > STABLE_DIFFUSION_2_LAYERS)}


def _read_index(folder: Path, name: str = "model_index.json") -> dict[str, Any]:
    try:
        index = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model folder {folder}: {name} is damaged: {error}") from error
    if not isinstance(index, dict):
        raise ModelError(f"model folder {folder}: {name} is damaged: it holds no JSON object")
    return index


def _component_entry(folder: Path, index: dict[str, Any], name: str) -> tuple[str, str] | None:
    """(library, class name) of a component; None if the index has none of that name, or says that it is left out."""
    entry = index.get(name)
    if entry is None or entry == [None, None]:
        return None
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise ModelError(f"model folder {folder}: model_index.json: {name} is {entry!r}, expected [library, class]")
    return entry[0], entry[1]


def released_folder(name: str | Path) -> ReleasedFolder | None:
    """A folder, or a UNet file with the rest around it, as ModelScope and VGen released them; else None.

    Raises ModelError for one that is incomplete.
    """
    try:
        return None if str(name) == "nano" else find_folder(name)
    except ValueError as error:
        raise ModelError(f"model: {error}") from error


def parts_of_released(cls: type, folder: ReleasedFolder, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the constructor of the pipeline `cls` takes, loaded from a released folder one component at a time.

    A cascade has the folder's base stage, and its refiner if there is one.
    """
    parameters = inspect.signature(cls).parameters
    is_cascade = "refine_unet" in parameters
    is_refiner = None if is_cascade else "refine_defaults" in parameters
    try:
        if is_cascade:
            folder.variants(is_refiner=False)  # a refiner alone is no cascade
        components = {component.name: component for component in plan(folder, is_refiner)}
        parts = dict.fromkeys(set(cls._get_signature_keys(cls)[0]))
        for variant in folder.variants(is_refiner):
            role = "refine" if RELEASED[variant].is_refiner else "base"
            prefix = "refine_" if is_cascade and role == "refine" else ""
            parts[f"{role}_defaults"], parts[f"{prefix}scheduler"] = defaults_of(folder, variant, components["vae"])
        if "text_encoder" in components:
            parts["tokenizer"] = tokenizer_of(folder, components["text_encoder"])
        if "image_encoder" in components:
            parts["feature_extractor"] = image_processor_of(folder, components["image_encoder"])
        parts |= {name: value for name, value in kwargs.items() if name in parts}
        for name, component in components.items():
            if name not in kwargs:
                parts[name] = component.load(dtype_of(name, kwargs))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model: {error}") from error
    return parts


def folder_role(name: str | Path) -> str:
    """ "base", "refiner" or "cascade": what a folder or hub id is, without loading it."""
    released = released_folder(name)
    if released is not None:
        roles = ["refiner" if RELEASED[variant].is_refiner else "base" for variant in released.variants()]
        return roles[0] if len(roles) == 1 else "cascade"
    if (folder := local_folder(name)) is not None:
        return _role(_read_index(folder))
    try:
        index = DiffusionPipeline.load_config(str(name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model: {str(name)!r} is no folder here and could not be had from the hub: {error}"
        ) from error
    return _role(index)


def _role(index: dict[str, Any]) -> str:
    kind = index.get("_class_name")  # a list where a folder brings code of its own, which is never run
    return ROLES.get(kind, "base") if isinstance(kind, str) else "base"


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

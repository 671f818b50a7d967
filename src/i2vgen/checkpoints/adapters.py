"""LoRA adapters of a UNet as files: diffusers' layout read and written, kohya's read, all checked against the UNet."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from i2vgen.checkpoints.errors import CheckpointError, nearest
from i2vgen.checkpoints.reading import existing_path, open_tensors
from i2vgen.checkpoints.writing import replacing
from i2vgen.models.unet import I2VGenXLUNet

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
SETTINGS_KEY = "lora_adapter_metadata"  # of a file's header, in diffusers
STAGE_KEY = "i2vgen_stage"  # of a file's header: "base" or "refine"
STAGES = ("base", "refine")
UNET = "unet."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
FOREIGN_PREFIXES = (UNET, "base_model.model.")  # of diffusers, of peft
KOHYA_UNET, KOHYA_NAMES = "lora_unet_", {".lora_down.weight": DOWN, ".lora_up.weight": UP}
# networks of nano's own, which other UNets of the family do not have and which are trained apart
PRIORS = ("motion_prior.", "motion_embedding.", "object_prior.")


@dataclass(frozen=True)
class AdapterFile:
    """What a file or state dict says, before it is known which UNet it is for."""

    name: str  # for messages
    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any]  # of peft's LoraConfig, {} where the file has none
    stage: str | None  # "base" or "refine", None where the file does not say

    @property
    def sha256(self) -> str:
        """Of tensors and settings, in whatever order and file they are."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self.tensors.items()):
            digest.update(f"\0{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a UNet. By module: (r, in, ...) down, (out, r, ...) up, and alpha; it adds
    alpha / r * up @ down to the module's weight."""

    down: dict[str, torch.Tensor]
    up: dict[str, torch.Tensor]
    alphas: dict[str, float]

    @property
    def ranks(self) -> dict[str, int]:
        return {module: len(tensor) for module, tensor in self.down.items()}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By the names that peft gives them."""
        named = {}
        for module in self.down:
            named |= {module + DOWN: self.down[module], module + UP: self.up[module]}
        return named

    def peft_settings(self) -> dict[str, Any]:
        """Fields of peft's LoraConfig."""
        rank, rank_pattern = _common(self.ranks)
        alpha, alpha_pattern = _common(self.alphas)
        return {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
            "target_modules": sorted(self.down),
        }


def require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ValueError("LoRA adapters need the package peft: pip install 'i2vgen[lora]'")


def adaptable_modules(unet: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions over pixels, under their names. Convolutions over frames are not among them,
    nor are nano's priors."""
    modules = {name: getattr(module, "base_layer", module) for name, module in unet.named_modules()}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and not name.startswith(PRIORS)
        and ".base_layer" not in name
        # an adapter's own layers
        and not any(part.startswith("lora_") for part in name.split("."))
    }


def open_adapter(
    source: str | os.PathLike | Mapping[str, torch.Tensor], weight_name: str | None = None, **hub: Any
) -> AdapterFile:
    """Read a file, a folder with one, a hub id (`hub`: revision, token, ...), or take a state dict.

    Raises CheckpointError for a path that is missing, damaged, unsafe to open, or leaves open which file is meant.
    """
    if isinstance(source, Mapping):
        return AdapterFile("the given state dict", dict(source), {}, None)
    path = _local_file(source, weight_name, hub)
    with open_tensors(path) as file:
        tensors = {key: file.read(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
        header = file.metadata
    stage = header.get(STAGE_KEY)
    return AdapterFile(str(path), tensors, _settings(header, path), stage if stage in STAGES else None)


def fit_adapter(file: AdapterFile, unet: nn.Module) -> Adapter:
    """Raises CheckpointError naming the tensor, and the nearest module, if the file is no adapter of this UNet."""
    modules = adaptable_modules(unet)
    tensors, alphas = _in_peft_names(file, modules)
    down = {key.removesuffix(DOWN): value for key, value in tensors.items() if key.endswith(DOWN)}
    up = {key.removesuffix(UP): value for key, value in tensors.items() if key.endswith(UP)}
    for key, tensor in tensors.items():
        module = key.removesuffix(DOWN).removesuffix(UP)
        if module == key:
            raise CheckpointError(f"{file.name}: {key} is not part of a LoRA (lora_A and lora_B of each module are)")
        if module not in modules:
            raise CheckpointError(
                f"{file.name}: {key}: the UNet has no module of this name that takes an adapter"
                f"{nearest(module, modules)}"
            )
        if module not in down or module not in up:
            raise CheckpointError(f"{file.name}: {key} is there without its other half; the file is incomplete")
        _check_shape(file.name, key, tensor, _expected(modules[module], len(down[module]), key.endswith(DOWN)))
    if not down:
        raise CheckpointError(f"{file.name}: holds no LoRA weights")
    for module, tensor in down.items():
        alphas.setdefault(module, _alpha_of(file.settings, module, len(tensor)))
    return Adapter(down, up, {module: alphas[module] for module in down})


def add_adapter(adapter: Adapter, unet: I2VGenXLUNet, name: str, pipeline: Any = None) -> None:
    """Put the adapter into the UNet under `name`; `pipeline`: its owner, whose offloading is kept."""
    require_peft()
    tensors = {UNET + key: tensor for key, tensor in adapter.tensors.items()}
    settings = {UNET + key: value for key, value in adapter.peft_settings().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
        unet.load_lora_adapter(tensors, prefix="unet", adapter_name=name, metadata=settings, _pipeline=pipeline)
    unet.train(unet.training)  # the new layers are in training mode


def adapter_of(unet: I2VGenXLUNet, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, fields of peft's LoraConfig) of an adapter in the UNet, with alpha = rank: its strength is in the
    tensors, for readers that look at these alone. Raises CheckpointError if there is none of the name."""
    require_peft()
    from peft.utils import get_peft_model_state_dict

    configs = getattr(unet, "peft_config", None) or {}
    if name not in configs:
        raise CheckpointError(f"adapter {name!r} is not in the UNet; it has {', '.join(configs) or 'none'}")
    fields = {field: getattr(configs[name], field) for field in ("lora_alpha", "alpha_pattern")}
    tensors = get_peft_model_state_dict(unet, adapter_name=name)
    found = fit_adapter(AdapterFile(f"adapter {name!r}", tensors, fields, None), unet)
    ranks = found.ranks
    up = {module: tensor * (found.alphas[module] / ranks[module]) for module, tensor in found.up.items()}
    plain = Adapter(found.down, up, dict(ranks))
    return plain.tensors, plain.peft_settings()


def write_adapter(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any] | None = None,
    stage: str | None = None,
) -> Path:
    """Write tensors by peft's names (without "unet.") as diffusers does; `path` is a folder, or a .safetensors file."""
    path = Path(path).expanduser()
    path = path if path.suffix == ".safetensors" else path / ADAPTER_FILE
    header = {"format": "pt"}
    if settings:
        header[SETTINGS_KEY] = json.dumps({UNET + key: value for key, value in settings.items()}, sort_keys=True)
    if stage:
        header[STAGE_KEY] = stage
    with replacing(path) as temporary:
        save_file({UNET + key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, header)
    return path


def _local_file(source: str | os.PathLike, weight_name: str | None, hub: dict[str, Any]) -> Path:
    text = str(source)
    looks_local = text.startswith((".", "/", "~")) or text.count("/") != 1
    if looks_local or Path(source).exists():
        path = existing_path(source)
        return path if not path.is_dir() else _file_of_folder(path, weight_name)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(text, weight_name or ADAPTER_FILE, **hub))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{text!r} is no file here and could not be had from the hub: {error}") from error


def _file_of_folder(folder: Path, weight_name: str | None) -> Path:
    if weight_name is not None:
        return existing_path(folder / weight_name)
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    if ADAPTER_FILE in names or len(names) == 1:
        return folder / (ADAPTER_FILE if ADAPTER_FILE in names else names[0])
    what = f"several files ({', '.join(names[:4])}): name one of them" if names else f"no {ADAPTER_FILE} in it"
    raise CheckpointError(f"{folder}: {what}")


def _settings(header: dict[str, Any], path: Path) -> dict[str, Any]:
    """The LoraConfig's fields in a file's header."""
    try:
        stored = json.loads(header.get(SETTINGS_KEY) or "{}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its {SETTINGS_KEY} is damaged: {error}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: its {SETTINGS_KEY} is no JSON object")
    settings = {key.removeprefix(UNET): value for key, value in stored.items()}
    if settings.get("use_dora"):
        raise CheckpointError(f"{path}: is a DoRA, which is not supported; LoRAs are")
    return settings


def _in_peft_names(
    file: AdapterFile, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(tensors under peft's names without prefix, the alphas that are stored as tensors)"""
    for key, tensor in file.tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{file.name}: {key!r} is no tensor under a name")
    if any(key.startswith(KOHYA_UNET) for key in file.tensors):
        return _from_kohya(file, modules)
    tensors = dict(file.tensors)
    for prefix in FOREIGN_PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            for key in tensors:
                if not key.startswith(prefix):
                    raise CheckpointError(
                        f"{file.name}: {key} is not for the UNet; adapters of text towers are not supported: leave "
                        "such tensors out"
                    )
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if tensors and not any(DOWN in key for key in tensors):  # diffusers' older names
        from diffusers.utils import convert_unet_state_dict_to_peft

        tensors = convert_unet_state_dict_to_peft(tensors)
    return tensors, {}


def _from_kohya(
    file: AdapterFile, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Their names have "_" for every "."."""
    flat = {name.replace(".", "_"): name for name in modules}
    tensors, alphas = {}, {}
    for key, value in file.tensors.items():
        if not key.startswith(KOHYA_UNET):
            raise CheckpointError(
                f"{file.name}: {key} is not for the UNet; adapters of text towers are not supported: leave such "
                "tensors out"
            )
        module, _, leaf = key.removeprefix(KOHYA_UNET).partition(".")
        name = flat.get(module, module)
        if leaf == "alpha" and value.numel() == 1:
            alphas[name] = float(value)
        else:
            tensors[name + KOHYA_NAMES.get(f".{leaf}", f".{leaf}")] = value
    return tensors, alphas


def _expected(module: nn.Module, rank: int, is_down: bool) -> tuple[int, ...]:
    out, fed, *kernel = module.weight.shape
    return (rank, fed, *kernel) if is_down else (out, rank, *(1 for _ in kernel))


def _check_shape(name: str, key: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise CheckpointError(
            f"{name}: {key} has shape {tuple(tensor.shape)}, this UNet needs {expected}: it is of another model"
        )
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{name}: {key} holds NaN or infinity")


def _alpha_of(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The alpha of a module by peft's settings; its rank where they say nothing."""
    patterns = settings.get("alpha_pattern") or {}
    found = [value for key, value in patterns.items() if f".{module}".endswith("." + key.removeprefix("^"))]
    alpha = found[0] if found else settings.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"alpha of {module} is {alpha!r}, not a number")
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the modules that have another."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{module}": value for module, value in values.items() if value != common}

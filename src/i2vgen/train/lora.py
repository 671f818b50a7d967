"""Training a LoRA: adapters beside the frozen weights of a UNet, through peft."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from i2vgen.checkpoints.adapters import (
    adaptable_modules,
    adapter_of,
    fit_adapter,
    open_adapter,
    require_peft,
    write_adapter,
)
from i2vgen.checkpoints.errors import nearest
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.train.config import AdapterConfig

NAME = "default"


def target_names(unet: nn.Module, targets: list[str]) -> list[str]:
    """The modules that `lora.target_modules` names: by the end of a name ("to_q"), or by a pattern of the whole
    name ("*temp_attentions*to_q").

    Raises ValueError for an entry that names none.
    """
    modules = adaptable_modules(unet)
    chosen: set[str] = set()
    for target in targets:
        is_pattern = any(sign in target for sign in "*?[")
        found = [n for n in modules if (fnmatchcase(n, target) if is_pattern else f".{n}".endswith(f".{target}"))]
        if not found:
            raise ValueError(f"lora.target_modules: {target!r} names no layer of the UNet{nearest(target, modules)}")
        chosen.update(found)
    if not chosen:
        raise ValueError("lora.target_modules: name at least one layer, such as to_q")
    return sorted(chosen)


def inject_adapter(unet: I2VGenXLUNet, config: AdapterConfig) -> None:
    """Freeze the UNet and give it a new adapter, which changes nothing yet, or that of `lora.init_from`.

    Raises ValueError for settings out of range, or an `init_from` that does not fit them.
    """
    require_peft()
    from peft import LoraConfig, set_peft_model_state_dict

    if config.alpha < 0 or not 0 <= config.dropout < 1:
        raise ValueError(
            f"lora: alpha must be 0 or above and dropout in [0, 1), got alpha {config.alpha}, dropout {config.dropout}"
        )
    targets = target_names(unet, config.target_modules)
    first = fit_adapter(open_adapter(config.init_from), unet) if config.init_from else None
    unet.requires_grad_(False)
    alpha = config.alpha or config.rank
    unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=targets))
    if first is None:
        return
    if sorted(first.down) != targets or set(first.ranks.values()) != {config.rank}:
        raise ValueError(
            f"lora.init_from: {config.init_from} has {len(first.down)} modules of rank "
            f"{', '.join(map(str, sorted(set(first.ranks.values()))))}, the configuration {len(targets)} of rank "
            f"{config.rank}: set lora.rank and lora.target_modules as they were"
        )
    scaled = {  # to this configuration's alpha
        **{key: value for key, value in first.tensors.items() if ".lora_A." in key},
        **{f"{m}.lora_B.weight": up * (first.alphas[m] / alpha) for m, up in first.up.items()},
    }
    set_peft_model_state_dict(unet, scaled, NAME)


def copy_adapters(source: nn.Module, target: nn.Module) -> None:
    """Give `target` adapters as `source` has them, with new weights."""
    for name, config in (getattr(source, "peft_config", None) or {}).items():
        target.add_adapter(copy.deepcopy(config), name)


def export_adapter(unet: I2VGenXLUNet, folder: Path, stage: str) -> None:
    """Write `pytorch_lora_weights.safetensors` into `folder`, with the stage (base or refine) that it is for."""
    tensors, settings = adapter_of(unet, NAME)
    write_adapter(folder, tensors, settings, stage)

"""LoRA adapters in pipelines: diffusers' calls (`load_lora_weights`, `set_adapters`, `fuse_lora`, ...) on our UNets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

from i2vgen.checkpoints.adapters import (
    AdapterFile,
    adapter_of,
    add_adapter,
    fit_adapter,
    open_adapter,
    require_peft,
    write_adapter,
)
from i2vgen.checkpoints.errors import nearest
from i2vgen.models.unet import I2VGenXLUNet

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
FUSED = "adapters are fused into the weights: call unfuse_lora() first"


class LoraMixin(LoraBaseMixin):
    """Adapters of a pipeline's UNets; those of text towers are not supported.

    Several may be loaded; a newly loaded one works beside those that are active, at weight 1. `set_adapters` chooses
    among them and sets their weights. What each UNet has is kept with it, so that pipelines which share a UNet agree.
    """

    _lora_stages = {"base": "unet"}  # stage -> component

    @property
    def _lora_loadable_modules(self) -> list[str]:
        return [name for name in self._lora_stages.values() if getattr(self, name) is not None]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | Mapping[str, torch.Tensor],
        *,
        weight_name: str | None = None,
        adapter_name: str | None = None,
        stage: str | None = None,
        **hub: Any,
    ) -> str:
        """Load an adapter beside the weights and make it active; returns its name.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder, a hub id (`hub` as for from_pretrained), or a
                state dict, in diffusers' layout ("unet.<module>.lora_A.weight"), peft's, or kohya's.
            weight_name: the file's name, in a folder or on the hub; pytorch_lora_weights.safetensors if not given.
            adapter_name: "default_0" and so on if not given.
            stage: "base" or "refine". Files that i2vgen's training wrote say it themselves; any other is taken for
                the base stage, where the pipeline has one.

        Raises ValueError (CheckpointError for the file) naming what does not fit; the model is then as it was.
        """
        require_peft()
        for option in hub:
            if option not in HUB_OPTIONS:
                raise TypeError(f"load_lora_weights() has no argument {option!r}{nearest(option, HUB_OPTIONS)}")
        file = open_adapter(pretrained_model_name_or_path_or_dict, weight_name, **hub)
        component = self._component_of(stage, file)
        unet: I2VGenXLUNet = getattr(self, component)
        self._require_unfused("load_lora_weights")
        known = {name for names in self.get_list_adapters().values() for name in names}
        if adapter_name is None:
            number = len(known)
            while f"default_{number}" in known:
                number += 1
            adapter_name = f"default_{number}"
        if adapter_name in known or not adapter_name or "." in adapter_name:
            reason = "is in use" if adapter_name in known else "must have a character, and no dot"
            raise ValueError(f"adapter_name {adapter_name!r} {reason}: give another")
        active = _active(unet)
        add_adapter(fit_adapter(file, unet), unet, adapter_name, self)
        records(unet)[adapter_name] = {"path": _place(file), "sha256": file.sha256, "weight": 1.0}
        self._activate(unet, {name: records(unet)[name]["weight"] for name in [*active, adapter_name]})
        return adapter_name

    def _component_of(self, stage: str | None, file: AdapterFile) -> str:
        stages = {s: c for s, c in self._lora_stages.items() if c in self._lora_loadable_modules}
        wanted = stage or file.stage or next(iter(stages))
        if wanted not in stages:
            raise ValueError(
                f"{file.name}: is an adapter of the stage {wanted!r}, this pipeline has {' and '.join(stages)}; "
                "stage= overrides what the file says"
            )
        return stages[wanted]

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | list[float] | None = None,
    ) -> None:
        """Make these adapters the active ones, with a weight each, or one for all; 1 if not given.

        Raises ValueError for a name that is not loaded, weights that are no numbers or not as many, and while
        adapters are fused.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, list | tuple) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights: {len(weights)} weights for {len(names)} adapters")
        known = [name for loaded in self.get_list_adapters().values() for name in loaded]
        chosen: dict[str, float] = {}
        for name, weight in zip(names, weights, strict=True):
            if name not in known:
                raise ValueError(f"adapter {name!r} is not loaded{nearest(name, known) or '; none is'}")
            chosen[name] = _checked_weight(name, weight)
        self._require_unfused("set_adapters")
        for component, loaded in self.get_list_adapters().items():
            self._activate(getattr(self, component), {n: w for n, w in chosen.items() if n in loaded})

    def _activate(self, unet: I2VGenXLUNet, weights: dict[str, float]) -> None:
        unet.set_adapters(list(weights), list(weights.values()))
        for name, weight in weights.items():
            records(unet)[name]["weight"] = weight

    def get_active_adapters(self) -> list[str]:
        """Of all UNets of the pipeline."""
        return [name for component in self._lora_loadable_modules for name in _active(getattr(self, component))]

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Add the active adapters (or `adapter_names`), times `lora_scale`, to the weights: they then cost no time.

        `components` are all that have adapters if not given. Raises ValueError if there are none, or if they are
        fused already.
        """
        components = list(self.get_list_adapters()) if components is None else components
        if not components:
            raise ValueError("fuse_lora: no adapter is loaded; call load_lora_weights() first")
        self._require_unfused("fuse_lora")
        lora_scale = _checked_weight("lora_scale", lora_scale)
        for layer in self._adapted_layers():
            layer.scaling_before_fusing = dict(layer.scaling)
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names)
        for component in components:
            unet = getattr(self, component)
            for name in adapter_names or _active(unet):
                if name in records(unet):
                    records(unet)[name]["fused"] = lora_scale

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Take fused adapters out of the weights again, which are then as before but for rounding."""
        components = list(self.get_list_adapters()) if components is None else components
        if not components:
            return
        super().unfuse_lora(components)
        for layer in self._adapted_layers():
            if not layer.merged and hasattr(layer, "scaling_before_fusing"):
                layer.scaling.update(layer.scaling_before_fusing)
        for component in components:
            for record in records(getattr(self, component)).values():
                record.pop("fused", None)

    def unload_lora_weights(self) -> None:
        """Remove all adapters. What is fused stays in the weights."""
        for component in self._lora_loadable_modules:
            unet = getattr(self, component)
            kept = {name: record for name, record in records(unet).items() if "fused" in record}
            unet.unload_lora()
            records(unet).clear()
            unet.unloaded_records = [*getattr(unet, "unloaded_records", []), *kept.values()]
        self._merged_adapters = set()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove these adapters. Raises ValueError for a name that is not loaded, and while adapters are fused."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        loaded = self.get_list_adapters()
        known = [name for of_unet in loaded.values() for name in of_unet]
        for name in names:
            if name not in known:
                raise ValueError(f"adapter {name!r} is not loaded{nearest(name, known) or '; none is'}")
        self._require_unfused("delete_adapters")
        for component, of_unet in loaded.items():
            unet = getattr(self, component)
            mine = [name for name in names if name in of_unet]
            if len(mine) == len(of_unet):
                unet.unload_lora()
            else:
                left = [name for name in _active(unet) if name not in mine]
                self._activate(unet, {name: records(unet)[name]["weight"] for name in left})
                unet.delete_adapters(mine)
            for name in mine:
                del records(unet)[name]

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        unet_lora_layers: I2VGenXLUNet | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        weight_name: str | None = None,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        stage: str | None = None,
    ) -> Path:
        """Write an adapter in diffusers' layout into a folder; returns the file.

        Args:
            unet_lora_layers: a UNet, of whose adapters `adapter_name` is written (if it has several), or a state
                dict by peft's names, as diffusers takes it, with `unet_lora_adapter_metadata`.
            stage: "base" or "refine", kept in the file; the pipeline's own if it has one.
        """
        if isinstance(unet_lora_layers, I2VGenXLUNet):
            names = list(getattr(unet_lora_layers, "peft_config", None) or {})
            if adapter_name is None and len(names) != 1:
                raise ValueError(f"adapter_name: the UNet has {', '.join(names) or 'no adapter'}; name one")
            unet_lora_layers, unet_lora_adapter_metadata = adapter_of(unet_lora_layers, adapter_name or names[0])
        own = list(cls._lora_stages)
        stage = stage or (own[0] if len(own) == 1 else None)
        path = Path(save_directory) / (weight_name or "")
        return write_adapter(path, unet_lora_layers, unet_lora_adapter_metadata, stage)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers. Raises ValueError while adapters are loaded, whose layers no other loader could read."""
        if self.get_list_adapters():
            raise ValueError(
                "save_pretrained: adapters are loaded; save them by save_lora_weights(), or fuse_lora() to keep them "
                "in the weights, and call unload_lora_weights() first"
            )
        super().save_pretrained(*args, **kwargs)

    def adapter_records(self) -> dict[str, dict[str, Any]]:
        """By name: path and sha256 of each loaded adapter, and its weight."""
        unets = [getattr(self, component) for component in self._lora_loadable_modules]
        return {name: record for unet in unets for name, record in records(unet).items()}

    def lora_settings(self) -> list[dict[str, Any]]:
        """What settings keep of the adapters at work: path (None for a state dict), sha256, weight, stage."""
        found = []
        for stage, component in self._lora_stages.items():
            unet = getattr(self, component)
            if unet is None:
                continue
            known = list(records(unet).values())
            fused = [record for record in known if "fused" in record]  # the others then have no effect
            working = fused or [records(unet)[name] for name in _active(unet) if name in records(unet)]
            for record in [*getattr(unet, "unloaded_records", []), *working]:
                weight = record["weight"] * record.get("fused", 1.0)
                found.append({"path": record["path"], "sha256": record["sha256"], "weight": weight, "stage": stage})
        return found

    def _adapted_layers(self) -> list[torch.nn.Module]:
        unets = [getattr(self, component) for component in self.get_list_adapters()]
        if not unets:
            return []
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for unet in unets for module in unet.modules() if isinstance(module, BaseTunerLayer)]

    def _require_unfused(self, what: str) -> None:
        if any(layer.merged for layer in self._adapted_layers()):
            raise ValueError(f"{what}: {FUSED}")


def records(unet: I2VGenXLUNet) -> dict[str, dict[str, Any]]:
    """What is known of a UNet's adapters beside their weights, by name."""
    if not hasattr(unet, "adapter_records"):
        unet.adapter_records = {}
    return unet.adapter_records


def _active(unet: I2VGenXLUNet) -> list[str]:
    """The adapters at work, in the order of loading."""
    if not getattr(unet, "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in unet.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    names = {name for layer in layers for name in layer.active_adapters}
    return [name for name in unet.peft_config if name in names]


def _checked_weight(name: str, weight: Any) -> float:
    weight = 1.0 if weight is None else weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"weight of {name}: give a number, got {weight!r}")
    return float(weight)


def _place(file: AdapterFile) -> str | None:
    return str(Path(file.name).absolute()) if Path(file.name).is_file() else None

"""What a conversion has to do: one job a network, each with its file, its table and the place it goes to."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from i2vgen.checkpoints.clip_keys import VISION_PREFIX
from i2vgen.checkpoints.components import (
    VAE_PREFIX,
    Component,
    image_component,
    plan,
    text_component,
    vae_component,
    write_small_files,
)
from i2vgen.checkpoints.configs import SOURCES, unet_config
from i2vgen.checkpoints.detect import (
    INDEX_FILE,
    TEXT_PREFIX,
    Detected,
    detect,
    variant_of_source,
)
from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.folders import find_folder
from i2vgen.checkpoints.reading import CONFIG_FILE, open_tensors, read_json
from i2vgen.checkpoints.released import CLIP_CONFIG_FILE
from i2vgen.checkpoints.tables import KeyTable, same_names
from i2vgen.checkpoints.tensor_source import Shape, TensorSource
from i2vgen.checkpoints.unet_keys import UNET_DEFAULTS, unet_table
from i2vgen.checkpoints.vae_keys import vae_table
from i2vgen.checkpoints.writing import Spec

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data)|.*\.(safetensors|bin)\.index(\.\w+)?\.json"
)
# What VGen's code has no field for.
VGEN_FIELDS = {"norm_num_groups": 32, "image_latents_scale": 2.0}
FOREIGN_UNETS = tuple(source for source in SOURCES if source != "diffusers")


@dataclass(frozen=True)
class Job:
    """One network. name: its folder in the destination, "" for the destination itself. path: what holds it.

    The table leads from the names in `path` to those in a diffusers folder, or, `is_back`, the other way.
    targets: shapes by name in a diffusers folder, None where only the file says them.
    """

    name: str
    path: Path
    table: KeyTable
    targets: Mapping[str, Shape] | None
    is_back: bool = False
    owns: Callable[[str], bool] = lambda key: True
    write_config: Callable[[Path], None] | None = None
    stem: str = STEMS["diffusers"]

    def specs(self, tensors: TensorSource, dtype: torch.dtype | None) -> dict[str, Spec]:
        """Shape and dtype of all tensors to be written, in the order in which `stream` brings them.

        Raises CheckpointError naming the key for one that is unknown, missing, or of a wrong shape.
        """
        shapes = {key: shape for key, shape in tensors.shapes.items() if self.owns(key)}
        if self.is_back:
            written = self.table.source_shapes(shapes)
            for key, expected in (self.targets or {}).items():
                if shapes[key] != expected:
                    raise CheckpointError(f"{key} has shape {list(shapes[key])}, expected {list(expected)}")
            origin = {source: entries[0].target for source, entries in self.table.by_source.items()}
        else:
            written = self.table.target_shapes(shapes)
            if self.targets is not None:
                self.table.check_shapes(shapes, self.targets)
            origin = {e.target: e.source for entries in self.table.by_source.values() for e in entries}
        for key in origin.values() if self.targets is not None else ():
            if not tensors.dtypes[key].is_floating_point:
                raise CheckpointError(f"{key}: weights are {tensors.dtypes[key]}, expected a floating-point type")
        return {key: (written[key], _dtype(tensors.dtypes[origin[key]], dtype)) for key in origin}

    def name_in_source(self, key: str) -> str:
        """What a tensor that is written as `key` is called in `path`; of several, the first."""
        if self.is_back:
            return self.table.by_source[key][0].target
        return next(entry.source for entry in self.table.entries if entry.target == key)

    def stream(self, tensors: TensorSource) -> Iterator[tuple[str, torch.Tensor]]:
        return (self.table.convert_back if self.is_back else self.table.convert)(tensors.read)


@dataclass(frozen=True)
class Jobs:
    """All of a conversion. finish: writes the small files. left_out: what of the source is not carried over."""

    found: Detected
    jobs: list[Job]
    finish: Callable[[Path], None] = lambda folder: None
    left_out: list[str] = field(default_factory=list)


def jobs_to_diffusers(path: Path, source: str | None = None) -> Jobs:
    """Raises CheckpointError for what cannot become a diffusers folder, or is left open which one."""
    found = detect(path)
    if found.kind in ("modelscope", "vgen"):
        _only_for_unets(source, found)
        folder = find_folder(path)
        return Jobs(found, [_job(c, c.name) for c in plan(folder)], lambda target: write_small_files(folder, target))
    if found.kind == "pipeline":
        _only_for_unets(source, found)
        jobs = [_same(part, path / name, name) for name, part in found.components.items()]
        return Jobs(found, jobs, lambda target: _copy_small_files(path, target))
    with open_tensors(path) as tensors:
        shapes = dict(tensors.shapes)
    if found.kind == "unet" and found.source != "diffusers":
        return Jobs(found, [_job(_unet(path, shapes, settled(found, source)))])
    _only_for_unets(source, found)
    if found.kind == "vae" and found.source == "ldm":
        return Jobs(found, [_job(vae_component(path, shapes, found.prefix))])
    if found.source == "open_clip":
        towers = _towers(path, shapes, found.prefix)
        return Jobs(found, [_job(tower, tower.name if len(towers) > 1 else "") for tower in towers])
    if found.kind == "sd":
        parts = [vae_component(path, shapes, VAE_PREFIX)]
        if "text_encoder" in found.components:
            parts += _towers(path, shapes, TEXT_PREFIX)
        note = "the image UNet, from which training can start as the file is"
        return Jobs(found, [_job(part, part.name) for part in parts], left_out=[note])
    if found.source in ("diffusers", "transformers") and found.kind != "sd-unet":
        if path.is_dir():
            return Jobs(found, [_same(found, path, "")], lambda target: _copy_small_files(path, target))
        if found.kind == "unet":
            return Jobs(found, [_job(_our_unet(path))])
        raise CheckpointError(
            f"{path}: is in this layout already, and only its folder has the {CONFIG_FILE}: name the folder"
        )
    raise CheckpointError(f"{path}: {_unfit(found)}")


def jobs_to_vgen(path: Path, source: str | None = None) -> Jobs:
    """Raises CheckpointError for what VGen has no file for."""
    found = detect(path)
    left_out = []
    if found.kind == "pipeline":
        if "unet" not in found.components:
            raise CheckpointError(f"{path}: has no UNet: name the folder of a component")
        left_out = [f"{name} (its own folder can be converted)" for name in found.components if name != "unet"]
        path, found = path / "unet", found.components["unet"]
    if source is not None:
        raise CheckpointError(f"source {source!r}: with to='vgen' the source is diffusers': leave it out")
    if found.source != "diffusers" or found.kind not in ("unet", "vae"):
        is_vgen = found.source in ("ldm", *FOREIGN_UNETS) or bool(found.candidates)
        reason = f"is a {found.label} in VGen's layout already" if is_vgen else _unfit(found)
        raise CheckpointError(f"{path}: {reason}")
    if found.kind == "vae":
        with open_tensors(path) as tensors:
            fields = {name: tensors.config.get(name) for name in ("block_out_channels", "layers_per_block")}
            class_name = tensors.config.get("_class_name")
        if class_name != "AutoencoderKL" or None in fields.values():
            raise CheckpointError(f"{path}: VGen's VAE is an AutoencoderKL; this is {class_name or 'without config'}")
        return Jobs(found, [Job("", path, vae_table(fields).with_prefix(source=VAE_PREFIX), None, is_back=True)])
    component = _our_unet(path)
    for name, value in VGEN_FIELDS.items():
        if component.config.get(name, UNET_DEFAULTS[name]) != value:
            raise CheckpointError(f"{path}: {name} is {component.config[name]}, and VGen's code always has {value}")
    job = Job("", path, unet_table(component.config), component.target_shapes(), is_back=True)
    return Jobs(found, [job], left_out=left_out)


def problem(found: Detected) -> str:
    """What is wrong with the keys and shapes of what `detect` found, "" if nothing is or nothing can be said."""
    is_lone_file = not found.path.is_dir() and found.source in ("diffusers", "transformers") and found.kind != "unet"
    if found.kind in ("unknown", "lora", "sd-unet") or is_lone_file:
        return ""
    try:
        for job in jobs_to_diffusers(found.path, found.candidates[0] if found.candidates else None).jobs:
            with open_tensors(job.path) as tensors:
                job.specs(tensors, None)
    except CheckpointError as error:
        return str(error)
    return ""


def settled(found: Detected, source: str | None) -> str:
    """The source of a video UNet, by its keys or, where they leave it open, as `source` says."""
    if source is not None and source not in FOREIGN_UNETS:
        raise CheckpointError(f"source {source!r} is unknown: use one of {', '.join(FOREIGN_UNETS)}")
    if source is None and found.candidates:
        several = " or ".join(f"{variant_of_source(name)} ({name})" for name in found.candidates)
        raise CheckpointError(f"{found.path}: can be {several}, whose keys are the same: say which as --source")
    if not (source or found.source):
        raise CheckpointError(f"{found.path}: a video UNet with heads that no released one has")
    return source or found.source


def _job(component: Component, name: str = "") -> Job:
    return Job(
        name,
        component.file,
        component.table,
        component.target_shapes(),
        owns=component.owns,
        write_config=component.write_config,
        stem=STEMS[component.library],
    )


def _unet(path: Path, shapes: Mapping[str, Shape], source: str) -> Component:
    config = unet_config(shapes, source)
    return Component("unet", "I2VGenXLUNet", path, unet_table(config), config)


def _towers(path: Path, shapes: Mapping[str, Shape], prefix: str) -> list[Component]:
    config_file = path.parent / CLIP_CONFIG_FILE
    given = path, shapes, read_json(config_file) if config_file.is_file() else {}, prefix
    towers = []
    if f"{prefix}token_embedding.weight" in shapes:
        towers.append(text_component(*given))
    if f"{prefix}{VISION_PREFIX}proj" in shapes:
        towers.append(image_component(*given))
    return towers


def _our_unet(path: Path) -> Component:
    """A video UNet in diffusers' layout, with the config.json beside it where there is one."""
    with open_tensors(path) as tensors:
        given = {name: tensors.config[name] for name in UNET_DEFAULTS if tensors.config.get(name) is not None}
        heads = given.get("transformer_in_heads", UNET_DEFAULTS["transformer_in_heads"])
        config = {**given, **unet_config(tensors.shapes, "diffusers", heads)}
    component = Component("unet", "I2VGenXLUNet", path, same_names("diffusers UNet", ()), config)
    return replace(component, table=same_names("diffusers UNet", component.empty().state_dict()))


def _same(found: Detected, folder: Path, name: str) -> Job:
    """A component that has its names already: into other files, or another dtype."""
    with open_tensors(folder) as tensors:
        keys, library = tensors.keys(), "diffusers" if "_class_name" in tensors.config else "transformers"
    if found.kind == "unet":
        return replace(_job(_our_unet(folder), name), write_config=None)
    return Job(name, folder, same_names(name or folder.name, keys), None, stem=STEMS[library])


def _copy_small_files(source: Path, target: Path) -> None:
    for file in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        if file.is_file() and not hidden and not WEIGHTS.fullmatch(file.name):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _only_for_unets(source: str | None, found: Detected) -> None:
    if source is not None:
        raise CheckpointError(f"source {source!r}: {found.path} is a {found.label} and says so itself: leave it out")


def _unfit(found: Detected) -> str:
    if found.kind == "sd-unet":
        return "an image UNet has no video layers to convert; training starts from it as it is"
    if found.kind == "lora":
        return "a LoRA is no checkpoint of its own"
    if found.kind == "unknown":
        return f"holds no network that i2vgen knows; see i2vgen inspect {found.path} --keys"
    return f"is a {found.label} in the layout of {found.source}; VGen has no file for it"


def _dtype(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and own.is_floating_point else own


def looks_like_a_model(folder: Path) -> bool:
    """Whether a folder is one that a conversion may have written, and so may replace."""
    return any((folder / name).is_file() for name in (INDEX_FILE, CONFIG_FILE)) or any(
        (part / CONFIG_FILE).is_file() for part in folder.iterdir() if part.is_dir()
    )

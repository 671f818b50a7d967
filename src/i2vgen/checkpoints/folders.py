"""Folders as ModelScope and VGen released them: which file is which component, and the settings beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from i2vgen.checkpoints.configs import source_of
from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.reading import is_plain_path, open_tensors, read_json
from i2vgen.checkpoints.released import (
    CLIP_CONFIG_FILE,
    CLIP_FILE,
    MODELSCOPE_CONFIG_FILE,
    RELEASED,
    TASKS,
    VAE_FILE,
)

UNET_SUFFIXES = (".pth", ".pt")
LARGEST_SETTING = 2**63 - 1


@dataclass(frozen=True)
class FolderSettings:
    """What a ModelScope configuration.json says; None where it says nothing."""

    seed: int | None = None
    num_frames: int | None = None
    target_fps: int | None = None
    latent_height: int | None = None
    latent_width: int | None = None
    solver_mode: str = "fast"  # of video-to-video: "fast", or anything else for Heun


@dataclass(frozen=True)
class ReleasedFolder:
    """`unets`: variant name -> file, the base stage first; `clip_config`: contents of open_clip_config.json."""

    path: Path
    layout: str  # "modelscope" or "vgen"
    unets: Mapping[str, Path]
    vae: Path
    clip: Path
    settings: FolderSettings
    clip_config: Mapping[str, Any]

    def variants(self, is_refiner: bool | None = None) -> list[str]:
        """The variant of the base stage or of the refiner, or for None of both, as far as they are there.

        Raises CheckpointError if the folder has none of that kind.
        """
        chosen = {RELEASED[name].is_refiner: name for name in reversed(self.unets)}
        if is_refiner is None:
            return [chosen[kind] for kind in sorted(chosen)]
        if is_refiner not in chosen:
            kind, there = ("refiner", "base stage") if is_refiner else ("base stage", "refiner")
            raise CheckpointError(f"{self.path}: no {kind} in it, only a {there} ({', '.join(self.unets)})")
        return [chosen[is_refiner]]


def find_folder(path: str | Path) -> ReleasedFolder | None:
    """The released folder at `path`, or around the UNet file `path`; None if it is of no such kind.

    A folder in diffusers layout is of no such kind. Raises CheckpointError for a folder that is one and lacks a
    file, naming what the file is for, and for a configuration.json that cannot be used.
    """
    path = Path(path).expanduser()
    file = path if path.is_file() else None
    folder = path.parent if file else path
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        return None
    if file and file.suffix not in UNET_SUFFIXES:
        return None
    if (folder / MODELSCOPE_CONFIG_FILE).is_file():
        found = _modelscope_folder(folder)
        if found is not None and (file is None or file in found.unets.values()):
            return found
    return _vgen_folder(folder, file)


def _modelscope_folder(folder: Path) -> ReleasedFolder | None:
    path = folder / MODELSCOPE_CONFIG_FILE
    config = read_json(path)
    model, task = config.get("model"), config.get("task")
    if not isinstance(model, Mapping) or not isinstance(task, str):
        return None  # the hub puts a configuration.json into folders of every kind
    if task not in TASKS:
        known = " and ".join(repr(t) for t in TASKS)
        raise CheckpointError(f"{path}: task {task!r} is not one of this family, {known}")
    variant = RELEASED[TASKS[task]]
    arguments, numbers = _mapping(path, model, "model_args"), _mapping(path, model, "model_cfg")

    def named(key: str, default: str) -> Path:
        name = arguments.get(key, default)
        if not is_plain_path(name):
            raise CheckpointError(f"{path}: {key} is {name!r}, expected the name of a file in this folder")
        return folder / name

    settings = FolderSettings(
        seed=_number(path, arguments, "seed", least=0),
        num_frames=_number(path, numbers, "max_frames"),
        target_fps=_number(path, numbers, "target_fps"),
        latent_height=_number(path, numbers, "latent_hei"),
        latent_width=_number(path, numbers, "latent_wid"),
    )
    solver_mode = arguments.get("solver_mode", settings.solver_mode)
    if not isinstance(solver_mode, str):
        raise CheckpointError(f"{path}: solver_mode is {solver_mode!r}, expected 'fast' or 'normal'")
    return _complete(
        folder,
        "modelscope",
        {variant.name: named("ckpt_unet", variant.file_name)},
        named("ckpt_autoencoder", VAE_FILE),
        named("ckpt_clip", CLIP_FILE),
        replace(settings, solver_mode=solver_mode),
    )


def _vgen_folder(folder: Path, file: Path | None) -> ReleasedFolder | None:
    """A folder with UNet files under their released names, or with `file`, whatever its name."""
    if file is not None:
        unets = {_variant_of_file(file): file}
    else:
        found = {
            name: max(folder.glob(released.pattern), default=None, key=lambda path: path.name)
            for name, released in RELEASED.items()
        }
        unets = {name: path for name, path in found.items() if path is not None}
    if not unets:
        return None
    unets = dict(sorted(unets.items(), key=lambda item: RELEASED[item[0]].is_refiner))
    return _complete(folder, "vgen", unets, folder / VAE_FILE, folder / CLIP_FILE, FolderSettings())


def _variant_of_file(file: Path) -> str:
    """By its keys, and by its name between the refiners, whose keys are the same."""
    with open_tensors(file) as tensors:
        try:
            source = source_of(tensors.keys())
        except CheckpointError as error:
            named = [r.name for r in RELEASED.values() if r.is_refiner and fnmatch(file.name, r.pattern)]
            if named:
                return named[0]
            raise CheckpointError(f"{file}: {error}") from None
    variants = [name for name, released in RELEASED.items() if released.source == source]
    if not variants:
        raise CheckpointError(f"{file}: a UNet in layout {source!r}; put it into a folder in diffusers layout")
    return variants[0]


def _complete(
    folder: Path, layout: str, unets: Mapping[str, Path], vae: Path, clip: Path, settings: FolderSettings
) -> ReleasedFolder:
    """Raises CheckpointError for a file that is not there."""
    where = RELEASED[next(iter(unets))].where or RELEASED["i2vgen-xl"].where  # sr600 shares VAE and towers with that
    for name, path in unets.items():
        _require(path, f"the UNet of {name}", RELEASED[name].where)
    _require(vae, "the VAE (first_stage_model of Stable Diffusion 2.1)", where)
    _require(clip, "the text and image towers (open_clip's ViT-H-14)", where)
    path = folder / CLIP_CONFIG_FILE
    clip_config = read_json(path) if path.is_file() else {}
    return ReleasedFolder(folder, layout, unets, vae, clip, settings, clip_config)


def _require(path: Path, purpose: str, where: str) -> None:
    if not path.is_file():
        place = f"; it is had from {where}" if where else ""
        raise CheckpointError(f"{path.parent}: {path.name} is missing, {purpose}{place}")


def _mapping(path: Path, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path}: {key} is {value!r}, expected an object")
    return value


def _number(path: Path, config: Mapping[str, Any], key: str, least: int = 1) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_SETTING:
        raise CheckpointError(f"{path}: {key} is {value!r}, expected a whole number of at least {least}")
    return value

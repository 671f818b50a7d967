"""All cases of a golden folder, and a failing one for whatever in it is not understood."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from i2vgen.parity.calls import ParityError
from i2vgen.parity.diffusers_classes import diffusers_cases
from i2vgen.parity.golden import Case, broken
from i2vgen.parity.networks import clip_cases, recipe_cases, unet_cases, vae_cases
from i2vgen.parity.preprocess import preprocess_cases
from i2vgen.parity.recipe import Networks
from i2vgen.parity.samplers import cascade_cases, sampler_cases
from i2vgen.parity.schedules import schedule_cases
from i2vgen.parity.training import training_cases

GROUPS: dict[str, Callable[[Path, Networks], Iterator[Case]]] = {
    "recipe_check.json": recipe_cases,
    "schedules": schedule_cases,
    "samplers": sampler_cases,
    "training": training_cases,
    "preprocess": preprocess_cases,
    "tiny": unet_cases,
    "vae_tiny": vae_cases,
    "clip_tiny": clip_cases,
    "e2e_tiny": cascade_cases,
    "diffusers_parity": diffusers_cases,
}
OTHER_FOLDERS = {"manifests"}  # full-size keys and shapes: nothing to run
RECORDED = {".safetensors", ".png"}


def golden_sets(folder: Path) -> list[tuple[str, Path]]:
    """(prefix of the groups' names, folder) of every golden set: `folder` itself, or those right below it.

    Raises ValueError for a folder that is missing or of another layout.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'not a folder' if folder.exists() else 'there is no such folder'}")
    if _is_set(folder):
        return [("", folder)]
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in OTHER_FOLDERS]
    sets = [(f"{path.name}/", path) for path in below if _is_set(path) or _recorded(path)]
    if not any(_is_set(path) for _, path in sets):
        raise ValueError(f"{folder}: not a golden folder; expected one of {', '.join(GROUPS)} in it or right below it")
    return sets


def collect_cases(root: Path, others: Iterable[Path] = ()) -> Iterator[Case]:
    """The cases of one golden set, group by group; then one for each recorded file that belongs to none.

    `others` are sets beside it, which may hold what it refers to.
    """
    networks, used = Networks([root, *others]), set()
    for name, cases_of in GROUPS.items():
        path = root / name
        if not path.exists():
            continue
        is_empty = True
        try:
            for case in cases_of(path, networks):
                is_empty = False
                used.update(case.files)
                yield case
        except (ParityError, OSError, LookupError, TypeError, AttributeError) as error:
            used.update(_recorded(path))
            yield broken(path.stem, "(all)", str(error) or type(error).__name__)
            continue
        if is_empty:
            yield broken(path.stem, "(all)", "the group holds no cases")
    for path in _recorded(root):
        if path not in used:
            group, _, name = path.relative_to(root).as_posix().partition("/")
            yield broken(group, name or group, "no JSON beside this file says what it is, or the group is unknown")
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in GROUPS.keys() | OTHER_FOLDERS and not _recorded(path):
            yield broken(path.name, "(all)", f"unknown group; known: {', '.join(GROUPS)}")


def _is_set(folder: Path) -> bool:
    return any((folder / name).exists() for name in GROUPS)


def _recorded(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in RECORDED and path.is_file())

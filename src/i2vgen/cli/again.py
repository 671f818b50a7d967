"""`i2vgen again`: make a video once more from the settings in its file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2vgen.cli import options as o
from i2vgen.cli.generate import expected_steps, finish, stage_options
from i2vgen.cli.output import check_fps, check_output
from i2vgen.cli.refine import refine_and_write
from i2vgen.cli.report import Progress, warn
from i2vgen.cli.sources import Lora, announce, open_cascade, open_image, open_video, parse_loras

if TYPE_CHECKING:
    from i2vgen.pipelines import CascadePipeline

# What each kind of settings must hold, and the type of it.
_COMMON = {"prompt": str, "seed": int, "fit": str, "model": str, "device": str, "dtype": str}
NEEDED = {
    "generate": _COMMON | {"base": dict},
    "refine": _COMMON | {"refine": dict, "fps": float, "num_frames": int},
}

# What later versions added to them.
OPTIONAL = {"refiner": str, "exact": bool, "lora": list}


def again(
    file: o.File,
    output: o.Output,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            help="Where the picture is now.",
            rich_help_panel=o.VIDEO,
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(
            "--video",
            help="Where the refined video's source is now.",
            rich_help_panel=o.VIDEO,
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Another seed: a variation. \\[the file's]",
            rich_help_panel=o.VIDEO,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Where the model is now. \\[the file's]",
            rich_help_panel=o.MODEL,
            show_default=False,
        ),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            "--refiner",
            help="Where the refiner is now. \\[the file's]",
            rich_help_panel=o.MODEL,
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="Where the adapters are now, in their order then. \\[the file's]",
            rich_help_panel=o.MODEL,
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="auto, cpu, cuda, cuda:1, mps. \\[the file's]",
            rich_help_panel=o.MODEL,
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    force: o.Force = False,
    json: o.Json = False,
) -> None:
    """Make a video once more from the settings in its file.

    On the same machine with the same versions, every frame is the same. The picture (or, after refine, the
    video) is looked for where it was, and must be the same to the pixel.

    Examples:

      i2vgen again video.mp4 -o copy.mp4

      i2vgen again video.mp4 -o variation.mp4 --seed 8
    """
    # 1. Check, before anything slow
    o.check_numbers(0 if seed is None else seed)
    check_output(output, force)
    from i2vgen.media import read_settings

    settings = checked_settings(read_settings(file), file)
    if seed is not None:
        settings = settings | {"seed": seed}
    is_refinement = settings["kind"] == "refine"
    sources = {"image": image, "video": video}
    if video is not None and not is_refinement:
        raise ValueError(f"--video {video!r}: {file} was made from an image; give --image")
    clip = picture = None
    if is_refinement:
        clip, sources["video"] = open_video(_place(settings, "video", video), settings["num_frames"])
        _check_same(settings, "video", sources["video"])
    if not is_refinement or settings.get("image") is not None:
        picture, sources["image"] = open_image(_place(settings, "image", image))
        _check_same(settings, "image", sources["image"])

    # 2. Load the model, with the options of then
    place = device or _stored_device(settings)
    kept_refiner = refiner or settings.get("refiner")
    loras = stored_loras(settings, file, lora)
    cascade = open_cascade(model or settings["model"], place, settings["dtype"], kept_refiner, loras)
    _warn_of_differences(settings, cascade)
    restore_options(cascade, settings, file)

    # 3. Sample and write
    if is_refinement:
        kept = settings | {"model": cascade.model_name, "video": sources["video"], "image": sources["image"]}
        kept["lora"] = cascade.lora_settings()
        check_fps(output, settings["fps"])
        refine_and_write(cascade, clip.frames, picture, kept, cascade.refiner.options, output, json)
        return
    base, refine = cascade.base.options, cascade.refiner.options if settings.get("refine") else None
    final = refine or base
    size = (final.width, final.height)
    exact = bool(settings.get("exact"))
    if stage_options(cascade, picture.size, size, refine is not None, exact=exact) != (base, refine):
        raise ValueError(f"{file}: this version chooses another base size for {size[0]}x{size[1]}; use generate")
    check_fps(output, base.target_fps)
    announce(cascade, base, refine, refine_strength=settings.get("refine_strength"))
    with Progress(expected_steps(base, refine)) as progress:
        result = cascade(
            picture,
            prompt=settings["prompt"],
            negative_prompt=settings.get("negative_prompt"),
            refine_prompt=settings.get("refine_prompt"),
            seed=settings["seed"],
            refine=refine is not None,
            size=size,
            refine_strength=settings.get("refine_strength"),
            fit=settings["fit"],
            exact=exact,
            progress=progress,
        )
    finish(output, result, sources["image"], progress.seconds, json)


def checked_settings(settings: dict[str, Any], file: str) -> dict[str, Any]:
    """Raise ValueError if these are not settings that this version can run again."""
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in NEEDED:
        raise ValueError(f"{file}: settings of kind {kind!r}; this version repeats {' and '.join(NEEDED)}")
    for name, expected in NEEDED[kind].items():
        value = settings.get(name)
        if not isinstance(value, (int, float) if expected is float else expected) or isinstance(value, bool):
            raise ValueError(
                f"{file}: its settings have {name} = {value!r}, not a {expected.__name__}; they were altered"
            )
    for name, expected in OPTIONAL.items():
        if not isinstance(settings.get(name), expected | None):
            raise ValueError(f"{file}: its settings have {name} = {settings[name]!r}; they were altered")
    return settings


def stored_loras(settings: dict[str, Any], file: str, places: list[str] | None) -> list[Lora]:
    """The adapters of the settings, at `places` if these are given. Raises ValueError for what was altered, or is
    gone."""
    stored, places = settings.get("lora") or [], [lora.path for lora in parse_loras(places)]
    if places and len(places) != len(stored):
        raise ValueError(f"--lora: {len(places)} given, {file} was made with {len(stored)}")
    loras = []
    for index, kept in enumerate(stored):
        kept = kept if isinstance(kept, dict) else {}
        path = places[index] if places else kept.get("path")
        if path is None and isinstance(kept.get("sha256"), str):
            raise ValueError(f"{file}: its settings do not say where adapter {index + 1} was: give --lora PATH")
        weight, stage, sha256 = kept.get("weight"), kept.get("stage"), kept.get("sha256")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or stage not in ("base", "refine") or not all(isinstance(s, str) for s in (path, sha256)):
            raise ValueError(f"{file}: its settings have lora = {settings['lora']!r}; they were altered")
        loras.append(Lora(path, float(weight), stage, sha256))
    return loras


def restore_options(cascade: CascadePipeline, settings: dict[str, Any], file: str) -> None:
    """Give both stages the options of the settings, whatever the model's own are now."""
    from i2vgen.pipelines.options import BaseOptions, RefineOptions, replaced

    for name, kind, stage in (
        ("base", BaseOptions, cascade.base),
        ("refine", RefineOptions, cascade.refiner),
    ):
        stored = settings.get(name)
        if stored is None:
            continue
        if stage is None:
            raise ValueError(f"model {cascade.model_name!r} has no refinement stage, but {file} was refined")
        unknown = [key for key in stored if key not in {field.name for field in fields(kind)}]
        if unknown:
            raise ValueError(f"{file}: unknown setting {name}.{unknown[0]}; it was made by another version")
        stage.options = replaced(kind(**stored))


def _place(settings: dict[str, Any], name: str, given: str | None) -> str:
    path = (settings.get(name) or {}).get("path")
    if given is None and not isinstance(path, str):
        raise ValueError(f"{name}: the settings do not say where it was; give --{name} PATH")
    place = given or path
    is_address = place[:8].lower().startswith(("http://", "https://"))
    if given is None and not is_address and not Path(place).exists():
        raise ValueError(f"{name} {place!r} is gone: give --{name} PATH")
    return place


def _check_same(settings: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    if found["sha256"] != (settings.get(name) or {}).get("sha256"):
        raise ValueError(f"{name} {found['path']!r} is not the one of then, its pixels differ: give --{name} PATH")


def _stored_device(settings: dict[str, Any]) -> str:
    """The device of then if this machine has one, else whatever is best here."""
    from i2vgen.pipelines.loading import parse_device

    try:
        parse_device(settings["device"])
    except ValueError:
        return "auto"
    return settings["device"]


def _warn_of_differences(settings: dict[str, Any], cascade: CascadePipeline) -> None:
    from i2vgen.pipelines.cascade import versions

    then = settings.get("versions")
    then, now = dict(then) if isinstance(then, dict) else {}, versions()
    then |= {"device": settings["device"]}
    now |= {"device": cascade.vae.device.type}
    changed = [
        f"{name} {then.get(name, 'unknown')} then, {now[name]} now" for name in now if then.get(name) != now[name]
    ]
    if changed:
        warn(f"frames may differ a little: {'; '.join(changed)}")

"""What a checkpoint is: which network of which variant, in whose layout, judged by its keys and shapes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from i2vgen.checkpoints.components import VAE_PREFIX
from i2vgen.checkpoints.configs import source_of
from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.folders import find_folder
from i2vgen.checkpoints.load import STABLE_DIFFUSION_PREFIX
from i2vgen.checkpoints.reading import existing_path, open_tensors, read_json
from i2vgen.checkpoints.released import MODELSCOPE_CONFIG_FILE, RELEASED, TASKS
from i2vgen.checkpoints.tensor_source import Shape, TensorSource

TEXT_PREFIX = "cond_stage_model.model."
INDEX_FILE = "model_index.json"
VIDEO_TO_VIDEO = "video-to-video"
KINDS = {
    "unet": "video UNet",
    "sd-unet": "image UNet of Stable Diffusion",
    "sd": "whole Stable Diffusion checkpoint",
    "vae": "VAE",
    "text": "text tower",
    "vision": "image tower",
    "clip": "text and image towers",
    "lora": "LoRA",
    "pipeline": "pipeline folder",
    "modelscope": "ModelScope folder",
    "vgen": "VGen folder",
    "unknown": "unknown weights",
}
# Parts of a file name that tell the two refiners apart, whose keys and shapes are the same.
NAME_HINTS = {
    "vgen-sr600": ("*sr_step*", "*sr600*"),
    "modelscope-vid2vid": ("*vid2vid*", "*video-to-video*", "*video2video*", "non_ema_*"),
}


@dataclass(frozen=True)
class Detected:
    """What there is to know of a checkpoint without its content.

    kind: one of KINDS. variant: the member of the family ("i2vgen-xl", "image2video", "vid2vid-xl", "sr600",
    "nano"), "video-to-video" for another UNet3DConditionModel, "sd-2" or "sd-1", or "". source: the layout, for
    video UNets as `load_unet` takes it, else "ldm", "open_clip", "transformers" or "diffusers"; "" when
    `candidates` names several that nothing here can tell apart. evidence: what settled the choice where keys
    could not. prefix: what all keys of the network begin with. dtypes: number of tensors of each. size: bytes.
    components: what a folder, or a file with several networks, is made of.
    """

    kind: str
    variant: str = ""
    source: str = ""
    candidates: tuple[str, ...] = ()
    evidence: str = ""
    prefix: str = ""
    class_name: str = ""
    path: Path | None = None
    format: str = ""
    num_files: int = 0
    num_tensors: int = 0
    num_parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    step: int | None = None
    components: Mapping[str, Detected] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A few words: "video UNet, i2vgen-xl"."""
        named = self.variant or " or ".join(variant_of_source(source) for source in self.candidates)
        return f"{KINDS[self.kind]}, {named}" if named else KINDS[self.kind]


def detect(path: str | os.PathLike) -> Detected:
    """What the file or folder at `path` is. Reads names and shapes only.

    Raises CheckpointError for a path that holds no weights, or weights that cannot be opened; weights of an
    unknown kind are "unknown".
    """
    path = existing_path(path)
    if path.is_dir():
        if (path / INDEX_FILE).is_file():
            return _pipeline(path)
        folder = find_folder(path)
        if folder is not None:
            files = {name: file for name, file in folder.unets.items()} | {"vae": folder.vae, "clip": folder.clip}
            components = {name: _part_of_folder(name, file) for name, file in files.items()}
            return _sum(path, folder.layout, components, " + ".join(folder.unets))
    with open_tensors(path) as tensors:
        return detect_tensors(tensors)


def detect_tensors(tensors: TensorSource) -> Detected:
    """The same for weights that are open."""
    file = tensors.files[0]
    beside = file.parent / MODELSCOPE_CONFIG_FILE
    task = read_json(beside).get("task") if not tensors.path.is_dir() and beside.is_file() else None
    found = detect_shapes(tensors.shapes, tensors.path.name, tensors.config, task if isinstance(task, str) else "")
    dtypes: dict[str, int] = {}
    for dtype in tensors.dtypes.values():
        name = str(dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    step = tensors.metadata.get("step", tensors.metadata.get("global_step"))
    return replace(
        found,
        path=tensors.path,
        format=tensors.format,
        num_files=len(tensors.files),
        dtypes=dtypes,
        size=tensors.size,
        step=step if isinstance(step, int) and not isinstance(step, bool) else None,
    )


def detect_shapes(
    shapes: Mapping[str, Shape], file_name: str = "", config: Mapping[str, Any] | None = None, task: str = ""
) -> Detected:
    """What a state dict is, by its keys and shapes; the name of its file, the config.json beside it and the task
    in a ModelScope configuration.json are asked only where keys leave it open."""
    config = config or {}
    found = _by_keys(shapes, file_name, config, task)
    return replace(
        found,
        num_tensors=len(shapes),
        num_parameters=sum(math.prod(shape) for shape in shapes.values()),
        class_name=str(config.get("_class_name") or (config.get("architectures") or [""])[0]),
    )


def variant_of_source(source: str) -> str:
    """The variant whose UNet was released in a layout, "" for layouts of several."""
    return next((name for name, released in RELEASED.items() if released.source == source), "")


def _by_keys(shapes: Mapping[str, Shape], file_name: str, config: Mapping[str, Any], task: str) -> Detected:
    def has(*beginnings: str) -> bool:
        return all(any(key.startswith(beginning) for key in shapes) for beginning in beginnings)

    if any(".lora_" in key or key.endswith((".lora_A", ".lora_B")) or "_lora." in key for key in shapes):
        return Detected("lora")
    if has(STABLE_DIFFUSION_PREFIX, VAE_PREFIX):
        parts = {
            "unet": (_image_unet, STABLE_DIFFUSION_PREFIX),
            "vae": (_ldm_vae, VAE_PREFIX),
            "text_encoder": (_open_clip, TEXT_PREFIX),
        }
        components = {name: _part(shapes, *part) for name, part in parts.items() if has(part[1])}
        return Detected("sd", components["unet"].variant, "ldm", components=components)
    for prefix in ("", STABLE_DIFFUSION_PREFIX):
        if has(f"{prefix}input_blocks.0.", f"{prefix}middle_block.") or has(f"{prefix}down_blocks.", "mid_block."):
            if any("temopral_conv" in key or "temp_convs" in key for key in shapes):
                return _video_unet(shapes, file_name, config, task)
            return _part(shapes, _image_unet, prefix)
    for prefix in ("", VAE_PREFIX):
        if has(f"{prefix}encoder.down.0.", f"{prefix}decoder.up.0."):
            return _part(shapes, _ldm_vae, prefix)
    if has("encoder.down_blocks.", "decoder.up_blocks."):
        return Detected("vae", source="diffusers")
    if config.get("_class_name") == "PatchAutoencoder":
        return Detected("vae", "nano", "diffusers")
    for prefix in ("", TEXT_PREFIX):
        if has(f"{prefix}transformer.resblocks.0.") or has(f"{prefix}visual.transformer.resblocks.0."):
            return _part(shapes, _open_clip, prefix)
    text = has("text_model.encoder.layers.") or has("embeddings.token_embedding.")
    vision = has("vision_model.encoder.layers.")
    if text or vision:
        return Detected("clip" if text and vision else "text" if text else "vision", source="transformers")
    return Detected("unknown")


def _part(shapes: Mapping[str, Shape], judge: Callable[[Mapping[str, Shape]], Detected], prefix: str) -> Detected:
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    num_parameters = sum(math.prod(shape) for shape in own.values())
    return replace(judge(own), prefix=prefix, num_tensors=len(own), num_parameters=num_parameters)


def _video_unet(shapes: Mapping[str, Shape], file_name: str, config: Mapping[str, Any], task: str) -> Detected:
    if any(key.startswith("conv_in.") for key in shapes):
        return _diffusers_unet(shapes, config)
    try:
        source = source_of(shapes)
        return Detected("unet", variant_of_source(source), source)
    except CheckpointError:
        candidates = tuple(NAME_HINTS)
        if any(key.startswith(("fps_embedding.", "context_embedding.", "local_image_")) for key in shapes):
            return Detected("unet")  # heads that no variant has
    if task in TASKS and RELEASED[TASKS[task]].source in candidates:
        source = RELEASED[TASKS[task]].source
        return Detected("unet", variant_of_source(source), source, evidence=f"{MODELSCOPE_CONFIG_FILE} beside it")
    name = file_name.lower()
    named = [source for source, hints in NAME_HINTS.items() if any(fnmatch(name, hint) for hint in hints)]
    if len(named) == 1:
        return Detected("unet", variant_of_source(named[0]), named[0], evidence="its file name")
    return Detected("unet", candidates=candidates)


def _diffusers_unet(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> Detected:
    heads = {key.split(".")[0] for key in shapes}
    if "motion_prior" in heads:
        return Detected("unet", "nano", "diffusers")
    if "image_latents_proj_in" in heads:
        return Detected("unet", "i2vgen-xl", "diffusers")
    if "context_embedding" in heads:
        return Detected("unet", "image2video", "diffusers")
    if "has_odd_height" not in config:
        return Detected("unet", VIDEO_TO_VIDEO, "diffusers")
    is_sr600 = bool(config.get("use_decoder_edits"))
    variant = "sr600" if is_sr600 else "vid2vid-xl" if config["has_odd_height"] else VIDEO_TO_VIDEO
    return Detected("unet", variant, "diffusers", evidence="its config.json")


def _image_unet(shapes: Mapping[str, Shape]) -> Detected:
    widths = {shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight") and len(shape) == 2}
    variant = {1024: "sd-2", 768: "sd-1"}.get(next(iter(widths))) if len(widths) == 1 else None
    return Detected("sd-unet", variant or "", "diffusers" if "conv_in.weight" in shapes else "ldm")


def _ldm_vae(shapes: Mapping[str, Shape]) -> Detected:
    return Detected("vae", source="ldm")


def _open_clip(shapes: Mapping[str, Shape]) -> Detected:
    text, vision = "token_embedding.weight" in shapes, "visual.proj" in shapes
    return Detected("clip" if text and vision else "text" if text else "vision", source="open_clip")


def _part_of_folder(name: str, file: Path) -> Detected:
    """The folder says which variant a UNet is, where its keys do not."""
    found = detect(file)
    if found.kind != "unet" or name not in RELEASED or found.variant == name:
        return found
    return replace(found, variant=name, source=RELEASED[name].source, candidates=(), evidence="its folder")


def _pipeline(folder: Path) -> Detected:
    index = read_json(folder / INDEX_FILE)
    components = {}
    for name, entry in index.items():
        is_component = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
        if is_component and (folder / name).is_dir() and _has_weights(folder / name):
            components[name] = detect(folder / name)
    base_first = sorted(components.items(), key=lambda item: item[0] != "unet")
    unets = [part.variant for _, part in base_first if part.kind == "unet"]
    found = _sum(folder, "pipeline", components, " + ".join(dict.fromkeys(unets)))
    return replace(found, source="diffusers", class_name=str(index.get("_class_name", "")))


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())


def _sum(path: Path, kind: str, components: Mapping[str, Detected], variant: str) -> Detected:
    dtypes: dict[str, int] = {}
    for part in components.values():
        for name, count in part.dtypes.items():
            dtypes[name] = dtypes.get(name, 0) + count
    return Detected(
        kind,
        variant,
        source=kind,
        path=path,
        format="folder",
        num_files=sum(part.num_files for part in components.values()),
        num_tensors=sum(part.num_tensors for part in components.values()),
        num_parameters=sum(part.num_parameters for part in components.values()),
        dtypes=dtypes,
        size=sum(part.size for part in components.values()),
        components=components,
    )

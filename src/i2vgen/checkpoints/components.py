"""The networks of a released folder, one by one, and the small files that a diffusers folder has beside them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from i2vgen.checkpoints.clip_keys import TEXT_PREFIX_4, VISION_PREFIX, text_table, vision_table
from i2vgen.checkpoints.configs import text_config, unet_config, vae_config, vision_config
from i2vgen.checkpoints.errors import CheckpointError
from i2vgen.checkpoints.folders import ReleasedFolder
from i2vgen.checkpoints.reading import open_tensors
from i2vgen.checkpoints.released import RELEASED, Released
from i2vgen.checkpoints.tables import KeyTable, Shape
from i2vgen.checkpoints.tokenizer import clip_tokenizer
from i2vgen.checkpoints.unet_keys import unet_table
from i2vgen.checkpoints.vae_keys import vae_table
from i2vgen.checkpoints.variants import variant_defaults
from i2vgen.media import CLIP_MEAN, CLIP_STD
from i2vgen.models.unet import I2VGenXLUNet
from i2vgen.schedulers import I2VGenDDIMScheduler, VideoRefineScheduler

VAE_PREFIX = "first_stage_model."
# transformers 5 wants torchvision for the plain name, and says so each time
PROCESSOR_CLASS = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PROCESSORS = {
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}
PIPELINES = {False: "I2VGenXLPipeline", True: "VideoRefinePipeline"}  # by whether the UNet is a refiner


@dataclass(frozen=True)
class Component:
    """One network of a folder.

    `table`: keys of `file`, as they stand there, -> keys as they stand in a diffusers folder. Keys of `file` that
    do not start with `prefix`, or do with `not_prefix`, belong to other components.
    """

    name: str  # of its folder
    class_name: str
    file: Path
    table: KeyTable
    config: Mapping[str, Any]
    prefix: str = ""
    not_prefix: str | None = None

    @property
    def library(self) -> str:
        return "transformers" if self.class_name.startswith("CLIP") else "diffusers"

    def owns(self, key: str) -> bool:
        return key.startswith(self.prefix) and not (self.not_prefix and key.startswith(self.not_prefix))

    def empty(self) -> torch.nn.Module:
        """The module with its parameters on the meta device, its buffers real."""
        with init_empty_weights(include_buffers=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.class_name == "AutoencoderKL":
                return AutoencoderKL(**self.config)
            if self.class_name == "CLIPTextModel":
                return CLIPTextModel(CLIPTextConfig(**self.config))
            if self.class_name == "CLIPVisionModelWithProjection":
                return CLIPVisionModelWithProjection(CLIPVisionConfig(**self.config))
            return I2VGenXLUNet(**self.config)

    def target_shapes(self, module: torch.nn.Module | None = None) -> dict[str, Shape]:
        """Shapes by name in a diffusers folder, of `module` or else of one built from the config."""
        module = self.empty() if module is None else module
        own, names = module.state_dict(), self._names_in(module)
        return {key: tuple(own[names[key]].shape) for key in self.table.targets if key in names}

    def _names_in(self, module: torch.nn.Module) -> dict[str, str]:
        """Name in a diffusers folder -> name in the module."""
        names = {key: key for key in module.state_dict()}
        if self.class_name == "CLIPTextModel":  # transformers 5 reads the prefix from files; its modules have none
            names |= {TEXT_PREFIX_4 + key: key for key in module.state_dict()}
        return names

    def write_config(self, folder: Path) -> None:
        """Write config.json as the component's library would."""
        module = self.empty()
        if self.library == "diffusers":
            module.save_config(folder)
        else:
            module.config.architectures = [self.class_name]
            module.config.save_pretrained(folder)

    def load(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """The network in evaluation mode, on the CPU; beside it, one tensor of the file is in memory at a time.

        Raises CheckpointError for keys that are unknown or missing, wrong shapes, and weights that are no numbers.
        """
        module = self.empty()
        names = self._names_in(module)
        with open_tensors(self.file) as tensors:
            sources = {key: shape for key, shape in tensors.shapes.items() if self.owns(key)}
            self.table.check_shapes(sources, self.target_shapes(module))
            weights = {}
            for key, tensor in self.table.convert(tensors.read):
                if not tensor.is_floating_point():
                    raise CheckpointError(f"{self.file}: {key} is {tensor.dtype}, expected a floating-point type")
                weights[names[key]] = _own(tensor, dtype)
                if not torch.isfinite(weights[names[key]]).all():
                    raise CheckpointError(f"{self.file}: {key} holds NaN or infinity in {dtype}")
        module.load_state_dict(weights, assign=True)
        return module.eval()


def _own(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A contiguous copy in memory of its own: the file may be unmapped, changed or removed."""
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)


def plan(folder: ReleasedFolder, is_refiner: bool | None = None) -> list[Component]:
    """The networks of the folder's base stage or refiner; None: of all UNets that it has.

    With a base stage and a refiner, their folders are `unet` and `refine_unet`; a refiner alone is `unet`.
    Raises CheckpointError if the folder has no UNet of that kind, or a file is not what it should be.
    """
    released = [RELEASED[name] for name in folder.variants(is_refiner)]
    components = [_unet(folder, r, "refine_unet" if r.is_refiner and len(released) > 1 else "unet") for r in released]
    with open_tensors(folder.vae) as tensors:
        prefix = VAE_PREFIX if any(key.startswith(VAE_PREFIX) for key in tensors) else ""
        components.append(_described(folder.vae, vae_component, folder.vae, tensors.shapes, prefix))
    with open_tensors(folder.clip) as tensors:
        given = folder.clip, tensors.shapes, folder.clip_config
        if any(r.uses_text for r in released):
            components.append(_described(folder.clip, text_component, *given))
        if any(r.uses_image for r in released):
            components.append(_described(folder.clip, image_component, *given))
    return components


def _unet(folder: ReleasedFolder, released: Released, name: str) -> Component:
    file = folder.unets[released.name]
    with open_tensors(file) as tensors:
        config = _described(file, unet_config, dict(tensors.shapes), released.source)
    class_name = "I2VGenXLUNet" if config["use_image_latents"] else "UNet3DConditionModel"
    return Component(name, class_name, file, unet_table(config), config)


def vae_component(file: Path, shapes: Mapping[str, Shape], prefix: str) -> Component:
    """The first stage of latent diffusion, whose keys in `file` begin with `prefix`."""
    config = vae_config(_below(prefix, shapes))
    table = vae_table(config).with_prefix(source=prefix)
    # the loss of the first stage's own training is in some files
    return Component("vae", "AutoencoderKL", file, table, config, prefix, f"{prefix}loss.")


def text_component(
    file: Path, shapes: Mapping[str, Shape], clip_config: Mapping[str, Any], prefix: str = ""
) -> Component:
    """open_clip's text tower; `clip_config`: contents of open_clip_config.json, {} where there is none."""
    given = _clip_part(file, clip_config, "text_cfg", ("width", "heads"))
    head_width = {"head_width": given["width"] // given["heads"]} if given else {}
    config = text_config(_below(prefix, shapes), **head_width)
    table = text_table(config["num_hidden_layers"]).with_prefix(source=prefix, target=TEXT_PREFIX_4)
    return Component("text_encoder", "CLIPTextModel", file, table, config, prefix, prefix + VISION_PREFIX)


def image_component(
    file: Path, shapes: Mapping[str, Shape], clip_config: Mapping[str, Any], prefix: str = ""
) -> Component:
    """open_clip's image tower; arguments as in `text_component`."""
    given = _clip_part(file, clip_config, "vision_cfg", ("head_width",))
    config = vision_config(_below(prefix, shapes), **given)
    table = vision_table(config["num_hidden_layers"]).with_prefix(source=prefix)
    return Component("image_encoder", "CLIPVisionModelWithProjection", file, table, config, prefix + VISION_PREFIX)


def _below(prefix: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _described(file: Path, describe: Any, *arguments: Any) -> Any:
    try:
        return describe(*arguments)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _clip_part(file: Path, clip_config: Mapping[str, Any], part: str, fields: tuple[str, ...]) -> dict[str, int]:
    """Those `fields` of a tower in open_clip_config.json, or nothing where they are not all there."""
    model = clip_config.get("model_cfg", clip_config)
    given = model.get(part, {}) if isinstance(model, Mapping) else {}
    found = {name: given[name] for name in fields if isinstance(given, Mapping) and name in given}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{file.parent}: open_clip_config.json: {part}.{name} is {value!r}, not a number")
    return found if len(found) == len(fields) else {}


def tokenizer_of(folder: ReleasedFolder, text: Component) -> Any:
    """The folder's own tokenizer, or CLIP's where it has none.

    Raises CheckpointError for a tokenizer with ids that the text tower does not have.
    """
    length, size = text.config["max_position_embeddings"], text.config["vocab_size"]
    for place in (folder.path / "tokenizer", folder.path):
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            tokenizer = transformers.CLIPTokenizerFast.from_pretrained(place, model_max_length=length)
            break
    else:
        tokenizer = clip_tokenizer(length)
    if len(tokenizer) > size:
        raise CheckpointError(
            f"{folder.path}: the tokenizer has {len(tokenizer)} tokens, the text tower {size}; "
            "put the tokenizer that belongs to it into a folder 'tokenizer'"
        )
    return tokenizer


def image_processor_of(folder: ReleasedFolder, image: Component) -> Any:
    """What the image tower is shown, with open_clip's mean and deviation."""
    given = folder.clip_config.get("preprocess_cfg", {})
    given = given if isinstance(given, Mapping) else {}
    side = image.config["image_size"]
    return getattr(transformers, PROCESSOR_CLASS)(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(given.get("mean", CLIP_MEAN)),
        image_std=list(given.get("std", CLIP_STD)),
    )


def defaults_of(folder: ReleasedFolder, variant: str, vae: Component) -> tuple[dict[str, Any], Any]:
    """(base_defaults or refine_defaults, scheduler) of a variant, with what the folder's configuration.json says."""
    settings, is_refiner = folder.settings, RELEASED[variant].is_refiner
    defaults, fields = variant_defaults(variant, settings.solver_mode)
    scale = 2 ** (len(vae.config["block_out_channels"]) - 1)
    given = {
        "height": None if settings.latent_height is None else settings.latent_height * scale,
        "width": None if settings.latent_width is None else settings.latent_width * scale,
    }
    if not is_refiner:
        given |= {"num_frames": settings.num_frames, "target_fps": settings.target_fps}
    defaults |= {name: value for name, value in given.items() if value is not None}
    return defaults, (VideoRefineScheduler if is_refiner else I2VGenDDIMScheduler)(**fields)


def write_small_files(folder: ReleasedFolder, destination: Path, is_refiner: bool | None = None) -> None:
    """Write model_index.json, schedulers, tokenizer and image processor of a diffusers folder; see `plan`."""
    components = {c.name: c for c in plan(folder, is_refiner)}
    index: dict[str, Any] = {name: [c.library, c.class_name] for name, c in components.items()}
    parts: dict[str, Any] = {}
    variants = folder.variants(is_refiner)
    for variant in variants:
        role = "refine" if RELEASED[variant].is_refiner else "base"
        place = "refine_scheduler" if role == "refine" and len(variants) > 1 else "scheduler"
        index[f"{role}_defaults"], parts[place] = defaults_of(folder, variant, components["vae"])
    if "text_encoder" in components:
        parts["tokenizer"] = tokenizer_of(folder, components["text_encoder"])
    if "image_encoder" in components:
        parts["feature_extractor"] = image_processor_of(folder, components["image_encoder"])
    for name, part in parts.items():
        part.save_pretrained(destination / name)
        index[name] = PROCESSORS.get(name) or [type(part).__module__, type(part).__name__]
    kind = "CascadePipeline" if len(variants) > 1 else PIPELINES[RELEASED[variants[0]].is_refiner]
    for name in ("text_encoder", "tokenizer", "image_encoder", "feature_extractor"):
        index.setdefault(name, [None, None])
    index = {"_class_name": kind, "_diffusers_version": diffusers.__version__, **dict(sorted(index.items()))}
    (destination / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

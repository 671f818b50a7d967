"""Both stages in one call: a photo and a prompt become a refined video."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from i2vgen import __version__
from i2vgen.media import frames_to_tensor, frames_to_uint8
from i2vgen.pipelines.base import I2VGenXLPipeline
from i2vgen.pipelines.conditioning import as_images, as_list, count_videos, decode_latents, read_image
from i2vgen.pipelines.loading import FamilyPipeline
from i2vgen.pipelines.lora import LoraMixin
from i2vgen.pipelines.options import BaseOptions, RefineOptions, replaced
from i2vgen.pipelines.refine import VideoRefinePipeline

# Longest to shortest side: of sizes chosen for a picture, unless the model's own is longer, and of sizes asked for.
LONGEST_CHOSEN, LONGEST_ASKED = 16 / 9, 4
# What a refiner may have of its own, or else shares with the base stage.
SHARED = ("vae", "text_encoder", "tokenizer", "image_encoder", "feature_extractor")


@dataclass
class CascadeOutput:
    """One entry a video. `base_frames` are the base stage's own, None where they were not asked for."""

    frames: list[np.ndarray]  # uint8 (f h w 3)
    base_frames: list[np.ndarray | None]
    settings: list[dict[str, Any]]  # all that reproduces the video, see `i2vgen.media.read_settings`
    base_latents: torch.Tensor  # (b c f h w), the base stage's result
    fps: int = 8


class CascadePipeline(LoraMixin, FamilyPipeline):
    """Base and refinement stage, over one set of towers and one VAE where both can use them.

    A refiner with a VAE or towers of its own has them under `refine_` names; None means the base stage's. `base`
    is None where only a refiner was loaded, `refiner` is None where there is none. The base latents go to the
    refiner in memory, never through a file. With `release_stages` each stage's weights leave the device before the
    next stage starts. An adapter goes to the stage that its file names, or that `load_lora_weights(..., stage=)` does.
    """

    model_cpu_offload_seq = (
        "text_encoder->image_encoder->unet->refine_text_encoder->refine_image_encoder->refine_unet->refine_vae->vae"
    )
    _lora_stages = {"base": "unet", "refine": "refine_unet"}
    _optional_components = ["text_encoder", "tokenizer", "refine_unet", "refine_scheduler"] + [
        f"refine_{name}" for name in SHARED
    ]

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        image_encoder,
        feature_extractor,
        unet,
        scheduler,
        refine_unet=None,
        refine_scheduler=None,
        refine_vae=None,
        refine_text_encoder=None,
        refine_tokenizer=None,
        refine_image_encoder=None,
        refine_feature_extractor=None,
        base_defaults=None,
        refine_defaults=None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            unet=unet,
            scheduler=scheduler,
            refine_unet=refine_unet,
            refine_scheduler=refine_scheduler,
            refine_vae=refine_vae,
            refine_text_encoder=refine_text_encoder,
            refine_tokenizer=refine_tokenizer,
            refine_image_encoder=refine_image_encoder,
            refine_feature_extractor=refine_feature_extractor,
        )
        self.register_to_config(base_defaults=dict(base_defaults or {}), refine_defaults=dict(refine_defaults or {}))
        self.base = self.refiner = None
        shared = {name: getattr(self, name) for name in SHARED}
        if unet is not None:
            defaults = self.config.base_defaults
            self.base = I2VGenXLPipeline(**shared, unet=unet, scheduler=scheduler, base_defaults=defaults)
        if refine_unet is not None:
            own = {name: getattr(self, f"refine_{name}") for name in SHARED}
            self.refiner = VideoRefinePipeline(
                **{name: shared[name] if part is None else part for name, part in own.items()},
                unet=refine_unet,
                scheduler=refine_scheduler,
                refine_defaults=self.config.refine_defaults,
            )
        self.release_stages = False
        self.model_name = ""
        self.refiner_name: str | None = None  # where it does not come with the model

    @property
    def has_text(self) -> bool:
        """Whether the base stage reads the prompt; where not, it is for the refiner."""
        return self.text_encoder is not None

    @property
    def multiple(self) -> int:
        """Base sizes in pixels are multiples of this."""
        return self.base.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def default_sizes(self, image_width: int, image_height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of the base and of the refined video for a picture of the given proportions.

        The short side is the model's own; the long one follows the picture's proportions between 9:16 and 16:9,
        or up to the model's own proportions if those are longer.
        """
        options = self.base.options
        short, long = sorted((options.height, options.width))
        ratio = max(image_width, image_height) / min(image_width, image_height)
        ratio = min(ratio, max(long / short, LONGEST_CHOSEN))
        side = round(short * ratio / self.multiple) * self.multiple
        width, height = (side, short) if image_width >= image_height else (short, side)
        return (width, height), self.refined_size(width, height)

    def refined_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the refined video for a base size: the refiner's default short side."""
        if self.refiner is None:
            return width, height
        target = min(self.refiner.options.height, self.refiner.options.width)
        scale = target / min(width, height)
        return tuple(round(side * scale / 2) * 2 for side in (width, height))

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        seed: int | list[int] = 0,
        refine: bool = True,
        size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        target_fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        refine_prompt: str | list[str] | None = None,
        refine_steps: int | None = None,
        refine_strength: float | None = None,
        refine_guidance_scale: float | None = None,
        fit: str = "crop",
        keep_base: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
        exact: bool = False,
    ) -> CascadeOutput:
        """Animate one image or several.

        Args:
            image, prompt, negative_prompt, seed, refine_prompt: one for all videos, or a list with one each.
                Each seed governs all that is random in its video, in any batch.
                Where the base stage reads no text (image2video), `prompt` is for the refiner alone.
            refine: False stops after the base stage.
            size: (width, height) of the result; None follows the proportions of the (first) image.
            progress: called as (stage, steps done, steps in all).
            exact: reproduce the original end to end, see `i2vgen.pipelines.exact`; sizes are then the models' own.
                The original has a compressed video file between its stages; here it is the frames of that file.

        Raises ValueError naming the argument for anything out of range.
        """
        # 1. Check and choose sizes
        if self.base is None:
            raise ValueError(f"model {self.model_name!r} is a refiner alone and takes a video: use its `refiner`")
        if refine and self.refiner is None:
            raise ValueError("refine: this model has no refinement stage; pass refine=False")
        image = as_images(image)
        count = count_videos(
            image=image,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            refine_prompt=refine_prompt,
        )
        seeds = [checked_seed(s) for s in as_list(seed, count, "seed")]
        images = [read_image(i) for i in as_list(image, count, "image")]
        base_size, final_size = self.sizes_for(images[0].size, size, refine, exact)
        options = replaced(
            self.base.options,
            width=base_size[0],
            height=base_size[1],
            num_frames=num_frames,
            target_fps=target_fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        if exact:
            options = self.base.exact_options(options)
        self.base.check_size(options.height, options.width)
        refine_options = None
        if refine:
            refine_options = replaced(
                self.refiner.options,
                {"num_inference_steps": "refine_steps", "guidance_scale": "refine_guidance_scale"},
                width=final_size[0],
                height=final_size[1],
                num_inference_steps=refine_steps,
                guidance_scale=refine_guidance_scale,
            )
            if exact:
                refine_options = self.refiner.exact_options(refine_options)
            self.refiner.start_timestep(refine_options, refine_strength)
        generators = [torch.Generator().manual_seed(s) for s in seeds]

        # 2. Base stage
        self._place(self.unet, self.refine_unet)
        latents = self.base(
            prompt=prompt if self.has_text or not refine else None,
            image=images,
            negative_prompt=negative_prompt,
            height=options.height,
            width=options.width,
            num_frames=options.num_frames,
            target_fps=options.target_fps,
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            generator=generators,
            output_type="latent",
            fit=fit,
            exact=exact,
            callback_on_step_end=_stage_progress("base", progress),
        ).frames

        # 3. Refinement stage
        base_frames = decode_latents(self.vae, latents, options.decode_chunk_size)
        frames = self.require_finite(base_frames, "decoding of the base stage")
        if refine:
            if exact:
                pixels = [frames_to_uint8(video, exact=True) for video in base_frames]
                base_frames = torch.cat([frames_to_tensor(video) for video in pixels])
            self._place(self.refine_unet, self.unet)
            frames = self.refiner(
                prompt=prompt if refine_prompt is None else refine_prompt,
                video=base_frames,
                image=images,
                height=refine_options.height,
                width=refine_options.width,
                refine_strength=refine_strength,
                num_inference_steps=refine_options.num_inference_steps,
                guidance_scale=refine_options.guidance_scale,
                target_fps=options.target_fps,
                generator=generators,
                motion_from="prompt" if self.has_text and refine_prompt is None else "video",
                output_type="pt",
                fit=fit,
                exact=exact,
                callback_on_step_end=_stage_progress("refine", progress),
            ).frames
            frames = frames.transpose(1, 2).mul(2).sub(1)

        # 4. Pixels and the settings that reproduce them
        prompts = as_list(prompt, count, "prompt")
        negatives = as_list(negative_prompt, count, "negative_prompt")
        refine_prompts = as_list(refine_prompt, count, "refine_prompt")
        settings = [
            self._settings(p, n, r, s, options, refine_options, refine_strength, fit, exact)
            for p, n, r, s in zip(prompts, negatives, refine_prompts, seeds, strict=True)
        ]
        return CascadeOutput(
            frames=[frames_to_uint8(f, (refine_options or options).truncate_pixels) for f in frames],
            base_frames=[frames_to_uint8(f, options.truncate_pixels) if keep_base else None for f in base_frames],
            settings=settings,
            base_latents=latents,
            fps=options.target_fps,
        )

    def sizes_for(
        self, image_size: tuple[int, int], size: tuple[int, int] | None, refine: bool, exact: bool = False
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of base and result; `size` is the result's, the base keeps its short side.

        With `exact` the models' own sizes are chosen, and kept where `size` is the last stage's own.
        Raises ValueError for a `size` too small, too long and narrow, or that the base alone cannot make.
        """
        stages = [self.base.options, self.refiner.options if refine else self.base.options]
        own = tuple((stage.width, stage.height) for stage in stages)
        if exact and size in (None, own[1]):
            return own
        if size is None:
            return self.default_sizes(*image_size)
        width, height = size
        if min(width, height) < 8:
            raise ValueError(f"size {width}x{height}: each side must be at least 8 pixels")
        longest = LONGEST_ASKED * min(width, height)
        if max(width, height) > longest:
            raise ValueError(
                f"size {width}x{height}: the long side may be at most {LONGEST_ASKED} times the short, here {longest}"
            )
        if not refine:
            self.base.check_size(height, width)
            return size, size
        short = min(self.base.options.height, self.base.options.width)
        scale = short / min(width, height)
        base = tuple(max(1, round(side * scale / self.multiple)) * self.multiple for side in size)
        return base, (width, height)

    def _place(self, wanted: torch.nn.Module, other: torch.nn.Module | None) -> None:
        """With `release_stages`, bring one UNet to the device and send the other away."""
        if not self.release_stages or other is None:
            return
        device = self.vae.device
        other.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        wanted.to(device)

    def _settings(
        self,
        prompt: str,
        negative_prompt: str | None,
        refine_prompt: str | None,
        seed: int,
        options: BaseOptions,
        refine_options: RefineOptions | None,
        refine_strength: float | None,
        fit: str,
        exact: bool,
    ) -> dict[str, Any]:
        return {
            "kind": "generate",
            "model": self.model_name,
            "refiner": self.refiner_name,
            "lora": [used for used in self.lora_settings() if refine_options or used["stage"] == "base"],
            "exact": exact,
            "prompt": prompt,
            "negative_prompt": options.negative_prompt if negative_prompt is None else negative_prompt,
            "refine_prompt": refine_prompt,
            "seed": seed,
            "fit": fit,
            "base": asdict(options),
            "refine": asdict(refine_options) if refine_options else None,
            "refine_strength": refine_strength,
            "device": self.vae.device.type,
            "dtype": str(self.unet.dtype).removeprefix("torch."),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    return {
        "i2vgen": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    return seed


def _stage_progress(stage: str, progress: Callable[[str, int, int], None] | None) -> Callable | None:
    if progress is None:
        return None

    def report(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
        progress(stage, step + 1, pipeline.num_timesteps)
        return {}

    return report

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
from i2vgen.media import frames_to_uint8
from i2vgen.pipelines.base import I2VGenXLPipeline
from i2vgen.pipelines.conditioning import as_images, as_list, count_videos, decode_latents, read_image
from i2vgen.pipelines.loading import FamilyPipeline, parse_device, parse_dtype
from i2vgen.pipelines.options import BaseOptions, RefineOptions, replaced
from i2vgen.pipelines.refine import VideoRefinePipeline

# Longest to shortest side: of sizes chosen for a picture, unless the model's own is longer, and of sizes asked for.
LONGEST_CHOSEN, LONGEST_ASKED = 16 / 9, 4


@dataclass
class CascadeOutput:
    """One entry a video. `base_frames` are the base stage's own, None where they were not asked for."""

    frames: list[np.ndarray]  # uint8 (f h w 3)
    base_frames: list[np.ndarray | None]
    settings: list[dict[str, Any]]  # all that reproduces the video, see `i2vgen.media.read_settings`
    base_latents: torch.Tensor  # (b c f h w), the base stage's result
    fps: int = 8


class CascadePipeline(FamilyPipeline):
    """Base and refinement stage over one set of towers and one VAE.

    The base latents go to the refiner in memory, never through a file. With `release_stages` each stage's
    weights leave the device before the next stage starts.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->refine_unet->vae"
    _optional_components = ["refine_unet", "refine_scheduler"]

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
        )
        self.register_to_config(base_defaults=dict(base_defaults or {}), refine_defaults=dict(refine_defaults or {}))
        shared = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
        towers = {"image_encoder": image_encoder, "feature_extractor": feature_extractor}
        self.base = I2VGenXLPipeline(
            **shared, **towers, unet=unet, scheduler=scheduler, base_defaults=self.config.base_defaults
        )
        self.refiner = None
        if refine_unet is not None:
            self.refiner = VideoRefinePipeline(
                **shared,
                **towers,
                unet=refine_unet,
                scheduler=refine_scheduler,
                refine_defaults=self.config.refine_defaults,
            )
        self.release_stages = False
        self.model_name = ""

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
    ) -> CascadeOutput:
        """Animate one image or several.

        Args:
            image, prompt, negative_prompt, seed, refine_prompt: one for all videos, or a list with one each.
                Each seed governs all that is random in its video, in any batch.
            refine: False stops after the base stage.
            size: (width, height) of the result; None follows the proportions of the (first) image.
            progress: called as (stage, steps done, steps in all).

        Raises ValueError naming the argument for anything out of range.
        """
        # 1. Check and choose sizes
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
        base_size, final_size = self.sizes_for(images[0].size, size, refine)
        options = replaced(
            self.base.options,
            width=base_size[0],
            height=base_size[1],
            num_frames=num_frames,
            target_fps=target_fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
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
            self.refiner.start_timestep(refine_options, refine_strength)
        generators = [torch.Generator().manual_seed(s) for s in seeds]

        # 2. Base stage
        self._place(self.unet, self.refine_unet)
        latents = self.base(
            prompt=prompt,
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
            callback_on_step_end=_stage_progress("base", progress),
        ).frames

        # 3. Refinement stage
        base_frames = decode_latents(self.vae, latents, options.decode_chunk_size)
        frames = self.require_finite(base_frames, "decoding of the base stage")
        if refine:
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
                motion_from="prompt" if refine_prompt is None else "video",
                output_type="pt",
                fit=fit,
                callback_on_step_end=_stage_progress("refine", progress),
            ).frames
            frames = frames.transpose(1, 2).mul(2).sub(1)

        # 4. Pixels and the settings that reproduce them
        prompts = as_list(prompt, count, "prompt")
        negatives = as_list(negative_prompt, count, "negative_prompt")
        refine_prompts = as_list(refine_prompt, count, "refine_prompt")
        settings = [
            self._settings(p, n, r, s, options, refine_options, refine_strength, fit)
            for p, n, r, s in zip(prompts, negatives, refine_prompts, seeds, strict=True)
        ]
        return CascadeOutput(
            frames=[frames_to_uint8(f) for f in frames],
            base_frames=[frames_to_uint8(f) if keep_base else None for f in base_frames],
            settings=settings,
            base_latents=latents,
            fps=options.target_fps,
        )

    def sizes_for(
        self, image_size: tuple[int, int], size: tuple[int, int] | None, refine: bool
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of base and result; `size` is the result's, the base keeps its short side.

        Raises ValueError for a `size` too small, too long and narrow, or that the base alone cannot make.
        """
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
    ) -> dict[str, Any]:
        default_negative = self.base.options.negative_prompt
        return {
            "kind": "generate",
            "model": self.model_name,
            "prompt": prompt,
            "negative_prompt": default_negative if negative_prompt is None else negative_prompt,
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
        progress(stage, step + 1, len(pipeline.scheduler.timesteps))
        return {}

    return report


def load_cascade(
    model: str = "nano", device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> CascadePipeline:
    """Load "nano", a cascade folder or a hub id, ready on `device` (None: the best at hand) in `dtype`.

    Raises ModelError for a folder that cannot be used, ValueError for a device or dtype unknown here.
    """
    device = parse_device(device)
    pipeline = CascadePipeline.from_pretrained(model, torch_dtype=parse_dtype(dtype, device))
    pipeline.model_name = str(model)
    pipeline.to(device)
    for part in (pipeline, pipeline.base, pipeline.refiner):
        if part is not None:
            part.set_progress_bar_config(disable=True)
    return pipeline

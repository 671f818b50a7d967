"""The refinement stage: a video and a brief text become the same video, sharper and larger."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from i2vgen.media import frames_to_uint8
from i2vgen.pipelines.base import OUTPUT_TYPES, I2VGenXLPipelineOutput, as_output
from i2vgen.pipelines.conditioning import (
    as_images,
    as_list,
    as_prompts,
    count_videos,
    decode_latents,
    draw,
    encode_images_clip,
    encode_pixels,
    encode_prompts,
    prepare_image,
    step_options,
)
from i2vgen.pipelines.exact import exact_refine
from i2vgen.pipelines.frames import as_videos, frame_windows, resize_frames, size_like
from i2vgen.pipelines.loading import FamilyPipeline, options_of_folder
from i2vgen.pipelines.lora import LoraMixin
from i2vgen.pipelines.moved import Moved, encode_moved, restore_detail
from i2vgen.pipelines.options import RefineOptions, replaced
from i2vgen.pipelines.start import (
    inversion_pairs,
    inversion_scheduler,
    scheduler_with,
    set_refine_timesteps,
    takes_start,
)
from i2vgen.schedulers import apply_guidance


class VideoRefinePipeline(LoraMixin, FamilyPipeline):
    """Video + text to a refined video.

    The released refiners see text and the noised video alone. A refiner whose UNet has image heads (nano's)
    also sees the source image, or without one the first frame of the video. The video is brought to its noise
    level by noise or, with `inversion_steps`, by DDIM inversion, as sr600 expects.

    Any `UNet3DConditionModel` of diffusers' video-to-video pipelines serves too, with its own scheduler.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["image_encoder", "feature_extractor"]
    _lora_stages = {"refine": "unet"}
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        image_encoder=None,
        feature_extractor=None,
        refine_defaults=None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(refine_defaults=dict(refine_defaults or {}))
        self.options = options_of_folder(RefineOptions, self.config.refine_defaults, "refine_defaults")
        self._num_timesteps = 0
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        video: Any,
        height: int | None = None,
        width: int | None = None,
        refine_strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        image: Any = None,
        target_fps: int = 8,
        decode_chunk_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict | None] | None = None,
        fit: str = "crop",
        motion_from: str = "video",
        exact: bool = False,
    ) -> I2VGenXLPipelineOutput | tuple:
        """Refine one video or several of the same length and size.

        Args:
            prompt: a brief text, one for all or one per video.
            video: a path, frames uint8 (f h w 3), a tensor (3 f h w) in [-1, 1], or a list or batch of these.
            height, width: size of the result, any; None follows the proportions of the video, at the area of
                the model's default size if neither is given.
            refine_strength: how far the video is noised, in (0, 1]; 0.6 is t=599 of 1000, what refiners know.
                With a scheduler of diffusers, also the share of num_inference_steps that is run.
            image: the source image, for refiners that look at it; None means the first frame.
            target_fps: told to refiners that are conditioned on it.
            generator: as in the base stage.
            clip_skip: layers of the text tower left out at its end; None means the default of the loaded model.
            callback_on_step_end: as in the base stage; evaluations of an inversion count as steps.
            fit: how `image` is brought to the size.
            motion_from: for refiners with a motion prior (nano's), "video", or "prompt" where the video was made
                from `image` and this very prompt, so that the photo's own detail can be moved.
            exact: reproduce the original end to end, see `i2vgen.pipelines.exact`. Its size is the model's own.

        Raises ValueError naming an argument that is out of range, NonFiniteError if the numbers blow up.
        """
        # 1. Check
        options = replaced(
            self.options,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            decode_chunk_size=decode_chunk_size,
            clip_skip=clip_skip,
            height=height,
            width=width,
        )
        if exact:
            options = self.exact_options(options)
            height, width = options.height, options.width
        if isinstance(target_fps, bool) or not isinstance(target_fps, int) or target_fps < 1:
            raise ValueError(f"target_fps must be a whole number of at least 1, got {target_fps!r}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
        if motion_from not in ("video", "prompt"):
            raise ValueError(f"motion_from {motion_from!r}: use 'video' or 'prompt'")
        start = self.start_timestep(options, refine_strength)
        scheduler = scheduler_with(self.scheduler, exact_start=options.exact_start)
        videos, image = as_videos(video), as_images(image)
        count = count_videos(prompt=prompt, negative_prompt=negative_prompt, video=list(videos), image=image)
        if count != len(videos):
            raise ValueError(f"video: {len(videos)} videos for {count} prompts")
        height, width = size_like(videos, height, width, options.height * options.width)
        generators = as_list(generator, count, "generator")
        device, dtype = self._execution_device, self.unet.dtype
        use_guidance = options.guidance_scale > 1

        # 2. Text
        negative = options.negative_prompt if negative_prompt is None else negative_prompt
        texts = [(as_prompts(prompt, count, "prompt"), options.positive_prompt)]
        if use_guidance or options.inversion_steps:
            texts.append((as_prompts(negative, count, "negative_prompt"), ""))
        tower, reading = (self.tokenizer, self.text_encoder), (options.clip_skip, options.text_pad_token_id)
        embeds = [encode_prompts(*tower, words, *reading, added) for words, added in texts]

        # 3. Video to latents of a size that the levels take
        frames = resize_frames(videos, height, width, options.resize)
        padded_height, padded_width = self.padded_size(height, width)
        frames = F.pad(frames, (0, padded_width - width, 0, padded_height - height, 0, 0), mode="replicate")
        latents = encode_pixels(self.vae, frames, generators).to(device, torch.float32)
        self.require_finite(latents, "encoding of the video")

        # 4. Image, for refiners that look at it
        image_latents = image_embeddings = None
        if self.unet.config.use_image_latents:
            pixels, pictures = self._image_pixels(image, frames, height, width, fit)
            image_latents = encode_pixels(self.vae, pixels, generators).to(device, dtype)
            image_embeddings = encode_images_clip(self.feature_extractor, self.image_encoder, pictures, width, False)
            image_embeddings = image_embeddings.to(device, dtype)

        # with a motion prior: where things are in each frame
        fps = torch.full((count,), target_fps, device=device) if self.unet.config.use_fps else None
        moved = None
        if self.unet.config.use_motion_prior and motion_from == "video":
            moved = Moved(torch.cat([image_latents, latents[:, :, 1:].to(dtype)], dim=2))
        elif self.unet.config.use_motion_prior:
            text = embeds[0].to(device, dtype)
            moved = encode_moved(self.unet, self.vae, pixels, image_latents, text, fps, latents.shape[2])

        # 5. Long videos go in overlapping windows
        windows = frame_windows(latents.shape[2], options.window_frames, options.window_overlap)
        conditions = [
            [
                self._conditions(
                    w, e.to(device, dtype), image_embeddings, image_latents, moved and moved.latents, fps, i == 1
                )
                for w in windows
            ]
            for i, e in enumerate(embeds)
        ]

        # 6. To the starting level
        pairs = inversion_pairs(options, start)
        timesteps, level = set_refine_timesteps(scheduler, options, start, self.share(start, refine_strength), device)
        self._num_timesteps = len(pairs) + len(timesteps)
        with self.progress_bar(total=self._num_timesteps) as bar:

            def report(index: int, t: Any, latents: torch.Tensor) -> torch.Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return latents
                return (callback_on_step_end(self, index, t, {"latents": latents}) or {}).get("latents", latents)

            if pairs:
                inverter = inversion_scheduler()
                for index, (t, next_t) in enumerate(pairs):
                    velocity = self._predict(latents, t, windows, conditions[1])
                    latents = report(index, t, inverter.invert_step(velocity, t, next_t, latents))
                self.require_finite(latents, "inversion of the video")
            else:
                noise = torch.stack([draw(latents.shape[1:], g, device, torch.float32) for g in generators])
                latents = scheduler.add_noise(latents, noise, torch.tensor([level], device=device))
            if takes_start(scheduler):
                latents = latents * scheduler.init_noise_sigma

            # 7. Denoise
            step = step_options(scheduler, generator=None if generator is None else generators)
            for index, t in enumerate(timesteps, start=len(pairs)):
                inputs = scheduler.scale_model_input(latents, t)
                velocity = [self._predict(inputs, t, windows, c) for c in conditions[: 1 + use_guidance]]
                if use_guidance:
                    velocity = apply_guidance(*velocity, options.guidance_scale, options.guidance_rescale)
                else:
                    velocity = velocity[0]
                latents = report(index, t, scheduler.step(velocity, t, latents, **step).prev_sample)
        self.require_finite(latents, "refinement stage")

        # 8. Decode, cut the padding off
        result = latents
        if output_type != "latent":
            decoded = decode_latents(self.vae, latents, options.decode_chunk_size)
            self.require_finite(decoded, "decoding")
            if options.detail and moved is not None and moved.pixels is not None:
                decoded = restore_detail(decoded, latents, moved, options.detail)
            result = as_output(decoded[..., :height, :width], output_type, options.truncate_pixels)
        self.maybe_free_model_hooks()
        return I2VGenXLPipelineOutput(frames=result) if return_dict else (result,)

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the current or last run, those of an inversion included."""
        return self._num_timesteps

    def exact_options(self, options: RefineOptions) -> RefineOptions:
        """`options` with what reproduces the original of this refiner."""
        return exact_refine(options, self.unet.config.use_decoder_edits)

    def start_timestep(self, options: RefineOptions, refine_strength: float | None) -> int:
        """The noise level that the video is brought to. Raises ValueError for a strength outside (0, 1]."""
        if refine_strength is None:
            return options.refine_timestep
        if not 0 < refine_strength <= 1:
            raise ValueError(f"refine_strength must be above 0 and at most 1, got {refine_strength!r}")
        total = self.scheduler.config.num_train_timesteps
        return max(1, min(round(refine_strength * total), total) - 1)

    def share(self, start: int, refine_strength: float | None) -> float:
        """Share of the way to pure noise that the video is taken."""
        return (start + 1) / self.scheduler.config.num_train_timesteps if refine_strength is None else refine_strength

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The next size up that the UNet takes, in pixels."""
        config, scale = self.unet.config, self.vae_scale_factor
        factor = 2 ** (len(config.block_out_channels) - 1)
        extra = 2 if config.has_odd_height else 0
        rows = max(1, math.ceil((math.ceil(height / scale) - extra) / factor)) * factor + extra
        columns = math.ceil(math.ceil(width / scale) / factor) * factor
        return rows * scale, columns * scale

    def _image_pixels(
        self, image: Any, frames: torch.Tensor, height: int, width: int, fit: str
    ) -> tuple[torch.Tensor, list[Image.Image]]:
        """The source image (b 3 1 h w) in [-1, 1] in the size of `frames`, and as pictures."""
        if image is None:
            pictures = [_first_frame(v[:, :, :height, :width]) for v in frames]
            pixels = frames[:, :, :1]
        else:
            prepared = [prepare_image(i, width, height, fit, False) for i in as_list(image, len(frames), "image")]
            pictures = [p for p, _ in prepared]
            pad = (0, frames.shape[-1] - width, 0, frames.shape[-2] - height, 0, 0)
            pixels = F.pad(torch.stack([p for _, p in prepared]), pad, mode="replicate")
        return pixels, pictures

    def _conditions(self, window, prompt_embeds, image_embeddings, image_latents, moved, fps, is_unconditional):
        start, stop = window
        if moved is not None:
            moved = moved[:, :, start:stop]
            image_latents = moved[:, :, :1]  # later windows start from their own first frame, not from the image
        if is_unconditional and image_embeddings is not None:
            image_embeddings = torch.zeros_like(image_embeddings)
        return self.unet.encode_conditions(stop - start, prompt_embeds, image_embeddings, image_latents, fps, moved)

    def _predict(self, latents: torch.Tensor, t: torch.Tensor, windows: list, conditions: list) -> torch.Tensor:
        """The UNet's prediction for all frames: windows blended with weights that fall off towards their ends."""
        inputs = latents.to(self.unet.dtype)
        if len(windows) == 1:
            return self.unet(inputs, t, conditions=conditions[0]).sample.float()
        total, weights = torch.zeros_like(latents), torch.zeros(latents.shape[2], device=latents.device)
        for (start, stop), condition in zip(windows, conditions, strict=True):
            ramp = torch.arange(1, stop - start + 1, device=latents.device).float()
            weight = torch.minimum(ramp, ramp.flip(0))
            velocity = self.unet(inputs[:, :, start:stop], t, conditions=condition).sample.float()
            total[:, :, start:stop] += velocity * weight[:, None, None]
            weights[start:stop] += weight
        return total / weights[:, None, None]


def _first_frame(video: torch.Tensor) -> Image.Image:
    return Image.fromarray(frames_to_uint8(video[:, :1])[0])

"""The base stage: an image and a line of text become a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from PIL import Image

from i2vgen.media import frames_to_uint8, nearest_valid_size
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
from i2vgen.pipelines.exact import exact_base
from i2vgen.pipelines.loading import FamilyPipeline, options_of_folder
from i2vgen.pipelines.lora import LoraMixin
from i2vgen.pipelines.moved import encode_moved
from i2vgen.pipelines.options import BaseOptions, replaced
from i2vgen.pipelines.start import base_scheduler
from i2vgen.schedulers import apply_guidance

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class I2VGenXLPipelineOutput(BaseOutput):
    """`frames`: by output type, a list of lists of pictures, (b f h w 3) in [0, 1], (b f 3 h w) in [0, 1], or
    latents (b c f h w)."""

    frames: Any


class I2VGenXLPipeline(LoraMixin, FamilyPipeline):
    """Image (+ text) to video. The call signature is the one that diffusers' pipeline of this name had."""

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        image_encoder,
        feature_extractor,
        unet,
        scheduler,
        base_defaults=None,
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
        )
        self.register_to_config(base_defaults=dict(base_defaults or {}))
        self.options = options_of_folder(BaseOptions, self.config.base_defaults, "base_defaults")
        self._num_timesteps = 0
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the current or last run."""
        return self._num_timesteps

    def exact_options(self, options: BaseOptions) -> BaseOptions:
        """`options` with what reproduces the original of this model."""
        return exact_base(options, is_image_only=not self.unet.config.use_image_latents)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError with the nearest valid size if the stage cannot make (height, width) pixels."""
        multiple = self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            near_width, near_height = nearest_valid_size(width, height, multiple)
            raise ValueError(
                f"size (width x height) {width}x{height}: both must be multiples of {multiple}; "
                f"nearest valid {near_width}x{near_height}"
            )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        target_fps: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        eta: float | None = None,
        num_videos_per_prompt: int | None = 1,
        decode_chunk_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = 1,
        callback_on_step_end: Callable[..., dict | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ("latents",),
        guidance_rescale: float | None = None,
        fit: str = "crop",
        exact: bool = False,
    ) -> I2VGenXLPipelineOutput | tuple:
        """Animate one image or several.

        Args:
            prompt, image, negative_prompt: one for all videos, or a list with one each. An image is anything
                that `i2vgen.media.load_image` takes, or a tensor (3 h w) / (b 3 h w).
            height, width, num_frames, target_fps, num_inference_steps, guidance_scale, guidance_rescale, eta,
                decode_chunk_size: None means the default of the loaded model (see `options`).
            num_videos_per_prompt: videos for each prompt and image.
            generator: one, or a list with one per video. A list makes each video independent of the others
                in the batch; the generator governs the image's VAE sample, the starting and eta's noise.
            latents: starting noise (b c f h/8 w/8) in place of a drawn one.
            prompt_embeds, negative_prompt_embeds: (b n d) in place of text.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as (pipeline, step, timestep, tensors), with the tensors named in
                `callback_on_step_end_tensor_inputs`; may return {"latents": ...} to go on with others.
            fit: "crop" scales and cuts the image to the size, "pad" shows all of it on black.
            exact: reproduce the original end to end, see `i2vgen.pipelines.exact`.

        Raises ValueError naming an argument that is out of range, NonFiniteError if the numbers blow up.
        """
        # 1. Check
        options = replaced(
            self.options,
            height=height,
            width=width,
            target_fps=target_fps,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            eta=eta,
            decode_chunk_size=decode_chunk_size,
        )
        if exact:
            options = self.exact_options(options)
        if cross_attention_kwargs:
            raise ValueError("cross_attention_kwargs is not supported: leave it None")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
        if image is None:
            raise ValueError("image: the base stage animates an image, got None")
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("prompt and prompt_embeds: give one of them")
        self.check_size(options.height, options.width)
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("negative_prompt and negative_prompt_embeds: give one of them")
        repeats = 1 if num_videos_per_prompt is None else num_videos_per_prompt
        if repeats < 1:
            raise ValueError(f"num_videos_per_prompt must be at least 1, got {num_videos_per_prompt!r}")
        for name in callback_on_step_end_tensor_inputs:
            if name not in self._callback_tensor_inputs:
                known = ", ".join(self._callback_tensor_inputs)
                raise ValueError(f"callback_on_step_end_tensor_inputs: {name!r} is unknown; use {known}")
        image = as_images(image)
        count = count_videos(
            prompt=prompt,
            image=image,
            negative_prompt=negative_prompt,
            prompt_embeds=self._checked_embeds(prompt_embeds, "prompt_embeds"),
            negative_prompt_embeds=self._checked_embeds(negative_prompt_embeds, "negative_prompt_embeds"),
        )
        generators = as_list(generator, count * repeats, "generator")
        device, dtype = self._execution_device, self.unet.dtype
        scheduler = base_scheduler(self.scheduler, options)
        use_guidance = options.guidance_scale > 1

        # 2. Text
        prompt_embeds, negative_prompt_embeds = self._encode_text(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, count, clip_skip, options
        )

        # 3. Image: embedding of the whole, latents of the fitted one
        size = (options.width, options.height)
        pictures = [prepare_image(i, *size, fit, options.exact_images) for i in as_list(image, count, "image")]
        image_embeddings = encode_images_clip(
            self.feature_extractor, self.image_encoder, [p for p, _ in pictures], options.width, options.exact_images
        )
        pixels = torch.stack([p for _, p in pictures]).repeat_interleave(repeats, dim=0)
        image_latents = None
        if self.unet.config.use_image_latents:
            image_latents = encode_pixels(self.vae, pixels, generators).to(device, dtype)
            self.require_finite(image_latents, "encoding of the image")
        prompt_embeds, negative_prompt_embeds, image_embeddings = (
            None if x is None else x.to(device, dtype).repeat_interleave(repeats, dim=0)
            for x in (prompt_embeds, negative_prompt_embeds, image_embeddings)
        )

        # 4. Noise
        sides = (side // self.vae_scale_factor for side in (options.height, options.width))
        shape = (self.unet.config.in_channels, options.num_frames, *sides)
        latents = self._starting_noise(latents, shape, generators, options.offset_noise, scheduler, device)

        # 5. Conditions, the same in every step
        fps = torch.full((len(latents),), options.target_fps, device=device)
        image = (pixels, image_latents, prompt_embeds, fps, options.num_frames)
        found = encode_moved(self.unet, self.vae, *image)
        moved = None if found is None else found.latents
        conditions = [
            self.unet.encode_conditions(options.num_frames, prompt_embeds, image_embeddings, image_latents, fps, moved)
        ]
        if use_guidance:
            nothing = torch.zeros_like(image_embeddings)
            conditions.append(
                self.unet.encode_conditions(
                    options.num_frames, negative_prompt_embeds, nothing, image_latents, fps, moved
                )
            )

        # 6. Denoise
        scheduler.set_timesteps(options.num_inference_steps, device=device)
        timesteps = scheduler.timesteps
        self._num_timesteps = len(timesteps)
        step = step_options(scheduler, eta=options.eta, generator=None if generator is None else generators)
        with self.progress_bar(total=len(timesteps)) as bar:
            for index, t in enumerate(timesteps):
                inputs = scheduler.scale_model_input(latents, t).to(dtype)
                velocity = [self.unet(inputs, t, conditions=c).sample.float() for c in conditions]
                if use_guidance:
                    velocity = apply_guidance(*velocity, options.guidance_scale, options.guidance_rescale)
                else:
                    velocity = velocity[0]
                latents = scheduler.step(velocity, t, latents, **step).prev_sample
                if callback_on_step_end is not None:
                    known = {"latents": latents, "prompt_embeds": prompt_embeds}
                    known["negative_prompt_embeds"] = negative_prompt_embeds
                    chosen = {name: known[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, index, t, chosen) or {}).get("latents", latents)
                bar.update()
        self.require_finite(latents, "base stage")

        # 7. Decode
        frames = latents
        if output_type != "latent":
            frames = decode_latents(self.vae, latents, options.decode_chunk_size)
            frames = as_output(self.require_finite(frames, "decoding"), output_type, options.truncate_pixels)
        self.maybe_free_model_hooks()
        return I2VGenXLPipelineOutput(frames=frames) if return_dict else (frames,)

    def _encode_text(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        count: int,
        clip_skip: int | None,
        options: BaseOptions,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        pad = options.text_pad_token_id
        if prompt_embeds is None:
            prompt_embeds = self._tower_text(as_prompts(prompt, count, "prompt"), clip_skip, pad)
        elif len(prompt_embeds) != count:
            prompt_embeds = prompt_embeds.expand(count, -1, -1)
        if negative_prompt_embeds is None and options.guidance_scale > 1:
            default = options.negative_prompt if negative_prompt is None else negative_prompt
            negative_prompt_embeds = self._tower_text(as_prompts(default, count, "negative_prompt"), clip_skip, pad)
        elif negative_prompt_embeds is not None and len(negative_prompt_embeds) != count:
            negative_prompt_embeds = negative_prompt_embeds.expand(count, -1, -1)
        return prompt_embeds, negative_prompt_embeds

    def _tower_text(self, prompts: list[str], clip_skip: int | None, pad: int | None) -> torch.Tensor | None:
        """Text tokens, or None where the model has no text tower (image2video) and no text is given."""
        if self.text_encoder is not None:
            return encode_prompts(self.tokenizer, self.text_encoder, prompts, clip_skip, pad)
        if any(prompts):
            raise ValueError('prompt: this model has no text encoder: give "" as PROMPT, and no negative prompt')
        return None

    def _checked_embeds(self, embeds: torch.Tensor | None, name: str) -> list[torch.Tensor] | None:
        """One entry a video, as `count_videos` reads it; one for all counts as single."""
        width = self.unet.config.cross_attention_dim
        if embeds is not None and (embeds.ndim != 3 or embeds.shape[-1] != width):
            raise ValueError(f"{name}: expected shape (b n {width}), got {tuple(embeds.shape)}")
        return None if embeds is None or len(embeds) == 1 else list(embeds)

    def _starting_noise(
        self,
        latents: torch.Tensor | None,
        shape: tuple[int, ...],
        generators: list[torch.Generator | None],
        offset_noise: float,
        scheduler: Any,
        device: torch.device,
    ) -> torch.Tensor:
        if latents is not None:
            if latents.shape != (len(generators), *shape):
                raise ValueError(f"latents: expected shape {(len(generators), *shape)}, got {tuple(latents.shape)}")
            return latents.to(device, torch.float32)
        noise = []
        for generator in generators:
            one = draw(shape, generator, device, torch.float32)
            if offset_noise:
                one = one + offset_noise * draw((*shape[:2], 1, 1), generator, device, torch.float32)
            noise.append(one)
        return torch.stack(noise) * scheduler.init_noise_sigma


def as_output(frames: torch.Tensor, output_type: str, truncate: bool = False) -> Any:
    """Frames (b 3 f h w) in [-1, 1] -> what `output_type` names; `truncate` concerns pictures alone."""
    if output_type == "pil":
        return [[Image.fromarray(f) for f in frames_to_uint8(video, truncate)] for video in frames]
    frames = frames.transpose(1, 2).add(1).div(2)
    return frames if output_type == "pt" else frames.permute(0, 1, 3, 4, 2).numpy()

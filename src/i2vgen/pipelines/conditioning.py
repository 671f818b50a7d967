"""From prompts and images to the tensors that condition a UNet."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from PIL import Image

from i2vgen.media import MediaError, center_crop_wide, clip_input, fit_image, image_to_tensor, load_image

logger = logging.getLogger(__name__)


def as_list(value: Any, count: int, name: str) -> list:
    """One entry a video: a single value is repeated; a list must have `count` entries."""
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise ValueError(f"{name}: {len(value)} entries for {count} videos")
        return list(value)
    return [value] * count


def as_prompts(value: Any, count: int, name: str) -> list[str]:
    """One text a video, as `as_list`; None is the empty text."""
    prompts = ["" if prompt is None else prompt for prompt in as_list(value, count, name)]
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"{name} must be text, got {type(prompt).__name__}")
    return prompts


def as_images(image: Any) -> Any:
    """A batch of pictures as a tensor (b c h w) or array (b h w c) becomes a list of them."""
    return list(image) if getattr(image, "ndim", 0) == 4 else image


def count_videos(**inputs: Any) -> int:
    """The number of videos that lists among `inputs` agree on; single values fit any number."""
    counts = {name: len(v) for name, v in inputs.items() if isinstance(v, list | tuple)}
    if not counts:
        return 1
    most = max(counts.values())
    for name, count in counts.items():
        if count != most:
            other = next(n for n, c in counts.items() if c == most)
            raise ValueError(f"{name} has {count} entries but {other} has {most}; give one each, or one for all")
    if most == 0:
        raise ValueError(f"{next(iter(counts))}: empty list")
    return most


@torch.no_grad()
def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: list[str],
    clip_skip: int | None = 1,
    pad_token_id: int | None = None,
    added: str = "",
) -> torch.Tensor:
    """Prompts -> (b n d) text tokens: the layer `clip_skip` before the last, through the final norm.

    `pad_token_id` fills up short prompts in place of the tokenizer's own: padding is attended to, so it matters.
    `added` is appended to each prompt. What is longer than the tower reads is cut at its end, with a warning naming
    what was lost of the prompts themselves.
    """
    layers = text_encoder.config.num_hidden_layers
    if clip_skip is not None and not 0 <= clip_skip <= layers:
        raise ValueError(f"clip_skip is {clip_skip}; the text tower has {layers} layers to skip, None takes the last")
    length = tokenizer.model_max_length
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            logger.warning(
                "prompt: the text tower reads %d tokens; this is cut off: %r",
                length,
                lost[:80] + "..." * (len(lost) > 80),
            )
    if added:
        prompts = [f"{prompt}, {added}" for prompt in prompts]
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids = tokens.input_ids
    if pad_token_id is not None:
        ids = ids.masked_fill(tokens.attention_mask == 0, pad_token_id)
    return encode_tokens(text_encoder, ids, clip_skip)


@torch.no_grad()
def encode_tokens(text_encoder: Any, ids: torch.Tensor, clip_skip: int | None = 1) -> torch.Tensor:
    """Token ids (b n) -> (b n d): the layer `clip_skip` before the last, through the final norm."""
    output = text_encoder(ids.to(text_encoder.device), output_hidden_states=True)
    if not clip_skip:
        return output.last_hidden_state
    # transformers 4 keeps the norm in an inner text_model, transformers 5 on the model itself
    norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return norm(output.hidden_states[-(clip_skip + 1)])


@torch.no_grad()
def encode_images_clip(
    feature_extractor: Any, image_encoder: Any, images: list[Image.Image], crop_size: int, exact: bool
) -> torch.Tensor:
    """Images -> (b 1 d) projected CLIP embeddings, not normalised."""
    size = feature_extractor.crop_size
    size = size["height"] if hasattr(size, "__getitem__") else size.height
    mean, std = feature_extractor.image_mean, feature_extractor.image_std
    pixels = torch.stack([clip_input(i, size, mean, std, crop_size=crop_size, exact=exact) for i in images])
    parameter = next(image_encoder.parameters())
    return image_encoder(pixels.to(parameter.device, parameter.dtype)).image_embeds.unsqueeze(1)


@torch.no_grad()
def encode_pixels(
    vae: Any, pixels: torch.Tensor, generators: list[torch.Generator | None], chunk_size: int = 8
) -> torch.Tensor:
    """Frames (b 3 f h w) in [-1, 1] -> scaled latents (b c f h/8 w/8), sampled from the posterior.

    Each video draws from its own generator, so that it comes out the same in any batch and chunking.
    """
    device, dtype = vae.device, vae.dtype
    latents = []
    for video, generator in zip(pixels, generators, strict=True):
        means, stds = [], []
        for chunk in video.transpose(0, 1).split(chunk_size):
            posterior = vae.encode(chunk.to(device, dtype)).latent_dist
            means.append(posterior.mean)
            stds.append(posterior.std)
        mean, std = torch.cat(means), torch.cat(stds)
        latents.append((mean + std * draw(mean.shape, generator, mean.device, dtype)).transpose(0, 1))
    return torch.stack(latents) * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: Any, latents: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Scaled latents (b c f h w) -> frames (b 3 f 8h 8w) float32 on the CPU, clamped to [-1, 1]."""
    videos = []
    for video in latents:
        frames = (video / vae.config.scaling_factor).transpose(0, 1)
        chunks = [vae.decode(c.to(vae.device, vae.dtype)).sample.float().cpu() for c in frames.split(chunk_size)]
        videos.append(torch.cat(chunks).transpose(0, 1))
    return torch.stack(videos).clamp_(-1, 1)


def step_options(scheduler: Any, **options: Any) -> dict[str, Any]:
    """Those of `options` that the scheduler's `step` takes: some of diffusers know no eta or generator."""
    known = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in known}


def draw(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Unit normal noise, drawn on the generator's device in float32 and then moved."""
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(shape, generator=generator, device=source).to(device, dtype)


def read_image(source: Any) -> Image.Image:
    """`load_image` for an argument named `image`: its errors say so."""
    try:
        return load_image(source)
    except MediaError as error:
        raise MediaError(f"image: {error}") from error


def prepare_image(source: Any, width: int, height: int, fit: str, exact: bool) -> tuple[Image.Image, torch.Tensor]:
    """Anything that `load_image` takes -> (the picture, its crop or padding as (3 1 h w) in [-1, 1])."""
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit is {fit!r}; use 'crop' or 'pad'")
    image = read_image(source)
    if fit == "crop":
        fitted = center_crop_wide(image, (width, height), exact=exact)
    else:
        fitted = fit_image(image, width, height, fit)
    return image, image_to_tensor(fitted).unsqueeze(1)

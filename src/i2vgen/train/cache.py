"""Clips made ahead and kept as latents: `python -m i2vgen.train.cache CONFIG.toml [section.key=value ...]`.

A cache folder holds `clips-WxH-NNN.safetensors` (latents (k f c h w) float16, first frames as 64 px thumbnails
(k 3 64 64) uint8) and beside each a JSON list of captions. A shard is written whole or not at all, and shards
that exist are not made again.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from i2vgen.data.motion import DURATION, ClipMaker
from i2vgen.data.pack import Pack
from i2vgen.models.autoencoder import PatchAutoencoder
from i2vgen.train.config import DataConfig, load_config

SHARD_CLIPS = 100
THUMBNAIL = 64


def clip_times(num_frames: int, fps: float) -> np.ndarray:
    """Times of the frames in units of DURATION."""
    return np.arange(num_frames) / fps / DURATION


@torch.no_grad()
def encode_clip(vae: PatchAutoencoder, frames: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """uint8 (f h w 3) -> scaled latents (f c h/8 w/8) float16, sampled from the posterior."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
    return (posterior.sample(generator=generator).float() * vae.config.scaling_factor).half().contiguous()


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """uint8 (h w 3) -> uint8 (3 64 64): the whole frame, squeezed to a square."""
    return cv2.resize(frame, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)


def make_cache(data: DataConfig, vae_dir: str, seed: int, split: str = "train") -> None:
    """Write `data.num_clips` (or, for another split, `num_val_clips`) clips to `data.cache_dir`/`split`."""
    folder = Path(data.cache_dir) / split
    folder.mkdir(parents=True, exist_ok=True)
    vae = PatchAutoencoder.from_pretrained(vae_dir).eval().to(memory_format=torch.channels_last)
    maker = ClipMaker(Pack(data.pack_dir, split), data.kind_weights)
    times = clip_times(data.num_frames, data.fps)
    total = data.num_clips if split == "train" else data.num_val_clips
    weights = np.array(data.size_weights) / sum(data.size_weights)
    jobs = []
    for size_index, (size, weight) in enumerate(zip(data.sizes, weights, strict=True)):
        count = max(1, round(total * weight / SHARD_CLIPS))
        jobs += [(size_index, tuple(size), shard) for shard in range(count)]
    # interleave the sizes, so that an interrupted cache is a smaller cache of the same mix
    jobs.sort(key=lambda job: (job[2] / max(1, sum(j[0] == job[0] for j in jobs)), job[0]))
    clips_per_shard = min(SHARD_CLIPS, total)
    for size_index, size, shard in tqdm(jobs, desc=f"{split} clips", unit="shard"):
        path = folder / f"clips-{size[0]}x{size[1]}-{shard:03d}.safetensors"
        if path.exists():
            continue
        latents, thumbnails, captions, targets = [], [], [], []
        for index in range(clips_per_shard):
            key = [seed, split == "train", size_index, shard, index]
            clip = maker.make(size, times, np.random.default_rng(key))
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            latents.append(encode_clip(vae, clip.frames, generator))
            thumbnails.append(torch.from_numpy(thumbnail(clip.frames[0])))
            captions.append(clip.caption)
            targets.append(clip.targets)
        path.with_suffix(".json").write_text(json.dumps({"captions": captions, "targets": targets}))
        save_file(
            {"latents": torch.stack(latents).contiguous(), "thumbnails": torch.stack(thumbnails)},
            path.with_suffix(".tmp"),
        )
        os.replace(path.with_suffix(".tmp"), path)


@dataclass
class Bucket:
    """All cached clips of one size, in memory."""

    latents: torch.Tensor  # (k f c h w) float16
    thumbnails: torch.Tensor  # (k 3 64 64) uint8
    captions: list[str]
    targets: list[dict[str, float]]  # what each shows, see `i2vgen.data.motion`; {} for the film


def load_cache(folder: str | Path, only_targets: list[str] = ()) -> list[Bucket]:
    """Read a cache folder into buckets by size, of clips that show nothing but `only_targets` if there are any.

    Clips without targets are those of the film, and go by that name.
    Raises ValueError if no clip is left.
    """
    shards: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).glob("clips-*.safetensors")):
        shards.setdefault(path.stem.split("-")[1], []).append(path)
    if not shards:
        raise ValueError(f"data.cache_dir: no clips in {folder}; make them with python -m i2vgen.train.cache")
    buckets = []
    for paths in shards.values():
        tensors = [load_file(path) for path in paths]
        texts = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        captions = [c for text in texts for c in text["captions"]]
        targets = [t for text in texts for t in text["targets"]]
        keep = [i for i, t in enumerate(targets) if not only_targets or set(t or {"film"}) <= set(only_targets)]
        if keep:
            latents, thumbnails = (torch.cat([t[name] for t in tensors])[keep] for name in ("latents", "thumbnails"))
            buckets.append(Bucket(latents, thumbnails, [captions[i] for i in keep], [targets[i] for i in keep]))
    if not buckets:
        raise ValueError(f"denoiser.only_targets: no clip in {folder} shows only {', '.join(only_targets)}")
    return buckets


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print("usage: python -m i2vgen.train.cache CONFIG.toml [section.key=value ...]")
        return 2
    config = load_config(arguments[0], arguments[1:])
    cv2.setNumThreads(1)
    for split in ("test", "train"):
        make_cache(config.data, config.denoiser.vae_dir, config.run.seed, split)
    return 0


if __name__ == "__main__":
    sys.exit(main())

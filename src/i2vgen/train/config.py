"""Training configurations: dataclasses filled from a TOML file and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2vgen.data.clip_config import ClipDataConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class DataConfig:
    """Where the clips come from and what share each kind has."""

    pack_dir: str = ""  # folder with photos.jsonl, sprites.jsonl, film/shots.jsonl
    cache_dir: str = ""  # latents made ahead by `python -m i2vgen.train.cache`; "" makes clips on the fly
    num_clips: int = 6000  # clips in the cache
    num_val_clips: int = 64
    sizes: list[list[int]] = field(default_factory=lambda: [[128, 128], [224, 128], [128, 224]])  # (W, H)
    size_weights: list[float] = field(default_factory=lambda: [0.5, 0.3, 0.2])
    kind_weights: dict[str, float] = field(
        default_factory=lambda: {"camera": 0.62, "sprite": 0.18, "ambient": 0.05, "film": 0.15}
    )
    num_frames: int = 16
    fps: int = 8
    clips: ClipDataConfig = field(default_factory=ClipDataConfig)  # videos and pictures, where there is no cache
    val_sources: list[str] = field(default_factory=list)  # as clips.sources, never trained on


@dataclass
class OptimConfig:
    num_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 5e-4
    final_learning_rate: float = 2e-5
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    max_grad_norm: float = 1.0
    accumulation: int = 1  # parts that each process's rows are run in
    spatial_scale: float = 1.0  # learning rate of spatial layers that come from an image model, as a share
    ema_decay: float = 0.999


@dataclass
class RunConfig:
    dir: str = "runs/run"
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 200
    keep_checkpoints: int = 2
    sample_every: int = 0  # steps between sample videos; 0 = none
    max_minutes: float = 0.0  # stop (with a checkpoint) after this long; 0 = no limit
    dtype: str = "bfloat16"  # autocast dtype; "float32" turns autocast off
    device: str = "auto"
    strategy: str = "auto"  # how processes share the model: "ddp" (also "auto"), or "fsdp" for sharded weights
    gradient_checkpointing: bool = False
    init_from: str = ""  # component folder whose weights start the run


@dataclass
class VAEConfig:
    model: dict[str, Any] = field(default_factory=dict)  # PatchAutoencoder keyword arguments
    crop_size: int = 128
    kl_weight: float = 1e-4
    gradient_weight: float = 0.5


@dataclass
class TowersConfig:
    text: dict[str, Any] = field(default_factory=dict)  # CLIPTextConfig keyword arguments
    vision: dict[str, Any] = field(default_factory=dict)  # CLIPVisionConfig keyword arguments
    vocab_size: int = 2048
    motion_weight: float = 1.0


@dataclass
class DenoiserConfig:
    stage: str = "base"  # "base" | "refine"
    model: dict[str, Any] = field(default_factory=dict)  # I2VGenXLUNet keyword arguments
    vae_dir: str = ""
    towers_dir: str = ""
    prior_dir: str = ""  # of the motion prior, for a model that has one
    object_prior_dir: str = ""
    # frames per clip -> share of the batches; optim.batch_size counts clips of 4 frames, longer ones come in fewer
    frame_weights: dict[str, float] = field(default_factory=lambda: {"4": 0.45, "8": 0.35, "16": 0.15, "1": 0.05})
    only_targets: list[str] = field(default_factory=list)  # train on clips that show nothing but these; [] = all
    max_timestep: int = 999  # the refiner sees 0..599 only
    timestep_power: float = 1.0  # t = max * u^power; below 1 favours high noise
    use_text: bool = True  # image2video has none
    spatial_from: str = ""  # SD 2.1 UNet (diffusers folder, or LDM checkpoint) that the spatial layers start from
    num_samples: int = 4
    sample_steps: int = 20
    sample_guidance: float = 1.0
    offset_noise: float = 0.1
    text_dropout: float = 0.1
    image_dropout: float = 0.05
    both_dropout: float = 0.05


@dataclass
class AdapterConfig:
    """A LoRA beside the frozen weights of `run.init_from`, in place of training these."""

    rank: int = 0  # 0 trains the whole UNet
    alpha: float = 0.0  # strength is alpha / rank; 0 means alpha = rank
    dropout: float = 0.0
    # ends of layer names, or patterns of whole names such as "*temp_attentions*to_q"
    target_modules: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    init_from: str = ""  # adapter file to go on from, with the same rank and modules


@dataclass
class TrainConfig:
    task: str = "base"  # "vae" | "towers" | "motion_prior" | "object_prior" | "denoiser"
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    lora: AdapterConfig = field(default_factory=AdapterConfig)


def load_config(path: str | Path, overrides: list[str] = ()) -> TrainConfig:
    """Read a TOML config; `overrides` are `section.key=value` with TOML values (strings may go unquoted).

    Raises ValueError naming the key and the nearest known one if a key is unknown, or the key and the
    value if the value is of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config: no file at {path}")
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config: {path} is not valid TOML: {error}") from None
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"override {override!r}: write it as section.key=value")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text
        section = values
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return _fill(TrainConfig, values, "")


def _fill(cls: type, values: dict[str, Any], prefix: str) -> Any:
    config = cls()
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known keys: {', '.join(known)}"
            raise ValueError(f"config: unknown key {prefix}{key}{hint}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ValueError(f"config: {prefix}{key} is a section, got {value!r}")
            value = _fill(type(current), value, f"{prefix}{key}.")
        elif isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif type(value) is not type(current):
            raise ValueError(f"config: {prefix}{key} must be {type(current).__name__}, got {value!r}")
        setattr(config, key, value)
    return config

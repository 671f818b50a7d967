"""How long a run will take and how much memory it needs, before it starts.

Each network is run once on torch's "meta" device, which computes shapes and nothing else, and counted:

    multiply_adds   of convolutions, matrix products and attention
    written_bytes   all results of all operations
    peak_bytes      results alive at the same time, at most
    num_operations

The speed of the device is measured for a fraction of a second: one matrix product, one pointwise pass. Then

    seconds = multiply_adds / (MATMUL_SHARE x products per second) + written_bytes / pass bytes per second
              + num_operations x seconds per operation
    memory  = weights + the largest peak of any network + the frames in float32 + the libraries

Networks: base UNet (steps x 2 with guidance), refiner UNet (evaluations x windows x 2 with guidance, and those of
an inversion once), VAE
(image, decoded base video, encoded and decoded refined video). The text and image towers count as weights.
It is an estimate, meant to be within a factor of 2: other work on the machine, and convolutions that run far
better or worse than matrix products, move it.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from i2vgen.checkpoints.components import plan
from i2vgen.checkpoints.folders import ReleasedFolder
from i2vgen.checkpoints.released import RELEASED
from i2vgen.pipelines.cascade import CascadePipeline
from i2vgen.pipelines.frames import frame_windows
from i2vgen.pipelines.joining import joined
from i2vgen.pipelines.loading import (
    FOREIGN_REFINERS,
    OUR_CLASSES,
    ModelError,
    folder_role,
    foreign_refine_defaults,
    parts_of_released,
    released_folder,
    resolve_folder,
    scheduler_fields,
    text_only_fields,
)
from i2vgen.pipelines.options import BaseOptions, RefineOptions
from i2vgen.pipelines.refine import VideoRefinePipeline
from i2vgen.pipelines.start import count_base, count_refine

MATMUL_SHARE = 0.7  # of the speed of a large matrix product, what convolutions and small products reach
LIBRARY_BYTES = 6e8  # torch and its kernels, with nothing loaded
HELD = ("vae", "text_encoder", "image_encoder", "unet")  # components with weights, of each stage
MEASURE_SECONDS = 0.12  # for each of the two measurements of speed


@dataclass(frozen=True)
class Cost:
    """What one pass through a network takes; costs add up, except for peaks."""

    multiply_adds: float = 0.0
    written_bytes: float = 0.0
    num_operations: float = 0.0
    peak_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.written_bytes + other.written_bytes,
            self.num_operations + other.num_operations,
            max(self.peak_bytes, other.peak_bytes),
        )

    def times(self, count: int) -> Cost:
        """The cost of `count` passes, one after the other."""
        return Cost(
            *(count * x for x in (self.multiply_adds, self.written_bytes, self.num_operations)),
            self.peak_bytes,
        )


@dataclass(frozen=True)
class Speed:
    """Of one device and dtype."""

    multiply_adds_per_second: float
    bytes_per_second: float
    seconds_per_operation: float


@dataclass(frozen=True)
class Estimate:
    seconds: float
    memory_bytes: float
    multiply_adds: float
    stages: dict[str, float]  # seconds of each


class _Attention(TorchFunctionMode):
    """Counts fused attention by its formula: on "meta" torch would write out the whole score matrix."""

    def __init__(self):
        super().__init__()
        self.multiply_adds = 0.0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key = args[:2]
        self.multiply_adds += 2 * query.numel() * key.shape[-2]
        return torch.empty_like(query)


class _Results(TorchDispatchMode):
    """Counts the products that operations take, and follows which of their results are alive."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = self.written = self.num_operations = 0
        self.multiply_adds = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.num_operations += 1
        if (flops := flop_registry.get(function.overloadpacket)) is not None:
            self.multiply_adds += flops(*args, **(kwargs or {}), out_val=result) / 2
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.live:
            return
        self.live[key] = storage.nbytes()
        self.written += storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.live.pop(key)


@torch.no_grad()
def count_cost(call: Callable[[], Any]) -> Cost:
    """Count one call that works on "meta" tensors; nothing is computed."""
    with _Attention() as attention, _Results() as results:
        call()
    multiply_adds = results.multiply_adds + attention.multiply_adds
    return Cost(multiply_adds, results.written, results.num_operations, results.peak)


def unet_cost(unet: torch.nn.Module, num_frames: int, height: int, width: int, dtype: torch.dtype) -> Cost:
    """One pass of such a UNet over latents (1 c num_frames height width), conditions not included."""
    return _unet_cost(*_network(unet), num_frames, height, width, dtype)


def vae_cost(vae: torch.nn.Module, height: int, width: int, dtype: torch.dtype) -> tuple[Cost, Cost]:
    """(encode, decode) of one frame of height x width pixels with such a VAE."""
    return _vae_cost(*_network(vae), height, width, dtype)


def _network(module: torch.nn.Module) -> tuple[type, str]:
    return type(module), json.dumps(dict(module.config), sort_keys=True, default=str)


def _on_meta(kind: type, config: str, dtype: torch.dtype) -> torch.nn.Module:
    with torch.device("meta"):
        module = kind.from_config(json.loads(config))
    return torch.nn.Module.to(module, dtype).eval()  # diffusers' own `to` warns about kept dtypes


@lru_cache(maxsize=64)
def _unet_cost(kind: type, config: str, num_frames: int, height: int, width: int, dtype: torch.dtype) -> Cost:
    unet = _on_meta(kind, config, dtype)
    channels, text_dim = unet.config.in_channels, unet.config.cross_attention_dim
    empty = partial(torch.empty, device="meta", dtype=dtype)
    latents = empty(1, channels, num_frames, height, width)
    text, image = empty(1, 77, text_dim), empty(1, 1, text_dim)
    conditions = unet.encode_conditions(num_frames, text, image, latents[:, :, 0], empty(1))
    return count_cost(lambda: unet(latents, empty(1), conditions=conditions))


@lru_cache(maxsize=64)
def _vae_cost(kind: type, config: str, height: int, width: int, dtype: torch.dtype) -> tuple[Cost, Cost]:
    vae = _on_meta(kind, config, dtype)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = -(-height // factor), -(-width // factor)
    pixels = torch.empty(1, 3, height * factor, width * factor, device="meta", dtype=dtype)
    latents = torch.empty(1, vae.config.latent_channels, height, width, device="meta", dtype=dtype)
    return count_cost(lambda: vae.encode(pixels)), count_cost(lambda: vae.decode(latents))


def skeleton(model: str) -> CascadePipeline:
    """The cascade of a model with its networks on "meta": sizes and defaults, but no weights are read.

    As `load_cascade` it takes base models, refiners alone, and folders of ModelScope and VGen. Its
    `tower_parameters` counts the parameters of text and image tower, as far as these are not among its networks.
    Raises ModelError as loading does.
    """
    if (released := released_folder(model)) is not None:
        return _released_skeleton(released)
    folder = resolve_folder(model, CascadePipeline, {})
    index = json.loads((folder / "model_index.json").read_text())
    cls = VideoRefinePipeline if folder_role(folder) == "refiner" else CascadePipeline
    is_foreign = index.get("_class_name") in FOREIGN_REFINERS
    parts: dict[str, Any] = dict.fromkeys(cls._get_signature_keys(cls)[0])
    for name in {"vae", "unet", "scheduler", "refine_vae", "refine_unet", "refine_scheduler"} & parts.keys():
        entry = index.get(name) or (None, None)
        if entry[1] is not None:
            parts[name] = _empty_part(folder / name, entry[1], is_base=not is_foreign)
    defaults = {name: index.get(name) for name in ("base_defaults", "refine_defaults")}
    if cls is CascadePipeline:
        cascade = CascadePipeline(**parts, **defaults)
    else:
        own = foreign_refine_defaults(folder) if is_foreign else defaults["refine_defaults"]
        cascade = joined(None, VideoRefinePipeline(**parts, refine_defaults=own))
    towers = ("text_encoder", "image_encoder", "refine_text_encoder", "refine_image_encoder")
    cascade.tower_parameters = sum(_saved_parameters(folder / name) for name in towers)
    return cascade


def _released_skeleton(folder: ReleasedFolder) -> CascadePipeline:
    try:
        networks = {component.name: component.empty() for component in plan(folder)}
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model: {error}") from error
    if all(RELEASED[variant].is_refiner for variant in folder.variants()):
        return joined(None, VideoRefinePipeline(**parts_of_released(VideoRefinePipeline, folder, networks)))
    return CascadePipeline(**parts_of_released(CascadePipeline, folder, networks))


def _empty_part(path: Path, class_name: str, is_base: bool) -> Any:
    """A network on "meta", or a scheduler."""
    kind = OUR_CLASSES.get(class_name) or getattr(diffusers, class_name)
    if issubclass(kind, torch.nn.Module):
        config = kind.load_config(path)
        with torch.device("meta"):
            return kind.from_config(config, **text_only_fields(config))
    return kind.from_config(kind.load_config(path), **scheduler_fields(kind, path, is_base))


def _saved_parameters(folder: Path) -> int:
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), "pt") as weights:
            count += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return count


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """Under half a second: a matrix product, a pass over a feature map, and many tiny operations."""
    size = 4096 if device.type == "cuda" else 768
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    num_bytes = 2**26 if device.type == "cuda" else 2**23
    block = torch.zeros(num_bytes // dtype.itemsize, device=device, dtype=dtype)
    tiny = torch.zeros(16, device=device, dtype=dtype)
    product = _seconds(lambda: matrix @ matrix, device)
    passed = _seconds(lambda: F.silu(block), device)
    small = _seconds(lambda: F.silu(tiny), device)
    return Speed(size**3 / product, block.nbytes / passed, small)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type in ("cuda", "mps"):
            getattr(torch, device.type).synchronize()

    call()
    wait()
    begin, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begin < MEASURE_SECONDS:
        call()
        count += 1
        if count % 16 == 0:
            wait()
    wait()
    return (time.perf_counter() - begin) / count


def estimate(
    cascade: CascadePipeline,
    base: BaseOptions | None,
    refine: RefineOptions | None,
    device: torch.device,
    dtype: torch.dtype,
    num_frames: int | None = None,
    refine_strength: float | None = None,
) -> Estimate:
    """Estimate a run of the stages whose options are given.

    `cascade` is a loaded one or a `skeleton`. `num_frames` is that of the video when there is no base stage.
    """
    num_frames = base.num_frames if base is not None else num_frames
    stages: dict[str, Cost] = {}
    parts = [getattr(cascade, f"{stage}{name}") for stage in ("", "refine_") for name in HELD]
    weights = sum(_parameters(part) for part in parts) + getattr(cascade, "tower_parameters", 0)
    if base is not None:
        factor = cascade.base.vae_scale_factor
        one = unet_cost(cascade.unet, base.num_frames, base.height // factor, base.width // factor, dtype)
        steps = count_base(cascade.scheduler, base)
        stages["base"] = one.times(steps * (2 if base.guidance_scale > 1 else 1))
        encode, decode = vae_cost(cascade.vae, base.height, base.width, dtype)
        stages["decode"] = encode + decode.times(num_frames)
    if refine is not None:
        factor = cascade.refiner.vae_scale_factor
        height, width = cascade.refiner.padded_size(refine.height, refine.width)
        windows = frame_windows(num_frames, refine.window_frames, refine.window_overlap)
        one = unet_cost(cascade.refine_unet, windows[0][1] - windows[0][0], height // factor, width // factor, dtype)
        start = cascade.refiner.start_timestep(refine, refine_strength)
        share = cascade.refiner.share(start, refine_strength)
        inverted, steps = count_refine(cascade.refine_scheduler, refine, start, share)
        evaluations = (inverted + steps * (2 if refine.guidance_scale > 1 else 1)) * len(windows)
        encode, decode = vae_cost(cascade.refiner.vae, refine.height, refine.width, dtype)
        stages["refine"] = one.times(evaluations)
        stages["decode"] = stages.get("decode", Cost()) + (encode + decode).times(num_frames)

    speed = measure_speed(device, dtype)
    seconds = {
        name: cost.multiply_adds / (MATMUL_SHARE * speed.multiply_adds_per_second)
        + cost.written_bytes / speed.bytes_per_second
        + cost.num_operations * speed.seconds_per_operation
        for name, cost in stages.items()
    }
    final = refine or base
    chunk = max(options.decode_chunk_size for options in (base, refine) if options is not None)
    peaks = [cost.peak_bytes * (min(chunk, num_frames) if name == "decode" else 1) for name, cost in stages.items()]
    frames = 3 * num_frames * final.height * final.width * 4
    memory = weights * dtype.itemsize + max(peaks) + 3 * frames + LIBRARY_BYTES
    return Estimate(sum(seconds.values()), memory, sum(c.multiply_adds for c in stages.values()), seconds)


def _parameters(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())

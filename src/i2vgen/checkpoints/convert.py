"""Converting checkpoints between VGen's or ModelScope's files and diffusers' folders, tensor by tensor."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from i2vgen.checkpoints.detect import Detected
from i2vgen.checkpoints.errors import CheckpointError, TensorError
from i2vgen.checkpoints.jobs import Job, Jobs, jobs_to_diffusers, jobs_to_vgen, looks_like_a_model
from i2vgen.checkpoints.reading import existing_path, open_tensors
from i2vgen.checkpoints.tensor_source import TensorSource
from i2vgen.checkpoints.writing import (
    MAX_SHARD_SIZE,
    Spec,
    in_dtype,
    num_bytes,
    parse_size,
    replacing,
    write_safetensors,
    write_vgen_pth,
)

LAYOUTS = {"diffusers": jobs_to_diffusers, "vgen": jobs_to_vgen}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")
SMALL_FILES_BYTES = 32 * 1000**2
# progress(stage "convert" or "verify", bytes done, bytes in all)
ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Converted:
    """found: what the source was. networks: tensors written, by name. size: bytes of weights.
    left_out: what of the source the result does not have."""

    path: Path
    found: Detected
    networks: dict[str, int]
    size: int
    seconds: float
    left_out: list[str]


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    to: str = "diffusers",
    force: bool = False,
    progress: ProgressCallback | None = None,
    dtype: torch.dtype | str | None = None,
    source: str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Converted:
    """Write the checkpoint `src`, a file or a folder, in another layout at `dst`, and compare every tensor after.

    to: "diffusers" writes a folder: a component's for a file with one network, a whole pipeline's for a folder of
        ModelScope or VGen. "vgen" writes one `.pth` from a diffusers UNet (of a pipeline folder, its `unet`), or a
        `.ckpt` from a VAE.
    force: replace what is at `dst`. dtype: of the floating-point tensors; None or "keep" leaves them.
    source: which of several variants a UNet is whose keys are the same, as `load_unet` takes it.
    max_shard_size: bytes, or such as "5GB", above which a diffusers network gets several files.

    One tensor is in memory at a time. `dst` appears when it is complete and verified; after an error or an
    interruption nothing is left and an older one is as it was. Raises CheckpointError for a source that cannot be
    converted, damaged weights, a destination that exists, and a disk without the room.
    """
    begin = time.monotonic()
    if to not in LAYOUTS:
        raise CheckpointError(f"to {to!r} is unknown: use {' or '.join(LAYOUTS)}")
    chosen, shard_size = parse_dtype(dtype), parse_size(max_shard_size)
    src = existing_path(src)
    target = check_destination(src, dst, to, force)
    todo = LAYOUTS[to](src, source)
    with ExitStack() as stack:
        work = []
        for job in todo.jobs:
            tensors = stack.enter_context(open_tensors(job.path))
            try:
                work.append(_Work(job, tensors, job.specs(tensors, chosen)))
            except CheckpointError as error:
                raise CheckpointError(f"{job.path}: {error}") from None
        total = sum(part.size for part in work)
        check_room(target, total)
        report = progress or (lambda stage, done, total: None)
        with replacing(target) as temporary:
            try:
                if to == "diffusers":
                    _write_folder(temporary, todo, work, shard_size, report, total)
                else:
                    _write_file(temporary, work[0], report, total)
            except CheckpointError as error:
                raise CheckpointError(f"{src}: {error}") from None
            except OSError as error:
                reason = error.strerror or error
                raise OSError(
                    f"{target}: could not be written ({reason}): make room, or choose another disk"
                ) from error
    return Converted(
        target,
        todo.found,
        {part.job.name or todo.found.kind: len(part.specs) for part in work},
        total,
        time.monotonic() - begin,
        todo.left_out,
    )


@dataclass(frozen=True)
class _Work:
    job: Job
    tensors: TensorSource
    specs: dict[str, Spec]

    @property
    def size(self) -> int:
        return sum(map(num_bytes, self.specs.values()))

    @property
    def step(self) -> int:
        step = self.tensors.metadata.get("step", self.tensors.metadata.get("global_step", 0))
        return step if isinstance(step, int) else 0


def _write_folder(
    folder: Path, todo: Jobs, work: list[_Work], shard_size: int, report: ProgressCallback, total: int
) -> None:
    done = 0
    for part in work:
        place = folder / part.job.name
        counted = _counted(part, report, done, total)
        metadata = {"step": str(part.step)} if part.step else {}
        with _named_as_in_source(part.job):
            write_safetensors(place, part.specs, counted, part.job.stem, shard_size, metadata)
        if part.job.write_config is not None:
            part.job.write_config(place)
        done += part.size
    todo.finish(folder)
    done = 0
    for part in work:
        _verify(folder / part.job.name, part, report, done, total)
        done += part.size


def _write_file(path: Path, part: _Work, report: ProgressCallback, total: int) -> None:
    with _named_as_in_source(part.job):
        write_vgen_pth(path, part.specs, _counted(part, report, 0, total), part.step)
    _verify(path, part, report, 0, total)


@contextmanager
def _named_as_in_source(job: Job) -> Iterator[None]:
    """What is wrong with a tensor is said of it as the source calls it."""
    try:
        yield
    except TensorError as error:
        name = job.name_in_source(error.key)
        becomes = f" ({error.key} in the result)" if name != error.key else ""
        raise CheckpointError(f"{name}{becomes}: {error.reason}") from None


def _counted(part: _Work, report: ProgressCallback, done: int, total: int) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in part.job.stream(part.tensors):
        yield key, tensor
        done += num_bytes(part.specs[key])
        report("convert", done, total)


def _verify(path: Path, part: _Work, report: ProgressCallback, done: int, total: int) -> None:
    """Read what was written and compare it with the source, bit by bit."""
    with open_tensors(path) as written:
        if {key: (written.shapes[key], written.dtypes[key]) for key in written} != part.specs:
            raise CheckpointError("what was written has other keys, shapes or dtypes: the disk may be failing")
        for key, tensor in part.job.stream(part.tensors):
            expected = in_dtype(key, tensor, part.specs[key][1])
            if not torch.equal(written.read(key), expected):
                raise CheckpointError(f"{key}: what was written differs from the source: the disk may be failing")
            done += num_bytes(part.specs[key])
            report("verify", done, total)


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "keep":
        return None
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise CheckpointError(f"dtype {dtype!r}: use keep, {', '.join(DTYPES)}")
    return chosen


def check_destination(src: Path, dst: str | os.PathLike, to: str, force: bool) -> Path:
    """The absolute path to write to. Raises CheckpointError for one that must not, or cannot, be written to."""
    try:
        target = Path(dst).expanduser().resolve()
        is_there = target.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{str(dst)[:160]!r} cannot be used as a path ({error}): choose another") from error
    origin = src.resolve()
    if target == origin or target in origin.parents:
        raise CheckpointError(f"{target}: holds the source: choose another place")
    if to == "vgen" and target.suffix not in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{target}: for VGen a .pth of the UNet is written, and VAE and towers are not part of it: "
            "give a name that ends in .pth"
        )
    if to == "diffusers" and target.suffix in (*PICKLE_SUFFIXES, ".safetensors", ".bin"):
        raise CheckpointError(f"{target}: a folder is written: leave {target.suffix} out")
    if is_there and target.is_dir() == (to == "vgen"):
        kind = "directory" if target.is_dir() else "file"
        raise CheckpointError(f"{target} is a {kind}: choose another name")
    is_empty = is_there and target.is_dir() and not any(target.iterdir())
    if is_there and not is_empty and not force:
        raise CheckpointError(f"{target} exists: choose another name, or replace it with --force")
    if is_there and target.is_dir() and not is_empty and not looks_like_a_model(target):
        raise CheckpointError(f"{target} holds other things than a model: it is not replaced, choose another name")
    ancestor = _existing_ancestor(target)
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise CheckpointError(f"{target}: no permission to write in {ancestor}: choose another place")
    return target


def check_room(target: Path, size: int) -> None:
    """Raise CheckpointError if the disk of `target` has no room for `size` bytes of weights and small files."""
    ancestor = _existing_ancestor(target)
    free = shutil.disk_usage(ancestor).free
    if free < size + SMALL_FILES_BYTES:
        raise CheckpointError(
            f"{target}: needs {(size + SMALL_FILES_BYTES) / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: make room, "
            "choose another disk, or halve it with --dtype float16"
        )


def _existing_ancestor(target: Path) -> Path:
    return next(folder for folder in target.parents if folder.exists())

"""The processes of a run: one, or as many as torchrun started, sharing each batch and each step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ModelMixin
from torch import nn

CPU = torch.device("cpu")
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass(frozen=True)
class Workers:
    """This process among its fellows."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Which rows of a batch of all processes are this one's. Raises ValueError if they cannot share evenly."""
        if batch_size % self.count:
            raise ValueError(
                f"optim.batch_size: a batch of {batch_size} cannot be shared evenly by {self.count} processes; "
                "use a multiple of their number"
            )
        share = batch_size // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over the processes that have it."""
        if self.count == 1:
            return values
        gathered: list[dict[str, float] | None] = [None] * self.count
        dist.all_gather_object(gathered, values)
        names = list(dict.fromkeys(name for one in gathered for name in one))
        return {n: sum(g[n] for g in gathered if n in g) / sum(n in g for g in gathered) for n in names}

    def any(self, flag: bool) -> bool:
        """True on every process if it is on one."""
        if self.count == 1:
            return flag
        total = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(total)
        return total.item() > 0

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()


def start_workers(device: str = "auto") -> Workers:
    """Join the processes that torchrun started, or be the only one. `device` is "auto", "cpu", "cuda" or "cuda:1".

    Raises ValueError for a device that is not there.
    """
    has_cuda = torch.cuda.is_available()
    kind = torch.device("cuda" if has_cuda else "cpu") if device == "auto" else torch.device(device)
    if kind.type == "cuda" and not has_cuda:
        raise ValueError(f"run.device {device!r}: no CUDA device on this machine; use auto or cpu")
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Workers(device=kind)
    if kind.type == "cuda":
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(kind)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    return Workers(dist.get_rank(), dist.get_world_size(), kind)


def stop_workers() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class Step(nn.Module):
    """The loss of a task as a module, so that wrappers for many processes see one forward pass."""

    def __init__(self, task: Any):
        super().__init__()
        self.task, self.model = task, task.model

    def forward(self, batch: Any, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        return self.task.loss(batch, step)


def share_model(task: Any, workers: Workers, strategy: str, dtype: torch.dtype) -> nn.Module:
    """The task's step, ready for these processes: replicas (DDP) or shards of every block (FSDP2).

    `dtype` is that of computation in shards; the weights that are trained stay float32.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"run.strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    task.model.to(workers.device)
    if workers.count == 1:
        return Step(task)
    if strategy == "fsdp":
        _shard(task.model, dtype)
        return Step(task)
    devices = [workers.device.index] if workers.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(Step(task), device_ids=devices)


def _shard(model: nn.Module, dtype: torch.dtype) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in list(model.modules()):
        if type(module).__name__ in model.sharded_blocks:
            fully_shard(module, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    for name in model.forward_methods:
        register_fsdp_forward_method(model, name)


def whole_model(model: nn.Module) -> nn.Module:
    """The model itself, or one gathered from its shards, on the CPU. To be called by all processes together."""
    if not any(hasattr(p, "to_local") for p in model.parameters()):
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from i2vgen.train.lora import copy_adapters

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() > 0:
        return model
    kind = next(k for k in type(model).__mro__[1:] if issubclass(k, ModelMixin))  # sharding made a class of its own
    with torch.device("meta"):
        whole = kind.from_config(model.config)
        copy_adapters(model, whole)
    whole.load_state_dict(weights, assign=True)
    return whole


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that this process holds; other tensors as they are."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def split_rows(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """A batch cut into `parts` of nearly equal rows, each with its share of them. Tensors, lists, and dicts or
    tuples of these, all with one row an item."""
    count = _num_rows(batch)
    if parts <= 1 or count <= 1:
        return [(batch, 1.0)]
    edges = [round(i * count / min(parts, count)) for i in range(min(parts, count) + 1)]
    return [(_take(batch, a, b), (b - a) / count) for a, b in pairwise(edges)]


def _num_rows(batch: Any) -> int:
    if isinstance(batch, dict):
        return _num_rows(next(iter(batch.values())))
    return _num_rows(batch[0]) if isinstance(batch, tuple) else len(batch)


def _take(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, dict):
        return {name: _take(value, start, stop) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_take(value, start, stop) for value in batch)
    return batch[start:stop]


def to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(to_device(value, device) for value in batch)
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch

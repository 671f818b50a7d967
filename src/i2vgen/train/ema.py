"""The running average of the trained weights, which is what a run exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from i2vgen.train.workers import local


class Average:
    """Exponential moving average of the parameters that are trained; sharded as they are."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0; early steps count for more."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [local(t) for t in self.tensors.values()]
        torch._foreach_lerp_(averages, [local(p.detach()) for p in self.parameters.values()], weight)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the block the model holds the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            weights, average = local(parameter.detach()), local(self.tensors[name])
            kept = average.clone()
            average.copy_(weights)
            weights.copy_(kept)

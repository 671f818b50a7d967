"""Cascades on a Ray cluster, each an actor with its own model, that `run_batch` uses side by side.

Pictures go to the actors and frames come back: reading, writing and results stay with the one who called, so that a
run can be resumed as any other, with or without Ray.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from i2vgen.pipelines.cascade import CascadeOutput, CascadePipeline
from i2vgen.pipelines.facts import ModelFacts

MAX_RETRIES = 1  # of what an actor had in hand when it died


class _Actor:
    def __init__(self, load: Callable[[], CascadePipeline]):
        self.cascade = load()

    def facts(self) -> tuple[str, ModelFacts]:
        return self.cascade.model_name, ModelFacts.of(self.cascade)

    def sample(self, images: Sequence[Image.Image], request: dict[str, Any]) -> CascadeOutput:
        # The latents are of no use to a batch, and are not sent.
        return dataclasses.replace(self.cascade(list(images), **request), base_latents=None)


class RemoteCascade:
    """An actor's cascade: the facts of it here, its calls there."""

    def __init__(self, ray: Any, actor: Any, model_name: str, facts: ModelFacts):
        self.ray, self.actor, self.model_name, self.facts = ray, actor, model_name, facts
        self.base, self.refiner, self.sizes_for = facts.base, facts.refiner, facts.sizes_for
        self.has_text = facts.has_text

    def __call__(self, images: Sequence[Image.Image], progress: Any = None, **request: Any) -> CascadeOutput:
        """As a cascade is called; progress is not told. Raises what the cascade raised."""
        try:
            return self.ray.get(self.actor.sample.remote(images, request))
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None

    def interrupt(self) -> None:
        """End the actor, and with it the call that waits."""
        self.ray.kill(self.actor)


@contextmanager
def ray_cascades(count: int | None = None) -> Iterator[Callable[[Callable[[], CascadePipeline]], list[RemoteCascade]]]:
    """Gives a function that makes `count` cascades on the cluster out of `load`; they end with the block.

    `count` None: one for each GPU, or one where there is none. The cluster is that of RAY_ADDRESS, or one started on
    this machine. `load` runs in each actor. Raises ValueError without the package, or if the cluster has too little.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("--engine ray needs Ray: pip install 'i2vgen[ray]'") from error
    if count is not None and count < 1:
        raise ValueError(f"--replicas {count}: give at least 1")
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(logging_level=logging.WARNING, configure_logging=False, include_dashboard=False, log_to_driver=False)
    actors: list[Any] = []

    def start(load: Callable[[], CascadePipeline]) -> list[RemoteCascade]:
        resources = ray.cluster_resources()
        has_gpus = resources.get("GPU", 0) >= 1
        most = int(resources.get("GPU" if has_gpus else "CPU", 0))
        wanted = count or (most if has_gpus else 1)
        if wanted > most:
            kind = "GPUs" if has_gpus else "CPUs"
            raise ValueError(f"--replicas {wanted}: the Ray cluster has {most} {kind}, one is needed for each")
        needs = {"num_gpus": 1} if has_gpus else {"num_cpus": 1}
        made = ray.remote(_Actor).options(max_restarts=-1, max_task_retries=MAX_RETRIES, **needs)
        actors.extend(made.remote(load) for _ in range(wanted))
        return [RemoteCascade(ray, actor, *ray.get(actor.facts.remote())) for actor in actors]

    try:
        yield start
    finally:
        for actor in actors:
            ray.kill(actor)
        if is_ours:
            ray.shutdown()

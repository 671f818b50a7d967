"""`i2vgen serve`: the video service, its workers and its keys."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from i2vgen.cli import options as o
from i2vgen.cli.serve_keys import Data, Database, keys, require_packages
from i2vgen.cli.serve_keys import option as _option
from i2vgen.cli.sources import named_model, parse_loras, quiet_libraries
from i2vgen.server.config import Limits, ModelConfig, ServiceConfig

LISTEN, KEEP, WORK, BOUNDS, HOOKS = "Where it listens", "What is kept", "Workers", "Bounds", "Hooks"
LIMITS, DEFAULTS = Limits(), ServiceConfig()
HOURS, MEGABYTE = 3600.0, 1024 * 1024

serve = typer.Typer(invoke_without_command=True)
serve.add_typer(keys, name="keys")


@serve.callback()
def serve_videos(
    context: typer.Context,
    model: o.Model = "nano",
    refiner: o.Refiner = None,
    lora: o.Lora = None,
    name: Annotated[
        list[str] | None,
        _option("Name that callers say for the model; more than once for aliases.", "--name", panel=o.MODEL),
    ] = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: Annotated[
        list[str] | None,
        _option("auto, cpu, cuda:0, ...; once for each worker. \\[auto]", "--device", panel=WORK, show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        _option(
            "On one --device, on cuda one a GPU; 0: the API alone. \\[1]",
            panel=WORK,
            show_default=False,
        ),
    ] = None,
    workers_only: Annotated[
        bool, _option("Workers without the API, for a service that runs elsewhere.", "--workers-only", panel=WORK)
    ] = False,
    engine: Annotated[
        o.Engine, _option("local processes, or ray: Ray Serve.", "--engine", panel=WORK, metavar="NAME")
    ] = o.Engine.local,
    max_replicas: Annotated[int, _option("With ray, at most; a GPU each.", panel=WORK)] = DEFAULTS.max_replicas,
    min_replicas: Annotated[int, _option("With ray, at least.", panel=WORK)] = DEFAULTS.min_replicas,
    threads: Annotated[int, _option("CPU threads of each worker; 0: shared evenly.", panel=WORK)] = 0,
    batch_size: Annotated[int, _option("Jobs of one shape made together.", panel=WORK)] = 1,
    lease: Annotated[
        float, _option("Seconds of silence after which a worker's jobs go to others.", panel=WORK)
    ] = DEFAULTS.lease_seconds,
    drain: Annotated[
        float, _option("Seconds that jobs in hand have to finish after SIGTERM.", panel=WORK)
    ] = DEFAULTS.drain_seconds,
    host: Annotated[str, _option("Address; beyond this machine keys are needed.", panel=LISTEN)] = "127.0.0.1",
    port: Annotated[int, _option("Port.", panel=LISTEN, min=0, max=65535)] = DEFAULTS.port,
    allowed_host: Annotated[
        list[str] | None, _option("Host name under which the service is called; repeatable.", panel=LISTEN)
    ] = None,
    cors_origin: Annotated[
        list[str] | None, _option("Origin of a page that may call from a browser; repeatable.", panel=LISTEN)
    ] = None,
    no_keys: Annotated[
        bool, _option("Let anyone who reaches the port make videos.", "--no-keys", panel=LISTEN)
    ] = False,
    metrics: Annotated[bool, _option("Serve /metrics for Prometheus.", panel=LISTEN)] = True,
    data: Data = DEFAULTS.data,
    database: Database = None,
    retention_hours: Annotated[
        float, _option("Finished videos are deleted after so long; 0: never.", panel=KEEP)
    ] = LIMITS.retention_seconds / HOURS,
    max_data_gb: Annotated[float, _option("Most that videos may take; the oldest go. 0: no bound.", panel=KEEP)] = 0.0,
    max_body_mb: Annotated[float, _option("Largest request.", panel=BOUNDS)] = LIMITS.max_body_bytes / MEGABYTE,
    max_image_pixels: Annotated[int, _option("Largest picture.", panel=BOUNDS)] = LIMITS.max_image_pixels,
    max_prompt: Annotated[int, _option("Longest text, in characters.", panel=BOUNDS)] = LIMITS.max_prompt_characters,
    max_frames: Annotated[int, _option("Most frames of a video.", panel=BOUNDS)] = LIMITS.max_frames,
    max_steps: Annotated[int, _option("Most steps of a stage.", panel=BOUNDS)] = LIMITS.max_steps,
    max_side: Annotated[int, _option("Longest side of a video, in pixels.", panel=BOUNDS)] = LIMITS.max_side,
    max_queued: Annotated[int, _option("Jobs that may wait, of all keys.", panel=BOUNDS)] = LIMITS.max_queued,
    max_queued_per_key: Annotated[int, _option("Of one key.", panel=BOUNDS)] = LIMITS.max_queued_per_key,
    requests_per_minute: Annotated[
        int, _option("Calls of one key; 0: no bound.", panel=BOUNDS)
    ] = LIMITS.requests_per_minute,
    videos_per_minute: Annotated[
        int, _option("New videos of one key; 0: no bound.", panel=BOUNDS)
    ] = LIMITS.videos_per_minute,
    safety: Annotated[
        str | None, _option("module:function that may refuse a clip.", panel=HOOKS, show_default=False)
    ] = None,
    provenance: Annotated[
        str | None, _option("module:function whose dict is kept in each file.", panel=HOOKS, show_default=False)
    ] = None,
    sign: Annotated[
        str | None, _option("module:function that may rewrite each MP4.", panel=HOOKS, show_default=False)
    ] = None,
) -> None:
    """Serve videos over HTTP, in the shape of OpenAI's Videos API.

    Examples:

      i2vgen serve

      i2vgen serve keys add ana

      i2vgen serve --host 0.0.0.0 --model MODEL --device cuda:0 --device cuda:1
    """
    if context.invoked_subcommand is not None:
        return
    limits = Limits(
        max_body_bytes=round(max_body_mb * MEGABYTE),
        max_image_pixels=max_image_pixels,
        max_prompt_characters=max_prompt,
        max_frames=max_frames,
        max_steps=max_steps,
        max_side=max_side,
        max_queued=max_queued,
        max_queued_per_key=max_queued_per_key,
        requests_per_minute=requests_per_minute,
        videos_per_minute=videos_per_minute,
        retention_seconds=retention_hours * HOURS,
        max_data_bytes=round(max_data_gb * 1024 * MEGABYTE),
    )
    config = ServiceConfig(
        data=data,
        database=database,
        model=ModelConfig(
            model=named_model(model),
            refiner=None if refiner is None else named_model(refiner),
            dtype=dtype.value,
            loras=tuple(parse_loras(lora)),
            names=tuple(name or ()),
        ),
        limits=limits,
        devices=() if engine is o.Engine.ray else _devices(device, workers),
        threads=threads,
        batch_size=batch_size,
        lease_seconds=lease,
        drain_seconds=drain,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        host=host,
        port=port,
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        require_keys=False if no_keys else None,
        safety=safety,
        provenance=provenance,
        sign=sign,
        has_metrics=metrics,
    )
    require_packages()
    _check(config)
    _log_all()
    from i2vgen.server import run

    run.work(config) if workers_only else run.serve(config, engine.value)


def _log_all() -> None:
    """One line each on stderr, notices too, in place of the warnings alone that other commands print."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("i2vgen")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _devices(devices: list[str] | None, workers: int | None) -> tuple[str, ...]:
    if workers is not None and workers < 0:
        raise ValueError(f"--workers {workers}: give 0 or more")
    if devices and len(devices) > 1:
        if workers is not None and workers != len(devices):
            raise ValueError(f"--workers {workers}: {len(devices)} devices are named, each has one worker")
        return tuple(devices)
    device = devices[0] if devices else "auto"
    count = 1 if workers is None else workers
    return tuple(f"cuda:{index}" for index in range(count)) if device == "cuda" and count > 1 else (device,) * count


def _check(config: ServiceConfig) -> None:
    """What can be known before anything slow: the model is there, hooks are functions, keys where they are needed."""
    quiet_libraries()
    from i2vgen.pipelines.loading import folder_role
    from i2vgen.server.database import open_database
    from i2vgen.server.hooks import Hooks
    from i2vgen.server.keys import KeyStore

    if folder_role(config.model.model) == "refiner":
        raise ValueError(f"--model {config.model.model}: is a refiner alone; serve a model that animates pictures")
    Hooks.of(config)
    if config.is_loopback or config.require_keys is False:
        return
    engine = open_database(config.database_url)
    try:
        if not KeyStore(engine).is_used():
            raise ValueError(
                f"--host {config.host}: others can reach it, and there is no API key; make one with "
                "i2vgen serve keys add NAME, or let anyone in with --no-keys"
            )
    finally:
        engine.dispose()

"""Everything that the service can be told, with its limits; picklable, so that workers get the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from i2vgen.cli.sources import Lora

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class ModelConfig:
    """Which cascade each worker loads, and under which names callers may ask for it."""

    model: str = "nano"
    refiner: str | None = None
    dtype: str = "auto"
    loras: tuple[Lora, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def served_names(self) -> tuple[str, ...]:
        """The first is what answers say."""
        return self.names or (Path(self.model).name or self.model,)


@dataclass(frozen=True)
class Limits:
    """Bounds on requests and on what is kept. Sizes in bytes, times in seconds; 0 turns a bound off where it says."""

    max_body_bytes: int = 24 * MEGABYTE
    body_seconds: float = 60.0  # for a body to arrive
    max_image_pixels: int = 40_000_000
    max_prompt_characters: int = 2000
    max_frames: int = 128
    max_steps: int = 200
    max_side: int = 2048
    max_video_pixels: int = 150_000_000  # width x height x frames
    max_queued: int = 1000  # jobs waiting or running, of all keys
    max_queued_per_key: int = 100
    requests_per_minute: int = 1200  # of one key, all calls; 0: no bound
    videos_per_minute: int = 120  # of one key; 0: no bound
    sync_seconds: float = 600.0
    retention_seconds: float = 7 * 86400.0  # of a finished job; 0: for ever
    max_data_bytes: int = 0  # of all files; the oldest finished jobs go first; 0: no bound
    min_free_bytes: int = 256 * MEGABYTE  # new jobs are refused below this; local folders only


@dataclass(frozen=True)
class ServiceConfig:
    data: str = "i2vgen-service"  # folder, or the address of an fsspec store
    database: str | None = None  # SQLAlchemy URL; None: SQLite in the data folder
    model: ModelConfig = field(default_factory=ModelConfig)
    limits: Limits = field(default_factory=Limits)
    devices: tuple[str, ...] = ("auto",)  # one worker process for each
    threads: int = 0  # CPU threads of a worker; 0: torch's choice, shared among the workers
    batch_size: int = 1  # jobs of one shape sampled together
    lease_seconds: float = 30.0  # a worker that says nothing for so long has lost its jobs
    max_attempts: int = 2  # a job whose worker died is tried again so often in all
    drain_seconds: float = 120.0
    min_replicas: int = 1  # with Ray
    max_replicas: int = 4
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    require_keys: bool | None = None  # None: as soon as there is a key
    safety: str | None = None
    provenance: str | None = None
    sign: str | None = None
    has_metrics: bool = True

    def __post_init__(self) -> None:
        for part in (self, self.limits):
            for item in fields(part):
                value = getattr(part, item.name)
                if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
                    raise ValueError(f"{item.name} {value}: give 0 or more")
        for name in ("batch_size", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give at least 1")
        if self.lease_seconds < 1:
            raise ValueError(f"lease_seconds {self.lease_seconds}: give at least 1")

    @property
    def is_local_data(self) -> bool:
        return "://" not in self.data or self.data.startswith("file://")

    @property
    def data_folder(self) -> Path:
        """Of local data. Raises ValueError for a store elsewhere."""
        if not self.is_local_data:
            raise ValueError(f"data {self.data!r} is no local folder: name a database with --database")
        return Path(self.data.removeprefix("file://")).expanduser().absolute()

    @property
    def database_url(self) -> str:
        """For SQLAlchemy, with the driver that the extra installs."""
        if self.database is None:
            return f"sqlite:///{self.data_folder / 'jobs.sqlite3'}"
        for prefix in ("postgres://", "postgresql://"):
            if self.database.startswith(prefix):
                return "postgresql+psycopg://" + self.database.removeprefix(prefix)
        return self.database

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK


def worker_threads(config: ServiceConfig) -> int | None:
    """CPU threads for one worker; None leaves torch's choice."""
    if config.threads:
        return config.threads
    if len(config.devices) > 1:
        return max(1, (os.cpu_count() or 1) // len(config.devices))
    return None

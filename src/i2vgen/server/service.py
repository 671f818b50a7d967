"""What the routes share: the queue, the keys, the files, and the facts of the model."""

from __future__ import annotations

import time

from sqlalchemy.exc import SQLAlchemyError

from i2vgen.pipelines.facts import ModelFacts
from i2vgen.server.config import ServiceConfig
from i2vgen.server.database import open_database
from i2vgen.server.errors import ApiError
from i2vgen.server.facts import read_facts
from i2vgen.server.files import open_files
from i2vgen.server.jobs import JobStore
from i2vgen.server.keys import KeyStore
from i2vgen.server.metrics import Metrics
from i2vgen.server.rates import RateLimiter
from i2vgen.server.supervisor import count_workers

FACTS_SECONDS = 10.0  # for so long facts are not read again


class Service:
    """Opens the database and the files. Raises DatabaseError, ValueError."""

    def __init__(self, config: ServiceConfig):
        self.config = config
        self.engine = open_database(config.database_url)
        self.files = open_files(config.data)
        self.jobs, self.keys = JobStore(self.engine), KeyStore(self.engine)
        self.limiter = RateLimiter()
        self.metrics = Metrics(self)
        self.is_draining = False
        self._facts: tuple[float, ModelFacts | None] = (0.0, None)

    @property
    def model(self) -> str:
        return self.config.model.served_names[0]

    def facts(self) -> ModelFacts:
        """Raises ApiError 503 until a worker has loaded the model once."""
        when, facts = self._facts
        if facts is None or time.monotonic() - when > FACTS_SECONDS:
            facts = read_facts(self.engine, self.model)
            self._facts = (time.monotonic(), facts)
        if facts is None:
            raise ApiError(503, "the model is loading: try again in a moment", "model_loading", retry_after=3)
        return facts

    def num_workers(self) -> int:
        return count_workers(self.engine, self.config.lease_seconds, self.model)

    def not_ready_because(self) -> str | None:
        """None when new videos would be made."""
        if self.is_draining:
            return "the service is stopping"
        try:
            return None if self.num_workers() else "no worker is ready"
        except SQLAlchemyError:
            return "the database does not answer"

    def check_open(self) -> None:
        """Raises ApiError 503 where no new job is taken: stopping, or the disk is full."""
        if self.is_draining:
            raise ApiError(503, "the service is stopping: try again later", "stopping", retry_after=30)
        free = self.files.free_bytes()
        if free is not None and free < self.config.limits.min_free_bytes:
            raise ApiError(503, "the service's disk is full: try again later", "storage_full", retry_after=60)

    def close(self) -> None:
        self.engine.dispose()

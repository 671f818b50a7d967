"""The service from start to end: API and workers, drained when told to stop."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from typing import Protocol

import uvicorn

from i2vgen.server.app import create_app
from i2vgen.server.config import ServiceConfig
from i2vgen.server.service import Service
from i2vgen.server.supervisor import Supervisor

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
LAST_ANSWERS_SECONDS = 5  # for connections that are open when all workers have ended
MAX_CONNECTIONS = 1000


class Engine(Protocol):
    """What makes the videos: processes of this machine, or a Ray cluster."""

    def start(self) -> None: ...
    def drain(self, seconds: float) -> None: ...
    def stop(self) -> None: ...


class DrainingServer(uvicorn.Server):
    """At the first signal workers end what they have in hand while status calls go on; at the second all stops."""

    def __init__(self, config: uvicorn.Config, service: Service, engine: Engine):
        super().__init__(config)
        self.service, self.engine = service, engine

    def handle_exit(self, sig: int, frame) -> None:
        if self.service.is_draining:
            super().handle_exit(sig, frame)
            return
        self.service.is_draining = True
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        seconds = self.service.config.drain_seconds
        logger.info("stopping: videos in hand are finished first, at most for %.0f s", seconds)
        try:
            self.engine.drain(seconds)
        finally:
            self.should_exit = True


def serve(config: ServiceConfig, engine_name: str = "local") -> None:
    """Serve until a signal. Raises DatabaseError, ValueError before anything listens, OSError for a port in use."""
    service = Service(config)
    if engine_name == "ray":
        from i2vgen.server.ray_engine import RayEngine

        engine: Engine = RayEngine(config, service.engine, service.files)
    else:
        engine = Supervisor(config, service.engine, service.files)
    settings = uvicorn.Config(
        create_app(service),
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=32 * 1024,
    )
    server = DrainingServer(settings, service, engine)
    listening = _bound(config.host, config.port)  # a port in use is known before a model is loaded
    try:
        engine.start()
        logger.info("listening on http://%s:%d", config.host, listening.getsockname()[1])
        server.run(sockets=[listening])
    finally:
        service.is_draining = True
        engine.stop()
        service.close()
        listening.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port") from error
    return listening


def work(config: ServiceConfig) -> None:
    """Workers alone, for a service whose API runs elsewhere on the same database and store; until a signal."""
    service = Service(config)
    supervisor = Supervisor(config, service.engine, service.files)
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *arguments: told.set())
    try:
        supervisor.start()
        told.wait()
        supervisor.drain(config.drain_seconds)
    finally:
        supervisor.stop()
        service.close()

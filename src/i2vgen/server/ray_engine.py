"""Workers as a Ray Serve deployment, for when one machine is not enough: replicas come and go with the queue.

The queue in the database stays the truth. For each job that waits or runs, the API's process holds one call to the
deployment, a ticket: "take a job and make it". Ray Serve sees the tickets and keeps as many replicas as they need,
one GPU each; a replica claims its jobs itself, as any worker does. A ticket that is lost costs nothing, and the jobs of
a replica that is lost go back when their lease runs out.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from sqlalchemy import Engine

from i2vgen.server.config import ServiceConfig
from i2vgen.server.database import QUEUED, RUNNING
from i2vgen.server.files import FileStore
from i2vgen.server.supervisor import Supervisor

logger = logging.getLogger(__name__)

APPLICATION = "i2vgen"
POLL_SECONDS = 0.2
# Tickets above this many a replica would not bring more replicas.
TICKETS_PER_REPLICA = 8


class Replica:
    """One loaded model on one device of the cluster."""

    def __init__(self, config: ServiceConfig):
        from i2vgen.server.process import load_model
        from i2vgen.server.worker import Worker, worker_name

        logging.basicConfig(level=logging.INFO)
        cascade = load_model(config, "auto")
        self.worker = Worker(config, cascade, worker_name(), str(cascade.vae.device))

    def work(self) -> int:
        """Make the next batch; returns the number of jobs taken."""
        return self.worker.step()

    def check_health(self) -> None:
        if not self.worker.beating.is_alive():
            raise RuntimeError("the worker's heartbeat has ended")

    def __del__(self) -> None:
        worker = getattr(self, "worker", None)
        if worker is not None:
            worker.close()


def deployment(config: ServiceConfig, options: dict[str, Any] | None = None) -> Any:
    """The Ray Serve application of the workers; `options` of Ray override what is here."""
    from ray import serve

    return serve.deployment(
        name="worker",
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=config.drain_seconds,
        ray_actor_options={"num_gpus": 1} | (options or {}),
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "initial_replicas": max(1, config.min_replicas),
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 300.0,
        },
        health_check_period_s=10.0,
    )(Replica).bind(config)


class RayEngine:
    """Joins the Ray cluster named by RAY_ADDRESS, or starts one on this machine."""

    def __init__(self, config: ServiceConfig, engine: Engine, files: FileStore):
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ValueError("--engine ray needs Ray: pip install 'i2vgen[server,ray]'") from error
        if config.max_replicas < max(1, config.min_replicas):
            raise ValueError(f"--max-replicas {config.max_replicas}: give at least 1, and --min-replicas")
        self.ray, self.config = ray, config
        # Leases and retention are watched over here; it starts no process.
        self.keeper = Supervisor(config, engine, files)
        self.is_stopped = threading.Event()
        self.tickets: list[Any] = []
        self.dispatching = threading.Thread(target=self._dispatch, name="tickets", daemon=True)
        self.handle: Any = None

    def start(self) -> None:
        from ray import serve

        if not self.ray.is_initialized():
            self.ray.init(logging_level=logging.WARNING, configure_logging=False, include_dashboard=False)
        has_gpus = self.ray.cluster_resources().get("GPU", 0) >= 1
        options = {} if has_gpus else {"num_gpus": 0, "num_cpus": 1}
        if not has_gpus:
            logger.warning("the Ray cluster has no GPU: replicas work on CPUs")
        # The API stays in this process: Serve's own proxy is not needed.
        serve.start(proxy_location="Disabled")
        self.handle = serve.run(deployment(self.config, options), name=APPLICATION, route_prefix=None)
        self.keeper.start()
        self.dispatching.start()

    def drain(self, seconds: float) -> None:
        """No more tickets; those in hand are waited for."""
        self.is_stopped.set()
        self.dispatching.join()
        end = time.monotonic() + seconds
        counts = self.keeper.jobs.counts()
        while counts[RUNNING] and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            counts = self.keeper.jobs.counts()
        self.stop()

    def stop(self) -> None:
        self.is_stopped.set()
        self.keeper.stop()
        if self.handle is not None:
            from ray import serve

            self.handle = None
            serve.delete(APPLICATION)

    def _dispatch(self) -> None:
        """As many tickets as there are jobs, up to what replicas can be asked for."""
        most = TICKETS_PER_REPLICA * self.config.max_replicas
        while not self.is_stopped.wait(POLL_SECONDS):
            try:
                self.tickets = [ticket for ticket in self.tickets if not self._is_used(ticket)]
                counts = self.keeper.jobs.counts()
                wanted = min(most, counts[QUEUED] + counts[RUNNING])
                for _ in range(wanted - len(self.tickets)):
                    self.tickets.append(self.handle.work.remote())
            except Exception:
                logger.exception("tickets could not be given; it is tried again")
                self.is_stopped.wait(2.0)

    def _is_used(self, ticket: Any) -> bool:
        """Whether it was answered; one whose replica died was, and another is given while the job is there."""
        try:
            ticket.result(timeout_s=0)
        except TimeoutError:
            return False
        except Exception as error:
            logger.warning("a replica was lost or failed: %s", str(error).splitlines()[0] if str(error) else error)
        return True

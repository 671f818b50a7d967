"""Keeps workers alive: starts a process for each device, replaces one that dies, gives its jobs back."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from multiprocessing.connection import wait
from typing import Any

import psutil
from sqlalchemy import Engine, delete, select

from i2vgen.server.config import ServiceConfig
from i2vgen.server.database import now, workers, writing
from i2vgen.server.files import FileStore
from i2vgen.server.jobs import JobStore
from i2vgen.server.process import run_worker
from i2vgen.server.retention import sweep
from i2vgen.server.worker import this_machine, worker_name

logger = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 30.0  # a worker that lived so long is started again at once
SWEEP_SECONDS = 30.0
GONE_LEASES = 3  # workers that have said nothing for so many leases are forgotten


class _Slot:
    """One device: its process of the moment."""

    def __init__(self, device: str):
        self.device, self.process, self.name = device, None, ""
        self.started = self.next_start = 0.0
        self.pause = 1.0


class Supervisor:
    """`start` returns at once; `drain` waits. With no devices it only watches over leases and retention."""

    def __init__(self, config: ServiceConfig, engine: Engine, files: FileStore):
        self.config, self.engine, self.files, self.jobs = config, engine, files, JobStore(engine)
        self.context = multiprocessing.get_context("spawn")
        self.stopping = self.context.Event()
        self.slots = [_Slot(device) for device in config.devices]
        self.is_stopped = threading.Event()
        self.num_replaced = 0
        self.watching = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self.forget_dead()
        for slot in self.slots:
            self._spawn(slot)
        self.watching.start()

    def drain(self, seconds: float) -> None:
        """Let workers end what they have in hand, at most for `seconds`; what is left goes back into the queue."""
        self.stopping.set()
        end = time.monotonic() + seconds
        for slot in self.slots:
            if slot.process is not None:
                slot.process.join(max(0.0, end - time.monotonic()))
        self.stop()

    def stop(self) -> None:
        """End workers now; their jobs go back into the queue, and it does not count as a try."""
        self.stopping.set()
        self.is_stopped.set()
        if self.watching.is_alive() and threading.current_thread() is not self.watching:
            self.watching.join()
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.join()
                self._give_back(slot.name, is_refunded=True)
                slot.process = None

    def forget_dead(self) -> None:
        """Jobs of processes of this machine that are no more, as after `kill -9`, go back at once."""
        with self.engine.begin() as connection:
            rows = connection.execute(select(workers).where(workers.c.host == this_machine())).all()
        for row in rows:
            if not psutil.pid_exists(row.pid):
                self._give_back(row.id)

    def _spawn(self, slot: _Slot) -> None:
        slot.name, slot.started = worker_name(), time.monotonic()
        level = logging.getLogger("i2vgen").getEffectiveLevel()
        arguments = (self.config, slot.device, slot.name, self.stopping, level)
        slot.process = self.context.Process(target=run_worker, args=arguments, name=f"i2vgen-worker-{slot.device}")
        slot.process.start()

    def _watch(self) -> None:
        next_sweep = time.monotonic()
        while not self.is_stopped.is_set():
            sentinels = [slot.process.sentinel for slot in self.slots if slot.process is not None]
            wait(sentinels, timeout=0.3) if sentinels else self.is_stopped.wait(0.3)
            try:
                for slot in self.slots:
                    self._look_after(slot)
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + min(SWEEP_SECONDS, self.config.lease_seconds / 2)
                    self._sweep()
            except Exception:
                logger.exception("the supervisor goes on after an error")
                self.is_stopped.wait(1.0)

    def _look_after(self, slot: _Slot) -> None:
        if self.stopping.is_set():
            return
        if slot.process is None:
            if time.monotonic() >= slot.next_start:
                self._spawn(slot)
            return
        if slot.process.is_alive():
            return
        code = slot.process.exitcode
        slot.process.join()
        slot.process = None
        self.num_replaced += 1
        given_back = self._give_back(slot.name)
        is_steady = time.monotonic() - slot.started > STEADY_SECONDS or bool(given_back)
        slot.pause = 1.0 if is_steady else min(MAX_PAUSE_SECONDS, slot.pause * 2)
        slot.next_start = time.monotonic() + (0.0 if is_steady else slot.pause)
        logger.error(
            "worker on %s died (exit code %s) with %d jobs in hand; another starts in %.0f s",
            slot.device,
            code,
            len(given_back),
            max(0.0, slot.next_start - time.monotonic()),
        )

    def _give_back(self, name: str, is_refunded: bool = False) -> list[Any]:
        lost = self.jobs.release(name, self.config.max_attempts, is_refunded)
        with writing(self.engine) as connection:
            connection.execute(delete(workers).where(workers.c.id == name))
        return lost

    def _sweep(self) -> None:
        for job in self.jobs.release_expired(self.config.max_attempts):
            logger.warning("job %s: worker %s has said nothing; given back", job.id, job.worker)
        with writing(self.engine) as connection:
            silent = now(connection) - GONE_LEASES * self.config.lease_seconds
            connection.execute(delete(workers).where(workers.c.seen_at < silent))
        sweep(self.jobs, self.files, self.config.limits)


def count_workers(engine: Engine, lease_seconds: float, model: str) -> int:
    """Workers of the model that are ready, wherever they are."""
    with engine.begin() as connection:
        recent = workers.c.seen_at >= now(connection) - GONE_LEASES * lease_seconds
        return len(connection.execute(select(workers.c.id).where(recent, workers.c.model == model)).all())

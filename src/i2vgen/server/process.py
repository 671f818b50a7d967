"""A worker in a process of its own: loads the model once, works until it is told to stop."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from i2vgen.server.config import ServiceConfig, worker_threads

if TYPE_CHECKING:
    from i2vgen.pipelines.cascade import CascadePipeline

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
DATABASE_SECONDS = 2.0  # between two tries when it does not answer
NO_MODEL = 3  # exit code: the model could not be loaded
NICENESS = 5  # on a CPU, below the API, so that its answers do not wait


def load_model(config: ServiceConfig, device: str) -> CascadePipeline:
    """Raises ValueError for a model, refiner, adapter, device or dtype that is not to be had."""
    from i2vgen.cli.sources import open_cascade

    model = config.model
    return open_cascade(model.model, device, model.dtype, model.refiner, model.loras)


def run_worker(config: ServiceConfig, device: str, name: str, stopping: Event, log_level: int) -> None:
    """What the process does. It ends with its parent, however that ends; signals are the parent's to handle."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        import torch

        if threads := worker_threads(config):
            torch.set_num_threads(threads)
        cascade = load_model(config, device)
        if cascade.vae.device.type == "cpu" and hasattr(os, "nice"):
            os.nice(NICENESS)
        from i2vgen.server.worker import Worker

        worker = Worker(config, cascade, name, str(cascade.vae.device))
    except Exception as error:
        logger.error("worker on %s: the model could not be loaded: %s", device, error)
        sys.exit(NO_MODEL)
    logger.info("worker %s is ready on %s", name, cascade.vae.device)
    try:
        while not stopping.is_set():
            try:
                if worker.step() == 0:
                    stopping.wait(POLL_SECONDS)
            except SQLAlchemyError as error:
                logger.error("the database does not answer (%s); it is asked again", type(error).__name__)
                stopping.wait(DATABASE_SECONDS)
    finally:
        worker.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)

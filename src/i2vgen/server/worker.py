"""A worker: a loaded model that takes jobs from the queue and makes their videos, one batch after the other."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import Engine, delete, insert, update

from i2vgen.batch.run import described as described_error
from i2vgen.media import MediaError, write_video
from i2vgen.pipelines.cascade import CascadePipeline
from i2vgen.pipelines.facts import ModelFacts
from i2vgen.server.config import ServiceConfig
from i2vgen.server.database import now, open_database, workers, writing
from i2vgen.server.facts import publish_facts
from i2vgen.server.files import FileMissingError, open_files
from i2vgen.server.hooks import Hooks, RefusedError, described
from i2vgen.server.jobs import Job, JobStore
from i2vgen.server.pictures import write_spritesheet, write_thumbnail
from i2vgen.server.requests import VideoRequest

logger = logging.getLogger(__name__)

MIN_REPORT_SECONDS = 0.25
TYPES = {"video": "video/mp4", "thumbnail": "image/jpeg", "spritesheet": "image/jpeg"}
NAMES = {"video": "video.mp4", "thumbnail": "thumbnail.jpg", "spritesheet": "spritesheet.jpg"}
# Shares of a job's time, where both stages run with equally many steps: the refiner's frames are larger.
BASE_SHARE, REFINE_SHARE = 1.0, 3.0


class AbandonedError(Exception):
    """No job of the batch is ours any longer: all were deleted, or given to another worker."""


def worker_name() -> str:
    return f"{socket.gethostname()[:30]}-{uuid.uuid4().hex[:16]}"


def this_machine() -> str:
    """The space in which process ids mean something: containers may share a host's name."""
    try:
        return f"{socket.gethostname()[:200]}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()[:200]


class Worker:
    """`cascade` on one device; `name` is in the queue's rows while jobs are in hand."""

    def __init__(self, config: ServiceConfig, cascade: CascadePipeline, name: str, device: str = ""):
        self.config, self.cascade, self.name = config, cascade, name
        self.engine: Engine = open_database(config.database_url)
        self.jobs, self.files, self.hooks = JobStore(self.engine), open_files(config.data), Hooks.of(config)
        self.in_hand: list[str] = []
        self.is_closed = threading.Event()
        self.model = config.model.served_names[0]
        self.row = {"id": name, "host": this_machine(), "pid": os.getpid(), "device": device, "model": self.model}
        publish_facts(self.engine, self.model, ModelFacts.of(cascade))
        self._seen()
        self.beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.beating.start()

    def close(self) -> None:
        self.is_closed.set()
        self.beating.join()
        with writing(self.engine) as connection:
            connection.execute(delete(workers).where(workers.c.id == self.name))
        self.engine.dispose()

    def step(self) -> int:
        """Make the videos of the next batch; returns the number of jobs taken, 0 if none was waiting."""
        taken = self.jobs.claim(self.name, self.config.batch_size, self.config.lease_seconds, self.model)
        if taken:
            self.in_hand = [job.id for job in taken]
            try:
                self._make(taken)
            finally:
                self.in_hand = []
        return len(taken)

    def _beat(self) -> None:
        """Says that we live, and prolongs the leases of what is in hand, while a step may take long."""
        while not self.is_closed.wait(self.config.lease_seconds / 4):
            try:
                self._seen()
                if self.in_hand:
                    self.jobs.renew(self.name, self.in_hand, self.config.lease_seconds)
            except Exception:
                logger.exception("heartbeat failed; it is tried again")

    def _seen(self) -> None:
        """The row that says we are ready; it is made again where we were thought dead."""
        with writing(self.engine) as connection:
            time = now(connection)
            seen = update(workers).where(workers.c.id == self.name).values(seen_at=time)
            if connection.execute(seen).rowcount == 0:
                connection.execute(insert(workers).values(**self.row, seen_at=time))

    def _make(self, taken: Sequence[Job]) -> None:
        """Sample together, write each. Several that fail together are made one by one."""
        begin, done = time.monotonic(), None
        ready = []
        for job in taken:
            try:
                ready.append((job, self._picture(job)))
            except (FileMissingError, OSError) as error:
                self._fail(job, "input_missing", error)
        if not ready:
            return
        try:
            done = self._sample(ready)
        except AbandonedError:
            logger.info("jobs %s are no longer ours: stopped", [job.id for job in taken])
        except Exception as error:
            if len(ready) == 1:
                self._fail(ready[0][0], "generation_failed", error)
            else:
                logger.warning("a batch of %d failed (%s); its jobs are made one by one", len(ready), error)
                for job, _ in ready:
                    if self.jobs.held(self.name, [job.id]):
                        self._make([job])
        if done is not None:
            for index, (job, _) in enumerate(ready):
                self._write(job, done.frames[index], done.settings[index], done.fps)
            logger.info("%d videos in %.1f s", len(ready), time.monotonic() - begin)

    def _picture(self, job: Job) -> Image.Image:
        data = b"".join(self.files.read(job.id, "input.png"))
        return Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")

    def _sample(self, ready: Sequence[tuple[Job, Image.Image]]) -> Any:
        requests = [VideoRequest.of(job.request) for job, _ in ready]
        first = requests[0]

        def texts(name: str) -> list[str] | None:
            found = [getattr(request, name) for request in requests]
            return None if found[0] is None else found

        return self.cascade(
            [picture for _, picture in ready],
            prompt=[request.prompt for request in requests],
            negative_prompt=texts("negative_prompt"),
            seed=[request.seed for request in requests],
            refine=first.refine,
            size=first.size,
            num_frames=first.num_frames,
            target_fps=first.fps,
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            refine_prompt=texts("refine_prompt"),
            refine_steps=first.refine_steps,
            refine_strength=first.refine_strength,
            fit=first.fit,
            progress=self._progress([job.id for job, _ in ready], first),
        )

    def _progress(self, ids: Sequence[str], request: VideoRequest) -> Callable[[str, int, int], None]:
        """Called after each step: reports, and stops when no job is ours any longer."""
        weights = {"base": BASE_SHARE * request.num_inference_steps}
        weights["refine"] = REFINE_SHARE * (request.refine_steps or 0)
        told = 0.0

        def report(stage: str, step: int, count: int) -> None:
            nonlocal told
            before = 0.0 if stage == "base" else weights["base"]
            # The last share of the way is decoding and writing.
            progress = 0.95 * (before + weights[stage] * min(step, count) / count) / sum(weights.values())
            if not self.jobs.held(self.name, ids):
                raise AbandonedError
            if time.monotonic() - told >= MIN_REPORT_SECONDS:
                told = time.monotonic()
                self.jobs.renew(self.name, ids, self.config.lease_seconds, progress)

        return report

    def _write(self, job: Job, frames: np.ndarray, settings: dict[str, Any], fps: float) -> None:
        """Files first, then the row that names them: what is completed is all there."""
        try:
            self.hooks.check(frames, job)
            with tempfile.TemporaryDirectory(prefix="i2vgen-") as folder:
                paths = {name: Path(folder) / file for name, file in NAMES.items()}
                if self.hooks.provenance is not None:
                    settings = settings | {"provenance": self.hooks.provenance(described(job))}
                settings = published(settings, job)
                write_video(paths["video"], frames, fps, settings=settings)
                if self.hooks.sign is not None:
                    self.hooks.sign(paths["video"], described(job))
                write_thumbnail(frames, paths["thumbnail"])
                write_spritesheet(frames, settings["prompt"], paths["spritesheet"])
                if not self.jobs.held(self.name, [job.id]):
                    return
                files = {}
                for variant, path in paths.items():
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    with path.open("rb") as file:
                        size = self.files.put(job.id, path.name, file)
                    files[variant] = {"name": path.name, "bytes": size, "type": TYPES[variant], "sha256": digest}
        except RefusedError as error:
            self._fail(job, "content_policy_violation", error)
            return
        except Exception as error:
            self._fail(job, "generation_failed", error)
            return
        count, height, width = frames.shape[:3]
        if not self.jobs.finish(self.name, job.id, files, f"{width}x{height}", f"{count / fps:.4g}"):
            logger.info("job %s was deleted or given to another while it was written", job.id)
            if not self.jobs.known([job.id]):
                self.files.remove(job.id)

    def _fail(self, job: Job, code: str, error: Exception) -> None:
        logger.warning("job %s (request %s) failed", job.id, job.request_id, exc_info=error)
        is_about_request = isinstance(error, ValueError) and not isinstance(error, MediaError)
        is_ours = code == "content_policy_violation" or is_about_request
        # What else went wrong may name paths or addresses of this machine: that stays in the log.
        message = str(error) if is_ours else f"{public_reason(error)}; see the service's log for {job.id}"
        self.jobs.fail(self.name, job.id, code, message)


def published(settings: dict[str, Any], job: Job) -> dict[str, Any]:
    """What the file tells: names in place of this machine's paths."""
    settings = settings | {"model": job.request["model"], "video_id": job.id}
    if settings.get("refiner"):
        settings["refiner"] = Path(settings["refiner"]).name
    if settings.get("lora"):
        settings["lora"] = [used | {"path": used["path"] and Path(used["path"]).name} for used in settings["lora"]]
    return settings


def public_reason(error: Exception) -> str:
    reason = described_error(error)
    return reason if reason.startswith("out of memory") else f"the video could not be made ({type(error).__name__})"

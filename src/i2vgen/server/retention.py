"""What is removed in time: jobs that finished long ago or are too much for the disk, and files of no job."""

from __future__ import annotations

import logging

from i2vgen.server.config import Limits
from i2vgen.server.files import FileStore
from i2vgen.server.jobs import JobStore

logger = logging.getLogger(__name__)

MAX_REMOVED = 200  # in one sweep
# Files that no job knows: of a job deleted while it was written, or of a request cut short.
ORPHAN_SECONDS = 3600.0


def sweep(jobs: JobStore, files: FileStore, limits: Limits) -> list[str]:
    """Remove what is due, at most `MAX_REMOVED` jobs; returns their ids. The row goes first, then its files."""
    removed = []
    if limits.retention_seconds:
        for job in jobs.finished_before(limits.retention_seconds, MAX_REMOVED):
            removed += _remove(jobs, files, job.id)
    if limits.max_data_bytes and (excess := jobs.num_bytes() - limits.max_data_bytes) > 0:
        for job in jobs.finished_before(0.0, MAX_REMOVED):
            if excess <= 0:
                break
            removed += _remove(jobs, files, job.id)
            excess -= job.num_bytes
    old = files.ids(ORPHAN_SECONDS)
    for start in range(0, len(old), MAX_REMOVED):
        some = old[start : start + MAX_REMOVED]
        for id in set(some) - jobs.known(some):
            files.remove(id)
    if removed:
        logger.info("%d finished jobs removed, by age or disk", len(removed))
    return removed


def _remove(jobs: JobStore, files: FileStore, id: str) -> list[str]:
    if jobs.remove(id) is None:
        return []
    files.remove(id)
    return [id]

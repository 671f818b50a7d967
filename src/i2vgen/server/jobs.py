"""The queue: jobs from their creation to their end, each step one transaction.

A worker owns a job while the row names it and the lease has not run out; every change that a worker makes asks for
that, so one that was thought dead, or whose job was deleted, changes nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from i2vgen.server.database import COMPLETED, FAILED, QUEUE_LOCK, QUEUED, RUNNING, jobs, now, totals, writing
from i2vgen.server.errors import ApiError

WORKER_DIED = "the worker that made this video died {count} times: ask for a smaller size or fewer frames"


@dataclass(frozen=True)
class Job:
    """A row of the queue. Times in seconds since 1970, `progress` from 0 to 1."""

    number: int
    id: str
    owner: str
    status: str
    progress: float
    request: dict[str, Any]
    shape: str
    size: str
    seconds: str
    files: dict[str, dict[str, Any]]
    num_bytes: int
    error_code: str | None
    error_message: str | None
    request_id: str | None
    attempts: int
    worker: str | None
    created_at: float
    started_at: float | None
    completed_at: float | None


@dataclass(frozen=True)
class NewJob:
    owner: str
    request: dict[str, Any]
    shape: str
    size: str
    seconds: str
    model: str = ""
    num_bytes: int = 0  # of the picture
    request_id: str | None = None
    repeat_key: str | None = None
    repeat_hash: str | None = None  # of the request's body: a repeat must be the same
    id: str = field(default_factory=lambda: f"video_{secrets.token_hex(16)}")


class JobStore:
    def __init__(self, engine: Engine):
        self.engine = engine

    # For callers

    def create(self, new: NewJob, max_queued: int, max_queued_of_owner: int) -> tuple[Job, bool]:
        """(job, whether it is new): a repeat of an Idempotency-Key gives the job of the first time.

        Raises ApiError 429 if the queue is full, for all or for the owner, and 409 for a key used for something else.
        """
        try:
            with writing(self.engine) as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text(f"select pg_advisory_xact_lock({QUEUE_LOCK})"))
                if (first := self._repeated(connection, new)) is not None:
                    return first, False
                waiting = select(func.count()).where(jobs.c.status.in_((QUEUED, RUNNING)))
                if connection.execute(waiting).scalar_one() >= max_queued:
                    raise ApiError(429, "the queue is full: try again later", "queue_full", retry_after=30)
                if connection.execute(waiting.where(jobs.c.owner == new.owner)).scalar_one() >= max_queued_of_owner:
                    message = f"{max_queued_of_owner} videos are waiting, as many as may: wait for one to finish"
                    raise ApiError(429, message, "too_many_queued", retry_after=10)
                values = {name: value for name, value in vars(new).items() if name != "request"}
                row = insert(jobs).values(
                    **values,
                    request=json.dumps(new.request),
                    status=QUEUED,
                    progress=0.0,
                    files="{}",
                    attempts=0,
                    created_at=now(connection),
                )
                connection.execute(row)
                _count(connection, "created")
                return self._one(connection, jobs.c.id == new.id), True
        except IntegrityError:
            with self.engine.begin() as connection:
                if (first := self._repeated(connection, new)) is None:
                    raise
                return first, False

    def get(self, id: str, owner: str) -> Job | None:
        """None for a job that is not there, or is somebody else's."""
        with self.engine.begin() as connection:
            return self._one(connection, jobs.c.id == id, jobs.c.owner == owner)

    def page(self, owner: str, after: str | None, limit: int, is_ascending: bool) -> tuple[list[Job], bool] | None:
        """(jobs of the owner in order of arrival, whether there are more); None for an unknown `after`."""
        with self.engine.begin() as connection:
            order = jobs.c.number.asc() if is_ascending else jobs.c.number.desc()
            query = select(jobs).where(jobs.c.owner == owner).order_by(order).limit(limit + 1)
            if after is not None:
                last = self._one(connection, jobs.c.id == after, jobs.c.owner == owner)
                if last is None:
                    return None
                query = query.where(jobs.c.number > last.number if is_ascending else jobs.c.number < last.number)
            found = [_job(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def remove(self, id: str, owner: str | None = None) -> Job | None:
        """Delete a job, whatever its state; its worker stops at the next step. Returns it as it was."""
        with writing(self.engine) as connection:
            job = self._one(connection, jobs.c.id == id, *[jobs.c.owner == o for o in (owner,) if o is not None])
            if job is None or connection.execute(delete(jobs).where(jobs.c.id == id)).rowcount != 1:
                return None
            if job.status in (QUEUED, RUNNING):
                _count(connection, "cancelled")
            return job

    # For workers

    def claim(self, worker: str, count: int, lease_seconds: float, model: str = "") -> list[Job]:
        """The oldest waiting job of the model, with up to `count` - 1 others of its shape, now this worker's."""
        is_ours = jobs.c.status == QUEUED, jobs.c.model == model
        with self.engine.begin() as connection:  # a look without the write lock, for the many times it is empty
            if connection.execute(select(jobs.c.id).where(*is_ours).limit(1)).first() is None:
                return []
        with writing(self.engine) as connection:
            waiting = select(jobs.c.id, jobs.c.shape).where(*is_ours).order_by(jobs.c.number)
            waiting = waiting.with_for_update(skip_locked=True)
            first = connection.execute(waiting.limit(1)).first()
            if first is None:
                return []
            ids = [first.id]
            if count > 1:
                alike = waiting.where(jobs.c.shape == first.shape, jobs.c.id != first.id).limit(count - 1)
                ids += [row.id for row in connection.execute(alike)]
            time = now(connection)
            taken = update(jobs).where(jobs.c.id.in_(ids), jobs.c.status == QUEUED)
            taken = taken.values(
                status=RUNNING,
                worker=worker,
                lease_until=time + lease_seconds,
                started_at=time,
                progress=0.0,
                attempts=jobs.c.attempts + 1,
            )
            connection.execute(taken)
            query = select(jobs).where(jobs.c.id.in_(ids), jobs.c.worker == worker).order_by(jobs.c.number)
            return [_job(row) for row in connection.execute(query)]

    def held(self, worker: str, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are still this worker's: the others were deleted, or given to another."""
        with self.engine.begin() as connection:
            return set(connection.execute(select(jobs.c.id).where(*_owned(worker, ids))).scalars())

    def renew(self, worker: str, ids: Iterable[str], lease_seconds: float, progress: float | None = None) -> None:
        """Another lease for jobs in hand, and their progress where it is known."""
        with writing(self.engine) as connection:
            changed = update(jobs).where(*_owned(worker, ids)).values(lease_until=now(connection) + lease_seconds)
            connection.execute(changed if progress is None else changed.values(progress=progress))

    def finish(self, worker: str, id: str, files: dict[str, dict[str, Any]], size: str, seconds: str) -> bool:
        """Completed, its files all in place. False if the job is no longer this worker's."""
        num_bytes = jobs.c.num_bytes + sum(file["bytes"] for file in files.values())
        values = {"files": json.dumps(files), "num_bytes": num_bytes}
        return self._end(worker, id, COMPLETED, values | {"progress": 1.0, "size": size, "seconds": seconds})

    def fail(self, worker: str, id: str, code: str, message: str) -> bool:
        return self._end(worker, id, FAILED, {"error_code": code, "error_message": message})

    def _end(self, worker: str, id: str, status: str, values: dict[str, Any]) -> bool:
        with writing(self.engine) as connection:
            time = now(connection)
            job = self._one(connection, *_owned(worker, [id]))
            ended = update(jobs).where(*_owned(worker, [id]))
            ended = ended.values(status=status, completed_at=time, worker=None, lease_until=None, **values)
            if job is None or connection.execute(ended).rowcount != 1:
                return False
            _count(connection, status)
            _count(connection, "generation_seconds", time - (job.started_at or time))
            return True

    # For whoever watches over workers

    def release(self, worker: str, max_attempts: int, is_refunded: bool = False) -> list[Job]:
        """Give up a worker's jobs: back into the queue, or failed where they have been tried often enough.

        `is_refunded`: it was stopped on purpose, which does not count as a try. Returns the jobs as they were.
        """
        return self._release(max_attempts, is_refunded, jobs.c.worker == worker)

    def release_expired(self, max_attempts: int) -> list[Job]:
        """The same for all jobs whose worker has said nothing for a lease."""
        with self.engine.begin() as connection:
            late = jobs.c.lease_until < now(connection)
            if connection.execute(select(jobs.c.id).where(jobs.c.status == RUNNING, late).limit(1)).first() is None:
                return []
        return self._release(max_attempts, False, late)

    def _release(self, max_attempts: int, is_refunded: bool, condition: Any) -> list[Job]:
        with writing(self.engine) as connection:
            query = select(jobs).where(jobs.c.status == RUNNING, condition).with_for_update(skip_locked=True)
            lost = [_job(row) for row in connection.execute(query)]
            for job in lost:
                attempts = job.attempts - 1 if is_refunded else job.attempts
                values = {"worker": None, "lease_until": None, "attempts": attempts}
                if attempts < max_attempts:
                    values |= {"status": QUEUED, "progress": 0.0, "started_at": None}
                    _count(connection, "retried", 0 if is_refunded else 1)
                else:
                    message = WORKER_DIED.format(count=attempts)
                    values |= {"status": FAILED, "error_code": "worker_died", "error_message": message}
                    values["completed_at"] = now(connection)
                    _count(connection, FAILED)
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
            return lost

    def counts(self) -> dict[str, int]:
        """Jobs in each state."""
        with self.engine.begin() as connection:
            rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        return dict.fromkeys((QUEUED, RUNNING, COMPLETED, FAILED), 0) | {status: count for status, count in rows}

    def oldest_waiting_seconds(self) -> float:
        with self.engine.begin() as connection:
            oldest = connection.execute(select(func.min(jobs.c.created_at)).where(jobs.c.status == QUEUED)).scalar()
            return 0.0 if oldest is None else max(0.0, now(connection) - oldest)

    def totals(self) -> dict[str, float]:
        """Counters since the database was made: created, completed, failed, cancelled, retried, seconds."""
        with self.engine.begin() as connection:
            return dict(connection.execute(select(totals.c.name, totals.c.value)).tuples().all())

    def finished_before(self, age_seconds: float, count: int) -> list[Job]:
        """Finished jobs of at least this age, the oldest first."""
        with self.engine.begin() as connection:
            query = select(jobs).where(jobs.c.completed_at <= now(connection) - age_seconds)
            return [_job(row) for row in connection.execute(query.order_by(jobs.c.completed_at).limit(count))]

    def num_bytes(self) -> int:
        with self.engine.begin() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(jobs.c.num_bytes), 0))).scalar_one())

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are jobs."""
        with self.engine.begin() as connection:
            return set(connection.execute(select(jobs.c.id).where(jobs.c.id.in_(ids))).scalars())

    def _one(self, connection: Connection, *conditions: Any) -> Job | None:
        row = connection.execute(select(jobs).where(*conditions)).first()
        return None if row is None else _job(row)

    def _repeated(self, connection: Connection, new: NewJob) -> Job | None:
        if new.repeat_key is None:
            return None
        query = select(jobs).where(jobs.c.owner == new.owner, jobs.c.repeat_key == new.repeat_key)
        row = connection.execute(query).first()
        if row is not None and row.repeat_hash != new.repeat_hash:
            message = "Idempotency-Key: it was used for another request; give each request its own"
            raise ApiError(409, message, "idempotency_key_reused")
        return None if row is None else _job(row)


def _owned(worker: str, ids: Iterable[str]) -> list[Any]:
    return [jobs.c.id.in_(list(ids)), jobs.c.worker == worker, jobs.c.status == RUNNING]


def _job(row: Any) -> Job:
    values = {name: row._mapping[name] for name in Job.__dataclass_fields__}
    return Job(**values | {"request": json.loads(row.request), "files": json.loads(row.files)})


def _count(connection: Connection, name: str, value: float = 1.0) -> None:
    connection.execute(update(totals).where(totals.c.name == name).values(value=totals.c.value + value))

"""The queue, the keys and the stores by themselves: nothing is lost, nothing is made twice."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from i2vgen.server.config import Limits, ModelConfig, ServiceConfig
from i2vgen.server.database import DatabaseError, open_database
from i2vgen.server.errors import ApiError
from i2vgen.server.files import FileMissingError, open_files
from i2vgen.server.jobs import JobStore, NewJob
from i2vgen.server.keys import KeyStore
from i2vgen.server.rates import RateLimiter
from i2vgen.server.retention import sweep
from server_parts import Parts, free_port

FILES = {"video": {"name": "video.mp4", "bytes": 10, "type": "video/mp4", "sha256": "0"}}


@pytest.fixture(scope="module")
def postgres():
    """The address of a PostgreSQL server of its own, which refuses to run as root: then as the user postgres."""
    binaries = Path(shutil.which("pg_ctl") or "").resolve().parent
    if not (binaries / "initdb").exists():
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        binaries = found[-1] if found else None
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="i2vgen-pg-"))
    as_user = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        if shutil.which("runuser") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root")
        shutil.chown(folder, "postgres")
    port = free_port()

    def pg(name: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(binaries / name), *arguments], check=True, capture_output=True, cwd=folder)

    try:
        pg("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "i2vgen", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        pg("pg_ctl", "-D", str(folder / "data"), "-o", options, "-w", "-l", str(folder / "log"), "start")
        yield f"postgresql://i2vgen@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*as_user, str(binaries / "pg_ctl"), "-D", str(folder / "data"), "-m", "immediate", "stop"],
            capture_output=True,
            cwd="/",
        )
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    config = ServiceConfig(data=str(tmp_path))
    if request.param == "postgresql":
        config = ServiceConfig(data=str(tmp_path), database=request.getfixturevalue("postgres"))
    opened = open_database(config.database_url)
    if request.param == "postgresql":
        with opened.begin() as connection:
            connection.execute(text("truncate jobs, keys, workers, models"))
            connection.execute(text("update totals set value = 0"))
    yield opened
    opened.dispose()


@pytest.fixture
def jobs(engine) -> JobStore:
    return JobStore(engine)


def create(jobs: JobStore, shape: str = "a", owner: str = "", **more):
    new = NewJob(owner=owner, request={"seed": 1}, shape=shape, size="8x8", seconds="1", **more)
    return jobs.create(new, max_queued=100, max_queued_of_owner=60)[0]


def test_many_workers_take_each_job_once(jobs):
    ids = [create(jobs, shape=str(number % 3)).id for number in range(45)]
    taken: list[str] = []

    def work(name: str) -> None:
        while batch := jobs.claim(name, 2, lease_seconds=60):
            assert len({job.shape for job in batch}) == 1
            for job in batch:
                taken.append(job.id)
                assert jobs.finish(name, job.id, FILES, "8x8", "1")

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == Counter(ids)
    assert jobs.counts() == {"queued": 0, "in_progress": 0, "completed": 45, "failed": 0}
    assert jobs.totals()["completed"] == 45
    assert jobs.num_bytes() == 450


def test_workers_take_jobs_of_their_own_model(jobs):
    id = create(jobs, model="xl").id
    assert jobs.claim("w", 1, 60, "nano") == []
    assert [job.id for job in jobs.claim("w", 1, 60, "xl")] == [id]


def test_first_come_first_served_and_alike_together(jobs):
    ids = [create(jobs, shape=shape).id for shape in "abaab"]
    assert [job.id for job in jobs.claim("w", 3, 60)] == [ids[0], ids[2], ids[3]]
    assert [job.id for job in jobs.claim("w", 1, 60)] == [ids[1]]


def test_a_job_whose_worker_is_gone_is_tried_once_more(jobs):
    id = create(jobs).id
    assert jobs.claim("first", 1, lease_seconds=-1)[0].attempts == 1
    assert [job.id for job in jobs.release_expired(max_attempts=2)] == [id]
    assert not jobs.finish("first", id, FILES, "8x8", "1")  # too late
    assert jobs.held("first", [id]) == set()
    jobs.claim("second", 1, 60)
    jobs.renew("second", [id], 60, 0.5)
    assert jobs.release_expired(2) == []
    assert jobs.get(id, "").progress == 0.5
    jobs.release("second", max_attempts=2)
    failed = jobs.get(id, "")
    assert (failed.status, failed.error_code) == ("failed", "worker_died")
    assert jobs.totals()["retried"] == 1


def test_being_stopped_on_purpose_is_no_try(jobs):
    id = create(jobs).id
    for _ in range(5):
        jobs.claim("w", 1, 60)
        jobs.release("w", max_attempts=1, is_refunded=True)
    assert (jobs.get(id, "").status, jobs.get(id, "").attempts) == ("queued", 0)


def test_the_queue_is_bounded(jobs):
    for _ in range(60):
        create(jobs, owner="a")
    with pytest.raises(ApiError, match="60 videos are waiting"):
        create(jobs, owner="a")
    for _ in range(40):
        create(jobs, owner="b")
    with pytest.raises(ApiError, match="queue is full"):
        create(jobs, owner="c")
    jobs.remove(jobs.page("a", None, 1, True)[0][0].id)
    assert create(jobs, owner="c").status == "queued"


def test_a_repeated_request_is_one_job_also_at_once(jobs):
    made = []
    again = {"repeat_key": "k", "repeat_hash": "h"}
    threads = [threading.Thread(target=lambda: made.append(create(jobs, **again).id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len(set(made)) == 1
    assert create(jobs, owner="other", **again).id not in made


def test_one_owner_does_not_see_anothers(jobs):
    id = create(jobs, owner="a").id
    assert jobs.get(id, "b") is None
    assert jobs.remove(id, "b") is None
    assert jobs.page("b", None, 10, False) == ([], False)
    assert jobs.page("b", id, 10, False) is None
    assert jobs.remove(id, "a").id == id


def test_keys(engine):
    keys = KeyStore(engine)
    assert not keys.is_used()
    key, secret = keys.add("ana", videos_per_minute=3)
    assert keys.verify(secret) == key
    stored = " ".join(map(str, engine.connect().execute(text("select * from keys")).one()))
    assert secret.split("_")[2] not in stored
    wrong = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    for bad in (wrong, "", "i2vgen_x_y", secret + " ", secret.upper(), "i2vgen_" + "0" * 16 + "_" + "0" * 64):
        assert keys.verify(bad) is None
    assert [one.id for one in keys.revoke("ana")] == [key.id]
    assert keys.verify(secret) is None
    assert keys.is_used()  # the service stays closed
    with pytest.raises(ValueError, match="no key in use"):
        keys.revoke("ana")
    with pytest.raises(ValueError, match="name"):
        keys.add("a\nb")


def test_rates():
    time = [0.0]
    limiter = RateLimiter(lambda: time[0])
    assert [limiter.wait_seconds("a", "calls", 3) for _ in range(4)] == [0, 0, 0, 20]
    assert limiter.wait_seconds("b", "calls", 3) == 0
    assert limiter.wait_seconds("a", "videos", 1) == 0
    time[0] = 20.0
    assert [limiter.wait_seconds("a", "calls", 3) for _ in range(2)] == [0, 20]
    assert limiter.wait_seconds("a", "calls", 0) == 0


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_stores(kind, tmp_path):
    files = open_files(str(tmp_path) if kind == "local" else f"memory://{secrets.token_hex(4)}")
    id, content = f"video_{secrets.token_hex(16)}", bytes(range(256)) * 3000
    assert files.put(id, "video.mp4", io.BytesIO(content)) == len(content)
    assert b"".join(files.read(id, "video.mp4")) == content
    assert b"".join(files.read(id, "video.mp4", 5, 300_000)) == content[5:300_000]
    assert files.put(id, "video.mp4", io.BytesIO(b"new")) == 3
    assert b"".join(files.read(id, "video.mp4")) == b"new"

    class Broken(io.BytesIO):
        def read(self, *size):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        files.put(id, "thumbnail.jpg", Broken(b"x"))
    with pytest.raises(FileMissingError):
        files.read(id, "thumbnail.jpg")
    assert files.ids(min_age_seconds=-5) == [id]
    assert files.ids(min_age_seconds=100) == []
    for hostile in ("../x", "video_../..", "", f"{id}/../y", id.upper(), id + "\n"):
        with pytest.raises(ValueError, match="no file of a job"):
            files.put(hostile, "video.mp4", io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="no file of a job"):
        files.read(id, "../video.mp4")
    files.remove(id)
    files.remove(id)
    with pytest.raises(FileMissingError):
        files.read(id, "video.mp4")


def test_a_store_that_needs_a_package_says_so(tmp_path):
    with pytest.raises(ValueError, match="nosuch"):
        open_files("nosuch://x/y")


def test_retention_by_age_disk_and_orphans(tmp_path):
    config = ServiceConfig(data=str(tmp_path))
    engine = open_database(config.database_url)
    jobs, files = JobStore(engine), open_files(config.data)
    ids = []
    for _ in range(4):
        ids.append(create(jobs).id)
        files.put(ids[-1], "video.mp4", io.BytesIO(b"x" * 10))
        jobs.claim("w", 1, 60)
        jobs.finish("w", ids[-1], FILES, "8x8", "1")
    waiting = create(jobs).id
    orphan = f"video_{'0' * 32}"
    files.put(orphan, "input.png", io.BytesIO(b"x"))
    assert sweep(jobs, files, Limits(max_data_bytes=25)) == ids[:2]
    os.utime(files.folder / orphan, (0, 0))
    with engine.begin() as connection:
        connection.execute(text("update jobs set completed_at = completed_at - 100 where id = :id"), {"id": ids[2]})
    assert sweep(jobs, files, Limits(retention_seconds=50)) == [ids[2]]
    assert {path.name for path in files.folder.iterdir()} == {ids[3]}
    assert jobs.get(waiting, "").status == "queued"
    engine.dispose()


def test_a_database_that_cannot_be_opened_is_explained(tmp_path):
    (tmp_path / "file").write_bytes(b"this is no database" * 100)
    for url in (f"sqlite:///{tmp_path}/file", "nosuch://x", "sqlite://", f"sqlite:////{tmp_path}/file/x"):
        with pytest.raises(DatabaseError, match="database"):
            open_database(url)
    with pytest.raises(DatabaseError) as caught:
        open_database("postgresql+psycopg://u:hidden-word@127.0.0.1:1/x")
    assert "hidden-word" not in str(caught.value)


def test_the_whole_service_on_postgresql(postgres, tmp_path, tiny_cascade, photo):
    data = io.BytesIO()
    photo.save(data, "png")
    config = ServiceConfig(data=str(tmp_path), database=postgres, model=ModelConfig(names=("tiny",)))
    parts = Parts(config, tiny_cascade)
    try:
        key = {"Authorization": f"Bearer {parts.service.keys.add('ana')[1]}"}
        other = {"Authorization": f"Bearer {parts.service.keys.add('bob', requests_per_minute=3)[1]}"}
        assert parts.post(data.getvalue()).status_code == 401
        id = parts.create(data.getvalue(), key)
        parts.worker.step()
        assert parts.document(id, key)["status"] == "completed"
        statuses = [parts.client.get(f"/v1/videos/{id}", headers=other).status_code]
        statuses += [parts.client.get(f"/v1/videos/{id}/content", headers=other).status_code]
        statuses += [parts.client.delete(f"/v1/videos/{id}", headers=other).status_code]
        assert statuses == [404, 404, 404]
        limited = parts.client.get("/v1/videos", headers=other)
        assert (limited.status_code, limited.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(limited.headers["retry-after"]) >= 1
        parts.service.keys.revoke("ana")
        assert parts.client.get("/v1/videos", headers=key).status_code == 401
    finally:
        parts.close()

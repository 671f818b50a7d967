"""The service as people run it: `i2vgen serve` in a process of its own, killed, drained, its workers lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from i2vgen.media import load_video
from server_parts import Running, running

pytestmark = pytest.mark.slow

LONG = {"num_inference_steps": "60", "num_frames": "8"}


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


def workers_of(service: Running) -> list[psutil.Process]:
    """Processes that were spawned, without the tracker of shared resources."""
    children = psutil.Process(service.process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_killed_in_the_middle_and_started_again(tmp_path, tiny_cascade_dir, photo_path):
    data = tmp_path / "data"
    with running(data, tiny_cascade_dir, "--lease", "300") as first:
        first.wait_ready()
        finished = first.create(photo_path)["id"]
        assert first.wait_done(finished)["status"] == "completed"
        content = first.client.get(f"/v1/videos/{finished}/content").content
        broken = first.create(photo_path, **LONG)["id"]
        waiting = [first.create(photo_path, seed=str(seed))["id"] for seed in range(3)]
        wait_for(lambda: first.client.get(f"/v1/videos/{broken}").json()["progress"] > 0)
        worker = workers_of(first)[0]
        first.kill()
        wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)  # it ends with its parent

    with running(data, tiny_cascade_dir, "--lease", "300") as second:
        second.wait_ready()
        assert second.client.get(f"/v1/videos/{finished}/content").content == content
        for id in [broken, *waiting]:
            assert second.wait_done(id)["status"] == "completed"
        assert len(load_video(data / "videos" / broken / "video.mp4").frames) == 8
        listed = second.client.get("/v1/videos", params={"order": "asc"}).json()["data"]
        assert [one["id"] for one in listed] == [finished, broken, *waiting]
        assert "i2vgen_jobs_retried_total 1.0" in second.client.get("/metrics").text


def test_a_worker_that_dies_is_replaced_and_its_job_tried_again(tmp_path, tiny_cascade_dir, photo_path):
    with running(tmp_path / "data", tiny_cascade_dir) as service:
        service.wait_ready()
        id = service.create(photo_path, **LONG)["id"]
        wait_for(lambda: service.client.get(f"/v1/videos/{id}").json()["progress"] > 0)
        worker = workers_of(service)[0]
        os.kill(worker.pid, signal.SIGKILL)
        assert service.wait_done(id)["status"] == "completed"
        assert workers_of(service)[0].pid != worker.pid

        unlucky = service.create(photo_path, **LONG)["id"]
        for _ in range(2):
            wait_for(lambda: service.client.get(f"/v1/videos/{unlucky}").json()["progress"] > 0, 120)
            before = workers_of(service)[0].pid
            os.kill(before, signal.SIGKILL)
            wait_for(lambda before=before: [w for w in workers_of(service) if w.pid != before], 120)
        document = service.wait_done(unlucky)
        assert (document["status"], document["error"]["code"]) == ("failed", "worker_died")


def test_sigterm_finishes_what_is_in_hand(tmp_path, tiny_cascade_dir, photo_path):
    data = tmp_path / "data"
    with running(data, tiny_cascade_dir) as service:
        service.wait_ready()
        running_id, waiting_id = service.create(photo_path, **LONG)["id"], service.create(photo_path)["id"]
        wait_for(lambda: service.client.get(f"/v1/videos/{running_id}").json()["progress"] > 0)
        codes = []
        stopping = threading.Thread(target=lambda: codes.append(service.stop()))
        stopping.start()
        wait_for(lambda: service.client.get("/ready").status_code == 503)
        assert service.client.get(f"/v1/videos/{running_id}").status_code == 200  # callers can go on polling
        stopping.join()
        assert codes == [0]
    with running(data, tiny_cascade_dir, "--workers", "0") as again:
        wait_for(lambda: _answers(again))
        assert again.client.get(f"/v1/videos/{running_id}").json()["status"] == "completed"
        assert again.client.get(f"/v1/videos/{waiting_id}").json()["status"] == "queued"
        assert again.client.get("/ready").json() == {"status": "no worker is ready"}


def _answers(service: Running) -> bool:
    try:
        return service.client.get("/health").status_code == 200
    except Exception:
        return False


def test_two_workers_share_the_queue(tmp_path, tiny_cascade_dir, photo_path):
    with running(tmp_path / "data", tiny_cascade_dir, "--workers", "2", "--batch-size", "2") as service:
        service.wait_ready()
        wait_for(lambda: "i2vgen_workers 2.0" in service.client.get("/metrics").text, 120)
        ids = [service.create(photo_path, seed=str(seed))["id"] for seed in range(8)]
        assert {service.wait_done(id)["status"] for id in ids} == {"completed"}
        assert "i2vgen_jobs_retried_total 0.0" in service.client.get("/metrics").text

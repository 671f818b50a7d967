"""A running service for tests: on a free port of this machine, or in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """`i2vgen serve` as a process of its own, in a session of its own."""

    def __init__(self, data: Path, model: Path, *options: str, engine: str = "local"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data.with_suffix(".log")
        command = [sys.executable, "-m", "i2vgen", "serve", "--data", str(data), "--model", str(model)]
        command += ["--name", "tiny", "--port", str(self.port), "--device", "cpu", "--threads", "1", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def wait_ready(self, seconds: float = 120) -> Running:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/ready").status_code == 200:
                    return self
            time.sleep(0.2)
        raise AssertionError(f"not ready: {self.log.read_text()[-3000:]}")

    def create(self, photo: Path, **fields) -> dict:
        with photo.open("rb") as file:
            answer = self.client.post(
                "/v1/videos", data={"prompt": "a dog runs", **fields}, files={"input_reference": file}
            )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_done(self, id: str, seconds: float = 120) -> dict:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            document = self.client.get(f"/v1/videos/{id}").json()
            if document["status"] in ("completed", "failed"):
                return document
            time.sleep(0.1)
        raise AssertionError(f"{document}: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """As a machine that loses power does: no handler runs."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)

    def close(self) -> None:
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(data: Path, model: Path, *options: str, **more):
    service = Running(data, model, *options, **more)
    try:
        yield service
    finally:
        service.close()


FIELDS = {"prompt": "a dog runs", "seed": "3"}


class Parts:
    """The application, its queue, a caller and a worker, all in this process; the worker works when told to."""

    def __init__(self, config, cascade):
        from starlette.testclient import TestClient

        from i2vgen.server.app import create_app
        from i2vgen.server.service import Service
        from i2vgen.server.worker import Worker

        self.config = config
        self.service = Service(config)
        self.worker = Worker(config, cascade, "worker-of-test", "cpu")
        self.app = create_app(self.service)
        self.client = TestClient(self.app, base_url="http://127.0.0.1", raise_server_exceptions=False)

    def post(self, picture: bytes, headers: dict | None = None, path: str = "/v1/videos", **fields):
        files = {"input_reference": ("../../etc/passwd", picture, "text/html")}
        return self.client.post(path, data={**FIELDS, **fields}, files=files, headers=headers)

    def create(self, picture: bytes, headers: dict | None = None, **fields) -> str:
        answer = self.post(picture, headers, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def document(self, id: str, headers: dict | None = None) -> dict:
        return self.client.get(f"/v1/videos/{id}", headers=headers).json()

    def close(self) -> None:
        self.client.close()
        self.worker.close()
        self.service.close()

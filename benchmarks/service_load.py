"""Load on the video service: many callers, many jobs, on this machine alone.

    python benchmarks/service_load.py --jobs 200 --clients 20 --model nano

Starts `i2vgen serve` on a free loopback port, lets `--clients` threads ask for `--jobs` small videos, polls them as
clients do, downloads each, and checks: none lost, none made twice, all files whole. Reports the latency of status calls
while videos are made, and the memory of the service over time. Everything is bounded: requests by --max-requests,
time by --max-seconds. Exit code 1 if a job is lost or doubled, or a bound is not held.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
from PIL import Image

P99_SECONDS = 0.1
MEMORY_GROWTH = 1.15  # of the last quarter of the run over the second
POLL_SECONDS = 0.25


class Load:
    def __init__(self, url: str, options: argparse.Namespace):
        self.url, self.options = url, options
        self.lock = threading.Lock()
        self.left, self.num_requests = options.jobs, 0
        self.latencies: list[float] = []
        self.ids: list[str] = []
        self.problems: list[str] = []
        self.end = time.monotonic() + options.max_seconds
        y, x = np.mgrid[0:48, 0:64]
        image = Image.fromarray(np.stack([x * 4, y * 5, 255 - x * 4], -1).clip(0, 255).astype(np.uint8))
        data = io.BytesIO()
        image.save(data, "png")
        self.picture = data.getvalue()

    def client(self, number: int) -> None:
        try:
            with httpx.Client(base_url=self.url, timeout=30) as http:
                while self._take():
                    self._one(http, number)
        except Exception as error:
            self.problems.append(f"client {number}: {type(error).__name__}: {error}")

    def _take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def _call(self, http: httpx.Client, method: str, path: str, **more) -> httpx.Response:
        with self.lock:
            self.num_requests += 1
            if self.num_requests > self.options.max_requests or time.monotonic() > self.end:
                raise RuntimeError("the bound on requests or time is reached")
        return http.request(method, path, **more)

    def _one(self, http: httpx.Client, number: int) -> None:
        fields = {
            "prompt": f"the camera pans, client {number}",
            "seed": str(secrets.randbelow(2**31)),
            "num_frames": str(self.options.frames),
            "num_inference_steps": str(self.options.steps),
            "refine": "false",
        }
        again = {"Idempotency-Key": secrets.token_hex(16)}
        for _ in range(3):  # a caller that is not sure repeats itself
            answer = self._call(
                http, "POST", "/v1/videos", data=fields, files={"input_reference": self.picture}, headers=again
            )
            if answer.status_code == 200:
                break
            time.sleep(float(answer.headers.get("Retry-After", "1")))
        answer.raise_for_status()
        id = answer.json()["id"]
        with self.lock:
            self.ids.append(id)
        while True:
            begin = time.perf_counter()
            document = self._call(http, "GET", f"/v1/videos/{id}").raise_for_status().json()
            with self.lock:
                self.latencies.append(time.perf_counter() - begin)
            if document["status"] in ("completed", "failed"):
                break
            time.sleep(POLL_SECONDS)
        if document["status"] == "failed":
            self.problems.append(f"{id}: {document['error']}")
            return
        content = self._call(http, "GET", f"/v1/videos/{id}/content").raise_for_status()
        if content.content[4:8] != b"ftyp" or len(content.content) != int(content.headers["Content-Length"]):
            self.problems.append(f"{id}: the file is not whole")


def memory_megabytes(process: psutil.Process) -> tuple[float, float]:
    """(of the API's process, of its workers)"""
    with contextlib.suppress(psutil.Error):
        workers = sum(child.memory_info().rss for child in process.children(recursive=True))
        return process.memory_info().rss / 2**20, workers / 2**20
    return 0.0, 0.0


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict, list[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "i2vgen", "serve", "--data", str(folder / "data"), "--model", options.model]
    command += ["--port", str(port), "--workers", str(options.workers), "--threads", str(options.threads)]
    command += ["--batch-size", str(options.batch_size), "--requests-per-minute", "0", "--videos-per-minute", "0"]
    command += ["--max-queued-per-key", str(options.jobs + 1), "--device", options.device]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=url, timeout=30) as http:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/ready").status_code == 200:
                        break
                if service.poll() is not None:
                    raise SystemExit((folder / "log").read_text())
                time.sleep(0.5)
            load, process, memory = Load(url, options), psutil.Process(service.pid), []
            begin = time.monotonic()
            threads = [threading.Thread(target=load.client, args=(number,)) for number in range(options.clients)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                memory.append(memory_megabytes(process))
                time.sleep(0.5)
            seconds = time.monotonic() - begin
            totals = http.get("/metrics").text
            rows, after = [], None
            while True:
                page = http.get("/v1/videos", params={"limit": 100, **({"after": after} if after else {})}).json()
                rows += page["data"]
                after = page["last_id"]
                if not page["has_more"]:
                    break
    finally:
        service.terminate()
        service.wait(60)
    return judged(options, load, rows, totals, memory, seconds)


def judged(options, load: Load, rows: list[dict], totals: str, memory: list, seconds: float) -> tuple[dict, list[str]]:
    """(figures, what is wrong)"""
    problems = list(load.problems)
    counted = {
        line.split()[0]: float(line.split()[1]) for line in totals.splitlines() if line.startswith("i2vgen_jobs_")
    }
    asked, listed = set(load.ids), [row["id"] for row in rows]
    if len(load.ids) != options.jobs or len(asked) != options.jobs:
        problems.append(f"{len(asked)} of {options.jobs} jobs were accepted")
    if sorted(listed) != sorted(asked):
        problems.append(f"{len(asked - set(listed))} jobs lost, {len(listed) - len(asked)} too many")
    for name in ("created", "completed"):
        if counted[f"i2vgen_jobs_{name}_total"] != options.jobs:
            problems.append(f"{counted[f'i2vgen_jobs_{name}_total']:.0f} {name}, asked for {options.jobs}")
    latencies = np.array(load.latencies or [np.inf])
    p50, p99 = np.quantile(latencies, (0.5, 0.99))
    if p99 > P99_SECONDS:
        problems.append(f"status calls: p99 {p99 * 1000:.0f} ms, at most {P99_SECONDS * 1000:.0f}")
    quarters = np.array_split(np.array(memory), 4)
    early, late = np.median(quarters[1], axis=0), np.median(quarters[3], axis=0)
    for name, before, now in zip(("API", "workers"), early, late, strict=True):
        if now > MEMORY_GROWTH * before:
            problems.append(f"memory of the {name} grew from {before:.0f} to {now:.0f} MB")
    figures = {
        "jobs": options.jobs,
        "clients": options.clients,
        "seconds": round(seconds, 1),
        "videos_per_minute": round(60 * len(rows) / seconds, 1),
        "status_calls": len(load.latencies),
        "status_p50_ms": round(1000 * float(p50), 1),
        "status_p99_ms": round(1000 * float(p99), 1),
        "retried": counted["i2vgen_jobs_retried_total"],
        "api_mb": [round(float(early[0])), round(float(late[0]))],
        "workers_mb": [round(float(early[1])), round(float(late[1]))],
    }
    return figures, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("jobs", 200), ("clients", 20), ("frames", 2), ("steps", 1), ("workers", 1), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-requests", type=int, default=50_000)
    parser.add_argument("--max-seconds", type=float, default=1800.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="i2vgen-load-") as folder:
        figures, problems = measure(options, Path(folder))
    print(json.dumps(figures, indent=2))
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

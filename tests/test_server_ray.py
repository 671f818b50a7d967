"""Work spread over a Ray cluster: here a local one, of two CPUs."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

pytest.importorskip("ray")

from i2vgen.batch.ray_cascades import ray_cascades
from i2vgen.cli import main
from i2vgen.media import load_video
from i2vgen.pipelines import load_cascade
from server_parts import running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning", object_store_memory=200 * 2**20)
    yield ray
    ray.shutdown()


def test_a_batch_over_two_actors_is_what_it_is_here(tmp_path, tiny_cascade_dir, photo_path, capsys):
    rows = [{"image": str(photo_path), "prompt": f"dog {number}"} for number in range(3)]
    rows.append({"image": str(photo_path), "prompt": "too small", "size": "2x2"})
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", str(tiny_cascade_dir), "--device", "cpu", "--json", "--repeats", "2"]
    cluster = ["--engine", "ray", "--replicas", "2"]

    def batch(folder: str, *more: str) -> tuple[int, dict]:
        code = main(["batch", str(listed), "-o", str(tmp_path / folder), *options, *more])
        return code, json.loads(capsys.readouterr().out)

    code, far = batch("far", *cluster)
    assert (code, far["done"], far["failed"]) == (1, 6, 2)
    assert {entry["error"].split(":")[0] for entry in far["entries"] if entry["error"]} == {"size 2x2"}
    code, near = batch("near")
    assert (code, near["done"], near["failed"]) == (1, 6, 2)
    names = sorted(path.name for path in (tmp_path / "far").glob("*.mp4"))
    assert names == sorted(path.name for path in (tmp_path / "near").glob("*.mp4"))
    made = {
        where: [load_video(tmp_path / where / name).frames.astype(int) for name in names] for where in ("far", "near")
    }
    for far_frames, near_frames in zip(made["far"], made["near"], strict=True):
        # The frames are the same, see below; a compressed file of them may differ a little.
        assert np.abs(far_frames - near_frames).mean() < np.abs(made["far"][0] - made["far"][1]).mean() / 3

    (tmp_path / "far" / names[0]).unlink()
    code, again = batch("far", *cluster, "--no-retry-failed")
    assert (again["done"], again["skipped"]) == (1, 5)
    code, again = batch("far", "--no-retry-failed")  # and without Ray, the same results hold
    assert (again["done"], again["skipped"]) == (0, 6)


def test_frames_of_an_actor_are_those_of_here(tiny_cascade_dir, tiny_cascade, photo):
    request = {"prompt": ["a dog", "a cat"], "seed": [1, 2]}
    with ray_cascades(1) as start:
        (remote,) = start(lambda: load_cascade(str(tiny_cascade_dir), device="cpu", dtype="float32"))
        assert remote.sizes_for(photo.size, None, True) == tiny_cascade.sizes_for(photo.size, None, True)
        far = remote([photo, photo], **request)
        with pytest.raises(ValueError, match="seed"):
            remote([photo], prompt=["x"], seed=[-1])
    near = tiny_cascade([photo, photo], **request)
    assert all(np.array_equal(a, b) for a, b in zip(far.frames, near.frames, strict=True))
    assert far.settings == near.settings


def test_replicas_that_the_cluster_has_not(tmp_path, tiny_cascade_dir, photo_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photo_path}|||a dog\n")
    options = ["--model", str(tiny_cascade_dir), "-o", str(tmp_path / "out"), "--replicas", "9"]
    assert main(["batch", str(listed), *options, "--engine", "ray"]) == 2
    assert "the Ray cluster has 2 CPUs" in capsys.readouterr().err
    assert main(["batch", str(listed), *options]) == 2
    assert "--replicas is of --engine ray" in capsys.readouterr().err


def test_the_service_with_replicas(tmp_path, tiny_cascade_dir, photo_path, cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.get_runtime_context().gcs_address)
    options = ("--engine", "ray", "--max-replicas", "2", "--lease", "5", "--drain", "20")
    with running(tmp_path / "data", tiny_cascade_dir, *options) as service:
        service.wait_ready(240)
        ids = [service.create(photo_path, seed=str(seed))["id"] for seed in range(4)]
        assert {service.wait_done(id)["status"] for id in ids} == {"completed"}

        long = service.create(photo_path, num_inference_steps="60", num_frames="8")["id"]
        end = time.monotonic() + 60
        while service.client.get(f"/v1/videos/{long}").json()["progress"] == 0:
            assert time.monotonic() < end
            time.sleep(0.1)
        service.client.delete(f"/v1/videos/{long}")
        after = service.create(photo_path)["id"]
        assert service.wait_done(after)["status"] == "completed"
        assert service.stop() == 0

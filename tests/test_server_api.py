"""The API in this process: what it takes, what it makes, what it refuses."""

from __future__ import annotations

import io
import json
import threading
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from i2vgen.media import load_video, read_settings
from i2vgen.pipelines.facts import ModelFacts
from i2vgen.server.config import Limits, ModelConfig, ServiceConfig
from i2vgen.server.errors import ApiError
from i2vgen.server.requests import parse_fields
from i2vgen.server.worker import Worker
from server_parts import FIELDS, Parts, free_port


@pytest.fixture(scope="module")
def picture(photo) -> bytes:
    data = io.BytesIO()
    photo.save(data, "png")
    return data.getvalue()


@pytest.fixture
def parts(tmp_path, tiny_cascade):
    made = []

    def build(limits=None, **changes) -> Parts:
        config = ServiceConfig(
            data=str(tmp_path / "data"),
            model=ModelConfig(names=("tiny", "sora-2")),
            limits=limits or Limits(),
            **changes,
        )
        made.append(Parts(config, tiny_cascade))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_a_video_from_request_to_file(parts, picture, tiny_cascade, photo):
    service = parts()
    id = service.create(picture, num_frames="3")
    queued = service.document(id)
    assert (queued["status"], queued["progress"], queued["object"]) == ("queued", 0, "video")
    assert (queued["num_frames"], queued["seed"], queued["size"], queued["model"]) == (3, 3, "144x96", "tiny")
    assert service.client.get(f"/v1/videos/{id}/content").status_code == 409
    assert service.worker.step() == 1
    assert service.worker.step() == 0
    done = service.document(id)
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["expires_at"] == pytest.approx(done["completed_at"] + service.config.limits.retention_seconds, abs=1)

    answer = service.client.get(f"/v1/videos/{id}/content")
    assert answer.headers["content-type"] == "video/mp4"
    made = tiny_cascade(photo, FIELDS["prompt"], seed=3, num_frames=3).frames[0]
    file = service.service.files.folder / id / "video.mp4"
    assert answer.content == file.read_bytes()
    assert load_video(file).frames.shape == made.shape
    settings = read_settings(file)
    assert (settings["seed"], settings["prompt"], settings["model"]) == (3, "a dog runs", "tiny")
    for variant in ("thumbnail", "spritesheet", "contact_sheet"):
        content = service.client.get(f"/v1/videos/{id}/content", params={"variant": variant})
        assert Image.open(io.BytesIO(content.content)).format == "JPEG"
    assert not [path for path in file.parent.iterdir() if path.name.startswith(".")]


def test_byte_ranges(parts, picture):
    service = parts()
    id = service.create(picture)
    service.worker.step()
    address = f"/v1/videos/{id}/content"
    whole = service.client.get(address)
    content, size = whole.content, len(whole.content)
    for wanted, part in {
        "0-9": content[:10],
        f"{size - 5}-": content[-5:],
        "-7": content[-7:],
        "5-5": content[5:6],
    }.items():
        answer = service.client.get(address, headers={"Range": f"bytes={wanted}"})
        assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["content-range"] == f"bytes 5-5/{size}"
    assert service.client.get(address, headers={"Range": f"bytes={size}-"}).status_code == 416
    assert service.client.get(address, headers={"Range": "bytes=-0"}).status_code == 416
    assert service.client.get(address, headers={"Range": "bytes=1-2,4-5"}).status_code == 200
    etag = whole.headers["etag"]
    assert service.client.get(address, headers={"If-None-Match": etag}).status_code == 304
    assert service.client.get(address, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).content == content
    head = service.client.head(address)
    assert (head.headers["content-length"], head.content) == (str(size), b"")


@pytest.mark.parametrize(
    "field,value,named",
    [
        ("size", "10x", "size"),
        ("size", "9000x9000", "size"),
        ("size", "4x4", "size"),
        ("num_frames", "0", "num_frames"),
        ("num_frames", "100000", "num_frames"),
        ("num_frames", "nan", "num_frames"),
        ("fps", "-3", "fps"),
        ("num_inference_steps", "1e9", "num_inference_steps"),
        ("guidance_scale", "inf", "guidance_scale"),
        ("seed", "-1", "seed"),
        ("refine", "perhaps", "refine"),
        ("preset", "best", "preset"),
        ("seconds", "nan", "seconds"),
        ("seconds", "1e300", "seconds"),
        ("prompt", "x" * 2001, "prompt"),
        ("prompt", "a\x00b", "prompt"),
        ("refine_strength", "2", "refine_strength"),
        ("fit", "stretch", "fit"),
        ("width", "64", "width"),
        ("promt", "x", "promt"),
    ],
)
def test_a_bad_field_is_named(parts, picture, field, value, named):
    answer = parts().post(picture, **{field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == named
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"


def test_presets_seconds_and_fields_of_other_servers(parts, picture):
    service = parts()
    draft = service.document(service.create(picture, preset="draft"))
    assert (draft["refine"], draft["num_inference_steps"]) == (False, 1)
    fine = service.document(service.create(picture, preset="fine", num_inference_steps="3"))
    assert (fine["refine"], fine["num_inference_steps"], fine["refine_steps"]) == (True, 3, 4)
    seconds = service.document(service.create(picture, seconds="2", fps="4", flow_shift="3", user="u"))
    assert (seconds["num_frames"], seconds["seconds"], seconds["ignored"]) == (8, "2", ["flow_shift"])
    sides = service.document(service.create(picture, width="128", height="96", model="sora-2"))
    assert (sides["size"], sides["model"]) == ("128x96", "sora-2")
    assert service.post(picture, model="other").status_code == 404
    assert service.document(service.create(picture, prompt=""))["prompt"] == ""


def test_a_model_without_text_leaves_it_to_its_refiner(tiny_cascade):
    facts, limits = replace(ModelFacts.of(tiny_cascade), has_text=False), Limits()
    refined = parse_fields({"prompt": "a dog"}, ("tiny",), facts, limits)
    assert (refined.prompt, refined.ignored) == ("a dog", ())
    alone = parse_fields({"prompt": "a dog", "refine": "false"}, ("tiny",), facts, limits)
    assert (alone.prompt, alone.ignored) == ("", ("prompt",))
    with pytest.raises(ApiError, match="reads no text"):
        parse_fields({"prompt": "", "negative_prompt": "blur"}, ("tiny",), facts, limits)


def test_facts_choose_sizes_as_the_cascade_does(tiny_cascade):
    facts = ModelFacts.from_json(ModelFacts.of(tiny_cascade).to_json())
    for image_size in ((90, 60), (60, 90), (1000, 10), (7, 7)):
        for size in (None, (96, 64), (128, 128)):
            assert facts.sizes_for(image_size, size, True) == tiny_cascade.sizes_for(image_size, size, True)
    for size in ((63, 64), (8, 4)):
        for one in (facts, tiny_cascade):
            with pytest.raises(ValueError, match=r"64|8 pixels"):
                one.sizes_for((90, 60), size, False)


def _png_of(width: int, height: int) -> bytes:
    """A picture whose header claims this size."""
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "png")
    content = bytearray(data.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def test_hostile_pictures_are_refused(parts, picture):
    service = parts()
    bad = [
        b"",
        b"not a picture",
        picture[:60],
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ]
    bad += [_png_of(100_000, 100_000), _png_of(0, 5)]
    for content in bad:
        answer = service.post(content)
        assert answer.status_code == 400, content[:20]
        assert answer.json()["error"]["param"] == "input_reference"
    for text in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x.png", "data:,", "data:image/png;base64,!!"):
        body = {"prompt": "x", "input_reference": {"image_url": text}}
        answer = service.client.post("/v1/videos", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference"), text
    assert service.client.get("/v1/videos").json()["data"] == []
    assert list(service.service.files.folder.iterdir()) == []


def test_json_and_data_urls(parts, picture):
    import base64

    service = parts()
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    body = {"prompt": "x", "input_reference": {"image_url": url}, "num_frames": 2, "refine": False, "seed": 1}
    assert service.client.post("/v1/videos", json=body).json()["num_frames"] == 2
    form = {"prompt": "x", "input_reference[image_url]": url}
    assert service.client.post("/v1/videos", data=form).status_code == 200
    for content in (b"[1]", b"{", b'{"prompt": ["x"]}', b"\xff"):
        answer = service.client.post("/v1/videos", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
    assert service.client.post("/v1/videos", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert service.client.post("/v1/videos", content=b"--x\r\nnonsense", headers=broken).status_code == 400
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert service.client.post("/v1/videos", content=b"x", headers=no_boundary).status_code == 400


def test_a_body_is_bounded_before_it_is_read(parts, picture):
    service = parts(Limits(max_body_bytes=2000))
    assert service.post(picture + b"x" * 4000).status_code == 413
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(10_000):
            sent += 1000
            yield b"y" * 1000

    headers = {"Content-Type": "application/json"}
    assert service.client.post("/v1/videos", content=endless(), headers=headers).status_code == 413


def test_pages(parts, picture):
    service = parts()
    ids = [service.create(picture) for _ in range(5)]
    first = service.client.get("/v1/videos", params={"limit": 2}).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (ids[:-3:-1], True)
    second = service.client.get("/v1/videos", params={"limit": 3, "after": first["last_id"]}).json()
    assert ([one["id"] for one in second["data"]], second["has_more"]) == (ids[2::-1], False)
    rising = service.client.get("/v1/videos", params={"order": "asc"}).json()
    assert [one["id"] for one in rising["data"]] == ids
    for bad in ({"limit": 0}, {"limit": "x"}, {"after": "video_x"}, {"after": "a\x00"}, {"order": "up"}):
        answer = service.client.get("/v1/videos", params=bad)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_same_idempotency_key_gives_the_same_job(parts, picture):
    service = parts()
    again = {"Idempotency-Key": "abc"}
    assert service.create(picture, again) == service.create(picture, again)
    assert service.post(picture, again, prompt="another").status_code == 409
    assert len(list(service.service.files.folder.iterdir())) == 1


def test_deleting_stops_a_job_at_its_next_step(parts, picture, monkeypatch):
    service = parts()
    id = service.create(picture, num_inference_steps="20")
    steps, progress = [], service.worker._progress

    def counted(ids, request):
        report = progress(ids, request)

        def call(stage, step, count):
            steps.append(step)
            report(stage, step, count)
            if len(steps) == 2:
                assert service.document(id)["status"] == "in_progress"
                assert service.client.delete(f"/v1/videos/{id}").json() == {
                    "id": id,
                    "object": "video.deleted",
                    "deleted": True,
                }

        return call

    monkeypatch.setattr(service.worker, "_progress", counted)
    assert service.worker.step() == 1
    assert steps == [1, 2, 3]
    assert service.client.get(f"/v1/videos/{id}").status_code == 404
    assert list(service.service.files.folder.iterdir()) == []


def test_jobs_of_one_shape_are_made_together(parts, picture, tiny_cascade, photo):
    service = parts(batch_size=3)
    ids = [service.create(picture, seed=str(seed), prompt=f"dog {seed}") for seed in (1, 2)]
    other = service.create(picture, num_frames="2")
    last = service.create(picture, seed="4", negative_prompt="")
    ids.append(service.create(picture, seed="3", prompt="dog 3"))
    assert service.worker.step() == 3
    assert [service.document(id)["status"] for id in ids] == ["completed"] * 3
    assert service.document(other)["status"] == service.document(last)["status"] == "queued"
    for seed, id in enumerate(ids, 1):
        alone = tiny_cascade(photo, f"dog {seed}", seed=seed).frames[0].astype(int)
        file = service.service.files.folder / id / "video.mp4"
        assert np.abs(load_video(file).frames.astype(int) - alone).mean() < 12  # the file is compressed
        assert read_settings(file)["seed"] == seed
    assert service.worker.step() == service.worker.step() == 1


def test_hooks_see_each_clip(parts, picture, tmp_path, monkeypatch):
    module = tmp_path / "operators_hooks.py"
    module.write_text(
        "def safety(frames, job):\n"
        "    assert frames.dtype.name == 'uint8' and frames.ndim == 4\n"
        "    return 'not this' if 'bad' in job['request']['prompt'] else None\n"
        "def provenance(job):\n    return {'maker': 'us', 'id': job['id']}\n"
        "def sign(path, job):\n    path.write_bytes(path.read_bytes() + b'signed')\n"
        "def broken(frames, job):\n    raise RuntimeError('/secret/path')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hooks = {name: f"operators_hooks:{name}" for name in ("safety", "provenance", "sign")}
    service = parts(**hooks)
    good, bad = service.create(picture), service.create(picture, prompt="a bad dog")
    service.worker.step(), service.worker.step()
    file = service.service.files.folder / good / "video.mp4"
    assert read_settings(file)["provenance"] == {"maker": "us", "id": good}
    assert file.read_bytes().endswith(b"signed")
    refused = service.document(bad)
    assert (refused["status"], refused["error"]) == (
        "failed",
        {"code": "content_policy_violation", "message": "not this"},
    )
    assert service.client.get(f"/v1/videos/{bad}/content").status_code == 409
    service.close()
    closed = parts(safety="operators_hooks:broken")
    failed = closed.create(picture)
    closed.worker.step()
    document = closed.document(failed)
    assert (document["status"], document["error"]["code"]) == ("failed", "generation_failed")
    assert "/secret" not in json.dumps(document)


def test_sync_answers_with_the_video(parts, picture):
    service = parts()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            service.worker.step() or time.sleep(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        answer = service.post(picture, path="/v1/videos/sync", refine="false")
    finally:
        stop.set()
        thread.join()
    assert answer.status_code == 200
    assert answer.content[4:8] == b"ftyp"
    assert service.document(answer.headers["x-video-id"])["status"] == "completed"


def test_service_routes_and_headers(parts, picture):
    service = parts()
    assert service.client.get("/health").json() == {"status": "ok"}
    assert service.client.get("/ready").status_code == 200
    assert [m["id"] for m in service.client.get("/v1/models").json()["data"]] == ["tiny", "sora-2"]
    assert service.client.get("/v1/models/tiny").json()["object"] == "model"
    service.create(picture)
    text = service.client.get("/metrics").text
    assert 'i2vgen_jobs{status="queued"} 1.0' in text
    assert "i2vgen_workers 1.0" in text
    assert 'i2vgen_http_requests_total{method="POST",route="/v1/videos",status="200"} 1.0' in text
    page = service.client.get("/docs")
    assert "num_inference_steps" in page.text
    assert "http" not in page.text.replace("http.", "")  # nothing of another server
    assert "<script" not in page.text
    answer = service.client.get("/nowhere", headers={"X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "mine-1")
    assert answer.json()["error"]["message"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert service.client.get("/health", headers={"X-Request-Id": "a b\t"}).headers["x-request-id"].startswith("req_")
    assert service.client.put("/v1/videos").status_code == 405
    service.service.is_draining = True
    assert service.client.get("/ready").status_code == 503
    assert service.post(picture).json()["error"]["code"] == "stopping"


def test_pages_of_other_sites_are_kept_out(parts, picture):
    service = parts()
    foreign = service.post(picture, {"Origin": "https://evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
    rebound = service.client.get("/v1/videos", headers={"Host": "evil.example"})
    assert rebound.status_code == 421
    service.close()
    allowed = parts(cors_origins=("https://good.example",))
    good = allowed.client.get("/v1/videos", headers={"Origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    assert allowed.client.get("/v1/videos", headers={"Origin": "https://evil.example"}).status_code == 403


def test_the_openai_client_works_with_it(parts, photo_path, tmp_path):
    openai = pytest.importorskip("openai")
    import uvicorn

    service = parts()
    key = service.service.keys.add("ana")[1]
    server = uvicorn.Server(uvicorn.Config(service.app, port=free_port(), log_config=None))
    stop = threading.Event()

    def work():
        while not stop.is_set():
            service.worker.step() or time.sleep(0.05)

    threads = [threading.Thread(target=server.run), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    try:
        client = openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{server.config.port}/v1", max_retries=5)
        with pytest.warns(DeprecationWarning, match="Sora"):
            video = client.videos.create(
                prompt="a dog runs",
                input_reference=photo_path,
                size="96x64",
                seconds="1",
                extra_body={"num_frames": 3, "seed": 5, "refine": False},
            )
        assert (video.object, video.size, video.seconds) == ("video", "96x64", "0.375")
        while video.status in ("queued", "in_progress"):
            time.sleep(0.1)
            video = client.videos.retrieve(video.id)
        assert (video.status, video.progress, video.error) == ("completed", 100, None)
        client.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
        assert len(load_video(tmp_path / "video.mp4").frames) == 3
        sheet = client.videos.download_content(video.id, variant="spritesheet").content
        assert sheet[:2] == b"\xff\xd8"
        polled = client.videos.create_and_poll(prompt="x", input_reference=photo_path, poll_interval_ms=100)
        assert polled.status == "completed"
        assert [one.id for one in client.videos.list(limit=1)] == [polled.id, video.id]
        assert [one.id for one in client.models.list()] == ["tiny", "sora-2"]
        assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError, match="none with this id"):
            client.videos.retrieve(video.id)
        with pytest.raises(openai.BadRequestError, match="size '7'"):
            client.videos.create(prompt="x", input_reference=photo_path, size="7")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").videos.list()
    finally:
        stop.set()
        server.should_exit = True
        for thread in threads:
            thread.join()


def test_worker_needs_a_base_stage(parts, tiny_cascade):
    class RefinerAlone:
        base, model_name = None, "refiner"

    with pytest.raises(ValueError, match="refiner alone"):
        Worker(parts().config, RefinerAlone(), "other", "cpu")

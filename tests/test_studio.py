"""The studio without a browser: moves, the form, jobs, takes and their refinement, uploads, sessions, the guard."""

from __future__ import annotations

import base64
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2vgen.cli.studio import read_login
from i2vgen.media import load_video, read_settings, write_video
from i2vgen.web import moves, render
from i2vgen.web.actions import Studio
from i2vgen.web.guard import host_name, is_foreign
from i2vgen.web.jobs import CANCELLED, DONE, FAILED, RUNNING, CancelledError, Job, Line
from i2vgen.web.sentences import sentence_of
from i2vgen.web.sessions import FOLDER_PREFIX, MAX_HISTORY, PID_FILE, Clip, Result, Sessions
from i2vgen.web.uploads import EXAMPLES, shown_name, take_photo, take_video
from i2vgen.web.wishes import FORM, MAX_TAKES, SHAPES, form_of_settings, read_wish, settled

ROOT = Path(__file__).parent.parent


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Sessions()
    yield made
    made.close()


@pytest.fixture
def session(sessions):
    return sessions.new()


@pytest.fixture
def studio(cascade):
    made = Studio(cascade, {"model": "nano"})
    yield made
    made.line.close()


def finished(studio, session, seconds=60.0):
    deadline = time.monotonic() + seconds
    while session.job is not None and time.monotonic() < deadline:
        studio.finish(session)
        time.sleep(0.02)
    assert session.job is None
    return session


# Camera moves


@pytest.mark.parametrize("name", moves.MOVES)
@pytest.mark.parametrize("speed", moves.SPEEDS)
def test_a_move_is_written_read_back_and_taken_out(name, speed):
    speed = "normal" if name == "static" else speed
    prompt = moves.with_move("a castle", name, speed)
    assert prompt == f"a castle, {moves.phrase(name, speed)}"
    assert moves.read_move(prompt) == (name, speed)
    assert moves.with_move(prompt, name, speed) == "a castle"
    assert moves.with_move("", name, speed) == moves.phrase(name, speed)


def test_a_move_replaces_another_and_its_speed_changes():
    prompt = moves.with_move("snow falls. the camera pans slowly to the left", "zoom-in")
    assert prompt == "snow falls, the camera zooms in"
    assert moves.with_speed(prompt, "fast") == "snow falls, the camera zooms quickly in"
    assert moves.with_speed("snow falls", "fast") == "snow falls"
    assert moves.read_move("The camera rolls rapidly counterclockwise") == ("roll-counterclockwise", "fast")
    assert moves.read_move("the camera pans left by a lot") == (None, "normal")


# The form


def test_a_wish_is_read_and_checked():
    wish = read_wish({"prompt": " a \n b ", "num_takes": 3, "seed": 5, "is_locked": True, "size": "384 × 256"})
    assert (wish.prompt, wish.seeds, wish.size) == ("a b", [5, 6, 7], (384, 256))
    assert len({read_wish({"seed": 5}).seed for _ in range(4)}) > 1, "an open seed is drawn anew"
    assert read_wish({"num_frames": 0, "guidance_scale": 0}).changes["num_frames"] is None, "0 of an empty field"
    assert read_wish({"num_frames": 0, "guidance_scale": 0}).guidance_scale == 0
    for form, words in (
        ({"num_takes": MAX_TAKES + 1}, "Takes: give a number from 1 to 8"),
        ({"num_frames": 2.5}, "Frames: give a whole number"),
        ({"guidance_scale": float("nan")}, "Guidance"),
        ({"size": "big"}, "give width x height"),
        ({"size": "9999x9999"}, "at most 4096"),
        ({"prompt": "x" * 3000}, "2000 are the most"),
        ({"shape": "Round"}, "Shape 'Round'"),
        ({"seed": "7"}, "The seed"),
    ):
        with pytest.raises(ValueError, match=words):
            read_wish(form)


def test_shapes_and_presets_are_settled(cascade):
    for shape, ratio in SHAPES.items():
        _, base, refine = settled(read_wish({"shape": shape}), cascade, (120, 80))
        expected = ratio or (120, 80)
        assert (base.width >= base.height) == (expected[0] >= expected[1])
        assert min(refine.width, refine.height) == 96
    draft, base, _ = settled(read_wish({"preset": "draft"}), cascade, (80, 80))
    fine, _, refine = settled(read_wish({"preset": "fine"}), cascade, (80, 80))
    assert (draft.num_inference_steps, fine.num_inference_steps, refine.num_inference_steps) == (1, 4, 4)


def test_settings_fill_the_form_and_hostile_ones_do_not(cascade):
    form = form_of_settings({"kind": "generate", "prompt": ["<b>"], "seed": True, "base": 3, "fit": "x"}, cascade)
    assert set(form) | {"num_takes"} == set(FORM)
    assert (form["prompt"], form["seed"], form["fit"], form["size"]) == ("", 0, "crop", "")
    with pytest.raises(ValueError, match="refined video"):
        form_of_settings({"kind": "refine"}, cascade)


# Jobs


def test_jobs_go_one_by_one_and_tell_their_place():
    line, gate, order = Line(), threading.Event(), []

    def work(job):
        job.plan([1.0])
        gate.wait(10)
        order.append(job.owner)

    jobs = [Job(str(i), "work", work) for i in range(3)]
    for job in jobs:
        line.add(job)
    wait_for(lambda: jobs[0].state == RUNNING)
    assert [line.place(job) for job in jobs] == [0, 1, 2]
    with pytest.raises(ValueError, match="still being made"):
        line.add(Job("1", "more", work))
    line.cancel(jobs[1])
    assert (jobs[1].state, line.place(jobs[2])) == (CANCELLED, 1)
    gate.set()
    wait_for(lambda: jobs[2].state == DONE)
    assert order == ["0", "2"]
    line.close()


def test_a_job_is_cancelled_at_its_next_step_and_a_failure_is_a_sentence():
    line, steps = Line(), []

    def stepping(job):
        job.plan([2.0])
        for step in range(10_000):
            job.tick(0, step, 10_000, "working")
            steps.append(step)
            time.sleep(0.005)

    def failing(job):
        raise RuntimeError("secret /home/me/key.txt")

    job = Job("a", "steps", stepping)
    line.add(job)
    wait_for(lambda: len(steps) > 3)
    assert 0 < job.seconds_left() <= 2.0
    line.cancel(job)
    count = len(steps)
    wait_for(lambda: job.state == CANCELLED)
    assert len(steps) <= count + 1
    broken = Job("a", "fails", failing)
    line.add(broken)
    wait_for(lambda: broken.state == FAILED)
    assert "RuntimeError" in broken.error
    assert "secret" not in broken.error
    line.close()
    with pytest.raises(CancelledError):
        job.tick(0, 1, 2, "late")


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize(
    "error, sentence",
    [
        (ValueError("num_frames must be a whole number"), "The number of frames must be a whole number."),
        (ValueError("'/tmp/a b/x.jpg' is damaged"), "is damaged"),
        (ValueError("needs 9 GB: use a smaller --size or fewer --frames"), "choose a smaller size or fewer frames."),
        (MemoryError(), "The machine ran out of memory"),
        (OSError(28, "No space left on device"), "No space left"),
        (KeyError("x"), "the terminal it runs in says where"),
    ],
)
def test_errors_are_sentences(error, sentence):
    said = sentence_of(error)
    assert sentence in said
    assert "--" not in said
    assert "/tmp" not in said
    assert said.endswith((".", "?"))


# Takes and refinement


def test_takes_are_made_picked_and_refined_from_the_very_take(studio, session, photo):
    photo.save(session.folder / "in.png")
    take_photo(session, session.folder / "in.png", "holiday.png")
    form = {"prompt": "the camera pans left", "num_takes": 2, "seed": 3, "is_locked": True}
    assert studio.make_takes(session, form) == 3
    finished(studio, session)
    assert session.notice == ""
    clips = session.takes.clips
    assert [clip.seed for clip in clips] == [3, 4]
    assert clips[0].digest != clips[1].digest
    studio.refine_pick(session)
    assert session.notice == "Choose a take first."
    studio.pick(session, "7")
    studio.pick(session, "1")
    studio.refine_pick(session)
    finished(studio, session)
    result = session.result
    assert (result.note, session.notice) == ("", ""), "the base video is the take, to the pixel"
    assert result.before is clips[1]

    # the command line makes the same video from the same photo
    settings = read_settings(session.path(result.clip.name))
    assert settings["image"]["path"] == "holiday.png"
    same = studio.cascade(photo, prompt=form["prompt"], seed=4)
    stored = load_video(session.path(result.clip.name)).frames
    write_video(session.folder / "same.mp4", same.frames[0], same.fps)
    difference = np.abs(stored.astype(int) - load_video(session.folder / "same.mp4").frames)
    assert difference.mean() < 12  # the encoder does not give the same bytes twice at such a size
    assert "generate holiday.png 'the camera pans left'" in result.clip.command
    assert "--seed 4" in result.clip.command

    # all of it is shown, and the history opens the takes again
    shown = render.takes(session, True) + render.result(session) + render.history(session)
    assert shown.count("<video") == 4
    assert [entry is result for entry in session.history] == [True, False]
    studio.open(session, session.takes.key)
    assert session.result is None
    values = studio.use(session, f"{session.takes.key}/1")
    assert (values["seed"], values["is_locked"], values["prompt"]) == (4, True, form["prompt"])
    studio.clear(session)
    assert list(session.folder.iterdir()) == []


def test_a_cancelled_run_keeps_what_is_there(studio, session, photo):
    photo.save(session.folder / "in.png")
    take_photo(session, session.folder / "in.png", "in.png")
    studio.make_takes(session, {"num_takes": 8})
    wait_for(lambda: session.takes is not None and session.takes.clips[0] is not None)
    studio.cancel(session)
    finished(studio, session)
    assert 1 <= len(session.takes.clips) < 8
    assert session.notice == ""


def test_a_video_is_refined(studio, session, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    take_video(session, write_video(tmp_path / "in.gif", frames, 5), "in.gif")
    assert (session.footage.clip.num_frames, session.footage.source["path"]) == (3, "in.gif")
    studio.refine_footage(session, {"prompt": "noise", "refine_strength": 0.5})
    finished(studio, session)
    assert session.notice == ""
    settings = session.result.clip.settings
    assert (settings["kind"], settings["refine_strength"], settings["num_frames"]) == ("refine", 0.5, 3)
    assert session.result.clip.width == 96


def test_what_is_wrong_is_said_and_nothing_runs(studio, session):
    assert studio.make_takes(session, {}) is None
    assert session.notice == "There is no photo yet: drop one, or try an example."
    studio.refine_footage(session, {})
    assert "no video yet" in session.notice
    assert studio.choose_example(session, "../../etc/passwd") is None
    assert studio.choose_example(session, "dogs") == EXAMPLES["dogs"].prompt
    assert studio.make_takes(session, {"num_frames": -1}) is None
    assert session.notice.startswith("Frames: give a number")
    assert 'role="alert"' in render.status(session, studio.line)


# Uploads and sessions


def test_uploads_are_bounded_and_judged_by_content(session, tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_text("<script>")
    with pytest.raises(ValueError, match=r"^'my\.jpg' is not a picture"):
        take_photo(session, tmp_path / "x.jpg", "my.jpg")
    with pytest.raises(ValueError, match=r"^'my\.mp4' is not a video"):
        take_video(session, tmp_path / "x.jpg", "my.mp4")
    Image.new("RGB", (200, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr("i2vgen.web.uploads.MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="200 x 100 pixels"):
        take_photo(session, tmp_path / "big.png", "big.png")
    assert list(session.folder.iterdir()) == []
    assert session.photo is None
    assert shown_name('..\\..\\C:/x/<b>"a.png') == "ba.png"


def test_names_from_outside_are_escaped(session, photo, studio):
    photo.save(session.folder / "in.png")
    take_photo(session, session.folder / "in.png", "<img src=x onerror=alert(1)>")
    session.notice = "<script>alert(1)</script>"
    html = render.photo(session) + render.status(session, studio.line) + render.moves("<b>")
    assert "<script" not in html
    assert "<img src=x" not in html


def test_sessions_are_apart_and_are_removed(sessions):
    one, two = sessions.new(), sessions.new()
    (one.folder / "take-1.mp4").write_bytes(b"x")
    assert one.path("take-1.mp4") is not None
    assert two.path("take-1.mp4") is None
    for name in (f"../{one.folder.name}/take-1.mp4", "..", "", ".hidden", "/etc/passwd"):
        assert two.path(name) is None
    (two.folder / "link.mp4").symlink_to(one.folder / "take-1.mp4")
    assert two.path("link.mp4") is None
    assert sessions.get("nobody") is None
    assert oct(sessions.folder.stat().st_mode)[-3:] == "700"
    sessions.close()
    assert not sessions.folder.exists()


def test_leftovers_of_killed_studios_go_and_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, pid in (("dead", 2**22 + 1), ("alive", os.getppid())):
        folder = tmp_path / f"{FOLDER_PREFIX}{name}"
        folder.mkdir()
        (folder / PID_FILE).write_text(str(pid))
    made = Sessions()
    assert sorted(p.name.removeprefix(FOLDER_PREFIX) for p in tmp_path.iterdir() if p != made.folder) == ["alive"]
    made.close()


def test_history_is_bounded_with_its_files(session):
    for index in range(MAX_HISTORY + 3):
        names = [f"{what}-{index}" for what in ("video", "take")]
        for name in names:
            (session.folder / f"{name}.mp4").touch()
        clips = [Clip(f"{name}.mp4", f"{name}.jpg", 0, 1, 8, 8, 8.0, 1.0, {}) for name in names]
        session.remember(Result(str(index), *clips, "x"))
    assert len(session.history) == MAX_HISTORY
    assert len(list(session.folder.iterdir())) == 2 * MAX_HISTORY


def test_examples_are_the_published_photos():
    for example in EXAMPLES.values():
        assert example.path.read_bytes() == (ROOT / "examples" / example.path.name).read_bytes()
        assert moves.read_move(example.prompt)[0] is not None


# Who may come in


def test_logins_are_read_without_telling_them(tmp_path):
    assert read_login("me:pass:word") == ("me", "pass:word")
    (tmp_path / "login").write_text("me:secret\n")
    assert read_login(f"@{tmp_path / 'login'}") == ("me", "secret")
    for text in ("nocolon-hunter2", ":hunter2", "me:", f"@{tmp_path / 'gone'}"):
        with pytest.raises(ValueError, match="--auth") as error:
            read_login(text)
        assert "hunter2" not in str(error.value)


def test_the_command_says_what_is_wrong_before_it_loads_a_model(run):
    pytest.importorskip("gradio")
    busy = socket.create_server(("127.0.0.1", 0))
    port = busy.getsockname()[1]
    for options, words in (
        (("--port", "99999"), "--port 99999: give a number from 0 to 65535"),
        (("--port", str(port)), f"--port {port}: cannot listen there"),
        (("--auth", "me"), "write USER:PASSWORD"),
        (("--max-upload", "0"), "--max-upload 0"),
    ):
        said = run("studio", "--model", "no/such/model", *options)
        assert said.code == 2
        assert words in said.err
    busy.close()


def test_the_command_says_how_to_get_what_it_lacks(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'i2vgen[web]'" in run("studio").err


def test_gradio_is_imported_by_the_page_alone():
    files = (ROOT / "src" / "i2vgen").rglob("*.py")
    importing = [file.name for file in files if re.search(r"^(import|from) gradio", file.read_text(), re.MULTILINE)]
    assert importing == ["page.py"]


def test_hosts_and_origins():
    assert [host_name(h) for h in ("localhost:7860", "[::1]:80", "Evil.example", "")] == [
        "localhost",
        "::1",
        "evil.example",
        "",
    ]
    assert is_foreign({"origin": "http://evil.example", "host": "127.0.0.1:7860"})
    assert is_foreign({"sec-fetch-site": "cross-site", "host": "127.0.0.1"})
    assert not is_foreign({"origin": "http://127.0.0.1:7860", "host": "127.0.0.1:7860"})


def test_the_application_guards_its_doors(studio, sessions, photo, tmp_path):
    pytest.importorskip("gradio")
    testclient = pytest.importorskip("starlette.testclient")
    from i2vgen.web.app import build_app

    app = build_app(studio, sessions, login=("me", "pass"), max_upload_bytes=200_000)
    word = {"authorization": "Basic " + base64.b64encode(b"me:pass").decode()}
    wrong = {"authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}
    photo.save(tmp_path / "p.png")
    picture = (tmp_path / "p.png").read_bytes()

    def visitor(headers=word, base="http://127.0.0.1:7860"):
        return testclient.TestClient(app, base_url=base, headers=headers)

    assert visitor({}).get("/").status_code == 401
    assert visitor(wrong).get("/studio/examples/dogs.jpg").status_code == 401
    assert visitor(base="http://evil.example").get("/").status_code == 421
    one, two = visitor(), visitor()
    page = one.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "fonts.googleapis" not in page.text
    assert "cdnjs" not in page.text
    for path in ("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/info", "/login", "/docs"):
        assert one.get(path).status_code == 404, path
    assert one.get("/studio/static/%2e%2e%2fguard.py").status_code == 404

    # uploads: without a session, from another site, too large, empty, of the wrong kind, and right
    two_upload = two.post("/studio/upload/photo", content=picture)
    assert two_upload.status_code == 403
    foreign = one.post("/studio/upload/photo", content=picture, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert "larger than" in one.post("/studio/upload/photo", content=b"x" * 200_001).json()["error"]
    assert "empty" in one.post("/studio/upload/photo", content=b"").json()["error"]
    assert "no i2vgen settings" in one.post("/studio/upload/settings", content=picture).json()["error"]
    assert one.post("/studio/upload/else", content=picture).status_code == 404
    named = one.post("/studio/upload/photo", content=picture, headers={"x-file-name": "..%2F..%2Fp.png"})
    assert named.json() == {"name": "p.png"}

    # the photo is seen by its owner alone
    session = next(s for s in sessions._sessions.values() if s.photo is not None)
    address = f"/studio/clips/{session.photo.preview}"
    assert one.get(address).headers["content-type"] == "image/jpeg"
    two.get("/")
    assert two.get(address).status_code == 404
    assert one.get("/studio/clips/..%2Fpid").status_code == 404

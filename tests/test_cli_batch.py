"""`i2vgen batch`: what is printed, exit codes, and that its videos are those of `generate` and `again`."""

from __future__ import annotations

import json
import os
import signal

import pytest

from i2vgen import pipelines
from i2vgen.media import load_video, read_settings
from i2vgen.pipelines.cascade import CascadePipeline


@pytest.fixture
def batch(run, tmp_path, tiny_cascade_dir):
    """batch(*options) -> a run over `shots.txt` into `out`, with one step in each stage."""

    def call(*options, shots="shots.txt"):
        quick = ("--steps", 1, "--refine-steps", 1, "--format", "webp")
        where = ("-o", tmp_path / "out", "--model", tiny_cascade_dir, "--device", "cpu")
        return run("batch", tmp_path / shots, *where, *quick, *options)

    return call


@pytest.fixture
def shots(tmp_path, photo):
    photo.save(tmp_path / "photo.png")
    (tmp_path / "shots.txt").write_text("photo.png|||a dog runs\n# a remark\nphoto.png|||snow falls\n")
    return tmp_path / "shots.txt"


def entries_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_list_becomes_videos_as_generate_makes_them(batch, shots, generate, run, tmp_path, monkeypatch):
    loads, load = [], pipelines.load_cascade
    monkeypatch.setattr(pipelines, "load_cascade", lambda *a, **k: loads.append(a) or load(*a, **k))
    result = batch("--contact-sheet")
    assert (result.code, result.err, len(loads)) == (0, "", 1)
    out = tmp_path / "out"
    first, second = out / "0001-photo-a-dog-runs.webp", out / "0002-photo-snow-falls.webp"
    lines = result.out.splitlines()
    assert lines[0].startswith(f"[1/2] {first}: 4 frames, ")
    assert lines[0].endswith(" left")
    assert lines[1].startswith(f"[2/2] {second}: 4 frames, ")
    assert lines[2] == f"2 items: 2 done, 0 skipped (done before), 0 failed; see {out / 'results.jsonl'}"
    assert lines[3] == f"{out / 'contact-sheet.png'}: some frames of every video"
    assert sorted(path.name for path in out.iterdir()) == [
        first.name,
        second.name,
        "contact-sheet.png",
        "results.jsonl",
    ]

    options = ("--steps", 1, "--refine-steps", 1, "--seed", 1000)
    assert generate(tmp_path / "g.webp", *options, image=tmp_path / "photo.png", prompt="snow falls").code == 0
    assert read_settings(tmp_path / "g.webp") == read_settings(second)
    assert (load_video(tmp_path / "g.webp").frames == load_video(second).frames).all()
    assert run("again", second, "-o", tmp_path / "a.webp").code == 0
    assert (tmp_path / "a.webp").read_bytes() == second.read_bytes()

    again = batch()
    assert (again.code, len(loads)) == (0, 3)  # generate's and again's
    assert again.out.splitlines() == [
        "2 of 2 items done before",
        f"2 items: 0 done, 2 skipped (done before), 0 failed; see {out / 'results.jsonl'}",
    ]


def test_failures_give_exit_code_1_and_the_next_run_mends_them(batch, shots, tmp_path, photo):
    shots.write_text("none.png|||a\nphoto.png|||b\n")
    result = batch()
    assert result.code == 1
    assert result.err.startswith(f"[1/2] {shots}:1 failed: ")
    assert "does not exist" in result.err
    assert "1 done, 0 skipped (done before), 1 failed" in result.out
    photo.save(tmp_path / "none.png")
    document = json.loads(batch("--json").out)
    assert (document["items"], document["done"], document["skipped"], document["failed"]) == (2, 1, 1, 0)
    assert [entry["output"] for entry in document["entries"]] == ["0001-none-a.webp"]
    assert [entry["status"] for entry in entries_of(tmp_path / "out")] == ["done", "done"]


def test_dry_run_lists_and_writes_nothing(batch, shots, tmp_path, monkeypatch):
    monkeypatch.setattr(CascadePipeline, "__call__", lambda *_, **__: pytest.fail("sampling began"))
    shots.write_text("photo.png|||a\nnone.png|||b\n")
    result = batch("--dry-run", "--repeats", 2, "--size", "96x64")
    lines = result.out.splitlines()
    assert result.code == 1
    expected = "   1  pending  0001-photo-a.webp  seed 0, size 96x64, steps 1, refine_steps 1"
    assert lines[0] == expected
    assert lines[1].split()[2:5] == ["0001-photo-a-r2.webp", "seed", "1,"]
    assert lines[3].startswith(f"      {shots}:2: ")
    assert lines[-2] == "4 items: 4 pending; 2 with problems"
    assert lines[-1].startswith("about ")
    assert not (tmp_path / "out").exists()
    document = json.loads(batch("--dry-run", "--json").out)
    assert (document["to_make"], [item["seed"] for item in document["items"]]) == (2, [0, 1000])


def test_errors_come_before_any_work(batch, shots, tmp_path, monkeypatch):
    monkeypatch.setattr(CascadePipeline, "__call__", lambda *_, **__: pytest.fail("sampling began"))
    (tmp_path / "bad.jsonl").write_text('{"image": "a", "stepps": 1}\n{"image": "b", "size": "x"}\n')
    result = batch(shots="bad.jsonl")
    assert (result.code, result.out) == (2, "")
    path = tmp_path / "bad.jsonl"
    assert result.err.splitlines() == [
        f"{path}:1: unknown column 'stepps': did you mean 'steps'?",
        f"{path}:2: size 'x': give width x height in pixels, such as 448x256",
        "error: 2 things to correct in the list; nothing was made",
    ]
    for options, said in (
        (("--repeats", 0), "--repeats 0"),
        (("--batch-size", 0), "--batch-size 0"),
        (("--seed", -1), "--seed -1"),
        (("--format", "avi"), "avi"),
        (("--size", "wide"), "size 'wide'"),
        (("--model", tmp_path / "none"), "no folder at"),
    ):
        result = batch(*options)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert said in result.err
    assert "cannot be read" in batch(shots="none.txt").err
    assert not (tmp_path / "out").exists()


def test_a_changed_option_is_refused_without_force(batch, shots):
    assert batch("--no-refine").code == 0
    changed = batch("--no-refine", "--frames", 3)
    assert changed.code == 2
    assert "frames not given then, 3 now" in changed.err
    assert changed.err.splitlines()[-1].endswith("replace what differs with --force")
    assert "2 done, 0 skipped" in batch("--no-refine", "--frames", 3, "--force").out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_say_how_far_it_came(batch, shots, tmp_path, monkeypatch, number):
    sample, calls = CascadePipeline.__call__, []

    def interrupted(*arguments, **options):
        calls.append(options)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return sample(*arguments, **options)

    monkeypatch.setattr(CascadePipeline, "__call__", interrupted)
    result = batch("--no-refine")
    assert result.code == 130
    assert result.err.splitlines() == ["1 of 2 made; the same command goes on", "error: interrupted"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0001-photo-a-dog-runs.webp", "results.jsonl"]
    assert "1 done, 1 skipped" in batch("--no-refine").out

"""What goes wrong on the command line: said in one line before sampling, by exit code, and with no half files."""

from __future__ import annotations

import errno

import pytest

from i2vgen import pipelines
from i2vgen.pipelines.cascade import CascadePipeline
from i2vgen.pipelines.loading import NonFiniteError


@pytest.fixture
def no_sampling(monkeypatch):
    """Any call of a cascade fails the test."""

    def refuse(*_, **__):
        pytest.fail("sampling began")

    monkeypatch.setattr(CascadePipeline, "__call__", refuse)


@pytest.fixture
def loaded_once(monkeypatch, tiny_cascade, tiny_cascade_dir):
    """The tiny cascade is not read anew, for tests of what happens after loading; all else is loaded as ever."""
    load, usual = pipelines.load_cascade, {"device": "cpu", "dtype": "auto"}

    def load_or_share(model, **kwargs):
        return tiny_cascade if (model, kwargs) == (str(tiny_cascade_dir), usual) else load(model, **kwargs)

    monkeypatch.setattr(pipelines, "load_cascade", load_or_share)


def test_prompt_too_long_to_keep_is_said_before_sampling(generate, tmp_path, no_sampling):
    result = generate(tmp_path / "a.mp4", prompt="\N{DOG}" * 10000)
    assert result.code == 2
    assert result.err.startswith("error: prompt has 10000 characters")


@pytest.mark.parametrize(
    "options, said",
    [
        (("--size", "wide"), "size 'wide': give width x height"),
        (("--size", "100x70", "--no-refine"), "nearest valid 96x64"),
        (("--size", "4x4"), "size 4x4"),
        (("--size", "90000x90000"), "use a smaller --size"),
        (("--frames", 0), "--frames 0"),
        (("--frames", -2), "--frames -2"),
        (("--frames", "many"), "--frames"),
        (("--steps", 0), "--steps 0"),
        (("--refine-steps", -1), "--refine-steps -1"),
        (("--refine-strength", 1.5), "refinement strength 1.5"),
        (("--guidance", "nan"), "--guidance nan"),
        (("--seed", -1), "--seed -1"),
        (("--fps", 0), "--fps 0"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--dtype", "int8"), "int8"),
        (("--fit", "stretch"), "stretch"),
        (("--contact-sheet", "sheet.txt"), "'sheet.txt'"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_bad_options_stop_before_sampling(generate, tmp_path, no_sampling, loaded_once, options, said):
    result = generate(tmp_path / "a.mp4", *options)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert said in result.err
    assert not list(tmp_path.iterdir())


def test_bad_pictures(generate, tmp_path, photo, no_sampling):
    photo.resize((300, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, said in (("none.jpg", "does not exist"), ("text.jpg", "holds text"), ("cut.jpg", "cut short")):
        result = generate(tmp_path / "a.mp4", image=tmp_path / name)
        assert result.code == 2
        assert result.err.startswith("error: ")
        assert said in result.err
        assert name in result.err


def test_bad_models(generate, tmp_path, tiny_cascade_dir, no_sampling):
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "model_index.json").write_text((tiny_cascade_dir / "model_index.json").read_text())
    for model, said in (
        (tmp_path / "none", "no folder at"),
        (tmp_path, "model_index.json"),
        (partial, "is missing"),
    ):
        result = generate(tmp_path / "a.mp4", model=model)
        assert result.code == 2
        assert said in result.err


def test_bad_outputs_are_said_before_sampling(generate, tmp_path, no_sampling):
    (tmp_path / "file").write_text("")
    (tmp_path / "old.mp4").write_text("")
    for name, said in (
        ("a.xyz", "unknown suffix"),
        ("file/a.mp4", "not a directory"),
        ("old.mp4", "--force"),
    ):
        result = generate(tmp_path / name)
        assert result.code == 2
        assert said in result.err
    assert "a GIF shows at most 50" in generate(tmp_path / "a.gif", "--fps", 60).err


def test_full_disk_is_our_failure_and_leaves_no_file(generate, tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("i2vgen.media.writers._write_webp", full)
    result = generate(tmp_path / "a.webp", "--no-refine", "--steps", 1)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, code, said",
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (NonFiniteError("base stage: NaN"), 1, "error: base stage: NaN\n"),
        (MemoryError(), 1, "error: out of memory (MemoryError): use a smaller --size or fewer --frames\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (an error inside i2vgen; --debug shows where)\n"),
    ],
)
def test_failures_while_sampling(generate, tmp_path, monkeypatch, loaded_once, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(CascadePipeline, "__call__", fail)
    result = generate(tmp_path / "a.mp4")
    assert (result.code, result.err) == (code, said)
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(run, tmp_path, monkeypatch):
    assert "Traceback" not in run("show", tmp_path / "none").err
    assert "Traceback" in run("show", tmp_path / "none", "--debug").err
    monkeypatch.setenv("I2VGEN_DEBUG", "1")
    assert "Traceback" in run("show", tmp_path / "none").err

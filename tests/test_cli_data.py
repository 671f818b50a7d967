"""`i2vgen data prepare` and `i2vgen data show` as a user meets them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from i2vgen.cli import main
from numbered_clips import photo_bytes, write_clip


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "raw"
    folder.mkdir()
    rng = np.random.default_rng(0)
    whole = np.asarray(Image.fromarray(rng.integers(0, 255, (16, 60, 3), dtype=np.uint8)).resize((600, 96)))
    write_clip(
        folder / "a.mp4", np.arange(48) / 24, size=(160, 96), pictures=lambda i: whole[:, 2 * i : 2 * i + 160].copy()
    )
    (folder / "a.txt").write_text("a wall")
    (folder / "b.png").write_bytes(photo_bytes(3, (160, 96)))
    (folder / "c.png").write_bytes(b"junk")
    return folder


LIMITS = ["--min-side", "64", "--short-side", "64", "--min-sharpness", "0"]


def test_prepare_then_show(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "prepare", str(raw), "-o", str(out), *LIMITS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["videos"], found["images"], found["shards"], found["left_out"]) == (1, 1, 1, 1)
    assert json.loads((out / "statistics.json").read_text())["clips"] == 2

    assert main(["data", "prepare", str(raw), "-o", str(out), *LIMITS]) == 0
    text = capsys.readouterr().out
    assert "1 videos (0.0 min) and 1 pictures" in text
    assert "left out" in text

    assert main(["data", "show", str(out), "--sheet", str(tmp_path / "sheet.png")]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("32 frames at 16"))
    assert row.split()[4:] == ["29.2%", "1", "as", "448x256"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300
    (raw / "a.mp4").unlink()
    assert main(["data", "show", str(raw)]) == 0
    assert "not for the default recipe: sources: no video" in capsys.readouterr().out
    assert main(["data", "show", str(raw), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["clips"], report["without_caption"]) == (1, 1)
    assert any(name.endswith("c.png") for name in report["bad"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["show", "nowhere"], "'nowhere' does not exist"),
        (["prepare", "nowhere", "-o", "OUT"], "'nowhere' does not exist"),
        (["prepare", "RAW", "-o", "RAW"], "other files"),
        (["prepare", "RAW", "-o", "OUT", "--crf", "77"], "crf is 77"),
        (["prepare", "RAW", "-o", "OUT", "--aesthetic", "nowhere:f"], "cannot be imported"),
    ],
)
def test_mistakes_are_one_line(raw, tmp_path, capsys, arguments, message):
    names = {"RAW": str(raw), "OUT": str(tmp_path / "out")}
    assert main(["data", *(names.get(argument, argument) for argument in arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error

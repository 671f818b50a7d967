"""`i2vgen evaluate` from the command line, on the tiny cascade."""

import json

import pytest

from i2vgen.evaluate import cost

pytest.importorskip("cv2")


@pytest.fixture
def evaluate(run, pack_dir, tiny_cascade_dir):
    def call(*options):
        return run("evaluate", *options, "--model", tiny_cascade_dir, "--device", "cpu", "--seeds", 1)

    return call


def test_tables_files_and_resume(evaluate, pack_dir, tmp_path):
    folder = tmp_path / "out"
    result = evaluate("vae", "film", "spectrum", "--pack", pack_dir, "-o", folder)
    assert result.code == 0, result.err
    assert "VAE alone on held-out photos" in result.out
    assert "## summary" in result.out
    for name in ("vae.json", "vae.md", "vae-sheet.png", "film.md", "spectrum-spatial.png", "summary.md"):
        assert (folder / name).stat().st_size > 0, name
    made = (folder / "film.json").read_bytes()
    again = evaluate("film", "--pack", pack_dir, "-o", folder, "--json")
    assert again.code == 0
    assert (folder / "film.json").read_bytes() == made
    document = json.loads(again.out)
    assert [report["measure"] for report in document["reports"]] == ["film"]
    assert "Seeds 0 to 0; wordings: held-out" in document["reports"][0]["notes"]
    assert set(json.loads((folder / "summary.json").read_text())["reports"]) == {"vae", "film", "spectrum"}
    other = evaluate("film", "--pack", pack_dir, "-o", folder, "--wordings", "seen")
    assert other.code == 2
    assert "choose another folder" in other.err


def test_own_photos_and_strict(evaluate, photo_path, tmp_path):
    options = ("vae", "--photos", photo_path.parent, "-o", tmp_path, "--no-refine")
    result = evaluate(*options, "--strict")
    assert result.code == 3, result.err
    assert "| photo.png | 96x64 |" in result.out
    assert "missed" in result.out
    assert evaluate(*options).code == 0


def test_what_cannot_be_measured_is_said_before_work(evaluate, pack_dir, photo_path, tmp_path):
    for options, message in (
        (("motion",), "either --pack"),
        (("motion", "--pack", pack_dir, "--photos", photo_path.parent), "either --pack"),
        (("film", "--photos", photo_path.parent), "film: it needs the shots of a pack"),
        (("motion", "--photos", tmp_path), "no .jpg or .png file"),
        (("motion", "--pack", tmp_path), "no photos.jsonl"),
        (("motion", "--pack", pack_dir, "--captions", "x"), "--captions"),
        (("motion", "--pack", pack_dir, "--limit", 0), "--limit 0"),
        (("colour", "--pack", pack_dir), "colour"),
    ):
        result = evaluate(*options, "-o", tmp_path / "out")
        assert result.code == 2, (options, result.err)
        assert message in result.err, (options, result.err)
        assert not (tmp_path / "out").exists()


def test_cost_is_measured_in_a_process_of_its_own(tiny_cascade_dir, photo_path):
    machine = cost.Machine(str(tiny_cascade_dir), "cpu", "float32")
    record, _ = cost.work(cost.plan({photo_path: ""})[0], machine)
    assert len(record["seconds"]) == cost.REPEATS
    assert 0 < min(record["seconds"]) < record["load_seconds"] + max(record["seconds"])
    assert 5e7 < record["memory"] < 4e9
    assert record["size"] == [4, 96, 144]
    assert record["weights"] == sum(file.stat().st_size for file in tiny_cascade_dir.rglob("*.safetensors"))
    bars = cost.report({"clips": {"a": {"prompt": "", **record}}}, []).bars
    assert [bar.is_met for bar in bars] == [True, True]
    slow = record | {"seconds": [61.0] * 3, "weights": 49 * 2**20}
    assert not any(bar.is_met for bar in cost.report({"clips": {"a": {"prompt": "", **slow}}}, []).bars)

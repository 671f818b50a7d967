"""What every measure stands on: resumable runs, wordings, held-out material, bars."""

import json
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from i2vgen.data import captions
from i2vgen.evaluate import bars, held_out, runs, wordings
from i2vgen.evaluate.charts import line_chart
from i2vgen.evaluate.drawings import draw_thing
from i2vgen.evaluate.motion import EXPECTED_SIGNS
from moving_clips import make_texture


@dataclass(frozen=True)
class Item:
    key: str
    prompt: str


ITEMS = [Item("a/0", "left"), Item("a/1", "right"), Item("b/0", "left")]
STRIP = {"": np.full((4, 40, 60, 3), 90, np.uint8)}


def test_run_goes_on_where_it_stopped(tmp_path):
    calls = []

    def stops_at_b(item):
        calls.append(item.key)
        if item.key == "b/0":
            raise KeyboardInterrupt
        return {"value": 1.0}, STRIP

    with pytest.raises(KeyboardInterrupt):
        runs.run_items("motion", ITEMS, stops_at_b, tmp_path, {"model": "fake"})
    assert list(json.loads((tmp_path / "motion.json").read_text())["clips"]) == ["a/0", "a/1"]
    assert runs.num_waiting("motion", ITEMS, tmp_path, {"model": "fake"}) == 1
    calls.clear()
    results = runs.run_items(
        "motion", ITEMS, lambda item: (calls.append(item.key) or {"value": 2.0}, {}), tmp_path, {"model": "fake"}
    )
    assert calls == ["b/0"]
    assert [clip["value"] for clip in results["clips"].values()] == [1.0, 1.0, 2.0]
    assert runs.write_sheet(tmp_path, "motion", ["a/0", "b/0", "a/1"]).name == "motion-sheet.png"
    assert not list(tmp_path.rglob("*.part"))


def test_failed_clips_are_recorded_and_tried_again(tmp_path):
    def fails_on_b(item):
        if item.key == "b/0":
            raise RuntimeError("no memory")
        return {"value": float("nan") if item.key == "a/1" else 1.0}, {}

    results = runs.run_items("vae", ITEMS, fails_on_b, tmp_path, {})
    assert results["clips"]["b/0"]["error"] == "RuntimeError: no memory"
    assert "not JSON compliant" in results["clips"]["a/1"]["error"]
    assert (runs.num_errors(results), len(runs.finished(results))) == (2, 1)
    results = runs.run_items("vae", ITEMS, lambda item: ({"value": 3.0}, {}), tmp_path, {})
    assert [clip["value"] for clip in results["clips"].values()] == [1.0, 3.0, 3.0]


def test_other_words_are_made_anew_and_other_settings_refused(tmp_path):
    runs.run_items("vae", ITEMS[:1], lambda item: ({"value": 1.0}, {}), tmp_path, {"model": "a"})
    changed = [Item("a/0", "up")]
    results = runs.run_items("vae", changed, lambda item: ({"value": 2.0}, {}), tmp_path, {"model": "a"})
    assert results["clips"]["a/0"] == {"prompt": "up", "value": 2.0}
    with pytest.raises(ValueError, match=r"model: 'a' there, 'b' now.*choose another folder"):
        runs.run_items("vae", changed, lambda item: ({}, {}), tmp_path, {"model": "b"})
    (tmp_path / "vae.json").write_text('{"clips": ')
    with pytest.raises(ValueError, match="no results file"):
        runs.run_items("vae", changed, lambda item: ({}, {}), tmp_path, {"model": "a"})


def words_of(text: str) -> str:
    letters = "".join(c.lower() if c.isalnum() else " " for c in text)
    return f" {' '.join(letters.split())} "


def training_phrases() -> set[str]:
    """Every camera and ambient phrase, and every "moves to the left", which an object phrase holds."""
    speeds = [word for words in captions.SPEED_WORDS.values() for word in words]
    phrases = {
        phrase.replace("{speed}", speed)
        for group in captions.CAMERA_PHRASES.values()
        for phrase in group
        for speed in speeds
    }
    verbs, wheres, ambient = (
        sorted(set(chain(*table.values())))
        for table in (captions.OBJECT_VERBS, captions.DIRECTION_PHRASES, captions.AMBIENT_PHRASES)
    )
    moving = [f"{verb} {speed} {where}" for verb in verbs for speed in speeds for where in wheres]
    return {words_of(phrase) for phrase in [*phrases, *moving, *ambient]}


def test_no_held_out_wording_is_used_in_training():
    phrases = training_phrases()
    held = [
        wordings.camera_wording(kind, speed, name, 0)
        for kind in EXPECTED_SIGNS
        for speed in wordings.SPEEDS
        for name in "abcdefgh"
    ]
    held += [
        wordings.object_wording(noun, direction, name, 0)
        for noun in wordings.OBJECT_NOUNS
        for direction in wordings.OBJECT_SIDES
        for name in "abcdefgh"
    ]
    assert len(set(held)) > 50
    for wording in map(words_of, held):
        used = [phrase for phrase in phrases if phrase in wording]
        assert not used, f"{wording!r} contains the training phrase {used[0]!r}"
    assert any(words_of("static camera") == phrase for phrase in phrases)


def test_wordings_cover_every_kind_and_hold_the_speed_word():
    assert wordings.WORDINGS.keys() == wordings.HELD_OUT_WORDINGS.keys() == EXPECTED_SIGNS.keys()
    assert set(chain(*wordings.KIND_GROUPS.values())) == EXPECTED_SIGNS.keys()
    for table in (wordings.WORDINGS, wordings.HELD_OUT_WORDINGS):
        assert all(("{speed}" in text) == (kind != "static") for kind, row in table.items() for text in row)
    plain, slow, fast = (wordings.camera_wording("pan-left", s, "x.jpg", 1) for s in ("plain", "slowly", "quickly"))
    assert slow.replace("slowly ", "") == fast.replace("quickly ", "") == plain
    with pytest.raises(ValueError, match="'dolly'"):
        wordings.camera_wording("dolly", "plain", "x", 0)
    with pytest.raises(ValueError, match="'all'"):
        wordings.camera_wording("static", "plain", "x", 0, "all")
    assert wordings.expand_kinds(["pans", "pan-left", "static"]) == ["pan-left", "pan-right", "static"]
    with pytest.raises(ValueError, match="'dollies'"):
        wordings.expand_kinds(["dollies"])


def test_photos_with_captions(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        Image.fromarray(make_texture(side=64)).save(tmp_path / name, "png")
    lines = tmp_path / "captions.jsonl"
    lines.write_text(json.dumps({"file": "test/a.JPG", "caption": "a red barn"}) + "\n\n")
    found = held_out.from_photos(tmp_path, lines)
    assert [(path.name, caption) for path, caption in found.photos.items()] == [("a.JPG", "a red barn"), ("b.png", "")]
    assert list(found.first(1).photos.values()) == ["a red barn"]
    assert {thing.noun for thing in found.things} == set(wordings.OBJECT_NOUNS)
    assert found.shots == []
    for text, error in (('{"file": "a"}', "line 1"), ("{", "line 1: no JSON"), ("[1]", "line 1")):
        lines.write_text(text)
        with pytest.raises(ValueError, match=error):
            held_out.find_photos(tmp_path, lines)
    with pytest.raises(ValueError, match=r"no \.jpg or \.png"):
        held_out.find_photos(tmp_path / "empty")


def test_pack_gives_its_held_out_part_only(pack_dir):
    found = held_out.from_pack(pack_dir)
    assert [path.name for path in found.photos] == ["p2.png"]
    assert [shot.start_frame for shot in found.shots] == [60]
    assert all(thing.name.startswith("drawn") for thing in found.things)


@pytest.mark.parametrize("noun", wordings.OBJECT_NOUNS)
def test_drawn_things_are_cut_out(noun):
    image, facing = draw_thing(noun, 1)
    assert image.dtype == np.uint8
    assert max(image.shape[:2]) == 192
    assert facing in ("left", "right", "none")
    covered = (image[..., 3] > 127).mean()
    assert 0.3 < covered < 0.9
    assert not np.array_equal(image, draw_thing(noun, 0)[0])


def test_bars_are_met_exactly_where_they_say():
    assert bars.at_least("a", 24.0, 24, "dB").is_met
    assert not bars.at_least("a", 23.99, 24, "dB").is_met
    assert bars.at_most("a", 1.3, 1.3, "x").is_met
    assert not bars.below("a", 10.0, 10, "%").is_met
    assert bars.above("a", 0.01, 0, "dB").is_met
    assert not bars.above("a", 0.0, 0, "dB").is_met
    assert bars.within("a", 0.75, 0.75, 1.25, "x").is_met
    assert not bars.within("a", 1.26, 0.75, 1.25, "x").is_met
    for missing in (None, float("nan"), float("inf")):
        bar = bars.at_least("a", missing, 1, "dB")
        assert not bar.is_met
        assert bar.shown == "-"
        assert bar.found is None
    hits = [True] * 46 + [False] * 4
    assert bars.share_at_least("a", hits, 0.92).is_met
    assert not bars.share_at_least("a", [*hits, False], 0.92).is_met
    assert not bars.share_at_least("a", [], 0.1).is_met
    assert bars.wilson_interval(46, 50) == pytest.approx((0.8116, 0.9685), abs=1e-4)
    report = bars.Report(
        "motion", [bars.at_least("a", 1.0, 2, "dB")], [bars.Table("T:", ("x",), [("1",)])], ["said"], 3
    )
    assert "| a | >= 2 dB | 1.0 dB | missed |" in report.to_markdown()
    json.dumps(report.to_json(), allow_nan=False)


def test_chart_draws_its_lines():
    chart = line_chart({"a": ([0, 1], [1.0, 100.0]), "b": ([0, 1], [0.0, 5.0])}, "title", "x", "y")
    assert {(20, 20, 24), (200, 60, 40)} <= {colour for _, colour in chart.getcolors(1 << 20)}
    with pytest.raises(ValueError, match="no positive value"):
        line_chart({"a": ([0, 1], [0.0, float("nan")])}, "title", "x", "y")

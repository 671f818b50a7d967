"""Runs of a batch: each video is what `generate` makes, stops lose nothing, and nothing is replaced unasked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from i2vgen.batch import (
    BatchReport,
    FolderBusyError,
    Item,
    item_states,
    model_identity,
    plan_items,
    read_entries,
    read_list,
    run_batch,
)
from i2vgen.batch.interrupts import interrupts_held
from i2vgen.batch.lock import LOCK_NAME, folder_lock
from i2vgen.batch.results import RESULTS_NAME, Results
from i2vgen.media import load_video, read_settings

QUICK = {"steps": 1, "refine": False}


@pytest.fixture
def items(tmp_path, photo_path):
    """Three items of a list beside the photo, of one step each, as PNG frames."""
    path = tmp_path / "shots.jsonl"
    rows = [{"image": str(photo_path), "prompt": prompt} for prompt in ("a dog runs", "snow falls", "waves")]
    path.write_text("\n".join(map(json.dumps, rows)))
    return plan_items(read_list(path), format="png", defaults=QUICK)


@pytest.fixture
def make(tiny_cascade, tmp_path):
    """make(items, ...) -> the result of a run into `out` with the tiny cascade."""

    def call(items, load=lambda: tiny_cascade, model="tiny", **options):
        return run_batch(items, tmp_path / "out", load=load, model=model, **options)

    return call


def never():
    pytest.fail("the model was loaded")


def entries_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / RESULTS_NAME).read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    return load_video(path).frames


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_video_is_what_the_cascade_makes_of_it(make, items, tiny_cascade, photo, tmp_path):
    result = make(items)
    assert [entry["output"] for entry in result.done] == [item.output for item in items]
    assert names_in(tmp_path / "out") == [*(item.output for item in items), RESULTS_NAME]
    for item in items:
        alone = tiny_cascade(photo, prompt=item.prompt, seed=item.seed, refine=False, num_inference_steps=1)
        assert (pixels(tmp_path / "out" / item.output) == alone.frames[0]).all()
        kept = read_settings(tmp_path / "out" / item.output)
        assert {name: kept[name] for name in alone.settings[0]} == alone.settings[0]
        assert kept["image"]["path"] == item.image
    for entry, item in zip(entries_of(tmp_path / "out"), items, strict=True):
        assert (entry["status"], entry["seed"], entry["prompt"]) == ("done", item.seed, item.prompt)
        assert (entry["frames"], entry["width"], entry["height"], entry["error"]) == (4, 96, 64, None)


def test_all_options_of_a_row_reach_the_cascade(make, items, tmp_path):
    options = {
        "negative_prompt": "fog",
        "size": (120, 88),
        "frames": 3,
        "fps": 5,
        "steps": 1,
        "guidance": 3.0,
        "fit": "pad",
        "refine": True,
        "refine_prompt": "sharp",
        "refine_steps": 1,
        "refine_strength": 0.4,
    }
    assert not make([replace(items[0], options=options)]).failed
    kept = read_settings(tmp_path / "out" / items[0].output)
    assert (kept["negative_prompt"], kept["refine_prompt"], kept["fit"]) == ("fog", "sharp", "pad")
    assert (kept["refine"]["width"], kept["refine"]["height"]) == (120, 88)
    assert [kept["base"][n] for n in ("num_frames", "target_fps", "guidance_scale")] == [3, 5, 3.0]
    assert (kept["base"]["num_inference_steps"], kept["refine"]["num_inference_steps"]) == (1, 1)
    assert kept["refine_strength"] == 0.4


def test_finished_items_are_skipped_without_loading_the_model(make, items, tmp_path, photo_path):
    make(items)
    before = entries_of(tmp_path / "out")
    result = make(items, load=never)
    assert (result.skipped, result.done, result.failed) == ([item.output for item in items], [], [])
    assert entries_of(tmp_path / "out") == before
    # A picture that moved, or is gone, does not undo what was made of it
    moved = tmp_path / "moved.png"
    moved.write_bytes(photo_path.read_bytes())
    assert not make([replace(item, image=str(moved)) for item in items], load=never).done


def test_outputs_that_are_gone_or_cut_short_are_made_again(make, items, tmp_path):
    items = [replace(item, output=item.output + ".webp") for item in items]
    make(items)
    first, second = (tmp_path / "out" / item.output for item in items[:2])
    whole = first.read_bytes()
    first.write_bytes(whole[:200])
    second.unlink()
    result = make(items)
    assert [entry["output"] for entry in result.done] == [first.name, second.name]
    assert first.read_bytes() == whole
    assert len(entries_of(tmp_path / "out")) == 3


def test_what_was_made_otherwise_is_refused_and_replaced_with_force(make, items, tmp_path, photo):
    make(items[:2])
    other = [replace(items[0], options={**QUICK, "steps": 2}), *items[1:]]
    with pytest.raises(ValueError, match=r"steps 1 then, 2 now") as caught:
        make(other, load=never)
    assert "--force" in str(caught.value)
    with pytest.raises(ValueError, match="another model"):
        make(items, load=never, model="other")
    result = make(other, force=True)
    assert [entry["output"] for entry in result.done] == [items[0].output, items[2].output]
    assert read_settings(tmp_path / "out" / items[0].output)["base"]["num_inference_steps"] == 2
    assert result.skipped == [items[1].output]


def test_files_of_others_are_refused(make, items, tmp_path):
    (tmp_path / "out").mkdir()
    own = tmp_path / "out" / "hero.webp"
    own.write_bytes(b"mine")
    item = replace(items[0], output="hero.webp")
    with pytest.raises(ValueError, match=r"hero.webp is there, and results.jsonl does not know it"):
        make([item], load=never)
    assert own.read_bytes() == b"mine"
    assert not make([item], force=True).failed
    assert own.read_bytes() != b"mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run_batch([item], tmp_path / "file", load=never, model="tiny")


def test_a_changed_picture_is_a_change(make, items, tmp_path, photo):
    path = tmp_path / "own.png"
    photo.save(path)
    item = replace(items[0], image=str(path))
    make([item])
    photo.rotate(180).save(path)
    with pytest.raises(ValueError, match="another image"):
        make([item], load=never)
    path.unlink()
    assert make([item], load=never).skipped == [item.output]


def test_failures_are_recorded_and_the_rest_goes_on(make, items, tmp_path, photo_path):
    (tmp_path / "cut.png").write_bytes(photo_path.read_bytes()[:300])
    items = [
        replace(items[0], image=str(tmp_path / "none.png")),
        replace(items[1], image=str(tmp_path / "cut.png"), output="cut"),
        replace(items[1], options={**QUICK, "size": (50, 50)}, output="size"),
        replace(items[1], options={**QUICK, "fps": 60}, output="fast.gif"),
        items[2],
    ]
    result = make(items)
    assert [entry["output"] for entry in result.done] == [items[-1].output]
    errors = [entry["error"] for entry in result.failed]
    for error, said in zip(errors, ("does not exist", "cut short", "multiples of", "at most 50"), strict=True):
        assert said in error
    assert [entry["status"] for entry in entries_of(tmp_path / "out")] == ["failed"] * 4 + ["done"]
    assert names_in(tmp_path / "out") == [items[-1].output, RESULTS_NAME]

    (tmp_path / "none.png").write_bytes(photo_path.read_bytes())
    again = make(items)
    assert ([e["output"] for e in again.done], len(again.failed)) == ([items[0].output], 3)
    given_up = make(items, load=never, retry_failed=False)
    assert (len(given_up.failed), len(given_up.skipped)) == (3, 2)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_stop_on_error(make, items, tmp_path, batch_size):
    items = [items[0], replace(items[1], image=str(tmp_path / "none.png")), items[2]]
    result = make(items, stop_on_error=True, batch_size=batch_size)
    assert (len(result.done), len(result.failed), result.is_stopped) == (1, 1, True)
    assert items[2].output not in read_entries(tmp_path / "out")


def test_items_of_one_shape_are_sampled_together_and_come_out_as_alone(make, items, tmp_path, tiny_cascade, photo):
    wide = tmp_path / "wide.png"
    photo.resize((160, 90)).save(wide)
    items = [*items, replace(items[0], image=str(wide), output="wide", seed=3)]
    sizes = []

    class Watch(BatchReport):
        def sampling(self, items):
            sizes.append(len(items))

    run_batch(items, tmp_path / "alone", load=lambda: tiny_cascade, model="tiny")
    assert not make(items, batch_size=2, report=Watch()).failed
    assert sizes == [2, 1, 1]
    for item in items:
        together, alone = pixels(tmp_path / "out" / item.output), pixels(tmp_path / "alone" / item.output)
        assert together.shape == alone.shape
        # Products of other sizes round otherwise in the last place
        assert np.abs(together.astype(int) - alone).max() <= 1
    with pytest.raises(ValueError, match="batch_size 0"):
        make(items, batch_size=0)


def test_one_bad_item_of_several_together_fails_alone(make, items, tiny_cascade, tmp_path):
    def cascade(images, prompt, **arguments):
        if "snow falls" in prompt:
            raise MemoryError
        return tiny_cascade(images, prompt=prompt, **arguments)

    cascade.refiner, cascade.sizes_for, cascade.base = None, tiny_cascade.sizes_for, tiny_cascade.base
    cascade.has_text = True
    result = make(items, load=lambda: cascade, batch_size=3)
    assert [entry["output"] for entry in result.done] == [items[0].output, items[2].output]
    assert result.failed[0]["error"].startswith("out of memory (MemoryError)")


def test_a_model_without_refinement_is_said_at_once(make, items, tiny_cascade):
    class BaseOnly:
        base, refiner, model_name, has_text = "any", None, "base-only", True

    for name, value in (("refine", True), ("refine_steps", 2), ("refine_strength", 0.5)):
        with pytest.raises(ValueError, match=rf"base-only.*shots.jsonl:1 has {name} {value}: leave it out"):
            make([replace(items[0], options={name: value})], load=BaseOnly)


def test_an_interrupt_while_sampling_leaves_the_finished_ones(make, items, tiny_cascade, tmp_path):
    class Stop(BatchReport):
        def sampling(self, now):
            if now[0] is items[1]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(items, report=Stop())
    assert names_in(tmp_path / "out") == [items[0].output, RESULTS_NAME]
    assert [entry["status"] for entry in entries_of(tmp_path / "out")] == ["done", "started"]
    result = make(items)
    assert (result.skipped, len(result.done)) == ([items[0].output], 2)


def test_an_interrupt_while_writing_waits(make, items, tmp_path, monkeypatch):
    from i2vgen import media

    write = media.write_video

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return write(*arguments, **options)

    monkeypatch.setattr(media, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(items)
    assert [entry["status"] for entry in entries_of(tmp_path / "out")] == ["done"]
    assert len(pixels(tmp_path / "out" / items[0].output)) == 4
    before = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_kill_9_loses_at_most_the_item_in_hand(items, make, tmp_path, photo_path, tiny_cascade_dir):
    """A real process, killed once its second video is being written."""
    program = """
import os, signal, sys
from i2vgen.batch import plan_items, read_list, run_batch
from i2vgen.media import writers
from i2vgen.pipelines import load_cascade

write, calls = writers._write_webp, []

def killed(path, *arguments):
    calls.append(path)
    if len(calls) == 2:
        path.write_bytes(b"half a video")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, *arguments)

writers._write_webp = killed
items = plan_items(read_list(sys.argv[1]), format="webp", defaults={"steps": 1, "refine": False})
run_batch(items, sys.argv[2], load=lambda: load_cascade(sys.argv[3], device="cpu"), model="tiny")
"""
    folder = tmp_path / "out"
    command = [sys.executable, "-c", program, tmp_path / "shots.jsonl", folder, tiny_cascade_dir]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    items = [replace(item, output=f"{item.output}.webp") for item in items]
    left = names_in(folder)
    assert items[0].output in left
    assert items[1].output not in left
    assert LOCK_NAME in left
    assert len(left) == 4  # and the half video under its temporary name
    assert [entry["status"] for entry in entries_of(folder)] == ["started", "done", "started"]
    # Torn as by a crash of the machine
    with (folder / RESULTS_NAME).open("ab") as file:
        file.write(b'{"output": "0003-pho')

    result = make(items)
    assert result.skipped == [items[0].output]
    assert [entry["output"] for entry in result.done] == [item.output for item in items[1:]]
    assert names_in(folder) == [*(item.output for item in items), RESULTS_NAME]
    assert [entry["status"] for entry in entries_of(folder)] == ["done"] * 3


# Results, lock, identity


def test_results_survive_a_torn_last_line(tmp_path):
    (tmp_path / RESULTS_NAME).write_bytes(b'{"output": "a", "status": "done"}\n{"output": "b", "sta')
    results = Results(tmp_path)
    results.append({"output": "c", "status": "done"})
    results.append({"output": "a", "status": "failed"})
    assert [entry["output"] for entry in entries_of(tmp_path)] == ["a", "c", "a"]
    results.close(["c", "a"])
    assert [(entry["output"], entry["status"]) for entry in entries_of(tmp_path)] == [("c", "done"), ("a", "failed")]
    (tmp_path / RESULTS_NAME).write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="something else"):
        read_entries(tmp_path)


def test_one_batch_at_a_time_and_a_dead_ones_lock_is_taken_over(tmp_path, make, items):
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom i2vgen.batch.lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "out").mkdir()
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "out"], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusyError, match=rf"another batch is at work there \(process {other.pid}\)"):
            make(items, load=never)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    with folder_lock(tmp_path / "out"):
        pass
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_identity_of_a_model_follows_its_files(tmp_path, tiny_cascade_dir):
    import shutil

    copy = shutil.copytree(tiny_cascade_dir, tmp_path / "copy")
    same = model_identity(str(copy))
    assert same == model_identity(str(tiny_cascade_dir))
    assert same != model_identity(str(copy), dtype="bfloat16")
    weights = next((copy / "unet").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_identity(str(copy)) != same


def test_states_only_read(items, tmp_path):
    assert [state.status for state in item_states(items, tmp_path / "none", "tiny")] == ["pending"] * 3
    assert not (tmp_path / "none").exists()
    url = Item("a:1", "https://example.org/x.png?key=1", "", 0, 0, "x.mp4")
    (state,) = item_states([url], tmp_path, "tiny")
    assert "example.org" not in json.dumps(state.settings)


def test_saying_what_holds_anyway_changes_nothing(make, items):
    make(items[:1])
    usual = {**QUICK, "fit": "crop", "exact": False}
    assert make([replace(items[0], options=usual)], load=never).skipped == [items[0].output]


def test_a_model_that_does_not_load_leaves_no_folder(make, items, tmp_path):
    def fail():
        raise OSError("cut short")

    with pytest.raises(OSError, match="cut short"):
        make(items, load=fail)
    assert not (tmp_path / "out").exists()

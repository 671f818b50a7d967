"""Several cascades that take from one list: what one alone would make, each item once, and stopped as one is."""

from __future__ import annotations

import _thread
import threading
import time

import numpy as np
import pytest

from i2vgen.batch import BatchReport, model_identity, plan_items, read_entries, read_list, run_batch
from i2vgen.media import load_video


class Lane:
    """A cascade that counts its calls; the first call of `held` waits until it is interrupted."""

    def __init__(self, cascade, holds: bool = False):
        self.cascade, self.num_calls, self.holds = cascade, 0, holds
        self.base, self.refiner, self.sizes_for = cascade.base, cascade.refiner, cascade.sizes_for
        self.model_name, self.has_text, self.interrupted = cascade.model_name, True, threading.Event()

    def __call__(self, *arguments, **request):
        self.num_calls += 1
        if self.holds:
            assert self.interrupted.wait(60)
            raise RuntimeError("ended")
        return self.cascade(*arguments, **request)

    def interrupt(self) -> None:
        self.interrupted.set()


@pytest.fixture
def items(tmp_path, photo_path):
    lines = [f"{photo_path}|||dog {number}" for number in range(6)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return plan_items(read_list(str(tmp_path / "list.txt")), defaults={"refine": False})


def test_two_make_what_one_makes(items, tmp_path, cascade, tiny_cascade, tiny_cascade_dir):
    identity = model_identity(str(tiny_cascade_dir))
    lanes = [Lane(cascade), Lane(tiny_cascade)]
    both = run_batch(items, tmp_path / "both", lambda: lanes, identity)
    one = run_batch(items, tmp_path / "one", lambda: tiny_cascade, identity)
    assert len(both.done) == len(one.done) == 6
    assert sum(lane.num_calls for lane in lanes) == 6
    assert all(lane.num_calls for lane in lanes)
    for item in items:
        made = [load_video(tmp_path / folder / item.output).frames.astype(int) for folder in ("both", "one")]
        assert np.abs(made[0] - made[1]).mean() < 3
    again = run_batch(items, tmp_path / "both", lambda: pytest.fail("nothing is left to make"), identity)
    assert len(again.skipped) == 6


def test_an_interrupt_ends_all_and_records_nothing_unmade(items, tmp_path, cascade, tiny_cascade, tiny_cascade_dir):
    identity = model_identity(str(tiny_cascade_dir))
    holding, free = Lane(cascade, holds=True), Lane(tiny_cascade)
    made = []

    class Interrupting(threading.Thread):
        def run(self) -> None:
            end = time.monotonic() + 60
            while not (holding.num_calls and len(made) >= 2) and time.monotonic() < end:
                time.sleep(0.02)
            _thread.interrupt_main()

    class Report(BatchReport):
        def finished(self, item, entry) -> None:
            made.append(item.output)

    Interrupting(daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_batch(items, tmp_path / "out", lambda: [holding, free], identity, report=Report())
    entries = read_entries(tmp_path / "out")
    assert sorted(name for name, entry in entries.items() if entry["status"] == "done") == sorted(made)
    assert not [entry for entry in entries.values() if entry["status"] == "failed"]
    result = run_batch(items, tmp_path / "out", lambda: tiny_cascade, identity)
    assert len(result.done) + len(result.skipped) == 6
    assert len(result.done) >= 1

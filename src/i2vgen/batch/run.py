"""A batch from beginning to end: one model, many videos, each recorded when it is done."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2vgen.batch.interrupts import interrupts_held
from i2vgen.batch.items import Item
from i2vgen.batch.lock import folder_lock
from i2vgen.batch.results import DONE, FAILED, STARTED, Results, output_size, remove_leftovers
from i2vgen.batch.states import ItemState, item_states, refuse_replacing, shown_image

if TYPE_CHECKING:
    from PIL import Image

    from i2vgen.pipelines import CascadePipeline

logger = logging.getLogger(__name__)


class BatchReport:
    """What a run tells while it goes on; override what you want to hear."""

    def planned(self, states: Sequence[ItemState], num_pending: int) -> None:
        """Before the model is loaded; `num_pending` of the items are to be made."""

    def prepared(self, cascade: CascadePipeline, item: Item, image: Image.Image) -> None:
        """The item's picture is read. A ValueError raised here becomes the item's failure."""

    def sampling(self, items: Sequence[Item]) -> Callable[[str, int, int], None] | None:
        """These are sampled now, together. Returns what the cascade calls as (stage, steps done, steps in all)."""

    def sampled(self, items: Sequence[Item]) -> None:
        """They are sampled, or have failed."""

    def finished(self, item: Item, entry: dict[str, Any]) -> None:
        """The item is done or has failed; `entry` is its line in results.jsonl."""


@dataclass
class BatchResult:
    """Entries of this run, and outputs that were there. `is_stopped`: an error ended it early."""

    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    is_stopped: bool = False


def run_batch(
    items: Sequence[Item],
    folder: str | Path,
    load: Callable[[], CascadePipeline | list[CascadePipeline]],
    model: str,
    batch_size: int = 1,
    force: bool = False,
    retry_failed: bool = True,
    stop_on_error: bool = False,
    report: BatchReport | None = None,
) -> BatchResult:
    """Make the items' videos in `folder`, those that are not there yet.

    `load` gives the cascade, and is called once, only if there is something to make; `model` is its identity
    (`model_identity`), kept with each result. It may give a list of cascades that work side by side, each in a
    thread, as those of `ray_cascades` do. Items that follow each other and agree in size and options are sampled
    together, at most `batch_size`.

    An item that fails is recorded and the run goes on, unless `stop_on_error`. KeyboardInterrupt passes
    through: the item in hand leaves nothing, all before it are recorded.

    Raises ValueError, before anything is made, if outputs are there that were made otherwise and `force` is
    not given; FolderBusyError if another batch is at work in `folder`; OSError if results cannot be kept.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size {batch_size!r}: give a whole number of at least 1")
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output folder {str(folder)!r} is a file: choose another name")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(folder):
            return _run(
                items, folder, load, model, batch_size, force, retry_failed, stop_on_error, report or BatchReport()
            )
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # only if nothing came into it
                folder.rmdir()


def _run(
    items: Sequence[Item],
    folder: Path,
    load: Callable[[], CascadePipeline | list[CascadePipeline]],
    model: str,
    batch_size: int,
    force: bool,
    retry_failed: bool,
    stop_on_error: bool,
    report: BatchReport,
) -> BatchResult:
    # 1. What is there, what is to be made
    states = item_states(items, folder, model)
    if not force:
        refuse_replacing(states)
    kept = (DONE,) if retry_failed else (DONE, FAILED)
    pending = [state for state in states if state.status not in kept]
    result = BatchResult(skipped=[state.item.output for state in states if state.status == DONE])
    report.planned(states, len(pending))

    # 2. One load of the model
    cascades = load() if pending else []
    cascades = cascades if isinstance(cascades, list) else [cascades]
    for cascade in cascades[:1]:
        _check_stages(cascade, pending)

    # 3. One after the other, each recorded
    results = Results(folder)
    try:
        if not retry_failed:
            result.failed += [results.entries[state.item.output] for state in states if state.status == FAILED]
        remove_leftovers(folder, [item.output for item in items])
        makers = [_Maker(cascade, folder, results, report, result) for cascade in cascades]
        if makers:
            _make_all(makers, pending, batch_size, stop_on_error)
    finally:
        results.close(item.output for item in items)
    return result


def _check_stages(cascade: CascadePipeline, pending: Sequence[ItemState]) -> None:
    if cascade.base is None:
        raise ValueError(f"model {cascade.model_name!r} is a refiner alone: choose another, and give it as the refiner")
    are_refined = [refines(cascade, state.item) for state in pending]
    if cascade.refiner is None and not all("refine" in state.item.options for state in pending):
        logger.warning("model %r has no refinement stage: the videos are those of its base stage", cascade.model_name)
    items = [state.item for state, is_refined in zip(pending, are_refined, strict=True) if not is_refined]
    if not cascade.has_text and any(item.prompt for item in items):
        logger.warning("model %r reads no text: prompts are ignored where nothing is refined", cascade.model_name)


def refines(cascade: CascadePipeline, item: Item) -> bool:
    """Whether the item's video is refined: if the model can, unless the item says otherwise.

    Raises ValueError for an item that asks for a refinement that the model does not have.
    """
    wanted = item.options.get("refine")
    if cascade.refiner is None and wanted is not False:
        asked = ["refine"] * bool(wanted) + [name for name in item.options if name.startswith("refine_")]
        if asked:
            raise ValueError(
                f"model {cascade.model_name!r} has no refinement stage, and {item.place} has "
                f"{asked[0]} {item.options[asked[0]]}: leave it out"
            )
    return cascade.refiner is not None and wanted is not False


def _make_all(makers: Sequence[_Maker], pending: Sequence[ItemState], batch_size: int, stop_on_error: bool) -> None:
    """One maker works here; several each in a thread, all taking from one list."""
    result = makers[0].result
    groups, taking, num_failed_before = _grouped(makers[0], pending, batch_size), threading.Lock(), len(result.failed)
    stopping, errors = threading.Event(), []

    def work(maker: _Maker) -> None:
        while not stopping.is_set():
            with taking:
                together = next(groups, None)
            if together is None:
                return
            if together:
                maker.make(together)
            if stop_on_error and len(result.failed) > num_failed_before:
                result.is_stopped = True
                return

    def work_in_thread(maker: _Maker) -> None:
        try:
            work(maker)
        except BaseException as error:  # of our own, such as results that cannot be kept; those of items are recorded
            errors.append(error)
            stopping.set()

    if len(makers) == 1:
        work(makers[0])
        return
    threads = [threading.Thread(target=work_in_thread, args=(maker,), daemon=True) for maker in makers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():  # a join without end would keep an interrupt waiting
                thread.join(0.2)
    except KeyboardInterrupt:
        stopping.set()
        for maker in makers:
            maker.interrupt()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]


@dataclass
class _Prepared:
    state: ItemState
    image: Image.Image
    source: dict[str, Any]
    shape: str  # equal for items that may be sampled together

    @property
    def item(self) -> Item:
        return self.state.item


class _Maker:
    def __init__(
        self, cascade: CascadePipeline, folder: Path, results: Results, report: BatchReport, result: BatchResult
    ):
        self.cascade, self.folder, self.results = cascade, folder, results
        self.report, self.result = report, result
        self.is_interrupted = False

    def interrupt(self) -> None:
        """From another thread: end what is sampled now if the cascade can, and record nothing of it."""
        self.is_interrupted = True
        if callable(end := getattr(self.cascade, "interrupt", None)):
            end()

    def prepare(self, state: ItemState) -> _Prepared | None:
        """Read the picture and settle the sizes; None, with a failure recorded, if that cannot be."""
        from i2vgen.media.provenance import load_image_with_source
        from i2vgen.media.writers import check_fps

        item, options = state.item, state.item.options
        begin = time.monotonic()
        try:
            image, source = load_image_with_source(item.image)
            is_refined = refines(self.cascade, item)
            sizes = self.cascade.sizes_for(image.size, options.get("size"), is_refined, options.get("exact", False))
            check_fps(self.folder / item.output, options.get("fps") or self.cascade.base.options.target_fps)
            self.report.prepared(self.cascade, item, image)
        except Exception as error:
            self._fail(state, error, time.monotonic() - begin)
            return None
        return _Prepared(state, image, source, repr((sizes, sorted(options.items()))))

    def make(self, together: list[_Prepared]) -> None:
        """Sample, write and record; a failure of several together is narrowed down one by one."""
        items = [prepared.item for prepared in together]
        for prepared in together:
            self.results.append(self._entry(prepared.state, STARTED))
        progress = self.report.sampling(items)
        begin, error = time.monotonic(), None
        try:
            output = self._sample(together, progress)
        except Exception as caught:
            if self.is_interrupted:
                return
            error = caught
        finally:
            self.report.sampled(items)
        seconds = (time.monotonic() - begin) / len(together)
        if error is None:
            for index, prepared in enumerate(together):
                self._write(prepared, output, index, seconds)
        elif len(together) == 1:
            self._fail(together[0].state, error, seconds)
        else:
            for prepared in together:
                self.make([prepared])

    def _sample(self, together: list[_Prepared], progress: Callable | None) -> Any:
        is_refined = refines(self.cascade, together[0].item)
        options = dict(together[0].item.options) | {"refine": is_refined}
        reads_prompts = self.cascade.has_text or is_refined
        names = {
            "frames": "num_frames",
            "fps": "target_fps",
            "steps": "num_inference_steps",
            "guidance": "guidance_scale",
        }
        request = {names.get(name, name): value for name, value in options.items()}
        return self.cascade(
            [prepared.image for prepared in together],
            prompt=[prepared.item.prompt if reads_prompts else "" for prepared in together],
            seed=[prepared.item.seed for prepared in together],
            **request,
            progress=progress,
        )

    def _write(self, prepared: _Prepared, output: Any, index: int, seconds: float) -> None:
        from i2vgen.media import write_video

        frames, path = output.frames[index], self.folder / prepared.item.output
        begin = time.monotonic()
        with interrupts_held():
            try:
                write_video(path, frames, output.fps, settings=output.settings[index] | {"image": prepared.source})
            except Exception as error:
                self._fail(prepared.state, error, seconds)
                return
            count, height, width = frames.shape[:3]
            facts = {"frames": count, "width": width, "height": height, "fps": output.fps, "bytes": output_size(path)}
            entry = self._entry(prepared.state, DONE, seconds + time.monotonic() - begin) | facts
            self.results.append(entry)
            self.result.done.append(entry)
        self._tell_finished(prepared.item, entry)

    def _fail(self, state: ItemState, error: Exception, seconds: float) -> None:
        logger.debug("%s", state.item.output, exc_info=error)
        entry = self._entry(state, FAILED, seconds) | {"error": described(error)}
        self.results.append(entry)
        self.result.failed.append(entry)
        self._tell_finished(state.item, entry)

    def _tell_finished(self, item: Item, entry: dict[str, Any]) -> None:
        with self.results.lock:
            self.report.finished(item, entry)

    def _entry(self, state: ItemState, status: str, seconds: float | None = None) -> dict[str, Any]:
        item = state.item
        return {
            "output": item.output,
            "status": status,
            "from": item.place,
            "image": shown_image(item),
            "prompt": item.prompt,
            "seed": item.seed,
            "repeat": item.repeat,
            "settings_hash": state.hash,
            "settings": state.settings,
            "seconds": None if seconds is None else round(seconds, 3),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "error": None,
        }


def _grouped(maker: _Maker, pending: Sequence[ItemState], batch_size: int) -> Iterator[list[_Prepared]]:
    """Lists of neighbours with the same shape; one that cannot be prepared ends a list, which may be empty."""
    together: list[_Prepared] = []
    for state in pending:
        prepared = maker.prepare(state)
        if together and prepared is not None and prepared.shape != together[0].shape:
            yield together
            together = []
        if prepared is not None:
            together.append(prepared)
        if prepared is None or len(together) == batch_size:
            yield together
            together = []
    yield together


def described(error: Exception) -> str:
    """One line; an error that is not about the request says its type."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({text[:200] or type(error).__name__}): use a smaller size or fewer frames"
    is_plain = isinstance(error, ValueError | OSError) or type(error).__module__.startswith("i2vgen.")
    return text if is_plain and text else f"{type(error).__name__}: {text}"

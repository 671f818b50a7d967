"""Folders of raw videos and pictures -> shards to train from. A run that was killed goes on where it stopped.

What lies in the folder: `prepare.json` (settings), `records/PART.json` (one a raw file, written when its clips are
complete), `clips-000000.tar` with `clips-000000.index.json`, and at the end `statistics.json`, `left_out.jsonl`,
`histograms.png`, `kept.png`, `left_out.png`. `.working/` holds clips that wait for their shard.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from i2vgen.data.errors import DataError
from i2vgen.data.prepare_config import PrepareConfig
from i2vgen.data.prepare_part import RECORDS, WORKING, Task, make_part, record_path
from i2vgen.data.prepare_report import write_report
from i2vgen.data.shard_index import Item, write_whole
from i2vgen.data.shard_writer import SHARD_NAME, finished_shards, write_shard
from i2vgen.data.sources import expand_source, load_index

SETTINGS = "prepare.json"


def prepare(
    sources: Sequence[str],
    out_dir: str | Path,
    config: PrepareConfig | None = None,
    num_workers: int = 1,
    allow_outside: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Cut, judge and pack every clip of `sources` (folders, .jsonl lists, shards) into `out_dir`.

    `progress(stage, done, total)` is called for each file. More sources may be given to a finished folder later:
    what is done stays. Returns the statistics, as in `statistics.json`.

    Raises DataError for bad settings, an `out_dir` of other settings or with other things in it, and a full disk.
    """
    config = config or PrepareConfig()
    config.check()
    out_dir = Path(out_dir).expanduser()
    _claim(out_dir, config)
    with _locked(out_dir):
        return _prepare(sources, out_dir, config, num_workers, allow_outside, progress)


def _prepare(sources, out_dir: Path, config: PrepareConfig, num_workers: int, allow_outside: bool, progress):
    tasks, left_out = _tasks(sources, out_dir, allow_outside, progress)
    packed = {item.details.get("part") for _, index in finished_shards(out_dir) for item in index.items}
    waiting: list[dict[str, Any]] = []
    for done, record in enumerate(_records(tasks, out_dir, config, num_workers), 1):
        if record["part"] in packed:
            # Killed between the index and this.
            shutil.rmtree(out_dir / WORKING / record["part"], ignore_errors=True)
        elif record["items"]:
            waiting.append(record)
        if sum(item["size"] for r in waiting for item in r["items"]) >= config.shard_megabytes * 1_000_000:
            _pack(waiting, out_dir)
            waiting = []
        if progress is not None:
            progress("prepare", done, len(tasks))
    if waiting:
        _pack(waiting, out_dir)
    shutil.rmtree(out_dir / WORKING, ignore_errors=True)
    return write_report(out_dir, tasks, left_out, config)


def _claim(out_dir: Path, config: PrepareConfig) -> None:
    """Make the folder ours, or see that it is. Settings of an earlier run must be the same."""
    settings = json.loads(json.dumps(asdict(config)))
    path = out_dir / SETTINGS
    try:
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            for name, value in settings.items():
                if before.get(name) != value:
                    raise DataError(
                        f"{str(out_dir)!r} was begun with {name} = {before.get(name)!r}, now it is {value!r}: "
                        "use the same settings, or another folder"
                    )
            (out_dir / RECORDS).mkdir(exist_ok=True)
            return
        if out_dir.is_dir() and any(out_dir.iterdir()):
            raise DataError(f"{str(out_dir)!r} has other files in it: choose an empty or new folder")
        (out_dir / RECORDS).mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1) + "\n")
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise DataError(f"{str(out_dir)!r} cannot be used ({error}): choose another folder") from error


@contextmanager
def _locked(out_dir: Path) -> Iterator[None]:
    """Keep a second run out; the system lets go of the lock of one that was killed."""
    try:
        import fcntl
    except ImportError:
        # Windows has no such locks.
        yield
        return
    with open(out_dir / RECORDS / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{str(out_dir)!r} is being written by another run: wait for it to end") from error
        yield


def _tasks(sources, out_dir: Path, allow_outside: bool, progress) -> tuple[list[Task], list[dict[str, Any]]]:
    tasks: dict[str, Task] = {}
    left_out = []
    for source in sources:
        for container in expand_source(source):
            if not container.location.startswith(("http://", "https://")):
                inside = Path(container.location).resolve()
                if inside.is_relative_to(out_dir.resolve()) or out_dir.resolve().is_relative_to(inside):
                    raise DataError(f"{str(out_dir)!r} and the source {container.location!r} lie in one another")
            report = None if progress is None else partial(progress, "index")
            index = load_index(container, str(out_dir / RECORDS / "cache"), 1, allow_outside, report)
            left_out += [
                {"name": f"{container.location}:{row['name']}", "reason": f"damaged: {row['reason']}"}
                for row in index.left_out
            ]
            for item in index.items:
                task = Task(container, item)
                tasks.setdefault(task.part, task)
    if not tasks:
        raise DataError(f"sources: {list(sources)!r:.300} hold no videos and no pictures that can be read")
    return list(tasks.values()), left_out


def _records(tasks: list[Task], out_dir: Path, config: PrepareConfig, num_workers: int) -> Iterator[dict[str, Any]]:
    """Records in the order of the tasks, those on disk as they are."""
    known = {task.part: record for task in tasks if (record := read_record(out_dir, task.part)) is not None}
    missing = [task for task in tasks if task.part not in known]
    make = partial(make_part, out_dir=out_dir, config=config)
    if num_workers <= 1:
        for task in tasks:
            yield known[task.part] if task.part in known else make(task)
        return
    # Not forked: the decoder's threads would not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context) as pool:
        try:
            made = pool.map(make, missing)
            for task in tasks:
                yield known[task.part] if task.part in known else next(made)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_record(out_dir: Path, part: str) -> dict[str, Any] | None:
    """What was made of a raw file; None if it has not been done."""
    try:
        return json.loads(record_path(out_dir, part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _pack(records: list[dict[str, Any]], out_dir: Path) -> None:
    finished = finished_shards(out_dir)
    number = int(finished[-1][0].stem.rpartition("-")[2]) + 1 if finished else 0
    clips = []
    for record in records:
        for row in record["items"]:
            item = Item(**row)
            texts = {"json": json.dumps({"caption": item.captions, **item.details}, ensure_ascii=False).encode()}
            if item.captions:
                texts["txt"] = item.captions[0].encode()
            path = out_dir / WORKING / record["part"] / item.name
            if not path.is_file():
                of = record_path(out_dir, record["part"])
                raise DataError(f"{str(path)!r} is gone: delete {str(of)!r}, then run again")
            clips.append((item, path, texts))
    write_shard(out_dir / SHARD_NAME.format(number), clips)
    for record in records:
        shutil.rmtree(out_dir / WORKING / record["part"], ignore_errors=True)

"""What `i2vgen batch` prints: the items before a run, bars and lines while it goes on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2vgen.batch import BatchReport, Item, ItemState
from i2vgen.batch.fields import OPTION_NAMES
from i2vgen.batch.results import DONE, FAILED
from i2vgen.batch.run import refines
from i2vgen.cli.generate import expected_steps, stage_options
from i2vgen.cli.output import summary_line
from i2vgen.cli.report import Progress, counted, print_json, readable_bytes, readable_seconds
from i2vgen.cli.sources import announce, named_model, open_cascade

if TYPE_CHECKING:
    from PIL import Image

    from i2vgen.pipelines import BaseOptions, CascadePipeline, RefineOptions


class Console(BatchReport):
    """A bar for the items in hand, a line for each that is finished, the time left."""

    def __init__(self, folder: Path, is_quiet: bool):
        self.folder, self.is_quiet = folder, is_quiet
        self.num_finished = self.total = 0
        self.seconds: list[float] = []
        self.stages: dict[str, dict[str, int]] = {}  # expected steps of an item
        self.announced: set[tuple] = set()
        self.bar: Progress | None = None

    def planned(self, states: Sequence[ItemState], num_pending: int) -> None:
        self.total = num_pending
        num_done = sum(state.status == DONE for state in states)
        if num_done and not self.is_quiet:
            print(f"{num_done} of {counted(len(states), 'item')} done before", flush=True)

    def prepared(self, cascade: CascadePipeline, item: Item, image: Image.Image) -> None:
        base, refine = chosen_stages(cascade, item, image.size)
        self.stages[item.output] = expected_steps(base, refine)
        if (base, refine) not in self.announced:
            # The time is said once, for all; later shapes are only held against the memory
            repeats, strength = 0 if self.announced else self.total, item.options.get("refine_strength")
            announce(cascade, base, refine, repeats=repeats, refine_strength=strength)
            self.announced.add((base, refine))

    def sampling(self, items: Sequence[Item]) -> Callable[[str, int, int], None]:
        first, last = self.num_finished + 1, self.num_finished + len(items)
        place = f"{first}-{last}/{self.total}" if last > first else f"{first}/{self.total}"
        self.bar = Progress(self.stages[items[0].output], prefix=f"{place} ")
        return self.bar.__enter__()

    def sampled(self, items: Sequence[Item]) -> None:
        self.bar.__exit__()

    def finished(self, item: Item, entry: dict[str, Any]) -> None:
        self.num_finished += 1
        place, left = f"[{self.num_finished}/{self.total}]", self.total - self.num_finished
        if entry["status"] == FAILED:
            print(f"{place} {item.place} failed: {entry['error']}", file=sys.stderr, flush=True)
            return
        self.seconds.append(entry["seconds"])
        if not self.is_quiet:
            line = summary_line(entry | {"output": str(self.folder / item.output)}, entry["seconds"])
            each = sum(self.seconds) / len(self.seconds)
            print(f"{place} {line}" + f"; about {readable_seconds(each * left)} left" * (left > 0), flush=True)


class ClusterConsole(Console):
    """The same for cascades that work side by side elsewhere: a line for each item, no bar, no estimate."""

    def prepared(self, cascade: CascadePipeline, item: Item, image: Image.Image) -> None:
        pass

    def sampling(self, items: Sequence[Item]) -> None:
        return None

    def sampled(self, items: Sequence[Item]) -> None:
        pass


def chosen_stages(
    cascade: CascadePipeline, item: Item, image_size: tuple[int, int]
) -> tuple[BaseOptions, RefineOptions | None]:
    """The options that the item will run with. Raises ValueError if the model cannot."""
    options = item.options
    return stage_options(
        cascade,
        image_size,
        options.get("size"),
        refines(cascade, item),
        num_frames=options.get("frames"),
        target_fps=options.get("fps"),
        num_inference_steps=options.get("steps"),
        guidance_scale=options.get("guidance"),
        refine_steps=options.get("refine_steps"),
        exact=options.get("exact", False),
    )


def print_plan(
    states: Sequence[ItemState], model: str, refiner: str | None, device: str, dtype: str, is_json: bool
) -> int:
    """Print the items and an estimate; 1 if some cannot be made as they are."""
    from i2vgen.media import load_image
    from i2vgen.pipelines.estimate import estimate, skeleton
    from i2vgen.pipelines.loading import parse_device, parse_dtype

    # Two folders joined have no skeleton
    cascade = skeleton(named_model(model)) if refiner is None else open_cascade(model, device, dtype, refiner)
    cascade.model_name, device = model, parse_device(device)
    guesses: dict[tuple, Any] = {}
    listed, seconds, memory, num_problems = [], 0.0, 0.0, 0
    for state in states:
        item, problem = state.item, state.difference
        if state.status != DONE:
            try:
                run = (*chosen_stages(cascade, item, load_image(item.image).size), item.options.get("refine_strength"))
                if run not in guesses:
                    base, refine, strength = run
                    guesses[run] = estimate(
                        cascade, base, refine, device, parse_dtype(dtype, device), refine_strength=strength
                    )
                seconds += guesses[run].seconds
                memory = max(memory, guesses[run].memory_bytes)
            except ValueError as error:
                problem = str(error)
        num_problems += bool(problem)
        facts = {"output": item.output, "status": state.status, "from": item.place, "image": item.image}
        shown = {name: item.options[name] for name in OPTION_NAMES if name in item.options}
        listed.append(facts | {"prompt": item.prompt, "seed": item.seed, "options": shown, "problem": problem or None})
    counts = Counter(state.status for state in states)
    num_left = len(states) - counts[DONE]
    if is_json:
        document = {"items": listed, "to_make": num_left, "seconds": round(seconds, 1), "memory_bytes": round(memory)}
        print_json(document)
        return 1 if num_problems else 0
    for number, facts in enumerate(listed, start=1):
        options = "".join(f", {name} {_shown(value)}" for name, value in facts["options"].items())
        print(f"{number:>4}  {facts['status']:<8} {facts['output']}  seed {facts['seed']}{options}")
        if facts["problem"]:
            print(f"      {facts['from']}: {facts['problem']}")
    words = [f"{count} {status}" for status, count in counts.items()]
    print(
        f"{counted(len(states), 'item')}: {', '.join(words)}" + f"; {num_problems} with problems" * (num_problems > 0)
    )
    if num_left:
        took = f"about {readable_seconds(seconds)} and {readable_bytes(memory)} of memory on {device}"
        print(f"{took} for the {num_left} to make (a rough estimate)")
    return 1 if num_problems else 0


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)

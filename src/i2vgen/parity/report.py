"""The outcome of a replay: one row a case, as aligned text, as JSON, and as a table for the docs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from i2vgen.parity.checks import worst
from i2vgen.parity.golden import Case

OK, FAIL, ABSENT = "ok", "FAIL", "absent"
HEADER = ("group", "case", "max error", "tolerance", "result", "seconds")
WIDTHS = (24, 44, 10, 10, 7, 8)
ALIGNMENTS = "<<>><>"


@dataclass(frozen=True)
class Row:
    """What a case came to: the comparison nearest to its tolerance, or the reason why there is none."""

    group: str
    case: str
    error: float | None
    tolerance: float | None
    result: str
    seconds: float
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        numbers = (f"{x:.1e}" if x else "-" if x is None else "0" for x in (self.error, self.tolerance))
        return (self.group, self.case, *numbers, self.result, f"{self.seconds:.1f}")

    def line(self) -> str:
        return f"{aligned(self.cells)}  {self.note}".rstrip()


@torch.no_grad()
def run_case(case: Case, group: str) -> Row:
    """Replay one case under the group's name in the report. Whatever goes wrong is the row's failure, by name."""
    start = time.perf_counter()
    try:
        checks = case.run()
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return Row(group, case.name, None, None, FAIL, time.perf_counter() - start, kind + reason[:300])
    seconds = time.perf_counter() - start
    if not checks:
        return Row(group, case.name, None, None, ABSENT, seconds, "its inputs are in another folder")
    check = worst(checks)
    note = "" if check.is_ok else check.note or f"at {check.what}"
    return Row(group, case.name, check.error, check.tolerance, OK if check.is_ok else FAIL, seconds, note)


def aligned(cells: tuple[str, ...]) -> str:
    """One line of the table: numbers to the right."""
    columns = zip(cells, WIDTHS, ALIGNMENTS, strict=True)
    return "  ".join(f"{cell:{alignment}{width}}" for cell, width, alignment in columns).rstrip()


def total(rows: Iterable[Row]) -> str:
    rows = list(rows)
    counts = {result: sum(row.result == result for row in rows) for result in (OK, FAIL, ABSENT)}
    parts = [f"{len(rows)} cases", f"{counts[OK]} ok", f"{counts[FAIL]} failed"]
    if counts[ABSENT]:
        parts.append(f"{counts[ABSENT]} without inputs here")
    return f"{', '.join(parts)}, {sum(row.seconds for row in rows):.1f} s"


def write_json(path: Path, rows: list[Row]) -> None:
    content = {"total": total(rows), "cases": [{n: _plain(v) for n, v in asdict(row).items()} for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_markdown(path: Path, rows: list[Row]) -> None:
    """A table that docs quote: no seconds, which depend on the machine."""
    lines = ["| group | case | max error | tolerance | result |", "|---|---|---:|---:|---|"]
    lines += [f"| {' | '.join(row.cells[:5])} |" for row in rows]
    passed, compared = sum(row.result == OK for row in rows), sum(row.result != ABSENT for row in rows)
    path.write_text("\n".join([*lines, "", f"{passed} of {compared} cases pass."]) + "\n")


def _plain(value: object) -> object:
    """JSON knows no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

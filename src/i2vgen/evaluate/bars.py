"""Bars: what a figure should reach, what it reached, and the tables of a model card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class Bar:
    """One line of the final table. `found` is None where nothing could be measured; the bar is then missed."""

    name: str
    wanted: str
    found: float | None
    shown: str
    is_met: bool


@dataclass(frozen=True)
class Table:
    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass
class Report:
    """What one measure has to say. `notes` state how it was measured: seeds, wordings, sizes, what was left out."""

    measure: str
    bars: list[Bar]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_clips: int = 0
    num_errors: int = 0

    def to_markdown(self) -> str:
        """Bars, tables and notes under a heading."""
        lines = [f"## {self.measure}", "", bars_table(self.bars), ""]
        for table in self.tables:
            lines += [table.caption, ""] if table.caption else []
            lines += [markdown_table(table.header, table.rows), ""]
        lines += [f"- {note}" for note in self.notes]
        lines += [f"- Clips: {self.num_clips}" + (f", failed: {self.num_errors}" if self.num_errors else "")]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict:
        return asdict(self)


def at_least(name: str, value: float | None, least: float, unit: str, digits: int = 1) -> Bar:
    return _bar(name, value, f">= {least:g} {unit}", unit, digits, lambda found: found >= least)


def at_most(name: str, value: float | None, most: float, unit: str, digits: int = 1) -> Bar:
    return _bar(name, value, f"<= {most:g} {unit}", unit, digits, lambda found: found <= most)


def above(name: str, value: float | None, least: float, unit: str, digits: int = 1) -> Bar:
    return _bar(name, value, f"> {least:g} {unit}", unit, digits, lambda found: found > least)


def below(name: str, value: float | None, most: float, unit: str, digits: int = 1) -> Bar:
    return _bar(name, value, f"< {most:g} {unit}", unit, digits, lambda found: found < most)


def within(name: str, value: float | None, low: float, high: float, unit: str, digits: int = 1) -> Bar:
    return _bar(name, value, f"{low:g} to {high:g} {unit}", unit, digits, lambda found: low <= found <= high)


def share_at_least(name: str, hits: Sequence[bool], least: float) -> Bar:
    """`least` and `found` in [0, 1]; shown with the 95 % interval of the share."""
    found = mean(hits)
    is_met = found is not None and found >= least
    return Bar(name, f">= {100 * least:g} %", found, share_text(hits), is_met)


def share_text(hits: Sequence[bool]) -> str:
    """ "93 % (88 to 96, n = 168)": share, its 95 % interval, count; "-" without clips."""
    if not hits:
        return "-"
    low, high = wilson_interval(sum(hits), len(hits))
    return f"{100 * mean(hits):.1f} % ({100 * low:.0f} to {100 * high:.0f}, n = {len(hits)})"


def wilson_interval(num_hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927), 95 % for z = 1.96."""
    share, spread = num_hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean(values: Iterable[float | bool]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def number(value: float | None, digits: int = 1, scale: float = 1.0, sign: bool = False) -> str:
    return "-" if value is None else f"{scale * value:{'+' if sign else ''}.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def bars_table(bars: Iterable[Bar]) -> str:
    rows = [(bar.name, bar.wanted, bar.shown, "met" if bar.is_met else "missed") for bar in bars]
    return markdown_table(("bar", "wanted", "found", ""), rows)


def _bar(name: str, value: float | None, wanted: str, unit: str, digits: int, is_met) -> Bar:
    is_known = value is not None and math.isfinite(value)
    shown = f"{value:.{digits}f} {unit}".strip() if is_known else "-"
    return Bar(name, wanted.strip(), value if is_known else None, shown, is_known and bool(is_met(value)))

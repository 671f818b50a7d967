"""`i2vgen show`: the settings that a file keeps, in readable form."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

from i2vgen.cli import options as o
from i2vgen.cli.report import print_json


def show(file: o.File, json: o.Json = False) -> None:
    """Print how a video was made.

    Example:

      i2vgen show video.mp4
    """
    from i2vgen.media import read_settings

    settings = read_settings(file)
    if json:
        print_json(settings)
    else:
        print("\n".join(setting_lines(settings, min(shutil.get_terminal_size().columns, 100))))


def setting_lines(settings: dict[str, Any], width: int) -> list[str]:
    """Aligned `name  value` lines, groups indented below their name, long values wrapped; what is empty or None is
    left out."""
    rows = list(_rows(settings, 0))
    column = max((len(name) for name, _ in rows), default=0) + 2
    lines = []
    for name, value in rows:
        value = "".join(c if c.isprintable() else " " for c in value)
        # unbroken at hyphens: values are commands and paths too
        wrapped = textwrap.wrap(value, max(20, width - column), break_on_hyphens=False) or [""]
        lines.append(f"{name:<{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return lines


def _rows(settings: dict[str, Any], depth: int):
    for name, value in settings.items():
        label = "  " * depth + "".join(c if c.isprintable() else " " for c in str(name))
        if isinstance(value, dict):
            if rows := list(_rows(value, depth + 1)):
                yield label, ""
                yield from rows
        elif value is not None and value not in ("", [], ()):
            yield label, str(value)

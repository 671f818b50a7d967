"""`python -m i2vgen.parity FOLDER`: replay a golden folder; exit code 1 if any case fails, 2 for bad usage."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
import transformers

from i2vgen.parity.report import FAIL, HEADER, Row, aligned, run_case, total, write_json, write_markdown


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m i2vgen.parity", description="Replay numbers recorded from the original code."
    )
    parser.add_argument("folder", type=Path, help="a golden folder, or one that holds several (open/, held/)")
    parser.add_argument("--only", metavar="PATTERN", help="cases whose GROUP/CASE matches, such as 'samplers/ddim*'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the rows as a table for the docs")
    return parser


def replay(folder: Path, only: str | None = None) -> Iterator[Row]:
    """One row after the other; `only` is a pattern for GROUP/CASE, a GROUP alone stands for all of it.

    Raises ValueError if `folder` has not the layout of a golden folder, or `only` matches nothing.
    """
    from i2vgen.parity.collect import collect_cases, golden_sets  # when `main` has silenced what importing says

    is_any, sets = False, golden_sets(folder)
    for prefix, root in sets:
        for case in collect_cases(root, [other for _, other in sets if other != root]):
            group = prefix + case.group
            if only is None or _matches(f"{group}/{case.name}", only) or _matches(f"{case.group}/{case.name}", only):
                is_any = True
                yield run_case(case, group)
    if not is_any:
        raise ValueError(f"--only: no case matches {only!r}; it is a pattern for GROUP/CASE, such as 'samplers/ddim*'")


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern.rstrip("/") + "/*")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
    for path in filter(None, (options.json, options.markdown)):
        if not path.absolute().parent.is_dir() or path.is_dir():
            print(f"error: {path}: give a file in a folder that exists", file=sys.stderr)
            return 2
    rows: list[Row] = []
    try:
        for row in replay(options.folder, options.only):
            if not rows:
                print(aligned(HEADER), flush=True)
            rows.append(row)
            print(row.line(), flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(total(rows))
    try:
        if options.json:
            write_json(options.json, rows)
        if options.markdown:
            write_markdown(options.markdown, rows)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any(row.result == FAIL for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

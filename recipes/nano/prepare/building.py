"""Makes the files of the pack that are not there yet, one package after another."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from PIL import Image
from tqdm import tqdm

from prepare import selection
from prepare.debs import read_deb
from prepare.edj import largest_jpeg
from prepare.errors import PrepareError
from prepare.packages import PACKAGES, Package
from prepare.pictures import TEST_QUALITY, encode_photo, encode_sprite
from prepare.rcc import Resources
from prepare.sdist import read_film
from prepare.selection import FILM_FILE, FILM_IN_ZIP, FILM_PACKAGE, FILM_ZIP, Row
from prepare.video import encode_clip, encode_film, joined

PARTS = ("photos", "sprites", "film", "test")
Locate = Callable[[Package], Path]


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file beside `target` that takes its place when all went well, and vanishes when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def missing_rows(out: Path, parts: set[str]) -> dict[str, list[Row]]:
    """Rows whose file is not in the pack, or has another size than the selection says, by package.

    A file is complete if it is there at all: none appears under its name before it is.
    """
    rows = []
    if "photos" in parts:
        rows += selection.photos()
    if "test" in parts:
        rows += selection.fixtures()
    if "sprites" in parts:
        rows += selection.sprites()
    if "film" in parts:
        film = {"file": FILM_FILE, "package": FILM_PACKAGE, "width": 512, "height": 288}
        rows.append(film | {"frames": sum(row["frames"] for row in selection.shots())})
    missing = defaultdict(list)
    for row in rows:
        if not _is_made(out / row["file"], row):
            missing[row["package"]].append(row)
    return dict(missing)


def _is_made(path: Path, row: Row) -> bool:
    if not path.is_file():
        return False
    try:
        return _size(path) == _expected(row)
    except (OSError, av.error.FFmpegError, IndexError):
        return False


def _expected(row: Row) -> tuple[int, ...]:
    return tuple(row[key] for key in ("width", "height", "frames") if key in row)


def _size(path: Path) -> tuple[int, ...]:
    """Width, height, and of a video its frames, from the header."""
    if ".mp4" in path.suffixes:
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            return video.width, video.height, video.frames
    with Image.open(path) as image:
        return image.size


def build(out: Path, missing: dict[str, list[Row]], locate: Locate, quiet: bool = False) -> None:
    """Make the files of `missing_rows` in `out`. `locate` gives the checked file of a package.

    Each file is complete when it appears. Raises PrepareError.
    """
    for name, rows in missing.items():
        package = PACKAGES[name]
        path = locate(package)
        if name == FILM_PACKAGE:
            _build_film(out / FILM_FILE, path, rows[0]["frames"], quiet)
            continue
        with tqdm(total=len(rows), desc=str(package), unit="file", disable=quiet) as progress:
            for row, data in _sources(path, rows):
                with replacing(out / row["file"]) as temporary:
                    _make(row, data, temporary)
                    if _size(temporary) != _expected(row):
                        raise PrepareError(
                            f"{row['file']} came out as {_size(temporary)}, not {_expected(row)}: "
                            f"package {package} holds another picture"
                        )
                progress.update()


def _sources(path: Path, rows: list[Row]) -> Iterator[tuple[Row, bytes]]:
    """Each row with the bytes that its `path` names, in the order of the package."""
    by_member = defaultdict(list)
    for row in rows:
        by_member[row["path"].partition("!")[0]].append(row)
    for member, data in read_deb(path, set(by_member)):
        name = f"{path.name}: {member}"
        if member.endswith(".rcc"):
            resources = Resources(data, name)
        for row in by_member[member]:
            inner = row["path"].partition("!")[2]
            if inner == "jpeg":
                yield row, largest_jpeg(data, name)
            elif inner:
                yield row, resources.read(inner)
            else:
                yield row, data


def _make(row: Row, data: bytes, target: Path) -> None:
    if row["file"].startswith("sprites/"):
        target.write_bytes(encode_sprite(data, row["path"]))
    elif row.get("type") == "video":
        encode_clip(io.BytesIO(data), target)
    elif row.get("type") == "image":
        target.write_bytes(encode_photo(data, row["path"], TEST_QUALITY))
    else:
        is_4k = row["path"].endswith("!jpeg")
        target.write_bytes(encode_photo(data, row["path"], crop=row.get("crop"), is_4k=is_4k))


def _build_film(target: Path, sdist: Path, num_frames: int, quiet: bool) -> None:
    source = io.BytesIO(read_film(sdist, FILM_ZIP, FILM_IN_ZIP))
    with (
        replacing(target) as temporary,
        tqdm(total=num_frames, desc="film", unit="frame", disable=quiet) as progress,
    ):
        encode_film(source, temporary, joined(selection.shots()), progress.update)

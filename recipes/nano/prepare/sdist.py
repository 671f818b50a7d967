"""The film inside of moviepy's source distribution: a zip in a packed tar."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from pathlib import Path

from prepare.errors import PrepareError
from prepare.limits import MAX_FILE_BYTES


def read_film(path: Path, zip_path: str, film_path: str) -> bytes:
    """The content of `film_path` in the zip that is `zip_path` in the distribution (below its one folder)."""
    try:
        with tarfile.open(path, mode="r|gz") as tar:
            for member in tar:
                if member.isfile() and member.name.partition("/")[2] == zip_path:
                    return _from_zip(_limited(tar, member, path.name), film_path, f"{path.name}: {zip_path}")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise PrepareError(f"{path.name} is damaged ({error}): fetch it again") from error
    raise PrepareError(f"{path.name} holds no {zip_path}: another version of the package?")


def _limited(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    if member.size > MAX_FILE_BYTES:
        raise PrepareError(f"{name}: {member.name!r} has {member.size} bytes, more than {MAX_FILE_BYTES}")
    return tar.extractfile(member).read()


def _from_zip(data: bytes, path: str, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if path not in archive.namelist():
            raise PrepareError(f"{name} holds no {path}: another version of the package?")
        with archive.open(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise PrepareError(f"{name}: {path} has more than {MAX_FILE_BYTES} bytes: it is damaged")
    return content

"""One batch at a time in a folder. The system drops the lock with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

LOCK_NAME = ".i2vgen-batch.lock"
BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FolderBusyError(RuntimeError):
    """Another batch is at work in the folder."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder. Raises FolderBusyError if another process does.

    A file left behind by a killed process is no lock, and is taken over. On a file system without locks a
    warning is logged, and nothing is held.
    """
    path = folder / LOCK_NAME
    file = _acquired(path)
    try:
        yield
    finally:
        # While still held, so that nobody's new file is removed; Windows cannot remove an open one.
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _acquired(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            _lock(file)
        except OSError as error:
            if error.errno in BUSY:
                file.seek(0)
                owner = file.read(20).strip() or "unknown"
                file.close()
                raise FolderBusyError(
                    f"output folder {str(path.parent)!r}: another batch is at work there (process {owner}); "
                    "wait for it, or choose another folder"
                ) from None
            logger.warning("output folder: its file system has no locks (%s); run one batch at a time in it", error)
        # The one before us may have removed the file between our opening and locking it.
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        except FileNotFoundError:
            pass
        file.close()
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _lock(file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(1000)  # beyond the text: Windows keeps others from reading what is locked
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

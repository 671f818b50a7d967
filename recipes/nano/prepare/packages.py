"""The packages that the pack is made from, by name, version and SHA-256, and how they are got."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prepare.errors import PrepareError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """`kind` is "deb" (Debian 12, all architectures) or "sdist" (PyPI)."""

    name: str
    version: str
    sha256: str
    num_bytes: int
    kind: str

    @property
    def file_name(self) -> str:
        """As apt-get and pip name it: a colon in a Debian version is written %3a."""
        if self.kind == "sdist":
            return f"{self.name}-{self.version}.tar.gz"
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


PACKAGES = {
    row["name"]: Package(**row)
    for row in map(json.loads, (Path(__file__).parent / "packages.jsonl").read_text().splitlines())
}


def check(package: Package, path: Path) -> Path:
    """`path`, if it is that package. PrepareError names the package when the file is another."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    if digest.hexdigest() != package.sha256:
        raise PrepareError(
            f"package {package} has changed: {path} has SHA-256 {digest.hexdigest()}, expected {package.sha256}; "
            "remove a file that is cut off, or give a folder with this version by --debs"
        )
    return path


def find(package: Package, folders: Iterable[Path]) -> Path | None:
    """The checked file of `package` in the first folder that has it."""
    for folder in folders:
        # Copied by hand, a file may have the colon of its version as it is.
        for name in dict.fromkeys((package.file_name, package.file_name.replace("%3a", ":"))):
            if (folder / name).is_file():
                return check(package, folder / name)
    return None


def fetch(package: Package, folder: Path, run: Callable[..., subprocess.CompletedProcess] = subprocess.run) -> Path:
    """Download `package` into `folder` with apt-get or pip, and check it.

    Nothing is installed. Raises PrepareError that names the package when there is no apt-get or the registry has
    this version no more.
    """
    if package.kind == "deb" and shutil.which("apt-get") is None:
        raise PrepareError(
            f"package {package} is missing and this machine has no apt-get: download {package.file_name} on one that "
            "has, and give its folder by --debs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if package.kind == "deb":
        command = ["apt-get", "download", "-q", f"{package.name}={package.version}"]
    else:
        # pip runs the build files of what it downloads: it must look at the hash before that.
        requirements = folder / f"{package.name}.requirements.txt"
        requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package.name]
        command += ["--require-hashes", "-r", requirements.name]
    done = run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    path = folder / package.file_name
    if done.returncode or not path.is_file():
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        raise PrepareError(
            f"package {package} could not be downloaded ({lines[-1] if lines else 'no reason given'}): run `apt-get "
            f"update` before, or put {package.file_name} into a folder and give that by --debs"
        )
    return check(package, path)

"""The package's imports run one way, files are small, and names say what is inside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import i2vgen

PACKAGE = Path(i2vgen.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# what each part may import besides itself
ALLOWED = {
    "models": set(),
    "schedulers": set(),
    "media": set(),
    "engine": {"models", "schedulers", "media"},
    "checkpoints": {"models", "schedulers", "media"},
    "data": {"models", "schedulers", "media"},
    "train": {"engine", "checkpoints", "data", "models", "schedulers", "media"},
    "pipelines": {"engine", "checkpoints", "data", "models", "schedulers", "media"},
    "batch": {"pipelines", "engine", "checkpoints", "data", "models", "schedulers", "media"},
    "parity": {"train", "pipelines", "checkpoints", "models", "schedulers", "media"},
    "evaluate": {"pipelines", "engine", "checkpoints", "data", "models", "schedulers", "media"},
}
EVERYTHING = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()}
TOP = {"cli", "compat", "server", "web", "__main__"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Parts of the package that a file imports, at its top or inside functions."""
    package = ["i2vgen", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    parts = {name.split(".")[1] for name in names if name.startswith("i2vgen.")}
    return parts & EVERYTHING


def test_imports_are_seen():
    assert {"media", "schedulers", "pipelines"} <= imports_of(PACKAGE / "pipelines" / "base.py")
    assert imports_of(PACKAGE / "schedulers" / "ddim.py") == {"schedulers"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    if part in TOP or part == "__init__":
        return
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    assert imports_of(path) - {part} <= ALLOWED[part]


def test_no_star_imports():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), path


def test_files_are_small_and_named_for_what_they_hold():
    for path in FILES:
        assert path.stem not in ("utils", "helpers", "misc", "common"), path
        assert len(path.read_text().splitlines()) <= 450, path


def test_public_names_are_at_the_top():
    for name in i2vgen.__all__:
        assert getattr(i2vgen, name) is not None
    assert i2vgen.I2VGenXLPipeline.__module__ == "i2vgen.pipelines.base"
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = i2vgen.Pipeline

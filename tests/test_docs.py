"""What the documentation shows exists: commands parse, modules and names import, links and pictures lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from i2vgen.cli.app import UsageError, app
from i2vgen.parity.__main__ import parser as parity_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = "i2vgen "
PARITY = "python -m i2vgen.parity "
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|tmp|home|root|mnt|Users)/"),
    "how the work was organised": re.compile(r"\b(?:issue|session|ticket)s? ?#?\d+|\bhelpers?\b", re.IGNORECASE),
    "a registry's host": re.compile(r"\b(?:pypi\.org|huggingface\.co|hf\.co|modelscope\.cn)\b"),
}
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
pages = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> list[list[str]]:
    """The words of every line in a block without a language, a line that ends in a backslash joined to the next."""
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith((COMMAND, PARITY))]


def check_command(words: list[str]) -> None:
    """Raises what the parser says of arguments that a command does not take; runs nothing."""
    command = typer.main.get_command(app)
    words, names = words[1:], ["i2vgen"]
    while hasattr(command, "commands"):
        if words and words[0] in ("--help", "--version"):
            return
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        if not words or words[0] not in command.commands:
            raise ValueError(f"{' '.join(names)} has no command {words[:1]}")
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if "--help" not in words:
        command.make_context(" ".join(names), words)


def anchors(page: Path) -> set[str]:
    """As they are made from headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=f"{name}: {' '.join(words)}"[:90])
        for name, page in zip(NAMES, PAGES, strict=True)
        for words in commands(page)
    ],
)
def test_commands_are_taken_as_shown(words):
    if words[0] == "python":
        parity_parser().parse_args(words[3:])
    else:
        check_command(words)


@pytest.mark.parametrize(
    "line",
    ["i2vgen generate photo.jpg", "i2vgen generate a b -o c --colour", "i2vgen paint a", "i2vgen convert a b --to x"],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((UsageError, ValueError)):
        check_command(shlex.split(line))


def test_the_pages_show_every_command():
    shown = {words[1] for page in PAGES for words in commands(page) if words[0] == "i2vgen"}
    assert {"generate", "preview", "refine", "again", "batch", "convert", "inspect", "show", "info"} <= shown


@pages
def test_python_examples_name_what_exists(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "i2vgen":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pages
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        assert ROOT in (file, *file.parents), f"{page.name}: {target} lies outside"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"


@pages
def test_no_line_says_what_only_its_writer_knows(page):
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        for what, pattern in FORBIDDEN.items():
            assert not pattern.search(line), f"{page.name}:{number} names {what}: {line}"


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / target).resolve() for target in LINK.findall(index.read_text(encoding="utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= listed

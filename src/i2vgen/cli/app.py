"""The commands together, and what becomes of an error: one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from i2vgen import __version__
from i2vgen.cli.again import again
from i2vgen.cli.batch import batch
from i2vgen.cli.convert import convert
from i2vgen.cli.data import data
from i2vgen.cli.evaluate import evaluate
from i2vgen.cli.generate import generate
from i2vgen.cli.info import info
from i2vgen.cli.inspect import inspect
from i2vgen.cli.preview import preview
from i2vgen.cli.refine import refine
from i2vgen.cli.report import print_json, warnings_to_stderr
from i2vgen.cli.serve import serve
from i2vgen.cli.show import show
from i2vgen.cli.studio import studio
from i2vgen.cli.train import train

DONE, OURS, USER, INTERRUPTED = 0, 1, 2, 130
# typer carries a click of its own in some versions and uses the installed one in others.
UsageError = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="i2vgen",
    help="Turn a still image and a line of text into a video.",
    epilog="Every video keeps the settings that made it: i2vgen show FILE, i2vgen again FILE.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(rich_help_panel="Make videos")(generate)
app.command(rich_help_panel="Make videos")(preview)
app.command(rich_help_panel="Make videos")(refine)
app.command(rich_help_panel="Make videos")(again)
app.command(rich_help_panel="Make videos")(batch)
app.command(rich_help_panel="Make videos")(studio)
app.add_typer(serve, name="serve", rich_help_panel="Make videos")
app.command(rich_help_panel="Train and measure")(train)
app.command(rich_help_panel="Train and measure")(evaluate)
app.add_typer(data, name="data", rich_help_panel="Train and measure")
app.command(rich_help_panel="Models")(convert)
app.command(rich_help_panel="Models")(inspect)
app.command(rich_help_panel="Look things up")(show)
app.command(rich_help_panel="Look things up")(info)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"i2vgen {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also with I2VGEN_DEBUG=1).")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run one command; `arguments` without the program's name, None for those of the process.

    Returns the exit code: 0 done, 1 a failure of ours or of the machine, 2 something to correct in the
    command, 130 interrupted. Errors are one line on stderr, and with `--json` one document on stdout.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # `--debug` is accepted anywhere before a "--".
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    is_debug = "--debug" in options or os.environ.get("I2VGEN_DEBUG", "0") not in ("", "0")
    rest = [a for a in options if a != "--debug"] + arguments[len(options) :]
    is_json = "--json" in options
    with warnings_to_stderr():
        try:
            code = app(args=rest or ["--help"], prog_name="i2vgen", standalone_mode=False)
            if code != INTERRUPTED:
                return code if isinstance(code, int) else DONE
            message = "interrupted"
        except (KeyboardInterrupt, typer.Abort):
            code, message = INTERRUPTED, "interrupted"
        except UsageError as error:
            code, message = USER, _usage_message(error)
        except BrokenPipeError:
            # The reader of our output has gone, as `head` does; nothing more can be printed there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OURS
        except Exception as error:
            code, message = _outcome(error)
            if is_debug:
                traceback.print_exc()
    # names out of files may hold what drives a terminal
    print(f"error: {''.join(c if c.isprintable() else ' ' for c in message)}", file=sys.stderr)
    if is_json:
        print_json({"error": message})
    return code


def _usage_message(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "i2vgen"
    return f"{' '.join(error.format_message().split()).rstrip('.')} (see {path} --help)"


def _outcome(error: Exception) -> tuple[int, str]:
    """(exit code, one line)"""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return (
            OURS,
            f"out of memory ({text[:200] or type(error).__name__}): use a smaller --size or fewer --frames",
        )
    if isinstance(error, ValueError):
        return USER, text
    if isinstance(error, OSError):
        return OURS, text
    # A sentence of ours begins with its stage or field; anything else is a defect and says its type.
    if type(error).__module__.startswith("i2vgen."):
        return OURS, text
    return OURS, f"{type(error).__name__}: {text} (an error inside i2vgen; --debug shows where)"

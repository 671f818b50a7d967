"""`i2vgen studio`: the page in a browser."""

from __future__ import annotations

import importlib.util
import os
import sys
import webbrowser
from pathlib import Path
from threading import Timer
from typing import Annotated

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import warn
from i2vgen.cli.sources import open_cascade, parse_loras

AUTH_VARIABLE = "I2VGEN_STUDIO_AUTH"
PAGE = "The page"


def studio(
    model: o.Model = "nano",
    refiner: o.Refiner = None,
    lora: o.Lora = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on. \\[127.0.0.1]", rich_help_panel=PAGE, show_default=False),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", "-p", help="Port; 0 for a free one. \\[7860]", rich_help_panel=PAGE, show_default=False),
    ] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            "--auth",
            help=f"Ask for USER:PASSWORD; @FILE reads it from a file, and {AUTH_VARIABLE} also gives it.",
            rich_help_panel=PAGE,
            metavar="USER:PASSWORD",
            show_default=False,
        ),
    ] = None,
    max_upload: Annotated[
        int, typer.Option("--max-upload", help="Megabytes of a file. \\[64]", rich_help_panel=PAGE, show_default=False)
    ] = 64,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open a browser.", rich_help_panel=PAGE)
    ] = False,
) -> None:
    """Open the studio: a page to try takes of a photo, choose one, refine it, and compare.

    Examples:

      i2vgen studio

      i2vgen studio --model ali-vilab/i2vgen-xl --refiner ./refiner --host 0.0.0.0 --auth @password.txt

    It runs on this machine alone unless --host says otherwise. Nothing is sent anywhere.
    """
    # 1. Check, before anything slow
    o.check_numbers(max_upload=max_upload)
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: give a number from 0 to 65535")
    login = read_login(auth if auth is not None else os.environ.pop(AUTH_VARIABLE, None))
    loras = parse_loras(lora)
    missing = [name for name in ("gradio", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the studio needs {', '.join(missing)}: pip install 'i2vgen[web]'")
    from i2vgen.web.app import opened_socket, run_studio
    from i2vgen.web.guard import LOOPBACK_NAMES

    listener = opened_socket(host, port)
    if host not in LOOPBACK_NAMES and login is None:
        warn(f"--host {host}: everyone who reaches this machine can use the studio; ask for a password with --auth")

    # 2. Load the model, serve
    cascade = open_cascade(model, device, dtype.value, refiner, loras)
    flags = {"model": model, "refiner": refiner, "device": device, "dtype": dtype.value}
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    print(f"i2vgen studio: {address}  (Ctrl+C ends it)", flush=True)
    if not no_browser and host in LOOPBACK_NAMES and sys.stdout.isatty():
        Timer(1.0, webbrowser.open, [address]).start()
    run_studio(cascade, host, listener, login, flags, max_upload * 1_000_000)


def read_login(text: str | None) -> tuple[str, str] | None:
    """USER:PASSWORD, or @FILE with it, as a pair. Raises ValueError, which never says the password."""
    if text is None:
        return None
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--auth {text}: cannot be read ({error}); write USER:PASSWORD into it") from error
    user, colon, password = text.partition(":")
    if not colon or not user or not password:
        raise ValueError("--auth: write USER:PASSWORD, or @FILE with it inside")
    return user, password

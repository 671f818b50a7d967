"""`i2vgen serve keys`: who may call the service; and the options that say where its database is."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Annotated

import typer

from i2vgen.cli import options as o
from i2vgen.cli.report import print_json
from i2vgen.server.config import ServiceConfig

KEEP, DEFAULTS = "What is kept", ServiceConfig()

keys = typer.Typer(no_args_is_help=True, help="API keys of the service.")


def option(text: str, *names: str, panel: str, **more):
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Data = Annotated[
    str, option("Folder for videos and the queue, or an fsspec address such as s3://bucket/x.", "--data", panel=KEEP)
]
Database = Annotated[
    str | None,
    option(
        "SQLAlchemy URL, such as postgresql://user:secret@host/name. \\[SQLite in --data]",
        "--database",
        panel=KEEP,
        envvar="I2VGEN_DATABASE",
        show_envvar=True,
        show_default=False,
    ),
]


def require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"the service needs {error.name}: pip install 'i2vgen[server]'") from error


def _store(data: str, database: str | None):
    require_packages()
    from i2vgen.server.database import open_database
    from i2vgen.server.keys import KeyStore

    return KeyStore(open_database(ServiceConfig(data=data, database=database).database_url))


def _limit(text: str):
    return typer.Option(help=text, show_default=False)


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Who holds it.")],
    data: Data = DEFAULTS.data,
    database: Database = None,
    requests_per_minute: Annotated[int | None, _limit("Calls; 0: no bound. \\[the service's]")] = None,
    videos_per_minute: Annotated[int | None, _limit("New videos; 0: no bound. \\[the service's]")] = None,
    max_queued: Annotated[int | None, _limit("Jobs that may wait. \\[the service's]")] = None,
    json: o.Json = False,
) -> None:
    """Make a key and print it, once: only its hash is kept. A running service takes it at once."""
    key, text = _store(data, database).add(name, requests_per_minute, videos_per_minute, max_queued)
    if json:
        print_json({"id": key.id, "name": key.name, "key": text})
        return
    print(text)
    print(f"key {key.id} of {key.name}; it is not shown again", file=sys.stderr)


@keys.command("list")
def list_keys(data: Data = DEFAULTS.data, database: Database = None, json: o.Json = False) -> None:
    """Keys, with their limits, in use and revoked."""
    found = _store(data, database).all()
    if json:
        print_json({"keys": [vars(key) for key in found]})
        return
    for key in found:
        made = datetime.fromtimestamp(key.created_at, timezone.utc)
        state = "revoked" if key.revoked_at else "in use"
        print(f"{key.id}  {state:8}  made {made:%Y-%m-%d %H:%M} UTC  {key.name}")
    if not found:
        print("no keys yet: i2vgen serve keys add NAME", file=sys.stderr)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of a key, or the name of its holder.")],
    data: Data = DEFAULTS.data,
    database: Database = None,
    json: o.Json = False,
) -> None:
    """Revoke a key, or all of one holder; a running service refuses it at once. Its videos stay until they expire."""
    revoked = _store(data, database).revoke(key)
    if json:
        print_json({"revoked": [found.id for found in revoked]})
        return
    for found in revoked:
        print(f"key {found.id} of {found.name} is revoked")

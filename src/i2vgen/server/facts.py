"""The facts of a model in the database: published by a worker that has loaded it, read by the API."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from i2vgen.pipelines.facts import ModelFacts
from i2vgen.server.database import models, now, writing


def publish_facts(engine: Engine, name: str, facts: ModelFacts) -> None:
    with writing(engine) as connection:
        values = {"facts": facts.to_json(), "seen_at": now(connection)}
        changed = connection.execute(update(models).where(models.c.name == name).values(**values)).rowcount
        if not changed:
            with suppress(IntegrityError), connection.begin_nested():  # another worker was first, with the same
                connection.execute(insert(models).values(name=name, **values))


def read_facts(engine: Engine, name: str) -> ModelFacts | None:
    """None until a worker has loaded the model once, or if another version wrote what cannot be read."""
    with engine.begin() as connection:
        text = connection.execute(select(models.c.facts).where(models.c.name == name)).scalar()
    try:
        return None if text is None else ModelFacts.from_json(text)
    except (ValueError, TypeError, KeyError):
        return None

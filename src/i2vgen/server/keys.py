"""API keys: made and shown once, kept as hashes, compared in constant time; with limits of their own."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, insert, select, update

from i2vgen.server.database import keys, now, writing

PREFIX = "i2vgen"
NAME_PATTERN = r"[^\x00-\x1f\x7f]{1,100}"
# Compared with where there is no such key, so that this takes as long as a wrong secret.
NO_HASH = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Key:
    """Times in seconds since 1970. A limit that is None is the service's."""

    id: str
    name: str
    requests_per_minute: int | None
    videos_per_minute: int | None
    max_queued: int | None
    created_at: float
    revoked_at: float | None


class KeyStore:
    """A key is `i2vgen_<id>_<secret>`. The secret has 256 random bits, so one round of SHA-256 keeps it."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def add(
        self,
        name: str,
        requests_per_minute: int | None = None,
        videos_per_minute: int | None = None,
        max_queued: int | None = None,
    ) -> tuple[Key, str]:
        """(key, the text to give to its holder, which is kept nowhere). Raises ValueError for a bad name or limit."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"name {name!r}: give 1 to 100 characters that print")
        given = {
            "requests_per_minute": requests_per_minute,
            "videos_per_minute": videos_per_minute,
            "max_queued": max_queued,
        }
        for field, value in given.items():
            if value is not None and value < 0:
                raise ValueError(f"{field} {value}: give 0 or more")
        id, secret = secrets.token_hex(8), secrets.token_hex(32)
        with writing(self.engine) as connection:
            values = {"id": id, "name": name, "created_at": now(connection), **given}
            connection.execute(insert(keys).values(**values, hash=_hash(secret)))
        return Key(**values, revoked_at=None), f"{PREFIX}_{id}_{secret}"

    def all(self) -> list[Key]:
        with self.engine.begin() as connection:
            return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created_at))]

    def revoke(self, id_or_name: str) -> list[Key]:
        """Revoke the key with this id, or all with this name. Raises ValueError if there is none in use."""
        with writing(self.engine) as connection:
            wanted = ((keys.c.id == id_or_name) | (keys.c.name == id_or_name)) & keys.c.revoked_at.is_(None)
            found = [_key(row) for row in connection.execute(select(keys).where(wanted))]
            if not found:
                raise ValueError(f"key {id_or_name!r}: no key in use has this id or name; see i2vgen serve keys list")
            connection.execute(update(keys).where(wanted).values(revoked_at=now(connection)))
        return found

    def is_used(self) -> bool:
        """Whether a key was ever made, revoked ones too: a service never opens by revoking its last key."""
        with self.engine.begin() as connection:
            return connection.execute(select(func.count()).select_from(keys)).scalar_one() > 0

    def verify(self, text: str) -> Key | None:
        """The key in use that `text` is, or None."""
        match = re.fullmatch(rf"{PREFIX}_([0-9a-f]{{16}})_([0-9a-f]{{64}})", text, re.ASCII)
        id, secret = (match[1], match[2]) if match else ("", "")
        with self.engine.begin() as connection:
            row = connection.execute(select(keys).where(keys.c.id == id)).first()
        is_right = hmac.compare_digest(_hash(secret), NO_HASH if row is None else row.hash)
        return _key(row) if row is not None and is_right and row.revoked_at is None else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Any) -> Key:
    return Key(**{name: row._mapping[name] for name in Key.__dataclass_fields__})

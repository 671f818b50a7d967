"""The tables, and connections to them: SQLite in WAL mode or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

QUEUED, RUNNING, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
# What is counted for ever, as jobs themselves are removed in time.
TOTAL_NAMES = ("created", COMPLETED, FAILED, "cancelled", "retried", "generation_seconds")
BUSY_SECONDS = 30.0
# Of PostgreSQL's advisory locks: one for making the tables, one for counting the queue.
SCHEMA_LOCK, QUEUE_LOCK = 4_151_992_001, 4_151_992_002

metadata = MetaData()
jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order of arrival
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),  # id of the key, "" without keys
    Column("repeat_key", String(200)),  # Idempotency-Key of the caller
    Column("repeat_hash", String(64)),
    Column("status", String(16), nullable=False),
    Column("progress", Float, nullable=False, default=0.0),  # 0 to 1
    Column("model", String(255), nullable=False),  # workers take jobs of their own model
    Column("request", Text, nullable=False),  # JSON, see requests.VideoRequest
    Column("shape", String(64), nullable=False),  # equal for jobs that may be sampled together
    Column("size", String(16), nullable=False),
    Column("seconds", String(16), nullable=False),
    Column("files", Text, nullable=False, default="{}"),  # JSON, variant -> {"name", "bytes", "type"}
    Column("num_bytes", BigInteger, nullable=False, default=0),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("request_id", String(64)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("worker", String(64)),  # who has claimed it
    Column("lease_until", Float),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    UniqueConstraint("owner", "repeat_key"),
    Index("jobs_by_status", "status", "model", "number"),
    Index("jobs_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("requests_per_minute", Integer),
    Column("videos_per_minute", Integer),
    Column("max_queued", Integer),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)
workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", String(64), nullable=False),
    Column("model", String(255), nullable=False),
    Column("seen_at", Float, nullable=False),
)
models = Table(
    "models",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("facts", Text, nullable=False),  # JSON, see facts.ModelFacts
    Column("seen_at", Float, nullable=False),
)
totals = Table(
    "totals",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Float, nullable=False),
)


class DatabaseError(RuntimeError):
    """The database cannot be opened; the message says what to do."""


def open_database(url: str) -> Engine:
    """An engine with all tables there. Raises DatabaseError without the URL's password."""
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if is_sqlite:
            if not parsed.database or parsed.database == ":memory:":
                raise DatabaseError("database: SQLite in memory is not shared with workers; name a file")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
            _prepare_sqlite(engine)
        else:
            engine = create_engine(parsed, pool_pre_ping=True)
        with writing(engine) as connection:
            if not is_sqlite:
                connection.execute(text(f"select pg_advisory_xact_lock({SCHEMA_LOCK})"))
            metadata.create_all(connection)
            there = set(connection.execute(select(totals.c.name)).scalars())
            for name in TOTAL_NAMES:
                if name not in there:
                    connection.execute(insert(totals).values(name=name, value=0.0))
    except (ArgumentError, NoSuchModuleError) as error:
        raise DatabaseError(f"database {url.split('@')[-1]!r} is no SQLAlchemy URL that is known: {error}") from error
    except ModuleNotFoundError as error:
        raise DatabaseError(f"database {shown!r} needs {error.name}: pip install 'i2vgen[server]'") from error
    except (DBAPIError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise DatabaseError(f"database {shown!r} cannot be opened ({reason}): check the address and rights") from error
    return engine


def writing(engine: Engine):
    """A transaction that writes: in SQLite it holds the file's write lock from its beginning."""
    return engine.execution_options(i2vgen_writes=True).begin()


def now(connection: Connection) -> float:
    """Seconds since 1970: PostgreSQL's clock, which all machines share, or this machine's."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(text("select extract(epoch from clock_timestamp())")).scalar_one())
    return time.time()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection, record) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        cursor = connection.cursor()
        cursor.execute(f"pragma busy_timeout = {round(BUSY_SECONDS * 1000)}")
        cursor.execute("pragma journal_mode = wal")
        cursor.execute("pragma synchronous = full")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail where another wrote in between.
        writes = connection.get_execution_options().get("i2vgen_writes", False)
        connection.exec_driver_sql("begin immediate" if writes else "begin")

"""The tables of the store, and the seal that each of their rows carries.

A seal is a digest over all other columns of its row, written with the row in one statement: SQLite
has no checksums of its own, so a bit that flips on a disk would otherwise change a loss, a verdict
or a name unseen. Jobs and models carry SHA-256 (their certificate and verdict are what the product
proves), the many small rows a CRC-32, which sees every flip of one bit. Columns without a value do
not count, so a column that a later revision adds leaves seals as they are.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
)
from sqlalchemy.engine import Connection

MIGRATIONS, REVISION = "tunesmith:migrations", "0005"
"""Where the revisions are, and the newest of them."""
SEALED_SINCE = "0003"  # the revision in which rows got seals

metadata = sa.MetaData()


class _Flag(Boolean):
    """True or false as SQLite keeps them, where what is neither stays as it is, for the row's seal
    to tell."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        return None if dialect.supports_native_boolean else lambda v: bool(v) if v in (0, 1) else v


_JSON = sa.JSON(none_as_null=True)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("sequence", Integer, nullable=False),
    Column("name", String, nullable=False),
    Column("model_key", String, nullable=False),
    Column("task", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("training_data", Text, nullable=False),
    Column("validation_data", Text, nullable=False),
    Column("options", _JSON, nullable=False),
    Column("resolved", _JSON),
    Column("base", _JSON, nullable=False),
    Column("template", _JSON, nullable=False),
    Column("data_digest", String, nullable=False),
    Column("status", String, nullable=False),
    Column("step", Integer, nullable=False, default=0),
    Column("total_steps", Integer, nullable=False, default=0),
    Column("rows", _JSON, nullable=False),
    Column("input_tokens", Integer, nullable=False, default=0),
    Column("trained_tokens", Integer, nullable=False, default=0),
    Column("training_loss", Float),
    Column("validation_loss", Float),
    Column("stopped_by", String, nullable=False, default=""),
    Column("quote", _JSON),
    Column("used", _JSON),
    Column("certificate", _JSON),
    Column("verdict", _JSON),
    Column("moved", _JSON),
    Column("doing", _JSON),
    Column("warnings", _JSON, nullable=False),
    Column("error", _JSON),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("owner", String, nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("holder", String, nullable=False, default=""),
    Column("boot", String, nullable=False, default=""),
    Column("lease_until", Float, nullable=False, default=0.0),
    Column("idempotency_key", String, unique=True),
    Column("request_digest", String, nullable=False, default=""),
    Column("home", String, nullable=False, default=""),
    Column("seal", String),
)
NAME_TAKEN = sa.text("status NOT IN ('FAILED', 'CANCELLED')")
Index("jobs_in_order", jobs.c.sequence)
Index("jobs_by_status", jobs.c.status, jobs.c.sequence)
Index("jobs_of_a_home", jobs.c.home, jobs.c.status, jobs.c.sequence)
Index(
    "one_job_per_name",
    jobs.c.model_key,
    unique=True,
    sqlite_where=NAME_TAKEN,
    postgresql_where=NAME_TAKEN,
)

metrics = Table(
    "metrics",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("training_loss", Float),
    Column("validation_loss", Float),
    Column("learning_rate", Float),
    Column("grad_norm", Float),
    Column("tokens", Integer),
    Column("tokens_per_second", Float),
    Column("seconds", Float),
    Column("seal", BigInteger),
)
rejections = Table(
    "rejections",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("part", String, primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("reason", String, nullable=False),
    Column("detail", Text, nullable=False),
    Column("context", Text, nullable=False),
    Column("seal", BigInteger),
)
row_losses = Table(
    "row_losses",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("part", String, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("loss", Float),
    Column("tokens", Integer, nullable=False),
    Column("seal", BigInteger),
)
predictions = Table(
    "predictions",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("label", Text, nullable=False),
    Column("predicted", Text, nullable=False),
    Column("probability", Float, nullable=False),
    Column("seal", BigInteger),
)
models = Table(
    "models",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("model_key", String, nullable=False, unique=True),
    Column("line", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("is_current", _Flag, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), index=True),
    Column("base_model", String, nullable=False),
    Column("base", _JSON, nullable=False),
    Column("task", String, nullable=False),
    Column("method", String, nullable=False),
    Column("folder", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("verdict", _JSON),
    Column("created_at", Float, nullable=False),
    Column("owner", String, nullable=False),
    Column("home", String, nullable=False, default=""),
    Column("seal", String),
    sa.UniqueConstraint("line", "version"),
)
usage = Table(
    "usage",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("job_id", String),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("credits", Float, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=False),
    Column("seal", BigInteger),
)
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("level", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("seal", BigInteger),
)
homes = Table(
    "homes",
    metadata,
    Column("id", String, primary_key=True),
    Column("place", String, nullable=False),
    Column("machine", String, nullable=False),
    Column("opened_at", Float, nullable=False),
)
revision_table = Table(
    "alembic_version", sa.MetaData(), Column("version_num", String(32), primary_key=True)
)
SEALED = {
    t.name: t for t in (jobs, metrics, rejections, row_losses, predictions, models, usage, events)
}


# ---------------------------------------------------------------- seals


class Unreadable:
    """A document of the store that is no JSON any more."""


def lenient(text: Any) -> Any:
    """A JSON column's value; damage is told by its row's seal, not in the middle of a listing."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return Unreadable()


def seal_of(table: Table, values: Mapping[Any, Any], *, is_read: bool = False) -> str | int:
    """The digest of a row's other columns; TypeError or ValueError for a value that its column
    cannot hold.

    `is_read`: documents are as JSON gave them back.
    """
    known = [
        (name, p)
        for name, plain in _plains(table, is_read)
        if (v := values[name]) is not None and (p := plain(v)) is not None
    ]
    text = _ENCODER.encode(known).encode()
    return (
        zlib.crc32(text)
        if isinstance(table.c.seal.type, BigInteger)
        else hashlib.sha256(text).hexdigest()
    )


def sealed(table: Table, values: Mapping[Any, Any]) -> dict[str, Any]:
    """A whole row: what is given, the defaults of the rest, and the seal."""
    defaults = {
        c.name: c.default.arg if isinstance(c.default, sa.ColumnDefault) else None
        for c in table.columns
        if not _is_counted(c)
    }
    row = {**defaults, **values}
    return {**row, "seal": seal_of(table, row)}


def damage(table: Table, row: Mapping[Any, Any]) -> str:
    """Why a row cannot be believed; empty where it can."""
    try:
        return (
            "" if row["seal"] == seal_of(table, row, is_read=True) else "it does not match its seal"
        )
    except (TypeError, ValueError, OverflowError, RecursionError):
        return "it holds a value that cannot be"


def seal_all(c: Connection) -> None:
    """Give every row that has none its seal: those that an older program wrote."""
    for table in SEALED.values():
        keys = list(table.primary_key)
        while rows := c.execute(sa.select(table).where(table.c.seal.is_(None)).limit(1000)).all():
            for row in rows:
                mine = sa.and_(*(k == row._mapping[k.name] for k in keys))
                c.execute(table.update().where(mine).values(seal=seal_of(table, row._mapping)))


def _is_counted(column: Column[Any]) -> bool:
    """A number that the database gives."""
    return (
        column.primary_key
        and isinstance(column.type, Integer)
        and len(column.table.primary_key) == 1
    )


_ENCODER = json.JSONEncoder(sort_keys=True)


@cache
def _plains(table: Table, is_read: bool) -> list[tuple[str, Callable[[Any], Any]]]:
    """For each column that a seal covers, what makes its values such as every database gives them
    back."""
    return [
        (c.name, _plain_of(c, is_read))
        for c in table.columns
        if c.name != "seal" and not _is_counted(c)
    ]


def _plain_of(column: Column[Any], is_read: bool) -> Callable[[Any], Any]:
    kind = column.type
    if isinstance(kind, sa.JSON):
        return (lambda v: v) if is_read else lambda v: json.loads(json.dumps(v))
    if isinstance(kind, Boolean):
        return _plain_bool
    if isinstance(kind, Float):
        return _plain_float
    wanted, name = (int if isinstance(kind, Integer) else str), column.name

    def plain(value: Any) -> Any:
        if not isinstance(value, wanted):
            raise TypeError(f"{name} is {value!r}")
        return wanted(value)

    return plain


def _plain_bool(value: Any) -> bool:
    if value not in (0, 1):
        raise TypeError(f"{value!r} is neither true nor false")
    return bool(value)


def _plain_float(value: Any) -> float | None:
    """SQLite keeps no NaN and no negative zero."""
    if not isinstance(value, (float, int)):
        raise TypeError(f"{value!r} is no number")
    return None if value != value else float(value) + 0.0

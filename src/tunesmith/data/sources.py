"""Tables of other databases as training data: PostgreSQL and SQLite, read in a read-only
transaction with a time limit.

What is asked for is copied as it stands at one moment; queries then run on the copy, in DuckDB's
words.
"""

import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb

from tunesmith.data.gate import quoted
from tunesmith.errors import MissingExtra, SourceFailed

BATCH = 10_000  # rows held in memory at a time


@contextmanager
def opened(
    url: str, relations: Collection[str], *, seconds: float = 60.0
) -> Iterator[duckdb.DuckDBPyConnection]:
    """The relations (schema.name, or name) of `postgresql://…` or `sqlite:///file` as tables of a
    DuckDB connection; SourceFailed otherwise."""
    read = _postgresql if url.startswith("postgresql") else _sqlite
    with duckdb.connect() as made:
        for relation in relations:
            parts = relation.split(".")
            if len(parts) == 2:
                made.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(parts[0])}")
        try:
            for relation, names, rows in read(url, relations, time.monotonic() + seconds):
                _insert(made, relation, names, rows)
        except Exception as e:
            if type(e).__module__.partition(".")[0] not in ("sqlite3", "psycopg", "duckdb"):
                raise
            raise SourceFailed(source=url.partition("://")[0], reason=str(e).strip()) from None
        yield made


_Rows = Iterator[tuple[str, list[str], Iterator[list[tuple[Any, ...]]]]]


def _sqlite(url: str, relations: Collection[str], deadline: float) -> _Rows:
    file = Path(unquote(url.removeprefix("sqlite:///"))).absolute().as_uri()
    with closing(sqlite3.connect(f"{file}?mode=ro", uri=True, isolation_level=None)) as c:
        c.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
        c.execute("PRAGMA query_only=ON")
        c.execute("PRAGMA trusted_schema=OFF")  # a view may call no function with effects
        c.execute("BEGIN")
        for relation in relations:
            cursor = c.execute(f"SELECT * FROM {_name(relation)}")
            yield relation, [d[0] for d in cursor.description], _batches(cursor)


def _postgresql(url: str, relations: Collection[str], deadline: float) -> _Rows:
    try:
        import psycopg
    except ImportError:
        raise MissingExtra(what="a PostgreSQL source", extra="postgresql") from None
    with psycopg.connect(
        url.replace("postgresql+psycopg:", "postgresql:", 1), connect_timeout=10
    ) as c:
        c.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        c.execute(
            "SELECT set_config('statement_timeout', %s, true)",
            [str(max(1, int(1000 * (deadline - time.monotonic()))))],
        )
        for relation in relations:
            with c.cursor(
                "rows"
            ) as cursor:  # on the server, so that a large table does not fill this process
                cursor.execute(f"SELECT * FROM {_name(relation)}".encode())
                names = [d.name for d in cursor.description or ()]
                yield relation, names, _batches(cursor)


def _batches(cursor: Any) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(BATCH):
        yield rows


def _insert(
    made: duckdb.DuckDBPyConnection,
    relation: str,
    names: list[str],
    batches: Iterator[list[tuple[Any, ...]]],
) -> None:
    """A table with the types of the first rows."""
    import pyarrow as pa

    is_there = False
    for rows in batches:
        arrow = pa.table({n: pa.array([_plain(r[i]) for r in rows]) for i, n in enumerate(names)})
        made.register("arrived", arrow)
        made.execute(
            f"INSERT INTO {_name(relation)} FROM arrived"
            if is_there
            else f"CREATE TABLE {_name(relation)} AS FROM arrived"
        )
        made.unregister("arrived")
        is_there = True
    if not is_there:
        made.execute(
            f"CREATE TABLE {_name(relation)} ({', '.join(f'{quoted(n)} VARCHAR' for n in names)})"
        )


def _plain(value: Any) -> Any:
    """What Arrow has a type for; the rest (JSON, addresses, ranges) as text."""
    return (
        value
        if value is None
        or isinstance(value, (str, bytes, bool, int, float, list))
        or hasattr(value, "isoformat")
        else str(value)
    )


def _name(relation: str) -> str:
    return ".".join(map(quoted, relation.split(".")))

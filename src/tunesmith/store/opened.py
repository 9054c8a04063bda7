"""A store that is opened: SQLite by default, PostgreSQL by URL; its clock, its transactions, and
rows that are read with their seals."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Table
from sqlalchemy.engine import Connection

from tunesmith import durable, schema
from tunesmith.errors import (
    InvalidSetting,
    MissingExtra,
    StoreTooNew,
    StoreUnavailable,
)
from tunesmith.store.rows import damaged_row, leave_out, name_of

OPENING = 0x74756E65  # of the lock under which a store is made, in PostgreSQL


class BootClock:
    """Seconds since this machine started: leases of a store on one machine. `boot` tells two starts
    apart."""

    def __init__(self) -> None:
        file = Path("/proc/sys/kernel/random/boot_id")
        self.boot = file.read_text().strip() if file.exists() else ""

    def now(self, c: Connection) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) if self.boot else time.time()


class DatabaseClock:
    """The database server's own clock: leases of a store that several machines share."""

    boot = "database"

    def now(self, c: Connection) -> float:
        return float(c.scalar(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))) or 0.0)


class OpenedStore:
    """`home` is the identity of the home that asks (durable.open_home): it claims its own jobs and
    no others."""

    page_size = 1000
    """Rows that are held at once when a table is read through."""

    def __init__(
        self,
        url: str,
        clock: BootClock | DatabaseClock | None = None,
        wall: Callable[[], float] = time.time,
        *,
        home: str = "",
    ) -> None:
        self.home, self._url = home, url
        self.is_read_only = False
        try:
            parsed = sa.make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                parsed = self._file(parsed, Path(parsed.database))
            self._engine = sa.create_engine(parsed, json_deserializer=schema.lenient)
        except sa.exc.ArgumentError:
            allowed = "it is a URL such as postgresql+psycopg://user@host/name"
            raise InvalidSetting(name="TUNESMITH_STORE", value=url, allowed=allowed) from None
        except ModuleNotFoundError:
            raise MissingExtra(what="a store in PostgreSQL", extra="postgresql") from None
        on_one_machine = self._engine.dialect.name == "sqlite"
        self._clock, self._wall = (
            clock or (BootClock() if on_one_machine else DatabaseClock()),
            wall,
        )
        sa.event.listen(self._engine, "handle_error", self._unavailable)
        if on_one_machine:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._open()

    def _file(self, url: sa.URL, file: Path) -> sa.URL:
        """SQLite's file, made where it is missing; one that cannot be written is opened for
        reading."""
        if file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
            self.is_read_only = True
            return url.set(database=f"file:{quote(str(file))}", query={"mode": "ro", "uri": "true"})
        durable.make_folder(file.parent)
        with durable.typed_errors(file):
            os.close(durable.open_private(file))
        return url

    def _open(self) -> None:
        revision = schema.revision_table
        with self._reading() as c:
            found = (
                c.scalar(sa.select(revision.c.version_num))
                if sa.inspect(c).has_table(revision.name)
                else None
            )
        if found == schema.REVISION:
            return
        with self._alone() as c:
            tables = sa.inspect(c).get_table_names()
            if not tables:
                schema.metadata.create_all(c)
                revision.create(c)
                c.execute(revision.insert().values(version_num=schema.REVISION))
                return
            found = (
                c.scalar(sa.select(revision.c.version_num)) if revision.name in tables else "none"
            )
            if found != schema.REVISION and not _upgrade(c, found):
                raise StoreTooNew(
                    store=self._engine.url.render_as_string(), found=found, known=schema.REVISION
                )

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A transaction of which one runs at a time, also on a server, where two could make the
        same table or row at once."""
        with self._engine.begin() as c:
            if self._engine.dialect.name == "postgresql":
                c.execute(sa.select(sa.func.pg_advisory_xact_lock(OPENING)))
            yield c

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A transaction that takes no write lock."""
        with self._engine.connect().execution_options(reads=True) as c, c.begin():
            yield c

    def _unavailable(self, context: sa.ExceptionContext) -> None:
        """What the disk, the server or a lock held for too long says becomes an error of ours; a
        wrong statement stays what it is."""
        error = context.original_exception
        is_broken = type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError) and (
            "syntax" not in str(error) or "malformed" in str(error)
        )
        if is_broken or isinstance(error, UnicodeDecodeError) or _is_lost_server(error):
            raise StoreUnavailable(reason=str(error).strip(), store=self.place()) from error

    def place(self) -> str:
        """The store's URL, without its password."""
        return sa.make_url(self._url).render_as_string()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _sound_rows(self, table: Table, query: Any) -> list[Any]:
        """The rows of a query that can be believed; the others are named and left out."""
        return list(self._sound(table, self._read(table, query)))

    def _read(self, table: Table, query: Any) -> list[Any]:
        try:
            with self._reading() as c:
                return list(c.execute(query).all())
        except StoreUnavailable as e:
            if "malformed" not in str(e.fields["reason"]):
                raise
        return self._one_by_one(table, query)

    def _one_by_one(self, table: Table, query: Any) -> list[Any]:
        """The rows of a query from a file that is damaged in places."""
        keys: list[Any] = list(table.primary_key)
        found: list[Any] = []
        with self._reading() as c:
            named = c.execute(query.with_only_columns(*keys)).all()
        for key in named:
            try:
                with self._reading() as c:
                    found += c.execute(
                        sa.select(table).where(*(k == v for k, v in zip(keys, key, strict=True)))
                    ).all()
            except StoreUnavailable as e:
                leave_out(damaged_row(table, str(key[0]), str(e.fields["reason"])))
        return found

    def _sound(self, table: Table, rows: Iterable[Any]) -> Iterator[Any]:
        for row in list(rows):
            if why := schema.damage(table, row._mapping):
                leave_out(damaged_row(table, name_of(table, row._mapping), why))
            else:
                yield row


def _upgrade(c: Connection, found: str | None) -> bool:
    """Bring an older store to REVISION in the open transaction; False where its revision is not
    among ours."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", schema.MIGRATIONS)
    config.attributes["connection"] = c
    if found not in {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}:
        return False
    command.upgrade(config, schema.REVISION)
    if (found or "") < schema.SEALED_SINCE:  # in later ones a row without a seal is a damaged one
        schema.seal_all(c)
    return True


def _is_lost_server(error: BaseException | None) -> bool:
    """psycopg's class for a server that is gone, full or does not answer; psycopg may not be
    installed."""
    return any(
        f"{k.__module__}.{k.__name__}" == "psycopg.OperationalError" for k in type(error).__mro__
    )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, not by the driver
    connection.text_factory = lambda data: data.decode(
        errors="replace"
    )  # damage is told by the row's seal
    for pragma in (
        "busy_timeout=30000",
        "journal_mode=DELETE",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(c: Connection) -> None:
    c.exec_driver_sql("BEGIN" if c.get_execution_options().get("reads") else "BEGIN IMMEDIATE")

"""The session that a user works in: what a cursor of his connection does not take over by
itself."""

import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import duckdb

from tunesmith.data.gate import literal, quoted


@dataclass(frozen=True)
class Session:
    """What a cursor does not take over from the connection that a user works on."""

    settings: Mapping[str, str] = field(default_factory=dict)
    variables: Sequence[tuple[str, str, str]] = ()
    """Name, value as text, type."""
    temporary: frozenset[str] = frozenset()
    """Names of temporary tables and views: no other connection sees them."""

    @classmethod
    def read(cls, text: str) -> "Session":
        """From what SESSION_SQL gives."""
        settings, variables, views, tables = json.loads(text)
        return cls(
            dict(settings),
            [tuple(v) for v in variables],
            frozenset(name.lower() for name in views + tables),
        )

    def apply(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Let the cursor read as the user's session does: its schema, time zone, settings and
        variables."""
        own = dict(cursor.execute("SELECT name, value FROM duckdb_settings()").fetchall())
        for name, value in self.settings.items():
            if value is not None and own.get(name) != value and name != "schema":
                try:
                    cursor.execute(f"SET {quoted(name)} = {literal(value)}")
                except (
                    duckdb.Error
                ):  # one that is of the whole database, or cannot be set by its text
                    continue
        for name, value, kind in self.variables:
            cursor.execute(f"SET VARIABLE {quoted(name)} = CAST(? AS {kind})", [value])


SESSION_SQL = (
    "SELECT system.main.to_json(row("
    + ", ".join(
        (
            "(SELECT system.main.list([its.name, its.value]) FROM duckdb_settings() AS its)",
            "(SELECT coalesce(system.main.list([its.name, its.value, its.type]), []) "
            "FROM duckdb_variables() AS its)",
            "(SELECT coalesce(system.main.list(its.view_name), []) FROM duckdb_views() AS its "
            "WHERE its.temporary AND NOT its.internal)",
            "(SELECT coalesce(system.main.list(its.table_name), []) FROM duckdb_tables() AS its "
            "WHERE its.temporary)",
        )
    )
    + "))::VARCHAR"
)
"""A SELECT of a user's session as JSON; its columns are qualified, since a macro's parameters may
be called `name`."""
session: ContextVar[Session | None] = ContextVar("session", default=None)

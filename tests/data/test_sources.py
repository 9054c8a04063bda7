"""PostgreSQL and SQLite as sources: read-only, in time, and what arrives is what stood there."""

import sqlite3
import uuid
from pathlib import Path

import psycopg
import pytest

from tunesmith.data import served
from tunesmith.data.sources import opened
from tunesmith.errors import SourceFailed

ROWS = [
    (1, "my parcel is late", "delivery", 0.5),
    (2, "please refund me", "billing", None),
    (3, None, "billing", 2.0),
]
SLOW = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 1000000000) SELECT max(n) AS prompt FROM r"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as c:
        c.execute("CREATE TABLE tickets (id INTEGER, message TEXT, team TEXT, score REAL)")
        c.executemany("INSERT INTO tickets VALUES (?, ?, ?, ?)", ROWS)
        c.execute("CREATE TABLE empty (id INTEGER, word TEXT)")
        c.execute(f"CREATE VIEW slow AS {SLOW}")
    return f"sqlite:///{file}"


@pytest.fixture
def postgres(postgresql: str) -> str:
    name = f"s{uuid.uuid4().hex}"
    plain = postgresql.replace("+psycopg", "")
    with psycopg.connect(f"{plain}/postgres", autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name}".encode())
    with psycopg.connect(f"{plain}/{name}") as c:
        c.execute(
            "CREATE TABLE tickets (id int, message text, team text, score double precision, meta jsonb DEFAULT '{\"a\": 1}', at timestamptz DEFAULT now(), price numeric DEFAULT 1.5)"
        )
        c.cursor().executemany("INSERT INTO tickets VALUES (%s, %s, %s, %s)", ROWS)
        c.execute("CREATE TABLE empty (id int, word text); CREATE SEQUENCE numbers")
        c.execute(
            "CREATE VIEW writes AS SELECT nextval('numbers') AS prompt; CREATE VIEW slow AS SELECT pg_sleep(30)::text AS prompt"
        )
    return f"{plain}/{name}"


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_rows_of_a_source_can_be_queried_as_any_other(
    kind: str, request: pytest.FixtureRequest
) -> None:
    with opened(request.getfixturevalue(kind), ["tickets", "empty"]) as c:
        assert (
            c.execute("SELECT id, message, team, score FROM tickets ORDER BY id").fetchall() == ROWS
        )
        assert c.execute("SELECT count(*) FROM empty").fetchall() == [(0,)]
        found = served.fetch(
            c,
            "SELECT message AS prompt, team AS completion FROM tickets WHERE score > 1 OR team = 'delivery'",
            {"memory.main.tickets"},
        )
    assert found.to_pylist() == [
        {"prompt": ROWS[0][1], "completion": "delivery"},
        {"prompt": None, "completion": "billing"},
    ]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_source_that_takes_too_long_is_left(kind: str, request: pytest.FixtureRequest) -> None:
    with (
        pytest.raises(SourceFailed, match="interrupted|timeout"),
        opened(request.getfixturevalue(kind), ["slow"], seconds=1.0),
    ):
        pass


def test_reading_changes_nothing_in_postgresql_though_a_view_would(postgres: str) -> None:
    with pytest.raises(SourceFailed, match="read-only transaction"), opened(postgres, ["writes"]):
        pass


def test_what_cannot_be_read_is_said(sqlite: str, postgres: str, tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path / 'nowhere.db'}", "postgresql://127.0.0.1:1/x"):
        with pytest.raises(SourceFailed), opened(url, ["tickets"]):
            pass
    assert not (tmp_path / "nowhere.db").exists()
    for url in (sqlite, postgres):
        with (
            pytest.raises(SourceFailed, match="nothing"),
            opened(url, ["tickets", 'x" ; DROP TABLE tickets; --']),
        ):
            pass
        with opened(url, ["tickets"]) as c:
            assert c.execute("SELECT count(*) FROM tickets").fetchall() == [(3,)]

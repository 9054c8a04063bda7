"""Queries of other people: what the gate lets through, what the child can do, and where it ends.
The large doses: proofs/served.py."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import queries
import served as proof

from tunesmith.data import served
from tunesmith.data.served import Limits, check, fetch
from tunesmith.errors import QueryFailed, QueryRefused

GRANTED = queries.GRANTED


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> proof.Shop:
    return proof.Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def connection(shop: proof.Shop) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(shop.database), read_only=True) as c:
        yield c


def test_ordinary_training_queries_are_accepted_and_give_their_rows(
    shop: proof.Shop, connection: duckdb.DuckDBPyConnection
) -> None:
    assert (
        len(queries.ORDINARY) >= 100 and [q for q in queries.ORDINARY if not proof.passes(q)] == []
    )
    for sql in queries.ORDINARY[::16]:
        if "random" not in sql and "SAMPLE" not in sql.upper():
            names = ("prompt", "completion")
            wanted = connection.execute(
                f"SELECT prompt, completion FROM ({sql.rstrip(' ;')}\n)"
            ).fetchall()
            found = fetch(connection, sql, GRANTED).select(names).to_pylist()
            assert sorted(map(str, ((r["prompt"], r["completion"]) for r in found))) == sorted(
                map(str, wanted)
            ), sql


def test_hostile_queries_have_no_effect(shop: proof.Shop) -> None:
    [told] = proof.hostile(shop, 100)
    assert told.ok, told.reached


def test_mutated_queries_that_the_gate_accepts_have_no_effect(shop: proof.Shop) -> None:
    accepted = [sql for sql in queries.mutations(7, 2000) if proof.passes(shop.text(sql))]
    assert len(accepted) > 20
    assert [
        shop.harm(sql) for sql in accepted[:: max(1, len(accepted) // 12)] if shop.harm(sql)
    ] == [] and not shop.damage()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH secret AS (SELECT 1 AS word) SELECT word FROM main.secret",
        "WITH secret AS (SELECT 1 AS word) SELECT word FROM shop.main.secret",
        "WITH a AS (SELECT * FROM secret), secret AS (SELECT 1 AS word) SELECT * FROM a",
        "WITH secret AS (SELECT * FROM secret) SELECT * FROM secret",
        "WITH RECURSIVE secret AS (SELECT * FROM secret UNION ALL SELECT * FROM secret) SELECT * FROM secret",
        "SELECT (WITH secret AS (SELECT 1 AS word) SELECT 1), word FROM secret",
        "SELECT * FROM tickets WHERE EXISTS (WITH secret AS (SELECT 1) FROM secret) AND id IN (FROM secret)",
        "(WITH secret AS (SELECT 1) SELECT * FROM secret) UNION ALL SELECT * FROM secret",
        'WITH "ſecret" AS (SELECT 1 AS word) SELECT word FROM secret',
    ],
)
def test_a_name_is_looked_up_as_the_database_does(sql: str) -> None:
    with pytest.raises(QueryRefused, match="no relation .*secret that you may read"):
        check(sql, GRANTED)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH secret AS (SELECT 1 AS word) SELECT word FROM secret",
        "WITH RECURSIVE secret(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM secret WHERE n < 3) SELECT n FROM secret",
        "WITH secret AS (SELECT 1 AS word), b AS (SELECT * FROM secret) SELECT (SELECT max(word) FROM secret) FROM b",
        "SELECT * FROM (WITH secret AS (SELECT 1) SELECT * FROM (SELECT * FROM secret))",
    ],
)
def test_a_name_of_a_cte_is_the_cte_where_it_can_be_seen(sql: str) -> None:
    assert check(sql, GRANTED).relations == frozenset()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM shop.hr.main.tickets",
        "SELECT * FROM hr.main.tickets",
        "SELECT * FROM shop.main.tickets.id",
    ],
)
def test_a_schema_inside_a_schema_is_another_table(sql: str) -> None:
    with pytest.raises(QueryRefused):
        check(sql, GRANTED)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        " ; ",
        "-- only words",
        "SELECT 1; SELECT 2",
        "SELECT '\ud800'",
        "(" * 401,
        "SELECT " + "(SELECT " * 390 + "1" + ")" * 390,
        "x" * 70_000,
    ],
)
def test_what_is_no_single_query_is_refused_in_words(sql: str) -> None:
    with pytest.raises(QueryRefused, match="was refused"):
        check(sql, GRANTED)


def test_only_what_a_query_reads_is_copied(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    relations = check("SELECT t.id FROM Tickets t JOIN SALES.leads USING (id)", GRANTED).relations
    assert relations == {"shop.main.tickets", "shop.sales.leads"}
    files = served.copy(connection, relations, "shop", tmp_path)
    with duckdb.connect(files["shop"]) as copied:
        assert {
            (s, t)
            for _, s, t in copied.execute(
                "SELECT database_name, schema_name, table_name FROM duckdb_tables()"
            ).fetchall()
        } == {
            ("main", "tickets"),
            ("sales", "leads"),
        }


@pytest.mark.parametrize(
    ("sql", "limits", "reason"),
    [
        (
            "SELECT i AS prompt, 'x' AS completion FROM range(1000) r(i)",
            Limits(rows=999),
            "more than 999 rows",
        ),
        (
            "SELECT repeat(md5(i::VARCHAR), 40000) AS prompt, 'x' AS completion FROM range(10) r(i)",
            Limits(result_mb=2),
            "more than 2 MB",
        ),
        (
            "SELECT count(*) AS prompt, 'x' AS completion FROM range(1000000000) a, range(1000000000) b",
            Limits(seconds=1.5),
            "longer than|[Ii]nterrupt|INTERRUPT|time|more than 1024 MB of memory",
        ),
        (
            "SELECT sum(hash(i)) AS prompt, 'x' AS completion FROM range(1000000000000) r(i)",
            Limits(seconds=1.5),
            "longer than 1.5 s|[Ii]nterrupt|INTERRUPT|time",
        ),
        (
            "SELECT i AS prompt, 'x' AS completion FROM range(60000000) r(i) ORDER BY hash(i)",
            Limits(memory_mb=100),
            "more than 100 MB of memory|emory",
        ),
        (
            "SELECT list(i) AS prompt, 'x' AS completion FROM range(2000000000) r(i)",
            Limits(memory_mb=200),
            "emory",
        ),
        (
            "SELECT no_such_column AS prompt, 'x' AS completion FROM tickets",
            Limits(),
            "no_such_column",
        ),
    ],
)
def test_a_query_that_takes_too_much_fails_in_words(
    connection: duckdb.DuckDBPyConnection, sql: str, limits: Limits, reason: str
) -> None:
    began = time.monotonic()
    with pytest.raises(QueryFailed, match=reason):
        fetch(connection, sql, GRANTED, limits=limits)
    assert time.monotonic() - began < limits.seconds + 5.0


def test_a_child_that_only_waits_is_killed(shop: proof.Shop, tmp_path: Path) -> None:
    """No processor time is used and DuckDB interrupts nothing there; the gate, which refuses it, is
    left out."""
    began = time.monotonic()
    with pytest.raises(QueryFailed, match="longer than 1.5 s"):
        served.run(
            "SELECT sleep_ms(12000)",
            shop.files,
            "shop",
            tmp_path,
            part="training",
            limits=Limits(seconds=1.5),
        )
    assert time.monotonic() - began < 8.0, "the promise: the limit and a grace"


def test_an_in_memory_database_can_be_served_too() -> None:
    with duckdb.connect() as c:
        c.execute(
            "CREATE TABLE t AS SELECT 'q' || i AS prompt, 'a' AS completion FROM range(5) r(i); CREATE VIEW v AS SELECT * FROM t WHERE prompt <> 'q0'"
        )
        assert len(fetch(c, "SELECT * FROM v", {"memory.main.v"})) == 4
        with pytest.raises(QueryRefused):
            fetch(c, "SELECT * FROM t", {"memory.main.v"})


def test_the_confined_child_can_reach_nothing(tmp_path: Path, shop: proof.Shop) -> None:
    """The walls one by one, with the gate open: what a hole in it would find."""
    listener = socket.create_server(("127.0.0.1", 0))
    attempts = [
        f"SELECT content FROM read_text('{shop.canary}')",
        f"SELECT content FROM read_blob('{shop.files['shop']}')",
        f"SELECT * FROM '{shop.canary}'",
        f"COPY (SELECT 1) TO '{tmp_path / 'out'}'",
        f"ATTACH '{shop.database}' AS other",
        "SET lock_configuration=false",
        "SET memory_limit='100GB'",
        f"SELECT * FROM read_csv('http://127.0.0.1:{listener.getsockname()[1]}/x')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE TABLE x AS SELECT 1",
        "FROM secret",
    ]
    for sql in attempts:
        assert not shop.harm(sql) and not list(tmp_path.glob("out*")), sql
        with pytest.raises(QueryFailed):
            (folder := tmp_path / str(attempts.index(sql))).mkdir()
            served.run(
                sql,
                shop.files,
                "shop",
                folder,
                part="training",
                limits=replace(proof.LIMITS, seconds=10),
            )
    listener.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        listener.accept()

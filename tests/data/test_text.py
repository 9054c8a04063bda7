"""One rule from a value to its text: for Python's values, for the database's types, in training and
in COMPLETE."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_files import frozen

import tunesmith
from tunesmith.data.text import Broken, sql_cell, value_of
from tunesmith.errors import NoUsableRows, UnreadableValue

PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TIMES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))
SCALARS = st.one_of(
    st.integers(-(2**62), 2**62),
    st.floats(),
    st.booleans(),
    st.uuids(),
    TIMES,
    TIMES.map(dt.datetime.date),
    st.times(),
    st.decimals(-(10**9), 10**9, allow_nan=False, places=3),
    st.timedeltas(dt.timedelta(0), dt.timedelta(days=900)),
    st.text(max_size=8),
)


@PROPERTY
@given(value=SCALARS)
def test_a_python_value_has_the_text_that_the_database_gives_it(value: Any) -> None:
    with duckdb.connect() as connection:
        [(wanted,)] = connection.execute("SELECT CAST(? AS VARCHAR)", [value]).fetchall()
    found = value_of(value)
    assert found is None if isinstance(value, float) and value != value else str(found) == wanted


@PROPERTY
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
        lambda s: st.lists(s, max_size=3),
        max_leaves=6,
    )
)
def test_lists_and_objects_have_the_json_of_the_database(value: Any) -> None:
    for nested in ([value], {"a": value, "b": None}):
        with duckdb.connect() as connection:
            [(wanted,)] = connection.execute(
                "SELECT CAST(CAST(? AS JSON) AS VARCHAR)",
                [json.dumps(nested, separators=(",", ":"), ensure_ascii=False)],
            ).fetchall()
        assert value_of(nested) == wanted


def test_what_is_nothing_is_missing_and_what_has_no_rule_is_an_error() -> None:
    import numpy
    import pandas

    for nothing in (
        None,
        float("nan"),
        numpy.nan,
        pandas.NaT,
        pandas.NA,
        numpy.datetime64("NaT"),
        numpy.float32("nan"),
    ):
        assert value_of(nothing) is None
    assert (
        value_of(numpy.int64(5)) == "5"
        and value_of(numpy.array([1, 2])) == "[1,2]"
        and value_of(pandas.Timestamp("2024-01-02")) == "2024-01-02 00:00:00"
    )
    assert (
        isinstance(value_of("\ud83d"), Broken)
        and isinstance(value_of(b"\xff"), Broken)
        and isinstance(value_of(["\ud83d"]), Broken)
    )
    assert value_of(b"\xc3\xa9") == "é" and value_of((1, 2)) == "[1,2]"
    for odd in (object(), {1, 2}, lambda: 1):
        with pytest.raises(UnreadableValue, match="has no form as text"):
            value_of(odd)


# every type of the database: what is trained on, and what it counts as
VALUES = {
    "'plain'": "plain",
    "'\"quoted\"'": '"quoted"',
    "'{\"a\": 1}'": '{"a": 1}',
    "1.50": "1.50",
    "1.50::DOUBLE": "1.5",
    "100000": "100000",
    "'\"word\"'::JSON": "word",
    "'{\"a\": 1.50}'::JSON": '{"a": 1.50}',
    "'1.50'::JSON": "1.50",
    "'[1, 2]'::JSON": "[1, 2]",
    "'true'::JSON": "true",
    "{'a': 1, 'b': NULL}": '{"a":1,"b":null}',
    "MAP {'k': 1}": '{"k":1}',
    "['x', 'y']": '["x","y"]',
    "[1, 2]::INT[2]": "[1,2]",
    "union_value(n := 2)": '{"n":2}',
    "row(1, 'a')": '[1,"a"]',
    r"'\xC3\xA9'::BLOB": "é",
    "DATE '2024-04-01'": "2024-04-01",
    "TIMESTAMP '2024-03-01 09:30:00'": "2024-03-01 09:30:00",
    "TIMESTAMP '2024-03-01 09:30:00.5'": "2024-03-01 09:30:00.5",
    "TIME '09:01:00'": "09:01:00",
    "true": "true",
    "'a'::ENUM('a', 'b')": "a",
    "UUID '550E8400-E29B-41D4-A716-446655440000'": "550e8400-e29b-41d4-a716-446655440000",
    "INTERVAL 1 DAY": "1 day",
    "5::UTINYINT": "5",
    "170141183460469231731687303715884105727::HUGEINT": "170141183460469231731687303715884105727",
    "'101'::BIT": "101",
    "0.1::FLOAT": "0.1",
}


@pytest.mark.parametrize("value", VALUES)
def test_each_type_is_trained_on_as_its_text(tmp_path: Path, value: str) -> None:
    [row] = frozen(f"SELECT {value} AS prompt, {value} AS completion", tmp_path)
    assert (row.prompt, row.completion) == (VALUES[value], VALUES[value])
    with duckdb.connect() as connection:
        connection.execute(
            f"CREATE MACRO cell(prompt) AS {sql_cell('prompt')}; CREATE TABLE t AS SELECT {value} AS v"
        )
        kinds = (
            connection.execute("SELECT cell(v)[2] FROM t").fetchall()
            + connection.execute(f"SELECT cell({value})[2]").fetchall()
        )
    assert kinds == [(VALUES[value],)] * 2, "COMPLETE sees the same"


MISSING = ["NULL", "'null'::JSON", "NULL::INT", "NULL::JSON", "NULL::BLOB", "NULL::INT[]"]


@pytest.mark.parametrize("value", MISSING)
def test_each_nothing_is_missing(tmp_path: Path, value: str) -> None:
    with pytest.raises(NoUsableRows, match="1 row, all rejected .1 x prompt is missing"):
        frozen(f"SELECT {value} AS prompt, 'x' AS completion", tmp_path)


def test_complete_answers_a_column_of_any_type_as_its_text(home: Path, tiny_base: Path) -> None:
    """One call for text, number, JSON and messages; NULL gives NULL; the argument is computed
    once."""
    calls = []
    with tunesmith.connect() as connection:
        connection.create_function(
            "counted", lambda x: calls.append(x) or x, ["VARCHAR"], "VARCHAR", side_effects=True
        )
        ask = f"SELECT COMPLETE('{tiny_base}', VALUE, {{'max_tokens': 4}})::JSON ->> '$.choices[0].messages'"
        same = [
            connection.execute(ask.replace("VALUE", v)).fetchall()
            for v in (
                "'5'",
                "5",
                "'5'::JSON",
                "'\"5\"'::JSON",
                "counted('5')",
                "[{'role': 'user', 'content': '5'}]",
                '\'[{"role": "user", "content": [{"type": "text", "text": "5"}]}]\'::JSON',
            )
        ]
        assert all(s == same[0] for s in same) and len(calls) == 1
        assert connection.execute(
            f"SELECT COMPLETE('{tiny_base}', NULL), COMPLETE('{tiny_base}', 'null'::JSON)"
        ).fetchall() == [(None, None)]
        with pytest.raises(duckdb.Error, match="no valid Unicode"):
            connection.execute(rf"SELECT COMPLETE('{tiny_base}', '\xFF'::BLOB)").fetchall()

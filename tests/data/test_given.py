"""Faults that a stranger found, each as its kind: sessions, frames, equal values, folders,
messages, odd ends."""

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from test_conversation import answer, user
from test_files import frozen, texts

import tunesmith
from conftest import in_process_worker, next_word_rows
from tunesmith import Tunesmith, worker
from tunesmith.errors import (
    InvalidCall,
    NoSuchFile,
    NoSuchTable,
    NoUsableRows,
    QueryRefused,
    ReservedSchemaName,
    TunesmithError,
    TwoColumns,
    UnreadableFile,
    UnreadableValue,
)
from tunesmith.jobs import JobStatus

CREATE = "SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', 'm', 'tunesmith-tiny', ?)"


@pytest.fixture
def shop(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    with tunesmith.connect(tmp_path / "shop.duckdb") as c:
        yield c


def trained_on(c: Any, home: Path, query: str) -> list[tuple[str, str]]:
    """What a CREATE in SQL and one from Python freeze; they must agree."""
    [(job_id,)] = c.execute(CREATE, [query]).fetchall()
    ids = [job_id, Tunesmith(c).create("n", "tunesmith-tiny", query).id]
    found = [
        duckdb.sql(
            f"SELECT prompt, completion FROM '{home}/jobs/{i[3:]}/data/train.parquet'"
        ).fetchall()
        for i in ids
    ]
    assert found[0] == found[1]
    return found[0]  # type: ignore[no-any-return]


def test_a_query_is_read_in_the_users_session(shop: Any, home: Path) -> None:
    """Its schema, time zone, settings and variables are those of the connection on which CREATE was
    said."""
    shop.execute(
        "CREATE SCHEMA s; CREATE TABLE main.t AS SELECT 'main' prompt, 'm' completion; CREATE TABLE s.t AS SELECT 'in s' prompt, 's' completion"
    )
    assert trained_on(shop, home, "SELECT * FROM t") == [("main", "m")]
    shop.execute(
        "USE s; SET TimeZone = 'America/New_York'; SET integer_division = true; SET VARIABLE v = [1, 2]"
    )
    assert trained_on(shop, home, "SELECT * FROM t") == [("in s", "s")]
    stamp = "TIMESTAMPTZ '2024-01-01 00:00:00+00'"
    [(seen,)] = shop.execute(f"SELECT {stamp}::VARCHAR").fetchall()
    assert trained_on(shop, home, f"SELECT {stamp} AS prompt, 1 / 2 AS completion") == [
        (seen, "0")
    ] and seen.startswith("2023-12-31")
    assert trained_on(shop, home, "SELECT getvariable('v') AS prompt, 'x' AS completion") == [
        ("[1,2]", "x")
    ]
    shop.execute("CREATE TEMP TABLE t AS SELECT 'temp' prompt, 'x' completion")
    with pytest.raises(NoSuchTable, match="t is a temporary table or view of the session"):
        Tunesmith(shop).create("m", "tunesmith-tiny", "SELECT * FROM t")
    assert trained_on(shop, home, "SELECT * FROM main.t") == [("main", "m")]


def test_comments_and_semicolons_after_a_query_are_its_end(shop: Any, home: Path) -> None:
    for end in ("; -- done", " -- all of them", ";;", " /* a;b */ ; -- x\n", ""):
        assert trained_on(shop, home, f"SELECT 'a;' AS prompt, '--b' AS completion{end}") == [
            ("a;", "--b")
        ]
    shop.execute(
        "CREATE TABLE t AS SELECT ' ' || i AS prompt, 'x' || i AS completion FROM range(20) r(i)"
    )
    clean = Tunesmith(shop).audit("SELECT * FROM t -- all of them").clean_sql
    assert shop.execute(f"SELECT count(*) FROM ({clean})").fetchall() == [(20,)]


def test_a_read_only_database_and_odd_names_of_schemas_and_macros(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    file = tmp_path / "own.duckdb"
    with duckdb.connect(str(file)) as c:
        c.execute(
            "CREATE TABLE t AS SELECT 'a' prompt, 'b' completion; CREATE MACRO date_trunc(a, b) AS 1"
        )
    with tunesmith.connect(file, read_only=True) as c:
        assert trained_on(c, home, "SELECT * FROM t") == [("a", "b")]
        assert c.execute(
            "SELECT count(*) FROM snowflake.account_usage.cortex_fine_tuning_usage_history"
        ).fetchall() == [(0,)]
    for statement, name in (
        ('CREATE SCHEMA "Tunesmith"', "Tunesmith"),
        ('CREATE MACRO "->>"(a, b) AS 1', "->>"),
        ("CREATE MACRO list_value(a) AS 1", "list_value"),
    ):
        with duckdb.connect(str(tmp_path / f"{hash(name)}.duckdb")) as c:
            c.execute(statement)
        with pytest.raises(ReservedSchemaName, match=name):
            tunesmith.connect(tmp_path / f"{hash(name)}.duckdb")
    for bad in (tmp_path, tmp_path / "no" / "where.duckdb"):
        with pytest.raises(TunesmithError, match="cannot be opened"):
            tunesmith.connect(bad)


def test_a_training_source_that_is_empty_is_refused_at_every_door(shop: Any, home: Path) -> None:
    service = Tunesmith(shop)
    for data in ("", " ", None, ";", "-- nothing"):
        with pytest.raises(QueryRefused, match="it is empty"):
            service.create("m", "tunesmith-tiny", data)
        with pytest.raises(QueryRefused, match="it is empty"):
            service.audit(data)
    with pytest.raises(duckdb.Error, match="it is empty"):
        shop.execute(CREATE, [None])
    for call in (
        "FINETUNE('CREATE', NULL, 'tunesmith-tiny', 'x')",
        "FINETUNE('CREATE', 'a', 'tunesmith-tiny', 'SELECT 1', NULL, 5)",
    ):
        with pytest.raises(duckdb.Error, match=f"{InvalidCall.__name__}|InvalidOptions"):
            shop.execute(f"SELECT {call}")
    assert service.show() == []


# ---------------------------------------------------------------- frames and values


def test_pandas_frames_are_read_by_our_rules_also_in_columns_of_objects(tmp_path: Path) -> None:
    import numpy
    import pandas

    def column(*values: Any, **more: Any) -> list[str]:
        frame = pandas.DataFrame(
            {
                "prompt": [f"q{i}" for i in range(len(values))],
                "completion": pandas.Series(values, **more),
            }
        )
        return [r.completion for r in frozen(frame, tmp_path)]

    assert column({"a": 1}, {"b": "x"}, dtype=object) == ['{"a":1}', '{"b":"x"}'] and column(
        [1, "a"], ["b"], dtype=object
    ) == [
        '[1,"a"]',
        '["b"]',
    ]
    assert column(1, "x", True, dtype=object) == ["1", "x", "true"] and column(
        "x", numpy.float32("nan"), pandas.NA, pandas.NaT, dtype=object
    ) == ["x"]
    assert column("\ud83d", "x", dtype=object) == ["x"] and column(0.1, dtype="float32") == ["0.1"]
    assert column(1, None, dtype="Int64") == ["1"] and column("a", "b", dtype="category") == [
        "a",
        "b",
    ]
    for odd in (
        pandas.period_range("2024", periods=1, freq="M"),
        pandas.interval_range(0, 1),
        [1 + 2j],
    ):
        with pytest.raises(UnreadableValue, match="column completion"):
            column(*odd)
    for twice in ("completion", "Completion"):
        for values in (["b", "c"], ["b", {"x": 1}]):
            frame = pandas.DataFrame([["a", *values]], columns=["prompt", "completion", twice])
            with pytest.raises(TwoColumns):
                frozen(frame, tmp_path)
    messages = [user("hi"), answer("yo")]
    rows = frozen(
        pandas.DataFrame(
            {
                "messages": [
                    messages,
                    [user("a"), answer("b", weight=0)],
                    [user("c"), answer("d", tool_calls=[{"id": 1}])],
                ]
            }
        ),
        tmp_path,
    )
    assert [(r.row, r.prompt, r.completion) for r in rows] == [(1, "hi", "yo")]
    mixed = pandas.DataFrame(
        {
            "prompt": ["a", "b"],
            "completion": [1, "x"],
            "small": numpy.array([0.1, 0.2], "float32"),
            "at": pandas.to_datetime(["2024-01-02 03:04:05.123456789"] * 2),
        }
    )
    assert json.loads(frozen(mixed, tmp_path)[0].context) == {
        "small": 0.1,
        "at": "2024-01-02 03:04:05.123456789",
    }


def test_equal_values_keep_their_own_text(tmp_path: Path) -> None:
    pairs: list[tuple[Any, str]] = [
        (Decimal("1.50"), "1.50"),
        (Decimal("1.5"), "1.5"),
        (Decimal("1.500"), "1.500"),
        (dt.time(10, tzinfo=dt.UTC), "10:00:00+00"),
        (dt.time(11, tzinfo=dt.timezone(dt.timedelta(hours=1))), "11:00:00+01"),
        (1, "1"),
        (1.0, "1.0"),
        (True, "true"),
    ]
    assert [
        c
        for _, c in texts(
            [{"prompt": f"{i}", "completion": v} for i, (v, _) in enumerate(pairs)], tmp_path
        )
    ] == [t for _, t in pairs]


def test_numpy_values_have_the_text_of_their_own_precision(tmp_path: Path) -> None:
    import numpy

    values = [
        numpy.datetime64("2024-01-02T03:04:05", "ns"),
        numpy.datetime64("2024-01-02T03:04:05.000000001", "ns"),
        numpy.timedelta64(5, "s"),
        numpy.float32(0.1),
        numpy.int8(3),
    ]
    wanted = ["2024-01-02 03:04:05", "2024-01-02 03:04:05.000000001", "00:00:05", "0.1", "3"]
    assert [
        c
        for _, c in texts(
            [{"prompt": f"{i}", "completion": v} for i, v in enumerate(values)], tmp_path
        )
    ] == wanted


@pytest.mark.parametrize(
    "value",
    [{"a": {(1, 2): 3}}, 10**5000, Decimal("sNaN"), [object()]],
    ids=["a tuple as key", "digits", "sNaN", "object"],
)
def test_values_without_a_text_are_named_by_row_and_column(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UnreadableValue, match="in row 2, column completion"):
        frozen([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": value}], tmp_path)
    circular: dict[str, Any] = {}
    circular["me"] = circular
    with pytest.raises(UnreadableValue):
        frozen([{"prompt": "a", "completion": circular}], tmp_path)
    with pytest.raises(TwoColumns):
        frozen([{"prompt": "a", "completion": "b", 1: "x", "1": "y"}], tmp_path)


# ---------------------------------------------------------------- files


def test_parquet_columns_are_those_of_the_files(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    place = tmp_path / "hive" / "completion=zzz"
    place.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), place / "x.parquet")
    assert texts(str(tmp_path / "hive"), tmp_path) == [("a", "b")]
    parquet.write_table(
        pyarrow.table({"prompt": ["a"], "completion": [1.0]}), tmp_path / "r1.parquet"
    )
    parquet.write_table(
        pyarrow.table({"prompt": ["b"], "completion": [12345678901234567]}), tmp_path / "r2.parquet"
    )
    with pytest.raises(
        UnreadableFile, match=r"r2.parquet.*completion is int64, and double in r1.parquet"
    ):
        texts(str(tmp_path / "r?.parquet"), tmp_path)
    twice = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])],
        names=["prompt", "completion", "Completion"],
    )
    parquet.write_table(twice, tmp_path / "twice.parquet")
    for data in (twice, str(tmp_path / "twice.parquet")):
        with pytest.raises(TwoColumns):
            texts(data, tmp_path)


def test_packed_files_are_read_or_named(tmp_path: Path) -> None:
    import gzip

    duckdb.sql("SELECT 'a' AS prompt, 'b' AS completion").write_csv(str(tmp_path / "rows.csv"))
    duckdb.execute(
        f"COPY (SELECT 'a' AS prompt, 'b' AS completion) TO '{tmp_path}/rows.csv.zst' (FORMAT csv, COMPRESSION zstd)"
    )
    assert texts(str(tmp_path / "rows.csv.zst"), tmp_path) == [("a", "b")]
    duckdb.execute(
        f"COPY (SELECT 'a' AS prompt, 'b' AS completion) TO '{tmp_path}/p.parquet' (FORMAT parquet)"
    )
    for name, content in (
        ("p.gz", (tmp_path / "p.parquet").read_bytes()),
        ("g.gz", gzip.compress(b"prompt,completion\na,b\n")),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(UnreadableFile, match="packed once more"):
            texts(str(tmp_path / name), tmp_path)


def test_names_that_begin_like_statements_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("values-1.jsonl", "from-1.jsonl", "select.jsonl", "with-x.jsonl"):
        Path(name).write_text('{"prompt": "a", "completion": "b"}\n')
        assert (
            texts(name, tmp_path)
            == texts(name.replace("1", "*").replace("x", "*"), tmp_path)
            == [("a", "b")]
        )
    for name in ("table.csv", "with-y.parquet", "~nobody-here/rows.csv"):
        with pytest.raises(NoSuchFile):
            texts(name, tmp_path)
    assert texts("/* [x]* */ SELECT 'a' AS prompt, 'b' AS completion -- see a.csv", tmp_path) == [
        ("a", "b")
    ]


@pytest.mark.parametrize(
    "content", ["prompt,completion\n", "[]", '{"prompt": "", "completion": ""}', "a,b\n"]
)
def test_a_file_without_rows_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows").write_text(content)
    with pytest.raises(NoUsableRows):
        texts(str(tmp_path / "rows"), tmp_path)
    with pytest.raises(NoUsableRows, match="it has no rows"):
        texts([], tmp_path)


# ---------------------------------------------------------------- messages


SILENT = {
    "a key twice": '[{"role": "user", "content": "A", "content": "B"}, {"role": "assistant", "content": "x"}]',
    "a picture in a text part": '[{"role": "user", "content": [{"type": "text", "text": "look", "image_url": "x"}]}, {"role": "assistant", "content": "x"}]',
    "a picture in a part without type": '[{"role": "user", "content": [{"text": "look", "image_url": {}}]}, {"role": "assistant", "content": "x"}]',
    "no role": '[{"content": "You are a bot"}, {"role": "assistant", "content": "x"}]',
    "an empty role": '[{"role": "", "content": "You are a bot"}, {"role": "assistant", "content": "x"}]',
    "a missing role": '[{"role": null, "content": "You are a bot"}, {"role": "assistant", "content": "x"}]',
}


@pytest.mark.parametrize("kind", SILENT)
def test_nothing_of_a_message_is_dropped_or_guessed(tmp_path: Path, kind: str) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "rows.jsonl").write_text(f'{good}\n{{"messages": {SILENT[kind]}}}\n')
    assert [r.row for r in frozen(str(tmp_path / "rows.jsonl"), tmp_path)] == [1]


def test_empty_completions_and_tools_beside_lists(tmp_path: Path) -> None:
    rows = [
        {"prompt": [user()], "completion": []},
        {"prompt": [user()], "completion": [answer()], "tools": [{"a": 1}]},
    ]
    for row in rows:
        with pytest.raises(NoUsableRows, match=r"completion is empty|the row has tools"):
            frozen([row], tmp_path)
    for nothing in ("[]", "null", "", [], None):
        assert len(frozen([{"messages": [user(), answer()], "tools": nothing}], tmp_path)) == 1


def test_empty_means_the_same_in_every_shape(tmp_path: Path) -> None:
    for space in ("\u00a0", "\x0b", "\u3000"):
        pair, chat = (
            {"prompt": space, "completion": space},
            {"messages": [user(space), answer(space)]},
        )
        assert texts([pair], tmp_path) == texts([chat], tmp_path) == [(space, space)]
    for space in (" ", "\t\n", "\r"):
        for row in ({"prompt": space, "completion": "x"}, {"messages": [user(space), answer("x")]}):
            with pytest.raises(NoUsableRows):
                texts([row], tmp_path)


def test_python_takes_the_shapes_that_training_takes(home: Path) -> None:
    import numpy

    service = Tunesmith()
    same = [
        service.complete("tunesmith-tiny", [p], max_tokens=4)[0].text
        for p in ("hi", [user("hi")], (user("hi"),), numpy.array([user("hi")], dtype=object))
    ]
    assert len(set(same)) == 1


def test_a_key_with_half_an_emoji_harms_no_table(shop: Any, home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi", "\\ud83d": 1}, {"role": "assistant", "content": "x"}]}\n'
    )
    job = Tunesmith(shop).create("m", "tunesmith-tiny", str(tmp_path / "rows.jsonl"))
    assert any("\\ud83d" in w for w in job.warnings)
    assert shop.execute("SELECT count(*), count(warnings) FROM tunesmith.jobs").fetchall() == [
        (1, 1)
    ]


def test_lists_that_python_cannot_hold_are_text_or_null(shop: Any, tmp_path: Path) -> None:
    digits, deep = f"[{'9' * 5000}]", "[" * 1500 + "]" * 1500
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "a", "completion": {digits}}}\n')
    assert texts(str(tmp_path / "rows.jsonl"), tmp_path) == [("a", digits)]
    for value in (digits, deep):
        assert (
            len(shop.execute("SELECT TRY_COMPLETE('tunesmith-tiny', ?::JSON)", [value]).fetchall())
            == 1
        )


# ---------------------------------------------------------------- words and workers


def test_held_out_rows_are_not_denied(tmp_path: Path) -> None:
    from tunesmith.data import split

    counts = {"train": 6, "validation": 2, "verdict": 1}
    assert not any(
        "none is held out" in w
        for w in split.warnings(counts, split.plans({"training": 6, "validation": 3}))
    )
    counts = {"train": 8, "validation": 1, "verdict": 0}
    assert any(
        "no verdict rows" in w
        for w in split.warnings(counts, split.plans({"training": 8, "validation": 1}))
    )


def test_a_worker_that_may_not_idle_does_its_jobs(
    home: Path, tuned_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    monkeypatch.setenv("TUNESMITH_IDLE_S", "0")
    service = Tunesmith()
    job = service.create("m", str(tuned_base), next_word_rows(1), learning_rate=1e-2, max_epochs=1)
    in_process_worker(service).run()
    assert service.describe(job.id).status is JobStatus.SUCCEEDED

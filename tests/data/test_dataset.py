import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunesmith import durable
from tunesmith.data import dataset
from tunesmith.data.dataset import Dataset, snapshot
from tunesmith.data.given import sources_of
from tunesmith.data.split import PARTS
from tunesmith.errors import (
    DamagedFiles,
    MissingColumns,
    NoSuchTable,
    NoUsableRows,
    QueryFailed,
    TunesmithError,
)


@pytest.fixture
def connection() -> Any:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT i AS id, 'question ' || i AS prompt, 'answer ' || (i % 3) AS completion FROM range(100) r(i)"
        )
        yield connection


def freeze(
    connection: duckdb.DuckDBPyConnection,
    home: Path,
    training: str = "SELECT * FROM t",
    seed: int = 0,
    **queries: str,
) -> Dataset:
    taken = len(list(home.glob("data-*")))
    final = home / f"data-{taken}"
    found = snapshot(
        connection, sources_of({"training": training, **queries}), final, home=home, seed=seed
    )
    return Dataset.open(final, found.digest)


def rows_of(dataset: Dataset, part: str) -> list[str]:
    return [r.prompt for r in dataset.rows(part)]


def test_without_a_validation_query_a_tenth_each_is_held_out(
    connection: Any, tmp_path: Path
) -> None:
    dataset = freeze(connection, tmp_path)
    assert {p: len(rows_of(dataset, p)) for p in PARTS} == {
        "train": 80,
        "validation": 10,
        "verdict": 10,
    }
    assert sorted(sum((rows_of(dataset, p) for p in PARTS), [])) == sorted(
        f"question {i}" for i in range(100)
    )


def test_the_split_depends_on_the_seed_alone(connection: Any, tmp_path: Path) -> None:
    first, again, other = (
        rows_of(freeze(connection, tmp_path, seed=s), "verdict") for s in (1, 1, 2)
    )
    assert first == again != other


def test_validation_rows_are_halved_for_the_verdict_unless_a_test_query_is_given(
    connection: Any, tmp_path: Path
) -> None:
    query = "SELECT 'held ' || i AS prompt, 'x' AS completion FROM range(20) r(i)"
    halved = freeze(connection, tmp_path, validation=query)
    assert [len(rows_of(halved, p)) for p in PARTS] == [100, 10, 10]
    tested = freeze(
        connection, tmp_path, validation=query, test="SELECT 'test' AS prompt, 'x' AS completion"
    )
    assert [len(rows_of(tested, p)) for p in PARTS] == [100, 20, 1]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(prompts=["b  c", "B c", "d"] * 8, seed=0)
@given(
    prompts=st.lists(
        st.sampled_from(["a", "A", " a ", "b  c", "B c", "d", "e", "f", "g", "h"]),
        min_size=1,
        max_size=60,
    ),
    seed=st.integers(0, 99),
)
def test_no_row_is_lost_or_doubled_and_duplicates_are_never_parted(
    tmp_path_factory: Any, prompts: list[str], seed: int
) -> None:
    home = tmp_path_factory.mktemp("split")
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (prompt VARCHAR, completion VARCHAR)")
        connection.executemany("INSERT INTO t VALUES (?, 'x')", [[p] for p in prompts])
        dataset = freeze(connection, home, seed=seed)
    parts = {p: rows_of(dataset, p) for p in PARTS}
    assert sorted(sum(parts.values(), [])) == sorted(prompts)
    keys = {p: {" ".join(x.lower().split()) for x in rows} for p, rows in parts.items()}
    assert (
        not keys["train"] & keys["validation"]
        and not keys["train"] & keys["verdict"]
        and not keys["validation"] & keys["verdict"]
    )


def test_columns_are_found_in_any_case_and_the_others_are_context(
    connection: Any, tmp_path: Path
) -> None:
    dataset = freeze(
        connection,
        tmp_path,
        "SELECT id AS PROMPT, completion AS Completion, id, [1] AS l FROM t WHERE id < 5",
    )
    rows = list(dataset.rows("train"))
    assert [r.prompt for r in rows] == ["0", "1", "2", "3", "4"]
    assert json.loads(rows[2].context) == {"id": 2, "l": [1]} and rows[2].row == 3


def test_unusable_rows_are_rejected_by_position_with_the_reason(
    connection: Any, tmp_path: Path
) -> None:
    query = r"""SELECT * FROM (VALUES ('a', 'b', 1), (NULL, 'b', 2), ('a', NULL, 3), ('', 'b', 4), ('a', '', 5), (E' \n\t', 'b', 6), ('c', 'd', 7))
                v(prompt, completion, id)"""
    dataset = freeze(connection, tmp_path, query)
    assert len(rows_of(dataset, "train")) == 2
    assert [(r["row"], r["reason"]) for r in dataset.rejected()] == [
        (2, "prompt is missing"),
        (3, "completion is missing"),
        (4, "prompt is empty"),
        (5, "completion is empty"),
        (6, "prompt is empty"),
    ]
    assert json.loads(dataset.rejected()[0]["context"]) == {"id": 2}


def test_bytes_that_are_no_utf8_are_rejected_and_good_ones_read(
    connection: Any, tmp_path: Path
) -> None:
    query = r"SELECT * FROM (VALUES ('\xC3\xA9'::BLOB, 'x'), ('\xFF\xFE'::BLOB, 'x')) v(prompt, completion)"
    dataset = freeze(connection, tmp_path, query)
    assert rows_of(dataset, "train") == ["é"]
    assert [(r["row"], r["reason"]) for r in dataset.rejected()] == [
        (2, "prompt is no valid Unicode")
    ]


def test_a_file_in_another_encoding_is_an_error_that_names_it(
    connection: Any, tmp_path: Path
) -> None:
    (tmp_path / "latin.csv").write_bytes("prompt,completion\ncaf\xe9,x\n".encode("latin-1"))
    with pytest.raises(QueryFailed, match=r"(?i)latin\.csv|utf-?8|unicode"):
        freeze(connection, tmp_path, f"SELECT * FROM '{tmp_path / 'latin.csv'}'")


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_files_are_tables_too(connection: Any, tmp_path: Path, kind: str) -> None:
    connection.execute(f"COPY t TO '{tmp_path}/rows.{kind}'")
    assert (
        len(
            rows_of(
                freeze(connection, tmp_path, f"SELECT * FROM '{tmp_path}/rows.{kind}'"), "train"
            )
        )
        == 80
    )


def chat(*turns: tuple[str, str | None]) -> str:
    return json.dumps([{"role": r, "content": c} for r, c in turns])


def test_chat_messages_become_a_prompt_and_the_last_answer(connection: Any, tmp_path: Path) -> None:
    good = chat(
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
    )
    bad = {
        "messages is not a list of two or more": chat(("user", "a")),
        "the last message is not the assistant's": chat(("user", "a"), ("user", "b")),
        "message 1 has the role 'tool', which is none of system, user, assistant": chat(
            ("tool", "a"), ("assistant", "b")
        ),
        "message 1 has no content": chat(("user", None), ("assistant", "b")),
        "message 2 is empty": chat(("user", "a"), ("assistant", " ")),
        "messages is missing": None,
    }
    connection.execute("CREATE TABLE c (messages VARCHAR)")
    connection.executemany(
        "INSERT INTO c VALUES (?)", [[v] for v in (good, *bad.values(), "no json")]
    )
    dataset = freeze(connection, tmp_path, "SELECT * FROM c")
    [row] = dataset.rows("train")
    assert row.completion == "d" and row.messages == json.loads(good)[:-1]
    assert [r["reason"] for r in dataset.rejected()] == [
        *bad,
        "messages is no JSON list of messages",
    ]


def test_messages_may_be_a_list_of_structs(connection: Any, tmp_path: Path) -> None:
    dataset = freeze(
        connection,
        tmp_path,
        "SELECT [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'r'}] AS messages",
    )
    [row] = dataset.rows("train")
    assert row.messages == [{"role": "user", "content": "q"}] and row.completion == "r"


def test_a_missing_column_names_what_is_there_and_what_is_near(
    connection: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        MissingColumns, match=r"no column completion; it gives: prompt, completions"
    ):
        freeze(connection, tmp_path, "SELECT prompt, completion AS completions FROM t")


def test_a_missing_table_says_that_temporary_ones_are_invisible(
    connection: Any, tmp_path: Path
) -> None:
    with pytest.raises(NoSuchTable, match=r"tt does not exist.*temporary"):
        freeze(connection, tmp_path, "SELECT * FROM tt")


def test_a_query_that_fails_while_running_is_told(connection: Any, tmp_path: Path) -> None:
    with pytest.raises(QueryFailed, match="nonsense"):
        freeze(connection, tmp_path, "SELECT nonsense(prompt) AS prompt, completion FROM t")
    with pytest.raises(QueryFailed, match="Could not convert string 'question 0'"):
        freeze(connection, tmp_path, "SELECT prompt::INT AS prompt, completion FROM t")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT * FROM t WHERE id < 0", "no rows"),
        ("SELECT '' AS prompt, 'x' AS completion", "1 x prompt is empty"),
    ],
)
def test_without_a_usable_row_there_is_no_job(
    connection: Any, tmp_path: Path, query: str, reason: str
) -> None:
    with pytest.raises(NoUsableRows, match=reason):
        freeze(connection, tmp_path, query)
    assert not list(tmp_path.glob("data-*"))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_validation_or_test_query_without_a_usable_row_is_told_too(
    connection: Any, tmp_path: Path, part: str
) -> None:
    with pytest.raises(NoUsableRows, match=f"in the {part} query: 1 row,"):
        freeze(connection, tmp_path, **{part: "SELECT 'a' AS prompt, NULL AS completion"})


def test_few_rows_are_all_trained_on_and_warned_about(connection: Any, tmp_path: Path) -> None:
    found = snapshot(
        connection,
        sources_of({"training": "SELECT * FROM t LIMIT 9"}),
        tmp_path / "d",
        home=tmp_path,
        seed=0,
    )
    assert found.rows["train"] == 9 and "only 9 usable rows" in found.warnings[0]


def test_the_snapshot_is_what_was_there_at_create(connection: Any, tmp_path: Path) -> None:
    dataset = freeze(connection, tmp_path)
    connection.execute("DROP TABLE t")
    assert len(rows_of(dataset, "train")) == 80


def test_a_snapshot_that_was_changed_is_refused(connection: Any, tmp_path: Path) -> None:
    found = snapshot(
        connection,
        sources_of({"training": "SELECT * FROM t"}),
        tmp_path / "d",
        home=tmp_path,
        seed=0,
    )
    connection.execute(
        f"COPY (SELECT 1 AS row, 'x' AS prompt, 'x' AS completion, '' AS context) TO '{tmp_path}/d/train.parquet'"
    )
    with pytest.raises(DamagedFiles, match=r"train\.parquet"):
        Dataset.open(tmp_path / "d", found.digest)


def test_a_snapshot_leaves_nothing_in_the_process_also_when_it_fails(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        for n, query in enumerate(
            [
                "SELECT 'a' AS prompt, 'b' AS completion FROM range(20)",
                "SELECT 1 AS x",
                "SELECT * FROM no_such_table",
            ]
        ):
            try:
                snapshot(
                    connection,
                    sources_of({"training": query}),
                    tmp_path / str(n),
                    home=tmp_path / "home",
                    seed=0,
                )
            except TunesmithError:
                assert n > 0
    with dataset._instance(os.getpid(), durable.spill_folder(tmp_path / "home")).cursor() as own:
        names = [
            name
            for (name,) in own.execute("SELECT database_name FROM duckdb_databases()").fetchall()
        ]
    assert not [name for name in names if name.startswith("scratch_")]


FREEZE = """
import sys
from tunesmith import Tunesmith, worker
from tunesmith.data import dataset
worker.ensure, dataset.MEMORY = lambda *a, **k: None, 64 << 20
rows, words = sys.argv[1:]
query = f"SELECT i || ' ' || repeat('word ', {words}) AS prompt, 'a' AS completion FROM range({rows}) r(i)"
job = Tunesmith().create("m", "tunesmith-tiny", query, max_epochs=1)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(job.rows["train"] + job.rows["validation"] + job.rows["verdict"], int(peak) >> 10)
"""


def _frozen(rows: int, words: int) -> tuple[int, int]:
    """Rows frozen, and the peak of memory in MB, where the tables may hold 64."""
    said = subprocess.run(
        [sys.executable, "-c", FREEZE, str(rows), str(words)], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    frozen, peak = map(int, said.stdout.split())
    return frozen, peak


def test_the_memory_of_a_create_does_not_grow_with_its_rows(home: Path) -> None:
    """50,000 rows of 2,000 characters more are 95 MB more; tables that held them would take at
    least that."""
    (few, before), (many, after) = _frozen(50_000, 400), _frozen(100_000, 400)
    assert (few, many) == (50_000, 100_000) and after - before < 95 / 2
    assert list((home / "tmp").iterdir()) == [], "what went to the disk went with its process"


def test_rows_that_are_longer_than_the_memory_of_the_tables_are_frozen_all_the_same(
    home: Path,
) -> None:
    assert _frozen(300, 100_000)[0] == 300  # 150 MB in one group of rows

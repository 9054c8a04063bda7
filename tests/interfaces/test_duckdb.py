import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import tunesmith
from conftest import next_word_rows
from tunesmith import Tunesmith, connect, worker
from tunesmith.errors import ReservedDatabaseName, ReservedSchemaName
from tunesmith.interfaces.sql_names import TABLES

ROWS = "SELECT message AS prompt, team AS completion FROM t"


@pytest.fixture
def connection(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database whose jobs stay PENDING."""
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    with tunesmith.connect(tmp_path / "shop.duckdb") as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT 'message ' || i AS message, 'team ' || (i % 2) AS team, i AS id FROM range(20) r(i)"
        )
        yield connection


def one(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> Any:
    [(value,)] = connection.execute(sql, list(values)).fetchall()
    return value


def jobs(connection: duckdb.DuckDBPyConnection) -> int:
    return int(one(connection, "SELECT count(*) FROM tunesmith.jobs"))


@pytest.mark.parametrize(
    "call",
    [
        "SNOWFLAKE.CORTEX.FINETUNE('CREATE', 'm', 'tunesmith-tiny', ?)",
        "snowflake.cortex.Finetune('create', 'm', 'TUNESMITH-TINY', ?, NULL, NULL)",
        "finetune('CREATE', 'm', 'tunesmith-tiny', ?, '')",
        "FINETUNE('CREATE', 'm', 'tunesmith-tiny', ?, '', '{\"max_epochs\": 3}')",
        "FINETUNE('CREATE', 'm', 'tunesmith-tiny', ?, NULL, {'max_epochs': 3})",
    ],
)
def test_create_takes_the_contracts_forms_in_any_case(
    connection: duckdb.DuckDBPyConnection, call: str
) -> None:
    job_id = one(connection, f"SELECT {call}", ROWS)
    described = json.loads(one(connection, "SELECT finetune('DESCRIBE', ?)", job_id))
    assert (
        described["id"] == job_id
        and described["base_model"] == "tunesmith-tiny"
        and described["status"] == "PENDING"
    )
    assert described["training_data"] == ROWS and described["validation_data"] == ""
    assert set(described) <= {
        "id",
        "status",
        "base_model",
        "created_on",
        "progress",
        "training_data",
        "validation_data",
        "options",
    }
    assert 1_700_000_000_000 < described["created_on"] < 3_000_000_000_000


def test_show_and_cancel_answer_as_the_contract_says(connection: duckdb.DuckDBPyConnection) -> None:
    assert json.loads(one(connection, "SELECT SNOWFLAKE.CORTEX.FINETUNE('SHOW')")) == []
    job_id = one(connection, "SELECT finetune('CREATE', 'm', 'tunesmith-tiny', ?)", ROWS)
    [row] = json.loads(one(connection, "SELECT SNOWFLAKE.CORTEX.FINETUNE('SHOW')"))
    assert set(row) == {"id", "status", "base_model", "created_on"} and row["id"] == job_id
    assert (
        one(connection, "SELECT finetune('CANCEL', ?)", job_id)
        == f"Canceled Cortex Fine-tuning job: {job_id}"
    )
    assert (
        json.loads(one(connection, "SELECT finetune('DESCRIBE', ?)", job_id))["status"]
        == "CANCELLED"
    )


SIDE_EFFECTS = [
    "EXPLAIN SELECT {call}",
    "EXPLAIN ANALYZE SELECT {call}",
    "DESCRIBE SELECT {call}",
    "SELECT {call} FROM range(5)",
    "SELECT {call} FROM t",
    "CREATE TABLE x AS SELECT {call}",
    "SELECT upper({call})",
    "SELECT {call}, {call}",
    "SELECT * FROM (SELECT {call})",
    "SUMMARIZE SELECT {call}",
    "INSERT INTO t SELECT {call}, 'x', 1",
    "COPY (SELECT {call}) TO '/dev/null'",
    "PREPARE p AS SELECT {call}",
]


@pytest.mark.parametrize("form", SIDE_EFFECTS)
def test_no_other_statement_creates_a_job(connection: duckdb.DuckDBPyConnection, form: str) -> None:
    call = f"finetune('CREATE', 'm', 'tunesmith-tiny', '{ROWS}')"
    try:
        connection.execute(form.format(call=call)).fetchall()
    except duckdb.Error as e:
        assert "CreateNotTopLevel" in str(e) or form.startswith(("COPY", "SUMMARIZE"))
    assert jobs(connection) == 0


def test_a_view_over_create_creates_nothing_when_read(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute(
        f"CREATE VIEW v AS SELECT snowflake.cortex.finetune('CREATE', 'm', 'tunesmith-tiny', '{ROWS}') AS id"
    )
    with pytest.raises(duckdb.Error, match="a statement of its own"):
        connection.execute("SELECT * FROM v").fetchall()
    assert jobs(connection) == 0


def test_one_statement_makes_one_job_also_by_sql_and_from_a_cursor(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.sql(f"SELECT finetune('CREATE', 'a', 'tunesmith-tiny', '{ROWS}')").fetchall()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', 'b', 'tunesmith-tiny', ?)", [ROWS]
        ).fetchall()
    assert jobs(connection) == 2


BAD = [
    ("finetune('CREATE', 'm', 'tunesmith-tiny', 'DELETE FROM t')", "QueryRefused"),
    (
        "finetune('CREATE', 'm', 'tunesmith-tiny', 'SELECT * FROM nowhere')",
        "NoSuchTable.*nowhere.*COMMIT",
    ),
    ("finetune('CREATE', 'm', 'tunesmith-tiny', 'SELECT * FROM mine')", "NoSuchTable.*temporary"),
    (
        "finetune('CREATE', 'm', 'tunesmith-tiny', 'SELECT * FROM t')",
        "MissingColumns.*message, team, id",
    ),
    ("finetune('CREATE', 'm', 'no-such-base', 'SELECT 1')", "UnknownBaseModel"),
    (
        "finetune('CREATE', 'm', 'tunesmith-tiny', 'SELECT 1', NULL, '{\"epochs\": 1}')",
        "InvalidOption.*max_epochs",
    ),
    ("finetune('CREATE', 'm', 'tunesmith-tiny', 'SELECT 1', NULL, '{')", "InvalidOptions"),
    ("finetune('CREATE', 'm')", "InvalidCall"),
    ("finetune('DROP', 'm')", "InvalidCall.*'CREATE'"),
    ("finetune(NULL)", "InvalidCall"),
    ("finetune('DESCRIBE', 'ft_no')", "UnknownJob.*ft_no"),
    ("finetune('CANCEL', 'ft_no')", "UnknownJob"),
]


@pytest.mark.parametrize(("call", "text"), BAD)
def test_bad_calls_name_what_is_wrong_and_change_nothing(
    connection: duckdb.DuckDBPyConnection, call: str, text: str
) -> None:
    connection.execute("CREATE TEMP TABLE mine AS SELECT 'a' AS prompt, 'b' AS completion")
    with pytest.raises(duckdb.Error, match=f"(?s){text}"):
        connection.execute(f"SELECT {call}").fetchall()
    assert jobs(connection) == 0 and one(connection, "SELECT count(*) FROM t") == 20


def test_rows_that_are_not_committed_are_not_seen(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("BEGIN; CREATE TABLE fresh AS SELECT 'a' AS prompt, 'b' AS completion")
    with pytest.raises(duckdb.Error, match="COMMIT"):
        connection.execute(
            "SELECT finetune('CREATE', 'm', 'tunesmith-tiny', 'SELECT * FROM fresh')"
        ).fetchall()
    connection.execute("ROLLBACK")


COMPLETIONS = [
    "complete('tunesmith-tiny', 'Say hello', {'max_tokens': 4})",
    "SNOWFLAKE.CORTEX.COMPLETE('tunesmith-tiny', [{'role': 'user', 'content': 'Say hello'}], {'max_tokens': '4', 'temperature': 0})",
    "Complete('tunesmith-tiny', 'Say hello', '{\"max_tokens\": 4}')",
    "AI_COMPLETE('tunesmith-tiny', 'Say hello', {'max_tokens': 4}, show_details := true)",
    "snowflake.cortex.ai_complete(model => 'tunesmith-tiny', prompt => 'Say hello', model_parameters => {'max_tokens': 4}, show_details => TRUE)",
    "try_complete('tunesmith-tiny', 'Say hello', {'max_tokens': 4})",
]


def test_complete_takes_the_contracts_forms_and_gives_its_json(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    found = [json.loads(one(connection, f"SELECT {c}")) for c in COMPLETIONS]
    assert len({f["choices"][0]["messages"] for f in found}) == 1
    usage = found[0]["usage"]
    assert (
        usage["completion_tokens"] <= 4
        and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    )
    assert found[0]["model"] == "tunesmith-tiny" and set(found[0]) == {
        "choices",
        "created",
        "model",
        "usage",
    }
    text = one(connection, "SELECT AI_COMPLETE('tunesmith-tiny', 'Say hello', {'max_tokens': 4})")
    assert text == found[0]["choices"][0]["messages"]
    recorded = connection.execute(
        "SELECT kind, model, sum(input_tokens), sum(output_tokens) FROM tunesmith.usage GROUP BY ALL"
    ).fetchall()
    assert recorded == [
        ("complete", "tunesmith-tiny", 7 * usage["prompt_tokens"], 7 * usage["completion_tokens"])
    ]


def test_complete_answers_a_column_in_order_and_null_by_null(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = connection.execute("""
        SELECT i, AI_COMPLETE('tunesmith-tiny', CASE WHEN i % 3 > 0 THEN 'word ' || (i % 5) END, {'max_tokens': 3}) FROM range(30) r(i) ORDER BY i
    """).fetchall()
    assert [i for i, answer in rows if answer is None] == list(range(0, 30, 3))
    by_prompt: dict[int, set[str]] = {}
    for i, answer in rows:
        if answer is not None:
            by_prompt.setdefault(i % 5, set()).add(answer)
    assert all(len(answers) == 1 for answers in by_prompt.values())


def test_the_model_may_be_a_column(connection: duckdb.DuckDBPyConnection) -> None:
    ask = "SELECT i, AI_COMPLETE({model}, 'word ' || i, {{'max_tokens': 3}}) FROM range(12) r(i) ORDER BY i"
    names = ("tunesmith-tiny", "tunesmith-tiny-scratch")
    apart = [connection.execute(ask.format(model=f"'{n}'")).fetchall() for n in names]
    mixed = connection.execute(
        ask.format(model=f"CASE WHEN i % 2 = 0 THEN '{names[0]}' ELSE '{names[1]}' END")
    ).fetchall()
    assert mixed == [apart[i % 2][i] for i in range(12)] and apart[0] != apart[1]
    used = dict(
        connection.execute(
            "SELECT model, count(*) FROM tunesmith.usage WHERE kind = 'complete' GROUP BY ALL"
        ).fetchall()
    )
    assert used == dict.fromkeys(names, 2), "each model's share is charged to it"
    with pytest.raises(duckdb.Error, match="unknown model"):
        connection.execute(
            "SELECT COMPLETE(CASE WHEN i = 3 THEN 'nobody' ELSE 'tunesmith-tiny' END, 'x') FROM range(5) r(i)"
        ).fetchall()
    tried = "SELECT TRY_COMPLETE(CASE WHEN i = 3 THEN 'nobody' ELSE 'tunesmith-tiny' END, 'x') IS NULL FROM range(5) r(i) ORDER BY i"
    assert [null for (null,) in connection.execute(tried).fetchall()] == [i == 3 for i in range(5)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("'no-such-model', 'x'", 'unknown model "no-such-model"'),
        ("'tunesmith-tiny', 'x', {'temperature': 3}", "temperature = 3.*0.0 to 1.0"),
        ("'tunesmith-tiny', [{'role': 'robot', 'content': 'x'}], {}", "invalid prompt object"),
        ("'tunesmith-tiny', repeat('long ', 2000)", "max tokens of 1024 exceeded"),
        ("'tunesmith-tiny', 'x', 'no json'", "invalid options object"),
    ],
)
def test_complete_says_what_is_wrong_and_try_complete_gives_null(
    connection: duckdb.DuckDBPyConnection, arguments: str, text: str
) -> None:
    with pytest.raises(duckdb.Error, match=f"(?s){text}"):
        connection.execute(f"SELECT complete({arguments})").fetchall()
    assert one(connection, f"SELECT try_complete({arguments})") is None


SCHEMA = """{'type': 'json', 'schema': {'type': 'object', 'properties': {'city': {'type': 'string', 'maxLength': 8}, 'good': {'type': 'boolean'}},
    'required': ['city', 'good'], 'additionalProperties': false}}"""


def test_answers_follow_a_response_format_and_stand_where_clients_look_for_them(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    rows = connection.execute(
        f"SELECT AI_COMPLETE('tunesmith-tiny', p, response_format => {SCHEMA}) FROM (VALUES ('I live in Paris'), (NULL), ('x')) v(p)"
    ).fetchall()
    values = [v and json.loads(v) for (v,) in rows]
    assert values[1] is None and all(
        set(v) == {"city", "good"} and isinstance(v["good"], bool) for v in (values[0], values[2])
    )
    details = json.loads(
        one(
            connection,
            f"SELECT AI_COMPLETE('tunesmith-tiny', 'I live in Paris', response_format => {SCHEMA}, show_details => true)",
        )
    )
    assert set(details) == {"structured_output", "created", "model", "usage"}
    assert details["structured_output"] == [{"raw_message": values[0], "type": "json"}]
    inside = one(
        connection,
        f"SELECT SNOWFLAKE.CORTEX.COMPLETE('tunesmith-tiny', 'I live in Paris', {{'max_tokens': 99, 'response_format': {SCHEMA}}})",
    )
    assert json.loads(inside)["structured_output"] == details["structured_output"]


@pytest.mark.parametrize(
    "given",
    [
        "{'type': 'json'}",
        "'no json'",
        "{'type': 'json', 'schema': {'type': 'banana'}}",
        "{'schema': 3}",
    ],
)
def test_an_answer_format_that_cannot_be_honoured_is_refused(
    connection: duckdb.DuckDBPyConnection, given: str
) -> None:
    with pytest.raises(duckdb.Error, match="cannot be followed|invalid options"):
        connection.execute(
            f"SELECT AI_COMPLETE('tunesmith-tiny', 'x', response_format := {given})"
        ).fetchall()


def test_an_answer_that_is_cut_within_its_json_is_an_error_or_null(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    call = f"complete('tunesmith-tiny', 'x', {{'max_tokens': 3, 'response_format': {SCHEMA}}})"
    with pytest.raises(duckdb.Error, match="no whole JSON"):
        connection.execute(f"SELECT {call}").fetchall()
    assert one(connection, f"SELECT try_{call}") is None


def test_try_complete_loses_only_the_rows_that_fail(connection: duckdb.DuckDBPyConnection) -> None:
    answers = connection.execute(
        "SELECT try_complete('tunesmith-tiny', p, {'max_tokens': 2}) FROM (VALUES ('a'), (repeat('b ', 2000)), ('c')) v(p)"
    ).fetchall()
    assert [a is None for (a,) in answers] == [False, True, False]


def test_tokens_are_counted(connection: duckdb.DuckDBPyConnection) -> None:
    count, named = connection.execute(
        "SELECT count_tokens('tunesmith-tiny', 'hello'), SNOWFLAKE.CORTEX.COUNT_TOKENS('tunesmith-tiny', NULL)"
    ).fetchall()[0]
    assert count > 0 and named is None


def test_every_table_can_be_queried_and_joined_while_empty(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    for table in ("jobs", "metrics", "models", "rejections", "row_losses", "usage"):
        assert connection.execute(f"SELECT * FROM tunesmith.{table} WHERE 1 = 1").fetchall() == []
    history = connection.execute(
        "SELECT * FROM SNOWFLAKE.ACCOUNT_USAGE.CORTEX_FINE_TUNING_USAGE_HISTORY"
    )
    assert [c[0] for c in history.description] == [
        "START_TIME",
        "END_TIME",
        "MODEL_NAME",
        "TOKEN_CREDITS",
        "TOKENS",
    ]


def test_nothing_of_ours_is_stored_in_the_users_file(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    connection.close()
    with duckdb.connect(tmp_path / "shop.duckdb") as plain:
        assert plain.execute("SHOW TABLES").fetchall() == [("t",)]
        assert plain.execute(
            "SELECT count(*) FROM duckdb_functions() WHERE function_name ILIKE '%finetune%'"
        ).fetchall() == [(0,)]


@pytest.mark.parametrize("name", ["snowflake.duckdb", "Tunesmith.db"])
def test_a_file_name_that_hides_the_functions_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReservedDatabaseName, match="Rename"):
        tunesmith.connect(tmp_path / name)


@pytest.mark.parametrize(
    "body", ["c.execute(\"SELECT finetune('SHOW')\").fetchall()", "1 / 0", "c.close()"]
)
def test_nothing_is_left_on_stderr_when_python_ends(home: Path, body: str) -> None:
    code = f"import tunesmith\nc = tunesmith.connect()\nd = c.cursor()\n{body}\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "leaked" not in ended.stderr and (
        ended.stderr == "" or "ZeroDivisionError" in ended.stderr
    )


def test_the_audit_is_a_table_of_findings_and_their_sql_runs(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute(
        "CREATE TABLE audited AS SELECT 'say the word ' || i % 30 AS prompt, 'yes' AS completion FROM range(60) r(i)"
    )
    found = connection.execute(
        "SELECT name, severity, count, rows[1], fix FROM tunesmith.audit('SELECT * FROM audited') ORDER BY count, name"
    ).fetchall()
    duplicates = next(f for f in found if f[0] == "duplicates")
    assert duplicates[1:4] == ("warning", 30, 31)
    assert connection.execute(f"SELECT count(*) FROM ({duplicates[4]})").fetchall() == [(30,)]
    leaks = "SELECT count FROM tunesmith.audit('SELECT * FROM audited', test_data := 'SELECT * FROM audited WHERE prompt LIKE ''% 7''') WHERE name = 'leakage'"
    assert one(connection, leaks) == 2
    with pytest.raises(duckdb.Error, match="nosuch"):
        connection.execute("SELECT * FROM tunesmith.audit('SELECT * FROM nosuch')").fetchall()


OWN = [
    "CREATE MACRO decode(a, b) AS 'mine'",
    "CREATE MACRO to_json(a) AS 'mine'",
    "CREATE MACRO typeof(a) AS 'mine'",
    "CREATE MACRO md5(a) AS 'mine'",
    "CREATE MACRO list_transform(a, b) AS 'mine'",
    "CREATE MACRO current_query() AS 'mine'",
    "CREATE MACRO from_json(a, b) AS 'mine'",
    "CREATE MACRO tunesmith_complete(a, b, c, d, e) AS 'mine'",
    "CREATE MACRO tunesmith_table(a) AS 'mine'",
    "CREATE TABLE source_rows (x INT)",
    "CREATE TABLE training_data (x INT)",
    "CREATE TABLE tunesmith_training (x INT)",
    "CREATE TABLE arriving (x INT)",
    "CREATE TABLE rows (x INT)",
    "CREATE TABLE complete (x INT)",
    "CREATE VIEW jobs AS SELECT 'mine' AS id",
]


def test_no_name_of_ours_meets_one_of_the_users(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, views and macros of the user under the names that the product uses, and columns under
    those of its own files."""
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    with duckdb.connect(str(tmp_path / "own.duckdb")) as c:
        for statement in OWN:
            c.execute(statement)
        columns = (
            "row",
            "context",
            "source",
            "reason",
            "key",
            "chat",
            "draw",
            "prompt_is",
            "completion_is",
            "prompt_was",
            "part",
        )
        c.execute(
            "CREATE TABLE t AS SELECT 'q ' || i AS prompt, i AS completion, "
            + ", ".join(f"i AS {n}" for n in columns)
            + " FROM range(20) r(i)"
        )
    with connect(tmp_path / "own.duckdb") as c:
        [(created,)] = c.execute(
            "SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', 'm', 'tunesmith-tiny', 'SELECT * FROM t')"
        ).fetchall()
        assert c.execute("SELECT id, rows ->> 'train' FROM tunesmith.jobs").fetchall() == [
            (created, "16")
        ]
        assert c.execute("SELECT id FROM jobs").fetchall() == [("mine",)] and c.execute(
            "SELECT decode(1, 2)"
        ).fetchall() == [("mine",)]
        assert c.execute(
            "SELECT SNOWFLAKE.CORTEX.COMPLETE('tunesmith-tiny', 'hi') <> 'mine'"
        ).fetchall() == [(True,)]
        assert (
            c.execute("SELECT count(*) FROM tunesmith.audit('SELECT * FROM t')").fetchall()[0][0]
            > 0
        )
        file = next((home / "snapshots").rglob("train.parquet"))
        assert set(
            json.loads(c.execute(f"SELECT context FROM '{file}' LIMIT 1").fetchall()[0][0])
        ) == set(columns)
        missing = (
            "SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', 'm', 'tunesmith-tiny', 'SELECT * FROM {}')"
        )
        for variable in (
            "sql",
            "part",
            "source",
            "connection",
            "cursor",
            "self",
        ):  # of this program's, on its way to the database
            with pytest.raises(duckdb.Error, match=f"NoSuchTable.*{variable} does not exist"):
                c.execute(missing.format(variable))


def test_a_macro_of_the_user_keeps_its_name_and_is_told(home: Path, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "own.duckdb")) as c:
        c.execute("CREATE MACRO complete(x) AS 'mine'")
    with (
        pytest.warns(UserWarning, match=r"complete\(\) is a macro of this database"),
        connect(tmp_path / "own.duckdb") as c,
    ):
        assert c.execute("SELECT complete(1)").fetchall() == [("mine",)]
        assert c.execute(
            "SELECT TRY_COMPLETE('tunesmith-tiny', NULL), COUNT_TOKENS('tunesmith-tiny', 'hi') > 0"
        ).fetchall() == [(None, True)]


@pytest.mark.parametrize("name", ["snowflake", "tunesmith"])
def test_a_schema_that_would_be_ambiguous_is_refused_with_the_way_out(
    home: Path, tmp_path: Path, name: str
) -> None:
    with duckdb.connect(str(tmp_path / "own.duckdb")) as c:
        c.execute(
            f"CREATE SCHEMA {name}; CREATE TABLE {name}.orders AS SELECT 'a' AS prompt, 'b' AS completion"
        )
    with pytest.raises(ReservedSchemaName, match=f"mine.{name}"):
        connect(tmp_path / "own.duckdb")
    with connect() as c:
        c.execute(f"ATTACH '{tmp_path / 'own.duckdb'}' AS mine")
        assert c.execute(f"SELECT count(*) FROM mine.{name}.orders").fetchall() == [(1,)]
        assert c.execute("SELECT count(*) FROM tunesmith.jobs").fetchall() == [(0,)]


def test_every_json_column_can_be_read_with_its_arrow(home: Path, tuned_base: Path) -> None:
    rows = [*next_word_rows(3), {"prompt": "x" * 500, "completion": "y", "id": 7}]
    with connect() as c:
        job = (
            Tunesmith()
            .create("m", str(tuned_base), rows, learning_rate=1e-2, max_epochs=1)
            .wait(timeout_s=200)
        )
        assert job.status.value == "SUCCEEDED", job.error
        read = 0
        for table, (_, _, columns) in TABLES.items():
            for column in [n for n, kind in columns.items() if kind == "JSON"]:
                kinds = {
                    k
                    for (k,) in c.execute(
                        f"SELECT DISTINCT json_type({column}) FROM tunesmith.{table}"
                    ).fetchall()
                }
                assert kinds <= {"OBJECT", "ARRAY", None}, (table, column, kinds)
                read += len(kinds - {None})
        assert read >= 9
        assert c.execute("SELECT context ->> 'id' FROM tunesmith.rejections").fetchall() == [("7",)]
        assert c.execute(
            "SELECT resolved -> 'learn' ->> 'value' FROM tunesmith.jobs"
        ).fetchall() == [("all",)]


@pytest.mark.parametrize("value", ["'yes'", "1", "NULL", "false"])
def test_show_details_is_true_or_false(connection: duckdb.DuckDBPyConnection, value: str) -> None:
    ask = f"SELECT AI_COMPLETE('tunesmith-tiny', 'hi', model_parameters := {{'max_tokens': 1}}, show_details := {value})"
    if value in ("NULL", "false"):
        assert "choices" not in one(connection, ask)
    else:
        with pytest.raises(duckdb.Error, match="show_details"):
            one(connection, ask)

from collections.abc import Iterator

import duckdb
import pytest

from tunesmith.data.gate import check_query, check_top_level
from tunesmith.errors import CreateNotTopLevel, QueryRefused

ORDINARY = [
    "SELECT a AS prompt, b AS completion FROM t",
    "select * from t;",
    "FROM t",
    "WITH x AS (SELECT a FROM t) SELECT a AS prompt, a AS completion FROM x",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i AS prompt, i AS completion FROM n",
    "SELECT a AS prompt, b AS completion FROM t UNION ALL SELECT b, a FROM t",
    "SELECT t.a AS prompt, u.b AS completion FROM t JOIN t u USING (a) WHERE u.b LIKE '%;%'",
    "SELECT a AS prompt, first(b ORDER BY b) AS completion FROM t GROUP BY a HAVING count(*) > 0",
    "SELECT a AS prompt, row_number() OVER () AS completion FROM t QUALIFY row_number() OVER () < 3",
    "SELECT * FROM t USING SAMPLE 10 ROWS",
    "SELECT * FROM read_csv('x.csv')",
    "SELECT * FROM 'x.parquet'",
    "SELECT prompt, completion FROM (VALUES ('a', 'b')) v(prompt, completion)",
    "SELECT main.t.a AS prompt, (SELECT max(b) FROM t) AS completion FROM main.t LIMIT 5",
    "SELECT m ->> 'q' AS prompt, m ->> 'a' AS completion FROM (SELECT '{}'::JSON AS m)",
    "SELECT unnest([1, 2]) AS prompt, 'delete from t' AS completion -- a comment",
]
REFUSED = [
    "",
    ";",
    "DELETE FROM t",
    "DROP TABLE t",
    "INSERT INTO t VALUES (1, 2)",
    "CREATE TABLE x AS SELECT 1",
    "COPY t TO 'x'",
    "ATTACH 'x.db'",
    "PRAGMA version",
    "SET threads = 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE t",
    "CALL pragma_version()",
    "EXPLAIN SELECT 1",
    "DESCRIBE t",
    "SUMMARIZE t",
    "SHOW TABLES",
    "SELECT * FROM (DESCRIBE t)",
    "VACUUM",
    "INSTALL httpfs",
    "EXECUTE p",
    "SELEC 1",
    "SELECT (",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "WITH x AS (INSERT INTO t VALUES (1, 2) RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM x",
    "SELECT nextval('s') AS prompt, 1 AS completion",
    "SELECT finetune('CREATE', 'm', 'b', 'q') AS prompt, 1 AS completion",
    "SELECT snowflake.cortex.finetune('CANCEL', 'x') AS prompt",
]


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t (a VARCHAR, b VARCHAR); INSERT INTO t VALUES ('q', 'r'); CREATE SEQUENCE s"
        )
        yield connection


@pytest.mark.parametrize("sql", ORDINARY)
def test_ordinary_training_queries_pass(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    assert check_query(connection, sql, "training") == sql.strip().rstrip(";").removesuffix(
        " -- a comment"
    )


@pytest.mark.parametrize("sql", REFUSED)
def test_anything_but_one_select_is_refused_and_changes_nothing(
    connection: duckdb.DuckDBPyConnection, sql: str
) -> None:
    with pytest.raises(QueryRefused, match="one SELECT"):
        check_query(connection, sql, "training")
    assert connection.execute("SELECT * FROM t").fetchall() == [("q", "r")]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT finetune('CREATE', 'a')",
        "SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', ?, ?);",
        "select FineTune('CANCEL', 'x') AS job -- now",
    ],
)
def test_a_call_that_stands_alone_may_act(
    connection: duckdb.DuckDBPyConnection, statement: str
) -> None:
    check_top_level(connection, statement, "FINETUNE('CREATE', …)")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT finetune('CREATE') FROM t",
        "SELECT finetune('CREATE') FROM range(5)",
        "EXPLAIN SELECT finetune('CREATE')",
        "EXPLAIN ANALYZE SELECT finetune('CREATE')",
        "SELECT * FROM v",
        "SELECT finetune('a'), finetune('b')",
        "CREATE TABLE x AS SELECT finetune('a')",
        "SELECT * FROM (SELECT finetune('CREATE'))",
        "WITH x AS (SELECT 1) SELECT finetune('CREATE')",
        "SELECT finetune('CREATE') WHERE false",
        "SELECT upper(finetune('CREATE'))",
        "EXECUTE p",
        "SELECT finetune('CREATE') UNION SELECT 'x'",
        "DESCRIBE SELECT finetune('CREATE')",
    ],
)
def test_a_call_that_could_run_again_may_not(
    connection: duckdb.DuckDBPyConnection, statement: str
) -> None:
    with pytest.raises(CreateNotTopLevel, match="Nothing was done"):
        check_top_level(connection, statement, "FINETUNE('CREATE', …)")

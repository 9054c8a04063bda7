"""Training queries of other people: what they may say, and where they run.

`check` decides on DuckDB's own syntax tree, by lists of what is allowed: kinds of nodes, functions,
and the relations that were granted. `fetch` copies the granted relations that a query reads into a
database of its own and runs it there in a child that can open no file, has little time and memory,
and is killed where it does not end. So a hole in the one finds nothing in the other.
"""

import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from tunesmith.data.gate import quoted, syntax_tree
from tunesmith.errors import QueryFailed, QueryRefused
from tunesmith.words import counted

if TYPE_CHECKING:
    import pyarrow

# what DuckDB says where it would write to the disk what does not fit into memory
SPILLS = "LocalFileSystem has been disabled"
LONGEST, MOST_BRACKETS = (
    65_536,
    400,
)  # characters; parsing 50,000 brackets costs 2 s and 470 MB before it is refused

_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE"}
_SOURCES = {"BASE_TABLE", "JOIN", "SUBQUERY", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY"}
_MODIFIERS = {
    "ORDER_MODIFIER",
    "LIMIT_MODIFIER",
    "LIMIT_PERCENT_MODIFIER",
    "DISTINCT_MODIFIER",
    "ORDER_DEFAULT",
    "ASCENDING",
    "DESCENDING",
}
_EXPRESSIONS = {
    "BETWEEN",
    "CASE",
    "CAST",
    "COLLATE",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "LAMBDA",
    "LAMBDA_REF",
    "OPERATOR",
    "POSITIONAL_REFERENCE",
    "STAR",
    "SUBQUERY",
    "TYPE",
    "WINDOW",
}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
_BESIDE = {
    "unnest",
    "random",
    "uuid",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    "now",
    "today",
    "current_date",
    "get_current_time",
    "get_current_timestamp",
    "transaction_timestamp",
    "current_localtime",
    "current_localtimestamp",
    "pg_typeof",
}
"""Functions that are allowed though they are not constant, or are no function of the catalogue."""
_REFUSED = (
    "__",
    "pg_",
    "has_",
    "inet_",
    "current_",
    "json_serialize",
    "json_deserialize",
    "col_description",
    "obj_description",
    "shobj_description",
    "assert_true",
    "user",
    "session_user",
    "parse_duckdb",
    "index_key",
    "map_to_pg",
    "map_type_id",
    "error",
    "getvariable",
    "in_search_path",
    "txid_",
)
"""Functions that tell of the server, of its catalogue or of other people; by how their names
begin."""

_SESSION = {
    "current_catalog",
    "current_database",
    "current_schema",
    "current_role",
    "current_user",
    "session_user",
}
"""Names that stand for a function where no column is called so."""


@dataclass(frozen=True)
class Limits:
    """What one query may use."""

    seconds: float = 30.0
    memory_mb: int = 1024
    rows: int = 1_000_000
    result_mb: int = 512


@dataclass(frozen=True)
class Checked:
    text: str
    """The query without its semicolon."""
    relations: frozenset[str]
    """The granted relations that it reads, as catalog.schema.name in small letters."""


def check(
    sql: str, granted: Collection[str], *, part: str = "training", catalog: str = ""
) -> Checked:
    """The query, if it is one SELECT that reads nothing but `granted` (catalog.schema.name);
    QueryRefused otherwise.

    `catalog` is what names without one mean, by default the one catalog that was granted.
    """
    text = sql.strip().rstrip(";").strip()
    known = frozenset(map(_fold, granted))
    home = _fold(catalog or min((g.split(".")[0] for g in known), default=""))
    try:
        if not text or len(text) > LONGEST or text.count("(") + text.count("[") > MOST_BRACKETS:
            raise ValueError(
                f"it is empty, longer than {LONGEST:,} characters or has more than "
                f"{MOST_BRACKETS} brackets"
            )
        tree = syntax_tree(_parser(), text)
        if len(tree["statements"]) != 1:
            raise ValueError(f"it holds {counted(len(tree['statements']), 'statement')}")
        gate = _Gate(known, home)
        gate.walk(tree["statements"][0]["node"], frozenset())
    except (ValueError, TypeError, RecursionError, duckdb.Error) as e:
        raise QueryRefused(part=part, reason=str(e), query=sql) from None
    return Checked(text, frozenset(gate.read))


def _fold(name: str) -> str:
    """As DuckDB folds names: A to Z alone. Python's lower() would make K of the Kelvin sign, and
    one name of two."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection that is used for nothing but parsing."""
    return duckdb.connect()


@cache
def _functions() -> frozenset[str]:
    """DuckDB's own functions that compute from their arguments, the time of the query and its time
    zone alone."""
    found = (
        _parser()
        .cursor()
        .execute(
            """SELECT lower(function_name) FROM duckdb_functions() WHERE internal
           GROUP BY ALL HAVING bool_and(
               function_type IN ('scalar', 'aggregate', 'window', 'macro', 'table')
               AND coalesce(stability, 'CONSISTENT') <> 'VOLATILE'
               AND NOT coalesce(macro_definition, '') ILIKE '%select%')
           AND bool_or(function_type <> 'table')"""
        )
    )
    return (
        frozenset(name for (name,) in found.fetchall() if not name.startswith(_REFUSED)) | _BESIDE
    )


@cache
def _types() -> frozenset[str]:
    """DuckDB's own types; those that a database defines tell of its objects."""
    return frozenset(
        n
        for (n,) in _parser()
        .cursor()
        .execute("SELECT lower(type_name) FROM duckdb_types() WHERE internal")
        .fetchall()
    )


class _Gate:
    """A walk over a syntax tree; ValueError at the first thing that is not allowed."""

    def __init__(self, granted: frozenset[str], catalog: str) -> None:
        self._granted, self._catalog = granted, catalog
        self.read: set[str] = set()

    def walk(self, value: Any, scope: frozenset[str]) -> None:
        """`scope`: names of the CTEs that can be seen here."""
        if isinstance(value, list):
            for item in value:
                self.walk(item, scope)
        if not isinstance(value, dict):
            return
        kind = (
            value.get("type") if isinstance(value.get("type"), str) else None
        )  # a literal has a type of its own
        if "class" in value:
            self._expression(value)
        elif kind:
            if kind not in _QUERIES | _SOURCES | _MODIFIERS:
                raise ValueError(
                    f"{kind.removesuffix('_NODE').removesuffix('_REF')} is not allowed here"
                )
            if kind == "BASE_TABLE":
                self._table(value, scope)
            if kind == "TABLE_FUNCTION":
                self._table_function(value["function"])
        if kind in _QUERIES:
            scope = self._ctes(value, scope)
        for name, item in value.items():
            if name != "cte_map":
                inner = (
                    scope | {_fold(value["cte_name"])}
                    if kind == "RECURSIVE_CTE_NODE" and name == "right"
                    else scope
                )
                self.walk(item, inner)

    def _ctes(self, query: Mapping[str, Any], scope: frozenset[str]) -> frozenset[str]:
        """What a query can see: its CTEs too, each of which sees those before it."""
        for entry in query["cte_map"]["map"]:
            self.walk(entry["value"], scope)
            scope |= {_fold(entry["key"])}
        return scope

    def _expression(self, value: Mapping[str, Any]) -> None:
        if value["class"] not in _EXPRESSIONS:
            raise ValueError(f"{value['class']} is not allowed here")
        if value["class"] == "COLUMN_REF" and str(value["column_names"][-1]).lower() in _SESSION:
            raise ValueError(f"{value['column_names'][-1]} is not allowed here")
        if value["class"] == "TYPE" and (
            len(value["qualified_name"]["path"]) > 1 or value["type_name"].lower() not in _types()
        ):
            raise ValueError(
                f"the type {'.'.join(value['qualified_name']['path'])} is not allowed here"
            )
        if value["class"] in ("FUNCTION", "WINDOW"):
            name = str(value.get("function_name", "")).lower()
            if name and name not in _functions():
                raise ValueError(f"the function {name} is not allowed here")

    def _table_function(self, function: Mapping[str, Any]) -> None:
        name = str(function.get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            raise ValueError(
                f"the table function {name} is not allowed here; only "
                f"{', '.join(sorted(_TABLE_FUNCTIONS))} are"
            )

    def _table(self, table: Mapping[str, Any], scope: frozenset[str]) -> None:
        path = [
            _fold(p) for p in table["qualified_name"]["path"]
        ]  # the other fields leave out the middle of a nested schema
        if table.get("at_clause") is not None:
            raise ValueError(f"the table {'.'.join(path)} is asked for at another time")
        if len(path) == 1 and path[0] in scope:
            return
        meant = {
            1: [f"{self._catalog}.main.{path[-1]}"],
            2: [f"{self._catalog}.{'.'.join(path)}", f"{path[0]}.main.{path[-1]}"],
        }
        found = [
            name
            for name in meant.get(len(path), [".".join(path)] if len(path) == 3 else [])
            if name in self._granted
        ]
        if not found:
            raise ValueError(f"there is no relation {'.'.join(path)} that you may read")
        self.read.update(found)


# ---------------------------------------------------------------- running


def fetch(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    granted: Collection[str],
    *,
    part: str = "training",
    limits: Limits | None = None,
) -> "pyarrow.Table":
    """The rows of a query over `connection`'s granted relations. Needs pyarrow.

    QueryRefused before anything runs; QueryFailed where it fails, or uses more than `limits`.
    """
    with connection.cursor() as cursor:
        [(catalog,)] = cursor.execute("SELECT current_database()").fetchall()
    checked = check(sql, granted, part=part, catalog=catalog)
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as temporary:
        folder = Path(temporary)
        files = copy(connection, checked.relations, catalog, folder)
        return run(checked.text, files, catalog, folder, part=part, limits=limits or Limits())


def copy(
    connection: duckdb.DuckDBPyConnection, relations: Collection[str], catalog: str, folder: Path
) -> dict[str, str]:
    """The relations as they stand at one moment, in files of their own: a file for each catalog,
    and one for `catalog` in any case."""
    named = [tuple(r.split(".")) for r in sorted(relations)]
    files = {}
    for one in sorted({catalog, *(c for c, *_ in named)}):
        file = folder / f"{one}.duckdb"
        duckdb.connect(str(file)).close()
        files[one] = str(file)
        with connection.cursor() as cursor:
            alias = quoted(f"copy of {one}")
            cursor.execute(f"ATTACH '{file}' AS {alias} (READ_WRITE)")
            cursor.execute("BEGIN")
            try:
                for _, schema, name in (n for n in named if n[0] == _fold(one)):
                    cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {alias}.{quoted(schema)}")
                    source = ".".join(map(quoted, (one, schema, name)))
                    cursor.execute(
                        f"CREATE TABLE {alias}.{quoted(schema)}.{quoted(name)} AS FROM {source}"
                    )
                cursor.execute("COMMIT")
            except duckdb.Error:
                cursor.execute("ROLLBACK")
                raise
            finally:
                cursor.execute(f"DETACH {alias}")
    return files


def run(
    sql: str, files: Mapping[str, str], catalog: str, folder: Path, *, part: str, limits: Limits
) -> "pyarrow.Table":
    """The rows of a query over `files`, from a child that is killed where it does not end in time
    or says too much."""
    from pyarrow import ipc

    work = {"sql": sql, "files": dict(files), "catalog": catalog, "limits": asdict(limits)}
    empty = folder / "empty"
    empty.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "tunesmith.data.served"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=empty,
        env={k: os.environ[k] for k in ("PYTHONPATH",) if k in os.environ},
        start_new_session=True,
    )
    assert child.stdin is not None and child.stderr is not None
    with child.stderr as said:
        try:
            child.stdin.write(json.dumps(work).encode())
            child.stdin.close()
            result = _read(child, limits)
            code = child.wait(1.0)
        except (ValueError, BrokenPipeError, subprocess.TimeoutExpired) as e:
            raise QueryFailed(part=part, reason=str(e), query=sql) from None
        finally:
            _kill(child)
        words = said.read(2000).decode(errors="replace").strip()
    if code:
        reason = (
            words
            if code == 1 and words
            else f"it used more than it may (its process ended with {code})"
        )
        if SPILLS in reason:
            reason = f"it needs more than {limits.memory_mb} MB of memory"
        raise QueryFailed(part=part, reason=reason, query=sql)
    return ipc.open_stream(result).read_all()


def _read(child: "subprocess.Popen[bytes]", limits: Limits) -> bytes:
    """All that the child says; ValueError where that is too much, or takes too long."""
    assert child.stdout is not None
    deadline, size = time.monotonic() + limits.seconds, 0
    found: list[bytes] = []
    os.set_blocking(child.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise ValueError(f"it took longer than {limits.seconds:g} s")
            piece = child.stdout.read(1 << 20)
            if piece == b"":
                return b"".join(found)
            found.append(piece or b"")
            size += len(piece or b"")
            if size > limits.result_mb << 20:
                raise ValueError(f"it gives more than {limits.result_mb} MB")


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """The child and whatever it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


# ---------------------------------------------------------------- the child


def confine(limits: Limits) -> None:
    """Take from this process what a query does not need: files to write, memory, processor time,
    privileges, and the network where the system lets it go."""
    sized = {
        resource.RLIMIT_AS: (limits.memory_mb << 20)
        + (2 << 30),  # beside DuckDB's own limit, what its threads and libraries map
        resource.RLIMIT_CPU: int(limits.seconds) + 1,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in sized.items():
        resource.setrlimit(what, (most, most))
    if sys.platform == "linux":
        system = ctypes.CDLL(None)
        system.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with its parent
        system.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        system.unshare(
            0x10000000 | 0x40000000
        )  # CLONE_NEWUSER | CLONE_NEWNET: no network; refused in many containers


def open_confined(
    files: Mapping[str, str], catalog: str, limits: Limits
) -> duckdb.DuckDBPyConnection:
    """The files, read only, and nothing else that DuckDB could reach."""
    connection = duckdb.connect(
        files[catalog],
        read_only=True,
        config={
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            "allow_extension_repositories": "forbidden",
            "allow_persistent_secrets": "false",
            "memory_limit": f"{limits.memory_mb}MB",
            "threads": "1",
        },
    )
    for name, file in files.items():
        if name != catalog:
            connection.execute(f"ATTACH '{file}' AS {quoted(name)} (READ_ONLY)")
    for setting in (
        "enable_external_access=false",
        "python_enable_replacements=false",
        f"max_execution_time={int(1000 * limits.seconds)}",
        "disabled_filesystems='LocalFileSystem'",  # it would read the open files' own bytes
        "lock_configuration=true",  # the last
    ):
        connection.execute(f"SET {setting}")
    return connection


def main() -> int:
    """Read a query from standard input and write its rows to standard output, as an Arrow
    stream."""
    import pyarrow as pa

    work = json.load(sys.stdin)
    limits = Limits(**work["limits"])
    confine(limits)
    try:
        connection = open_confined(work["files"], work["catalog"], limits)
        reader = connection.execute(work["sql"]).to_arrow_reader(1024)
        assert reader is not None  # a SELECT has rows
        with os.fdopen(os.dup(1), "wb") as out, pa.ipc.new_stream(out, reader.schema) as stream:
            seen = 0
            for batch in reader:
                seen += batch.num_rows
                if seen > limits.rows:
                    raise ValueError(f"it gives more than {limits.rows:,} rows")
                stream.write_batch(batch)
    except (duckdb.Error, pa.ArrowException, ValueError, MemoryError) as e:
        print(str(e)[:1000], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

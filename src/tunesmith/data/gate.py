"""What a training query may be: one SELECT, judged on DuckDB's own syntax tree.

Embedded, the query then runs on the user's own connection with his own rights; files are allowed.
Queries of other people go through `served`. A statement's type alone proves little: WITH x AS
(DELETE … RETURNING *) SELECT … counts as a SELECT.
"""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import duckdb

from tunesmith.errors import CreateNotTopLevel, QueryRefused
from tunesmith.words import counted

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"}
_ACTING = {"finetune", "nextval"}
OWN = f"tunesmith_{uuid.uuid4().hex[:12]}_"
"""What the functions of this process are called by in DuckDB, so that none can be a user's."""


def check_query(connection: duckdb.DuckDBPyConnection, sql: str, part: str) -> str:
    """The query without its semicolon, if it is one SELECT that changes nothing; QueryRefused
    otherwise."""
    text = _without_end(sql)
    if not text.strip():
        raise QueryRefused(part=part, reason="it is empty", query=sql)
    try:
        tree = syntax_tree(connection, text)
    except ValueError as e:
        raise QueryRefused(part=part, reason=str(e), query=sql) from None
    if len(tree["statements"]) != 1:
        raise QueryRefused(
            part=part, reason=f"it holds {counted(len(tree['statements']), 'statement')}", query=sql
        )
    for node in _nodes(tree):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise QueryRefused(
                part=part, reason=f"it changes data ({kind.split('_')[0]})", query=sql
            )
        if kind == "SHOW_REF":
            raise QueryRefused(part=part, reason="it is no SELECT", query=sql)
        name = str(node.get("function_name", "")).lower()
        if name in _ACTING or name.startswith(OWN):
            raise QueryRefused(part=part, reason=f"it calls {node['function_name']}", query=sql)
    return text


def _without_end(sql: str) -> str:
    """The statement without the semicolons and comments that follow it; a comment within ends with
    its line."""
    end = len(sql)
    for place, kind in reversed(duckdb.tokenize(sql)):
        if kind != duckdb.token_type.comment and not sql[place:end].startswith(";"):
            break
        end = place
    return sql[:end].strip()


def relations(connection: duckdb.DuckDBPyConnection, text: str) -> set[str]:
    """The names of tables and views that a query writes without a schema, in lower case."""
    found = [n for n in _nodes(syntax_tree(connection, text)) if n.get("type") == "BASE_TABLE"]
    return {str(n["table_name"]).lower() for n in found if not n.get("schema_name")}


def check_top_level(connection: duckdb.DuckDBPyConnection, statement: str, call: str) -> None:
    """CreateNotTopLevel unless the statement is nothing but a SELECT of the call, such as
    FINETUNE('CREATE', …), so that it can run only once."""
    try:
        statements = syntax_tree(connection, statement.strip().rstrip(";"))["statements"]
    except ValueError:
        statements = []
    node = statements[0]["node"] if len(statements) == 1 else {}
    alone = (
        node.get("type") == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and not node["cte_map"]["map"]
        and node["where_clause"] is None
        and len(node["select_list"]) == 1
        and str(node["select_list"][0].get("function_name", "")).lower()
        == call.partition("(")[0].lower()
    )
    if not alone:
        raise CreateNotTopLevel(call=call, statement=statement)


def syntax_tree(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """DuckDB's syntax tree of a SELECT; ValueError with its reason for anything else."""
    [(serialized,)] = connection.execute(
        "SELECT system.main.json_serialize_sql(?)", [text]
    ).fetchall()
    tree: dict[str, Any] = json.loads(serialized)
    if tree["error"]:
        raise ValueError(str(tree.get("error_message", "it cannot be parsed")))
    return tree


def interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], Any]) -> Any:
    """Do the work of a query so that Ctrl-C ends it: the library would not hear it, or turn it into
    an error of its own."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    ended: list[Any] = []
    done = threading.Event()

    def run() -> None:
        try:
            ended.append((work(), None))
        except BaseException as e:  # raised where the caller waits
            ended.append((None, e))
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        while not done.wait(0.05):  # an interrupted join would hold the thread for ended
            pass
    except KeyboardInterrupt:
        connection.interrupt()
        done.wait()
        raise
    result, error = ended[0]
    if error is not None:
        raise error
    return result


def literal(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A name as SQL takes any."""
    return '"' + name.replace('"', '""') + '"'


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += item.values()
        elif isinstance(item, list):
            todo += item

"""The names that a connection has in SQL: macros over our own functions, tables and views, with
their columns."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tunesmith.data.dataset import ROW_HASH
from tunesmith.data.gate import OWN
from tunesmith.data.session import SESSION_SQL
from tunesmith.data.text import B, sql_cell


def macros(taken: set[str]) -> list[str]:
    """The statements that give the functions their public names; the short ones but those that are
    taken."""
    made = [
        "ATTACH ':memory:' AS snowflake (READ_WRITE)",
        "CREATE SCHEMA snowflake.cortex",
        "CREATE SCHEMA snowflake.account_usage",
        "ATTACH ':memory:' AS tunesmith (READ_WRITE)",
    ]
    for kind, place in (("MACRO", "snowflake.cortex."), ("TEMP MACRO", "")):
        for name, overloads in MACROS.items():
            if not place and name in taken:
                continue
            made.append(f"CREATE {kind} {place}{name} " + ", ".join(overloads))
    made.append(
        "CREATE MACRO tunesmith.main.audit(training_data, validation_data := NULL, test_data := "
        "NULL, base_model := 'tunesmith-tiny', "
        "encoding := '', label_separator := '') "
        f"AS TABLE {_rows_of(_AUDIT, AUDIT_COLUMNS)}"
    )
    made.append(
        f"CREATE MACRO tunesmith.main.row_hash(prompt, completion) AS "
        f"{B}{ROW_HASH.replace('chr(', B + 'chr(')}"
    )
    made.append(
        f"CREATE MACRO tunesmith.main.drop_model(name) AS {B}{OWN}drop_model({B}current_query(), "
        f"name)"
    )
    for verb in ("add_base", "remove_base"):
        made.append(
            f"CREATE MACRO tunesmith.main.{verb}(name, word := '') AS "
            f"{B}{OWN}{verb}({B}current_query(), name, word)"
        )
    made.append(f"CREATE VIEW tunesmith.main.bases AS {_rows_of(f'{OWN}bases()', BASE_COLUMNS)}")
    for name, (_, _, columns) in TABLES.items():
        made.append(f"CREATE VIEW tunesmith.main.{name} AS {_view(name, columns, 'NULL')}")
        if name != "models":  # a filter on the view would come after all its rows were read
            made.append(
                f"CREATE MACRO tunesmith.main.{name}_of(job) AS TABLE {_view(name, columns, 'job')}"
            )
    made.append(
        f"CREATE VIEW snowflake.account_usage.cortex_fine_tuning_usage_history AS {_USAGE_HISTORY}"
    )
    return made


_AUDIT = (
    f"{OWN}audit(({SESSION_SQL}), training_data, validation_data, test_data, base_model, "
    f"encoding, label_separator)"
)


def _json(name: str) -> str:
    return f"{B}to_json({name})::VARCHAR"


_PROMPT = sql_cell("prompt")
_INPUT = sql_cell("input")


def _overload(parameters: list[str], body: str) -> str:
    return f"({', '.join(parameters)}) AS {body}"


_FINETUNE_ARGUMENTS = ["verb", "name", "base_model", "training_data", "validation_data", "options"]
_COMPLETE = {
    name: [
        _overload(["model", "prompt"], f"{function}(model, {_PROMPT}, NULL, NULL, 'false')"),
        _overload(
            ["model", "prompt", "options"],
            f"{function}(model, {_PROMPT}, {_json('options')}, NULL, 'true')",
        ),
    ]
    for name, function in (
        ("complete", f"{B}{OWN}complete"),
        ("try_complete", f"{B}{OWN}try_complete"),
    )
}


def _finetune(parameters: list[str]) -> str:
    call = (
        f"{B}{OWN}finetune({B}current_query(), ({SESSION_SQL}), "
        f"{', '.join(map(_json, parameters))})"
    )
    return _overload(parameters, call)


MACROS: dict[str, list[str]] = {
    "finetune": [_finetune(_FINETUNE_ARGUMENTS[:n]) for n in range(1, 7)],
    **_COMPLETE,
    "ai_complete": [
        _overload(
            [
                "model",
                "prompt",
                "model_parameters := NULL",
                "response_format := NULL",
                "show_details := false",
            ],
            f"{B}{OWN}complete(model, {_PROMPT}, "
            f"{', '.join(map(_json, ('model_parameters', 'response_format', 'show_details')))})",
        )
    ],
    "classify": [
        _overload(["model", "input"], f"{B}{OWN}classify(model, {_INPUT}, NULL)"),
        _overload(
            ["model", "input", "options"],
            f"{B}{OWN}classify(model, {_INPUT}, {_json('options')})",
        ),
    ],
    "count_tokens": [
        _overload(["model", "content"], f"{B}{OWN}count_tokens(model, {sql_cell('content')}[2])")
    ],
}


def _job_row(row: dict[str, Any]) -> dict[str, Any]:
    total = row["total_steps"]
    progress = 1.0 if row["status"] == "SUCCEEDED" else row["step"] / total if total else 0.0
    error = (row["error"] or {}).get("message")
    return {
        **row,
        **_times(row, "created_at", "started_at", "finished_at"),
        "progress": progress,
        "error": error,
    }


def _times(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Seconds since 1970 as DuckDB reads timestamps."""
    return {
        n: None if row[n] is None else f"{np.datetime64(round(row[n] * 1e6), 'us')}" for n in names
    }


# view: (table of the store, what its rows become, columns with their types)
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]] = {
    "jobs": (
        "jobs",
        _job_row,
        {
            "id": "VARCHAR",
            "name": "VARCHAR",
            "base_model": "VARCHAR",
            "status": "VARCHAR",
            "progress": "DOUBLE",
            "step": "BIGINT",
            "total_steps": "BIGINT",
            "input_tokens": "BIGINT",
            "trained_tokens": "BIGINT",
            "training_loss": "DOUBLE",
            "validation_loss": "DOUBLE",
            "stopped_by": "VARCHAR",
            "quote": "JSON",
            "used": "JSON",
            "certificate": "JSON",
            "training_data": "VARCHAR",
            "validation_data": "VARCHAR",
            "options": "JSON",
            "resolved": "JSON",
            "rows": "JSON",
            "verdict": "JSON",
            "moved": "JSON",
            "doing": "JSON",
            "warnings": "JSON",
            "error": "VARCHAR",
            "created_at": "TIMESTAMP",
            "started_at": "TIMESTAMP",
            "finished_at": "TIMESTAMP",
            "attempt": "BIGINT",
            "owner": "VARCHAR",
            "home": "VARCHAR",
        },
    ),
    "metrics": (
        "metrics",
        dict,
        {
            "job_id": "VARCHAR",
            "step": "BIGINT",
            "epoch": "BIGINT",
            "training_loss": "DOUBLE",
            "validation_loss": "DOUBLE",
            "learning_rate": "DOUBLE",
            "grad_norm": "DOUBLE",
            "tokens": "BIGINT",
            "tokens_per_second": "DOUBLE",
            "seconds": "DOUBLE",
        },
    ),
    "models": (
        "models",
        lambda r: {**r, **_times(r, "created_at"), "version_of": r["line"]},
        {
            "name": "VARCHAR",
            "version_of": "VARCHAR",
            "version": "BIGINT",
            "is_current": "BOOLEAN",
            "base_model": "VARCHAR",
            "method": "VARCHAR",
            "job_id": "VARCHAR",
            "verdict": "JSON",
            "created_at": "TIMESTAMP",
            "owner": "VARCHAR",
            "home": "VARCHAR",
        },
    ),
    "rejections": (
        "rejections",
        lambda r: {**r, "context": json.loads(r["context"] or "{}")},
        {
            "job_id": "VARCHAR",
            "part": "VARCHAR",
            "row": "BIGINT",
            "reason": "VARCHAR",
            "detail": "VARCHAR",
            "context": "JSON",
        },
    ),
    "row_losses": (
        "row_losses",
        dict,
        {
            "job_id": "VARCHAR",
            "part": "VARCHAR",
            "epoch": "BIGINT",
            "row": "BIGINT",
            "loss": "DOUBLE",
            "tokens": "BIGINT",
        },
    ),
    "predictions": (
        "predictions",
        dict,
        {
            "job_id": "VARCHAR",
            "row": "BIGINT",
            "label": "VARCHAR",
            "predicted": "VARCHAR",
            "probability": "DOUBLE",
        },
    ),
    "lineage": (
        "lineage",
        dict,
        {
            "row_hash": "VARCHAR",
            "model": "VARCHAR",
            "job_id": "VARCHAR",
            "row": "BIGINT",
            "base_model": "VARCHAR",
        },
    ),
    "verdicts": (
        "verdicts",
        lambda r: {**r, **_times(r, "finished_at")},
        {
            "job_id": "VARCHAR",
            "model": "VARCHAR",
            "base_model": "VARCHAR",
            "word": "VARCHAR",
            "metric": "VARCHAR",
            "n": "BIGINT",
            "against": "VARCHAR",
            "difference": "DOUBLE",
            "low": "DOUBLE",
            "high": "DOUBLE",
            "base": "DOUBLE",
            "examples": "DOUBLE",
            "commonest": "DOUBLE",
            "linear": "DOUBLE",
            "tuned": "DOUBLE",
            "base_loss": "DOUBLE",
            "tuned_loss": "DOUBLE",
            "stop_rate": "DOUBLE",
            "rows_won": "BIGINT",
            "rows_lost": "BIGINT",
            "finished_at": "TIMESTAMP",
        },
    ),
    "usage": (
        "usage",
        lambda r: {**r, **_times(r, "started_at", "ended_at")},
        {
            "kind": "VARCHAR",
            "model": "VARCHAR",
            "base_model": "VARCHAR",
            "job_id": "VARCHAR",
            "input_tokens": "BIGINT",
            "output_tokens": "BIGINT",
            "credits": "DOUBLE",
            "started_at": "TIMESTAMP",
            "ended_at": "TIMESTAMP",
        },
    ),
}


AUDIT_COLUMNS = {
    "severity": "VARCHAR",
    "name": "VARCHAR",
    "source": "VARCHAR",
    "count": "BIGINT",
    "message": "VARCHAR",
    "advice": "VARCHAR",
    "rows": "BIGINT[]",
    "fix": "VARCHAR",
}


BASE_COLUMNS = {
    "name": "VARCHAR",
    "task": "VARCHAR",
    "is_here": "BOOLEAN",
    "parameters": "BIGINT",
    "context": "BIGINT",
    "prompt_window": "BIGINT",
    "completion_window": "BIGINT",
    "licence": "VARCHAR",
    "dequantised": "VARCHAR",
    "about": "VARCHAR",
}


def _view(name: str, columns: dict[str, str], job_id: str) -> str:
    """The rows of a table, a page at a time: DuckDB asks for the next one when it has used one up,
    and for no more than a LIMIT needs."""
    shape = json.dumps({"rows": [columns], "next": "VARCHAR"}).replace("'", "''")

    def page(after: str) -> str:
        return f"{B}from_json({B}{OWN}page('{name}', {job_id}, {after}), '{shape}') AS page"

    pages = (
        f"SELECT {page('NULL')} UNION ALL SELECT {page('page.next')} FROM pages "
        f"WHERE page.next IS NOT NULL"
    )
    return (
        f"WITH RECURSIVE pages AS ({pages}) SELECT r.* FROM (SELECT unnest(page.rows) AS r "
        f"FROM pages)"
    )


def _rows_of(call: str, columns: dict[str, str]) -> str:
    """A SELECT of the rows that a function gives as a JSON list of objects."""
    shape = json.dumps([columns]).replace("'", "''")
    return f"SELECT r.* FROM (SELECT unnest({B}from_json({B}{call}, '{shape}')) AS r)"


# Snowflake, account-usage/cortex_fine_tuning_usage_history: training only, by base model and the
# hour in which jobs ended.
_USAGE_HISTORY = """
SELECT system.main.date_trunc('hour', ended_at) AS START_TIME,
       system.main.date_trunc('hour', ended_at) + INTERVAL 1 HOUR AS END_TIME,
        base_model AS MODEL_NAME,
       sum(credits) AS TOKEN_CREDITS, sum(input_tokens)::BIGINT AS TOKENS
FROM tunesmith.main.usage
    WHERE kind = 'training' AND ended_at > now()::TIMESTAMP - INTERVAL 1 YEAR GROUP BY ALL
"""

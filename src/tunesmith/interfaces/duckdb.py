"""SQL in DuckDB: `connect` opens a database with FINETUNE, COMPLETE and the tunesmith.* tables in
it.

DuckDB's Python functions are registered under plain internal names; macros in two attached
in-memory databases (`snowflake`, `tunesmith`) and in the connection's temporary schema give them
the names that users write, so nothing is stored in the user's file. Every argument crosses as JSON
text, which makes texts, lists, objects and NULLs alike.
"""

import atexit
import json
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from tunesmith.data.conversation import is_conversation, read
from tunesmith.data.gate import OWN, check_top_level
from tunesmith.data.session import Session, session
from tunesmith.data.text import INVALID, LIST, MISSING, Broken
from tunesmith.errors import (
    InvalidCall,
    InvalidModelName,
    InvalidOptions,
    InvalidOptionValue,
    NotConfirmed,
    Notice,
    ReservedDatabaseName,
    ReservedSchemaName,
    TunesmithError,
)
from tunesmith.interfaces.cortex import cancelled, completion_object, description, listing
from tunesmith.interfaces.sql_names import AUDIT_COLUMNS, BASE_COLUMNS, MACROS, TABLES, macros
from tunesmith.options import Options
from tunesmith.service import Tunesmith, database_error

CONFIRM = "confirm"


def connect(
    database: str | os.PathLike[str] = ":memory:",
    *,
    home: str | os.PathLike[str] | None = None,
    **options: Any,
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection in which models are tuned and asked by SQL; `options` go to
    duckdb.connect.

    Use it as a context manager, or close it; left open, it is closed when Python ends. On a
    `cursor()`, write the qualified names (SNOWFLAKE.CORTEX.FINETUNE): the short ones belong to the
    connection itself.
    """
    name = Path(os.fspath(database)).stem.lower()
    if name in ("snowflake", "tunesmith", "temp", "system"):
        raise ReservedDatabaseName(name=Path(os.fspath(database)).name)
    try:
        connection = duckdb.connect(os.fspath(database), **options)
    except duckdb.Error as e:
        raise database_error(os.fspath(database), e) from None
    _close_at_exit(connection)
    try:
        _must_not_hide_ours(connection)
    except ReservedSchemaName:
        connection.close()
        raise
    _Functions(connection, Tunesmith(connection, home=home)).register()
    return connection


def _must_not_hide_ours(connection: duckdb.DuckDBPyConnection) -> None:
    """ReservedSchemaName where the user has a schema that is named like one of our databases, since
    both would be ambiguous, or a macro in the place of a function that literals and operators call,
    whose name nothing can qualify."""
    schemas = "SELECT schema_name FROM duckdb_schemas() WHERE database_name = current_database()"
    macros = (
        "SELECT DISTINCT function_name FROM duckdb_functions() "
        "WHERE database_name = current_database() AND NOT internal"
    )
    for kind, sql, ours in (
        ("schema", schemas, {"snowflake", "tunesmith"}),
        ("macro", macros, _UNQUALIFIED),
    ):
        for (name,) in connection.execute(sql).fetchall():
            if name.lower() in ours:
                raise ReservedSchemaName(kind=kind, name=name)


_UNQUALIFIED = {
    "list_value",
    "struct_pack",
    "struct_extract",
    "array_extract",
    "->>",
    "->",
    "count_star",
    "to_years",
    "to_hours",
    "row",
}


def _users_own(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Those of our short names that macros of the user have: they keep them, and are told."""
    sql = (
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
        "WHERE database_name = current_database() AND NOT internal"
    )
    taken = {name for (name,) in connection.execute(sql).fetchall()} & set(MACROS)
    for name in sorted(taken):
        warnings.warn(
            f"{name}() is a macro of this database and stays that; ours is "
            f"SNOWFLAKE.CORTEX.{name.upper()}",
            Notice,
            stacklevel=4,
        )
    return taken


def _close_at_exit(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB prints what it calls leaks when a connection with Python functions is still open at
    exit."""
    reference = weakref.ref(connection)

    def close() -> None:
        still = reference()
        if still is not None:
            still.close()

    atexit.register(close)


class _Functions:
    """The functions of one connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, service: Tunesmith) -> None:
        self._connection, self._service = connection, service

    def register(self) -> None:
        def scalar(
            name: str,
            function: Callable[..., Any],
            parameters: int | None,
            result: str,
            kind: Any = "native",
        ) -> None:
            self._connection.create_function(  # type: ignore[call-overload]
                name,
                function,
                None if parameters is None else ["VARCHAR"] * parameters,
                result,
                type=kind,
                null_handling="special",
                side_effects=True,
            )

        scalar(f"{OWN}finetune", self._finetune, None, "VARCHAR")
        scalar(f"{OWN}page", self._page, 3, "VARCHAR")
        scalar(f"{OWN}drop_model", self._drop_model, 2, "VARCHAR")
        scalar(f"{OWN}add_base", self._add_base, 3, "VARCHAR")
        scalar(f"{OWN}remove_base", self._remove_base, 3, "VARCHAR")
        scalar(f"{OWN}bases", self._bases, 0, "VARCHAR")
        scalar(f"{OWN}audit", self._audit, 7, "VARCHAR")
        scalar(f"{OWN}count_tokens", self._count_tokens, 2, "BIGINT")
        for name, function in (("complete", self._complete), ("try_complete", self._try_complete)):
            self._connection.create_function(  # type: ignore[call-overload]
                f"{OWN}{name}",
                function,
                ["VARCHAR", "VARCHAR[]", "VARCHAR", "VARCHAR", "VARCHAR"],
                "VARCHAR",
                type="arrow",
                null_handling="special",
                side_effects=True,
            )
        self._connection.create_function(  # type: ignore[call-overload]
            f"{OWN}classify",
            self._classify,
            ["VARCHAR", "VARCHAR[]", "VARCHAR"],
            "VARCHAR",
            type="arrow",
            null_handling="special",
            side_effects=True,
        )
        for statement in macros(_users_own(self._connection)):
            self._connection.execute(statement)

    # ------------------------------------------------------------ FINETUNE

    def _finetune(self, statement: str, of_session: str, *given: Any) -> str:
        arguments = [None if a is None else json.loads(a) for a in given]
        verb = str(arguments[0]).upper() if arguments else ""
        match verb, len(arguments):
            case "CREATE", 4 | 5 | 6:
                self._must_stand_alone(statement, "FINETUNE('CREATE', …)")
                name, base_model, training, validation, options = (*arguments[1:], None, None)[:5]
                if name is None or base_model is None:
                    raise InvalidCall(call=tuple(arguments))
                with _told(of_session):
                    return self._create(
                        str(name), str(base_model), str(training or ""), validation, options
                    )
            case "SHOW", 1:
                return listing(self._service.each_job())
            case "DESCRIBE", 2:
                return description(self._service.describe(str(arguments[1])))
            case "CANCEL", 2:
                self._must_stand_alone(statement, "FINETUNE('CANCEL', …)")
                return cancelled(self._service.cancel(str(arguments[1])))
        raise InvalidCall(call=tuple(arguments))

    def _create(
        self, name: str, base_model: str, training: str, validation: str | None, options: Any
    ) -> str:
        """`options` is JSON text, as SQL users write it, or an object, as Snowflake's Python client
        sends it."""
        asked = Options.parse(options if options is not None else {}).to_json()
        return self._service.create(name, base_model, training, validation or None, **asked).id

    def _must_stand_alone(self, statement: str, call: str) -> None:
        with self._connection.cursor() as cursor:
            check_top_level(cursor, statement, call)

    # ------------------------------------------------------------ COMPLETE

    def _complete(
        self, model: Any, prompt: Any, options: Any, response_format: Any, details: Any
    ) -> Any:
        return self._answer((model, prompt, options, response_format, details), strict=True)

    def _try_complete(
        self, model: Any, prompt: Any, options: Any, response_format: Any, details: Any
    ) -> Any:
        return self._answer((model, prompt, options, response_format, details), strict=False)

    def _answer(self, columns: Any, *, strict: bool) -> Any:
        """One vector: model, prompt as its kind and text, options, response_format and details as
        JSON. Rows of the same options go together, whatever model."""
        import pyarrow

        rows = list(zip(*(c.to_pylist() for c in columns), strict=True))
        answers: list[str | None] = [None] * len(rows)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, (model, prompt, *asked) in enumerate(rows):
            if model is not None and prompt is not None and prompt[0] != MISSING:
                groups.setdefault(tuple(asked), []).append(i)
        for (options, response_format, details), places in groups.items():
            if details not in ("true", "false", "null", None):
                raise InvalidOptionValue(
                    name="show_details", value=details, allowed="true or false"
                )
            pairs = [(str(rows[i][0]), _prompt(*rows[i][1])) for i in places]
            found = self._ask(pairs, (options, response_format), details == "true", strict)
            for i, answer in zip(places, found, strict=True):
                answers[i] = answer
        return pyarrow.array(answers, pyarrow.string())

    def _ask(
        self,
        pairs: list[tuple[str, Any]],
        asked: tuple[str | None, str | None],
        details: bool,
        strict: bool,
    ) -> list[str | None]:
        """One answer per model and prompt. Where not strict, NULL for a prompt that fails (found by
        halving) and for a cut JSON."""
        models, prompts = [m for m, _ in pairs], [p for _, p in pairs]
        try:
            options = completion_options(*asked)
            found = self._service.complete(models, prompts, allow_unfinished=not strict, **options)
        except TunesmithError:
            if strict:
                raise
            if len(pairs) == 1:
                return [None]
            half = len(pairs) // 2
            return [
                a
                for part in (pairs[:half], pairs[half:])
                for a in self._ask(part, asked, details, strict)
            ]
        follows_schema = "response_format" in options
        whole = [c if c.stopped or not follows_schema else None for c in found]
        return [
            None if c is None else completion_object(m, c, follows_schema) if details else c.text
            for m, c in zip(models, whole, strict=True)
        ]

    def _classify(self, models: Any, inputs: Any, options: Any) -> Any:
        """One vector: model, text as its kind and text, options as JSON. The label; with the option
        `details` an object with the probability of every label. NULL for no text."""
        import pyarrow

        rows = list(zip(*(c.to_pylist() for c in (models, inputs, options)), strict=True))
        answers: list[str | None] = [None] * len(rows)
        groups: dict[tuple[str, str | None], list[int]] = {}
        for i, (model, text, asked) in enumerate(rows):
            if model is not None and text is not None and text[0] != MISSING:
                groups.setdefault((model, asked), []).append(i)
        for (model, asked), places in groups.items():
            details, threshold = _classify_options(asked)
            texts = [_input(*rows[i][1]) for i in places]
            found = self._service.classify(model, texts, threshold=threshold)
            for i, c in zip(places, found, strict=True):
                told = json.dumps(c.to_json(), ensure_ascii=False)
                answers[i] = told if details else c.label
        return pyarrow.array(answers, pyarrow.string())

    def _count_tokens(self, model: str | None, text: str | None) -> int | None:
        return None if model is None or text is None else self._service.count_tokens(model, text)

    # ------------------------------------------------------------ tables

    def _audit(
        self,
        of_session: str,
        training: str,
        validation: str | None,
        test: str | None,
        base_model: str,
        encoding: str,
        label_separator: str,
    ) -> str:
        with _told(of_session):
            report = self._service.audit(
                training,
                validation,
                test_data=test,
                base_model=base_model,
                encoding=encoding,
                label_separator=label_separator,
            )
        return json.dumps([{k: getattr(f, k) for k in AUDIT_COLUMNS} for f in report.findings])

    def _page(self, name: str, job_id: str | None, after: str | None) -> str:
        rows, following = self._service.page(TABLES[name][0], job_id, after)
        return json.dumps(
            {"rows": [TABLES[name][1](row) for row in rows], "next": following}, default=str
        )

    def _bases(self) -> str:
        found = self._service.bases()
        rows = [asdict(spec) | {"is_here": folder is not None} for spec, folder in found]
        return json.dumps([{k: row[k] for k in BASE_COLUMNS} for row in rows])

    def _add_base(self, statement: str, source: str | None, word: str | None) -> str:
        """SQL asks nothing: what would be brought is an error, until the word is said."""
        self._must_stand_alone(statement, "ADD_BASE(…)")
        offered = self._service.offer_base(source or "")
        if word != CONFIRM:
            call = f"tunesmith.add_base('{source}', '{CONFIRM}')"
            raise NotConfirmed(what=offered.told, call=call)
        return self._service.add_base(source or "").name

    def _remove_base(self, statement: str, name: str | None, word: str | None) -> str:
        self._must_stand_alone(statement, "REMOVE_BASE(…)")
        if word != CONFIRM:
            call = f"tunesmith.remove_base('{name}', '{CONFIRM}')"
            raise NotConfirmed(what=f"the weights of {name} would be removed", call=call)
        self._service.remove_base(name or "")
        return str(name)

    def _drop_model(self, statement: str, name: str | None) -> str:
        self._must_stand_alone(statement, "DROP_MODEL(…)")
        if name is None:
            raise InvalidModelName(name="NULL")
        return self._service.drop_model(name)


@contextmanager
def _told(of_session: str) -> Iterator[None]:
    """The session in which a statement runs: while it does, nobody else can ask its connection."""
    token = session.set(Session.read(of_session))
    try:
        yield
    finally:
        session.reset(token)


def _prompt(kind: str, text: str | None) -> Any:
    """A prompt as training would see it: its text, or the messages that it holds."""
    if kind == INVALID:
        return Broken()
    if kind == LIST and text is not None:
        try:
            found = read(text)
        except (
            ValueError,
            RecursionError,
        ):  # too deep, or of numbers that nobody can hold: no messages
            return text
        return found if is_conversation(found) else text
    return text


def _input(kind: str, text: str | None) -> Any:
    """What CLASSIFY was given: a text, or two in a list or an object."""
    if kind == INVALID:
        return Broken()
    if text is not None and text[:1] in "[{":
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            is_pair = isinstance(found, list) and len(found) == 2 and kind == LIST
            if is_pair or (isinstance(found, dict) and "text" in found):
                return found
    return text


def _classify_options(text: str | None) -> tuple[bool, Any]:
    """`details` and `threshold` of CLASSIFY."""
    found = parse_object(text)
    details, threshold = found.pop("details", False), found.pop("threshold", None)
    for name, value in found.items():
        raise InvalidOptionValue(
            name=name, value=value, allowed="CLASSIFY takes details and threshold"
        )
    if not isinstance(details, bool):
        raise InvalidOptionValue(name="details", value=details, allowed="true or false")
    return details, threshold


def completion_options(options: str | None, response_format: str | None) -> dict[str, Any]:
    """The options of COMPLETE, with AI_COMPLETE's response_format, or the one among them, as an
    object."""
    found = parse_object(options)
    schema = parse_object(response_format) or parse_object(
        json.dumps(found.pop("response_format", None))
    )
    return {**found, "response_format": schema} if schema else found


def parse_object(text: str | None) -> dict[str, Any]:
    """Options or a response_format as sent: an object, or a text that holds one. Its own keys in
    lower case."""
    value = json.loads(text) if text else None
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as e:
        raise InvalidOptions(value=text, reason=str(e)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidOptions(value=text, reason="not an object")
    return {str(k).lower(): v for k, v in value.items()}

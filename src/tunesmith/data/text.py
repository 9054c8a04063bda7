"""One rule from a value to the text that a model sees: the same for training, audit and COMPLETE.

| type | text |
|---|---|
| text, ENUM | as it is |
| JSON | a string decoded, null as missing, all else as it is written |
| STRUCT, MAP, LIST, ARRAY, UNION | as JSON, without spaces |
| BLOB | decoded as UTF-8 |
| numbers, decimals, booleans, dates, times, UUIDs, all others | as DuckDB casts them to VARCHAR |

A list with an object that has a `role` or a `content` is a conversation (`conversation`). Python
values follow the same table.
"""

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import duckdb

from tunesmith.errors import UnreadableValue

TEXT, LIST, MISSING, INVALID = "text", "list", "missing", "invalid"
"""What a value is: a text; a list, as JSON, which may be a conversation; nothing; no valid
Unicode."""


B = "system.main."
"""Before a function in SQL that runs on a user's connection: DuckDB's own one, whatever macros the
user has."""


def sql_text(x: str) -> str:
    """A SQL expression for the text of the column or parameter `x`; NULL where it is missing or
    invalid. `x` is written several times."""
    return (
        f"CASE WHEN {B}typeof({x}) = 'VARCHAR' THEN CAST({x} AS VARCHAR) "
        f"WHEN {B}typeof({x}) = 'JSON' THEN CASE {B}json_type(CAST({x} AS VARCHAR)) "
        f"WHEN 'VARCHAR' THEN CAST({x} AS VARCHAR) ->> '$' "
        f"WHEN 'NULL' THEN NULL ELSE CAST({x} AS VARCHAR) END "
        f"WHEN {B}typeof({x}) = 'BLOB' THEN TRY({B}decode(TRY_CAST({x} AS BLOB))) "
        f"WHEN {B}json_type({B}to_json({x})) IN ('OBJECT', 'ARRAY') THEN CAST({B}to_json({x}) AS "
        f"VARCHAR) ELSE CAST({x} AS VARCHAR) END"
    )


def sql_kind(x: str) -> str:
    """The same for what it is: TEXT, LIST, MISSING or INVALID."""
    return (
        f"CASE WHEN {x} IS NULL THEN '{MISSING}' WHEN {B}typeof({x}) = 'VARCHAR' THEN '{TEXT}' "
        f"WHEN {B}typeof({x}) = 'JSON' THEN "
        f"CASE {B}json_type(CAST({x} AS VARCHAR)) WHEN 'NULL' THEN '{MISSING}' "
        f"WHEN 'ARRAY' THEN '{LIST}' ELSE '{TEXT}' END "
        f"WHEN {B}typeof({x}) = 'BLOB' THEN CASE WHEN TRY({B}decode(TRY_CAST({x} AS BLOB))) IS "
        f"NULL THEN '{INVALID}' ELSE '{TEXT}' END "
        f"WHEN {B}json_type({B}to_json({x})) = 'ARRAY' THEN '{LIST}' ELSE '{TEXT}' END"
    )


def sql_cell(parameter: str) -> str:
    """A SQL expression [kind, text] for a macro's parameter, which is computed once, whatever it
    is."""
    return f"{B}list_transform([{parameter}], lambda x: [{sql_kind('x')}, {sql_text('x')}])[1]"


class Raw(str):
    """A value that is no text, as JSON writes it: a number, a boolean, an object or a list."""


class Broken:
    """A value that is no valid Unicode."""


Value = str | Raw | Broken | None
"""A cell of a row: a text, JSON, nothing, or no valid Unicode."""


def value_of(value: Any) -> Value:
    """The cell of a Python value; UnreadableValue for a type that has no rule."""
    if isinstance(value, Broken):
        return value
    if isinstance(value, str):
        return value if is_unicode(value) else Broken()
    if is_missing(value):
        return None
    value = plain(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return Broken()
    if isinstance(value, (bool, int, float)):
        return Raw(scalar(value))
    if isinstance(value, (dict, list)):
        try:
            text = to_json(value)
        except (TypeError, ValueError, RecursionError, OverflowError) as e:
            raise UnreadableValue(
                value=f"{type(value).__name__} ({e})", type=type(value).__name__, where=""
            ) from None
        return Raw(text) if is_unicode(text) else Broken()
    return scalar(value)


def kind_of(value: Value) -> str:
    if value is None:
        return MISSING
    if isinstance(value, Broken):
        return INVALID
    return LIST if isinstance(value, Raw) and value.startswith("[") else TEXT


def scalar(value: Any) -> str:
    """A number, boolean, date, … as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        if isinstance(value, (int, float, UUID, str)):
            return str(value)
        return _cast(value)
    except Exception:
        raise UnreadableValue(value=_shown(value), type=type(value).__name__, where="") from None


def _shown(value: Any) -> str:
    try:
        return repr(value)[:100]
    except ValueError:  # a number of too many digits
        return "of too many digits"


_casts: dict[tuple[type, str], str] = {}
"""Texts by type and spelling: equal values, such as 1.5 and 1.50, may have other ones."""


def _cast(value: Any) -> str:
    key = type(value), repr(value)
    if key not in _casts:
        with _one_at_a_time:
            [(text,)] = (
                _instance(os.getpid()).execute("SELECT CAST(? AS VARCHAR)", [value]).fetchall()
            )
        if len(_casts) > 10_000:
            _casts.clear()
        _casts[key] = str(text)
    return _casts[key]


def _nanoseconds(text: str) -> str:
    """A time to the nanosecond, which Python has no type for."""
    with _one_at_a_time:
        [(found,)] = (
            _instance(os.getpid())
            .execute("SELECT CAST(CAST(? AS TIMESTAMP_NS) AS VARCHAR)", [text])
            .fetchall()
        )
    return str(found)


_one_at_a_time = threading.Lock()


@cache
def _instance(process: int) -> duckdb.DuckDBPyConnection:
    """Of this process alone: a fork must not go on with its parent's threads."""
    return duckdb.connect()


def to_json(value: Any) -> str:
    """A list or an object as JSON, as DuckDB's to_json writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_for_json)


def _for_json(value: Any) -> Any:
    if is_missing(value):
        return None
    found = plain(value)
    return found if isinstance(found, (list, dict, str, int, float, bool)) else scalar(found)


def plain(value: Any) -> Any:
    """Arrays, tuples and numbers of NumPy as Python's own; frozen mappings as dictionaries."""
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in "mMf" and kind and getattr(value, "ndim", 0):  # each element by its own rule
        return list(value)
    if kind == "M":
        return _nanoseconds(str(value))
    if kind == "m":
        return value.astype("timedelta64[us]").tolist()
    if kind == "f" and type(value).__name__ != "float64":
        return Raw(str(value))  # the shortest text of its own precision
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return value.tolist()
    if hasattr(value, "to_pydatetime"):
        return (
            _nanoseconds(str(value))
            if getattr(value, "nanosecond", 0) and value.tzinfo is None
            else value.to_pydatetime()
        )
    return value


def is_missing(value: Any) -> bool:
    """None, and what pandas and NumPy write for nothing: NaN, NaT, NA. A float that is no number is
    nothing, too."""
    if value is None:
        return True
    if isinstance(value, (str, bytes, Mapping, Sequence)):
        return False
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)  # only what is no number differs from itself
    except Exception:  # whatever a type says to being compared
        return False


_SOMETHING = re.compile(r"[^\t\n\f\r ]")


def is_empty(text: str) -> bool:
    """Whether a text has nothing but the spaces that SQL's own pattern takes for such."""
    return _SOMETHING.search(text) is None


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

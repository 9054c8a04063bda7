"""How given data is staged: every row written once to a file of our own, what is trained on as text
with its kind, all else as its context."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb

from tunesmith.data import files
from tunesmith.data.gate import interruptible, literal, quoted
from tunesmith.data.text import (
    INVALID,
    MISSING,
    B,
    Broken,
    Raw,
    Value,
    kind_of,
    sql_kind,
    sql_text,
    value_of,
)
from tunesmith.errors import (
    MissingColumns,
    MissingExtra,
    NoSuchTable,
    NoUsableRows,
    QueryFailed,
    QueryRefused,
    TwoColumns,
    UnreadableValue,
    closest,
)
from tunesmith.tasks.specs import MESSAGES, TaskSpec

BATCH = 20_000  # rows of a file held in memory at a time


@dataclass(frozen=True)
class Columns:
    """Which columns of the data are trained on, and which are the rows' context."""

    wanted: Mapping[str, int]
    """prompt and completion, or messages, each with its column's place."""
    others: Mapping[str, int]

    @property
    def is_chat(self) -> bool:
        return MESSAGES in self.wanted

    @classmethod
    def among(cls, part: str, found: Sequence[str], task: TaskSpec) -> "Columns":
        """MissingColumns, or TwoColumns where a name that is wanted stands there twice."""
        places: dict[str, list[int]] = {}
        for i, name in enumerate(found):
            places.setdefault(name.lower(), []).append(i)
        named = {
            wanted: next((n for n in names if n in places), "")
            for wanted, names in task.columns.items()
        }
        if task.takes_messages and MESSAGES in places and not all(named.values()):
            named = {MESSAGES: MESSAGES}
        if missing := [task.columns[w][0] for w, name in named.items() if not name]:
            raise MissingColumns(
                part=part,
                missing=" and no column ".join(missing),
                found=list(found),
                nearest=[closest(m, found) for m in missing],
                wanted=", ".join(f"… AS {names[0]}" for names in task.columns.values()),
            )
        for name in named.values():
            if len(places[name]) > 1:
                raise TwoColumns(part=part, name=name, columns=[found[i] for i in places[name]])
        wanted = {w: places[name][0] for w, name in named.items()}
        others = [i for i in range(len(found)) if i not in wanted.values()]
        names = files.distinct([found[i] for i in others])
        return cls(wanted, dict(zip(names, others, strict=True)))


@dataclass(frozen=True)
class NotText:
    """A column that was no text in the database, with its first value before and after."""

    column: str
    type: str
    before: str
    after: str


@dataclass
class Source:
    """Data of one part. `stage` writes it into a file; what else is known of it is known from then
    on."""

    part: str
    task: TaskSpec
    sql: str = ""
    """A query that gives the rows, for the audit's fixes; empty where there is none."""
    not_text: list[NotText] = field(default_factory=list)
    is_chat: bool = False
    """Whether the rows are in a column `messages`."""
    has_lists: bool = False
    """Whether a row may be a conversation."""
    separator: str = ""
    """What stands between labels that are one text; of a task that gives labels."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the columns that are trained on are called in the data."""

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        """Write the rows as Parquet: row, what is trained on as text with its kind, context as a
        JSON object. No more than `most`, and one: whoever reads sees that there are too many before
        they were all read."""
        raise NotImplementedError


def must_be_distinct(source: Source, names: Sequence[Any]) -> None:
    for wanted in source.task.names:
        if len(same := [str(n) for n in names if str(n).lower() == wanted]) > 1:
            raise TwoColumns(part=source.part, name=wanted, columns=same)


def pyarrow_for(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(what=what, extra="train") from None
    return pyarrow


# ---------------------------------------------------------------- from SQL


ROW_GROUP = 2048  # rows that a writer or reader holds at once: the fewest that DuckDB takes
PARQUET = f"FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}"


def stage_sql(connection: duckdb.DuckDBPyConnection, source: Source, file: Path, most: int) -> None:
    """Run a query once and write what it gives; columns are named by their places, so that no name
    can meet another."""
    try:
        found = connection.sql(source.sql)
        columns = Columns.among(source.part, found.columns, source.task)
        source.is_chat = columns.is_chat
        source.names = {w: found.columns[i] for w, i in columns.wanted.items()}
        types = [str(t) for t in found.types]
        values = ", ".join(
            f"{sql_text(f'#{i + 1}')} AS {w}, {sql_kind(f'#{i + 1}')} AS {w}_is"
            for w, i in columns.wanted.items()
        )
        others = ", ".join(
            f"{literal(name)}: {_plain(f'#{i + 1}', types[i])}"
            for name, i in columns.others.items()
        )
        context = f"{B}to_json({{{others}}})::VARCHAR" if others else "'{}'"
        odd = {
            w: i for w, i in columns.wanted.items() if types[i] != "VARCHAR" and not source.is_chat
        }
        before = "".join(f", CAST(#{i + 1} AS VARCHAR) AS {w}_was" for w, i in odd.items())
        rows = found.limit(most + 1).project(
            f"{B}row_number() OVER () AS row, {values}, {context} AS context{before}"
        )
        interruptible(connection, lambda: rows.write_parquet(str(file), row_group_size=ROW_GROUP))
        source.not_text = [_not_text(file, w, found.columns[i], types[i]) for w, i in odd.items()]
        if odd:
            texts = ", ".join(
                f"{sql_text(quoted(found.columns[i]))} AS {quoted(found.columns[i])}"
                for i in odd.values()
            )
            source.sql = f"SELECT * REPLACE ({texts}) FROM ({source.sql})"
    except duckdb.Error as e:
        if "launched in read-only mode" in str(e):
            raise QueryRefused(
                part=source.part,
                reason="it writes to the database (through a view, a macro or a function)",
                query=source.sql,
            ) from None
        is_table = isinstance(e, duckdb.CatalogException) and "Table with name" in str(e)
        raise (NoSuchTable if is_table else QueryFailed)(
            part=source.part, reason=_first_line(e), query=source.sql
        ) from None


def _not_text(file: Path, wanted: str, column: str, kind: str) -> NotText:
    with duckdb.connect() as own:
        sql = (
            f"SELECT {wanted}_was, {wanted} FROM read_parquet(?) "
            f"ORDER BY {wanted}_was IS NOT DISTINCT FROM {wanted}, row LIMIT 1"
        )
        before, after = own.execute(sql, [str(file)]).fetchone() or ("", "")
    return NotText(column, kind, str(before), str(after))


def _plain(column: str, kind: str) -> str:
    return f"CAST({column} AS VARCHAR)" if kind == "BLOB" else column


def paths_told(paths: Sequence[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _first_line(e: Exception) -> str:
    """What DuckDB says, without the statement that it repeats."""
    lines = [line.strip() for line in re.split(r"\n\s*LINE \d+:", str(e))[0].splitlines()]
    return " ".join(line for line in lines if line).rstrip(" .!")


# ---------------------------------------------------------------- from records


def records_of(part: str, rows: Iterable[Mapping[Any, Any]]) -> Iterator[files.Record]:
    for n, row in enumerate(rows, 1):
        record: files.Record = {}
        for key, value in row.items():
            if str(key) in record:
                raise TwoColumns(
                    part=part, name=str(key), columns=[repr(k) for k in row if str(k) == str(key)]
                )
            try:
                record[str(key)] = value_of(value)
            except UnreadableValue as e:
                raise UnreadableValue(
                    **{**e.fields, "where": f" in row {n}, column {key} of the {part} data"}
                ) from None
        yield record


def stage_records(
    source: Source, records: Iterable[files.Record], file: Path, most: int
) -> list[str]:
    """Write records, whose keys may differ from row to row: the columns are the union of the keys,
    which is given back."""
    pyarrow = pyarrow_for("reading files or rows in memory")
    texts = [name for w in source.task.names for name in (w, f"{w}_is")]
    schema = pyarrow.schema(
        [
            ("row", pyarrow.int64()),
            *((t, pyarrow.string()) for t in texts),
            ("context", pyarrow.string()),
        ]
    )
    spellings: dict[str, dict[str, str]] = {}
    """For every set of keys seen: which of them is meant by each wanted name."""
    keys: dict[str, None] = {}
    with pyarrow.parquet.ParquetWriter(str(file) + ".part", schema) as writer:
        batch: dict[str, list[Any]] = {name: [] for name in schema.names}
        for n, record in enumerate(islice(records, most + 1), 1):
            signature = "\0".join(record)
            if signature not in spellings:
                spellings[signature] = _spelling(source, record)
                keys |= dict.fromkeys(record)
            _append(batch, n, record, spellings[signature], source.task.names)
            if n % BATCH == 0:
                writer.write_table(pyarrow.table(batch, schema))
                batch = {name: [] for name in schema.names}
        writer.write_table(pyarrow.table(batch, schema))
    if not keys:
        raise NoUsableRows(part=source.part, rows=0, reasons="it has no rows")
    columns = Columns.among(source.part, list(keys), source.task)
    source.is_chat = columns.is_chat
    source.names = {w: list(keys)[i] for w, i in columns.wanted.items()}
    _choose_columns(file, columns, source)
    return list(keys)


def _spelling(source: Source, record: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in record:
        lower = key.lower()
        if lower in source.task.names:
            if lower in found:
                raise TwoColumns(part=source.part, name=lower, columns=[found[lower], key])
            found[lower] = key
    return found


def _append(
    batch: dict[str, list[Any]],
    n: int,
    record: files.Record,
    spelling: Mapping[str, str],
    names: Sequence[str],
) -> None:
    batch["row"].append(n)
    for wanted in names:
        value = record.get(spelling[wanted]) if wanted in spelling else None
        batch[wanted].append(None if isinstance(value, Broken) else value)
        batch[f"{wanted}_is"].append(kind_of(value))
    own = set(spelling.values())
    batch["context"].append(_json_object({k: v for k, v in record.items() if k not in own}))


def _json_object(values: Mapping[str, Value]) -> str:
    if not values:
        return "{}"
    pairs = ", ".join(f"{_quote(k)}: {_json_value(v)}" for k, v in values.items())
    return ("{" + pairs + "}").encode("utf-8", "replace").decode()


_quote = json.JSONEncoder(ensure_ascii=False).encode
_JSON_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false")


def _json_value(value: Value) -> str:
    if value is None:
        return "null"
    if isinstance(value, Broken):
        return '"\N{REPLACEMENT CHARACTER}"'
    if isinstance(value, Raw):
        is_nested = value[:1] in "{[" and "NaN" not in value and "Infinity" not in value
        if is_nested or _JSON_SCALAR.fullmatch(value):
            return str(value)
    return _quote(str(value))


def _choose_columns(file: Path, columns: Columns, source: Source) -> None:
    """The staged file with the wanted columns alone; a wanted name that is not meant after all
    becomes context."""
    extra = {name: name.lower() for name in columns.others if name.lower() in source.task.names}
    context = "context"
    if extra:
        added = ", ".join(
            f"{literal(name)}, CASE WHEN {low}_is = '{MISSING}' THEN NULL "
            f"WHEN {low}_is = '{INVALID}' THEN '?' ELSE {low} END"
            for name, low in extra.items()
        )
        context = f"CAST(json_merge_patch(CAST(context AS JSON), json_object({added})) AS VARCHAR)"
    called = {wanted: name.lower() for wanted, name in source.names.items()}
    kept = ", ".join(f"{name} AS {w}, {name}_is AS {w}_is" for w, name in called.items())
    part = f"{file}.part"
    with duckdb.connect() as own:
        own.execute(
            f"COPY (SELECT row, {kept}, {context} AS context FROM read_parquet({literal(part)})) "
            f"TO {literal(str(file))} ({PARQUET})"
        )
    Path(part).unlink()

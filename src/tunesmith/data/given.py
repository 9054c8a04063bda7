"""What was given as data, frozen as one staged file of text: a query, files, rows in memory, a
pandas or Arrow table.

Queries run on the user's own connection, and nothing of ours is created there; all else is read on
a connection of our own.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb

from tunesmith.data import files
from tunesmith.data.gate import check_query, interruptible, literal, quoted, relations
from tunesmith.data.session import Session, session
from tunesmith.data.text import (
    INVALID,
    MISSING,
    B,
    Broken,
    Raw,
    Value,
    is_missing,
    is_unicode,
    kind_of,
    sql_kind,
    sql_text,
    value_of,
)
from tunesmith.errors import (
    MissingColumns,
    MissingExtra,
    NoSuchTable,
    NotADataSource,
    NoUsableRows,
    OptionNotRead,
    QueryFailed,
    QueryRefused,
    TwoColumns,
    UnreadableFile,
    UnreadableValue,
    closest,
)
from tunesmith.tasks.specs import MESSAGES, TEXT_GENERATION, TaskSpec

Data = Any
"""Training data: a query; a file, a folder or a glob of files (Parquet, CSV, TSV, JSON; also as
@path); rows as dictionaries; a pandas or Arrow table."""


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
    names: Mapping[str, str] = field(default_factory=dict)
    """What the columns that are trained on are called in the data."""

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        """Write the rows as Parquet: row, what is trained on as text with its kind, context as a
        JSON object. No more than `most`, and one: whoever reads sees that there are too many before
        they were all read."""
        raise NotImplementedError


@dataclass
class Query(Source):
    """One SELECT on the user's connection."""

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        with connection.cursor() as cursor:
            mine = session.get() or Session()
            mine.apply(cursor)
            cursor.execute(
                "SET python_enable_replacements = false"
            )  # a name in the query is never a variable of this program
            self.sql = check_query(cursor, self.sql, self.part)
            if hidden := relations(cursor, self.sql) & mine.temporary:
                reason = f"{', '.join(sorted(hidden))} is a temporary table or view of the session"
                raise NoSuchTable(part=self.part, reason=reason, query=self.sql)
            cursor.execute(
                "BEGIN TRANSACTION READ ONLY"
            )  # whatever views, macros and query() hide, the database refuses to write
            try:
                _stage_sql(cursor, self, file, most)
            finally:
                cursor.execute("ROLLBACK")


@dataclass
class ParquetFiles(Source):
    paths: Sequence[Path] = ()

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        listed = ", ".join(literal(str(p)) for p in self.paths)
        self.sql = (
            f"SELECT * FROM read_parquet([{listed}], union_by_name = true, "
            f"hive_partitioning = false)"
        )
        self._check_schemas()
        try:
            with duckdb.connect() as own:
                _stage_sql(own, self, file, most)
        except QueryFailed as e:
            raise UnreadableFile(
                path=_listed(self.paths), where="", reason=e.fields["reason"]
            ) from None

    def _check_schemas(self) -> None:
        """TwoColumns, or UnreadableFile where a column has other types in other files: one of them
        would be rewritten."""
        types: dict[str, tuple[str, Path]] = {}
        for path in self.paths:
            try:
                schema = _pyarrow("reading Parquet").parquet.read_schema(path)
            except Exception as e:  # whatever the library says of a broken file
                raise UnreadableFile(
                    path=str(path), where="", reason=f"it is no whole Parquet file ({e})"
                ) from None
            _must_be_distinct(self, schema.names)
            for name, kind in zip(schema.names, map(str, schema.types), strict=True):
                before, where = types.setdefault(name.lower(), (kind, path))
                if before != kind and name.lower() in self.task.names:
                    reason = (
                        f"its column {name} is {kind}, and {before} in {where.name}: name "
                        f"them one by one, or cast them in a query"
                    )
                    raise UnreadableFile(path=str(path), where="", reason=reason)


@dataclass
class TextFiles(Source):
    paths: Sequence[Path] = ()
    encoding: str = ""

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        keys = _stage_records(
            self,
            (record for path in self.paths for record in files.records(path, self.encoding)),
            file,
            most,
        )
        self.sql = files.as_sql(self.paths, self.encoding, keys)


def _must_be_distinct(source: Source, names: Sequence[Any]) -> None:
    for wanted in source.task.names:
        if len(same := [str(n) for n in names if str(n).lower() == wanted]) > 1:
            raise TwoColumns(part=source.part, name=wanted, columns=same)


@dataclass
class Records(Source):
    """Rows whose cells are known already."""

    records: Sequence[files.Record] = ()

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        _stage_records(self, self.records, file, most)
        self.sql = f"SELECT * FROM {self.part}_data"


@dataclass
class Rows(Source):
    """Rows as dictionaries."""

    rows: Sequence[Any] = ()

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        _stage_records(self, _records(self.part, self.rows), file, most)
        self.sql = f"SELECT * FROM {self.part}_data"


@dataclass
class Frame(Source):
    """A pandas or Arrow table, or whatever else DuckDB can register."""

    frame: Any = None

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        self.sql = f"SELECT * FROM {self.part}_data"
        names = getattr(self.frame, "column_names", None) or getattr(
            getattr(self.frame, "schema", None), "names", None
        )
        _must_be_distinct(self, names if isinstance(names, (list, tuple)) else [])
        with duckdb.connect() as own:
            try:
                own.register(f"{self.part}_data", self.frame)
            except Exception:
                raise NotADataSource(value=repr(self.frame)[:300]) from None
            _stage_sql(own, self, file, most)


def source_of(
    part: str, data: Data, encoding: str = "", task: TaskSpec = TEXT_GENERATION
) -> Source | None:
    """What was given as the data of a part; None where nothing was. NotADataSource, NoSuchFile or
    UnreadableFile."""
    if data is None or (isinstance(data, str) and not data):
        return None
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        if not isinstance(text, str):
            raise NotADataSource(value=repr(data))
        if not is_unicode(text):
            raise QueryRefused(part=part, reason="it is no valid Unicode", query=repr(text))
        paths = files.named(text if isinstance(data, str) else f"@{text}")
        if not paths:
            return Query(part, task, text)
        return (
            ParquetFiles(part, task, paths=paths)
            if files.are_parquet(paths)
            else TextFiles(part, task, paths=paths, encoding=encoding)
        )
    if type(data).__module__.partition(".")[0] == "pandas":
        return _of_pandas(part, task, data)
    if isinstance(data, Mapping):
        raise NotADataSource(value=f"one dictionary with the keys {', '.join(map(str, data))}")
    if (
        isinstance(data, Iterable)
        and not hasattr(data, "__arrow_c_stream__")
        and not hasattr(data, "column_names")
    ):
        rows = list(data)
        if not all(isinstance(r, Mapping) for r in rows):
            n = next(n for n, r in enumerate(rows, 1) if not isinstance(r, Mapping))
            raise NotADataSource(value=f"a list whose row {n} is {rows[n - 1]!r:.100}")
        return Rows(part, task, rows=rows)
    return Frame(part, task, frame=data)


def sources_of(
    given: Mapping[str, Data], encoding: str = "", task: TaskSpec = TEXT_GENERATION
) -> list[Source]:
    """The data of those parts that were given, as rows of a task; OptionNotRead where `encoding` is
    and no text file is among them."""
    if given["training"] is None or (
        isinstance(given["training"], str) and not given["training"].strip()
    ):
        raise QueryRefused(
            part="training", reason="it is empty", query=str(given["training"] or "")
        )
    checked = files.checked_encoding(encoding) if encoding else ""
    every = (source_of(part, data, checked, task) for part, data in given.items())
    found = [source for source in every if source]
    if encoding and not any(isinstance(s, TextFiles) for s in found):
        raise OptionNotRead(
            name="encoding",
            value=encoding,
            readers="text files named as data (CSV, TSV, JSON)",
            here="none was named",
        )
    return found


def _of_pandas(part: str, task: TaskSpec, frame: Any) -> Source:
    """A frame as an Arrow table where every column has one type; else as rows, since DuckDB guesses
    the type of a mixed column."""
    if not hasattr(frame, "columns"):
        raise NotADataSource(value=f"a {type(frame).__name__} of pandas, not a DataFrame")
    pyarrow = _pyarrow("tuning on a pandas frame")
    names = [str(c) for c in frame.columns]
    _must_be_distinct(Source(part, task), names)
    columns = [frame.iloc[:, i] for i in range(len(names))]
    arrays = [_arrow_of(pyarrow, part, column) for column in columns]
    if all(a is not None for a in arrays):
        return Frame(part, task, frame=pyarrow.Table.from_arrays(arrays, names=names))
    cells = [
        _cells(part, c) if a is None else _typed_cells(pyarrow, a)
        for a, c in zip(arrays, columns, strict=True)
    ]
    distinct = files.distinct(names)
    records = [dict(zip(distinct, row, strict=True)) for row in zip(*cells, strict=True)]
    return Records(part, task, records=records)


def _arrow_of(pyarrow: Any, part: str, column: Any) -> Any:
    """The column as Arrow has it, NaN, NaT and NA as missing; None for Python's own objects, whose
    type the database would guess."""
    if str(column.dtype).startswith("Sparse"):
        column = column.sparse.to_dense()
    if column.dtype == object:
        kinds = {type(v) for v in column.tolist() if not is_missing(v)}
        if kinds - {str}:
            return None
    elif str(column.dtype).startswith(("period", "interval", "complex")):
        where = f" in the column {column.name} of the {part} data"
        raise UnreadableValue(
            value=repr(next(iter(column), None))[:100], type=str(column.dtype), where=where
        )
    try:
        if column.dtype == object:
            return pyarrow.array(
                [None if is_missing(v) else v for v in column.tolist()], pyarrow.string()
            )
        return pyarrow.Array.from_pandas(column)
    except (pyarrow.ArrowException, UnicodeError, TypeError, ValueError):
        return None


def _cells(part: str, column: Any) -> list[Value]:
    found: list[Value] = []
    for n, value in enumerate(column.tolist(), 1):
        try:
            found.append(value_of(value))
        except UnreadableValue as e:
            raise UnreadableValue(
                **{**e.fields, "where": f" in row {n}, column {column.name} of the {part} data"}
            ) from None
    return found


def _typed_cells(pyarrow: Any, array: Any) -> list[Value]:
    """What the database makes of a column of one type."""
    with duckdb.connect() as own:
        own.register("typed", pyarrow.table({"x": array}))
        found = own.execute(
            f"SELECT {sql_text('x')}, {sql_kind('x')}, json_type(to_json(x)) FROM typed"
        ).fetchall()
    texts = ("VARCHAR", None)
    return [
        None if kind == MISSING else Broken() if kind == INVALID else t if json in texts else Raw(t)
        for t, kind, json in found
    ]


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(what=what, extra="train") from None
    return pyarrow


# ---------------------------------------------------------------- from SQL


ROW_GROUP = 2048  # rows that a writer or reader holds at once: the fewest that DuckDB takes
PARQUET = f"FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}"


def _stage_sql(
    connection: duckdb.DuckDBPyConnection, source: Source, file: Path, most: int
) -> None:
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


def _listed(paths: Sequence[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _first_line(e: Exception) -> str:
    """What DuckDB says, without the statement that it repeats."""
    lines = [line.strip() for line in re.split(r"\n\s*LINE \d+:", str(e))[0].splitlines()]
    return " ".join(line for line in lines if line).rstrip(" .!")


# ---------------------------------------------------------------- from records


def _records(part: str, rows: Iterable[Mapping[Any, Any]]) -> Iterator[files.Record]:
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


def _stage_records(
    source: Source, records: Iterable[files.Record], file: Path, most: int
) -> list[str]:
    """Write records, whose keys may differ from row to row: the columns are the union of the keys,
    which is given back."""
    pyarrow = _pyarrow("reading files or rows in memory")
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

"""What was given as data, frozen as one staged file of text: a query, files, rows in memory, a
pandas or Arrow table.

Queries run on the user's own connection, and nothing of ours is created there; all else is read on
a connection of our own.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from tunesmith.data import files
from tunesmith.data.gate import check_query, literal, relations
from tunesmith.data.session import Session, session
from tunesmith.data.staging import (
    Source,
    must_be_distinct,
    paths_told,
    pyarrow_for,
    records_of,
    stage_records,
    stage_sql,
)
from tunesmith.data.text import (
    INVALID,
    MISSING,
    Broken,
    Raw,
    Value,
    is_missing,
    is_unicode,
    sql_kind,
    sql_text,
    value_of,
)
from tunesmith.errors import (
    NoSuchTable,
    NotADataSource,
    OptionNotRead,
    QueryFailed,
    QueryRefused,
    UnreadableFile,
    UnreadableValue,
)
from tunesmith.tasks.specs import TEXT_GENERATION, TaskSpec

Data = Any
"""Training data: a query; a file, a folder or a glob of files (Parquet, CSV, TSV, JSON; also as
@path); rows as dictionaries; a pandas or Arrow table."""


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
                stage_sql(cursor, self, file, most)
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
                stage_sql(own, self, file, most)
        except QueryFailed as e:
            raise UnreadableFile(
                path=paths_told(self.paths), where="", reason=e.fields["reason"]
            ) from None

    def _check_schemas(self) -> None:
        """TwoColumns, or UnreadableFile where a column has other types in other files: one of them
        would be rewritten."""
        types: dict[str, tuple[str, Path]] = {}
        for path in self.paths:
            try:
                schema = pyarrow_for("reading Parquet").parquet.read_schema(path)
            except Exception as e:  # whatever the library says of a broken file
                raise UnreadableFile(
                    path=str(path), where="", reason=f"it is no whole Parquet file ({e})"
                ) from None
            must_be_distinct(self, schema.names)
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
        keys = stage_records(
            self,
            (record for path in self.paths for record in files.records(path, self.encoding)),
            file,
            most,
        )
        self.sql = files.as_sql(self.paths, self.encoding, keys)


@dataclass
class Records(Source):
    """Rows whose cells are known already."""

    records: Sequence[files.Record] = ()

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        stage_records(self, self.records, file, most)
        self.sql = f"SELECT * FROM {self.part}_data"


@dataclass
class Rows(Source):
    """Rows as dictionaries."""

    rows: Sequence[Any] = ()

    def stage(self, connection: duckdb.DuckDBPyConnection, file: Path, most: int) -> None:
        stage_records(self, records_of(self.part, self.rows), file, most)
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
        must_be_distinct(self, names if isinstance(names, (list, tuple)) else [])
        with duckdb.connect() as own:
            try:
                own.register(f"{self.part}_data", self.frame)
            except Exception:
                raise NotADataSource(value=repr(self.frame)[:300]) from None
            stage_sql(own, self, file, most)


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
    given: Mapping[str, Data],
    encoding: str = "",
    task: TaskSpec = TEXT_GENERATION,
    separator: str = "",
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
    for source in found:
        source.separator = separator
    return found


def _of_pandas(part: str, task: TaskSpec, frame: Any) -> Source:
    """A frame as an Arrow table where every column has one type; else as rows, since DuckDB guesses
    the type of a mixed column."""
    if not hasattr(frame, "columns"):
        raise NotADataSource(value=f"a {type(frame).__name__} of pandas, not a DataFrame")
    pyarrow = pyarrow_for("tuning on a pandas frame")
    names = [str(c) for c in frame.columns]
    must_be_distinct(Source(part, task), names)
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

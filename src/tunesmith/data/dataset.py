"""The rows that a job owns: a frozen snapshot in three parts.

*train* teaches; *validation* chooses checkpoint and stop; *verdict* chooses nothing. `snapshot` runs the user's queries on his own
connection and writes what they gave as Parquet; rows that cannot be used are kept aside with the reason. Rows with the
same prompt (spaces and case apart) never stand in two parts of one query.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from tunesmith import durable
from tunesmith.data.gate import check_query, quoted
from tunesmith.errors import MissingColumns, NoSuchTable, NoUsableRows, QueryFailed, closest

PARTS = ("train", "validation", "verdict")
HELD_OUT_SHARE = 0.1  # of a table without a validation query: as much again for the verdict
HELD_OUT_LIMIT = 500  # rows; more would cost time and hardly narrow an interval
FEW_ROWS = 10  # below it nothing is held out, and the job warns

ROW_HASH = "md5(prompt || chr(31) || completion)"
"""SQL: what a row is known by, whatever query or table it came from."""

Query = str


@dataclass(frozen=True)
class Row:
    row: int
    """Position in the query that the row came from, from 1."""
    prompt: str
    """The text, or the messages before the last one as JSON where `chat` is set."""
    completion: str
    context: str
    """The other columns, as a JSON object."""
    chat: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        if self.chat:
            return json.loads(self.prompt)  # type: ignore[no-any-return]
        return [{"role": "user", "content": self.prompt}]

    @property
    def question(self) -> str:
        """The last thing the user says: what a model that knows no chat is given."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Snapshot:
    """What `snapshot` wrote: the digest of the folder's manifest, rows per part, rows rejected so far."""

    digest: str
    rows: Mapping[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A published snapshot, opened for reading."""

    folder: Path
    rows_per_part: Mapping[str, int]
    chat: Mapping[str, bool]

    @classmethod
    def open(cls, folder: Path, digest: str) -> "Dataset":
        """DamagedFiles unless every byte is what it was at CREATE."""
        manifest = durable.verify(folder, digest)
        return cls(folder, manifest["rows"], manifest["chat"])

    def rows(self, part: str) -> Iterator[Row]:
        with duckdb.connect() as connection:
            found = connection.execute(
                "SELECT row, prompt, completion, context FROM read_parquet(?) ORDER BY row", [str(self.folder / f"{part}.parquet")]
            )
            while batch := found.fetchmany(4096):
                yield from (Row(row, p, c, context, self.chat[part]) for row, p, c, context in batch)

    def hashes(self, part: str) -> list[tuple[str, int]]:
        """The content hash and the row of every row of a part."""
        with duckdb.connect() as connection:
            sql = f"SELECT {ROW_HASH}, row FROM read_parquet(?) ORDER BY row"
            return connection.execute(sql, [str(self.folder / f"{part}.parquet")]).fetchall()

    def rejected(self) -> list[dict[str, Any]]:
        """Rows that were unusable at CREATE: query, row, reason, context."""
        with duckdb.connect() as connection:
            found = connection.execute("SELECT part, row, reason, context FROM read_parquet(?)", [str(self.folder / "rejected.parquet")])
            return [{"part": p, "row": r, "reason": why, "detail": "", "context": c} for p, r, why, c in found.fetchall()]


def snapshot(connection: duckdb.DuckDBPyConnection, queries: Mapping[str, Query], final: Path, *, home: Path, seed: int) -> Snapshot:
    """Freeze the rows of the training, validation and test query (those given) into the folder `final`."""
    with durable.staging(home) as outer, _scratch() as own:
        durable.check_space(outer, 0)
        staged = outer / "data"
        staged.mkdir()
        chat = collect(connection, queries, own, outer)
        rows = _split(own, set(chat), seed)
        rejected = _count(own, "SELECT count(*) FROM rows WHERE reason IS NOT NULL")
        for part in PARTS:
            own.execute(f"COPY (SELECT row, prompt, completion, context FROM parted WHERE part = '{part}' ORDER BY row) "
                        f"TO '{_quoted(staged / part)}.parquet' (FORMAT parquet)")  # fmt: skip
        own.execute(f"COPY (SELECT source AS part, row, reason, context FROM rows WHERE reason IS NOT NULL ORDER BY source, row) "
                    f"TO '{_quoted(staged / 'rejected')}.parquet' (FORMAT parquet)")  # fmt: skip
        source_of = dict(own.execute("SELECT DISTINCT part, source FROM parted").fetchall())
        facts = {
            "rows": rows, "rejected": rejected, "frozen_at": time.time(),
            "chat": {part: chat.get(source_of.get(part, "training"), False) for part in PARTS},
        }  # fmt: skip
        digest = durable.publish(staged, final, facts)
    return Snapshot(digest, {**rows, "rejected": rejected}, tuple(_warnings(rows)))


@contextmanager
def _scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database in memory, inside one that this process opens once: opening one takes longer than all that is done in it."""
    name = f"scratch_{uuid.uuid4().hex}"
    with _instance(os.getpid()).cursor() as own:
        own.execute(f"ATTACH ':memory:' AS {name}; USE {name}")
        try:
            yield own
        finally:
            own.execute(f"USE memory; DETACH {name}")


@cache
def _instance(process: int) -> duckdb.DuckDBPyConnection:
    """Of this process alone: a fork must not go on with its parent's threads."""
    return duckdb.connect()


def collect(
    connection: duckdb.DuckDBPyConnection, queries: Mapping[str, Query], own: duckdb.DuckDBPyConnection, folder: Path
) -> dict[str, bool]:
    """Run the user's queries once and make the table `rows` of the connection `own`; which of the queries gave messages."""
    checked = {name: check_query(connection, sql, name) for name, sql in queries.items() if sql}
    chat = {name: _freeze(connection, name, sql, folder / f"{name}.raw") for name, sql in checked.items()}
    _classify(own, chat, folder)
    for name in checked:
        _must_have_rows(own, name)
    return chat


def _warnings(rows: Mapping[str, int]) -> Iterator[str]:
    if sum(rows.values()) < FEW_ROWS:
        yield f"only {sum(rows.values())} usable rows: a few hundred are a good start; below {FEW_ROWS} none is held out to measure on"
    elif not rows["verdict"]:
        yield "no verdict rows: the tuned model will not be compared with its base"


def _freeze(connection: duckdb.DuckDBPyConnection, part: str, sql: str, file: Path) -> bool:
    """Write what the user's query gives as Parquet; whether its rows are messages."""
    try:
        found = connection.sql(sql)
        names = {c.lower(): (c, str(t)) for c, t in zip(found.columns, found.types, strict=True)}
        chat = "messages" in names and not {"prompt", "completion"} <= set(names)
        wanted = ("messages",) if chat else ("prompt", "completion")
        missing = [w for w in wanted if w not in names]
        if missing:
            raise MissingColumns(part=part, missing=" and no column ".join(missing), found=found.columns,
                                 nearest=[closest(m, found.columns) for m in missing])  # fmt: skip
        values = ", ".join(f"{_as_text(*names[w])} AS {w}, {quoted(names[w][0])} IS NULL AS {w}_null" for w in wanted)
        others = ", ".join(f"{_text(c)}: {_plain(c, t)}" for n, (c, t) in names.items() if n not in wanted)
        context = f"to_json({{{others}}})::VARCHAR" if others else "'{}'"
        rows = found.query("source_rows", f"SELECT row_number() OVER () AS row, {values}, {context} AS context FROM source_rows")
        assert rows is not None  # a SELECT gives a relation
        rows.write_parquet(str(file))
    except duckdb.Error as e:
        is_table = isinstance(e, duckdb.CatalogException) and "Table with name" in str(e)
        raise (NoSuchTable if is_table else QueryFailed)(part=part, reason=_first_line(e), query=sql) from None
    return chat


def _classify(own: duckdb.DuckDBPyConnection, chat: Mapping[str, bool], folder: Path) -> None:
    """The table `rows`: source, row, prompt, completion, context, and the reason why a row cannot be used."""
    own.execute("CREATE TABLE rows (source VARCHAR, row BIGINT, prompt VARCHAR, completion VARCHAR, context VARCHAR, reason VARCHAR)")
    for name, is_chat in chat.items():
        own.execute(f"INSERT INTO rows {_MESSAGES if is_chat else _PAIRS}", {"source": name, "file": str(folder / f"{name}.raw")})


_PAIRS = r"""
SELECT $source, row, prompt, completion, context, CASE
    WHEN prompt_null THEN 'prompt is null' WHEN completion_null THEN 'completion is null'
    WHEN prompt IS NULL THEN 'prompt is not UTF-8' WHEN completion IS NULL THEN 'completion is not UTF-8'
    WHEN NOT regexp_matches(prompt, '\S') THEN 'prompt is empty'
    WHEN NOT regexp_matches(completion, '\S') THEN 'completion is empty' END
FROM read_parquet($file)
"""
_MESSAGES = """
WITH parsed AS (
    SELECT *, TRY_CAST(messages AS JSON) AS j, json_type(j) = 'ARRAY' AND json_array_length(j) >= 2 AS ok,
           list_transform(TRY_CAST(j AS JSON[]), lambda m: m ->> 'role') AS roles,
           list_transform(TRY_CAST(j AS JSON[]), lambda m: m ->> 'content') AS contents
    FROM read_parquet($file)
)
SELECT $source, row, CASE WHEN ok THEN to_json(TRY_CAST(j AS JSON[])[:-2])::VARCHAR END, contents[-1], context, CASE
    WHEN messages_null THEN 'messages is null'
    WHEN ok IS NOT TRUE THEN 'messages is not a list of two or more'
    WHEN len(list_filter(roles, lambda r: r NOT IN ('system', 'user', 'assistant'))) > 0 OR len(list_filter(roles, lambda r: r IS NULL)) > 0
        THEN 'a message has no role system, user or assistant'
    WHEN len(list_filter(contents, lambda c: c IS NULL)) > 0 THEN 'a message has no content'
    WHEN roles[-1] <> 'assistant' THEN 'the last message is not the assistant''s'
    WHEN roles[-2] <> 'user' THEN 'the message before the answer is not the user''s'
    WHEN NOT regexp_matches(contents[-1], '\\S') THEN 'completion is empty' END
FROM parsed
"""


def _split(own: duckdb.DuckDBPyConnection, sources: set[str], seed: int) -> dict[str, int]:
    """The table `parted`: usable rows with their part. Whole groups of equal prompts move together."""
    usable = dict(own.execute("SELECT source, count(*) FROM rows WHERE reason IS NULL GROUP BY source").fetchall())
    plan = {"training": ("train", 0, 0), "validation": ("validation", 0, 0), "test": ("verdict", 0, 0)}
    held_out = min(HELD_OUT_LIMIT, max(1, round(HELD_OUT_SHARE * usable.get("training", 0))))
    if "validation" not in sources and usable.get("training", 0) >= FEW_ROWS:
        plan["training"] = ("train", held_out, 0 if "test" in sources else held_out)
    elif "test" not in sources:
        plan["validation"] = ("validation", 0, usable.get("validation", 0) // 2)
    own.execute("CREATE TABLE plan (source VARCHAR, rest VARCHAR, validation BIGINT, verdict BIGINT)")
    own.executemany("INSERT INTO plan VALUES (?, ?, ?, ?)", [[s, *p] for s, p in plan.items()])
    own.execute(r"""
        CREATE TABLE parted AS
        WITH keyed AS (
            SELECT *, md5(lower(trim(regexp_replace(prompt, '\s+', ' ', 'g')))) AS key FROM rows WHERE reason IS NULL
        ), groups AS (
            SELECT source, key, sum(count(*)) OVER (PARTITION BY source ORDER BY md5(? || key), key) - count(*) AS before
            FROM keyed GROUP BY source, key
        )
        SELECT keyed.*, CASE WHEN before < plan.verdict THEN 'verdict'
                             WHEN before < plan.verdict + plan.validation THEN 'validation' ELSE plan.rest END AS part
        FROM keyed JOIN groups USING (source, key) JOIN plan USING (source)""", [f"{seed}:"])  # fmt: skip
    counted = dict(own.execute("SELECT part, count(*) FROM parted GROUP BY part").fetchall())
    return {part: counted.get(part, 0) for part in PARTS}


def _must_have_rows(own: duckdb.DuckDBPyConnection, source: str) -> None:
    """NoUsableRows where a query gave nothing that can be used."""
    counted = own.execute("SELECT coalesce(reason, ''), count(*) FROM rows WHERE source = ? GROUP BY 1 ORDER BY 1", [source]).fetchall()
    if not any(reason == "" for reason, _ in counted):
        reasons = "; ".join(f"{n} x {reason}" for reason, n in counted) or "the query gives no rows"
        raise NoUsableRows(part=source, rows=sum(n for _, n in counted), reasons=reasons)


def _as_text(column: str, kind: str) -> str:
    """SQL that gives a column as text; NULL where bytes are not UTF-8."""
    if kind == "BLOB":
        return f"TRY(decode({quoted(column)}))"
    if kind.endswith("]") or kind.startswith("STRUCT") or kind == "JSON":
        return f"to_json({quoted(column)})::VARCHAR"
    return f"CAST({quoted(column)} AS VARCHAR)"


def _plain(column: str, kind: str) -> str:
    return f"CAST({quoted(column)} AS VARCHAR)" if kind == "BLOB" else quoted(column)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _count(own: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(own.execute(sql).fetchall()[0][0])


def _first_line(e: Exception) -> str:
    return " ".join(line.strip() for line in str(e).splitlines()[:2] if not line.startswith("LINE"))

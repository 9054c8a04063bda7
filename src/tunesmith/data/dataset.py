"""The rows that a job owns: a frozen snapshot in three parts.

*train* teaches; *validation* chooses checkpoint and stop; *verdict* chooses nothing. `snapshot`
reads what was given once and writes it as Parquet; rows that cannot be used are kept aside with the
reason. Rows with the same prompt (spaces and case apart) never stand in two parts of one query, and
neither do a conversation and one that it begins with.
"""

import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from tunesmith import durable
from tunesmith.data import split
from tunesmith.data.conversation import Message
from tunesmith.data.gate import literal
from tunesmith.data.split import PARTS
from tunesmith.data.staging import PARQUET, Source
from tunesmith.errors import FreezingFailed, MoreRowsThan, NoUsableRows
from tunesmith.settings import SNAPSHOTS
from tunesmith.words import counted

ROW_HASH = "md5(prompt || chr(31) || completion)"
"""SQL: what a row is known by, whatever query or table it came from."""
NORMAL = r"lower(trim(regexp_replace({0}, '\s+', ' ', 'g')))"
"""SQL: a text with its case and spaces taken out, by which duplicates are told."""

MOST_ROWS = 10_000_000  # read of one query or file
MEMORY = 512 << 20  # bytes of the tables that a CREATE works on; the rest goes to the disk
# of a group of rows that DuckDB may hold beside them while it reads, changes and writes texts
COPIES = 16
LARGE = 4 << 30  # bytes that very long rows may need

Moved = Mapping[str, Mapping[str, Sequence[int]]]
"""Rows of a part, by their numbers, that a job counts to another one: {from: {to: rows}}."""


@dataclass(frozen=True)
class Row:
    row: int
    """Position in the query that the row came from, from 1."""
    prompt: str
    """The text, or the messages before the last answer as JSON where `chat` is set."""
    completion: str
    context: str
    """The other columns, as a JSON object."""
    chat: bool = False
    """Whether a list was given: of messages, or of labels (a JSON list in `completion`)."""
    draw: int = 0
    """The place of its group of equal prompts in the drawn order of its query."""

    @property
    def messages(self) -> list[Message]:
        """What stands before the answer. An earlier answer of weight 0 is read and not learnt."""
        if self.chat:
            return json.loads(self.prompt)  # type: ignore[no-any-return]
        return [{"role": "user", "content": self.prompt}]

    @property
    def question(self) -> str:
        """The last thing the user says: what a model that knows no chat is given."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True)
class Snapshot:
    """What `snapshot` wrote: the digest of the folder's manifest (of the rows and their parts,
    whenever they were frozen), rows per part, rows rejected so far."""

    digest: str
    rows: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    content: str = ""
    """Digest of the rows, usable or not, and their parts, whatever file they are written to."""


@dataclass(frozen=True)
class Dataset:
    """A published snapshot, opened for reading, as one job divides it."""

    folder: Path
    rows_per_part: Mapping[str, int]
    """As frozen."""
    source_of: Mapping[str, str]
    """Which query the rows of a part came from."""
    sources: tuple[str, ...] = ()
    """The queries that were given."""
    moved: Moved = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, digest: str, moved: Moved | None = None) -> "Dataset":
        """DamagedFiles unless every byte is what it was at CREATE."""
        manifest = durable.verify(folder, digest)
        return cls(
            folder, manifest["rows"], manifest["source_of"], tuple(manifest["sources"]), moved or {}
        )

    def rows(self, part: str) -> Iterator[Row]:
        """The rows of a part, in the order of the query."""
        return split.counted_to(part, self.moved, self._frozen, lambda row: row.row)

    def _frozen(self, part: str) -> Iterator[Row]:
        with _reader() as connection:
            sql = (
                "SELECT row, prompt, completion, context, chat, draw FROM read_parquet(?) "
                "ORDER BY row"
            )
            found = connection.execute(sql, [str(self.folder / f"{part}.parquet")])
            while batch := found.fetchmany(4096):
                yield from (Row(*values) for values in batch)

    def hashes(self, part: str) -> list[tuple[str, int]]:
        """The content hash and the row of every row of a part."""
        return list(split.counted_to(part, self.moved, self._frozen_hashes, lambda found: found[1]))

    def _frozen_hashes(self, part: str) -> list[tuple[str, int]]:
        with _reader() as connection:
            sql = f"SELECT {ROW_HASH}, row FROM read_parquet(?) ORDER BY row"
            return connection.execute(sql, [str(self.folder / f"{part}.parquet")]).fetchall()

    def rejected(self) -> list[dict[str, Any]]:
        """Rows that were unusable at CREATE: query, row, reason, context."""
        with _reader() as connection:
            found = connection.execute(
                "SELECT part, row, reason, context FROM read_parquet(?)",
                [str(self.folder / "rejected.parquet")],
            )
            return [
                {"part": p, "row": r, "reason": why, "detail": "", "context": c}
                for p, r, why, c in found.fetchall()
            ]


def snapshot(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[Source],
    final: Path,
    *,
    home: Path,
    seed: int,
    most: int = MOST_ROWS,
) -> Snapshot:
    """Freeze the rows of the training, validation and test data (those given): `final` becomes a
    link to a folder of the home, which all snapshots of the same rows and parts share.
    MoreRowsThan `most` is an error."""
    with (
        durable.staging(home) as outer,
        _scratch(durable.spill_folder(home)) as own,
        _typed_errors(),
    ):
        durable.check_space(outer, 0)
        staged = outer / "data"
        staged.mkdir()
        unread = collect(connection, sources, own, outer, most)
        plans = _split(own, seed)
        counted = dict(
            own.execute(
                "SELECT part, count(*) FROM rows WHERE part IS NOT NULL GROUP BY part"
            ).fetchall()
        )
        rows = {part: counted.get(part, 0) for part in PARTS}
        rejected = _count(own, "SELECT count(*) FROM rows WHERE reason IS NOT NULL")
        for part in PARTS:
            own.execute(
                f"COPY (SELECT row, prompt, completion, context, chat, draw FROM rows "
                f"WHERE part = '{part}') "
                f"TO {literal(f'{staged / part}.parquet')} ({PARQUET})"
            )
        own.execute(
            f"COPY (SELECT source AS part, row, reason, context FROM rows "
            f"WHERE reason IS NOT NULL) "
            f"TO {literal(str(staged / 'rejected.parquet'))} ({PARQUET})"
        )
        facts = {
            "rows": rows,
            "rejected": rejected,
            "sources": [s.part for s in sources],
            "source_of": dict(
                own.execute(
                    "SELECT DISTINCT part, source FROM rows WHERE part IS NOT NULL ORDER BY part"
                ).fetchall()
            ),
        }
        content = str(own.execute(_CONTENT).fetchall()[0][0])
        digest = durable.publish_shared(staged, home / SNAPSHOTS, final, facts)
    told = (*unread, *split.warnings(rows, plans))
    return Snapshot(digest, {**rows, "rejected": rejected}, told, content)


_CONTENT = """
WITH every AS (SELECT source, row, sha256(CAST(to_json(
    struct_pack(source, row, prompt, completion, context, reason, part)) AS VARCHAR))
               AS told FROM rows)
SELECT sha256(coalesce(string_agg(told, '' ORDER BY source, row), '')) FROM every
"""


@contextmanager
def _typed_errors() -> Iterator[None]:
    """FreezingFailed for what DuckDB says of its own work; a full disk is told by `durable`."""
    try:
        yield
    except duckdb.Error as e:
        if "No space left on device" in str(e):
            raise
        raise FreezingFailed(reason=str(e).splitlines()[0]) from None


@contextmanager
def _scratch(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database in memory, inside one that this process opens once: opening one takes
    longer than all that is done in it. What its memory limit does not hold goes to the folder
    `spill`."""
    name = f"scratch_{uuid.uuid4().hex}"
    with _one_at_a_time:
        cursor = _instance(os.getpid(), spill).cursor()
    with cursor as own:
        own.execute(f"ATTACH ':memory:' AS {name}; USE {name}")
        try:
            yield own
        finally:
            own.execute(f"USE memory; DETACH {name}")


@contextmanager
def _reader() -> Iterator[duckdb.DuckDBPyConnection]:
    """For reading frozen rows: opening a database takes longer than reading a thousand of them."""
    with _one_at_a_time:
        cursor = _reading(os.getpid()).cursor()
    with cursor as own:
        yield own


@cache
def _reading(process: int) -> duckdb.DuckDBPyConnection:
    """By process, as `_instances`."""
    return duckdb.connect(config={"threads": "1"})


_one_at_a_time = threading.Lock()


_instances: dict[int, tuple[Path, duckdb.DuckDBPyConnection]] = {}
"""By process: a fork must not go on with its parent's threads, nor end them, so what its parent
opened stays here unused."""


def _instance(process: int, spill: Path) -> duckdb.DuckDBPyConnection:
    if process not in _instances or _instances[process][0] != spill:
        limits: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{MEMORY}B",
            "temp_directory": str(spill),
            "threads": "1",
        }
        _instances[process] = spill, duckdb.connect(config=limits)
    return _instances[process][1]


def _make_room(own: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Let long rows be worked on: a group of them has to fit beside the tables, however little
    those may hold.

    Never less than before, since other threads may be at work in the same instance.
    """
    groups = (
        "SELECT max(bytes) FROM (SELECT sum(total_uncompressed_size) AS bytes "
        "FROM parquet_metadata(?) GROUP BY row_group_id)"
    )
    needed = COPIES * int(own.execute(groups, [str(file)]).fetchall()[0][0] or 0)
    with _one_at_a_time:
        if needed > LARGE:  # as much as DuckDB takes by itself on this machine
            own.execute("RESET memory_limit")
        elif MEMORY + needed > _bytes(
            str(own.execute("SELECT current_setting('memory_limit')").fetchall()[0][0])
        ):
            own.execute(f"SET memory_limit = '{MEMORY + needed}B'")


def _bytes(said: str) -> float:
    """What DuckDB calls 488.2 MiB; a little more, since it rounds."""
    number, unit = said.split()
    return (float(number) + 0.1) * float(1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(unit))


def collect(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[Source],
    own: duckdb.DuckDBPyConnection,
    folder: Path,
    most: int = MOST_ROWS,
) -> list[str]:
    """Read what was given once and make the table `rows` of the connection `own`: source, row,
    prompt, completion, context, chat, key (what duplicates are told by) and the reason why a row
    cannot be used. Gives what must be told."""
    own.execute(
        "CREATE TABLE rows (source VARCHAR, row BIGINT, prompt VARCHAR, completion VARCHAR, "
        "context VARCHAR, chat BOOLEAN, "
        "key VARCHAR, reason VARCHAR, draw BIGINT, part VARCHAR)"
    )
    own.execute("CREATE TABLE begins (source VARCHAR, key VARCHAR, begins_with VARCHAR)")
    unread: dict[str, int] = {}
    for source in sources:
        file = folder / f"{source.part}.raw"
        source.stage(connection, file, most)
        _make_room(own, file)
        if _count(own, f"SELECT count(*) FROM read_parquet({literal(str(file))})") > most:
            raise MoreRowsThan(part=source.part, most=f"{most:,}")
        source.task.rules.add_rows(own, source, file, unread)
    for source in sources:
        _must_have_rows(own, source.part)
    return [
        f"messages have the key {key}, which is not trained on ({counted(n, 'row')})"
        for key, n in unread.items()
    ]


def insert_rows(
    own: duckdb.DuckDBPyConnection, source: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Add judged rows of a source: row, prompt, completion, context, chat, the text of which
    duplicates are told (spaces and case apart), and the reason why it cannot be used, or None."""
    key = f"md5({NORMAL.format('CAST(c5 AS VARCHAR)')})"
    values = f"c0, c1, c2, c3, c4, {key}, c6, NULL, NULL"
    _insert(own, f"INSERT INTO rows SELECT ?, {values} FROM arriving", source, rows)


def insert_beginnings(
    own: duckdb.DuckDBPyConnection, source: str, pairs: Sequence[tuple[str, str]]
) -> None:
    """Add pairs of keys: of a row, and of what it begins with and teaches too."""
    values = ", ".join(f"md5({NORMAL.format(f'CAST({c} AS VARCHAR)')})" for c in ("c0", "c1"))
    _insert(own, f"INSERT INTO begins SELECT ?, {values} FROM arriving", source, pairs)


def _insert(
    own: duckdb.DuckDBPyConnection, sql: str, source: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    if not rows:
        return
    import numpy as np  # late: a list of jobs must not wait for it

    columns = [np.array(values, dtype=object) for values in zip(*rows, strict=True)]
    own.register("arriving", {f"c{i}": values for i, values in enumerate(columns)})
    own.execute(sql, [source])
    own.unregister("arriving")


def _split(own: duckdb.DuckDBPyConnection, seed: int) -> dict[str, split.Plan]:
    """Give usable rows their part and their group's place in the drawn order. Whole groups move
    together."""
    own.execute("CREATE TABLE joined (source VARCHAR, key VARCHAR, head VARCHAR)")
    _join_beginnings(own)
    order = "md5(? || coalesce(head, rows.key)), coalesce(head, rows.key)"
    own.execute(
        f"CREATE TABLE drawn AS SELECT rows.source, row, dense_rank() OVER (PARTITION BY "
        f"rows.source ORDER BY {order}) AS draw "
        "FROM rows LEFT JOIN joined USING (source, key) WHERE reason IS NULL",
        [f"{seed}:"],
    )
    usable = dict(own.execute("SELECT source, count(*) FROM drawn GROUP BY source").fetchall())
    plans = split.plans(usable)
    own.execute("CREATE TABLE parts (source VARCHAR, draw BIGINT, part VARCHAR)")
    for source, plan in plans.items():
        sizes = own.execute(
            "SELECT draw, count(*) FROM drawn WHERE source = ? GROUP BY draw ORDER BY draw",
            [source],
        ).fetchall()
        _insert_parts(own, source, [d for d, _ in sizes], split.split([n for _, n in sizes], plan))
    own.execute(
        "UPDATE rows SET draw = parted.draw, part = parted.part "
        "FROM (drawn JOIN parts USING (source, draw)) AS parted "
        "WHERE rows.source = parted.source AND rows.row = parted.row"
    )
    return plans


def _insert_parts(
    own: duckdb.DuckDBPyConnection, source: str, draws: Sequence[int], parts: Sequence[str]
) -> None:
    import numpy as np

    own.register(
        "arriving", {"draw": np.array(draws, dtype=np.int64), "part": np.array(parts, dtype=object)}
    )
    own.execute("INSERT INTO parts SELECT ?, draw, part FROM arriving", [source])
    own.unregister("arriving")


def _join_beginnings(own: duckdb.DuckDBPyConnection) -> None:
    """A conversation learns its earlier answers too, so it is of one group with the rows that ask
    just that."""
    pairs = own.execute(
        "SELECT DISTINCT source, key, begins_with FROM begins WHERE EXISTS "
        "(FROM rows WHERE rows.source = begins.source AND rows.key = begins_with) ORDER BY ALL"
    ).fetchall()
    head: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while (up := head.setdefault(node, node)) != node:
            head[node] = node = head.setdefault(up, up)
        return node

    for source, key, beginning in pairs:
        a, b = sorted((find((source, key)), find((source, beginning))))
        head[b] = a
    if head:
        own.executemany(
            "INSERT INTO joined VALUES (?, ?, ?)", [[*node, find(node)[1]] for node in head]
        )


def _must_have_rows(own: duckdb.DuckDBPyConnection, source: str) -> None:
    """NoUsableRows where a query gave nothing that can be used."""
    counted = own.execute(
        "SELECT coalesce(reason, ''), count(*) FROM rows WHERE source = ? GROUP BY 1 ORDER BY 1",
        [source],
    ).fetchall()
    if not any(reason == "" for reason, _ in counted):
        reasons = "; ".join(f"{n} x {reason}" for reason, n in counted) or "the query gives no rows"
        raise NoUsableRows(part=source, rows=sum(n for _, n in counted), reasons=reasons)


def _count(own: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(own.execute(sql).fetchall()[0][0])

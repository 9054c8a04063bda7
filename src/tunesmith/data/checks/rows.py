"""The checks of the audit that hold for the rows of every task: what cannot be used, what is there
twice, what leaks, how answers are spread.

Every finding names its rows by their position in the query, and carries a SELECT that gives the
rows without it; `AuditReport.clean_sql` puts all of them into one.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb

from tunesmith.catalog import ModelSpec
from tunesmith.data import baseline
from tunesmith.data.checks.measures import dependence, entropy
from tunesmith.data.dataset import NORMAL, ROW_HASH
from tunesmith.data.given import TextFiles
from tunesmith.data.staging import Source
from tunesmith.documents.audit import AuditReport, Finding, Group
from tunesmith.errors import UnknownGroup, closest
from tunesmith.words import agreed, counted

ROWS_SHOWN = 1000  # row ids kept with a finding
LISTED = 5000  # rows that a fix may name one by one
FEW_PER_CLASS = 10
GROUPS_LIMIT = 20  # values of a column that can be a group
ADVISORY = frozenset({"suspect_labels", "prompt_templates", "prompt_prefix", "imbalance"})
"""Findings that a person should look at: their fix is shown, and never part of the clean query."""
SEVERITIES = ("error", "warning", "note")
TEXTS = ("prompt", "completion")


class RowChecks:
    """Looks at the rows of some queries, which stand in the table `rows` of a connection."""

    def __init__(
        self,
        own: duckdb.DuckDBPyConnection,
        sources: Sequence[Source],
        told: Sequence[str],
        encoder: Any,
        spec: ModelSpec,
        suspects: Sequence[int] | None = None,
    ) -> None:
        self._own, self._encoder, self._spec, self._told = own, encoder, spec, told
        self._suspects = suspects
        self._sources = {s.part: s for s in sources}
        self._not_measured: list[str] = []
        self._queries = {s.part: self._sql_of(s) for s in sources}
        own.execute(f"""CREATE TABLE usable AS SELECT *,
                {NORMAL.format("prompt")} AS p, {NORMAL.format("completion")} AS c
                        FROM rows WHERE reason IS NULL""")
        self._classes = self._closed_answers()

    def _sql_of(self, source: Source) -> str:
        """A query that gives the rows as the texts they are trained on; empty where DuckDB reads
        the source as other texts."""
        if odd := [n for wanted, n in source.names.items() if n.lower() != wanted]:
            told = f"SQL that mends the {source.part} data: its columns are called {', '.join(odd)}"
            self._not_measured.append(told)
            return ""
        if not source.sql or not isinstance(source, TextFiles):
            return source.sql
        texts = "source = ? AND reason IS NULL AND NOT chat"
        mine = self._all(
            f"SELECT count(*), bit_xor(hash({ROW_HASH})) FROM rows WHERE {texts}", source.part
        )
        try:
            same = source.is_chat or mine == self._all(
                f"SELECT count(*), bit_xor(hash({ROW_HASH})) FROM ({source.sql}) "
                f"WHERE regexp_matches(prompt, '\\S') "
                "AND regexp_matches(completion, '\\S')"
            )
        except duckdb.Error:
            same = False
        if not same:
            self._not_measured.append(
                f"SQL that mends the {source.part} file: DuckDB's own reader gives other texts "
                f"than the file has"
            )
        return source.sql if same else ""

    def report(self, groups: Sequence[str]) -> AuditReport:
        lengths, tokens, too_long = self._lengths()
        found = [f for check in self._checks() for f in check()] + too_long
        found.sort(key=lambda f: (SEVERITIES.index(f.severity), -f.count))
        languages = self._languages()
        looked_at = self._groups(groups)
        found += [f for g in looked_at for f in _group_findings(g)]
        counts = list(self._classes.values())
        return AuditReport(
            rows=dict(
                self._all("SELECT source, count(*) FROM rows GROUP BY source ORDER BY source DESC")
            ),
            tokens=tokens,
            base_model=self._spec.name,
            lengths=lengths,
            classes=self._classes,
            imbalance=counts[0] / counts[-1] if counts else None,
            entropy=entropy(counts) / math.log(len(counts)) if len(counts) > 1 else None,
            languages=languages,
            groups=looked_at,
            findings=tuple(found),
            not_measured=tuple(self._not_measured),
            clean_sql=self._clean(found),
        )

    def _checks(self) -> Sequence[Callable[[], Iterator[Finding]]]:
        """What is looked for, in the order in which findings of one weight are told."""
        return (
            self._unusable,
            self._not_text,
            self._unread,
            self._duplicates,
            self._leaks,
            self._conflicts,
            self._constants,
            self._balance,
        )

    def _unusable(self) -> Iterator[Finding]:
        for source in self._sources:
            found = self._all(
                "SELECT row, reason FROM rows WHERE source = ? AND reason IS NOT NULL ORDER BY row",
                source,
            )
            reasons = Counter(r for _, r in found)
            yield from self._finding(
                "unusable",
                "error",
                source,
                [n for n, _ in found],
                "[row|rows] that cannot be used: "
                + "; ".join(f"{n} x {r}" for r, n in reasons.most_common()),
                "these rows are rejected at CREATE; fill them in or leave them out",
                keep=r"regexp_matches(CAST(prompt AS VARCHAR), '\S') "
                r"AND regexp_matches(CAST(completion AS VARCHAR), '\S')",
            )

    def _not_text(self) -> Iterator[Finding]:
        """Columns whose type is the database's: what is trained on is their text."""
        for part, source in self._sources.items():
            n = self._one("SELECT count(*) FROM rows WHERE source = ?", part)
            for c in source.not_text:
                yield Finding(
                    "not_text",
                    "note",
                    n,
                    part,
                    (),
                    f"the column {c.column} is {c.type:.80} in the {part} data, no text: "
                    f"{c.before!r:.80} is trained on as {c.after!r:.80}",
                    "where a file was written otherwise, name the file itself as the data, or "
                    "read it with all_varchar = true",
                )

    def _unread(self) -> Iterator[Finding]:
        for told in self._told:
            yield Finding(
                "unread_keys",
                "note",
                1,
                "training",
                (),
                told,
                "put what matters into the message's content",
            )

    def _duplicates(self) -> Iterator[Finding]:
        for source in self._sources:
            rows = self._rows(
                """SELECT row FROM usable WHERE source = ?
                                 QUALIFY row_number() OVER (PARTITION BY p, c ORDER BY row) > 1
                                  ORDER BY row""",
                source,
            )
            yield from self._finding(
                "duplicates",
                "warning",
                source,
                rows,
                "[row that repeats|rows that repeat] an earlier row, spaces and case apart",
                "a repeated row counts as often as it is repeated; keep one of each",
                keep=f"row_number() OVER (PARTITION BY {NORMAL.format('prompt')}, "
                f"{NORMAL.format('completion')}) = 1",
            )

    def _leaks(self) -> Iterator[Finding]:
        """Prompts of the training rows that stand in the validation or test query too."""
        for other in ("validation", "test"):
            if other not in self._sources:
                continue
            equal = self._rows(
                """SELECT row FROM usable WHERE source = 'training'
                                  AND p IN (SELECT p FROM usable WHERE source = ?) ORDER BY row""",
                other,
            )
            condition = (
                f"{NORMAL.format('prompt')} NOT IN "
                f"(SELECT {NORMAL.format('prompt')} FROM ({self._queries[other]}) "
                f"WHERE prompt IS NOT NULL)"
                if self._queries[other]
                else ""
            )
            yield from self._finding(
                "leakage",
                "error",
                "training",
                equal,
                f"training [prompt that is|prompts that are] also in the {other} query",
                f"the {other} score would reward memory; take them out of training",
                keep=condition,
            )
            yield from self._near_leaks(other, equal)

    def _near_leaks(self, other: str, equal: Sequence[int]) -> Iterator[Finding]:
        """Training prompts nearly equal to one of the other query; `equal` are told already."""
        yield from ()

    def _conflicts(self) -> Iterator[Finding]:
        for source in self._sources:
            rows = self._rows(
                """SELECT row FROM usable WHERE source = $1 AND p IN (
                    SELECT p FROM usable WHERE source = $1
                                 GROUP BY p HAVING count(DISTINCT c) > 1) ORDER BY row""",
                source,
            )
            yield from self._finding(
                "conflicts",
                "error" if self._classes else "note",
                source,
                rows,
                "[row|rows] whose prompt has another completion elsewhere",
                "decide which answer is right; until then leave these rows out"
                if self._classes
                else "fine where several answers are good; else leave these rows out",
                keep=f"count(DISTINCT {NORMAL.format('completion')}) OVER (PARTITION BY "
                f"{NORMAL.format('prompt')}) = 1",
            )

    def _where(
        self,
        condition: str,
        name: str,
        severity: str,
        message: str,
        advice: str,
        *,
        keep: str = "",
        replace: tuple[tuple[str, str], ...] = (),
    ) -> Iterator[Finding]:
        """The usable rows of each query that meet a condition in SQL."""
        for source in self._sources:
            rows = self._rows(
                f"SELECT row FROM usable WHERE source = ? AND ({condition}) ORDER BY row", source
            )
            yield from self._finding(
                name, severity, source, rows, message, advice, keep=keep, replace=replace
            )

    def _constants(self) -> Iterator[Finding]:
        n = self._one("SELECT count(*) FROM usable WHERE source = 'training'")
        if n < 2:
            return
        for column in TEXTS:
            if (
                self._one(f"SELECT count(DISTINCT {column}) FROM usable WHERE source = 'training'")
                == 1
            ):
                yield Finding(
                    f"constant_{column}",
                    "error",
                    n,
                    "training",
                    (),
                    f"every {column} is the same text",
                    "there is nothing to learn; look at the query",
                )
        for column in self._context_columns():
            values = self._one(
                "SELECT count(DISTINCT context ->> ?) FROM usable WHERE source = 'training'",
                f'$."{column}"',
            )
            if values <= 1:
                yield Finding(
                    "constant_column",
                    "note",
                    n,
                    "training",
                    (),
                    f"the column {column} has one value in all rows",
                    "as a slice it tells nothing; leave it out of the query",
                )

    def _balance(self) -> Iterator[Finding]:
        counts = self._classes
        if len(counts) < 2:
            return
        n, k = sum(counts.values()), len(counts)
        (common, most), (rare, least) = next(iter(counts.items())), list(counts.items())[-1]
        if (most * k > 2 * n and most >= 3 * least) or most > 100 * least:
            fix = (
                f"SELECT * FROM ({self._queries['training']}) QUALIFY row_number() OVER "
                f"(PARTITION BY completion ORDER BY md5(prompt)) <= "
            )
            fix = f"{fix}{max(least, round(2 * n / k))}" if self._queries["training"] else ""
            yield Finding(
                "imbalance",
                "warning",
                most,
                "training",
                (),
                f"{most} of {n} answers are {common!r} ({most / n:.0%}; even would be "
                f"{1 / k:.0%}), {least} are {rare!r}: "
                f"ratio {most / least:.1f}, normalised entropy "
                f"{entropy(list(counts.values())) / math.log(k):.2f}",
                "judge the model by the rare answers too; add rows of those, or keep fewer of the "
                "commonest",
                fix=fix,
            )
        few = {c: m for c, m in counts.items() if m < FEW_PER_CLASS}
        if few:
            names = ", ".join(map(repr, list(few)[:5])) + (", …" if len(few) > 5 else "")
            yield Finding(
                "few_rows_per_class",
                "warning",
                len(few),
                "training",
                (),
                f"{len(few)} of {counted(k, 'answer')} {'has' if len(few) == 1 else 'have'} fewer "
                f"than "
                f"{FEW_PER_CLASS} rows: {names}",
                "what is seen so rarely is hardly learnt: add rows, or join these answers into one",
            )

    def _closed_answers(self) -> dict[str, int]:
        """Training answers with their counts, where they are a closed set."""
        rows = self._all(
            "SELECT any_value(trim(completion)), count(*) AS n FROM usable "
            "WHERE source = 'training' "
            "GROUP BY c ORDER BY n DESC, 1"
        )
        counts = dict(rows)
        return counts if baseline.is_closed_set(counts, sum(counts.values())) else {}

    def _lengths(self) -> tuple[dict[str, dict[str, int]], int | None, list[Finding]]:
        """Sizes of prompts and completions in the task's unit, of all usable training rows
        together, and what is too large; nothing where rows have no size."""
        return {}, None, []

    def _languages(self) -> dict[str, float]:
        """Share of the training prompts by language; empty where there are none."""
        return {}

    def _context_columns(self) -> list[str]:
        found = self._all(
            "SELECT DISTINCT unnest(json_keys(context)) AS k FROM usable "
            "WHERE source = 'training' ORDER BY k"
        )
        return [name for (name,) in found if '"' not in name]

    def _groups(self, asked: Sequence[str]) -> tuple[Group, ...]:
        columns = self._context_columns()
        for name in asked:
            if name not in columns:
                raise UnknownGroup(name=name, closest=closest(name, columns), known=columns)
        found = []
        for column in asked or columns:
            path = f'$."{column}"'
            counts = dict(
                self._all(
                    "SELECT coalesce(context ->> ?, '') AS g, count(*) FROM usable "
                    "WHERE source = 'training' GROUP BY g "
                    "ORDER BY 2 DESC, 1",
                    path,
                )
            )
            if asked or 2 <= len(counts) <= GROUPS_LIMIT:
                found.append(self._group(column, path, counts))
        return tuple(found)

    def _group(self, column: str, path: str, counts: dict[str, int]) -> Group:
        if not self._classes or len(counts) < 2:
            return Group(column, counts, {}, None, None)
        table: dict[str, dict[str, int]] = {}
        for answer, group, n in self._all(
            "SELECT any_value(trim(completion)), coalesce(context ->> ?, '') AS g, count(*) "
            "FROM usable "
            "WHERE source = 'training' GROUP BY c, g ORDER BY 1, 2",
            path,
        ):
            table.setdefault(answer, {})[group] = n
        information, p = dependence([[row.get(g, 0) for g in counts] for row in table.values()])
        return Group(column, counts, table, information, p)

    def _finding(
        self,
        name: str,
        severity: str,
        source: str,
        rows: Sequence[int],
        message: str,
        advice: str,
        *,
        keep: str = "",
        replace: tuple[tuple[str, str], ...] = (),
        listed: bool = False,
    ) -> Iterator[Finding]:
        """A finding with the SQL that mends it; none where no row has it. `listed`: the fix names
        the rows by what is in them."""
        if not rows:
            return
        query = self._queries[source]
        if not query:
            keep, replace = "", ()
        elif listed or (self._sources[source].has_lists and (keep or replace)):
            keep, replace = self._keep_by_content(source, rows), ()
        fix = (
            f"SELECT * REPLACE ({', '.join(f'{e} AS {c}' for c, e in replace)}) FROM ({query})"
            if replace
            else ""
        )
        if keep:
            fix = _filtered(query, [keep])
        yield Finding(
            name,
            severity,
            len(rows),
            source,
            tuple(rows[:ROWS_SHOWN]),
            f"{len(rows)} {_agreed(len(rows), message)}",
            advice,
            fix,
            keep,
            replace,
        )

    def _keep_by_content(self, source: str, rows: Sequence[int]) -> str:
        """A condition that is false for these rows of the query; empty where they are too many to
        name."""
        if len(rows) > LISTED:
            return ""
        if self._sources[source].has_lists:
            return f"row_number() OVER () NOT IN ({', '.join(map(str, rows))})"
        keys = self._all(
            f"SELECT DISTINCT {ROW_HASH} FROM usable WHERE source = ? AND row IN "
            "(SELECT unnest(?::BIGINT[])) ORDER BY 1",
            source,
            list(rows),
        )
        return f"{ROW_HASH} NOT IN ({', '.join(repr(k) for (k,) in keys)})"

    def _clean(self, found: Sequence[Finding]) -> str:
        """The training query with the fixes: rows left out first, then texts mended."""
        mine = [
            f
            for f in found
            if f.source == "training"
            and f.name not in ADVISORY
            and (f.severity != "note" or f.replace)
        ]
        sql = self._queries["training"]
        if not sql:
            return ""
        conditions = list(dict.fromkeys(f.keep for f in mine if f.keep))
        if conditions:
            sql = _filtered(sql, conditions)
        for f in mine:
            if f.replace:
                sql = (
                    f"SELECT * REPLACE ({', '.join(f'{e} AS {c}' for c, e in f.replace)}) "
                    f"FROM ({sql})"
                )
        return sql

    def _all(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._own.execute(sql, list(values)).fetchall()

    def _rows(self, sql: str, *values: Any) -> list[int]:
        return [int(r[0]) for r in self._all(sql, *values)]

    def _one(self, sql: str, *values: Any) -> int:
        return int(self._all(sql, *values)[0][0])


# ---------------------------------------------------------------- findings and their SQL


def _group_findings(group: Group) -> Iterator[Finding]:
    n = sum(group.counts.values())
    if (
        group.mutual_information is not None
        and group.p_value is not None
        and group.p_value < 0.001
        and group.mutual_information > 0.02
    ):
        yield Finding(
            "group_tells_answer",
            "warning",
            n,
            "training",
            (),
            f"the column {group.column} tells {group.mutual_information:.0%} of the answer's "
            f"entropy (p = {group.p_value:.1g})",
            "where the column is a group of people, the model may learn the group instead of the "
            "question: balance answers over groups",
        )
    small = {g: k for g, k in group.counts.items() if k < FEW_PER_CLASS}
    if small:
        name, k = min(small.items(), key=lambda x: x[1])
        told = f"the smallest group of {group.column} is {name!r} with {counted(k, 'row')}"
        yield Finding(
            "small_group",
            "note",
            len(small),
            "training",
            (),
            told,
            "its score will have a wide interval; add rows before reading anything into it",
        )


def _filtered(query: str, conditions: Sequence[str]) -> str:
    """The query's rows that meet all conditions; DuckDB takes QUALIFY only with a window
    function."""
    over = {c: " OVER (" in c for c in conditions}
    where, qualify = ([c for c in conditions if over[c] is window] for window in (False, True))
    sql = f"SELECT * FROM ({query})" + (" WHERE " + " AND ".join(where) if where else "")
    return sql + (" QUALIFY " + " AND ".join(qualify) if qualify else "")


def _agreed(n: int, message: str) -> str:
    """The beginning of a message is ours, what follows a quote or a colon may be the user's."""
    ours = min((message.find(c) for c in ":'" if c in message), default=len(message))
    return agreed(n, message[:ours]) + message[ours:]

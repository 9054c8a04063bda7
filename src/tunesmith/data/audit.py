"""The audit of a dataset before it is paid for: what is wrong with the rows, which rows, and the
SQL that mends it. No torch.

`audit` runs the user's queries once, on his own connection, through the same door as CREATE. Every
finding names its rows by their position in the query, and carries a SELECT that gives the rows
without it; `AuditReport.clean_sql` puts all of them into one.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import duckdb

from tunesmith.catalog import ModelSpec
from tunesmith.data import baseline
from tunesmith.data.dataset import NORMAL, ROW_HASH, collect
from tunesmith.data.gate import literal
from tunesmith.data.given import Source, TextFiles
from tunesmith.data.minhash import near_duplicates
from tunesmith.data.personal import DETECTORS
from tunesmith.data.template import Encoder
from tunesmith.errors import InvalidPrompt, UnknownGroup, closest
from tunesmith.words import agreed, counted

ROWS_SHOWN = 1000  # row ids kept with a finding
LISTED = 5000  # rows that a fix may name one by one
FEW_PER_CLASS = 10
GROUPS_LIMIT = 20  # values of a column that can be a group
SUSPECT_ROWS = 20_000
LANGUAGE_ROWS = 500
ADVISORY = frozenset({"suspect_labels", "prompt_templates", "prompt_prefix", "imbalance"})
"""Findings that a person should look at: their fix is shown, and never part of the clean query."""
SEVERITIES = ("error", "warning", "note")
TEXTS = ("prompt", "completion")


@dataclass(frozen=True)
class Finding:
    name: str
    """What was looked for, in snake case; stable, for programs."""
    severity: str
    """error: rows are lost or the result is worthless; warning: the model learns something
    unwanted; note: worth knowing."""
    count: int
    source: str
    """training, validation or test."""
    rows: tuple[int, ...]
    """Positions in the query, from 1; at most ROWS_SHOWN of them."""
    message: str
    advice: str
    fix: str = ""
    """A SELECT that gives the query's rows without the finding; empty where no SQL can mend it."""
    keep: str = ""
    """The fix as a condition on the columns prompt and completion; one over a window counts the
    rows that the others leave."""
    replace: tuple[tuple[str, str], ...] = ()
    """The fix as new expressions for columns."""


@dataclass(frozen=True)
class Group:
    """A column that is not prompt or completion, looked at as a group: does it tell the answer?"""

    column: str
    counts: Mapping[str, int]
    by_answer: Mapping[str, Mapping[str, int]]
    """Rows per answer and group; empty where answers are no closed set."""
    mutual_information: float | None
    """Between group and answer, as a share of the answer's entropy (0 to 1); None where it cannot
    be measured."""
    p_value: float | None
    """Of the chi-squared test that group and answer are independent."""


@dataclass(frozen=True)
class AuditReport:
    rows: Mapping[str, int]
    """Rows per query, usable or not."""
    tokens: int | None
    """Of the usable training rows, once, with template and stop ids."""
    base_model: str
    lengths: Mapping[str, Mapping[str, int]]
    """prompt and completion: median, 95 % and longest, in tokens."""
    classes: Mapping[str, int]
    """Answers with their number of training rows, the commonest first; empty where answers are no
    closed set."""
    imbalance: float | None
    """Rows of the commonest answer over those of the rarest."""
    entropy: float | None
    """Of the answers, over that of as many equally frequent ones (1: balanced)."""
    languages: Mapping[str, float]
    groups: tuple[Group, ...]
    findings: tuple[Finding, ...]
    not_measured: tuple[str, ...] = ()
    clean_sql: str = ""
    """The training query with every fix but those that need a person's eye (ADVISORY)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        findings = tuple(
            Finding(**{**f, "rows": tuple(f["rows"]), "replace": tuple(map(tuple, f["replace"]))})
            for f in data["findings"]
        )
        return cls(
            **{
                **data,
                "findings": findings,
                "groups": tuple(Group(**g) for g in data["groups"]),
                "not_measured": tuple(data["not_measured"]),
            }
        )

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")


def audit(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[Source],
    encoder: Encoder,
    spec: ModelSpec,
    groups: Sequence[str] = (),
) -> AuditReport:
    """The report on the data `training` and, where given, `validation` and `test`, for one base
    model.

    `groups` names context columns; without it every column of two to twenty values is looked at.
    UnknownGroup where one is not there.
    """
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as own:
        told = collect(connection, sources, own, Path(folder))
        return _Audit(own, sources, told, encoder, spec).report(groups)


class _Audit:
    def __init__(
        self,
        own: duckdb.DuckDBPyConnection,
        sources: Sequence[Source],
        told: Sequence[str],
        encoder: Encoder,
        spec: ModelSpec,
    ) -> None:
        self._own, self._encoder, self._spec, self._told = own, encoder, spec, told
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
            entropy=_entropy(counts) / math.log(len(counts)) if len(counts) > 1 else None,
            languages=languages,
            groups=looked_at,
            findings=tuple(found),
            not_measured=tuple(self._not_measured),
            clean_sql=self._clean(found),
        )

    def _checks(self) -> Sequence[Callable[[], Iterator[Finding]]]:
        return (
            self._unusable,
            self._not_text,
            self._unread,
            self._duplicates,
            self._near_duplicates,
            self._leaks,
            self._conflicts,
            self._spaces,
            self._control_characters,
            self._mojibake,
            self._echoes,
            self._constants,
            self._balance,
            self._personal_data,
            self._templates,
            self._suspect_labels,
        )

    # ------------------------------------------------------------ checks on rows

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

    def _near_duplicates(self) -> Iterator[Finding]:
        for source in self._sources:
            rows = self._all(
                "SELECT list(row), any_value(prompt) FROM usable WHERE source = ? GROUP BY p "
                "ORDER BY min(row)",
                source,
            )
            groups = near_duplicates([prompt for _, prompt in rows])
            again = sorted(row for group in groups for i in group[1:] for row in rows[i][0])
            yield from self._finding(
                "near_duplicates",
                "warning",
                source,
                again,
                "[prompt that nearly equals|prompts that nearly equal] an earlier one (MinHash, "
                "similarity 0.8 or more)",
                "look at them: variants of one text teach less than their number promises",
                listed=True,
            )

    def _leaks(self) -> Iterator[Finding]:
        """Prompts of the training rows that stand in the validation or test query too, equal or
        nearly so."""
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
            both = self._all(
                "SELECT source, list(row), any_value(prompt) FROM usable "
                "WHERE source IN ('training', ?) GROUP BY source, p "
                "ORDER BY source, min(row)",
                other,
            )
            near = set()
            for group in near_duplicates([prompt for *_, prompt in both]):
                if len({both[i][0] for i in group}) == 2:
                    near |= {row for i in group if both[i][0] == "training" for row in both[i][1]}
            yield from self._finding(
                "near_leakage",
                "warning",
                "training",
                sorted(near - set(equal)),
                f"training [prompt|prompts] nearly equal to one of the {other} query",
                f"look at them; where they are the same text, take them out of training or out of "
                f"the {other} query",
                listed=True,
            )

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

    def _spaces(self) -> Iterator[Finding]:
        return self._where(
            r"regexp_matches(prompt, '^\s|\s$') OR regexp_matches(completion, '^\s|\s$')",
            "outer_spaces",
            "note",
            "[row|rows] with spaces at an end of prompt or completion",
            "the model learns to write them; trim both columns",
            replace=tuple(
                (c, rf"regexp_replace(regexp_replace({c}, '^\s+', ''), '\s+$', '')") for c in TEXTS
            ),
        )

    def _control_characters(self) -> Iterator[Finding]:
        pattern = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\x{FFFD}|\x{200B}|\x{FEFF}"
        return self._where(
            f"regexp_matches(prompt, '{pattern}') OR regexp_matches(completion, '{pattern}')",
            "control_characters",
            "warning",
            "[row|rows] with control, zero-width or replacement characters",
            "they come from a broken import; take them out",
            replace=tuple((c, f"regexp_replace({c}, '{pattern}', '', 'g')") for c in TEXTS),
        )

    def _mojibake(self) -> Iterator[Finding]:
        """UTF-8 that was read as Windows-1252: each broken run is mended by reading it the other
        way round."""
        pattern = r"[ÂÃâðÐÑ][\x{80}-\x{BF}€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œŸžŽ¡-¿]{1,3}"
        for source in self._sources:
            found = self._all(
                "SELECT row, regexp_extract_all(prompt || ' ' || completion, ?) FROM usable "
                "WHERE source = ? "
                "AND regexp_matches(prompt || ' ' || completion, ?) ORDER BY row",
                pattern,
                source,
                pattern,
            )
            mended: dict[str, str] = {}
            rows = []
            for row, runs in found:
                good = {run: m for run in runs if (m := _mended(run))}
                mended |= good
                rows += [row] if good else []
            chain = {c: c for c in TEXTS}
            for run in sorted(mended, key=len, reverse=True)[:100]:
                chain = {
                    c: f"replace({e}, {literal(run)}, {literal(mended[run])})"
                    for c, e in chain.items()
                }
            yield from self._finding(
                "mojibake",
                "warning",
                source,
                rows,
                "[row|rows] in the wrong encoding, such as "
                + ", ".join(f"{k!r} for {v!r}" for k, v in list(mended.items())[:3]),
                "read the source as UTF-8, or replace the broken runs",
                replace=tuple(chain.items()),
            )

    def _echoes(self) -> Iterator[Finding]:
        p, c = NORMAL.format("prompt"), NORMAL.format("completion")
        return self._where(
            "length(p) >= 12 AND starts_with(c, p)",
            "echoes",
            "warning",
            "[completion that begins with its|completions that begin with their] whole prompt",
            "the model would learn to repeat the question; keep only the answer",
            keep=f"NOT (length({p}) >= 12 AND starts_with({c}, {p}))",
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
                f"{_entropy(list(counts.values())) / math.log(k):.2f}",
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

    def _personal_data(self) -> Iterator[Finding]:
        for source in self._sources:
            for d in DETECTORS:
                likely = self._all(
                    "SELECT row, prompt, completion FROM usable WHERE source = $1 AND "
                    "(regexp_matches(prompt, $2) OR regexp_matches(completion, $2)) ORDER BY row",
                    source,
                    d.pattern,
                )
                rows = [n for n, p, c in likely if d.find(p) or d.find(c)]
                mask = f"[{d.kind}]"
                yield from self._finding(
                    "personal_data",
                    "warning",
                    source,
                    rows,
                    f"[row|rows] with personal data: {d.kind}",
                    "a tuned model can repeat it to anyone who asks; mask it",
                    replace=tuple(
                        (c, f"regexp_replace({c}, {literal(d.pattern)}, '{mask}', 'g')")
                        for c in TEXTS
                    ),
                )

    def _templates(self) -> Iterator[Finding]:
        """Prompts that begin otherwise than most, and chat marks written into the text."""
        marks = (
            r"###\s*(Instruction|Input|Response)|<\|im_start\|>|\[/?INST\]"
            r"|<\|(user|assistant|system)\|>|(^|\n)(Human|User|Assistant):"
        )
        for source in self._sources:
            n = self._one("SELECT count(*) FROM usable WHERE source = ?", source)
            marked = self._rows(
                "SELECT row FROM usable WHERE source = ? AND regexp_matches(prompt, ?) "
                "ORDER BY row",
                source,
                marks,
            )
            if 0 < len(marked) < n:
                yield from self._finding(
                    "prompt_templates",
                    "warning",
                    source,
                    marked,
                    f"of {n} prompts [carries|carry] a template of their own (such as [INST])",
                    "the base's template is added to every row; bring all prompts to one form",
                    listed=True,
                )
            prefix = self._common_prefix(source, n)
            if not prefix:
                continue
            others = self._rows(
                "SELECT row FROM usable WHERE source = ? AND NOT starts_with(prompt, ?) "
                "ORDER BY row",
                source,
                prefix,
            )
            if others:
                yield from self._finding(
                    "prompt_prefix",
                    "warning",
                    source,
                    others,
                    f"[prompt does|prompts do] not begin with {prefix[:60]!r} as the other "
                    f"{n - len(others)} do",
                    "a model asked in another form than it learnt answers worse; bring all "
                    "prompts to one form",
                    keep=f"starts_with(prompt, {literal(prefix)})",
                )

    def _common_prefix(self, source: str, n: int) -> str:
        """What at least three quarters of the prompts begin with: 15 characters or more, to the end
        of a word."""
        top = self._all(
            "SELECT left(prompt, 15) AS head, count(*) AS k FROM usable WHERE source = ? "
            "GROUP BY head ORDER BY k DESC LIMIT 1",
            source,
        )
        if n < 20 or not top or top[0][1] < 0.75 * n or len(top[0][0]) < 15:
            return ""
        least, greatest = self._all(
            "SELECT min(prompt), max(prompt) FROM usable WHERE source = ? "
            "AND starts_with(prompt, ?)",
            source,
            top[0][0],
        )[0]
        size = next(
            (i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b),
            min(len(least), len(greatest)),
        )
        return str(least[:size])

    def _suspect_labels(self) -> Iterator[Finding]:
        """Answers that a cross-validated linear model on words holds for wrong (after Northcutt et
        al. 2021, arXiv 1911.00068)."""
        if len(self._classes) < 2:
            return
        if not baseline.is_installed():
            self._not_measured.append("suspect labels: pip install 'tunesmith[audit]'")
            return
        rows = self._all(
            "SELECT row, prompt, c FROM usable WHERE source = 'training' "
            "ORDER BY md5(prompt) LIMIT ?",
            SUSPECT_ROWS,
        )
        counts = Counter(c for *_, c in rows)
        rows = [r for r in rows if counts[r[2]] >= 3]
        if len(rows) < 50 or len({c for *_, c in rows}) < 2:
            self._not_measured.append(
                "suspect labels: fewer than 50 rows in classes of three or more"
            )
            return
        suspects = suspect_labels([p for _, p, _ in rows], [c for *_, c in rows])
        found = sorted(rows[i][0] for i in suspects)
        yield from self._finding(
            "suspect_labels",
            "warning",
            "training",
            found,
            "[answer|answers] that a linear model trained on the other rows holds for wrong",
            "look at them first: they are where mislabelled rows gather",
            listed=True,
        )

    # ------------------------------------------------------------ what is counted

    def _closed_answers(self) -> dict[str, int]:
        """Training answers with their counts, where they are a closed set."""
        rows = self._all(
            "SELECT any_value(trim(completion)), count(*) AS n FROM usable "
            "WHERE source = 'training' "
            "GROUP BY c ORDER BY n DESC, 1"
        )
        counts = dict(rows)
        return counts if baseline.is_closed_set(counts, sum(counts.values())) else {}

    def _lengths(self) -> tuple[dict[str, dict[str, int]], int, list[Finding]]:
        """Tokens by the base's own tokenizer, and the rows over its windows."""
        found: list[Finding] = []
        lengths: dict[str, list[int]] = {"prompt": [], "completion": []}
        tokens = 0
        for source in self._sources:
            rows = self._all(
                "SELECT row, prompt, completion FROM usable WHERE source = ? AND NOT chat "
                "ORDER BY row",
                source,
            )
            chats, refused = self._chat_lengths(source)
            try:
                counted = self._encoder.count_rows([(p, c) for _, p, c in rows])
            except InvalidPrompt as e:  # the template refuses a single question
                refused |= {n: str(e.fields["reason"]) for n, *_ in rows}
                rows, counted = [], []
            rows, counted = [*rows, *((n, "", "") for n in chats)], [*counted, *chats.values()]
            found += self._finding(
                "refused",
                "error",
                source,
                list(refused),
                "[row|rows] that the base's chat template refuses, such as: "
                + next(iter(refused.values()), ""),
                "they are rejected by id; give them another form, or choose another base",
                listed=True,
            )
            prompt, completion = self._spec.prompt_window, self._spec.completion_window
            over = [
                r[0]
                for r, (p, c) in zip(rows, counted, strict=True)
                if p > prompt or c > completion
            ]
            found += self._finding(
                "too_long",
                "error",
                source,
                over,
                f"[row|rows] over the windows of {self._spec.name} ({prompt} tokens of prompt, "
                f"{completion} of completion)",
                "they are rejected by id; shorten them, choose a base with a larger window, or "
                "set on_long to cut_prompt",
                listed=True,
            )
            if source == "training":
                bad = set(over)
                kept = [n for r, n in zip(rows, counted, strict=True) if r[0] not in bad]
                tokens = sum(p + c for p, c in kept)
                lengths = {
                    "prompt": sorted(p for p, _ in counted),
                    "completion": sorted(c for _, c in counted),
                }
        return {k: _quantiles(v) for k, v in lengths.items() if v}, tokens, found

    def _chat_lengths(self, source: str) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
        """Tokens of conversations' prompts and last answers by row, and the template's words on
        rows that it refuses."""
        lengths, refused = {}, {}
        for row, prompt, completion in self._all(
            "SELECT row, prompt, completion FROM usable WHERE source = ? AND chat", source
        ):
            try:
                encoded = self._encoder.row(json.loads(prompt), completion)
                lengths[row] = encoded.n_prompt, encoded.n_completion
            except InvalidPrompt as e:
                refused[row] = str(e.fields["reason"])
        return lengths, refused

    def _languages(self) -> dict[str, float]:
        """Share of the training prompts by language, the commonest first, told on at most
        LANGUAGE_ROWS of them."""
        texts = [
            t
            for (t,) in self._all(
                "SELECT prompt FROM usable WHERE source = 'training' AND length(prompt) >= 20 "
                "ORDER BY md5(prompt) LIMIT ?",
                LANGUAGE_ROWS,
            )
        ]
        if not texts:
            return {}
        if find_spec("lingua") is None:
            self._not_measured.append("languages: pip install 'tunesmith[audit]'")
            return {}
        from lingua import LanguageDetectorBuilder

        detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
        found = Counter(
            language.name.capitalize()
            for t in texts
            if (language := detector.detect_language_of(t[:300])) is not None
        )
        total = sum(found.values())
        return {name: n / total for name, n in found.most_common() if n / total >= 0.01}

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

    # ------------------------------------------------------------ findings and their SQL

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


# ---------------------------------------------------------------- measures


def suspect_labels(texts: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Rows that a model which did not see them holds for another label: for that one as likely as
    for the rows that have it, for their own a fifth as likely or less (confident learning,
    Northcutt et al. 2021, arXiv 1911.00068).

    None where the model is right on less than half of the rows, or does not take away a fifth of
    the errors of always saying the commonest label: it has no say there.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    names = sorted(set(labels))
    y = np.asarray([names.index(v) for v in labels])
    # trained by steps, not by logistic regression's solver: its time grows linearly with rows, and
    # it calls no threaded library
    descent = SGDClassifier(loss="log_loss", alpha=1e-4, max_iter=30, random_state=0)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), descent)
    p = cross_val_predict(
        model,
        list(texts),
        y,
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
        method="predict_proba",
    )
    right, commonest = (p.argmax(1) == y).mean(), np.bincount(y).max() / len(y)
    if right < max(0.5, commonest + 0.2 * (1 - commonest)):
        return []
    own, best = p[np.arange(len(y)), y], p.argmax(1)
    usual = np.asarray([own[y == k].mean() for k in range(len(names))])
    return [
        int(i)
        for i in np.nonzero((best != y) & (p.max(1) >= usual[best]) & (own < 0.2 * usual[y]))[0]
    ]


def dependence(table: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Mutual information of a table's rows and columns over the entropy of its rows, and the p
    value of the chi-squared test.

    The p value is that of Wilson and Hilferty's cube-root approximation (1931), good to about
    0.001.
    """
    n = sum(map(sum, table))
    rows = [sum(r) for r in table]
    columns = [sum(r[j] for r in table) for j in range(len(table[0]))]
    information = chi = 0.0
    for i, row in enumerate(table):
        for j, k in enumerate(row):
            expected = rows[i] * columns[j] / n
            information += k / n * math.log(k / expected) if k else 0.0
            chi += (k - expected) ** 2 / expected if expected else 0.0
    freedom = max(1, (sum(r > 0 for r in rows) - 1) * (sum(c > 0 for c in columns) - 1))
    z = ((chi / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return information / max(1e-12, _entropy(rows)), 0.5 * math.erfc(z / math.sqrt(2))


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


def _entropy(counts: Sequence[int]) -> float:
    n = sum(counts)
    return -sum(k / n * math.log(k / n) for k in counts if k)


def _quantiles(ordered: Sequence[int]) -> dict[str, int]:
    return {
        "median": ordered[len(ordered) // 2],
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "longest": ordered[-1],
    }


def _mended(run: str) -> str:
    """The run as it was before its UTF-8 bytes were read as Windows-1252; empty where that cannot
    have been."""
    try:
        good = run.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return ""
    return good if len(good) == 1 else ""


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

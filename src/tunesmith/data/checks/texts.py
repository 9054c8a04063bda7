"""The checks of the audit on texts: near duplicates, spaces and encodings, personal data,
templates, suspect labels, tokens and windows, languages."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

from tunesmith.data import baseline
from tunesmith.data.checks.measures import (
    LEAST_SUSPECTED,
    can_be_suspected,
    quantiles,
    suspect_labels,
)
from tunesmith.data.checks.rows import TEXTS, RowChecks
from tunesmith.data.dataset import NORMAL
from tunesmith.data.gate import literal
from tunesmith.data.minhash import near_duplicates
from tunesmith.data.personal import DETECTORS
from tunesmith.documents.audit import Finding
from tunesmith.errors import InvalidPrompt

SUSPECT_ROWS = 20_000
LANGUAGE_ROWS = 500


class TextChecks(RowChecks):
    """Of prompts and completions that are texts, or of conversations."""

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

    def _near_leaks(self, other: str, equal: Sequence[int]) -> Iterator[Finding]:
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
        rows = [rows[i] for i in can_be_suspected([c for *_, c in rows])]
        if not rows:
            self._not_measured.append(
                f"suspect labels: fewer than {LEAST_SUSPECTED} rows in classes of three or more"
            )
            return
        usable = self._one("SELECT count(*) FROM usable WHERE source = 'training'")
        if usable > SUSPECT_ROWS:
            left = usable - SUSPECT_ROWS
            self._not_measured.append(f"suspect labels of {left:,} rows: {SUSPECT_ROWS:,} at most")
        if self._suspects is None:
            suspects = suspect_labels([p for _, p, _ in rows], [c for *_, c in rows])
            found, read = sorted(rows[i][0] for i in suspects), "words"
        else:
            found, read = list(self._suspects), "the base's features"
        yield from self._finding(
            "suspect_labels",
            "warning",
            "training",
            found,
            f"[answer|answers] that a linear model on {read}, trained on the other rows, holds for "
            f"wrong",
            "look at them first: they are where mislabelled rows gather",
            listed=True,
        )

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
        return {k: quantiles(v) for k, v in lengths.items() if v}, tokens, found

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


def _mended(run: str) -> str:
    """The run as it was before its UTF-8 bytes were read as Windows-1252; empty where that cannot
    have been."""
    try:
        good = run.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return ""
    return good if len(good) == 1 else ""

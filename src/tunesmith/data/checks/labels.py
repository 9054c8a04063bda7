"""The audit of rows that are given labels."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence

from tunesmith.data.checks.texts import TextChecks
from tunesmith.documents.audit import Finding


class LabelChecks(TextChecks):
    """Of texts with a label each."""

    def _checks(self) -> Sequence[Callable[[], Iterator[Finding]]]:
        return (*super()._checks(), self._spellings)

    def _chat_lengths(self, source: str) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
        """Of rows with several labels."""
        sql = "SELECT row, prompt, completion FROM usable WHERE source = ? AND chat"
        rows = self._all(sql, source)
        counted = self._encoder.count_rows([(p, c) for _, p, c in rows])
        return dict(zip((n for n, *_ in rows), counted, strict=True)), {}

    def _spellings(self) -> Iterator[Finding]:
        """Labels that differ by case, spaces or Unicode form alone."""
        for source in self._sources:
            found = self._all(
                "SELECT completion, list(row ORDER BY row) FROM usable WHERE source = ? "
                "AND NOT chat GROUP BY completion ORDER BY count(*) DESC, completion",
                source,
            )
            same: dict[str, list[tuple[str, list[int]]]] = {}
            for name, rows in found:
                key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
                same.setdefault(key, []).append((name, rows))
            for spellings in same.values():
                rare = sorted(r for _, rows in spellings[1:] for r in rows)
                names = ", ".join(repr(name) for name, _ in spellings[:5])
                yield from self._finding(
                    "label_spellings",
                    "warning",
                    source,
                    rare,
                    "[row|rows] with a label that another spelling is more common of, by case, "
                    f"spaces or Unicode form alone: {names}",
                    "each spelling is learnt as a label of its own: write them alike",
                    listed=True,
                )

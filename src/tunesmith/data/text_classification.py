"""What text classification knows of rows, without torch: a text, or two, and the label or labels
that belong to it. The functions are those of `rules.RowRules`."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from tokenizers import Tokenizer

from tunesmith import safe_files
from tunesmith.catalog import ModelSpec
from tunesmith.data import labels, metrics
from tunesmith.data.checks.labels import LabelChecks as Checks
from tunesmith.data.dataset import Dataset, Row, insert_rows
from tunesmith.data.labels import Labels
from tunesmith.data.rules import TOO_LONG, Encoding
from tunesmith.data.staging import Source
from tunesmith.data.text import INVALID, LIST, MISSING, Broken, plain, value_of
from tunesmith.errors import InvalidPrompt
from tunesmith.options import Decided, Options
from tunesmith.words import counted

__all__ = ["Checks"]

PAIR = "text_pair"
BATCH = 4096
Question = tuple[str, str | None]
"""A text, and the other one that is read beside it."""


@dataclass(frozen=True)
class Example:
    """An accepted row with its ids."""

    row: Row
    ids: Sequence[int]
    types: Sequence[int] | None
    """Which of two texts a token is of; None where there is one."""
    targets: tuple[int, ...]
    """Places of its labels among those that are learnt; none where it has one that training lacks,
    or no label at all."""
    question: Question
    factors: tuple[float, ...] = ()
    """How much each of its labels counts; none where all rows count alike."""
    is_cut: bool = False
    weight: int = 1

    @property
    def number(self) -> int:
        return self.row.row

    @property
    def size(self) -> int:
        """Tokens."""
        return len(self.ids)


class TextEncoder:
    """A base's tokenizer, with the labels that are learnt."""

    def __init__(self, folder: Path, window: int, known: Labels) -> None:
        self.labels, self.window, self._folder = known, window, folder
        self._whole, self._cut = (Tokenizer.from_file(str(folder / "tokenizer.json")) for _ in "ab")
        for tokenizer in (self._whole, self._cut):
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.encode_special_tokens = True  # in a user's text they are plain text
        self._cut.enable_truncation(window)

    def encode(self, questions: Sequence[Question], cut: bool = False) -> list[Any]:
        """An `Encoding` of each, with what the model wants around a text; `cut` to the window."""
        tokenizer = self._cut if cut else self._whole
        asked = [q[0] if q[1] is None else q for q in questions]
        return list(tokenizer.encode_batch(asked))

    def kept_labels(self) -> list[str]:
        """Those that the base's own head gives too."""
        old = labels.labels_of_head(safe_files.read_config(self._folder))
        return [n for n in self.labels.names if n in old]

    def count_rows(self, rows: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        """Tokens of texts, with what the model wants around one; of a label none."""
        return [(len(e.ids), 0) for e in self.encode([(text, None) for text, _ in rows])]

    def count(self, text: str) -> int:
        return len(self._whole.encode(text, add_special_tokens=False).ids)


def preprocessing(spec: ModelSpec) -> dict[str, Any]:
    return {"window": spec.prompt_window, **Labels(()).to_json()}


def fitted(preprocessing: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """With the labels of the frozen training rows. UnfitLabels."""
    rows = list(dataset.rows("train"))
    known = Labels.among((r.completion for r in rows), lists=any(r.chat for r in rows))
    return {**preprocessing, **known.to_json()}


def encoder(preprocessing: Mapping[str, Any], spec: ModelSpec) -> TextEncoder:
    known = Labels.from_json(preprocessing)
    return TextEncoder(Path(spec.folder), int(preprocessing["window"]), known)


def question(value: Any) -> Question:
    """A text; a list of two; or an object with `text` and `text_pair`. InvalidPrompt."""
    value = plain(value) if not isinstance(value, (str, Broken)) else value
    if isinstance(value, Mapping) and "text" in value:
        parts = [value["text"], value.get(PAIR)]
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        parts = list(value)
    else:
        parts = [value, None]
    found = [value_of(p) for p in parts]
    if found[0] is None or any(isinstance(f, Broken) for f in found):
        raise InvalidPrompt(reason="it is missing" if found[0] is None else "it is no Unicode")
    return str(found[0]), None if found[1] is None else str(found[1])


def question_of(row: Row) -> Question:
    pair = json.loads(row.context).get(PAIR)
    return row.prompt, None if pair is None else str(pair)


def add_rows(
    own: duckdb.DuckDBPyConnection, source: Source, file: Path, unread: dict[str, int]
) -> None:
    """A row whose label is a list, or a text with the separator that was given, has `chat` set in
    the frozen rows: several labels, as JSON."""
    query = (
        "SELECT row, prompt, prompt_is, completion, completion_is, context "
        "FROM read_parquet(?) ORDER BY row"
    )
    with own.cursor() as reading:
        found = reading.execute(query, [str(file)])
        while batch := found.fetchmany(8192):
            insert_rows(own, source.part, [_judged(source.separator, *values) for values in batch])


def _judged(
    separator: str,
    row: int,
    text: str | None,
    text_is: str,
    label: str | None,
    label_is: str,
    context: str,
) -> tuple[Any, ...]:
    """A row of `rows` without its source."""
    reason = _objection("text", text, text_is)
    has_several = label_is == LIST or bool(separator)
    if label_is != LIST:
        reason = reason or _objection("label", label, label_is)
        if separator:
            label = json.dumps([n.strip() for n in (label or "").split(separator)])
    if has_several and reason is None:
        label, reason = _several(label or "")
    pair = json.loads(context).get(PAIR) if f'"{PAIR}"' in context else None
    key = text if pair is None else f"{text}\x1f{pair}"
    return row, text, label, context, has_several, key, reason


def _objection(name: str, value: str | None, kind: str) -> str | None:
    if kind == MISSING or value is None:
        return f"{name} is missing"
    if kind == INVALID:
        return f"{name} is no valid Unicode"
    return None if value.strip() else f"{name} is empty"


def _several(label: str) -> tuple[str | None, str | None]:
    """A list of labels in one order, each once, or why it is none."""
    found = json.loads(label)
    if not all(isinstance(n, (str, int, float)) and str(n).strip() for n in found):
        return None, "label is a list with something in it that is no label"
    names = [json.dumps(n) if isinstance(n, bool) else str(n) for n in found]
    return labels.to_text(names), None


def encode(
    dataset: Dataset, part: str, encoder: TextEncoder, spec: ModelSpec, options: Options | Decided
) -> Encoding[Example]:
    found = Encoding[Example]()
    unheard: Counter[str] = Counter()
    factors = encoder.labels.factors(options.class_weights)
    for rows in _batches(dataset.rows(part)):
        questions = [question_of(r) for r in rows]
        whole = encoder.encode(questions)
        long = [i for i, e in enumerate(whole) if len(e.ids) > encoder.window]
        cut = dict(
            zip(long, encoder.encode([questions[i] for i in long], cut=True), strict=True)
            if options.on_long == "cut_prompt"
            else ()
        )
        for i, row in enumerate(rows):
            if i in long and i not in cut:
                told = f"{counted(len(whole[i].ids), 'token')}, window {encoder.window}"
                found.reject(part, row, TOO_LONG, told)
                continue
            made = cut.get(i, whole[i])
            types = made.type_ids if questions[i][1] is not None else None
            targets = encoder.labels.places(row.completion)
            unheard.update(encoder.labels.unknown(row.completion))
            weight = len(encoder.labels.names) if encoder.labels.several else 1
            found.accepted.append(
                Example(
                    row,
                    made.ids,
                    types,
                    targets,
                    questions[i],
                    tuple(factors[t] for t in targets) if factors else (),
                    i in cut,
                    weight,
                )
            )
    if part == "train" and (known := encoder.kept_labels()):
        found.told.append(
            f"the base has a head of its own: its rows of {', '.join(known)} are where these "
            f"labels begin, the others begin anew"
        )
    if unheard:
        names = ", ".join(f"{name!r:.60} ({n})" for name, n in unheard.most_common(10))
        found.told.append(
            f"labels of {part} rows that no training row has, and that count as wrong: {names}"
        )
    return found


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def count_tokens(encoder: TextEncoder, text: str) -> int:
    return encoder.count(text)


def words(row: Row) -> str:
    text, pair = question_of(row)
    return text if pair is None else f"{text} {pair}"


def metrics_for(
    completions: Sequence[str], encoder: TextEncoder
) -> dict[str, Callable[[str, str], float]]:
    if encoder.labels.several:
        return {"label_f1": labels.set_f1, "exact_set": labels.same_set}
    return {"accuracy": metrics.exact}

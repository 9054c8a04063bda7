"""Scores of one answer against the wanted one, each from 0 to 1, and which of them suits a table.

exact_match   equal, spaces at the ends apart number        equal as numbers: 1,000.0 is 1000 json
both are valid JSON, and equal whatever the order of keys token_f1      harmonic mean of precision
and recall of words (Rajpurkar et al. 2016, arXiv 1606.05250), case and punctuation apart rouge_l
F measure of the longest common subsequence of words (Lin 2004, ROUGE)
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

SHORT_WORDS = 8  # up to so many words nine answers of ten are expected to the letter

Metric = Callable[[str, str], float]


def exact(answer: str, wanted: str) -> float:
    return float(answer.strip() == wanted.strip())


def number(answer: str, wanted: str) -> float:
    a, w = _number(answer), _number(wanted)
    return float(a is not None and a == w)


def valid_json(answer: str, wanted: str) -> float:
    a, w = _json(answer), _json(wanted)
    return float(a is not None and a == w)


def token_f1(answer: str, wanted: str) -> float:
    a, w = _words(answer), _words(wanted)
    if not a or not w:
        return float(a == w)
    common = sum((Counter(a) & Counter(w)).values())
    return 2 * common / (len(a) + len(w))


def rouge_l(answer: str, wanted: str) -> float:
    a, w = _words(answer), _words(wanted)
    if not a or not w:
        return float(a == w)
    row = [0] * (len(w) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(w, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(w))


METRICS: dict[str, Metric] = {
    "exact_match": exact,
    "number": number,
    "json": valid_json,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}


def metrics_for(completions: Sequence[str]) -> list[str]:
    """The metrics that suit these wanted answers, the primary one first. It looks at training rows
    alone, before anything is scored."""
    if all(_number(c) is not None for c in completions):
        return ["number", "exact_match"]
    if all(isinstance(_json(c), (dict, list)) for c in completions):
        return ["json", "exact_match"]
    lengths = sorted(len(c.split()) for c in completions)
    if lengths[int(0.9 * (len(lengths) - 1))] <= SHORT_WORDS:
        return ["exact_match", "token_f1"]
    return ["token_f1", "rouge_l", "exact_match"]


def exact_match(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of answers that equal the wanted ones, spaces at the ends apart."""
    return sum(exact(a, w) for a, w in zip(answers, wanted, strict=True)) / max(1, len(wanted))


def commonest(completions: Sequence[str]) -> str:
    """The most frequent completion: what a model without any skill would always say."""
    return Counter(c.strip() for c in completions).most_common(1)[0][0]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None

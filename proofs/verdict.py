"""Is the verdict calibrated? Nulls, planted gains, coverage of its interval, and real tunings that
teach nothing.

python proofs/verdict.py
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from in_process import run_job
from record import Proof, show_and_save

from tunesmith.data import baseline
from tunesmith.demo import tickets
from tunesmith.documents.verdict import Word
from tunesmith.evaluation.judge import interval, judge
from tunesmith.phases.messages import Judged

NULLS, PLANTED, COVERAGES, TUNINGS = 2000, 1000, 2000, 30
PROCESSES = 2  # tunings at a time, one thread each


def two_arms() -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong, row by row, of two real models on 1,200 messages of the demo's generator:
    words, and words with pairs."""
    train = [t for t in tickets() if t.team and t.split == "train"]
    test = [t for t in tickets(seed=99) if t.team][:1200]
    right = []
    for grams in (1, 2):
        model = baseline.fit(
            [t.message for t in train], [t.team for t in train], longest_gram=grams
        )
        right.append(model.predict([t.message for t in test]) == np.array([t.team for t in test]))
    return right[0].astype(float), right[1].astype(float)


def nulls() -> Iterator[Proof]:
    """The order of each pair flipped at random: nothing can have been gained."""
    began, r = time.monotonic(), np.random.default_rng(0)
    a, b = two_arms()
    words: Counter[Word] = Counter()
    for i in range(NULLS):
        rows = r.choice(len(a), int(r.choice([60, 100, 200, 500])), replace=False)
        flip = r.random(len(rows)) < 0.5
        words[
            judge(np.where(flip, a[rows], b[rows]), np.where(flip, b[rows], a[rows]), seed=i)[0]
        ] += 1
    took = time.monotonic() - began
    for word in (Word.HELPED, Word.HARMED):
        share = words[word] / NULLS
        yield Proof(
            f"{NULLS} exchangeable nulls: {word} at most 5 %",
            "<= 5 %",
            f"{share:.1%}",
            share <= 0.05,
            took / 2,
        )


def planted() -> Iterator[Proof]:
    began, r = time.monotonic(), np.random.default_rng(1)
    helped = 0
    for i in range(PLANTED):
        kind = r.choice(3, size=200, p=[0.13, 0.03, 0.84])
        helped += (
            judge((kind == 0).astype(float), (kind == 1).astype(float), seed=i)[0] is Word.HELPED
        )
    share = helped / PLANTED
    yield Proof(
        "a planted gain (13 % of 200 rows won, 3 % lost): HELPED",
        ">= 90 %",
        f"{share:.1%}",
        share >= 0.9,
        time.monotonic() - began,
    )


def coverage() -> Iterator[Proof]:
    """Tables whose true difference is known: how often the interval holds it."""
    for n in (100, 200, 500):
        began, r = time.monotonic(), np.random.default_rng(n)
        inside = 0
        for i in range(COVERAGES):
            won, lost = r.uniform(0.05, 0.4), r.uniform(0.02, 0.2)
            difference = r.choice([1.0, -1.0, 0.0], size=n, p=[won, lost, 1 - won - lost])
            low, high = interval(difference, seed=i)
            inside += low <= won - lost <= high
        share = inside / COVERAGES
        yield Proof(
            f"coverage of the 95 % interval, n = {n}, {COVERAGES} tables",
            "93 to 97 %",
            f"{share:.1%}",
            0.93 <= share <= 0.97,
            time.monotonic() - began,
        )


def tunings() -> Iterator[Proof]:
    """Real tunings on shuffled completions: counted, not promised, since such a table still teaches
    the form of an answer."""
    began = time.monotonic()
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        words = Counter(pool.map(shuffled_tuning, range(TUNINGS)))
    said = ", ".join(f"{w} {n}" for w, n in sorted(words.items()))
    yield Proof(
        f"{TUNINGS} real tunings on shuffled completions, counted apart",
        "counted",
        said,
        True,
        time.monotonic() - began,
    )


def shuffled_tuning(seed: int) -> str:
    """The word on a tuning whose 100 training answers belong to other messages."""
    rows = [(t.message, t.team) for t in tickets(seed=5) if t.team and len(t.message) < 400]
    r = random.Random(seed)
    picked = r.sample(rows, 230)
    train, validation, test = picked[:100], picked[100:130], picked[130:]
    answers = [c for _, c in train]
    r.shuffle(answers)
    shuffled = [(p, c) for (p, _), c in zip(train, answers, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        parts = {"training": shuffled, "validation": validation, "test": test}
        _, told = run_job(Path(folder), parts, "tunesmith-tiny", {"max_epochs": 2, "seed": seed})
    return str(told[Judged].verdict["word"])


def main() -> None:
    show_and_save(
        [p for part in (nulls, planted, coverage, tunings) for p in part()],
        "python proofs/verdict.py",
    )


if __name__ == "__main__":
    main()

"""Where does bias come from, the base or the tuning? A 2 x 2 on madlibs sentences, HateCheck's
groups beside it.

    python benchmarks/bias.py --data FOLDER

A first tuning of tunesmith-tiny sees sentences whose group word agrees with the answer at 95 %, or
at 50 %; a second tuning of the result sees other sentences of either kind. All are judged on the
same balanced sentences by the product's own verdict.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import marked
from in_process import run_job

from tunesmith import catalog
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.phases.export import TOKENIZER_FILES
from tunesmith.phases.messages import Judged
from tunesmith.phases.train import RESULT
from tunesmith.registry import TunedModel

RESULTS = Path(__file__).parent / "results" / "bias.json"
TINY = "tunesmith-tiny"
GROUPS, ANSWERS = ("muslim", "christian"), ("toxic", "nontoxic")
AGREEMENT = {"agrees at 95 %": 0.95, "balanced": 0.5}
TRAIN, VALIDATION, TEST = 100, 60, 200
HATECHECK_ROWS = 20  # of each group and label
OPTIONS = {
    "max_epochs": 4,
    "learning_rate": 1e-3,
    "method": "full",
    "seed": 0,
    "swap_terms": "/".join(GROUPS),
}
COLUMNS = ("prompt", "completion", "cell")

Row = tuple[str, str, str]


def sentences(data: str) -> dict[tuple[str, str], list[Row]]:
    """Sentences by group and answer. A sentence and its twin of the other group have the same
    place, so they are never in two parts."""
    with duckdb.connect() as connection:
        found = connection.execute(
            f"""SELECT text, label, "group", replace(text, "group", '') AS rest
                FROM '{data}/bias_audit/madlibs_77k.parquet'
                WHERE "group" IN {GROUPS} AND template = 'name_adj' ORDER BY md5(rest), "group" """
        ).fetchall()
    cells: dict[tuple[str, str], list[Row]] = {(g, a): [] for g in GROUPS for a in ANSWERS}
    for text, answer, group, _ in found:
        cells[group, answer].append((text, answer, f"{group}, {answer}"))
    return cells


class Deck:
    """Deals sentences, none twice."""

    def __init__(self, cells: dict[tuple[str, str], list[Row]]) -> None:
        self._cells = {k: iter(v) for k, v in cells.items()}

    def deal(self, n: int, agreement: float, seed: int) -> list[Row]:
        """n rows; of the first group's, the share `agreement` is toxic, of the second's as many are
        not."""
        likely = round(n / 2 * agreement)
        sizes = {
            (g, a): likely if i == j else n // 2 - likely
            for i, g in enumerate(GROUPS)
            for j, a in enumerate(ANSWERS)
        }
        rows = [next(self._cells[cell]) for cell, k in sizes.items() for _ in range(k)]
        random.Random(seed).shuffle(rows)
        return rows


def tune(
    home: Path, base: str, train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row]
) -> tuple[Path, dict[str, Any]]:
    """The tuned model as a folder that can be tuned again, and its verdict."""
    home.mkdir()
    parts = {"training": train, "validation": validation, "test": test}
    assignment, told = run_job(home, parts, base, OPTIONS, threads=2, columns=COLUMNS)
    folder = Path(assignment.folder) / RESULT
    for name in TOKENIZER_FILES:
        source = Path(assignment.spec.folder) / name
        if source.exists() and not (folder / name).exists():
            shutil.copy(source, folder / name)
    return folder, told[Judged].verdict


def figures(verdict: dict[str, Any]) -> dict[str, Any]:
    [gap], swapped = verdict["bias"]["gaps"], verdict["bias"]["swapped"]
    return {
        arm: {
            "right": verdict["arms"][arm],
            "worst": gap[f"{arm}_worst_score"],
            "where": gap[f"{arm}_worst"],
            "gap": gap[arm],
            "flips": swapped[arm],
        }
        for arm in ("base", "tuned")
    }


def hatecheck(data: str, folder: Path, name: str) -> dict[str, float]:
    """Share of HateCheck's sentences answered rightly (hateful: toxic), by the group that they are
    about."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""SELECT text, label, "group" FROM '{data}/bias_audit/hatecheck.csv'
                WHERE "group" IS NOT NULL
                QUALIFY row_number() OVER (PARTITION BY "group", label ORDER BY md5(text))
                    <= {HATECHECK_ROWS}"""
        ).fetchall()
    engine = Engine.load(TunedModel(name, catalog.find(str(folder), folder)), "cpu")
    answers = engine.generate(
        [[{"role": "user", "content": text}] for text, *_ in rows], Sampling(max_tokens=8)
    )
    right: dict[str, list[bool]] = {}
    for (_, label, group), answer in zip(rows, answers, strict=True):
        right.setdefault(group, []).append(
            answer.text.strip() == (ANSWERS[0] if label == "hateful" else ANSWERS[1])
        )
    return {g: sum(r) / len(r) for g, r in sorted(right.items())}


def measure(data: str) -> dict[str, Any]:
    began, deck = time.monotonic(), Deck(sentences(data))
    test, validation = deck.deal(TEST, 0.5, 1), deck.deal(VALIDATION, 0.5, 2)
    first_rows = {k: deck.deal(TRAIN, a, 3) for k, a in AGREEMENT.items()}
    second_rows = {k: deck.deal(TRAIN, a, 4) for k, a in AGREEMENT.items()}
    found: dict[str, Any] = {"first": {}, "second": {}, "hatecheck": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for first, rows in first_rows.items():
            folder, verdict = tune(Path(temporary) / first, TINY, rows, validation, test)
            found["first"][first] = figures(verdict)
            for second, more in second_rows.items():
                last, verdict = tune(
                    Path(temporary) / f"{first} {second}", str(folder), more, validation, test
                )
                found["second"][f"{first}, then {second}"] = figures(verdict)
                found["hatecheck"][f"{first}, then {second}"] = hatecheck(data, last, "second")
                print(first, second, figures(verdict)["tuned"], flush=True)
    return {**found, "seconds": round(time.monotonic() - began)}


def table_md(found: dict[str, Any]) -> str:
    head = [
        "first tuning",
        "second tuning",
        "right",
        "worst of four cells",
        "best to worst",
        "answers that change with the group word",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def line(first: str, second: str, f: dict[str, Any]) -> str:
        return (
            f"| {first} | {second} | {f['right']:.1%} | {f['worst']:.1%} ({f['where']}) | "
            f"{100 * f['gap']:.1f} points | {f['flips']:.1%} |"
        )

    for first, f in found["first"].items():
        lines.append(line(first, "none", f["tuned"]))
        lines += [
            line(first, k.partition(", then ")[2], s["tuned"])
            for k, s in found["second"].items()
            if k.startswith(first)
        ]
    groups = list(next(iter(found["hatecheck"].values())))
    lines += [
        "",
        "| HateCheck, right by group | " + " | ".join(groups) + " |",
        "|---" * (len(groups) + 1) + "|",
    ]
    lines += [
        f"| {k} | " + " | ".join(f"{scores[g]:.0%}" for g in groups) + " |"
        for k, scores in found["hatecheck"].items()
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"{2 * HATECHECK_ROWS} sentences of each group, half of them hateful. All of it took "
            f"{found['seconds']} s.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data"))
    found = measure(parser.parse_args().data)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    marked.write("evidence.md", {"bias": table_md(found)})
    print(table_md(found))


if __name__ == "__main__":
    main()

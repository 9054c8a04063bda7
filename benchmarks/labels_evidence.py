"""What labels a small encoder learns of real rows beside what needs no tuning: few rows, classes of
unequal size, several labels a row, and whom its errors concern.

    python benchmarks/labels_evidence.py              runs what is not yet in its results, then docs
    python benchmarks/labels_evidence.py --only-docs  writes docs/evidence.md's tables from them

The base must be here (`tunesmith base add all-minilm-l6-v2`). Every run takes the product's own
defaults but for what is named, one thread, and is judged on 2,000 rows that chose nothing. The
predictions, written before the first run:

- few rows (Davidson, 100 and 300): by CS231n's rule for little data, a linear model on the base's
  features (probe) is at least as often right as full tuning at 100 rows, and within two points of
  it, on either side, at 300.
- a new head at ten times the rate against one rate for all (D2L): at least one point better with
  100 and 300 rows, and at ten rows a class of banking77 at least ten.
- balanced class weights (Davidson, 1,500 rows): macro F1 at least two points higher, fewer right.
- several labels (GoEmotions, 3,000 rows): macro F1 above words and below 0.4, since most of the 28
  labels have under a hundred rows.
- HateCheck after Davidson: under 60 % right, with more than ten points between groups.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import duckdb
import labels as banking
import marked

BASE, COLUMNS = "all-minilm-l6-v2", ("text", "label")
RESULTS = Path(__file__).parent / "results" / "labels_evidence.json"
TEST = 2000
HATECHECK = "HateCheck"
SEEDS = {"davidson 100": 3, "davidson 300": 3, "davidson 1500": 1, "goemotions": 1, "banking77": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "one rate": {"head_rate": 1},
    "balanced": {"class_weights": "balanced"},
}
RUNS = [
    ("davidson 100", "default"),
    ("davidson 100", "one rate"),
    ("davidson 300", "default"),
    ("davidson 300", "one rate"),
    ("davidson 1500", "default"),
    ("davidson 1500", "balanced"),
    ("goemotions", "default"),
    ("banking77", "one rate"),
]


def parts_of(data: str, table: str, seed: int) -> dict[str, list[tuple[Any, ...]]]:
    if table == "banking77":
        return banking.parts_of(data, seed)
    name, _, size = table.partition(" ")
    file = {"davidson": "davidson_tweets_a", "goemotions": "goemotions_train"}[name]
    label = {"davidson": "label", "goemotions": "labels"}[name]
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"SELECT text, any_value({label}) FROM "
            f"'{data}/text_classification/{file}.parquet' GROUP BY text ORDER BY md5(text)"
        ).fetchall()
    random.Random(seed).shuffle(rows)
    learnt = int(size or 3000)
    choosing = max(60, learnt // 5)
    ends = (learnt, learnt + choosing, learnt + choosing + TEST)
    starts = (0, *ends)
    names = ("training", "validation", "test")
    return {n: rows[a:b] for n, a, b in zip(names, starts, ends, strict=False)}


def run(data: str, table: str, options: str, seed: int) -> dict[str, Any]:
    from in_process import run_job

    from tunesmith.phases.messages import Judged

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        asked = {**OPTIONS[options], "seed": seed}
        parts = parts_of(data, table, seed)
        work, told = run_job(Path(home), parts, BASE, asked, columns=COLUMNS)
        verdict = told[Judged].verdict
        kept = ("word", "arms", "against", "difference", "low", "high", "n", "other_metrics")
        found = {k: verdict[k] for k in kept}
        if table == "davidson 1500":
            found[HATECHECK] = hatecheck(data, work)
        return {**found, "seconds": round(time.monotonic() - began, 1)}


def hatecheck(data: str, work: Any) -> dict[str, float]:
    """Share of HateCheck's sentences answered rightly (hateful: hate), by the group that they are
    about."""
    from tunesmith.inference.engine import Sampling
    from tunesmith.phases.train import RESULT
    from tunesmith.registry import TunedModel

    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""SELECT text, label = 'hateful', "group" FROM '{data}/bias_audit/hatecheck.csv'
                WHERE "group" IS NOT NULL"""
        ).fetchall()
    folder = str(Path(work.folder) / RESULT)
    tuned = TunedModel("m", work.spec, method=work.decided.method, folder=folder)
    engine = work.spec.task_spec.task.engine(tuned, "cpu")
    answers = engine.generate([(text, None) for text, *_ in rows], Sampling())
    right: dict[str, list[bool]] = {}
    for (_, is_hateful, group), answer in zip(rows, answers, strict=True):
        right.setdefault(group, []).append((answer.text == "hate") == is_hateful)
    return {g: sum(r) / len(r) for g, r in sorted(right.items())}


def points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def scores_md(known: dict[str, Any]) -> str:
    lines = [
        "| rows | options | commonest | words | probe | tuned | tuned minus the best, points "
        "| macro F1: words, probe, tuned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for table, options in RUNS:
        found = [r for k, r in known.items() if k.startswith(f"{table}|{options}|")]
        if table == "banking77" or not found:
            continue
        arms = {a: statistics.median(r["arms"][a] for r in found) for a in found[0]["arms"]}
        each = "; ".join(f"{r['against']} {points(r['low'], r['high'])}" for r in found)
        f1 = [
            statistics.median(r["other_metrics"]["macro_f1"][a] for r in found)
            for a in ("linear", "probe", "tuned")
        ]
        shares = " | ".join(f"{arms[a]:.1%}" for a in ("commonest", "linear", "probe", "tuned"))
        told = ", ".join(f"{v:.3f}" for v in f1)
        lines.append(f"| {table} | {options} | {shares} | {each} | {told} |")
    run = {k.partition("|")[0] for k in known} - {"banking77"}
    seeds = ", ".join(f"{n} on {t}" for t, n in SEEDS.items() if t in run)
    lines += [
        "",
        f"Medians over seeds ({seeds}), of 2,000 rows each; several labels are right where all "
        f"are. The interval is that of each seed's verdict against the best of the three.",
    ]
    return "\n".join(lines)


def rates_md(known: dict[str, Any]) -> str:
    kept = json.loads(banking.RESULTS.read_text())
    lines = ["| rows | head ten times as fast | one rate for all | seeds |", "|---|---|---|---|"]
    for table in ("davidson 100", "davidson 300", "banking77"):
        one = {
            int(k.rpartition("|")[2]): r["arms"]["tuned"]
            for k, r in known.items()
            if k.startswith(f"{table}|one rate|")
        }
        ten = {
            seed: (
                kept.get(f"full|{seed}")
                if table == "banking77"
                else known.get(f"{table}|default|{seed}")
            )
            for seed in one
        }
        scores = [r["arms"]["tuned"] for r in ten.values() if r]
        if scores and one:
            lines.append(
                f"| {table} | {statistics.median(scores):.1%} | "
                f"{statistics.median(one.values()):.1%} | {len(one)} |"
            )
    return "\n".join(lines)


def groups_md(known: dict[str, Any]) -> str:
    runs = {o: known.get(f"davidson 1500|{o}|0") for o in ("default", "balanced")}
    found = {o: r[HATECHECK] for o, r in runs.items() if r}
    groups = sorted({g for r in found.values() for g in r})
    lines = [f"| | {' | '.join(groups)} |", "|---" * (1 + len(groups)) + "|"]
    for options, shares in found.items():
        lines.append(f"| {options} | " + " | ".join(f"{shares[g]:.1%}" for g in groups) + " |")
    return "\n".join(lines)


def main() -> None:
    args = banking.arguments().parse_args()
    wanted = [(t, o, s) for t, o in RUNS for s in range(SEEDS[t])]
    known = banking.fill(RESULTS, run, wanted, args)
    marked.write(
        "evidence.md",
        {"labels": scores_md(known), "rates": rates_md(known), "hatecheck": groups_md(known)},
    )


if __name__ == "__main__":
    main()

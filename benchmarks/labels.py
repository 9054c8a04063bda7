"""What a small encoder is worth for labels: banking77 with ten rows a class, judged on 2,000 other
rows, beside what needs no tuning.

    python benchmarks/labels.py                 runs what is not yet in its results, then the docs
    python benchmarks/labels.py --seeds 0       one seed
    python benchmarks/labels.py --only-docs     writes docs/labels.md's table from them

The base must be here (`tunesmith base add all-minilm-l6-v2`). Every run takes the product's own
defaults, one thread, two runs at a time. A seed draws the rows too: ten of each class to learn
from, two of each that choose checkpoint and temperature, 2,000 of the others. The prediction,
written before the first run: full tuning over 80 % and at least 15 points above words; LoRA within
a point of it; half frozen a little below full; the linear probe, by CS231n's rule for little data
that resembles what the base has seen, within three points of full, on either side.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import marked
from base import ROOT, _query

BASE = "all-minilm-l6-v2"
RESULTS = Path(__file__).parent / "results" / "labels.json"
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"method": "lora"},
    "lower half frozen": {"freeze": "0.5"},
}
LEARNT, CHOOSING, TEST = 10, 2, 2000
COLUMNS = ("text", "label")


def parts_of(data: str, seed: int) -> dict[str, list[tuple[str, ...]]]:
    rows = _query(f"SELECT text, label FROM '{data}/text_classification/banking77_train.csv'")
    distinct = sorted(
        {" ".join(text.lower().split()): (text, label) for text, label in rows}.values()
    )
    random.Random(seed).shuffle(distinct)
    by_label: dict[str, list[tuple[str, ...]]] = {}
    for row in distinct:
        by_label.setdefault(row[1], []).append(row)
    train = [r for rows in by_label.values() for r in rows[:LEARNT]]
    choosing = [r for rows in by_label.values() for r in rows[LEARNT : LEARNT + CHOOSING]]
    taken = {*train, *choosing}
    test = [r for r in distinct if r not in taken][:TEST]
    return {"training": train, "validation": choosing, "test": test}


def run(data: str, method: str, seed: int) -> dict[str, Any]:
    from in_process import run_job

    from tunesmith.phases.messages import Judged, Trained

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        asked = {**METHODS[method], "seed": seed}
        _, told = run_job(Path(home), parts_of(data, seed), BASE, asked, columns=COLUMNS)
    verdict, trained = told[Judged].verdict, told[Trained]
    kept = ("word", "arms", "against", "difference", "low", "high", "n", "other_metrics")
    return {
        **{k: verdict[k] for k in kept},
        "step": trained.step,
        "seconds_per_epoch": trained.used["seconds_per_epoch"],
        "seconds": round(time.monotonic() - began, 1),
    }


def table_md(known: dict[str, Any]) -> str:
    lines = [
        "| 10 rows a class, 77 classes | right of 2,000 | lowest and highest seed "
        "| minus the probe | seeds |",
        "|---|---|---|---|---|",
    ]

    def line(name: str, of: str, scores: list[float], less: list[float]) -> None:
        spread = f"{min(scores):.1%} to {max(scores):.1%}"
        points = f"{100 * statistics.median(less):+.1f} points" if less else ""
        lines.append(
            f"| {name} | {statistics.median(scores):.1%} | {spread} | {points} | {len(scores)} |"
        )

    runs = {m: [r for k, r in known.items() if k.startswith(f"{m}|")] for m in METHODS}
    first = runs["full"]
    for arm, name in (
        ("commonest", "always the commonest"),
        ("linear", "linear model on words"),
        ("probe", "linear model on the base's features (probe)"),
    ):
        scores = [r["arms"][arm] for r in first]
        line(name, arm, scores, [r["arms"][arm] - r["arms"]["probe"] for r in first])
    for method, found in runs.items():
        if found:
            less = [r["arms"]["tuned"] - r["arms"]["probe"] for r in found]
            line(method, "tuned", [r["arms"]["tuned"] for r in found], less)
    errors = [r["other_metrics"]["calibration_error"] for r in first]
    before, after = (statistics.median(e[k] for e in errors) for k in ("before", "after"))
    minutes = statistics.median(r["seconds"] for r in first) / 60
    lines += [
        "",
        f"Calibration error of full tuning {before:.3f} before the temperature, {after:.3f} after; "
        f"a run with its verdict took {minutes:.1f} minutes of one thread, two at a time.",
    ]
    return "\n".join(lines)


def fill(
    results: Path, run: Callable[..., dict[str, Any]], wanted: Sequence[tuple[Any, ...]], args: Any
) -> dict[str, Any]:
    """What is known of runs, by their names joined; those that are `wanted` and not there yet are
    run first, and kept one by one."""
    known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if args.only_docs:
        return known
    missing = {"|".join(map(str, w)): w for w in wanted}
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run, args.data, *w): k for k, w in missing.items() if k not in known}
        for done in as_completed(waiting):
            known[waiting[done]] = found = done.result()
            results.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            arms = ", ".join(f"{a} {v:.1%}" for a, v in found["arms"].items())
            print(f"{waiting[done]}: {arms}, {found['seconds']:.0f} s", flush=True)
    return known


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only-docs", action="store_true")
    return parser


def main() -> None:
    parser = arguments()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    known = fill(RESULTS, run, [(m, n) for n in args.seeds for m in METHODS], args)
    marked.write("labels.md", {"banking77": table_md(known)})


if __name__ == "__main__":
    main()

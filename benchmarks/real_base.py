"""What a real base is worth: SmolLM2-135M, brought from the package index, beside the bundled tiny
base and a linear model, on four public tables with 300 and 1,000 training rows.

    python benchmarks/real_base.py               runs what is not yet in its results, then the docs
    python benchmarks/real_base.py --only-docs   writes docs/base.md's tables from them
    python benchmarks/real_base.py --seeds 0 1   more seeds

The base must be here (`tunesmith base add smollm2-135m-instruct-gguf`). Every run takes the
product's own defaults, but the rates of the sweep; all scores are of 400 rows that chose nothing.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import marked
from base import ROOT, TINY, Bench, Run, linear_model, tables

from tunesmith import catalog
from tunesmith.tuning.recipe import usual_rate

REAL = "smollm2-135m-instruct-gguf"
RESULTS = Path(__file__).parent / "results" / "real_base.json"
TABLES = ("banking77", "restaurant8k", "e2e_nlg", "wikisql")
SIZES = (300, 1000)
SWEPT = ("banking77", "restaurant8k")
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
DEFAULTS = json.dumps({"max_epochs": "auto", "batch_size": "auto"})


def run_of(table: str, rows: int, base: str, rate: float | None = None, seed: int = 0) -> Run:
    """A tuning by default: LoRA on the real base, the whole of the tiny one."""
    method = "lora" if base == REAL else "full"
    default, _ = usual_rate(catalog.entries()[base], method)
    return Run(table, rows, base, method, rate or default, seed, DEFAULTS)


def everything(bench: Bench, seeds: list[int]) -> None:
    bench.run(run_of(t, 300, REAL, rate) for t in SWEPT for rate in RATES)
    for seed in seeds:
        for rows in SIZES:
            for some in (SWEPT, TABLES):
                bench.run(run_of(t, rows, b, seed=seed) for t in some for b in (TINY, REAL))


def linear(bench: Bench, table: str, rows: int) -> float | None:
    """The linear model on words, where answers are a closed set."""
    cut = tables(bench.data)[table]
    known = bench.known.setdefault("linear", {})
    key = f"{table}|{rows}"
    if cut.is_closed and key not in known:
        known[key] = linear_model(cut, rows)
        bench.save()
    found: float | None = known.get(key)
    return found


def median(bench: Bench, what: str, table: str, rows: int, base: str) -> tuple[float, int]:
    """Over the seeds that were run, and their number."""
    runs = [run_of(table, rows, base, seed=seed) for seed in range(10)]
    found = [bench.get(r)[what] for r in runs if r.key in bench.known["runs"]]
    return (statistics.median(found) if found else math.nan), len(found)


def table_md(bench: Bench) -> str:
    lines = [
        "| table, training rows | linear model | tiny, full | SmolLM2, LoRA | seeds | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for table in TABLES:
        for rows in SIZES:
            what = "bits_per_byte" if table == "e2e_nlg" else "exact_match"
            shown = "{:.3f} bits per byte" if table == "e2e_nlg" else "{:.1%}"
            tiny, _ = median(bench, what, table, rows, TINY)
            real, seeds = median(bench, what, table, rows, REAL)
            if not seeds:  # not run yet
                continue
            seconds, _ = median(bench, "trained_seconds", table, rows, REAL)
            words = linear(bench, table, rows)
            lines.append(
                f"| {table}, {rows:,} | {'–' if words is None else f'{words:.1%}'} | "
                f"{shown.format(tiny)} | {shown.format(real)} | {seeds} | {seconds / 60:.1f} |"
            )
    return "\n".join(lines)


def sweep_md(bench: Bench) -> str:
    lines = [
        "| SmolLM2, LoRA, 300 rows, seed 0 | " + " | ".join(f"{r:g}" for r in RATES) + " |",
        "|---" * (1 + len(RATES)) + "|",
    ]
    for table in SWEPT:
        found = [bench.get(run_of(table, 300, REAL, rate)) for rate in RATES]
        cells = [f"{f['exact_match']:.1%} ({f['validation_loss']:.3f})" for f in found]
        lines.append(f"| {table} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only-docs", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.data, 2, RESULTS)
    if not args.only_docs:
        everything(bench, args.seeds)
    marked.write("base.md", {"real": table_md(bench), "rates": sweep_md(bench)})


if __name__ == "__main__":
    main()

"""What pretraining of the bundled base is worth: `tunesmith-tiny` against the same model with
random weights, on real tables.

    python benchmarks/base.py               runs what is not yet in benchmarks/results/base.json,
                                            then writes the docs
    python benchmarks/base.py --only-docs   writes docs/base.md's table and docs/rows.svg from them

Every run is the product's own trainer, stopped early on validation. A method's rate is chosen on
seed 0 by validation loss; the scores are medians over three seeds, on rows that chose nothing. The
banking77 and restaurant8k rows, e2e_nlg and stories260k are read from the folder of `--data`;
nothing is downloaded.
"""

import argparse
import hashlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import duckdb

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import marked
from plot import line_plot

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "base.json"
SEEDS = (0, 1, 2)
VALIDATION, TEST = 100, 400  # rows; the demo's table has its own
PATIENCE, BATCH = 2, 16
MAX_EPOCHS = {"demo": 6, "restaurant8k": 5, "banking77": 5, "e2e_nlg": 4, "wikisql": 4}
RATES = {
    "tunesmith-tiny|full": (5e-4, 1e-3),
    "tunesmith-tiny|lora": (3e-3, 1e-2),
    "tunesmith-tiny-scratch|full": (5e-4, 1e-3, 2e-3),
}
ROW_COUNTS = (50, 100, 300, 1000)
CURVES = {
    "demo": SEEDS[:1],
    "restaurant8k": SEEDS[:1],
    "banking77": SEEDS[:1],
}  # table: seeds at the smaller numbers of rows
TINY, SCRATCH = "tunesmith-tiny", "tunesmith-tiny-scratch"

Row = tuple[str, str]


@dataclass(frozen=True)
class Table:
    name: str
    train: list[Row]
    validation: list[Row]
    test: list[Row]
    is_closed: bool
    """Whether the answers are a closed set, so that a linear model on words can compete."""


@dataclass(frozen=True)
class Run:
    """One tuning: what decides its result."""

    table: str
    rows: int
    base: str
    method: str
    rate: float
    seed: int
    extra: str = ""
    """Further options as JSON."""

    @property
    def key(self) -> str:
        return "|".join(str(v) for v in asdict(self).values())


# ---------------------------------------------------------------- tables


@cache
def tables(data: str) -> dict[str, Table]:
    folder = Path(data)
    slots = _query(
        f"SELECT prompt, completion FROM '{folder}/text_generation/restaurant8k_slots_train.csv'"
    )
    intents = _query(
        f"SELECT text, replace(label, '_', ' ') "
        f"FROM '{folder}/text_classification/banking77_train.csv'"
    )
    sentences = _query(f"SELECT prompt, completion FROM '{folder}/text_generation/e2e_nlg_dev.csv'")
    questions = _query(
        f"SELECT prompt, completion FROM '{folder}/text_generation/wikisql_10k.parquet'"
    )
    found = [
        _demo(),
        _cut("restaurant8k", slots, is_closed=False),
        _cut("banking77", intents, is_closed=True),
        _cut("e2e_nlg", sentences, is_closed=False),
        _cut("wikisql", questions, is_closed=False),
    ]
    return {t.name: t for t in found}


def _query(sql: str) -> list[Row]:
    with duckdb.connect() as connection:
        return [(str(p), str(c)) for p, c in connection.execute(sql).fetchall()]


def _demo() -> Table:
    from tunesmith.demo import tickets

    parts: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for t in tickets():
        if t.team and t.split in parts and len(t.message) < 2000:
            parts[t.split].append((t.message, t.team))
    return Table("demo", parts["train"][:900], parts["valid"], parts["test"], is_closed=True)


def _cut(name: str, rows: list[Row], is_closed: bool) -> Table:
    """Test, validation and training rows in a seeded order; rows of one prompt never stand in two
    parts."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(" ".join(row[0].lower().split()), []).append(row)
    prompts = sorted(by_prompt)
    random.Random(7).shuffle(prompts)
    ordered = iter(prompts)

    def take(wanted: int) -> list[Row]:
        part: list[Row] = []
        while len(part) < wanted:
            part += by_prompt[next(ordered)]
        return part[:wanted]

    test, validation = take(TEST), take(VALIDATION)
    return Table(name, take(max(ROW_COUNTS)), validation, test, is_closed)


# ---------------------------------------------------------------- one run, in a process of its own
# with one thread


def tune(run: Run, data: str) -> dict[str, Any]:
    import torch
    from in_process import run_job

    from tunesmith.data.examples import encode
    from tunesmith.data.metrics import exact_match
    from tunesmith.inference.engine import Engine, Sampling
    from tunesmith.options import Options
    from tunesmith.phases import train
    from tunesmith.phases.messages import Trained
    from tunesmith.registry import TunedModel
    from tunesmith.tasks import text_generation
    from tunesmith.tuning.loop import evaluate, mean_loss

    table, began = tables(data)[run.table], time.monotonic()
    asked = {
        "max_epochs": MAX_EPOCHS[run.table],
        "patience": PATIENCE,
        "batch_size": BATCH,
        "method": run.method,
        "learning_rate": run.rate,
        "seed": run.seed,
        **json.loads(run.extra or "{}"),
    }
    parts = {
        "training": table.train[: run.rows],
        "validation": table.validation,
        "test": table.test,
    }
    with tempfile.TemporaryDirectory() as home:
        assignment, told = run_job(Path(home), parts, run.base, asked, phases=[train.run])
        trained_s, spec = time.monotonic() - began, assignment.spec
        engine = Engine.load(
            TunedModel(
                "tuned", spec, method=run.method, folder=f"{assignment.folder}/{train.RESULT}"
            ),
            "cpu",
        )
        verdict = encode(
            assignment.dataset(), "verdict", assignment.encoder(), spec, Options(learn="last")
        ).accepted
        room = 2 * max(e.encoded.n_completion for e in verdict)
        answers = [
            c.text
            for c in engine.generate([e.messages for e in verdict], Sampling(max_tokens=room))
        ]
        with torch.inference_mode():
            loss = mean_loss(evaluate(text_generation, engine.model, verdict))
    return {
        "exact_match": exact_match(answers, [e.row.completion for e in verdict]),
        "loss": loss,
        "bits_per_byte": loss
        * sum(e.encoded.n_completion for e in verdict)
        / math.log(2)
        / sum(len(e.row.completion.encode()) for e in verdict),
        "n": len(verdict),
        **{k: getattr(told[Trained], k) for k in ("validation_loss", "step", "stopped_by")},
        "trained_seconds": round(trained_s, 1),
        "seconds": round(time.monotonic() - began, 1),
        "samples": [
            {"prompt": e.row.prompt, "wanted": e.row.completion, "answer": a}
            for e, a in zip(verdict[:12:4], answers[:12:4], strict=True)
        ],
    }


# ---------------------------------------------------------------- the plan


class Bench:
    """Runs what is not known yet, two at a time, and keeps every result at once."""

    def __init__(self, data: str, processes: int, results: Path = RESULTS) -> None:
        self.data, self._processes, self._results = data, processes, results
        weights = hashlib.sha256(
            (ROOT / "src" / "tunesmith" / "bases" / TINY / "model.safetensors").read_bytes()
        ).hexdigest()[:16]
        found = json.loads(results.read_text()) if results.exists() else {"runs": {}}
        self.known: dict[str, Any] = {
            **found,
            "weights": weights,
            "seconds": found.get("seconds", 0.0),
        }
        if found.get("weights") != weights:  # of other weights: only the control's runs still hold
            self.known["runs"] = {k: v for k, v in found["runs"].items() if SCRATCH in k.split("|")}
            self.known["seconds"] = (
                sum(v["seconds"] for v in self.known["runs"].values()) / processes
            )

    def run(self, runs: Iterable[Run]) -> None:
        missing = [r for r in dict.fromkeys(runs) if r.key not in self.known["runs"]]
        missing.sort(key=lambda r: -r.rows * (3 if r.table == "e2e_nlg" else 1))
        began = time.monotonic()
        with ProcessPoolExecutor(self._processes, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(tune, r, self.data): r for r in missing}
            for n, done in enumerate(as_completed(waiting), 1):
                run, result = waiting[done], done.result()
                self.known["runs"][run.key] = result
                self.save()
                print(
                    f"{n}/{len(missing)}  {run.key}  exact match {result['exact_match']:.1%}  "
                    f"loss {result['loss']:.3f}  "
                    f"{result['step']} steps  {result['seconds']:.0f} s",
                    flush=True,
                )
        self.known["seconds"] += time.monotonic() - began
        self.save()

    def save(self) -> None:
        self._results.parent.mkdir(exist_ok=True)
        self._results.write_text(json.dumps(self.known, indent=1, sort_keys=True) + "\n")

    def get(self, run: Run) -> dict[str, Any]:
        return self.known["runs"][run.key]  # type: ignore[no-any-return]

    def rate(self, table: str, base: str, method: str) -> float:
        """The rate with the lowest validation loss on seed 0; LoRA's is chosen on banking77 for all
        tables."""
        table = "banking77" if method == "lora" else table
        return min(
            RATES[f"{base}|{method}"],
            key=lambda rate: self.get(Run(table, full_size(table), base, method, rate, 0))[
                "validation_loss"
            ],
        )

    def median(
        self, what: str, table: str, rows: int, base: str, method: str, extra: str = ""
    ) -> float:
        rate = self.rate(table, base, method)
        return statistics.median(
            self.get(Run(table, rows, base, method, rate, s, extra))[what]
            for s in seeds(table, method)
        )


def seeds(table: str, method: str) -> tuple[int, ...]:
    """Three, but one for LoRA outside banking77, where it is only shown beside full tuning, and for
    e2e_nlg, whose runs are long."""
    return SEEDS if table == "banking77" or (method == "full" and table != "e2e_nlg") else SEEDS[:1]


def arms(table: str) -> list[tuple[str, str]]:
    """Base and method of the arms of a table; sentences are compared by loss, without LoRA."""
    return [(b, m) for b, m in ARMS if (table, m) != ("e2e_nlg", "lora")]


ARMS = ((TINY, "full"), (TINY, "lora"), (SCRATCH, "full"))
LORA_EXTRAS = ('{"rank": 64}', '{"targets": "attention"}')


def full_size(table: str) -> int:
    return 900 if table == "demo" else 1000


def everything(bench: Bench) -> None:
    names = [name for name in tables(bench.data) if name != "wikisql"]
    triples = [(t, b, m) for t in names for b, m in arms(t)]
    sweeps = [(t, b, m) for t, b, m in triples if m == "full" or t == "banking77"]
    bench.run(
        Run(t, full_size(t), b, m, rate, 0) for t, b, m in sweeps for rate in RATES[f"{b}|{m}"]
    )
    chosen = {(t, b, m): bench.rate(t, b, m) for t, b, m in triples}
    bench.run(
        [Run(t, full_size(t), b, m, chosen[t, b, m], s) for t, b, m in triples for s in seeds(t, m)]
        + [
            Run("restaurant8k", 300, b, m, chosen["restaurant8k", b, m], s)
            for b, m in ARMS
            for s in seeds("restaurant8k", m)
        ]
        + [
            Run(t, rows, TINY, "full", chosen[t, TINY, "full"], s)
            for t in CURVES
            for rows in ROW_COUNTS[:-1]
            for s in CURVES[t]
        ]
        + [
            Run("banking77", 1000, TINY, "lora", chosen["banking77", TINY, "lora"], 0, extra)
            for extra in LORA_EXTRAS
        ]
    )
    cut = [tables(bench.data)[name] for name in names]
    bench.known["linear"] = {t.name: linear_model(t) for t in cut if t.is_closed}
    bench.known["commonest"] = {t.name: commonest_share(t) for t in cut}
    bench.known["prose"] = prose_bits(bench.data)
    bench.save()


def linear_model(table: Table, rows: int | None = None) -> float:
    """TF-IDF on words and pairs with logistic regression: exact match on the test rows."""
    from tunesmith.data import baseline

    model = baseline.fit(*zip(*table.train[:rows], strict=True))
    return float(model.score(*zip(*table.test, strict=True)))


def commonest_share(table: Table) -> float:
    always = Counter(c for _, c in table.train).most_common(1)[0][0]
    return sum(c == always for _, c in table.test) / len(table.test)


def prose_bits(data: str) -> dict[str, float]:
    """Bits per byte of 200 pieces of prose that the base was not pretrained on, each read in
    windows of 512 tokens."""
    import pretrain

    from tunesmith.models import loading

    args = argparse.Namespace(
        prose=[f"{data}/corpus/prose.parquet"], tasks=[f"{data}/corpus/tasks.parquet"], seed=0
    )
    texts = pretrain.read_sources(args)[0][-pretrain.HELD_OUT :]
    folders = {
        TINY: ROOT / "src" / "tunesmith" / "bases" / TINY,
        "stories260k": Path(data) / "models" / "stories260k",
    }
    return {name: _bits_per_byte(loading, folder, texts) for name, folder in folders.items()}


def _bits_per_byte(loading: Any, folder: Path, texts: Sequence[str], window: int = 512) -> float:
    import torch
    from tokenizers import Tokenizer

    model, tokenizer = (
        loading.load(folder, torch.device("cpu")),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
    )
    nats, size = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor(tokenizer.encode(text).ids)
            first = 0
            while first < len(ids) - 1:
                piece = ids[first : first + window]
                logits = model(piece[None]).logits[0, :-1]
                nats += float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))
                first += window - 1
            size += len(text.encode())
    return nats / math.log(2) / size


# ---------------------------------------------------------------- the docs


def write_docs(bench: Bench) -> None:
    marked.write(
        "base.md", {"table": table_md(bench), "lora": lora_md(bench), "samples": samples_md(bench)}
    )
    (ROOT / "docs" / "rows.svg").write_text(curve_svg(bench))


def table_md(bench: Bench) -> str:
    columns = [
        "table, training rows",
        "commonest answer",
        "TF-IDF + logistic regression",
        "scratch, full",
        "tiny, LoRA",
        "tiny, full",
    ]
    lines = ["| " + " | ".join([*columns, "gain", "asked"]) + " |", "|---" * 8 + "|"]
    for table, rows, asked in (
        ("demo", 900, 20),
        ("restaurant8k", 300, 8),
        ("restaurant8k", 1000, 10),
        ("banking77", 1000, 15),
    ):
        scores = [bench.median("exact_match", table, rows, b, m) for b, m in ARMS]
        full, lora, scratch = scores
        linear = bench.known["linear"].get(table)
        lines.append(
            f"| {table}, {rows:,} | {bench.known['commonest'][table]:.1%} | "
            f"{'–' if linear is None else f'{linear:.1%}'} | {scratch:.1%} "
            f"| {lora:.1%} | {full:.1%} | {100 * (max(full, lora) - scratch):+.1f} points | "
            f"{asked} |"
        )
    tiny, scratch = (bench.median("loss", "e2e_nlg", 1000, b, "full") for b in (TINY, SCRATCH))
    lines.append(
        f"| e2e_nlg, 1,000: held-out loss | | | {scratch:.3f} | | {tiny:.3f} | "
        f"{100 * (tiny / scratch - 1):+.0f} % | -20 % |"
    )
    prose = bench.known["prose"]
    rates = [
        f"{t}: " + ", ".join(f"{b[10:]} {m} {bench.rate(t, b, m):g}" for b, m in arms(t))
        for t in tables_known(bench)
    ]
    lines += [
        "",
        "Rates, chosen on seed 0: " + "; ".join(rates) + ".",
        "",
        f"Prose never trained on, 200 pieces: {prose[TINY]:.2f} bits per byte; stories260k needs "
        f"{prose['stories260k']:.2f}.",
        "",
        f"All runs together took {bench.known['seconds'] / 60:.0f} minutes on two cores, two runs "
        f"at a time.",
        "",
    ]
    return "\n".join(lines)


def tables_known(bench: Bench) -> list[str]:
    return list(dict.fromkeys(k.partition("|")[0] for k in bench.known["runs"]))


def lora_md(bench: Bench) -> str:
    lines = ["| banking77, 1,000 rows, seed 0 | exact match | held-out loss |", "|---|---|---|"]
    best, full = bench.rate("banking77", TINY, "lora"), bench.rate("banking77", TINY, "full")
    shown = [(f"LoRA, rank 16, rate {r:g}", "lora", r, "") for r in RATES[f"{TINY}|lora"]]
    shown += [(f"LoRA, rank 64, rate {best:g}", "lora", best, LORA_EXTRAS[0])]
    shown += [
        (f"LoRA on attention only, rank 16, rate {best:g}", "lora", best, LORA_EXTRAS[1]),
        (f"full, rate {full:g}", "full", full, ""),
    ]
    for label, method, rate, extra in shown:
        one = bench.get(Run("banking77", 1000, TINY, method, rate, 0, extra))
        lines.append(f"| {label} | {one['exact_match']:.1%} | {one['loss']:.3f} |")
    return "\n".join([*lines, ""])


def samples_md(bench: Bench) -> str:
    both = [
        bench.get(Run("e2e_nlg", 1000, b, "full", bench.rate("e2e_nlg", b, "full"), 0))["samples"]
        for b in (TINY, SCRATCH)
    ]
    lines = []
    for tiny, scratch in zip(*both, strict=True):
        lines += [
            f"- `{tiny['prompt']}`",
            f"  - a person: {tiny['wanted']}",
            f"  - tiny: {tiny['answer']}",
            f"  - scratch: {scratch['answer']}",
        ]
    return "\n".join([*lines, ""])


def curve_svg(bench: Bench) -> str:
    """Exact match against training rows: medians of three seeds, with their range."""
    series = {}
    for table in ("demo", "restaurant8k", "banking77"):
        rate = bench.rate(table, TINY, "full")
        sizes = [*ROW_COUNTS[:-1], full_size(table)]
        series[table] = [
            (
                n,
                [
                    bench.get(Run(table, n, TINY, "full", rate, s))["exact_match"]
                    for s in (CURVES[table] if n < 900 else SEEDS)
                ],
            )
            for n in sizes
        ]
    return line_plot(
        "Exact match after full tuning (median and range of up to 3 seeds)",
        "training rows",
        series,
        ROW_COUNTS,
        percent=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        default=str(ROOT.parent / "shared" / "data"),
        help="folder with text_generation/, text_classification/ …",
    )
    parser.add_argument("--only-docs", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.data, processes=2)
    if not args.only_docs:
        everything(bench)
    write_docs(bench)
    print(table_md(bench))


if __name__ == "__main__":
    main()

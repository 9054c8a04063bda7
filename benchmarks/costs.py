"""What a job costs besides its arithmetic: per row at 100 to 100,000 rows, per token at other
lengths, and to begin.

    python benchmarks/costs.py [--threads 2] [--data ../shared/data]

Rows: one epoch of `tunesmith-tiny` on banking77, by the product itself, every phase. 100,000
made-up rows are frozen and planned, not trained. Lengths: a step of the 15M shape on rows of one
length, ours and the fair peer in turn. Beginning: commands in a new process.
"""

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))
import duckdb
import marked
from forks import phases_of
from offtheshelf import Peer, Setting
from train import RANK, config_of

COUNTS, MANY = (100, 1000, 10_000), 100_000
FROZEN = 100_000
STORED = 100_000
LENGTHS = (128, 512, 2048)
TUNESMITH = [sys.executable, "-m", "tunesmith.interfaces.cli"]


def seconds(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


@contextmanager
def a_home(rows: list[tuple[str, str]]) -> Iterator[Any]:
    """The product over a database with these rows, in folders of their own."""
    from tunesmith import Tunesmith

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNESMITH_HOME"] = str(Path(folder) / "home")
        with duckdb.connect(str(Path(folder) / "rows.duckdb")) as c:
            c.execute("CREATE TABLE t (prompt VARCHAR, completion VARCHAR)")
            c.execute(
                "INSERT INTO t SELECT unnest($1), unnest($2)",
                [[p for p, _ in rows], [r for _, r in rows]],
            )
        yield Tunesmith(str(Path(folder) / "rows.duckdb"))


def banking77(data: Path) -> list[tuple[str, str]]:
    with (data / "text_classification" / "banking77_train.csv").open(
        newline="", encoding="utf-8"
    ) as f:
        rows = [(r["text"].strip(), r["label"]) for r in csv.DictReader(f)]
    random.Random(0).shuffle(rows)
    return rows


QUERY = "SELECT prompt, completion FROM t"


def rows_cost(rows: list[tuple[str, str]]) -> dict[str, Any]:
    """One epoch, by the product."""
    with a_home(rows) as service:
        began = time.perf_counter()
        job = service.create(
            "m", "tunesmith-tiny", QUERY, max_epochs=1, batch_size=16, method="lora"
        )
        created = time.perf_counter() - began
        job = service.wait(job.id)
        whole = time.perf_counter() - began
        assert job.status.value == "SUCCEEDED", job.error
        trained, n = job.used["seconds_per_epoch"], job.rows["train"]
        return {
            "rows": len(rows),
            "train": n,
            "create_s": created,
            "epoch_ms_per_row": 1000 * trained / n,
            "whole_s": whole,
            "memory_mb": job.used["memory_mb"],
            "tokens_per_row": job.used["tokens_per_epoch"] / n,
        }


def many_rows() -> dict[str, Any]:
    """Frozen and planned, without an optimizer step."""
    chance = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    rows = [
        (f"{i} " + " ".join(chance.choices(words, k=12)), chance.choice(words)) for i in range(MANY)
    ]
    with a_home(rows) as service:
        os.environ["TUNESMITH_IDLE_S"] = "1"
        began = time.perf_counter()
        job = service.create("m", "tunesmith-tiny", QUERY, max_epochs=1)
        created = time.perf_counter() - began
        while service.describe(job.id).status.value in ("PENDING", "VALIDATING"):
            time.sleep(0.2)
        planned = time.perf_counter() - began - created
        while (
            not service.metrics(job.id).num_rows
            and service.describe(job.id).status.value == "RUNNING"
        ):
            time.sleep(0.2)
        peak = max(
            (_memory(p) for p in phases_of(Path(os.environ["TUNESMITH_HOME"]), "train")),
            default=0.0,
        )
        service.cancel(job.id)
        service.wait(job.id)
        return {"rows": MANY, "create_s": created, "validating_s": planned, "trainer_mb": peak}


def frozen() -> dict[str, float]:
    """Seconds of a CREATE of so many rows, from a table and from files; the median of three,
    cancelled each time."""
    chance = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    rows = [
        (f"{i} " + " ".join(chance.choices(words, k=12)), chance.choice(words))
        for i in range(FROZEN)
    ]
    with a_home(rows) as service, tempfile.TemporaryDirectory() as folder:
        with duckdb.connect(os.fspath(service._database)) as c:
            for kind in ("csv", "json"):
                c.execute(f"COPY t TO '{folder}/rows.{kind}'")
        sources = {
            "a table": QUERY,
            "CSV": f"{folder}/rows.csv",
            "JSON lines": f"{folder}/rows.json",
        }
        return {
            name: statistics.median(seconds(lambda d=data: _frozen(service, d)) for _ in range(3))
            for name, data in sources.items()
        }


def stored() -> dict[str, dict[str, tuple[float, float]]]:
    """What each door takes in a home of very many jobs, and in one with one job: seconds and MB, in
    new processes, the best of three."""
    import large

    with tempfile.TemporaryDirectory() as folder:
        homes = {"1": Path(folder) / "small", f"{STORED:,}": Path(folder) / "big"}
        ids = {n: large.one_real_job(home) for n, home in homes.items()}
        ids[f"{STORED:,}"] = large.fill(homes[f"{STORED:,}"], STORED, STORED)[-1]
        found = {n: [large.doors(home, ids[n]) for _ in range(3)] for n, home in homes.items()}
    return {
        n: {d: (min(r[d][0] for r in runs), min(r[d][1] for r in runs)) for d in large.DOORS}
        for n, runs in found.items()
    }


ALONE: dict[str, Callable[[], Any]] = {"frozen": frozen, "stored": stored}


def _frozen(service: Any, data: str) -> None:
    service.cancel(service.create("m", "tunesmith-tiny", data, max_epochs=1).id)


def _memory(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def length_cost(length: int, threads: int, repeats: int = 3) -> dict[str, Any]:
    """Rows of one length that share nothing, a fifth of each to learn, 8,192 tokens a step."""
    chance = random.Random(length)
    n = 8192 // length
    rows = [
        {"ids": [chance.randrange(5, 30_000) for _ in range(length)], "n_prompt": length * 4 // 5}
        for _ in range(n)
    ]
    work = {"config": config_of("15M"), "rank": RANK, "rows": rows, "rows_per_step": n}
    with (
        Peer("", work, Setting("ours"), threads) as ours,
        Peer("", work, Setting("fair"), threads) as fair,
    ):
        ours.step(), fair.step(n, 2)
        times = [(ours.step(), fair.step(n, 2 if length > 128 else 4)) for _ in range(repeats)]
    mine, theirs = (1e6 * statistics.median(t[k] for t in times) / length for k in (0, 1))
    return {
        "length": length,
        "ours_ms_per_1000_tokens": mine,
        "peer_ms_per_1000_tokens": theirs,
        "ratio": statistics.median(f / o for o, f in times),
    }


def starts(rows: list[tuple[str, str]]) -> dict[str, float]:
    def command(*words: str) -> float:
        return statistics.median(
            seconds(lambda: subprocess.run([*TUNESMITH, *words], check=True, capture_output=True))
            for _ in range(3)
        )

    with a_home(rows[:500]) as service:
        created = []
        for _ in range(5):
            began = time.perf_counter()
            job = service.create("m", "tunesmith-tiny", QUERY, max_epochs=1, method="lora")
            created.append(time.perf_counter() - began)
            service.cancel(job.id)
        service.wait(job.id)
        began = time.perf_counter()
        job = service.create("n", "tunesmith-tiny", QUERY, max_epochs=1, method="lora")
        while not service.metrics(job.id).num_rows and service.describe(
            job.id
        ).status.value not in ("SUCCEEDED", "FAILED"):
            time.sleep(0.05)
        first_step = time.perf_counter() - began
        service.wait(job.id)
        return {
            "create, 500 rows": statistics.median(created),
            "create to the first step told": first_step,
            "tunesmith --help": command("--help"),
            "tunesmith job list": command("job", "list"),
            "tunesmith complete, base": command(
                "complete", "tunesmith-tiny", "Hello", "--max-tokens", "1"
            ),
            "tunesmith complete, adapter": command("complete", "n", "Hello", "--max-tokens", "1"),
        }


def tables(f: dict[str, Any]) -> dict[str, str]:
    rows = [
        "| rows | create, s | one epoch, ms a row | tokens a row | whole job, s | trainer's peak, "
        "MB |",
        "|---|---|---|---|---|---|",
    ]
    for r in f["rows"]:
        rows.append(
            f"| {r['rows']:,} | {r['create_s']:.2f} | {r['epoch_ms_per_row']:.1f} | "
            f"{r['tokens_per_row']:.1f} | {r['whole_s']:.0f} "
            f"| {r['memory_mb']:,} |"
        )
    m = f["many"]
    rows += [
        "",
        f"{m['rows']:,} made-up rows are frozen in {m['create_s']:.1f} s and planned (every row "
        f"encoded, every `auto` decided) in "
        f"{m['validating_s']:.1f} s; at its first steps the trainer has used "
        f"{m['trainer_mb']:,.0f} MB at most.",
    ]
    if f.get("frozen"):
        told = ", ".join(f"{s:.1f} s from {name}" for name, s in f["frozen"]["found"].items())
        rows += ["", f"A CREATE of {FROZEN:,} rows takes {told} ({f['frozen']['machine']})."]
    lengths = [
        "| tokens a row | ours, ms per 1,000 tokens | fair peer | times |",
        "|---|---|---|---|",
    ]
    lengths += [
        f"| {x['length']:,} | {x['ours_ms_per_1000_tokens']:.0f} | "
        f"{x['peer_ms_per_1000_tokens']:.0f} | {x['ratio']:.2f} |"
        for x in f["lengths"]
    ]
    start = [
        "| | seconds |",
        "|---|---|",
        *(f"| {name} | {s:.2f} |" for name, s in f["starts"].items()),
    ]
    if f.get("stored"):
        return {
            "rows": "\n".join(rows),
            "lengths": "\n".join(lengths),
            "starts": "\n".join(start),
            "stored": stored_table(f["stored"]),
        }
    return {"rows": "\n".join(rows), "lengths": "\n".join(lengths), "starts": "\n".join(start)}


def stored_table(f: dict[str, Any]) -> str:
    counts = list(f["found"])
    lines = [
        "| door | " + " | ".join(f"{n} job{'s' * (n != '1')}, s | MB" for n in counts) + " |",
        "|---" * (1 + 2 * len(counts)) + "|",
    ]
    for door in f["found"][counts[0]]:
        lines.append(
            f"| `{door}` | "
            + " | ".join("{:.2f} | {:.0f}".format(*f["found"][n][door]) for n in counts)
            + " |"
        )
    return "\n".join(lines) + f"\n\n{f['machine']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["starts", "lengths", "rows", "many", *ALONE],
        help="the others keep what was recorded",
    )
    args = parser.parse_args()
    os.environ["TUNESMITH_THREADS"] = str(args.threads)
    rows = banking77(args.data)
    measure: dict[str, Callable[[], Any]] = {
        "starts": lambda: starts(rows),
        "lengths": lambda: [length_cost(n, args.threads) for n in LENGTHS],
        "rows": lambda: [rows_cost(rows[:n]) for n in COUNTS],
        "many": many_rows,
    }
    before = marked.results().get("costs", {"found": {}})["found"]
    for name, part in ALONE.items():  # entries of their own: they may be of another day and machine
        if name in args.parts:
            marked.record(name, part())
    parts = [part for part in args.parts if part not in ALONE]
    found = {**before, "threads": args.threads, **{part: measure[part]() for part in parts}}
    if parts:
        marked.record("costs", found)
    made = tables({**found, **{name: marked.results().get(name) for name in ALONE}})
    marked.write("performance.md", made)
    print("\n\n".join(made.values()))


if __name__ == "__main__":
    main()

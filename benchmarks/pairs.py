"""How long it takes to begin, two states of the program taking turns on one machine.

    python benchmarks/pairs.py BEFORE [--rounds 5] [--data ../shared/data]

BEFORE is the `src` folder of the other state, for example of `git worktree add ../before COMMIT`.
A job is one epoch of LoRA on 100 rows of banking77 with `tunesmith-tiny`: once where no worker is
alive (cold), once right after it (warm). Writes its table into docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import marked

NOW = Path(__file__).parents[1] / "src"
ROWS = 100
JOBS = """
import csv, json, random, sys, time
import duckdb
from tunesmith import Tunesmith

with open(sys.argv[1], newline="", encoding="utf-8") as f:
    rows = [(r["text"].strip(), r["label"]) for r in csv.DictReader(f)]
random.Random(0).shuffle(rows)
connection = duckdb.connect()
connection.execute("CREATE TABLE t (prompt VARCHAR, completion VARCHAR)")
connection.executemany("INSERT INTO t VALUES (?, ?)", rows[: int(sys.argv[2])])
service, found = Tunesmith(connection), {}
for name in ("cold", "warm"):
    began, first = time.perf_counter(), None
    options = {"max_epochs": 1, "method": "lora"}
    job = service.create("m_" + name, "tunesmith-tiny", "SELECT * FROM t", **options)
    while True:
        job = service.describe(job.id)
        if first is None and service.store.rows("metrics", job.id):
            first = time.perf_counter() - began
        if job.status.is_final:
            break
        time.sleep(0.02)
    assert job.status.value == "SUCCEEDED", job.error
    found["first step, " + name] = first
    found["whole job, " + name] = time.perf_counter() - began
print(json.dumps(found))
"""
COMMANDS = {
    "tunesmith job list": ["job", "list"],
    "tunesmith complete": ["complete", "tunesmith-tiny", "Hello", "--max-tokens", "1"],
}


def measured(source: Path, table: Path) -> dict[str, float]:
    """Seconds of each, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PYTHONPATH": str(source), "TUNESMITH_HOME": home}
        environment |= {"TUNESMITH_IDLE_S": "5"}
        words = [sys.executable, "-c", JOBS, str(table), str(ROWS)]
        told = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
        for name, command in COMMANDS.items():
            words = [sys.executable, "-m", "tunesmith.interfaces.cli", *command]
            subprocess.run(words, env=environment, capture_output=True, check=True)
            began = time.perf_counter()
            subprocess.run(words, env=environment, capture_output=True, check=True)
            found[name] = time.perf_counter() - began
        time.sleep(6)  # its worker goes home before the other state's turn
    return found


def table(pairs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    lines = ["| | before, s | now, s | times |", "|---|---|---|---|"]
    for name in pairs[0][0]:
        before, now = (statistics.median(p[i][name] for p in pairs) for i in (0, 1))
        ratio = statistics.median(p[1][name] / p[0][name] for p in pairs)
        lines.append(f"| {name} | {before:.2f} | {now:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=lambda p: Path(p).absolute())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    args = parser.parse_args()
    rows = args.data / "text_classification" / "banking77_train.csv"
    pairs = [(measured(args.before, rows), measured(NOW, rows)) for _ in range(args.rounds)]
    marked.record("pairs", {"rounds": args.rounds, "pairs": pairs})
    made = f"{table(pairs)}\n\nMedians of {args.rounds} turns; {marked.machine()}."
    marked.write("performance.md", {"pairs": made})
    print(made)


if __name__ == "__main__":
    main()

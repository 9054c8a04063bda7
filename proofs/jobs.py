"""Whole jobs keep their word: a cancel stops the work, the rows are those of CREATE, and nothing
grows.

    python proofs/jobs.py [--cancels 50] [--kinds 20] [--minutes 3] [--seed 0]

The real worker with real phases, each in a process group of its own, all forked from one process
that has imported what they need.
"""

import argparse
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import crash
import duckdb
from forks import at_once, forked, phases_of, preload, room, start
from record import Proof, show_and_save

from tunesmith import Tunesmith, worker
from tunesmith.executors.local import LocalExecutor
from tunesmith.home import open_store
from tunesmith.jobs import JobStatus
from tunesmith.settings import Settings

TOLD_S, GONE_S = 10.0, 20.0  # what is promised of a cancel


def work_all(home: Path) -> None:
    settings = Settings.read(home)
    worker.Worker(settings, open_store(settings), LocalExecutor(settings)).work_all()


def without_workers(home: Path) -> Tunesmith:
    worker.ensure = lambda *a, **k: None
    return Tunesmith(home=home)


# ---------------------------------------------------------------- a cancel


def cancels(base: Path, folder: Path, n: int, seed: int) -> Iterator[Proof]:
    """A long job is cancelled at a random moment of its life, again and again; how long until its
    processes are gone."""
    began = time.monotonic()

    def cancelled(case: int) -> list[float]:
        chance, home = random.Random(f"{seed} {case}"), folder / f"cancel-{case}"
        service = without_workers(home)
        many = crash.rows() * 20
        job = service.create(
            "m", str(base), many, **{**crash.OPTIONS, "max_epochs": 10, "batch_size": 2}
        )
        at_work = start(lambda: work_all(home))
        store = open_store(Settings.read(home))
        until = time.monotonic() + chance.uniform(0.1, 3.0)
        while time.monotonic() < until and not store.get(job.id).status.is_final:
            time.sleep(0.01)
        asked, groups = time.monotonic(), phases_of(home)
        with suppress(Exception):
            store.request_cancel(job.id)
        while not store.get(job.id).status.is_final and time.monotonic() - asked < 60:
            time.sleep(0.01)
        told = time.monotonic() - asked
        while any(map(_is_alive, groups)) and time.monotonic() - asked < 60:
            time.sleep(0.01)
        gone = time.monotonic() - asked
        os.waitpid(at_work, 0)
        good = store.get(job.id).status is JobStatus.CANCELLED and not store.all_models()
        return [told, gone, float(good)]

    found = [times for _, times in at_once(range(n), cancelled)]
    told, gone = (sorted(t[i] for t in found) for i in (0, 1))
    wrong = sum(not t[2] for t in found)
    p99 = min(len(told) - 1, int(0.99 * len(told)))
    yield Proof(
        f"{n} cancels of working jobs: told within {TOLD_S:g} s, processes gone within {GONE_S:g} s, no model",
        f"{TOLD_S:g} s, {GONE_S:g} s",
        f"p99 {told[p99]:.2f} s and {gone[p99]:.2f} s, {wrong} wrong",
        not wrong and told[-1] <= TOLD_S and gone[-1] <= GONE_S,
        time.monotonic() - began,
    )


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------- the rows are those of CREATE

CHANGES = [
    "DELETE FROM pairs",
    "UPDATE pairs SET completion = 'nonsense'",
    "INSERT INTO pairs SELECT * FROM pairs",
    "DROP TABLE pairs",
    "ALTER TABLE pairs RENAME TO others",
    "ALTER TABLE pairs DROP COLUMN completion",
    "ALTER TABLE pairs RENAME COLUMN prompt TO question",
    "ALTER TABLE pairs ALTER COLUMN n TYPE VARCHAR",
    "TRUNCATE pairs",
    "CREATE OR REPLACE TABLE pairs AS SELECT 1 AS prompt, 2 AS completion",
    "UPDATE pairs SET prompt = NULL",
    "INSERT INTO pairs VALUES (99, 'say new', 'new')",
    "DELETE FROM pairs WHERE n % 2 = 0",
    "UPDATE pairs SET n = -n",
    "ALTER TABLE pairs ADD COLUMN more INTEGER DEFAULT 3",
    "CREATE OR REPLACE VIEW shown AS SELECT 'x' AS prompt, 'y' AS completion",
    "DROP VIEW shown",
    "BEGIN; DELETE FROM pairs; COMMIT; CHECKPOINT",
    "CREATE INDEX by_n ON pairs (n); DELETE FROM pairs WHERE n = 1",
    "MERGE INTO pairs USING (SELECT 1 AS n) AS s ON pairs.n = s.n WHEN MATCHED THEN DELETE",
    "VACUUM; UPDATE pairs SET completion = prompt",
]


def snapshots(base: Path, folder: Path, n: int) -> Iterator[Proof]:
    """The table is changed after CREATE, in so many ways; the model is the one of a table that
    stayed."""
    began = time.monotonic()

    def weights(case: list[Any]) -> str:
        number, change = case
        place = folder / f"snapshot-{number}"
        place.mkdir()
        with duckdb.connect(str(place / "own.duckdb")) as connection:
            connection.execute("CREATE TABLE pairs (n INTEGER, prompt VARCHAR, completion VARCHAR)")
            connection.executemany(
                "INSERT INTO pairs VALUES (?, ?, ?)",
                [(i, r["prompt"], r["completion"]) for i, r in enumerate(crash.rows())],
            )
            connection.execute(
                "CREATE VIEW shown AS SELECT prompt, completion FROM pairs ORDER BY n"
            )
            worker.ensure = lambda *a, **k: None
            Tunesmith(connection, home=place / "home").create(
                "m", str(base), "SELECT * FROM shown", **crash.OPTIONS
            )
            if change:
                connection.execute(change)
        crash.work(place / "home")
        end = crash.end_of(place / "home")
        return f"{end.status} {end.models} {end.weights}"

    cases: list[Any] = [[0, ""], *([i + 1, c] for i, c in enumerate(CHANGES[:n]))]
    ends = {case[0]: end for case, end in at_once(cases, weights)}
    differ = [CHANGES[i - 1] for i, end in ends.items() if end != ends[0]]
    for change in differ:
        print(f"  after {change}: {ends}")
    yield Proof(
        f"{n} kinds of change to the table after CREATE: the same model",
        "0 differ",
        f"{len(differ)} differ",
        not differ and ends[0].startswith("SUCCEEDED 1") and len(ends) == n + 1,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- nothing grows


def growth(base: Path, folder: Path, seconds: float) -> Iterator[Proof]:
    """One worker does small jobs for a while, users look on; its memory, its descriptors and what
    lies around at the end."""
    began, home = time.monotonic(), folder / "growth"
    worker.HEARTBEAT_S, worker.POLL_S = 0.01, 0.005
    report = folder / "growth.txt"

    def at_work() -> None:
        settings = Settings.read(home)
        store, executor, measured = open_store(settings), LocalExecutor(settings), []
        mine = worker.Worker(settings, store, executor, lease_s=0.3 * 100)
        while time.monotonic() - began < seconds + 2:
            mine.work_all()
            measured.append(f"{_memory_kb()} {len(os.listdir('/proc/self/fd'))}")
            report.write_text("\n".join(measured))

    def asks() -> None:
        service = without_workers(home)
        for i in count():
            if time.monotonic() - began > seconds:
                break
            job = service.create(
                f"m_{i}", str(base), crash.rows(), **{**crash.OPTIONS, "max_epochs": 1}
            )
            while not service.describe(job.id).status.is_final:
                time.sleep(0.02)

    worker_pid = start(at_work)
    code = forked(asks)
    os.waitpid(worker_pid, 0)
    lines = [tuple(map(int, line.split())) for line in report.read_text().splitlines()]
    store = open_store(Settings.read(home))
    done = [j for j in store.all_jobs() if j.status is JobStatus.SUCCEEDED]
    third = max(1, len(lines) // 3)
    early, late = (
        max(m for m, _ in part) for part in (lines[third : 2 * third], lines[2 * third :])
    )
    descriptors = (max(d for _, d in lines[:third]), max(d for _, d in lines[2 * third :]))
    left = (
        list((home / "tmp").iterdir())
        + list(home.glob("jobs/*/attempt-*/step-*"))
        + list(home.glob("jobs/*/attempt-*/result"))
    )
    folders = (len(list((home / "jobs").iterdir())), len(list((home / "models").iterdir())))
    grew = late / early - 1
    good = (
        not code
        and grew <= 0.02
        and descriptors[1] <= descriptors[0] + 1
        and not left
        and folders == (len(done), len(done))
        and len(done) > 3
    )
    yield Proof(
        f"{seconds:.0f} s of jobs, beats cut by 100: memory, descriptors and files do not grow",
        "<= 2 %, 0, 0",
        f"{len(done)} jobs, memory {grew:+.1%}, descriptors {descriptors[1] - descriptors[0]:+d}, {len(left)} files left",
        good,
        time.monotonic() - began,
    )


def _memory_kb() -> int:
    return next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cancels", type=int, default=50)
    parser.add_argument("--kinds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with room() as temporary:
        folder = Path(temporary)
        os.environ["TUNESMITH_PRELOADED"] = str(preload())
        base = folder / "base"
        if forked(lambda: crash.make_base(base)) != 0:
            raise SystemExit("no base")
        every = (
            cancels(base, folder, args.cancels, args.seed),
            snapshots(base, folder, args.kinds),
            growth(base, folder, 60 * args.minutes),
        )
        proofs = chain.from_iterable(
            p for p, n in zip(every, (args.cancels, args.kinds, args.minutes), strict=True) if n
        )
        show_and_save(proofs, "python proofs/jobs.py")


if __name__ == "__main__":
    main()

"""Homes that share a store, a store that is damaged bit by bit, folders that kills leave, and a
store of many jobs.

python proofs/homes.py [--homes 4] [--each 6] [--flips 300] [--kills 60] [--jobs 5000] [--metrics
1000000] [--seed 0]
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import crash
import large
from crash import make_base
from forks import InThisProcess, at_once, forked, room, start
from record import Proof, show_and_save

from tunesmith import Tunesmith, durable, repair, worker
from tunesmith.home import open_store
from tunesmith.jobs import JobStatus
from tunesmith.settings import Settings
from tunesmith.store import JobStore

MORE_S, MOST_MB = 0.2, 100.0  # `job list` beside an empty home; a door beside an empty home


# ---------------------------------------------------------------- homes on one store


def shared(base: Path, folder: Path, homes: int, each: int, seed: int) -> Iterator[Proof]:
    """Homes with workers that are killed, on one store, each of them repairing all the while: every
    job ends in its own home."""
    began = time.monotonic()
    os.environ["TUNESMITH_STORE"] = f"sqlite:///{folder / 'shared.db'}"
    places = [folder / f"home-{i}" for i in range(homes)]

    def create(place: Path) -> None:
        worker.ensure = lambda *a, **k: None
        service = Tunesmith(home=place)
        for n in range(each):
            rows = [{"prompt": f"say {i}", "completion": "red"} for i in range(12)]
            service.create(
                f"m{n}", str(base), rows, method="lora", rank=2, max_epochs=1, learning_rate=1e-2
            )

    def work(place: Path) -> None:
        settings = Settings.read(place)
        store = open_store(settings)
        worker.Worker(settings, store, InThisProcess()).work_all()
        repair.repair(settings, store, list(repair.mismatches(settings, store, read=True)))

    for place in places:
        assert forked(lambda p=place: create(p)) == 0  # type: ignore[misc]
    chance, kills = random.Random(seed), 0
    alive = {p: start(lambda p=p: work(p)) for p in places}  # type: ignore[misc]
    while alive:
        time.sleep(chance.uniform(0.2, 1.2))
        for place, pid in list(alive.items()):
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended:
                del alive[place]
            elif kills < 4 * homes and chance.random() < 0.3:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                kills += 1
                alive[place] = start(lambda p=place: work(p))  # type: ignore[misc]
    wrong = []
    seen = Counter[str]()
    for place in places:
        settings = Settings.read(place)
        store = open_store(settings)
        mine = [j for j in store.all_jobs() if j.home == store.home]
        seen[place.name] = sum(j.status is JobStatus.SUCCEEDED for j in mine)
        models = [m for m in store.all_models() if m.home == store.home]
        wrong += [
            f"{place.name}: {m.name} damaged"
            for m in models
            if repair.damage(place / m.folder, m.digest)
        ]
        wrong += [f"{place.name}: {m}" for m in repair.mismatches(settings, store, read=True)]
        wrong += [f"{place.name}: put aside"] * (place / repair.UNCLAIMED).exists()
        store.close()
    del os.environ["TUNESMITH_STORE"]
    for w in wrong[:10]:
        print(f"  {w}")
    done, wanted = sum(seen.values()), homes * each
    yield Proof(
        f"{homes} homes on one store, {kills} kills, a repair after each life: every job ends in its own home, nothing is put aside",
        f"{wanted} of {wanted}, 0 wrong",
        f"{done} of {wanted}, {len(wrong)} wrong",
        done == wanted and not wrong,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- one bit


def flips(folder: Path, n: int, seed: int) -> Iterator[Proof]:
    """One bit of the store's file changes, and every door is asked."""
    began = time.monotonic()
    import test_damage

    whole = folder / "whole.db"
    store = JobStore(f"sqlite:///{whole}", home="h")
    test_damage.fill(store, 40)
    rows = test_damage.everything(store)
    store.close()

    def judge(case: int) -> str:
        file = folder / f"flipped-{os.getpid()}.db"
        shutil.copy(whole, file)
        try:
            became = test_damage.sweep(file, rows, random.Random(f"{seed} {case}"))
        except BaseException as e:
            return f"wrong: {type(e).__name__} {e}"[:300]
        return f"fine: {became}"

    told = [said for _, said in at_once(range(n), judge)]
    wrong, found = (
        [s for s in told if s.startswith("wrong")],
        Counter(s.removeprefix("fine: ") for s in told if s.startswith("fine")),
    )
    for w in wrong[:10]:
        print(f"  {w}")
    yield Proof(
        f"{n} flips of one bit of a store: no raw error, nothing shown that was changed",
        "0 wrong",
        f"{len(wrong)} wrong ({', '.join(f'{v} {k}' for k, v in sorted(found.items()))})",
        not wrong,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- what kills leave


def kills(folder: Path, n: int, seed: int) -> Iterator[Proof]:
    """A process is killed while it creates or removes; then a sweep: every folder has its row and
    every row its folder."""
    began = time.monotonic()
    import test_homes

    def killed(case: int) -> str:
        chance, home = random.Random(f"{seed} {case}"), folder / f"killed-{case}"
        step, at = chance.choice(["create", "delete", "drop"]), chance.randint(1, 34)
        service = Tunesmith(home=home)
        if step != "create":
            job = service.create("m", "tunesmith-tiny", test_homes.ROWS)
            test_homes.finish(service, job.id) if step == "drop" else service.cancel(job.id)
        subprocess.run(
            [sys.executable, "-c", test_homes.KILLED, step, str(at)],
            env={**os.environ, "TUNESMITH_HOME": str(home)},
            capture_output=True,
        )
        worker.sweep(service.settings, service.store)
        rows = {j.id.removeprefix("ft_") for j in service.show()}
        left = {p.name for p in (home / "jobs").glob("*")} ^ rows
        left |= {p.name for p in (home / "models").glob("*")} ^ {m.id for m in service.models()}
        left |= {p.name for p in (home / "tmp").iterdir()}
        size = sum(
            f.stat().st_size
            for f in home.rglob("*")
            if f.is_file() and any(p in left for p in f.parts)
        )
        shutil.rmtree(home)
        return f"{step} at {at}: {sorted(left)}, {size} bytes" if left else ""

    ensure, worker.ensure = worker.ensure, lambda *a, **k: None
    try:
        with ThreadPoolExecutor(2) as pool:
            wrong = [said for said in pool.map(killed, range(n)) if said]
    finally:
        worker.ensure = ensure
    for w in wrong[:10]:
        print(f"  {w}")
    yield Proof(
        f"{n} kills while a job is created, or a job or model removed: after a sweep nothing unowned stays",
        "0 left",
        f"{len(wrong)} left",
        not wrong,
        time.monotonic() - began,
    )


def cancels(base: Path, folder: Path, n: int, seed: int) -> Iterator[Proof]:
    """A working job is killed before a random operation, then cancelled (or paused first, where it
    trains): its checkpoints go with it."""
    began = time.monotonic()
    trials = crash.Trials(base, crash.rows(), folder)

    def judge(case: int) -> str:
        chance, home = random.Random(f"{seed} {case}"), trials.home()
        at = chance.randint(1, trials.operations)
        forked(crash.dying_at(at, home))
        settings = Settings.read(home)
        store = open_store(settings)
        [job] = store.all_jobs()
        if job.status is JobStatus.RUNNING and chance.random() < 0.5:
            store.request_pause(job.id)
        if not job.status.is_final:
            worker.ensure = lambda *a, **k: None
            Tunesmith(home=home).cancel(job.id)
        forked(lambda: crash.work(home))
        worker.sweep(settings, store)
        [job] = store.all_jobs()
        left = [p for p in home.glob("jobs/*/attempt-*/*") if p.is_dir()] + list(
            (home / "tmp").iterdir()
        )
        left += [p for p in home.glob("models/*") if job.status is not JobStatus.SUCCEEDED]
        size = sum(f.stat().st_size for p in left for f in p.rglob("*") if f.is_file())
        shutil.rmtree(home)
        if not job.status.is_final:
            return f"killed at {at}: {job.status}"
        return (
            f"killed at {at}: {[str(p.relative_to(home)) for p in left]}, {size} bytes"
            if left
            else ""
        )

    wrong = [said for _, said in at_once(range(n), judge)]
    for w in wrong[:10]:
        print(f"  {w}")
    yield Proof(
        f"{n} jobs killed before any of {trials.operations} operations, then paused or cancelled: no checkpoint, result or staging folder stays",
        "0 left",
        f"{len(wrong)} left",
        not wrong,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- many jobs


def many(folder: Path, n_jobs: int, n_metrics: int) -> Iterator[Proof]:
    """What the doors of a large store take beside those of an empty one, in processes of their own,
    the better of three."""
    began = time.monotonic()
    os.environ["TUNESMITH_IDLE_S"] = "1"
    small, big = folder / "small", folder / "big"
    first = large.one_real_job(small)
    large.one_real_job(big)
    made = large.fill(big, n_jobs, n_metrics)
    runs = [(large.doors(small, first), large.doors(big, made[-1])) for _ in range(3)]
    best = [
        {d: (min(r[i][d][0] for r in runs), min(r[i][d][1] for r in runs)) for d in large.DOORS}
        for i in (0, 1)
    ]
    more = {d: best[1][d][0] - best[0][d][0] for d in large.DOORS}
    memory = {d: best[1][d][1] - best[0][d][1] for d in large.DOORS}
    for d in large.DOORS:
        print(
            f"  {d:<26} {best[1][d][0]:6.2f} s, {best[1][d][1]:5.0f} MB; with one job {best[0][d][0]:.2f} s, {best[0][d][1]:.0f} MB"
        )
    quick = (
        "job list",
        "job list --status",
        "job show",
        "tunesmith.jobs LIMIT 5",
        "metrics_of one job",
    )
    slowest = max(more[d] for d in quick)
    size = f"{n_jobs:,} jobs and {n_metrics:,} metric rows"
    yield Proof(
        f"{size}: job list, job show and one job's metrics, beside one job",
        f"<= {MORE_S} s more",
        f"{slowest:.2f} s more",
        slowest <= MORE_S,
        time.monotonic() - began,
    )
    worst = max(memory.values())
    yield Proof(
        f"{size}: no door holds more than it shows, beside one job",
        f"<= {MOST_MB:.0f} MB more",
        f"{worst:.0f} MB more (all metrics {best[1]['tunesmith.metrics'][0]:.1f} s, all jobs {best[1]['tunesmith.jobs'][0]:.1f} s)",
        worst <= MOST_MB,
        0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("homes", 4),
        ("each", 6),
        ("flips", 300),
        ("kills", 60),
        ("jobs", 5000),
        ("metrics", 1_000_000),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    def proofs() -> Iterator[Proof]:
        with room() as place:
            folder = Path(place)
            base = folder / "base"
            make_base(base)
            durable.make_folder(folder / "shared")
            yield from shared(base, folder / "shared", args.homes, args.each, args.seed)
            yield from flips(folder, args.flips, args.seed)
            yield from kills(folder, args.kills, args.seed)
            (folder / "cancels").mkdir()
            yield from cancels(base, folder / "cancels", args.kills, args.seed)
            if args.jobs:
                yield from many(folder, args.jobs, args.metrics)

    show_and_save(proofs(), "python proofs/homes.py")


if __name__ == "__main__":
    main()

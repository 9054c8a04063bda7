"""The store keeps its word under kills, races and clocks: no job lost, none finished twice, one key
one job, one end for ever.

    python proofs/store.py [--clients 32] [--each 25] [--kills 150] [--races 500] [--dead 20] [--steps 50] [--only NAME] [--postgresql] [--seed 1]

The real store and the real worker, in many processes; only what a trainer computes is left out (its
result is a file of a few bytes).
"""

import argparse
import json
import os
import random
import signal
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from forks import room, start
from postgresql import server
from record import Proof, show_and_save

from tunesmith import durable, worker
from tunesmith.catalog import ModelSpec
from tunesmith.errors import JobAlreadyFinished, StoreUnavailable, TunesmithError
from tunesmith.executors import Exited
from tunesmith.home import open_store
from tunesmith.jobs import Job, JobStatus
from tunesmith.options import Options
from tunesmith.phases.child import EVALUATE, PREPARE, Assignment, Phase
from tunesmith.phases.messages import Certified, Done, Message, Prepared
from tunesmith.settings import Settings
from tunesmith.store import BootClock, JobStore
from tunesmith.tuning.recipe import Known, decide

WORKERS, LEASE_S = 6, 1.0
DECIDED = decide(Options(method="full"), Known(ModelSpec(name="b", parameters=1), 1))
REPEATED = 0.3  # of the requests are sent twice, as after a reply that was lost
TRIED = 200  # times a client asks again while the store is busy


class Quick:
    """An executor whose phases compute nothing: what they tell and what they leave is as a
    trainer's."""

    def start(self, phase: Phase, work: Assignment, log: BinaryIO) -> "Told":
        if phase == PREPARE:
            return Told([Prepared(DECIDED.to_json(), 1, {"train": 1}, {}), Done()])
        if phase == EVALUATE:
            return Told([Certified({"job": work.job_id}), Done()])
        final = Path(work.folder) / "result"
        with durable.staging(Path(work.home)) as outer:
            staged = outer / "result"
            staged.mkdir()
            durable.write_json(staged / "weights.json", {"of": work.job_id})
            if not final.exists():
                durable.publish(staged, final)
        return Told([Done()])

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass


class Told:
    """A phase that has ended; what it told is heard one by one."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages

    def hear(self, timeout_s: float) -> Message | Exited:
        return self._messages.pop(0) if self._messages else Exited(0)

    def stop(self) -> None:
        pass


def settings_of(home: Path, url: str) -> Settings:
    read = Settings.read(home)
    return replace(read, store_url=url or read.store_url)


def new_job(name: str) -> Job:
    return Job(
        Job.new_id(),
        name,
        "tunesmith-tiny",
        "text_generation",
        "SELECT 1",
        "",
        Options(),
        owner="ana",
        data_digest="d",
        base={"parameters": 1},
    )


# ---------------------------------------------------------------- no job lost, none finished twice


def client(settings: Settings, number: int, jobs: int) -> None:
    """Create jobs, each under a key of its own; a client that is killed begins again with the same
    keys. Writes down what was accepted."""
    chance, store = random.Random(f"{number} {os.getpid()}"), open_store(settings)
    for n in range(jobs):
        key = f"{number}-{n}"
        for _ in range(2 if chance.random() < REPEATED else 1):
            accepted = patiently(
                lambda key=key: store.add(new_job(f"m_{key.replace('-', '_')}"), key)
            )
            with (settings.home / f"client-{number}.log").open("a") as log:
                log.write(f"{key} {accepted.id}\n")


def patiently(act: Callable[[], Any]) -> Any:
    for _ in range(TRIED):
        with suppress(StoreUnavailable):
            return act()
        time.sleep(0.05)
    raise SystemExit("the store never answered")


def work(settings: Settings, jobs: int) -> None:
    """One life of a worker, under a name of its own: until every job has ended."""
    store = open_store(settings)
    mine = worker.Worker(settings, store, Quick(), holder=str(uuid.uuid4()), lease_s=LEASE_S)
    while not (settings.home / "stop").exists():
        with suppress(StoreUnavailable):
            mine.work_all()
        time.sleep(0.02)


def storm(home: Path, url: str, clients: int, each: int, kills: int, seed: int) -> Iterator[Proof]:
    """Clients and workers are killed at random and start again until all is done."""
    began, chance = time.monotonic(), random.Random(seed)
    settings = settings_of(home, url)
    durable.open_home(home)
    store = open_store(settings)
    alive: dict[int, Callable[[], None]] = {}
    for number in range(clients):
        body = lambda number=number: client(settings, number, each)  # noqa: E731
        alive[start(body)] = body
    for _ in range(WORKERS):
        body = lambda: work(settings, clients * each)  # noqa: E731
        alive[start(body)] = body
    left, wanted, done = kills, clients * each, 0
    while (done < wanted or left) and time.monotonic() - began < 900:
        time.sleep(0.03)
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                body = alive.pop(pid)
                if os.waitstatus_to_exitcode(status):  # killed: it begins again
                    alive[start(body)] = body
        if left and alive:
            os.kill(chance.choice(list(alive)), signal.SIGKILL)
            left -= 1
        with store._engine.begin() as c:
            done = c.scalar(sa.text("SELECT count(*) FROM jobs WHERE status = 'SUCCEEDED'")) or 0
    (home / "stop").touch()
    for pid in alive:
        os.waitpid(pid, 0)
    told = Counter(
        tuple(line.split())
        for log in home.glob("client-*.log")
        for line in log.read_text().splitlines()
        if line.count(" ") == 1
    )
    ids = {job for _, job in told}
    jobs = {j.id: j for j in store.all_jobs()}
    models, used = (
        Counter(m.job_id for m in store.all_models()),
        Counter(u["job_id"] for u in store.rows("usage")),
    )
    lost = ids - jobs.keys()
    doubled = [i for i in jobs if models[i] != 1 or used[i] != 1]
    keys = Counter(key for key, _ in told)
    wrong = len(lost) + len(doubled) + sum(n > 1 for n in keys.values()) + (len(jobs) != wanted)
    fenced = sum(j.attempt > 1 for j in jobs.values())
    for m in store.all_models():
        durable.verify(home / m.folder, m.digest)
        wrong += json.loads((home / m.folder / "weights.json").read_text())["of"] != m.job_id
    store.close()
    yield Proof(
        f"{clients} clients x {each} jobs, {REPEATED:.0%} asked twice, {kills - left} kills ({store._engine.dialect.name}): all done, once",
        f"{wanted} of {wanted}",
        f"{len(jobs) - len(doubled) - len(lost)} of {wanted}, {wrong} wrong ({fenced} jobs changed hands)",
        not wrong and done == wanted and not left,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- one end for ever


def races(home: Path, url: str, n: int, seed: int) -> Iterator[Proof]:
    """A cancel against the last step of a job, at random distances."""
    began, chance, wrong, won = time.monotonic(), random.Random(seed), 0, 0
    settings = settings_of(home, url)
    durable.open_home(home)
    user, store = open_store(settings), open_store(settings)
    mine = worker.Worker(settings, store, Quick())

    def evaluated(name: str) -> Job:
        store.add(new_job(name))
        job = mine._store.claim(mine._holder)
        assert job is not None
        while job.status is not JobStatus.EVALUATING:
            job = mine._advance(job)
        mine._run_child(EVALUATE, job)
        return job

    # how long the last step takes on this machine: both sides of a race begin within a few times
    # that
    alone = []
    for i in range(5):
        job, start = evaluated(f"alone_{i}"), time.monotonic()
        mine.work(job)
        alone.append(time.monotonic() - start)
    apart = 4 * statistics.median(alone)
    for i in range(n):
        job = evaluated(f"race_{i}")
        said: list[str] = []

        def cancel(job: Job = job, said: list[str] = said) -> None:
            time.sleep(chance.uniform(0, apart))
            try:
                said.append(user.request_cancel(job.id).status.value)
            except JobAlreadyFinished:
                said.append("finished")

        thread = threading.Thread(target=cancel)
        thread.start()
        time.sleep(chance.uniform(0, apart))
        mine.work(job)
        thread.join()
        mine.work_all()
        after, models = store.get(job.id), [m for m in store.all_models() if m.job_id == job.id]
        good = (after.status, len(models)) == (
            (JobStatus.SUCCEEDED, 1) if said == ["finished"] else (JobStatus.CANCELLED, 0)
        )
        with suppress(TunesmithError):  # a final state is for ever, whatever is tried
            store.move(after, JobStatus.FAILED)
        wrong += not good or store.get(job.id).status is not after.status
        won += said == ["finished"]
    yield Proof(
        f"{n} races of a cancel and an end: one final state, no model after an acknowledged cancel",
        "0 violations",
        f"{wrong} violations ({won} ended first)",
        not wrong and 0 < won < n,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- leases and clocks


def dead_workers(home: Path, url: str, n: int, seed: int) -> Iterator[Proof]:
    """Workers that hold a job and renew it are killed; how long until another has it."""
    began, chance = time.monotonic(), random.Random(seed)
    settings = settings_of(home, url)
    durable.open_home(home)
    store = open_store(settings)
    for i in range(n):
        store.add(new_job(f"held_{i}"))

    def hold() -> None:
        own = open_store(settings)
        job = own.claim(str(uuid.uuid4()), LEASE_S)
        assert job is not None
        (home / f"holder-{os.getpid()}").write_text(job.id)
        while True:
            own.renew(job, LEASE_S)
            time.sleep(LEASE_S / 5)

    holders = [start(hold) for _ in range(n)]
    while len(list(home.glob("holder-*"))) < n:
        time.sleep(0.02)
    time.sleep(2 * LEASE_S)  # longer than a lease: only renewals keep them
    if store.claim("early", LEASE_S) is not None:
        yield Proof("a renewed lease is kept", "kept", "lost", False, time.monotonic() - began)
        return
    killed: dict[str, float] = {}
    for pid in holders:
        job_id = (home / f"holder-{pid}").read_text()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed[job_id] = time.monotonic()
        time.sleep(chance.uniform(0, 0.05))
    waits = []
    while len(waits) < n and time.monotonic() - began < 60:
        job = store.claim(str(uuid.uuid4()), 60.0)
        if job is None:
            time.sleep(0.02)
            continue
        waits.append(time.monotonic() - killed[job.id])
    longest = max(waits, default=99.0)
    yield Proof(
        f"{n} killed workers, lease {LEASE_S:g} s: their jobs are taken over",
        f"<= {2 * LEASE_S + 0.5:g} s",
        f"{len(waits)} jobs, longest {longest:.2f} s",
        len(waits) == n and longest <= 2 * LEASE_S + 0.5,
        time.monotonic() - began,
    )


class Stepped(BootClock):
    def __init__(self) -> None:
        self.boot, self.at = "boot", 1000.0

    def now(self, c: object) -> float:
        return self.at


def clocks(home: Path, n: int, seed: int) -> Iterator[Proof]:
    """The wall clock jumps; who holds what does not change."""
    began, chance = time.monotonic(), random.Random(seed)
    clock, wall = Stepped(), [1e9]
    store = JobStore(f"sqlite:///{home / 'clocks.db'}", clock, wall=lambda: wall[0])
    store.add(new_job("m"))
    job, changed = store.claim("mine"), 0
    assert job is not None
    for _ in range(n):
        wall[0] += chance.choice([3600.0, -3600.0, 10 * 365 * 86400.0, -10 * 365 * 86400.0])
        clock.at += chance.uniform(0, 20.0)  # less than a lease
        changed += store.claim("another") is not None
        changed += store.renew(job) is not JobStatus.VALIDATING
    clock.at += 31.0
    taken = store.claim("another") is not None
    yield Proof(
        f"{n} steps of the wall clock by an hour or ten years: no job changes hands",
        "0",
        f"{changed}",
        not changed and taken,
        time.monotonic() - began,
    )


def proofs(folder: Path, url: str, args: argparse.Namespace) -> Iterator[Proof]:
    homes = {name: folder / name for name in ("storm", "races", "dead", "clocks")}
    for home in homes.values():
        home.mkdir()
    every = {
        "storm": lambda: storm(homes["storm"], url, args.clients, args.each, args.kills, args.seed),
        "races": lambda: races(homes["races"], "", args.races, args.seed),
        "dead": lambda: dead_workers(homes["dead"], "", args.dead, args.seed),
        "clocks": lambda: clocks(homes["clocks"], args.steps, args.seed),
    }
    for name, prove in every.items():
        if args.only in (None, name):
            yield from prove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (
        ("clients", 32),
        ("each", 25),
        ("kills", 150),
        ("races", 500),
        ("dead", 20),
        ("steps", 50),
        ("seed", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=["storm", "races", "dead", "clocks"])
    parser.add_argument(
        "--postgresql", action="store_true", help="the storm on a PostgreSQL server of its own"
    )
    args = parser.parse_args()
    with room() as temporary, ExitStack() as stack:
        url = f"{stack.enter_context(server())}/postgres" if args.postgresql else ""
        show_and_save(proofs(Path(temporary), url, args), "python proofs/store.py")


if __name__ == "__main__":
    main()

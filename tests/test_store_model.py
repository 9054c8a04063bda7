"""Every interleaving of two workers, two jobs and a user who cancels, pauses and resumes, in an
abstract model; and the real store beside it.

`after` is the model: a page of Python. All states that can be reached are visited. For one job each
of them is laid into a real store, every act is done there too, and what it says and leaves must be
what the model says.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from test_store import MODEL, USED, Clock, new_job
from tunesmith import schema
from tunesmith.errors import JobAlreadyFinished, JobNotInState, LeaseLost
from tunesmith.jobs import MOVES, WORKING, JobStatus
from tunesmith.schema import jobs, models, usage
from tunesmith.store import JobStore

S = JobStatus
WORKERS = ("a", "b")
MOST_ATTEMPTS = 3
PATH = {S.VALIDATING: S.RUNNING, S.RUNNING: S.EVALUATING}


@dataclass(frozen=True)
class One:
    """A job, what the store knows of it, and what each worker believes it holds."""

    status: JobStatus = S.PENDING
    attempt: int = 0
    holder: str = ""
    lease: bool = False
    models: int = 0
    believed: tuple[int, ...] = (0, 0)
    """Of each worker: the attempt it thinks is its own; 0: it holds nothing."""


World = tuple[One, ...]
Act = tuple[str, str, int]


def acts(world: World) -> Iterator[Act]:
    for i, job in enumerate(world):
        yield from (("cancel", "", i), ("pause", "", i), ("resume", "", i))
        if job.lease:
            yield "expire", "", i
        for w, worker in enumerate(WORKERS):
            if job.believed[w]:
                yield from (
                    (act, worker, i)
                    for act in ("renew", "step", "fail", "succeed", "cancelled", "forget")
                )
    yield from (("claim", worker, -1) for worker in WORKERS)


def after(world: World, act: Act) -> tuple[World, str]:
    """The world after an act, and what the one who acted is told."""
    kind, worker, i = act
    if kind == "claim":
        return claimed(world, worker)
    job = world[i]
    new, told = of_user(job, kind) if not worker else of_worker(job, kind, WORKERS.index(worker))
    return (*world[:i], new, *world[i + 1 :]), told


def claimed(world: World, worker: str) -> tuple[World, str]:
    w = WORKERS.index(worker)
    lost = [j.status in WORKING and (j.holder == worker or not j.lease) for j in world]
    swept = [
        replace(j, status=S.CANCELLED, attempt=j.attempt + 1)
        if gone and j.status is S.CANCELLING
        else j
        for j, gone in zip(world, lost, strict=True)
    ]
    for i, job in enumerate(swept):
        if job.status is S.PENDING or (lost[i] and job.status in WORKING):
            status = S.VALIDATING if job.status is S.PENDING else job.status
            believed = tuple(job.attempt + 1 if k == w else b for k, b in enumerate(job.believed))
            swept[i] = replace(
                job,
                status=status,
                attempt=job.attempt + 1,
                holder=worker,
                lease=True,
                believed=believed,
            )
            return tuple(swept), f"job {i}"
    return tuple(swept), "nothing"


def of_user(job: One, kind: str) -> tuple[One, str]:
    if kind == "expire":
        return replace(job, lease=False), ""
    if kind == "cancel":
        if job.status in (S.CANCELLED, S.CANCELLING):
            return job, "ok"
        if not MOVES[job.status]:
            return job, "finished"
        return replace(job, status=S.CANCELLING if job.status in WORKING else S.CANCELLED), "ok"
    before, then = {"pause": (S.RUNNING, S.PAUSED), "resume": (S.PAUSED, S.PENDING)}[kind]
    if job.status is then:
        return job, "ok"
    return (replace(job, status=then), "ok") if job.status is before else (job, "not now")


def of_worker(job: One, kind: str, w: int) -> tuple[One, str]:
    if kind == "forget":  # it died, or gave up
        return replace(
            job, believed=tuple(0 if k == w else b for k, b in enumerate(job.believed))
        ), ""
    if job.believed[w] != job.attempt:
        return job, "fenced"
    match kind:
        case "renew":
            return replace(job, lease=True), job.status
        case "step" if job.status in PATH:
            return replace(job, status=PATH[job.status]), PATH[job.status]
        case "fail" if S.FAILED in MOVES[job.status]:
            return replace(job, status=S.FAILED), S.FAILED
        case "succeed" if job.status is S.EVALUATING:
            return replace(job, status=S.SUCCEEDED, models=job.models + 1), S.SUCCEEDED
        case "cancelled" if job.status is S.CANCELLING:
            return replace(job, status=S.CANCELLED), S.CANCELLED
    return job, job.status


def reachable(
    start: World, most_attempts: int = MOST_ATTEMPTS
) -> Iterator[tuple[World, Act, World, str]]:
    """Every state, every act in it, and what comes of it; attempts are bounded, or it would not
    end."""
    seen, todo = {start}, [start]
    while todo:
        world = todo.pop()
        for act in acts(world):
            new, told = after(world, act)
            yield world, act, new, told
            if new not in seen and all(j.attempt <= most_attempts for j in new):
                seen.add(new)
                todo.append(new)


def test_no_interleaving_breaks_a_promise() -> None:
    count = 0
    for world, act, new, told in reachable((One(), One()), most_attempts=2):
        count += 1
        for before, job in zip(world, new, strict=True):
            assert job.models == (job.status is S.SUCCEEDED), (world, act)
            assert before.status == job.status or MOVES.get(before.status), (
                "a final state changed",
                world,
                act,
            )
            assert (
                before.status == job.status
                or job.status in MOVES[before.status]
                or (before.status, job.status) == (S.CANCELLING, S.CANCELLED)
            ), (world, act)
            assert sum(b == job.attempt and job.attempt > 0 for b in job.believed) <= 1, (
                "two workers believe alike",
                world,
                act,
            )
        if told == "ok" and act[0] == "cancel":
            assert new[act[2]].status in (S.CANCELLING, S.CANCELLED)
    assert count > 20_000, "the search did not get far"


def test_from_every_state_a_job_can_still_end() -> None:
    edges: dict[World, set[World]] = {}
    for world, act, new, _ in reachable((One(),)):
        if act[0] not in ("pause",):
            edges.setdefault(world, set()).add(new)
    ends = {w for w in edges if not MOVES[w[0].status]}
    while more := {w for w, to in edges.items() if w not in ends and to & ends}:
        ends |= more
    stuck = {w for w in edges if w not in ends and w[0].attempt < MOST_ATTEMPTS}
    assert not stuck


def lay(store: JobStore, clock: Clock, job_id: str, world: World) -> None:
    [one] = world
    with store._engine.begin() as c:
        c.execute(models.delete())
        c.execute(usage.delete())
        c.execute(
            jobs.update().values(
                status=one.status.value,
                attempt=one.attempt,
                holder=one.holder,
                boot="boot-1" if one.holder else "",
                lease_until=clock.at + 30 if one.lease else clock.at - 1,
                seal=None,
            )
        )
        if one.models:
            c.execute(
                models.insert().values(
                    **MODEL, job_id=job_id, line="m", version=1, is_current=True, created_at=0.0
                )
            )
        schema.seal_all(c)


def do(store: JobStore, clock: Clock, job_id: str, world: World, act: Act) -> str:
    kind, worker, _ = act
    [one] = world
    if kind in ("expire", "forget"):
        return ""
    try:
        if kind == "claim":
            found = store.claim(worker, 30)
            return "nothing" if found is None else "job 0"
        if not worker:
            {"cancel": store.request_cancel, "pause": store.request_pause, "resume": store.resume}[
                kind
            ](job_id)
            return "ok"
        mine = replace(store.get(job_id), attempt=one.believed[WORKERS.index(worker)])
        match kind:
            case "renew":
                return store.renew(mine, 30)
            case "succeed":
                return store.succeed(
                    mine, {**MODEL, "job_id": job_id}, {**USED, "job_id": job_id}
                ).status
            case "step":
                return store.move(
                    mine,
                    PATH.get(store.get(job_id).status, S.RUNNING)
                    if store.get(job_id).status in PATH
                    else store.get(job_id).status,
                ).status
        return store.move(mine, {"fail": S.FAILED, "cancelled": S.CANCELLED}[kind]).status
    except LeaseLost:
        return "fenced"
    except JobAlreadyFinished:
        return "finished"
    except JobNotInState:
        return "not now"


def found(store: JobStore, clock: Clock, job_id: str, before: World) -> World:
    with store._engine.begin() as c:
        row = c.execute(sa.select(jobs)).one()
        n = c.scalar(sa.select(sa.func.count()).select_from(models))
    return (
        replace(
            before[0],
            status=S(row.status),
            attempt=row.attempt,
            holder=row.holder,
            lease=row.lease_until >= clock.at,
            models=n,
        ),
    )


def test_the_real_store_does_what_the_model_says_in_every_state(tmp_path: Path) -> None:
    folder = (
        Path("/dev/shm") / f"tunesmith-{os.getpid()}"
        if os.access("/dev/shm", os.W_OK)
        else tmp_path
    )
    folder.mkdir(exist_ok=True)
    clock, count = Clock(), 0
    with closing(JobStore(f"sqlite:///{folder / 'model.db'}", clock)) as store:
        job_id = store.add(new_job()).id
        for world, act, new, told in reachable((One(),)):
            if act[0] in ("expire", "forget"):
                continue
            lay(store, clock, job_id, world)
            said = do(store, clock, job_id, world, act)
            left = found(store, clock, job_id, world)
            assert (said, replace(left[0], believed=())) == (told, replace(new[0], believed=())), (
                world,
                act,
            )
            count += 1
    (folder / "model.db").unlink()
    assert count > 1000

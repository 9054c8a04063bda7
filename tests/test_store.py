import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tunesmith.errors import IdempotencyConflict, JobAlreadyFinished, LeaseLost, UnknownJob
from tunesmith.jobs import Job, JobStatus
from tunesmith.options import Options
from tunesmith.store import BootClock, JobStore


class Clock(BootClock):
    """A boot clock that tests move."""

    def __init__(self, boot: str = "boot-1") -> None:
        self.boot, self.at = boot, 100.0

    def now(self, c: object) -> float:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server = request.getfixturevalue("postgresql")
    name = f"t{uuid.uuid4().hex}"
    with sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT").connect() as c:
        c.execute(sa.text(f"CREATE DATABASE {name}"))
    return f"{server}/{name}"


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[JobStore]:
    store = JobStore(url, clock)
    yield store
    store.close()


def new_job(name: str = "m", **changes: Any) -> Job:
    job = Job(
        Job.new_id(),
        name,
        "tunesmith-tiny",
        "text_generation",
        "SELECT 1",
        "",
        Options(),
        owner="ana",
        data_digest="d",
    )
    return replace(job, **changes)


MODEL = dict(
    id="1",
    name="m",
    model_key="m",
    base_model="b",
    base={},
    task="text_generation",
    method="full",
    folder="models/1/v1",
    digest="d",
    verdict=None,
    owner="ana",
)
USED = dict(
    kind="training",
    model="m",
    base_model="b",
    input_tokens=1,
    output_tokens=0,
    credits=0.0,
    started_at=0.0,
)


def succeed(store: JobStore, job: Job) -> Job:
    return store.succeed(job, {**MODEL, "job_id": job.id}, {**USED, "job_id": job.id})


def evaluating(store: JobStore, name: str = "m", holder: str = "w1") -> Job:
    store.add(new_job(name))
    job = store.claim(holder)
    assert job is not None
    job = store.move(job, JobStatus.RUNNING)
    return store.move(job, JobStatus.EVALUATING)


def test_a_job_is_read_back_as_it_was_added(store: JobStore) -> None:
    job = new_job(options=Options(max_epochs=2), warnings=("few",), rows={"train": 3})
    store.add(job)
    assert store.get(job.id) == job and store.all_jobs() == [job]


def test_a_taken_name_gets_a_suffix_and_a_failed_job_frees_it(store: JobStore) -> None:
    names = [store.add(new_job(n)).name for n in ("m", "M", "m", '"x"', '"x"', "tunesmith-tiny")]
    assert names == ["m", "M_2", "m_3", '"x"', '"x_2"', "tunesmith-tiny_2"]
    first = store.all_jobs()[0]
    store.request_cancel(first.id)
    assert store.add(new_job("m")).name == "m"


def test_one_idempotency_key_is_one_job(store: JobStore) -> None:
    first = store.add(new_job(), idempotency_key="k")
    assert store.add(new_job(), idempotency_key="k").id == first.id
    with pytest.raises(IdempotencyConflict, match=first.id):
        store.add(new_job("other"), idempotency_key="k")
    assert len(store.all_jobs()) == 1


def test_jobs_are_claimed_once_and_in_order(store: JobStore) -> None:
    added = [store.add(new_job()).id for _ in range(3)]
    claimed = [store.claim(f"w{i}") for i in range(4)]
    assert [j.id if j else None for j in claimed] == [*added, None]
    assert all(j.status is JobStatus.VALIDATING and j.attempt == 1 for j in claimed if j)


def test_a_lost_lease_keeps_the_state_and_fences_the_old_worker(
    store: JobStore, clock: Clock
) -> None:
    old = evaluating(store)
    assert store.claim("w2", lease_s=30) is None
    clock.advance(31)
    new = store.claim("w2")
    assert (
        new is not None
        and new.id == old.id
        and new.attempt == 2
        and new.status is JobStatus.EVALUATING
    )
    for act in (
        store.renew,
        store.retry,
        lambda j: store.move(j, JobStatus.FAILED),
        lambda j: succeed(store, j),
    ):
        with pytest.raises(LeaseLost, match="another worker"):
            act(old)
    assert succeed(store, new).status is JobStatus.SUCCEEDED


def test_a_heartbeat_keeps_the_lease(store: JobStore, clock: Clock) -> None:
    job = evaluating(store)
    for _ in range(5):
        clock.advance(20)
        assert store.renew(job) is JobStatus.EVALUATING
        assert store.claim("w2") is None


def test_a_worker_that_starts_again_takes_back_its_own_jobs_at_once(store: JobStore) -> None:
    job = evaluating(store, holder="here")
    again = store.claim("here")
    assert again is not None and again.id == job.id and again.attempt == 2


def test_after_a_reboot_every_lease_is_lost(url: str, store: JobStore) -> None:
    job = evaluating(store)
    after = JobStore(url, Clock("boot-2"))
    again = after.claim("w2")
    assert again is not None and again.id == job.id


def test_a_waiting_job_is_cancelled_now_and_a_working_one_at_its_heartbeat(store: JobStore) -> None:
    waiting = store.add(new_job())
    assert store.request_cancel(waiting.id).status is JobStatus.CANCELLED
    job = evaluating(store)
    assert store.request_cancel(job.id).status is JobStatus.CANCELLING
    assert store.request_cancel(job.id).status is JobStatus.CANCELLING
    assert store.renew(job) is JobStatus.CANCELLING


def test_after_a_cancel_no_model_appears(store: JobStore) -> None:
    job = evaluating(store)
    store.request_cancel(job.id)
    assert succeed(store, job).status is JobStatus.CANCELLING
    assert store.move(job, JobStatus.SUCCEEDED).status is JobStatus.CANCELLING
    assert store.move(job, JobStatus.CANCELLED).status is JobStatus.CANCELLED
    assert not store.all_models() and not store.rows("usage")


def test_a_cancelled_job_whose_worker_is_gone_is_ended_by_the_next_one(
    store: JobStore, clock: Clock
) -> None:
    job = evaluating(store)
    store.request_cancel(job.id)
    clock.advance(31)
    assert store.claim("w2") is None
    assert store.get(job.id).status is JobStatus.CANCELLED


def test_a_finished_job_cannot_be_cancelled(store: JobStore) -> None:
    job = evaluating(store)
    succeed(store, job)
    with pytest.raises(JobAlreadyFinished, match="SUCCEEDED"):
        store.request_cancel(job.id)
    with pytest.raises(UnknownJob, match=job.id):
        store.request_cancel("ft_nothing")


def test_a_step_run_again_replaces_its_first_record(store: JobStore) -> None:
    job = evaluating(store)
    for loss in (2.0, 1.0):
        store.record_step(job, {"step": 1, "epoch": 1, "training_loss": loss}, trained=70)
    assert [m["training_loss"] for m in store.rows("metrics", job.id)] == [1.0]
    assert store.last_metric(job.id) == store.rows("metrics")[0]


def test_a_bare_name_finds_the_one_model_that_ends_so(store: JobStore) -> None:
    for i, name in enumerate(["db.s.m", "other.s.m", "db.s.alone"]):
        job = evaluating(store, name)
        store.succeed(
            job,
            {**MODEL, "job_id": job.id, "id": str(i), "name": name, "model_key": name},
            {**USED, "job_id": job.id},
        )
    assert store.model("alone").name == "db.s.alone" and store.model("db.s.m").name == "db.s.m"
    assert store.model("m") is None and store.model("lone") is None


def test_leases_on_a_shared_database_are_told_by_its_own_clock(url: str) -> None:
    store = JobStore(url)
    store.add(new_job())
    first = store.claim("machine-1", lease_s=0.2)
    assert first is not None and store.claim("machine-2") is None
    time.sleep(0.3)
    second = store.claim("machine-2")
    assert second is not None and second.attempt == 2
    store.close()


def test_clients_that_create_at_once_lose_no_job_and_share_no_name(
    url: str, store: JobStore
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda i: JobStore(url).add(new_job("m")), range(40)))
    assert len({j.id for j in added}) == len({j.name for j in added}) == len(store.all_jobs()) == 40


def test_programs_that_open_an_empty_store_at_once_make_it_once(url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def open_and_register(i: int) -> bool:
        store = JobStore(url, home=f"home-{i % 2}")
        store.register("/a/place")
        store.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(open_and_register, range(16)))
    assert [JobStore(url, home=f"home-{i}").last_place() for i in (0, 1)] == ["/a/place"] * 2, (
        "and both are known"
    )


def test_workers_that_claim_at_once_never_share_a_job(url: str, store: JobStore) -> None:
    from concurrent.futures import ThreadPoolExecutor

    wanted = {store.add(new_job()).id for _ in range(20)}
    with ThreadPoolExecutor(8) as pool:
        claimed = [
            j for j in pool.map(lambda i: JobStore(url).claim(f"w{i}"), range(30)) if j is not None
        ]
    assert sorted(j.id for j in claimed) == sorted(wanted)

"""Random sequences of everything that users, workers, clocks and crashes can do to the store,
against a plain oracle.

The oracle knows nothing of SQL: a dictionary of jobs with a state and an attempt. The invariants
are the promises: an accepted job is never lost, one key is one job, a final state is for ever,
nobody without the newest attempt changes anything, a model exists where a job succeeded.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tunesmith.errors import IdempotencyConflict, JobAlreadyFinished, JobNotInState, LeaseLost
from tunesmith.jobs import MOVES, WORKING, Job, JobStatus
from tunesmith.options import Options
from tunesmith.store import LEASE_S, BootClock, JobStore

S = JobStatus


class Clock(BootClock):
    def __init__(self) -> None:
        self.boot, self.at = "boot-1", 1000.0

    def now(self, c: object) -> float:
        return self.at


@dataclass
class Known:
    status: JobStatus
    attempt: int = 0
    holder: str = ""
    boot: str = ""
    until: float = 0.0


class StoreMachine(RuleBasedStateMachine):
    jobs, held = Bundle("jobs"), Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock, self.wall = Clock(), 1e9
        self.known: dict[str, Known] = {}
        self.keys: dict[str, tuple[str, str]] = {}
        self.store = self.open()

    def open(self) -> JobStore:
        return JobStore(f"sqlite:///{self.folder / 'state.db'}", self.clock, wall=lambda: self.wall)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------ users

    @initialize(target=jobs)
    def first(self) -> str:
        return self.create("m")

    @rule(target=jobs, name=st.sampled_from(["m", "n", "N"]))
    def create(self, name: str) -> str:
        job = self.store.add(
            Job(
                Job.new_id(),
                name,
                "b",
                "text_generation",
                "SELECT 1",
                "",
                Options(),
                owner="ana",
                data_digest="d",
            )
        )
        self.known[job.id] = Known(S.PENDING)
        return job.id

    @rule(key=st.sampled_from(["k1", "k2"]), name=st.sampled_from(["x", "y"]))
    def repeat(self, key: str, name: str) -> None:
        asked = Job(
            Job.new_id(),
            name,
            "b",
            "text_generation",
            "SELECT 1",
            "",
            Options(),
            owner="ana",
            data_digest="d",
        )
        before = self.keys.get(key)
        try:
            job = self.store.add(asked, key)
        except IdempotencyConflict:
            assert before is not None and before[1] != name
            return
        if before is None:
            self.keys[key] = (job.id, name)
            self.known[job.id] = Known(S.PENDING)
        assert self.keys[key] == (job.id, name), "one key, one job"

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        known = self.known[job]
        try:
            self.store.request_cancel(job)
        except JobAlreadyFinished:
            assert known.status in (S.SUCCEEDED, S.FAILED)
            return
        if not known.status.is_final:
            known.status = S.CANCELLING if known.status in WORKING else S.CANCELLED

    @rule(job=jobs, pauses=st.booleans())
    def pause_or_resume(self, job: str, pauses: bool) -> None:
        before, after = (S.RUNNING, S.PAUSED) if pauses else (S.PAUSED, S.PENDING)
        known = self.known[job]
        try:
            (self.store.request_pause if pauses else self.store.resume)(job)
        except JobNotInState:
            assert known.status not in (before, after)
            return
        assert known.status in (before, after)
        known.status = after

    # ------------------------------------------------------------ workers

    def lost(self, known: Known, holder: str) -> bool:
        return known.status in WORKING and (
            known.holder == holder or known.boot != self.clock.boot or known.until < self.clock.at
        )

    @rule(target=held, holder=st.sampled_from(["w1", "w2"]))
    def claim(self, holder: str) -> tuple[str, int]:
        for known in self.known.values():
            if known.status is S.CANCELLING and self.lost(known, holder):
                known.status, known.attempt = S.CANCELLED, known.attempt + 1
        due = [i for i, k in self.known.items() if k.status is S.PENDING or self.lost(k, holder)]
        job = self.store.claim(holder)
        if job is None:
            assert not due, "work is found while there is some"
            return ("", 0)
        assert job.id == due[0], "the oldest first"
        known = self.known[job.id]
        known.status = S.VALIDATING if known.status is S.PENDING else known.status
        known.attempt, known.holder, known.boot, known.until = (
            known.attempt + 1,
            holder,
            self.clock.boot,
            self.clock.at + LEASE_S,
        )
        assert (job.status, job.attempt) == (known.status, known.attempt)
        return (job.id, job.attempt)

    def act(self, held: tuple[str, int]) -> tuple[Known, Job] | None:
        """What is known of a held job, and the job as this worker knows it."""
        if not held[0]:
            return None
        return self.known[held[0]], self.store.get(held[0]).__class__(
            **{**self.store.get(held[0]).__dict__, "attempt": held[1]}
        )

    @rule(held=held)
    def heartbeat(self, held: tuple[str, int]) -> None:
        if found := self.act(held):
            known, job = found
            try:
                assert self.store.renew(job) is known.status
            except LeaseLost:
                assert known.attempt != job.attempt
                return
            assert known.attempt == job.attempt
            known.until = self.clock.at + LEASE_S

    @rule(held=held, status=st.sampled_from(list(S)))
    def move(self, held: tuple[str, int], status: JobStatus) -> None:
        """Any move that a worker could try; only those of the table happen, and SUCCEEDED never
        this way from elsewhere."""
        if status is S.SUCCEEDED or not (found := self.act(held)):
            return
        known, job = found
        try:
            self.store.move(job, status)
        except LeaseLost:
            assert known.attempt != job.attempt
            return
        assert known.attempt == job.attempt
        if (
            known.status in WORKING and status in MOVES[known.status]
        ):  # a worker's word moves only what a worker holds
            known.status = status

    @rule(held=held)
    def succeed(self, held: tuple[str, int]) -> None:
        if not (found := self.act(held)):
            return
        known, job = found
        model = dict(
            id=job.id,
            name=job.name,
            model_key=job.id,
            job_id=job.id,
            base_model="b",
            base={},
            task="text_generation",
            method="full",
            folder="f",
            digest="d",
            verdict=None,
            owner="ana",
        )
        used = dict(
            kind="training",
            model=job.name,
            base_model="b",
            job_id=job.id,
            input_tokens=1,
            output_tokens=0,
            credits=0.0,
            started_at=1.0,
        )
        try:
            self.store.succeed(job, model, used)
        except LeaseLost:
            assert known.attempt != job.attempt
            return
        assert known.attempt == job.attempt
        if known.status is S.EVALUATING:
            known.status = S.SUCCEEDED

    @rule(held=consumes(held))
    def worker_dies(self, held: tuple[str, int]) -> None:
        """Nobody acts for this attempt any more; the lease runs out by itself."""

    # ------------------------------------------------------------ time and machines

    @rule(seconds=st.sampled_from([1.0, LEASE_S - 1, LEASE_S + 1, 10 * LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.at += seconds
        self.wall += seconds

    @rule(step=st.sampled_from([-1e6, -60.0, 60.0, 1e6]))
    def the_wall_clock_is_set(self, step: float) -> None:
        self.wall += step

    @rule()
    def the_machine_restarts(self) -> None:
        self.store.close()
        self.clock.boot, self.clock.at = f"{self.clock.boot}+", 1.0
        self.store = self.open()

    # ------------------------------------------------------------ promises

    @invariant()
    def the_store_holds_what_was_promised(self) -> None:
        found = {j.id: j for j in self.store.all_jobs()}
        assert found.keys() == self.known.keys(), "no job is lost, none is made up"
        assert {i: (j.status, j.attempt) for i, j in found.items()} == {
            i: (k.status, k.attempt) for i, k in self.known.items()
        }
        succeeded = [i for i, k in self.known.items() if k.status is S.SUCCEEDED]
        assert sorted(m.job_id for m in self.store.all_models()) == sorted(succeeded), (
            "a model where a job succeeded, and nowhere else"
        )
        assert sorted(u["job_id"] for u in self.store.rows("usage")) == sorted(succeeded), (
            "each paid for once"
        )


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

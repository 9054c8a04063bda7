"""Frozen rows are shared by all jobs on the same rows and parts, and stay as long as one of them
is there."""

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith import Tunesmith, durable, worker
from tunesmith.data.dataset import Dataset
from tunesmith.errors import JobNotInState, RowsTooLong, TunesmithError
from tunesmith.jobs import Job
from tunesmith.repair import at_rest, mismatches, repair, undo

ROWS = [{"prompt": f"q {i}", "completion": "a"} for i in range(40)]
PROMPTS = sorted(r["prompt"] for r in ROWS)


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Tunesmith:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    return Tunesmith()


def place(job: Job) -> Path:
    return (job.service.settings.job_folder(job.id) / "data").resolve()


def rows_of(job: Job) -> list[str]:
    dataset = Dataset.open(job.service.settings.job_folder(job.id) / "data", job.data_digest)
    return sorted(r.prompt for p in ("train", "validation", "verdict") for r in dataset.rows(p))


def snapshots(service: Tunesmith) -> set[str]:
    return {p.name for p in (service.settings.home / "snapshots").iterdir()}


def create(service: Tunesmith, rows: Any = ROWS, **options: Any) -> Job:
    return service.create("m", "tunesmith-tiny", rows, **options)


def remove(job: Job) -> None:
    job.cancel()
    job.service.delete_job(job.id)


def test_jobs_on_the_same_rows_and_parts_share_a_folder(service: Tunesmith) -> None:
    first, second = create(service), create(service, seed=0, max_epochs=2)
    assert place(first) == place(second) and place(first).name == first.data_digest
    assert first.data_digest == second.data_digest and rows_of(second) == rows_of(first)
    others = [
        create(service, ROWS[::-1]),
        create(service, ROWS[1:]),
        create(service, split_seed=1),
        create(service, [{**r, "id": i} for i, r in enumerate(ROWS)]),
        service.create("m", "tunesmith-tiny", ROWS, ROWS[:3]),
    ]
    assert len({j.data_digest for j in (first, *others)}) == 6 == len(snapshots(service))


def test_a_folder_goes_with_the_last_job_that_needs_it(service: Tunesmith) -> None:
    first, second, other = create(service), create(service), create(service, ROWS[1:])
    remove(first)
    assert rows_of(second) and snapshots(service) == {second.data_digest, other.data_digest}
    with pytest.raises(JobNotInState):
        service.delete_job(second.id)
    remove(second)
    assert snapshots(service) == {other.data_digest}
    create(service, ROWS[1:])
    other.cancel()
    assert [j.id for j in service.prune(older_than_s=-1)] == [other.id]
    assert snapshots(service) == {other.data_digest}, "the newest job is on the same rows"


def test_what_a_job_was_refused_for_leaves_no_rows(service: Tunesmith) -> None:
    kept = create(service, idempotency_key="k")
    assert create(service, idempotency_key="k").id == kept.id
    for rows in (ROWS, ROWS[2:]):
        with pytest.raises(TunesmithError):
            create(service, rows, idempotency_key="k", max_epochs=3)
    service.quote(ROWS[3:], base_model="tunesmith-tiny", max_epochs=1)
    long = [*ROWS[4:], {"prompt": "word " * 5000, "completion": "a"}]
    with pytest.raises(RowsTooLong):
        service.quote(long, base_model="tunesmith-tiny", on_long="fail")
    assert snapshots(service) == {kept.data_digest} and rows_of(kept)


def test_damaged_rows_are_whole_again_when_the_same_ones_are_frozen(service: Tunesmith) -> None:
    first = create(service)
    (place(first) / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(TunesmithError):
        rows_of(first)
    second = create(service)
    assert rows_of(first) == rows_of(second) and place(first) == place(second)


def test_what_was_put_aside_keeps_its_rows_until_it_is_back(service: Tunesmith) -> None:
    job = create(service)
    settings, store = service.settings, service.store
    with store._engine.begin() as c:
        c.exec_driver_sql("CREATE TABLE kept AS SELECT * FROM jobs")
        c.exec_driver_sql("DELETE FROM jobs")
    repair(settings, store, list(mismatches(settings, store, read=True)))
    worker.sweep(settings, store)
    assert not settings.job_folder(job.id).exists() and snapshots(service) == {job.data_digest}
    with store._engine.begin() as c:
        c.exec_driver_sql("INSERT INTO jobs SELECT * FROM kept")
    assert undo(settings, store) and rows_of(job)


def waits(act: Callable[[], object], place: Path) -> bool:
    """Whether it is done only once whoever changes the snapshots has ended."""
    doing = threading.Thread(target=act)
    with durable.alone(place):
        doing.start()
        doing.join(1)
        is_waiting = doing.is_alive()
    doing.join()
    return is_waiting


def test_a_repair_and_its_undo_wait_for_a_clean_up(service: Tunesmith) -> None:
    """A link that moves while links are looked for would be seen at neither place."""
    create(service)
    settings, store = service.settings, service.store
    with store._engine.begin() as c:
        c.exec_driver_sql("DELETE FROM jobs")
    found = list(mismatches(settings, store, read=True))
    assert [m.kind for m in found] == ["files_without_job"]
    place = settings.home / "snapshots"
    assert waits(lambda: repair(settings, store, found), place)
    assert waits(lambda: undo(settings, store), place)


def test_a_moved_home_still_has_its_rows(service: Tunesmith, tmp_path: Path) -> None:
    job = create(service)
    moved = tmp_path / "moved"
    shutil.move(service.settings.home, moved)
    assert rows_of(Tunesmith(home=moved).describe(job.id)) == PROMPTS


def test_a_job_of_the_first_release_has_its_rows_in_its_own_folder(service: Tunesmith) -> None:
    job = create(service)
    link = service.settings.job_folder(job.id) / "data"
    target = link.resolve()
    link.unlink()
    shutil.move(target, link)
    worker.sweep(service.settings, service.store)
    assert rows_of(job) == PROMPTS
    assert list(mismatches(service.settings, service.store, read=True)) == []
    remove(job)
    assert not link.exists() and snapshots(service) == set()


def test_rows_that_a_job_names_stay_while_its_folder_is_elsewhere(
    service: Tunesmith, tmp_path: Path
) -> None:
    job = create(service)
    folder = service.settings.job_folder(job.id)
    shutil.move(folder, tmp_path / "elsewhere")
    worker.sweep(service.settings, service.store)
    shutil.move(tmp_path / "elsewhere", folder)
    assert rows_of(job) == PROMPTS


def test_a_create_waits_for_a_clean_up_that_has_looked_already(
    service: Tunesmith, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(service)
    with monkeypatch.context() as patched:
        patched.setattr(service, "_collect", lambda: None)
        remove(first)
    looked, goes_on = threading.Event(), threading.Event()

    def links() -> Iterator[Path]:
        looked.set()
        goes_on.wait(20)
        yield from ()

    place = service.settings.home / "snapshots"
    cleaning = threading.Thread(target=durable.collect, args=(place, links(), ()))
    cleaning.start()
    assert looked.wait(20)
    made: list[Job] = []
    creating = threading.Thread(target=lambda: made.append(create(service)))
    creating.start()
    creating.join(1)
    goes_on.set()
    for thread in (cleaning, creating):
        thread.join()
    assert rows_of(made[0]) == PROMPTS


class Going(type(Path())):  # type: ignore[misc]
    """A link that is there when it is looked for, and gone when it is read."""

    def is_symlink(self) -> bool:
        return True


def test_a_link_that_goes_while_it_is_looked_at_is_none(service: Tunesmith) -> None:
    job, place = create(service), service.settings.home / "snapshots"
    link = service.settings.job_folder(job.id) / "data"
    durable.collect(place, [link, Going(link.with_name("gone"))], ())
    assert rows_of(job) == PROMPTS


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(service: Tunesmith) -> None:
    create(service)
    place = service.settings.home / "snapshots"
    with durable.alone(place):
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
    try:
        began = time.monotonic()
        with durable.alone(place):
            assert time.monotonic() - began < 10
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_link_to_other_rows_is_seen_by_a_deep_look(service: Tunesmith) -> None:
    first, other = create(service), create(service, ROWS[1:])
    assert list(at_rest(service.settings, service.store)) == []
    link = service.settings.job_folder(other.id) / "data"
    link.unlink()
    link.symlink_to(place(first))
    [said] = at_rest(service.settings, service.store)
    assert other.id in said


def test_whoever_finds_the_folder_there_makes_sure_of_its_name(
    service: Tunesmith, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(service)
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(durable, "observer", lambda o, p: seen.append((o, p.name)))
    create(service)
    assert seen.index(("sync", "snapshots")) > [o for o, _ in seen].index("link")


def test_creates_and_removals_at_once_lose_no_rows(service: Tunesmith) -> None:
    """Four users create and remove jobs on the same three tables while workers clean up."""
    tables = [ROWS, ROWS[5:], ROWS[9:]]
    said: list[str] = []
    done = threading.Event()

    def user(number: int) -> None:
        chance, mine = random.Random(number), list[Job]()
        own = Tunesmith()
        try:
            for _ in range(12):
                if mine and chance.random() < 0.5:
                    remove(mine.pop(chance.randrange(len(mine))))
                else:
                    mine.append(create(own, chance.choice(tables)))
                for job in mine:
                    assert rows_of(job)
        except Exception as e:
            said.append(repr(e))

    def cleaner() -> None:
        own = Tunesmith()
        try:
            while not done.is_set():
                worker.collect_snapshots(own.settings, own.store)
        except Exception as e:
            said.append(repr(e))

    users = [threading.Thread(target=user, args=(n,)) for n in range(4)]
    cleaning = threading.Thread(target=cleaner)
    for t in (*users, cleaning):
        t.start()
    for t in users:
        t.join()
    done.set()
    cleaning.join()
    assert not said
    assert snapshots(service) == {j.data_digest for j in service.show()}

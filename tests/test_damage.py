"""A store whose file was damaged: no raw error, nothing that changed is shown as it were true, and
what is whole is answered."""

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import tunesmith
from conftest import decided
from test_store import USED, new_job, url
from tunesmith import Tunesmith, schema, worker
from tunesmith.documents.verdict import Verdict, Word
from tunesmith.errors import DamagedRow, Notice, StoreUnavailable, TunesmithError
from tunesmith.interfaces import doctor
from tunesmith.interfaces.cli import app
from tunesmith.jobs import JobStatus
from tunesmith.schema import SEALED
from tunesmith.store import JobStore

__all__ = ["url"]
DOCUMENT = Verdict(
    Word.HELPED,
    "exact",
    40,
    {"base": 0.25, "examples": 0.3, "commonest": 0.1, "tuned": 0.75},
    "examples",
    0.45,
    0.3,
    0.6,
    {"base": 2.5, "tuned": 0.5},
    1.0,
    won=tuple(range(30)),
    notes=("ü€ " * 40,),
).to_json()


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)


def fill(store: JobStore, n: int = 8) -> None:
    """Jobs in several states, with what jobs leave behind."""
    for i in range(n):
        added = store.add(new_job(f"m{i}", warnings=("few rows",), rows={"train": 3}))
        if i >= n - 2:  # these wait
            continue
        job = store.claim(f"w{i}")
        assert job is not None and job.id == added.id
        store.record(
            job,
            certificate=DOCUMENT,
            quote=DOCUMENT,
            resolved=decided().to_json(),
        )
        store.record_step(
            job,
            {"step": 1, "epoch": 1, "training_loss": 1.5, "tokens": 3},
            [{"part": "train", "epoch": 1, "row": 2, "loss": 0.5, "tokens": 3}],
        )
        store.record_rows(
            job,
            schema.rejections,
            [{"part": "train", "row": 5, "reason": "too_long", "detail": "d", "context": "{}"}],
        )
        store.record_rows(
            job,
            schema.predictions,
            [{"row": 7, "label": "a", "predicted": "b", "probability": 0.75}],
        )
        store.warn(job, "a word of warning")
        job = store.move(job, JobStatus.RUNNING)
        if i % 4 == 0:
            job = store.move(job, JobStatus.EVALUATING)
            model = dict(
                id=str(i),
                name=f"m{i}",
                model_key=f"m{i}",
                job_id=job.id,
                base_model="b",
                base={"name": "b"},
                task="t",
                method="full",
                folder="f",
                digest="d",
                verdict=DOCUMENT,
                owner="ana",
            )
            store.record(job, verdict=DOCUMENT)
            store.succeed(job, model, {**USED, "job_id": job.id})
        elif i % 4 == 1:
            store.move(job, JobStatus.FAILED, error={"code": "x", "message": "y"})


def everything(store: JobStore) -> dict[str, list[Any]]:
    """What the store tells, by table, in an order of its own."""
    return {name: store.rows(name) for name in SEALED}


# ---------------------------------------------------------------- seals


@pytest.fixture
def filled(url: str) -> Iterator[JobStore]:
    store = JobStore(url)
    fill(store)
    yield store
    store.close()


def test_every_row_is_sealed_whatever_wrote_it(filled: JobStore) -> None:
    assert list(filled.damaged()) == []
    with filled._reading() as c:
        assert all(c.scalar(sa.select(sa.func.count()).select_from(t)) for t in SEALED.values()), (
            "no table is empty, or nothing is shown"
        )


OTHER: dict[type, Callable[[Any], Any]] = {
    str: lambda v: v + "x",
    int: lambda v: v + 1,
    float: lambda v: v * 1.001 + 0.001,
    bool: lambda v: not v,
    dict: lambda v: {**v, "x": 1},
    list: lambda v: [*v, 1],
}


def test_a_change_of_any_column_of_any_table_is_seen(filled: JobStore) -> None:
    """Each column in turn, as a hand or a disk would change it, and back."""
    changed = 0
    for name, table in SEALED.items():
        with filled._reading() as c:
            rows = c.execute(sa.select(table)).all()
        for column in table.columns:
            if column.name == "seal" or column.primary_key or column.foreign_keys:
                continue
            row = next((r for r in rows if r._mapping[column.name] is not None), None)
            if row is None:
                continue
            mine = sa.and_(*(k == row._mapping[k.name] for k in table.primary_key))
            before = row._mapping[column.name]
            with filled._engine.begin() as c:
                c.execute(
                    table.update().where(mine).values({column.name: OTHER[type(before)](before)})
                )
            found = list(filled.damaged([name]))
            assert len(found) == 1 and found[0].fields["table"] == name, (name, column.name)
            with filled._engine.begin() as c:
                c.execute(table.update().where(mine).values({column.name: before}))
            changed += 1
    assert changed > 50 and list(filled.damaged()) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False)
        | st.integers(-(2**60), 2**60)
        | st.text(st.characters(codec="utf-8")),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), v, max_size=3)
        ),
        max_leaves=8,
    ),
    loss=st.floats() | st.none(),
)
def test_whatever_a_document_holds_its_seal_fits_when_it_is_read(
    tmp_path_factory: Any, value: Any, loss: float | None
) -> None:
    store = JobStore(f"sqlite:///{tmp_path_factory.mktemp('documents') / 'state.db'}")
    store.add(new_job())
    held = store.claim("w")
    assert held is not None
    store.record(held, certificate={"value": value}, training_loss=loss)
    assert store.get(held.id).certificate == {"value": value}
    store.close()


# ---------------------------------------------------------------- one damaged row


SPOILT = {
    "no JSON": "verdict = '{'",
    "half a text": "name = CAST(x'c3' AS TEXT)",
    "a number": "status = 7",
    "bytes": "options = x'00ff'",
    "another loss": "training_loss = 0.0001",
    "no status": "status = 'DONE'",
    "no seal": "seal = NULL",
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_damaged_row_is_named_and_left_out_and_the_rest_answers(home: Path, kind: str) -> None:
    service = Tunesmith()
    fill(service.store)
    jobs = {j.name: j for j in service.show()}
    lost = jobs["m4"]
    with sqlite3.connect(home / "state.db") as c:
        c.execute(f"UPDATE jobs SET {SPOILT[kind]} WHERE id = ?", [lost.id])
    c.close()
    with pytest.warns(Notice, match=lost.id):
        assert {j.name for j in service.show()} == set(jobs) - {"m4"}
    with pytest.raises(DamagedRow, match=lost.id):
        service.describe(lost.id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tunesmith.connect() as sql:
            assert sql.execute("SELECT count(*) FROM tunesmith.jobs").fetchall() == [(7,)]
            assert sql.execute("SELECT count(*), max(word) FROM tunesmith.verdicts").fetchall() == [
                (1, "HELPED")
            ]
        assert service.store.claim("w2") is not None, "the others' jobs go on"
    checks = {c.name: c for c in doctor.examine()}
    assert not checks["rows"].ok and lost.id in checks["rows"].found and checks["store"].ok
    program = "from tunesmith import worker; worker.ensure = lambda *a, **k: None; from tunesmith.interfaces.cli import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", program, "job", "list"], capture_output=True, text=True
    )
    assert (
        said.returncode == 0
        and lost.id not in said.stdout
        and f"tunesmith: The store's row {lost.id} of jobs is damaged" in said.stderr
    )
    service.store.drop_model("4")
    service.delete_job(lost.id)
    assert {c.name: c for c in doctor.examine()}["rows"].ok


def test_a_damaged_row_stops_no_sweep(home: Path) -> None:
    service = Tunesmith()
    rows = [{"prompt": f"q {i}", "completion": "a"} for i in range(12)]
    jobs = [service.create("m", "tunesmith-tiny", rows) for _ in range(3)]
    for job in jobs:
        service.cancel(job.id)
        (service.settings.job_folder(job.id) / "attempt-1" / "step-1").mkdir(parents=True)
    with sqlite3.connect(home / "state.db") as c:
        c.execute("UPDATE jobs SET owner = 'q' WHERE id = ?", [jobs[0].id])
    c.close()
    worker.sweep(service.settings, service.store)
    left = {p.parent.parent.name for p in home.glob("jobs/*/attempt-1/step-1")}
    assert left == {jobs[0].id.removeprefix("ft_")}, (
        "of what cannot be believed nothing is taken away"
    )


@pytest.mark.parametrize("value", ["'abc'", "2", "x'00'"])
def test_a_flag_that_is_neither_true_nor_false_is_seen(home: Path, value: str) -> None:
    service = Tunesmith()
    fill(service.store)
    with sqlite3.connect(home / "state.db") as c:
        c.execute(f"UPDATE models SET is_current = {value} WHERE name = 'm4'")
    c.close()
    with pytest.warns(Notice, match="row 4 of models"):
        assert [m.name for m in service.models()] == ["m0"]
    with pytest.raises(DamagedRow, match="row 4 of models"):
        service.model("m4")
    assert "row 4 of models" in {c.name: c for c in doctor.examine()}["rows"].found


# ---------------------------------------------------------------- one bit


def sweep(file: Path, whole: dict[str, list[Any]], chance: random.Random) -> str:
    """Flip a bit of a store's file and ask every door: what became of it. AssertionError where a
    change is shown as true."""
    data = bytearray(file.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    known = {name: {repr(r) for r in rows} for name, rows in whole.items()}
    seen = set()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            store = JobStore(f"sqlite:///{file}", home=whole["jobs"][0]["home"])
        except TunesmithError:
            return "refused"
        with contextlib.closing(store):
            for name in SEALED:
                try:
                    rows = store.rows(name)
                except TunesmithError:
                    seen.add("refused")
                    continue
                for r in rows:
                    is_known = repr(r) in known[name] or (
                        name in ("usage", "events")
                        and any(_but_id(r) == _but_id(k) for k in whole[name])
                    )
                    assert is_known, (name, r)
                seen |= {"left out"} if len(rows) < len(whole[name]) else set()
            for ask in (
                store.all_jobs,
                store.all_models,
                store.count_jobs,
                store.has_work,
                store.states,
                store.integrity,
                lambda: list(store.damaged()),
            ):
                try:
                    ask()
                except TunesmithError:
                    seen.add("refused")
            for job in whole["jobs"]:
                try:
                    assert store.get(job["id"]).verdict == job["verdict"]
                except TunesmithError:
                    seen.add("refused")
            if seen and not told and "refused" not in seen:
                assert store.integrity() or list(store.damaged()), (
                    "something is gone, and nothing tells of it"
                )
    return "left out" if "left out" in seen else "refused" if seen else "nothing to see"


def _but_id(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "id"}


def test_no_flipped_bit_gives_a_raw_error_or_changes_what_is_shown(tmp_path: Path) -> None:
    """Sixty here; `make proofs` has 300."""
    whole = tmp_path / "whole.db"
    store = JobStore(f"sqlite:///{whole}", home="h")
    fill(store)
    rows = everything(store)
    store.close()
    chance, found = random.Random(0), []
    for _ in range(60):
        shutil.copy(whole, tmp_path / "flipped.db")
        found.append(sweep(tmp_path / "flipped.db", rows, chance))
    assert {"left out", "nothing to see"} <= set(found), "the flips reach rows, and also free space"


def test_a_control_store_without_seals_shows_what_is_not_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same flips with the guard away: so the test above can fail."""
    whole = tmp_path / "whole.db"
    store = JobStore(f"sqlite:///{whole}", home="h")
    fill(store)
    rows = everything(store)
    store.close()
    monkeypatch.setattr(schema, "damage", lambda table, row: "")
    chance, wrong = random.Random(0), 0
    for _ in range(60):
        shutil.copy(whole, tmp_path / "flipped.db")
        try:
            sweep(tmp_path / "flipped.db", rows, chance)
        except Exception:
            wrong += 1
    assert wrong > 2


def test_a_file_that_is_no_store_is_told(home: Path) -> None:
    Tunesmith().show()
    (home / "state.db").write_bytes(b"\xff" * 8192)
    with pytest.raises(StoreUnavailable):
        Tunesmith().show()
    assert not {c.name: c for c in doctor.examine()}["store"].ok


def test_doctor_deep_reads_what_is_at_rest(home: Path) -> None:
    service = Tunesmith()
    job = service.create(
        "m", "tunesmith-tiny", [{"prompt": f"q {i}", "completion": "a"} for i in range(12)]
    )
    service.cancel(job.id)
    assert {c.name: c for c in doctor.examine(deep=True)}["at rest"].ok
    [file] = (service.settings.job_folder(job.id) / "data").glob("train.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert {c.name: c for c in doctor.examine()}["files"].ok, "a look is not a reading"
    check = {c.name: c for c in doctor.examine(deep=True)}["at rest"]
    assert not check.ok and job.id in check.found and "train.parquet" in check.found
    with service.store._engine.begin() as c:
        c.execute(schema.usage.insert().values({**USED, "ended_at": 0.0, "seal": 5}))
    assert "usage" in {c.name: c for c in doctor.examine(deep=True)}["at rest"].found
    said = CliRunner().invoke(app, ["doctor", "--deep"])
    assert said.exit_code == 1 and "at rest" in said.output

"""What doctor sees of a machine, and what it says to do."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from tunesmith.interfaces import doctor
from tunesmith.schema import REVISION
from tunesmith.store import JobStore


def checks() -> dict[str, doctor.Check]:
    return {c.name: c for c in doctor.examine()}


def test_a_fit_machine_is_told_what_is_there(home: Path) -> None:
    found = checks()
    assert all(c.ok for c in found.values()), [c for c in found.values() if not c.ok]
    assert "ms a file" in found["fsync"].found and "boot clock" in found["clock"].found
    assert (
        sqlite3.sqlite_version in found["store"].found
        and f"schema {REVISION}" in found["store"].found
    )
    assert found["torch build"].found in ("for the CPU",) or found["torch build"].found.startswith(
        "for CUDA"
    )
    assert "usable" in found["processor"].found


def test_the_kind_of_file_system_is_read_from_the_mount_that_holds_the_folder() -> None:
    assert (
        doctor._file_system(Path("/proc/self")) == "proc" and doctor._file_system(Path("/")) != ""
    )


def test_a_network_file_system_is_no_place_for_a_store(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_file_system", lambda folder: "nfs4")
    fsync = checks()["fsync"]
    assert not fsync.ok and "on nfs4" in fsync.found and "TUNESMITH_STORE" in fsync.advice


def test_a_wrong_clock_and_a_store_of_a_newer_program_are_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JobStore(f"sqlite:///{home / 'state.db'}").close()
    engine = sa.create_engine(f"sqlite:///{home / 'state.db'}")
    with engine.begin() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    monkeypatch.setattr(doctor, "BUILT", 3000)
    found = checks()
    assert not found["clock"].ok and "set the clock" in found["clock"].advice
    assert not found["store"].ok and "pip install -U tunesmith" in found["store"].advice


def test_a_store_whose_disk_is_broken_is_told(home: Path) -> None:
    home.mkdir()
    (home / "state.db").write_bytes(b"this is no database" * 1000)
    store = checks()["store"]
    assert not store.ok and "cannot be used" in store.advice

"""After a restore of rows without files, or of files without rows."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import next_word_rows
from tunesmith import Tunesmith, durable, worker
from tunesmith.errors import UnknownModel
from tunesmith.interfaces.doctor import examine
from tunesmith.jobs import JobStatus
from tunesmith.repair import mismatches, repair
from tunesmith.settings import Settings


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Tunesmith:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    return Tunesmith()


def model(service: Tunesmith, name: str) -> Path:
    """A model with files of its own; what they hold is not read here."""
    folder = service.settings.home / "models" / f"id-{name}" / "v1"
    base = service.model("tunesmith-tiny").base
    with durable.staging(service.settings.home) as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "weights").write_text(name)
        digest = durable.publish(staged / "inner", folder, {"name": name})
    service.store.add_model(
        dict(
            id=f"id-{name}",
            name=name,
            model_key=name,
            job_id=None,
            base_model=base.name,
            base=base.to_json(),
            task=base.task,
            method="full",
            folder=f"models/id-{name}/v1",
            digest=digest,
            verdict=None,
            owner="me",
        )
    )
    return folder


def mend(service: Tunesmith) -> Path | None:
    return repair(
        service.settings,
        service.store,
        list(mismatches(service.settings, service.store, read=True)),
    )


def kinds(service: Tunesmith, *, read: bool = True) -> list[str]:
    return sorted(m.kind for m in mismatches(service.settings, service.store, read=read))


def test_where_rows_and_files_belong_together_nothing_is_found_and_nothing_is_touched(
    service: Tunesmith,
) -> None:
    model(service, "a")
    service.create("job", "tunesmith-tiny", next_word_rows())
    before = sorted(p for p in service.settings.home.rglob("*"))
    assert kinds(service) == [] and mend(service) is None
    assert sorted(p for p in service.settings.home.rglob("*")) == before


def test_every_mismatch_is_found_mended_and_found_no_more(service: Tunesmith) -> None:
    home = service.settings.home
    whole, gone, damaged = (model(service, n) for n in ("whole", "gone", "damaged"))
    shutil.rmtree(gone.parent)
    (damaged / "weights").write_text("other")
    (home / "models" / "stray" / "v1").mkdir(parents=True)
    lost = service.create("lost", "tunesmith-tiny", next_word_rows())
    shutil.rmtree((service.settings.job_folder(lost.id) / "data").resolve())
    (home / "jobs" / "nobodys").mkdir()
    assert kinds(service) == [
        "damaged_model",
        "files_without_job",
        "files_without_model",
        "job_without_rows",
        "model_without_files",
    ]
    assert "damaged_model" not in kinds(service, read=False)
    assert not {c.name: c for c in examine()}["files"].ok
    place = mend(service)
    assert place is not None and place.parent == home / "unclaimed"
    assert kinds(service) == [] and {c.name: c for c in examine()}["files"].ok
    assert [m.name for m in service.models()] == ["whole"] and whole.is_dir()
    with pytest.raises(UnknownModel):
        service.model("gone")
    assert lost.refresh().status is JobStatus.CANCELLED
    kept = {str(p.relative_to(place)) for p in place.rglob("*")}
    assert {"models/id-damaged/v1/weights", "models/stray/v1", "jobs/nobodys"} <= kept, (
        "nothing is deleted"
    )


def test_a_name_answers_with_the_last_version_that_is_left(service: Tunesmith) -> None:
    model(service, "first")
    newer = model(service, "second")
    with service.store._engine.begin() as c:
        from tunesmith.schema import models, seal_all

        c.execute(
            models.update()
            .where(models.c.id == "id-second")
            .values(line="first", version=2, is_current=True, seal=None)
        )
        c.execute(
            models.update().where(models.c.id == "id-first").values(is_current=False, seal=None)
        )
        seal_all(c)
    assert service.model("first").name == "second"
    shutil.rmtree(newer.parent)
    mend(service)
    assert service.model("first").name == "first" and service.model("first").is_current


def test_what_is_put_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "models" / "x" / "v1").mkdir(parents=True)
        (tmp_path / "models" / "x" / "v1" / "f").write_text(text)
        durable.put_aside(tmp_path / "models" / "x" / "v1", tmp_path / "unclaimed" / "x" / "v1")
    assert [(tmp_path / "unclaimed" / "x" / v / "f").read_text() for v in ("v1", "v1.1")] == [
        "one",
        "two",
    ]
    assert not (tmp_path / "models" / "x").exists()


def test_repair_waits_while_a_worker_is_at_work(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from tunesmith.interfaces import doctor
    from tunesmith.interfaces.cli import app

    said = CliRunner().invoke(app, ["doctor", "--repair", "--json"])
    assert said.exit_code == 0 and json.loads(said.stdout) == []
    monkeypatch.setattr(doctor, "is_alive", lambda home: True)
    refused = CliRunner().invoke(app, ["doctor", "--repair"])
    assert refused.exit_code != 0 and "worker is at work" in str(refused.exception)
    assert Settings.read().home == home

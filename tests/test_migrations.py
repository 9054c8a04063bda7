"""A store of every released revision opens, and its jobs go on; what is newer is refused and left
alone."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from test_store import url
from tunesmith import schema
from tunesmith.errors import DamagedRow, Notice, StoreTooNew
from tunesmith.jobs import JobStatus
from tunesmith.schema import MIGRATIONS, REVISION, metadata
from tunesmith.store import JobStore

__all__ = ["url"]  # the fixture: an empty store on each database
NOW, AFTER = REVISION, f"{int(REVISION) + 1:04}"
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("store-*.sql"))


def config(connection: sa.Connection | None = None, folder: str = MIGRATIONS) -> Config:
    made = Config()
    made.set_main_option("script_location", folder)
    made.attributes["connection"] = connection
    return made


def test_the_revisions_end_with_the_one_the_program_knows_and_each_has_a_fixture() -> None:
    script = ScriptDirectory.from_config(config())
    assert script.get_heads() == [REVISION]
    assert [f.stem.removeprefix("store-") for f in FIXTURES] == sorted(
        r.revision for r in script.walk_revisions()
    )


def test_all_revisions_from_an_empty_store_give_the_schema_that_a_new_one_has(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as c:
        command.upgrade(config(c), "head")
        assert compare_metadata(MigrationContext.configure(c), metadata) == []
        assert {i["name"] for i in sa.inspect(c).get_indexes("jobs")} >= {"one_job_per_name"}
    engine.dispose()


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda f: f.stem)
def test_a_store_of_an_earlier_release_opens_and_its_jobs_go_on(
    fixture: Path, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "state.db") as c:
        c.executescript(fixture.read_text())
    store = JobStore(f"sqlite:///{tmp_path / 'state.db'}")
    jobs = {j.name: j for j in store.all_jobs()}
    assert {n: j.status.value for n, j in jobs.items()} == {
        "done": "SUCCEEDED",
        "failed": "FAILED",
        "running": "RUNNING",
        "waiting": "PENDING",
    }
    assert (
        jobs["running"].warnings == ("few rows",) and store.find_request("a key") == jobs["running"]
    )
    assert {r["task"] for t in ("jobs", "models") for r in store.rows(t)} == {"text_generation"}, (
        "what it was called before, is called so now"
    )
    assert [m.name for m in store.all_models()] == ["done"] and len(
        store.rows("row_losses")
    ) == len(store.rows("usage")) == 1
    first, second = store.claim("me"), store.claim("me2")
    assert first is not None and (first.name, first.status, first.attempt) == (
        "running",
        JobStatus.RUNNING,
        2,
    ), "its worker was of another boot"
    assert second is not None and second.name == "waiting"
    store.close()


NEXT = """
import sqlalchemy as sa
from alembic import op
from tunesmith.errors import DamagedRow
revision, down_revision = "{after}", "{now}"
def upgrade():
    op.add_column("jobs", sa.Column("colour", sa.String(), nullable=True))
    op.execute("UPDATE jobs SET name = upper(name)")
    {then}
"""


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A program with one revision more; `then` is its last statement."""

    def release(then: str) -> None:
        folder = tmp_path / "migrations"
        (folder / "versions").mkdir(parents=True, exist_ok=True)
        ours = Path(schema.__file__).parent / "migrations"
        for name in ("env.py", *(f"versions/{f.name}" for f in (ours / "versions").glob("0*.py"))):
            (folder / name).write_text((ours / name).read_text())
        text = NEXT.format(then=then, now=NOW, after=AFTER)
        (folder / "versions" / f"{AFTER}_next.py").write_text(text)
        monkeypatch.setattr(schema, "MIGRATIONS", str(folder))
        monkeypatch.setattr(schema, "REVISION", AFTER)

    return release


def columns(url: str) -> tuple[str, bool, list[str]]:
    engine = sa.create_engine(url)
    with engine.begin() as c:
        found = (
            c.scalar(sa.text("SELECT version_num FROM alembic_version")),
            "colour" in {x["name"] for x in sa.inspect(c).get_columns("jobs")},
            list(c.scalars(sa.text("SELECT name FROM jobs"))),
        )
    engine.dispose()
    return found


def test_an_upgrade_happens_whole_or_not_at_all(url: str, next_release: Any) -> None:
    from test_store import new_job

    store = JobStore(url)
    store.add(new_job("kept"))
    store.close()
    next_release("raise RuntimeError('the power went')")
    with pytest.raises(RuntimeError, match="power"):
        JobStore(url)
    assert columns(url) == (NOW, False, ["kept"]), "nothing of it stayed"
    next_release("pass")
    JobStore(url).close()
    assert columns(url) == (AFTER, True, ["KEPT"])


def test_a_newer_store_is_refused_and_left_alone(url: str) -> None:
    JobStore(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreTooNew, match="9999"):
        JobStore(url)
    assert columns(url)[0] == "9999"


@pytest.mark.parametrize("change", ["trained_tokens = 9, seal = NULL", "trained_tokens = 9"])
def test_an_upgrade_makes_no_damaged_row_sound(tmp_path: Path, change: str) -> None:
    [fixture] = [f for f in FIXTURES if f.stem == "store-0003"]
    with sqlite3.connect(tmp_path / "state.db") as c:
        c.executescript(fixture.read_text())
        c.execute(f"UPDATE jobs SET {change} WHERE name = 'done'")
        [(done,)] = c.execute("SELECT id FROM jobs WHERE name = 'done'").fetchall()
    store = JobStore(f"sqlite:///{tmp_path / 'state.db'}")
    with pytest.raises(DamagedRow):
        store.get(done)
    with pytest.warns(Notice, match=done):
        others = store.rows("jobs")
    assert len(others) == 3 and {r["task"] for r in others} == {"text_generation"}
    store.close()

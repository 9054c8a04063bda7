"""A task that Tunesmith knows nothing of, in a package of its own (tests/packages), goes the whole
way that text generation goes: CREATE in SQL, the real worker, a kill and a resume, verdict,
certificate, answers, export and import."""

import importlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from forks import phases_of
from safetensors.torch import load_file

import tunesmith
from conftest import until
from tunesmith import Tunesmith, catalog
from tunesmith.errors import (
    InvalidOptionValue,
    InvalidQuestion,
    MissingColumns,
    Notice,
    OptionNotRead,
    TaskNotLoaded,
    UnknownTask,
    WrongTask,
)
from tunesmith.jobs import JobStatus
from tunesmith.tasks import specs

PACKAGES = Path(__file__).parents[1] / "packages"
POINTS = """SELECT [x / 20.0, y / 20.0] AS vector, round(1.5 * x / 20 - y / 20, 3) AS number,
    CASE WHEN x % 2 = 0 THEN 'even' ELSE 'odd' END AS kind FROM range(-20, 20) a(x), range(-20, 20) b(y)
"""
ASKED = '{"max_epochs": 10, "learning_rate": 0.01, "batch_size": 16}'


@pytest.fixture
def base(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A base of the other task, whose package is installed."""
    monkeypatch.syspath_prepend(str(PACKAGES))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.delenv("TUNESMITH_PRELOADED")  # a process that was started without the package
    specs._declared.cache_clear()
    code = importlib.import_module("vector_task.code")
    torch.manual_seed(0)
    code.Model(code.Config(inputs=2)).save_pretrained(tmp_path / "base")
    yield tmp_path / "base"
    specs._declared.cache_clear()


@pytest.fixture
def connection(home: Path, base: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with tunesmith.connect() as made:
        made.execute(f"CREATE TABLE points AS {POINTS}")
        yield made


def create(connection: duckdb.DuckDBPyConnection, name: str, base: Path, asked: str = ASKED) -> str:
    call = f"SELECT FINETUNE('CREATE', '{name}', '{base}', 'FROM points', NULL, '{asked}')"
    return str(connection.execute(call).fetchall()[0][0])


def weights(service: Tunesmith, name: str) -> dict[str, torch.Tensor]:
    return load_file(Path(service.model(name).folder) / "model.safetensors")


def test_it_goes_the_whole_way(
    connection: duckdb.DuckDBPyConnection, base: Path, tmp_path: Path
) -> None:
    service = Tunesmith()
    undisturbed = service.wait(create(connection, "plain", base), timeout_s=120)
    assert undisturbed.status is JobStatus.SUCCEEDED, undisturbed.error
    assert undisturbed.task == "vector_to_number"

    killed = create(connection, "killed", base)
    until(lambda: service.describe(killed).step >= 5, 60)
    for pid in phases_of(service.settings.home, "train"):
        os.kill(pid, signal.SIGKILL)
    job = service.wait(killed, timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED and job.attempt > 1, job.error
    before, after = weights(service, "plain"), weights(service, "killed")
    assert before and all(torch.equal(w, after[n]) for n, w in before.items())

    assert job.verdict is not None and job.certificate is not None
    assert job.verdict["word"] == "HELPED" and job.verdict["metric"] == "within_0.2"
    assert (
        set(job.verdict["arms"]) == {"base", "commonest", "tuned"} and not job.verdict["retention"]
    )
    assert [g["column"] for g in job.verdict["bias"]["gaps"]] == ["kind"]
    assert job.certificate["equal"] == job.certificate["probes"] > 32
    assert job.certificate["different_from_base"] > 0
    assert job.trained_tokens == job.input_tokens * 10 == 2 * job.rows["train"] * 10

    asked = "SELECT CAST(COMPLETE('killed', v) AS DOUBLE) FROM (VALUES ([0.5, -0.5]), ([0.0, 1.0])) t(v)"
    found = [x for (x,) in connection.execute(asked).fetchall()]
    assert found == pytest.approx([1.25, -1.0], abs=0.3)
    assert "".join(service.stream("killed", [0.5, -0.5])) == f"{found[0]:.4f}"

    service.export("killed", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "vector_to_number" in card and "AutoTokenizer" not in card
    service.import_model(tmp_path / "out", "back", base_model=str(base))
    assert service.complete("back", [[0.5, -0.5]])[0].text == f"{found[0]:.4f}"
    mixed = service.complete(["back", "tunesmith-tiny"], [[0.0, 1.0], "hello"], max_tokens=2)
    assert mixed[0].text == f"{found[1]:.4f}" and mixed[1].completion_tokens <= 2


def test_before_a_job_the_task_says_what_is_wrong(
    connection: duckdb.DuckDBPyConnection, base: Path
) -> None:
    service = Tunesmith(connection)
    rows = POINTS.replace("range(-20, 20) b(y)", "range(-9, 9) b(y)")
    odd = f"{rows} UNION ALL SELECT [1.0], 1, 'odd' UNION ALL SELECT NULL, 2, 'odd'"
    report = service.audit(f"{odd} UNION ALL SELECT [0.0, 0.0], 9, 'odd'", base_model=str(base))
    counts = {f.name: f.count for f in report.findings}
    assert counts["unusable"] == 1 and counts["conflicts"] == 2 and report.tokens is None
    assert not counts.keys() & {"too_long", "mojibake", "near_duplicates"}

    quote = service.quote(odd, base_model=str(base), max_epochs=2)
    assert quote.tokens_per_epoch % 2 == 0 and quote.method == "full" and quote.linear is None

    job = service.wait(service.create("m", str(base), odd, max_epochs=1).id, timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED, job.error
    told = {r["reason"]: r["detail"] for r in service.rows("rejections", job.id)}
    assert told["another length"] == "1 numbers, the base takes 2"
    assert "vector or number is none" in told


def test_what_the_task_does_not_read_is_refused_at_the_door(base: Path) -> None:
    service = Tunesmith()
    rows: Any = [{"vector": [1.0, 2.0], "number": 1.0}] * 20
    for option, reader in (
        ("rank", "lora"),
        ("swap_terms", "text_generation"),
        ("on_long", "text"),
    ):
        value = {"rank": 4, "swap_terms": "a/b", "on_long": "fail"}[option]
        with pytest.raises(OptionNotRead, match=reader):
            service.create("m", str(base), rows, **{option: value})
    with pytest.raises(InvalidOptionValue, match="vector_to_number is tuned by full"):
        service.create("m", str(base), rows, method="lora")
    with pytest.raises(MissingColumns, match="SELECT … AS vector, … AS number"):
        service.create("m", str(base), [{"prompt": "a", "completion": "b"}])
    for wrong in ("red", [1.0, None], [1.0]):
        with pytest.raises(InvalidQuestion):
            service.complete(str(base), [wrong])
    for wrong_option in ({"temperature": 0.5}, {"response_format": {"schema": {}}}):
        with pytest.raises(OptionNotRead, match="vector_to_number"):
            service.complete(str(base), [[1.0, 2.0]], **wrong_option)
    with pytest.raises(WrongTask, match="vector_to_number"):
        service.count_tokens(str(base), "a text")


def test_without_its_package_a_task_is_refused_by_name() -> None:
    with pytest.raises(UnknownTask, match="'vector_to_number' is known to no package"):
        specs.find("vector_to_number")


BROKEN = {
    "does not import": "import nosuch_module",
    "is no declaration": "SPEC = 3",
    "declares nothing": "",
    "takes the product's own name": "SPEC = spec(name='text_generation')",
    "is called otherwise": "SPEC = spec(name='other')",
    "has odd model types": "SPEC = spec(model_types='llama')",
    "takes another task's bases": "SPEC = spec(model_types=frozenset({'vector_numbers'}))",
    "has no columns": "SPEC = spec(columns={})",
    "has no methods": "SPEC = spec(methods=())",
    "has a file of its own": "SPEC = spec(preprocessing='x.json')",
}
DECLARATION = """
from tunesmith.tasks.specs import TaskSpec
def spec(**odd):
    usual = dict(name='odd', columns={'prompt': ('p',), 'completion': ('c',)}, methods=('full',),
                 rows='nosuch.rows', code='nosuch.code')
    return TaskSpec(**{**usual, **odd})
"""


@pytest.mark.parametrize("harm", BROKEN)
def test_a_broken_package_is_told_and_harms_no_other_task(
    base: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    name = f"broken_{list(BROKEN).index(harm)}"
    package = tmp_path / "site"
    (package / f"{name}-1.0.dist-info").mkdir(parents=True)
    (package / f"{name}.py").write_text(DECLARATION + BROKEN[harm])
    metadata = package / f"{name}-1.0.dist-info"
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[tunesmith.tasks]\nzz_odd = {name}:SPEC\n")
    if harm == "takes the product's own name":
        (metadata / "entry_points.txt").write_text(
            f"[tunesmith.tasks]\ntext_generation = {name}:SPEC\n"
        )
    monkeypatch.syspath_prepend(str(package))
    specs._declared.cache_clear()
    specs._told.clear()
    with pytest.warns(Notice, match="the task .* cannot be used"):
        assert catalog.find(str(tiny_base), tmp_path).task == "text_generation"
    assert catalog.find(str(base), tmp_path).task == "vector_to_number"
    if harm != "takes the product's own name":
        with pytest.raises(TaskNotLoaded, match="zz_odd"):
            specs.find("zz_odd")


def test_modules_that_cannot_be_imported_are_an_error_of_the_task(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(specs.find("vector_to_number"), rows="nosuch.rows", code="nosuch.code")
    for ask in (lambda: broken.rules, lambda: broken.task):
        with pytest.raises(TaskNotLoaded, match=r"nosuch\.\w+ cannot be imported"):
            ask()


def test_a_base_of_another_task_is_known_wherever_it_stands(base: Path, tmp_path: Path) -> None:
    place = tmp_path / "home" / "bases" / "org" / "vectors"
    place.parent.mkdir(parents=True)
    base.rename(place)
    assert catalog.find("org/vectors", tmp_path / "home").task == "vector_to_number"

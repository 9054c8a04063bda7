import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from conftest import next_word_rows
from tunesmith import Tunesmith, access, worker
from tunesmith.access import Principal
from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset
from tunesmith.errors import (
    BudgetTooSmall,
    DatabaseBusy,
    DatabaseNotOpened,
    DiskFull,
    Forbidden,
    IdempotencyConflict,
    InvalidModelName,
    InvalidOption,
    InvalidOptionValue,
    MissingExtra,
    NoSuchTable,
    NotADataSource,
    NoUsableRows,
    TooManyRows,
    TunesmithError,
    UnfitBaseModel,
    UnknownBaseModel,
    UnknownJob,
    UnknownModel,
    WeightsNotHere,
)
from tunesmith.jobs import JobStatus
from tunesmith.options import Decided, Options
from tunesmith.tuning.recipe import Known, decide

ROWS = "SELECT 'q' || i AS prompt, 'a' AS completion FROM range(20) r(i)"


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Tunesmith:
    """A service whose jobs stay PENDING: no worker is started."""
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    return Tunesmith()


def test_create_freezes_the_rows_and_accepts_the_job(service: Tunesmith) -> None:
    job = service.create("m", "tunesmith-tiny", ROWS, max_epochs=2)
    assert job.status is JobStatus.PENDING and job.id.startswith("ft_") and len(job.id) == 39
    assert job.rows == {"train": 16, "validation": 2, "verdict": 2, "rejected": 0}
    assert service.describe(job.id) == job and job.options.max_epochs == 2 and job.refresh() == job


def test_create_for_500_rows_takes_under_200_ms(service: Tunesmith) -> None:
    query = "SELECT repeat('word ', 40) || i AS prompt, 'a' AS completion FROM range(500) r(i)"
    service.create("warm", "tunesmith-tiny", query)
    took = []
    for i in range(5):
        began = time.perf_counter()
        service.create(f"m{i}", "tunesmith-tiny", query)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.2, f"the promise of 200 ms, the best of five: {took}"


def test_one_idempotency_key_makes_one_job(service: Tunesmith) -> None:
    first = service.create("m", "tunesmith-tiny", ROWS, idempotency_key="k")
    assert service.create("m", "tunesmith-tiny", ROWS, idempotency_key="k").id == first.id
    with pytest.raises(IdempotencyConflict):
        service.create("m", "tunesmith-tiny", ROWS + " LIMIT 5", idempotency_key="k")
    assert len(service.show()) == 1
    assert len(list((service.settings.home / "jobs").iterdir())) == 1


def test_a_streamed_answer_is_the_whole_one_and_is_paid_for_also_when_nobody_listens_to_the_end(
    service: Tunesmith,
) -> None:
    [whole] = service.complete("tunesmith-tiny", ["Where is my card?"], max_tokens=12)
    assert (
        "".join(service.stream("tunesmith-tiny", "Where is my card?", max_tokens=12)) == whole.text
    )
    pieces = service.stream("tunesmith-tiny", "Where is my card?", max_tokens=12)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    output = [u["output_tokens"] for u in service.rows("usage")]
    assert output[:2] == [whole.completion_tokens] * 2 and 0 < output[2] < output[0]
    with pytest.raises(UnknownModel):
        next(service.stream("no-such", "x"))


@pytest.mark.parametrize("kind", ["dicts", "pandas", "arrow", "jsonl", "stage", "csv", "parquet"])
def test_training_data_may_be_rows_or_files(service: Tunesmith, tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(next_word_rows(2))
    file = tmp_path / f"rows.{'jsonl' if kind == 'stage' else kind}"
    match kind:
        case "jsonl" | "stage":
            frame.to_json(file, orient="records", lines=True)
        case "csv":
            frame.to_csv(file, index=False)
        case "parquet":
            frame.to_parquet(file)
    import pyarrow

    data: Any = {
        "dicts": next_word_rows(2),
        "pandas": frame,
        "arrow": pyarrow.Table.from_pandas(frame),
        "stage": f"@{file}",
    }.get(kind, str(file))
    job = service.create("m", "tunesmith-tiny", data)
    assert job.rows["train"] + job.rows["validation"] + job.rows["verdict"] == 20


BAD: list[tuple[type[TunesmithError], str, dict[str, Any]]] = [
    (
        UnknownBaseModel,
        r"'tunesmith-tini'.*Did you mean 'tunesmith-tiny'",
        {"base_model": "tunesmith-tini"},
    ),
    (UnknownBaseModel, "not/here", {"base_model": "./not/here"}),
    (
        WeightsNotHere,
        r"tunesmith base add mistral-7b`",
        {"base_model": "mistral-7b"},
    ),
    (WeightsNotHere, r"tunesmith base add someone/something`", {"base_model": "someone/something"}),
    (InvalidModelName, r"'1x'", {"name": "1x"}),
    (InvalidOption, r"'epochs' = 3.*'max_epochs'", {"epochs": 3}),
    (InvalidOptionValue, r"learning_rate = -1", {"learning_rate": -1}),
    (
        NoUsableRows,
        r"0 rows",
        {"training_data": "SELECT 'a' AS prompt, 'b' AS completion WHERE false"},
    ),
    (NotADataSource, r"42", {"training_data": 42}),
    (
        TooManyRows,
        r"100,001 training rows.*66,666 at 3 epochs",
        {"training_data": "SELECT i::VARCHAR AS prompt, 'a' AS completion FROM range(100001) r(i)"},
    ),
    (
        TooManyRows,
        r"More than 133,332 training rows.*66,666 at 3 epochs",
        {"training_data": "SELECT i::VARCHAR AS prompt, 'a' AS completion FROM range(200001) r(i)"},
    ),
]


def test_a_budget_below_one_step_is_told_before_anything_is_loaded(service: Tunesmith) -> None:
    with pytest.raises(
        BudgetTooSmall,
        match="budget_tokens allows 3 tokens, less than the first optimizer step of 8 rows",
    ):
        service.quote(ROWS, base_model="tunesmith-tiny", budget_tokens=3)
    assert not list(service.settings.home.glob("quotes/*"))


@pytest.mark.parametrize(
    ("error", "text", "changes"), BAD, ids=lambda v: v.__name__ if isinstance(v, type) else ""
)
def test_bad_input_is_told_at_the_door_and_changes_nothing(
    service: Tunesmith, error: type[TunesmithError], text: str, changes: dict[str, Any]
) -> None:
    arguments = {"name": "m", "base_model": "tunesmith-tiny", "training_data": ROWS, **changes}
    with pytest.raises(error, match=text):
        service.create(
            arguments.pop("name"),
            arguments.pop("base_model"),
            arguments.pop("training_data"),
            **arguments,
        )
    assert service.show() == [] and not list(service.settings.home.glob("jobs/*"))


def test_a_bad_name_is_told_before_any_row_is_read(service: Tunesmith) -> None:
    with pytest.raises(InvalidModelName):
        service.create(
            "1x", "tunesmith-tiny", "SELECT error('a row was read') AS prompt, 'x' AS completion"
        )


def test_missing_weights_are_told_before_any_row_is_read(service: Tunesmith) -> None:
    with pytest.raises(WeightsNotHere):
        service.create(
            "m", "llama3-8b", "SELECT error('a row was read') AS prompt, 'x' AS completion"
        )


def test_without_the_training_packages_a_job_is_refused_at_the_door(
    service: Tunesmith, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(
        sys.modules, "torch", None
    )  # Python's own way to say that a module cannot be had
    with pytest.raises(MissingExtra, match=r"tuning needs packages.*tunesmith\[train\]"):
        service.create("m", "tunesmith-tiny", ROWS)
    assert service.show() == []


def test_a_base_that_wants_to_run_code_is_created_on_without_it(
    service: Tunesmith, tiny_base: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(tiny_base, tmp_path / "evil"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    )
    assert service.create("m", str(folder), ROWS).base["left_out"] == ["auto_map"]
    (folder / "config.json").write_text(
        json.dumps(
            {**config, "model_type": "x", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
        )
    )
    with pytest.raises(UnfitBaseModel, match="as code of its own"):
        service.create("n", str(folder), ROWS)


def test_a_database_held_by_another_process_is_named(home: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "held.duckdb"
    code = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read(); c.close()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "open\n"
    try:
        with pytest.raises(DatabaseBusy, match=r"held\.duckdb.*Parquet"):
            Tunesmith(path).create("m", "tunesmith-tiny", ROWS)
    finally:
        holder.communicate("")


@pytest.mark.parametrize("content", [None, b"this is no database" * 1000])
def test_a_database_that_is_not_there_or_is_none_is_named(
    home: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "shop.duckdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatabaseNotOpened, match=r"shop\.duckdb cannot be opened"):
        Tunesmith(path).create("m", "tunesmith-tiny", ROWS)
    assert path.exists() == (content is not None)


def test_a_database_that_this_process_has_open_is_shared(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    with duckdb.connect(tmp_path / "shop.duckdb") as connection:
        connection.execute("CREATE TABLE t AS SELECT 'q' AS prompt, 'a' AS completion")
        assert (
            Tunesmith(tmp_path / "shop.duckdb")
            .create("m", "tunesmith-tiny", "SELECT * FROM t")
            .rows["train"]
            == 1
        )


def test_a_full_disk_at_create_is_an_error_and_leaves_nothing(
    service: Tunesmith, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith import durable

    monkeypatch.setattr(durable, "RESERVE_MB", 1 << 40)
    with pytest.raises(DiskFull, match="nothing was lost"):
        service.create("m", "tunesmith-tiny", ROWS)
    assert not list((service.settings.home / "tmp").iterdir()) and service.show() == []


def test_unknown_jobs_and_models_name_the_nearest(service: Tunesmith) -> None:
    job = service.create("m", "tunesmith-tiny", ROWS)
    with pytest.raises(UnknownJob, match=job.id):
        service.describe(job.id[:-1])
    with pytest.raises(
        UnknownModel, match=r'unknown model "tunesmith-tin"\. Did you mean .tunesmith-tiny'
    ):
        service.complete("tunesmith-tin", ["x"])
    with pytest.raises(UnknownModel):
        service.complete("m", ["x"])  # its job has not succeeded


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 2),
        ("temperature", "warm"),
        ("top_p", -1),
        ("max_tokens", 0),
        ("max_tokens", 8193),
        ("best_of", 2),
    ],
)
def test_options_of_complete_are_checked(service: Tunesmith, option: str, value: Any) -> None:
    with pytest.raises(InvalidOptionValue, match=option):
        service.complete("tunesmith-tiny", ["x"], **{option: value})


def test_tokens_are_counted_without_torch_or_a_template(service: Tunesmith) -> None:
    assert (
        service.count_tokens("tunesmith-tiny", "")
        == 0
        < service.count_tokens("tunesmith-tiny", "hello")
    )


def test_waiting_can_give_up(service: Tunesmith) -> None:
    job = service.create("m", "tunesmith-tiny", ROWS)
    assert job.wait(timeout_s=0.1).status is JobStatus.PENDING
    assert job.cancel().status is JobStatus.CANCELLED and job.wait().status is JobStatus.CANCELLED


def test_a_users_own_connection_is_left_as_it_was(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT 'q' AS prompt, 'a' AS completion")
        Tunesmith(connection).create("m", "tunesmith-tiny", "SELECT * FROM t")
        assert connection.execute("SHOW TABLES").fetchall() == [("t",)]


def test_prices_are_the_users_to_write(service: Tunesmith) -> None:
    from tunesmith import catalog

    home = service.settings.home
    assert catalog.credits(home, "tunesmith-tiny", "training", 2_000_000) == pytest.approx(0.02)
    home.mkdir(exist_ok=True)
    (home / "prices.toml").write_text("[tunesmith-tiny]\ntraining = 5.0\n")
    assert catalog.credits(home, "tunesmith-tiny", "training", 2_000_000) == pytest.approx(10)
    assert catalog.credits(home, "unheard-of", "inference", 1_000_000) == pytest.approx(0.1)


def test_three_seeds_decide_apart(service: Tunesmith) -> None:
    def parts(**options: Any) -> list[int]:
        job = service.create("m", "tunesmith-tiny", ROWS, **options)
        folder = service.settings.job_folder(job.id) / "data"
        return [r.row for r in Dataset.open(folder, job.data_digest).rows("verdict")]

    assert parts(seed=1) == parts(seed=2, split_seed=1) != parts(seed=2)
    decided = decide(Options.parse({"seed": 5, "order_seed": 7}), KNOWN)
    assert (decided.seed, decided.split_seed, decided.order_seed) == (5, 5, 7)
    assert decided.reasons["split_seed"].words == "as seed"
    old = {n: d for n, d in decided.to_json().items() if n not in ("split_seed", "order_seed")}
    assert Decided.from_json(old).order_seed == 5, "a job of an earlier release had one seed"


KNOWN = Known(ModelSpec(name="b", parameters=3_000_000), 100)


def test_the_service_acts_for_whoever_it_is_told_and_on_his_own_rows(
    service: Tunesmith, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = duckdb.connect()
    rows.execute(
        "CREATE TABLE mine AS SELECT 'q' || i AS prompt, 'a' AS completion FROM range(9) r(i)"
    )
    ana = service.as_(Principal("ana", role="tuners"), rows)
    job = ana.create("m", "tunesmith-tiny", "SELECT * FROM mine")
    assert job.owner == "ana" and service.describe(job.id).owner == "ana"
    assert service.create("n", "tunesmith-tiny", ROWS).owner == service.principal.user
    with pytest.raises(NoSuchTable, match="mine"):
        service.create("o", "tunesmith-tiny", "SELECT * FROM mine")
    monkeypatch.setattr(access, "can", lambda who, privilege, on: who.user != "ana")
    with pytest.raises(Forbidden, match="ana may not OPERATE"):
        ana.cancel(job.id)
    assert service.cancel(job.id).status is JobStatus.CANCELLED

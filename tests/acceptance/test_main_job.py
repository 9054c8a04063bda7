"""The main job with a real worker, a real trainer and real processes, through every door; and what
happens when they are killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from forks import phases_of

import tunesmith
from conftest import WORDS, in_process_worker, kill_worker, next_word_rows, until
from tunesmith import Tunesmith
from tunesmith import worker as worker_module
from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import CertificateRefused, DamagedFiles, DiskFull, NotPromoted, UnknownModel
from tunesmith.jobs import Job, JobStatus
from tunesmith.phases.child import Phase

PROMPTS = [f"say {w}" for w in WORDS] + [f"{w} say" for w in WORDS]
LONG = next_word_rows(8)  # 160 steps
LONGER = next_word_rows(16)  # 320 steps: long enough to be killed in the middle
FAST = {"learning_rate": 1e-2, "batch_size": 5, "max_epochs": 10, "patience": 0}


@pytest.fixture
def database(home: Path, tmp_path: Path) -> Path:
    path = tmp_path / "words.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE words (prompt VARCHAR, completion VARCHAR, kind VARCHAR)")
        connection.executemany(
            "INSERT INTO words VALUES (?, ?, 'word')",
            [[r["prompt"], r["completion"]] for r in next_word_rows(2)],
        )
    return path


def final_weights(service: Tunesmith, job: Job) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    folder = Path(service.model(job.name).folder)
    return load_file(next(folder.glob("*model.safetensors")))


def test_a_table_becomes_a_model_that_answers_in_sql(
    database: Path, home: Path, tuned_base: Path
) -> None:
    query = "SELECT prompt, completion, kind FROM words"
    options = json.dumps({**FAST, "method": "full", "test_data": query})
    with tunesmith.connect(database) as connection:
        statement = "SELECT SNOWFLAKE.CORTEX.FINETUNE('CREATE', 'next_word', ?, ?, ?, ?)"
        [(job_id,)] = connection.execute(
            statement, [str(tuned_base), query, query, options]
        ).fetchall()
        job = Tunesmith().wait(job_id, timeout_s=120)
        assert job.status is JobStatus.SUCCEEDED, job.error

        described = json.loads(
            connection.execute(
                "SELECT SNOWFLAKE.CORTEX.FINETUNE('DESCRIBE', ?)", [job_id]
            ).fetchall()[0][0]
        )
        assert set(described) == {
            "id",
            "status",
            "base_model",
            "created_on",
            "finished_on",
            "progress",
            "training_result",
            "trained_tokens",
            "training_data",
            "validation_data",
            "model",
            "options",
        }
        assert (
            described["status"] == "SUCCESS"
            and described["progress"] == 1.0
            and described["model"] == "next_word"
        )
        assert (
            described["finished_on"] >= described["created_on"]
            and described["training_result"]["validation_loss"] < 0.5
        )

        answers = connection.execute(
            "SELECT prompt, completion, COMPLETE('next_word', prompt) FROM words"
        ).fetchall()
        assert sum(wanted == got for _, wanted, got in answers) >= 18
        assert (
            job.verdict is not None
            and job.verdict["arms"]["tuned"] >= 0.9
            and job.verdict["n"] == 20
        )
        assert job.verdict["arms"]["commonest"] == 0.1 and job.verdict["arms"]["base"] == 0.0
        assert (
            set(job.verdict["arms"]) == {"base", "examples", "commonest", "tuned"}
            and job.verdict["word"] == "HELPED"
        )
        assert (
            job.verdict["losses"]["tuned"] < job.verdict["losses"]["base"]
            and job.verdict["low"] > 0.05
        )

        one = "SELECT trained_tokens, input_tokens FROM tunesmith.jobs"
        trained, once = connection.execute(one).fetchall()[0]
        encoder = Encoder(PromptTemplate.of_base(tuned_base), tuned_base)
        exact = sum(
            len(encoder.row([{"role": "user", "content": r["prompt"]}], r["completion"]).ids)
            for r in next_word_rows(2)
        )
        assert once == exact and trained == described["trained_tokens"] == 10 * exact
        assert connection.execute(
            "SELECT count(DISTINCT row), max(epoch) FROM tunesmith.row_losses WHERE part = 'train'"
        ).fetchall() == [(20, 10)]
        assert connection.execute(
            "SELECT count(*) FROM tunesmith.metrics WHERE validation_loss IS NOT NULL"
        ).fetchall() == [(10,)]
        usage = "SELECT kind, input_tokens FROM tunesmith.usage WHERE kind = 'training'"
        assert connection.execute(usage).fetchall() == [("training", trained)]
        history = "SELECT MODEL_NAME, TOKENS FROM SNOWFLAKE.ACCOUNT_USAGE.CORTEX_FINE_TUNING_USAGE_HISTORY"
        assert connection.execute(history).fetchall() == [(str(tuned_base), trained)]
    same_job_through_the_other_doors(job, home)
    with_plain_transformers(job, tuned_base)


def same_job_through_the_other_doors(job: Job, home: Path) -> None:
    """Python and the command line see the same id and give the same answers."""
    service = Tunesmith()
    assert service.describe(job.id) == job and [m.name for m in service.models()] == ["next_word"]
    assert job.metrics.num_rows > 0 and "validation_loss" in job.metrics.column_names
    assert "SUCCEEDED" in job._repr_html_() and job.id in job._repr_html_()
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith.interfaces.cli", "job", "show", job.id],
        capture_output=True,
        text=True,
    )
    assert (
        shown.stdout.startswith("HELPED: tuning gained")
        and "exact match on 20 verdict rows" in shown.stdout
        and "user: as asked" in shown.stdout
    )
    asked = [
        sys.executable,
        "-m",
        "tunesmith.interfaces.cli",
        "complete",
        "next_word",
        *PROMPTS[:3],
    ]
    printed = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    assert printed == [c.text for c in service.complete("next_word", PROMPTS[:3])]
    assert sorted(p.name for p in (home / "models").rglob("*") if p.is_file()) == [
        "MANIFEST.json",
        "certificate.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "probes.safetensors",
        "prompt_template.json",
    ]


def with_plain_transformers(job: Job, base: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = Tunesmith().model(job.name).folder
    greedy_answers_agree(job.name, AutoModelForCausalLM.from_pretrained(folder).eval(), base)
    assert str(base.parent) not in (Path(folder) / "config.json").read_text(), (
        "no local path leaves the machine"
    )


def greedy_answers_agree(name: str, model: Any, base: Path) -> None:
    """COMPLETE against the library's own generate, on 20 prompts."""
    encoder = Encoder(PromptTemplate.of_base(base), base)
    ours = [c.text for c in Tunesmith().complete(name, PROMPTS, max_tokens=20)]
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([encoder.prompt([{"role": "user", "content": prompt}])])
        new = model.generate(input_ids=ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ].tolist()
        assert encoder.decode(new[: new.index(0)] if 0 in new else new) == answer


@pytest.fixture(scope="module")
def undisturbed(
    tuned_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """The weights of a LoRA job that nobody killed."""
    home = tmp_path_factory.mktemp("undisturbed")
    service = Tunesmith(home=home)
    job = service.create("m", str(tuned_base), LONGER, method="lora", **FAST).wait(timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED, job.error
    weights = final_weights(service, job)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = service.model("m").folder
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tuned_base), adapter
    ).eval()
    names = sorted(p.name for p in Path(adapter).iterdir())
    assert names == [
        "MANIFEST.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "certificate.json",
        "probes.safetensors",
        "prompt_template.json",
    ]
    assert str(tuned_base.parent) not in (Path(adapter) / "adapter_config.json").read_text()
    before = os.environ.get("TUNESMITH_HOME")
    os.environ["TUNESMITH_HOME"] = str(home)
    try:
        greedy_answers_agree("m", plain, tuned_base)
    finally:
        os.environ.pop("TUNESMITH_HOME") if before is None else os.environ.update(
            TUNESMITH_HOME=before
        )
        kill_worker(home)
    return weights


def start(home: Path, tuned_base: Path, rows: list[dict[str, str]] = LONGER) -> Job:
    """A LoRA job that is past its first steps."""
    job = Tunesmith().create("m", str(tuned_base), rows, method="lora", **FAST)
    until(lambda: job.refresh().step >= 2, 90)
    return job


@pytest.mark.parametrize("victim", ["trainer", "worker", "nobody, it is paused"])
def test_kill_9_or_a_pause_changes_nothing_but_the_time(
    home: Path, tuned_base: Path, undisturbed: dict[str, torch.Tensor], victim: str
) -> None:
    job = start(home, tuned_base)
    if victim == "trainer":
        [trainer] = phases_of(home, "train")
        os.kill(trainer, signal.SIGKILL)
    elif victim == "worker":
        assert kill_worker(home) is not None
        until(lambda: not phases_of(home, "train"), 10)
    else:
        assert job.service.pause(job.id).status is JobStatus.PAUSED
        until(lambda: not phases_of(home, "train"), 20)
        assert (
            job.refresh().status is JobStatus.PAUSED
            and job.service.resume(job.id).status is JobStatus.PENDING
        )
    assert not job.refresh().status.is_final, "it was killed in the middle"
    job = job.wait(timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED and job.attempt == 2, job.error
    found = final_weights(Tunesmith(), job)
    assert found.keys() == undisturbed.keys() and all(
        torch.equal(found[n], undisturbed[n]) for n in found
    )
    if victim == "worker":
        command = [sys.executable, "-m", "tunesmith.interfaces.cli", "job", "verify-resume", job.id]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0 and re.search(
            r"from the checkpoint of step 6: \d+ trained tensors, 0 differ", ended.stdout
        ), ended.stderr


def test_ctrl_c_detaches_the_watcher_and_the_job_goes_on_until_it_is_cancelled(
    home: Path, tuned_base: Path
) -> None:
    job = start(
        home, tuned_base, next_word_rows(150)
    )  # a watcher starts in seconds: the job must outlast it
    command = [sys.executable, "-m", "tunesmith.interfaces.cli", "job", "wait", job.id]
    # a test run in the background ignores Ctrl-C, and so would its children
    hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    watcher = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears
    )
    assert watcher.stderr is not None and "RUNNING" in watcher.stderr.readline()
    watcher.send_signal(signal.SIGINT)
    _, said = watcher.communicate(timeout=20)
    assert (
        watcher.returncode == 130
        and f"detached; the job goes on: tunesmith job wait {job.id}" in said
        and "Traceback" not in said
    )
    assert job.refresh().status is JobStatus.RUNNING
    assert job.cancel().status is JobStatus.CANCELLING
    job = job.wait(timeout_s=20)
    assert job.status is JobStatus.CANCELLED and not phases_of(home, "train")
    assert Tunesmith().models() == [] and not (home / "models").exists()
    with pytest.raises(tunesmith.TunesmithError, match="already ended|unknown model"):
        Tunesmith().complete("m", ["x"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(b"\x08\0\0\0\0\0\0\0{}      ", "weights are missing"), (b"garbage", "header|safetensors")],
)
def test_a_base_whose_weights_are_damaged_fails_the_job_and_says_so(
    home: Path, tuned_base: Path, tmp_path: Path, damage: bytes, reason: str
) -> None:
    broken = Path(shutil.copytree(tuned_base, tmp_path / "broken"))
    job = Tunesmith().create("m", str(broken), next_word_rows(2), **FAST)
    (broken / "model.safetensors").write_bytes(damage)
    job = job.wait(timeout_s=60)
    assert (
        job.status is JobStatus.FAILED
        and job.error is not None
        and re.search(reason, job.error["message"])
    )
    with tunesmith.connect() as connection:
        [(text,)] = connection.execute("SELECT finetune('DESCRIBE', ?)", [job.id]).fetchall()
    assert (
        json.loads(text)["status"] == "ERROR"
        and json.loads(text)["error"]["message"] == job.error["message"]
    )


def test_over_long_rows_are_rejected_by_id_and_the_rest_is_trained(
    home: Path, tuned_base: Path
) -> None:
    rows = [
        *next_word_rows(2),
        {"prompt": "x" * 200, "completion": "red"},
        {"prompt": "say", "completion": "y" * 100},
    ]
    rows.append({"prompt": "x" * 10_000_000, "completion": "red"})
    job = (
        Tunesmith()
        .create("m", str(tuned_base), rows, rows[:4], **{**FAST, "max_epochs": 1})
        .wait(timeout_s=120)
    )
    assert (
        job.status is JobStatus.SUCCEEDED and job.rows["train"] == 20 and job.rows["rejected"] == 3
    )
    assert [(r["row"], r["reason"]) for r in Tunesmith().rows("rejections")] == [
        (21, "too long"),
        (22, "too long"),
        (23, "too long"),
    ]
    assert "rows over the window, rejected: 3" in job.warnings[0]


@pytest.mark.parametrize(
    ("rule", "status"), [("fail", JobStatus.FAILED), ("cut_prompt", JobStatus.SUCCEEDED)]
)
def test_on_long_decides_what_becomes_of_long_prompts(
    home: Path, tuned_base: Path, rule: str, status: JobStatus
) -> None:
    rows = [*next_word_rows(1)[:8], {"prompt": "x" * 200, "completion": "red"}]
    job = (
        Tunesmith()
        .create("m", str(tuned_base), rows, on_long=rule, **{**FAST, "max_epochs": 1})
        .wait(timeout_s=120)
    )
    assert job.status is status
    if rule == "fail":
        assert job.error is not None and "rows train 9" in job.error["message"]
    else:
        assert job.rows["cut"] == 1 and job.rows["train"] == 9


def test_a_cut_verdict_row_is_asked_as_it_was_cut(home: Path, tuned_base: Path) -> None:
    test = (
        "SELECT 'say red' AS prompt, 'red' AS completion UNION ALL SELECT repeat('x', 200), 'red'"
    )
    options = {**FAST, "max_epochs": 1, "on_long": "cut_prompt", "test_data": test}
    job = Tunesmith().create("m", str(tuned_base), next_word_rows(2), **options).wait(timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED and job.rows["cut"] == 1, job.error
    assert job.verdict is not None and job.verdict["n"] == 2


def test_a_tuned_model_is_not_used_on_another_base_than_its_own(
    home: Path, tuned_base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tuned_base, tmp_path / "base"))
    job = (
        Tunesmith()
        .create("m", str(base), next_word_rows(2), method="lora", **{**FAST, "max_epochs": 2})
        .wait(timeout_s=120)
    )
    assert (
        job.status is JobStatus.SUCCEEDED
        and job.certificate is not None
        and job.certificate["equal"] == job.certificate["probes"] >= 32
    )
    tensors = load_file(base / "model.safetensors")
    save_file(
        {n: t * 1.01 for n, t in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CertificateRefused, match="m is not used: its base is another one"):
        Tunesmith().complete("m", PROMPTS[:1])
    shutil.rmtree(base)
    with pytest.raises(DamagedFiles, match="base's files cannot be read"):
        Tunesmith().complete("m", PROMPTS[:1])


def test_tuning_that_changes_nothing_fails_and_says_so(home: Path, tuned_base: Path) -> None:
    options = {**FAST, "method": "lora", "learning_rate": 1e-7, "max_epochs": 1}
    job = Tunesmith().create("m", str(tuned_base), next_word_rows(2), **options).wait(timeout_s=120)
    assert job.status is JobStatus.FAILED and job.error is not None
    assert (
        job.error["code"] == "certificate_refused"
        and "the tuning does nothing" in job.error["message"]
    )


def test_a_job_waits_while_the_disk_is_full_and_then_goes_on(
    home: Path, tuned_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full disk is simulated, once while training and once while evaluating; the states and the
    rest are real."""
    monkeypatch.setattr(worker_module, "ensure", lambda *a, **k: None)
    service = Tunesmith()
    job = service.create("m", str(tuned_base), next_word_rows(1), **FAST)
    mine = in_process_worker(service)
    full = {worker_module.TRAIN, worker_module.EVALUATE}
    waited: list[JobStatus] = []
    run_child, await_space = mine._run_child, mine._await_space

    def once(phase: Phase, job: Any) -> Any:
        if phase in full:
            full.remove(phase)
            return DiskFull(path="x", needed_mb=1, free_mb=0)
        return run_child(phase, job)

    def waiting(job: Any) -> None:
        waited.append(service.store.get(job.id).status)
        await_space(job)

    monkeypatch.setattr(mine, "_run_child", once)
    monkeypatch.setattr(mine, "_await_space", waiting)
    monkeypatch.setattr(worker_module, "SPACE_POLL_S", 0.01)
    mine.work_all()
    assert (
        waited == [JobStatus.WAITING_SPACE, JobStatus.EVALUATING] and waited[0].sql == "IN_PROGRESS"
    )
    assert service.describe(job.id).status is JobStatus.SUCCEEDED


def test_the_bundled_base_is_here_and_can_be_asked(home: Path) -> None:
    tiny = Tunesmith().model("tunesmith-tiny").base
    assert (
        isinstance(tiny, ModelSpec)
        and 4_000_000 <= tiny.parameters <= 6_500_000
        and tiny.prompt_window + tiny.completion_window <= tiny.context
    )


def test_a_budget_ends_a_job_with_a_usable_model_and_its_cost_stays_within(
    home: Path, tuned_base: Path
) -> None:
    service = Tunesmith()
    once = service.create("whole", str(tuned_base), LONG, **{**FAST, "max_epochs": 1}).wait(
        timeout_s=120
    )
    budget = 1.5 * once.input_tokens * 1e-6  # a credit is a million tokens here
    job = service.create("cut_short", str(tuned_base), LONG, budget_credits=budget, **FAST).wait(
        timeout_s=120
    )
    assert (job.status, job.stopped_by) == (JobStatus.SUCCEEDED, "budget_credits"), job.error
    assert (
        once.stopped_by == "max_epochs"
        and once.input_tokens < job.trained_tokens <= 1.5 * once.input_tokens
    )
    [cost] = [u["credits"] for u in service.rows("usage") if u["job_id"] == job.id]
    assert 0.9 * budget < cost <= budget
    assert service.complete("cut_short", PROMPTS[:2])[0].text


def test_a_job_shows_what_was_quoted_against_what_was_used(home: Path, tuned_base: Path) -> None:
    service = Tunesmith()
    quote = service.quote(LONG, base_model=str(tuned_base), **FAST)
    left = [*(home / "tmp").iterdir(), *(home / "snapshots").iterdir()]
    assert left == [] and service.show() == [], "nothing is kept"
    job = service.create("m", str(tuned_base), LONG, **FAST).wait(timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED and job.quote is not None and job.used is not None, (
        job.error
    )
    assert (
        quote.tokens_per_epoch
        == job.quote["tokens_per_epoch"]
        == job.used["tokens_per_epoch"]
        == job.input_tokens
    )
    assert quote.epochs * quote.tokens_per_epoch == job.trained_tokens and quote.steps == job.step
    assert job.quote["credits"] == pytest.approx(
        next(u["credits"] for u in service.rows("usage") if u["job_id"] == job.id)
    )
    assert (
        0 < quote.low < quote.seconds_per_epoch < quote.high
        and quote.memory_mb > 100
        and quote.model_mb > 0
    )
    assert (quote.linear, quote.linear_rows) == (0.0, 8), (
        "equal prompts stay together, so words tell nothing about new ones"
    )
    assert (
        0.3 < job.used["memory_mb"] / job.quote["memory_mb"] < 3
        and job.used["seconds_per_epoch"] > 0
    )
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith.interfaces.cli", "job", "show", job.id],
        capture_output=True,
        text=True,
    ).stdout
    assert f"used against quoted: {job.input_tokens:,} tokens an epoch (as quoted)" in shown


REPEATED = " UNION ALL ".join(f"SELECT 'say {w}' AS prompt, '{w}' AS completion" for w in WORDS)


@pytest.mark.parametrize(
    ("rows", "word", "rate"),
    [
        (next_word_rows(8), "HARMED", 1e-2),
        ([{"prompt": f"say {w}", "completion": w} for w in WORDS] * 3, "NO_EVIDENCE", 1e-5),
    ],
)
def test_tuning_that_harms_or_shows_nothing_is_told_by_its_word(
    home: Path, tuned_base: Path, rows: list[dict[str, str]], word: str, rate: float
) -> None:
    """The base answers these questions rightly; one table teaches it otherwise, the other what it
    knows."""
    service = Tunesmith()
    options = {
        **FAST,
        "method": "full",
        "learning_rate": rate,
        "test_data": f"{REPEATED} UNION ALL {REPEATED}",
        "swap_terms": "red/green, one/two, cat/dog",
    }
    job = service.create("m", str(tuned_base), rows, **options).wait(timeout_s=120)
    assert job.status is JobStatus.SUCCEEDED and job.verdict is not None, job.error
    assert (job.verdict["word"], job.verdict["arms"]["base"], job.verdict["n"]) == (word, 1.0, 20)
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith.interfaces.cli", "job", "show", job.id],
        capture_output=True,
        text=True,
    ).stdout
    assert shown.startswith(
        "HARMED: tuning lost" if word == "HARMED" else "NO EVIDENCE that tuning helped"
    )
    changed = job.verdict["bias"]["swapped"]
    assert (changed["rows"], changed["base"]) == (12, 1.0), (
        "another word must have another answer here"
    )
    assert word == "HARMED" or changed["tuned"] == 1.0
    assert "bias cannot be measured: groups: no other column" in shown
    if word == "HARMED":
        assert (
            "warning: HARMED" in shown
            and job.verdict["high"] < -0.05
            and len(job.verdict["lost"]) >= 18
        )
        with pytest.warns(UserWarning, match="HARMED") as told:
            answers = [service.complete("m", PROMPTS[:1])[0].text for _ in range(2)]
        assert len(told) == 1 and answers[0] == answers[1] != "", (
            "it answers all the same, and says so once"
        )


def test_a_name_moves_to_a_new_version_only_where_that_helped_or_by_force(
    home: Path, tuned_base: Path
) -> None:
    """The first model, a version that helps, and one that changes next to nothing; all three answer
    under their own names."""
    service, base = Tunesmith(), str(tuned_base)
    next_words = " UNION ALL ".join(
        f"SELECT '{r['prompt']}' AS prompt, '{r['completion']}' AS completion"
        for r in next_word_rows(2)
    )
    options = {**FAST, "method": "full", "test_data": next_words}
    slow = {**options, "max_epochs": 1, "learning_rate": 1e-6}
    with pytest.raises(UnknownModel, match="router"):
        service.create("router_new", base, LONG, next_words, new_version_of="router", **options)
    assert service.create("router", base, LONG, next_words, **slow).wait(timeout_s=120).finished_at
    helped = service.create(
        "router_new", base, LONG, next_words, new_version_of="Router", **options
    ).wait(timeout_s=120)
    assert helped.verdict is not None and (helped.verdict["word"], helped.verdict["stop_rate"]) == (
        "HELPED",
        1.0,
    ), helped.error
    assert [service.model("router").name, service.model("router").version] == ["router_new", 2]
    idle = service.create(
        "router_idle", base, LONG, next_words, new_version_of="router_new", **slow
    ).wait(timeout_s=120)
    assert any(
        "The name router_new does not move to router_idle: its verdict is NO_EVIDENCE" in w
        for w in idle.warnings
    )
    assert service.model("router").version == 2 and service.model("router_idle").version == 3
    answers = {
        name: service.complete(name, PROMPTS[:1])[0].text
        for name in ("router", "router@1", "router_new", "router_idle")
    }
    assert answers == {
        "router": "green",
        "router@1": "red",
        "router_new": "green",
        "router_idle": "red",
    }

    with pytest.raises(NotPromoted, match="its verdict is NO_EVIDENCE"):
        service.promote("router_idle")
    assert service.promote("router_idle", force=True).version == 3
    assert service.complete("router", PROMPTS[:1])[0].text == "red"
    assert service.promote("router@2").name == "router_new"
    certificate = service.model("router@3").folder + "/certificate.json"
    Path(certificate).write_text("{}")
    with pytest.raises(DamagedFiles):
        service.promote("router_idle", force=True)
    assert [(m.name, m.version, m.is_current) for m in service.models()] == [
        ("router", 1, False),
        ("router_new", 2, True),
        ("router_idle", 3, False),
    ]
    with tunesmith.connect(home=home) as connection:
        assert connection.execute(
            "SELECT model, word, round(tuned, 1) FROM tunesmith.verdicts WHERE model = 'router_new'"
        ).fetchall() == [("router_new", "HELPED", 1.0)]
        learned = "SELECT DISTINCT model FROM tunesmith.lineage WHERE row_hash = tunesmith.row_hash('say {}', '{}') ORDER BY 1"
        taught = {
            w: [m for (m,) in connection.execute(learned.format(*w)).fetchall()]
            for w in (("red", "green"), ("red", "red"))
        }
        assert taught[("red", "red")] == [] and taught[("red", "green")] == [
            "router",
            "router_idle",
            "router_new",
        ]
        assert connection.execute(
            "SELECT count(*), count(DISTINCT row_hash) FROM tunesmith.lineage"
        ).fetchall()[0][0] == sum(j.rows["train"] for j in service.show())


def test_conversations_are_learnt_answer_by_answer_and_judged_by_the_last(
    home: Path, tuned_base: Path
) -> None:
    """The first answer of each row is a lesson too; with weight 0, or learn = last, it is not."""

    def talk(i: int, **first: Any) -> dict[str, Any]:
        word, after, last = WORDS[i], WORDS[(i + 1) % len(WORDS)], WORDS[(i + 2) % len(WORDS)]
        return {
            "messages": [
                {"role": "user", "content": f"say {word}"},
                {"role": "assistant", "content": after, **first},
                {"role": "user", "content": "and then"},
                {"role": "assistant", "content": last},
            ]
        }

    service = Tunesmith()
    options = {
        **FAST,
        "method": "full",
        "max_epochs": 8,
        "test_data": f"SELECT 'say {WORDS[0]}' AS prompt, '{WORDS[1]}' AS completion",
    }
    rows = [talk(i) for i in range(len(WORDS))] * 3
    jobs = {
        "all": service.create("all", str(tuned_base), rows, rows, **options),
        "last": service.create("last", str(tuned_base), rows, rows, learn="last", **options),
        "weight": service.create(
            "weight",
            str(tuned_base),
            [talk(i, weight=0) for i in range(len(WORDS))] * 3,
            rows,
            **options,
        ),
    }
    jobs = {name: job.wait(timeout_s=200) for name, job in jobs.items()}
    assert all(j.status is JobStatus.SUCCEEDED for j in jobs.values()), [
        j.error for j in jobs.values()
    ]
    right = {
        n: sum(
            c.text == WORDS[(i + 1) % len(WORDS)]
            for i, c in enumerate(service.complete(n, PROMPTS))
        )
        for n in jobs
    }
    assert right["all"] >= 9 and right["last"] <= 2 and right["weight"] <= 2, right
    losses = {
        n: {
            r["tokens"]
            for r in service.rows("row_losses")
            if r["job_id"] == j.id and r["part"] == "train"
        }
        for n, j in jobs.items()
    }
    assert min(losses["all"]) > max(losses["last"]) and losses["weight"] == losses["last"]

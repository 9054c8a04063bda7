"""A home that strangers' hands cannot break in silence."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pytest
from forks import phases_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tunesmith
from conftest import in_process_worker, next_word_rows, until
from tunesmith import Tunesmith, catalog, durable, worker
from tunesmith.errors import (
    HomeTooNew,
    IdempotencyConflict,
    InvalidModelName,
    QueryRefused,
    TooManyRows,
    UnreadableSettings,
)
from tunesmith.executors import Running
from tunesmith.executors.local import LocalExecutor
from tunesmith.interfaces.doctor import examine
from tunesmith.jobs import JobStatus
from tunesmith.names import model_key, with_suffix
from tunesmith.phases.child import Phase, Work
from tunesmith.settings import Settings

ROWS = "SELECT 'q' || i AS prompt, 'a' AS completion FROM range(20) r(i)"
PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Tunesmith:
    """A service whose jobs stay PENDING: no worker is started."""
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    return Tunesmith()


# ---------------------------------------------------------------- files that people edit


BAD_PRICES = {
    "broken": ("[broken", "Expected ']'"),
    "a number": ("tunesmith-tiny = 5", "is no table"),
    "a word as price": ('[default]\ntraining = "a"', "is no price"),
    "a negative price": ("[default]\ntraining = -1", "is no price"),
    "nan": ("[default]\ntraining = nan", "is no price"),
    "another key": ("[default]\ntrainig = 1", "'trainig'"),
    "no text": (b"\xff\xfe", "utf-8"),
    "true": ("[default]\ninference = true", "is no price"),
}


@pytest.mark.parametrize("kind", BAD_PRICES)
def test_a_price_table_that_cannot_be_used_is_named_at_every_door(
    service: Tunesmith, home: Path, kind: str
) -> None:
    text, words = BAD_PRICES[kind]
    durable.open_home(home)
    (home / "prices.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for ask in (
        lambda: service.create("m", "tunesmith-tiny", ROWS),
        lambda: service.complete("tunesmith-tiny", ["hi"]),
        lambda: list(service.stream("tunesmith-tiny", "hi")),
    ):
        with pytest.raises(UnreadableSettings) as caught:
            ask()
        assert words in str(caught.value) and "prices.toml" in str(caught.value)
    [check] = [c for c in examine() if c.name == "prices"]
    assert not check.ok and words in check.advice
    assert service.show() == [], "nothing was accepted"


def test_an_error_that_is_none_of_ours_ends_the_job_by_name_and_not_the_worker(
    service: Tunesmith, tuned_base: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table breaks while the job is evaluated: what the library says ends the job after the
    usual attempts."""
    job = service.create("m", str(tuned_base), next_word_rows(1), learning_rate=1e-2, max_epochs=1)
    other = service.create(
        "n", str(tuned_base), next_word_rows(1), learning_rate=1e-2, max_epochs=1
    )
    mine, tries = in_process_worker(service), []

    def broken(found: Any) -> Any:
        tries.append(found.id)
        raise ZeroDivisionError("a fault of ours")

    publish = mine._publish
    monkeypatch.setattr(
        mine, "_publish", lambda found: broken(found) if found.id == job.id else publish(found)
    )
    mine.work_all()
    job = service.describe(job.id)
    assert (
        job.status is JobStatus.FAILED
        and job.error is not None
        and tries == [job.id] * worker.DEATHS_LIMIT
    )
    assert (
        "ZeroDivisionError: a fault of ours" in job.error["message"]
        and "worker.log" in job.error["message"]
    )
    assert service.describe(other.id).status is JobStatus.SUCCEEDED, "the worker went on"
    assert not [f for f in (home / "jobs").glob("*/attempt-*/*") if f.is_dir()], (
        "and nothing was left"
    )


# ---------------------------------------------------------------- limits, guards, interrupts


@pytest.mark.parametrize("kind", ["sql", "csv", "rows"])
def test_too_many_rows_are_told_before_they_are_read(
    service: Tunesmith, tmp_path: Path, kind: str
) -> None:
    small = catalog.entries()["tunesmith-tiny"].row_limit
    n, read = 2 * small + 5, [0]
    if kind == "sql":
        data: Any = "SELECT 'q' || i AS prompt, 'a' AS completion FROM range(100_000_000_000) r(i)"
    elif kind == "csv":
        data = str(tmp_path / "rows.csv")
        Path(data).write_text("prompt,completion\n" + "".join(f"q{i},a\n" for i in range(n)))
    else:

        def rows() -> Any:
            for i in range(n):
                read[0] = i
                yield {"prompt": f"q{i}", "completion": "a"}

        data = list(rows())
    with pytest.raises(TooManyRows, match=f"More than {2 * (small // 10):,} training rows"):
        service.create("m", "tunesmith-tiny", data, max_epochs=10)


WRITES = {
    "a view": "SELECT * FROM hidden",
    "a macro": "SELECT 'a' || next() AS prompt, 'b' AS completion",
    "query()": "SELECT 'a' || x AS prompt, 'b' AS completion FROM query('SELECT nextval(''s'') AS x')",
    "a table macro": "SELECT * FROM rows_of()",
}


@pytest.mark.parametrize("kind", WRITES)
def test_what_a_query_may_not_do_is_decided_by_what_is_bound(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    with duckdb.connect(str(tmp_path / "d.duckdb")) as c:
        c.execute(
            "CREATE SEQUENCE s; CREATE VIEW hidden AS SELECT 'a' || nextval('s') AS prompt, 'b' AS completion; CREATE MACRO next() AS nextval('s')"
        )
        c.execute(
            "CREATE MACRO rows_of() AS TABLE SELECT 'a' || nextval('s') AS prompt, 'b' AS completion"
        )
        with pytest.raises(QueryRefused, match=r"writes to the database|calls nextval"):
            Tunesmith(c).create("m", "tunesmith-tiny", WRITES[kind])
        assert c.execute("SELECT nextval('s')").fetchall() == [(1,)], "nothing was drawn from it"


ENDLESS = "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r) SELECT 'q' || i AS prompt, 'a' AS completion FROM (SELECT max(i) AS i FROM r)"


@pytest.mark.parametrize("door", ["cli", "python"])
def test_ctrl_c_ends_an_endless_query_and_leaves_nothing(home: Path, door: str) -> None:
    program = (
        [sys.executable, "-m", "tunesmith.interfaces.cli", "tune", ENDLESS, "-n", "m"]
        if door == "cli"
        else [
            sys.executable,
            "-c",
            f"from tunesmith import Tunesmith\ntry: Tunesmith().create('m', 'tunesmith-tiny', {ENDLESS!r})\nexcept KeyboardInterrupt: raise SystemExit(130)",
        ]
    )
    signals = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731  # a shell's `&` lets it be ignored
    process = subprocess.Popen(program, stderr=subprocess.PIPE, preexec_fn=signals)
    deadline = time.monotonic() + 60
    while not list(home.glob("tmp/*-*-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in errors, errors
    assert not list((home / "tmp").iterdir()) and Tunesmith().show() == []


@pytest.mark.parametrize("text", ["", " ", "\n;", ";"])
def test_an_empty_query_is_refused_at_create(service: Tunesmith, text: str) -> None:
    with pytest.raises(QueryRefused, match="it is empty"):
        service.create("m", "tunesmith-tiny", text)
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith.interfaces.cli", "tune", text, "-n", "m"],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 2 and "it is empty" in shown.stderr and service.show() == []


# ---------------------------------------------------------------- names and requests


NAMES = st.one_of(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,62}", fullmatch=True),
    st.sampled_from(
        [
            "a" * 62,
            "a" * 63,
            "A" * 61,
            '"a/b"',
            '"a.b"',
            '"A b"',
            '"x@2"',
            '"tunesmith-tiny"',
            "db.s.m",
            f"db.s.{'m' * 63}",
        ]
    ),
    st.text(
        st.characters(codec="utf-8", exclude_characters='"\x00', exclude_categories=["Cc", "Cs"]),
        min_size=1,
        max_size=63,
    ).map(lambda t: f'"{t}"'),
)


@PROPERTY
@given(name=NAMES, n=st.integers(2, 12345))
def test_a_suffix_fits_the_limit_of_names(name: str, n: int) -> None:
    made = with_suffix(name, f"_{n}")
    assert model_key(made) != model_key(name) and (
        made.endswith(f"_{n}") or made.endswith(f'_{n}"')
    )


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=NAMES)
def test_what_is_accepted_answers_everywhere(tmp_path_factory: Any, name: str) -> None:
    """The same name at every verb: taken as it is, and again with a suffix; found by the
    catalogue."""
    home = tmp_path_factory.mktemp("names") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "ensure", lambda *a, **k: None)
        service = Tunesmith(home=home)
        try:
            first, second = (
                service.create(name, "tunesmith-tiny", ROWS, max_epochs=1) for _ in range(2)
            )
        except InvalidModelName:
            pytest.fail(f"{name} is a name")
    assert first.name == name or name.strip('"') == "tunesmith-tiny"
    assert model_key(second.name) != model_key(first.name)
    model = dict(
        id="i",
        name=name,
        model_key=model_key(name),
        job_id=None,
        base_model="b",
        base={"name": "b"},
        task="t",
        method="full",
        folder="f",
        digest="",
        verdict=None,
        owner="",
    )
    service.store.add_model({**model, "model_key": model_key(name)})
    [added] = service.models()
    assert service.model(added.name).id == added.id


def test_one_key_with_other_rows_is_a_conflict(service: Tunesmith) -> None:
    rows = [{"prompt": f"q {i}", "completion": "a"} for i in range(12)]
    first = service.create("m", "tunesmith-tiny", rows, idempotency_key="k")
    assert (
        service.create("m", "tunesmith-tiny", [dict(r) for r in rows], idempotency_key="k").id
        == first.id
    )
    with pytest.raises(IdempotencyConflict):
        service.create(
            "m",
            "tunesmith-tiny",
            [*rows[:-1], {"prompt": "q 11", "completion": "b"}],
            idempotency_key="k",
        )
    assert len(service.show()) == 1 and len(list((service.settings.home / "jobs").iterdir())) == 1


# ---------------------------------------------------------------- who can read, what is left,
# formats


@pytest.mark.parametrize(("umask", "before"), [(0o000, None), (0o022, 0o755), (0o077, 0o777)])
def test_every_file_is_its_owners_alone(
    home: Path, tuned_base: Path, umask: int, before: int | None
) -> None:
    if before is not None:
        home.mkdir()
        home.chmod(before)
    program = f"""
import os; os.umask({umask})
from tunesmith import Tunesmith
rows = [{{"prompt": f"say {{i}}", "completion": "red"}} for i in range(12)]
job = Tunesmith().create("m", {str(tuned_base)!r}, rows, learning_rate=1e-2, max_epochs=1).wait(timeout_s=200)
assert job.status.value == "SUCCEEDED", job.error
Tunesmith().complete("m", ["hi"], max_tokens=1)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    wide = [
        str(p.relative_to(home)) for p in home.rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o077
    ]
    assert wide == []
    [check] = [c for c in examine() if c.name == "readers"]
    assert check.ok
    (home / "worker.log").chmod(0o644)
    [check] = [c for c in examine() if c.name == "readers"]
    assert not check.ok and "worker.log" in check.found and "chmod" in check.advice


def test_what_a_killed_client_left_is_seen_and_swept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import sys; sys.path.insert(0, ''); from tunesmith import Tunesmith; Tunesmith().create('m', 'tunesmith-tiny', {ENDLESS!r})"
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not list(home.glob("tmp/*-*-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert durable.unowned_staging(home) == [], "its process is alive"
    [left] = home.glob("tmp/*-*-*")
    (left / "private.raw").write_bytes(b"x" * 1000)
    process.kill()
    process.wait()
    assert durable.unowned_staging(home) == [left]
    [check] = [c for c in examine() if c.name == "staging"]
    assert not check.ok and "1 folder of killed processes, 1,000 bytes" in check.found
    worker.sweep(Settings.read(), Tunesmith().store)
    assert not left.exists() and not [c for c in examine() if c.name == "staging"]


def test_a_job_that_is_cancelled_while_paused_leaves_its_rows_alone(
    service: Tunesmith, tuned_base: Path, home: Path
) -> None:
    job = service.create("m", str(tuned_base), next_word_rows(1))
    folder = service.settings.job_folder(job.id)
    (folder / "attempt-1" / "step-00000001").mkdir(parents=True)
    (folder / "attempt-1" / "log.txt").write_text("said")
    assert service.cancel(job.id).status is JobStatus.CANCELLED
    assert (
        sorted(p.name for p in folder.rglob("*") if "attempt" in str(p)) == ["attempt-1", "log.txt"]
        and (folder / "data").is_dir()
    )


@pytest.mark.parametrize("content", [b'{"format": 99}', b"{}", b"", b"\xff", b"[1]"])
def test_a_home_of_another_format_is_refused(home: Path, content: bytes) -> None:
    durable.open_home(home)
    (home / "FORMAT").write_bytes(content)
    with pytest.raises(HomeTooNew):
        Tunesmith().create("m", "tunesmith-tiny", ROWS)


# ---------------------------------------------------------------- sentences, never tracebacks


CLI = [sys.executable, "-m", "tunesmith.interfaces.cli"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["job", "show", b"ft_\xff"], "No fine-tuning job"),
        (["complete", b"m\xff", "hi"], "is not a model name"),
        (["complete", b'"m\xff"', "hi"], "is not a model name"),
        (["tune", b"SELECT '\xff' AS prompt", "-n", "m"], "no valid Unicode"),
        (["complete", "tunesmith-tiny", b"caf\xe9"], "no valid Unicode"),
        (["model", "export", "tunesmith-tiny", "x" * 300], "unknown model"),
    ],
)
def test_bytes_that_are_no_text_are_told_in_a_sentence(
    home: Path, arguments: list[Any], words: str
) -> None:
    shown = subprocess.run([*CLI, *arguments], capture_output=True)
    said = shown.stderr.decode()
    assert (
        shown.returncode in (2, 3)
        and said.startswith("tunesmith: ")
        and words in said
        and "Traceback" not in said
    ), said


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    program = (
        "import os, pwd; from tunesmith.settings import Settings; os.setuid(54321); Settings.read()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "TUNESMITH_HOME")}
    if os.geteuid():
        pytest.skip("only root can be another user")  # pragma: no cover
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd="/"
    )
    last = shown.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "tunesmith.errors.InvalidSetting: The setting TUNESMITH_HOME = '~/.tunesmith'"
    ), shown.stderr


def test_a_full_standard_output_is_a_sentence(home: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")  # pragma: no cover
    with open("/dev/full", "w") as full:
        shown = subprocess.run(
            [*CLI, "base", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (
        shown.returncode == 1
        and "standard output is full" in shown.stderr
        and "Traceback" not in shown.stderr
    )


@pytest.mark.parametrize("kind", ["dangling", "looping", "a file"])
def test_a_home_that_is_no_folder_is_told(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    if kind == "a file":
        home.write_text("")
    else:
        home.symlink_to(tmp_path / ("nowhere/below" if kind == "dangling" else "home"))
    shown = subprocess.run(
        [*CLI, "job", "list"],
        capture_output=True,
        text=True,
        env={**os.environ, "TUNESMITH_HOME": str(home)},
    )
    assert (
        shown.returncode == 1
        and shown.stderr.startswith("tunesmith: ")
        and "Traceback" not in shown.stderr
    ), shown.stderr


# ---------------------------------------------------------------- killed at any point


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_child_that_is_killed_from_outside_is_started_again_however_often(
    service: Tunesmith, tuned_base: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Six deaths without a step: more than a job is allowed that dies by itself."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    job = service.create("m", str(tuned_base), next_word_rows(1), learning_rate=1e-2, max_epochs=1)
    killed: list[int] = []

    class Deadly(LocalExecutor):
        def start(self, phase: Phase, work: Work, log: BinaryIO) -> Running:
            running = super().start(phase, work, log)
            if len(killed) < 2 * worker.DEATHS_LIMIT:
                [pid] = until(lambda: phases_of(service.settings.home), 20)
                os.kill(pid, number)
                killed.append(pid)
            return running

    worker.Worker(service.settings, service.store, Deadly(service.settings)).work_all()
    done = service.describe(job.id)
    assert done.status is JobStatus.SUCCEEDED and len(killed) == 6 and done.attempt == 7, done.error


@dataclass(frozen=True)
class _NoAssignment:
    """With which a phase ends before it can say anything."""

    job_id: str


class SelfEnding(LocalExecutor):
    """Phases that crash, or end without a word."""

    def __init__(self, settings: Settings, crash: bool) -> None:
        super().__init__(settings)
        self._crash = crash

    def start(self, phase: Phase, work: Work, log: BinaryIO) -> Running:
        if not self._crash:
            return super().start(phase, _NoAssignment(work.job_id), log)
        running = super().start(phase, work, log)
        [pid] = until(lambda: phases_of(self._settings.home), 20)
        os.kill(pid, signal.SIGSEGV)
        return running


@pytest.mark.parametrize(
    ("crash", "words"), [(True, "killed by signal 11"), (False, "exit code 1")]
)
def test_a_child_that_ends_itself_fails_the_job_after_three_times(
    service: Tunesmith, tuned_base: Path, crash: bool, words: str
) -> None:
    job = service.create("m", str(tuned_base), next_word_rows(1))
    worker.Worker(service.settings, service.store, SelfEnding(service.settings, crash)).work_all()
    done = service.describe(job.id)
    assert (
        done.status is JobStatus.FAILED
        and done.error is not None
        and done.attempt == worker.DEATHS_LIMIT
    )
    said = done.error["message"]
    assert f"died 3 times without getting further (last: {words})" in said
    assert crash or "missing 1" in done.error["fields"]["log"], "the end of its log is told"


def test_a_want_of_memory_is_the_jobs_own_doing() -> None:
    assert not worker._Death(-signal.SIGKILL, True).from_outside and "no memory left" in str(
        worker._Death(-signal.SIGKILL, True)
    )
    assert (
        worker._Death(-signal.SIGKILL, False).from_outside
        and not worker._Death(-signal.SIGABRT, False).from_outside
    )


# ---------------------------------------------------------------- many jobs


def test_the_newest_jobs_are_listed_and_filters_reach_the_store(service: Tunesmith) -> None:
    made = [service.create(f"m{i}", "tunesmith-tiny", ROWS, max_epochs=1) for i in range(5)]
    service.cancel(made[1].id)
    assert [j.name for j in service.show(newest=2)] == ["m3", "m4"] and [
        j.name for j in service.show(statuses=[JobStatus.CANCELLED])
    ] == ["m1"]
    assert [j.name for j in service.show()] == [f"m{i}" for i in range(5)]

    def listed(*arguments: str) -> tuple[list[str], str, int]:
        shown = subprocess.run([*CLI, "job", "list", *arguments], capture_output=True, text=True)
        return (
            [line.split()[-1] for line in shown.stdout.splitlines()],
            shown.stderr,
            shown.returncode,
        )

    assert listed("--limit", "2") == (["m3", "m4"], "… and 3 before: --all\n", 0)
    assert listed("--limit", "2", "--all")[0] == [f"m{i}" for i in range(5)] and listed(
        "--status", "cancelled"
    ) == (["m1"], "", 0)
    assert listed("--status", "BUSY")[2] == 2 and "one of PENDING" in listed("--status", "BUSY")[1]
    with tunesmith.connect() as c:
        assert c.execute(
            f"SELECT count(*) FROM tunesmith.metrics_of('{made[1].id}')"
        ).fetchall() == [(0,)]
        assert c.execute(
            "SELECT count(*) FROM tunesmith.row_losses_of('ft_x'), tunesmith.rejections_of('ft_x')"
        ).fetchall() == [(0,)]

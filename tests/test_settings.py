"""Settings are checked at the door, and a home is one folder whatever its name holds."""

import os
import string
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith import Tunesmith, worker
from tunesmith.data.sources import opened
from tunesmith.errors import InvalidSetting, StorageFailed
from tunesmith.home import open_store
from tunesmith.settings import Settings

PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ROWS = [{"prompt": f"q {i}", "completion": "a"} for i in range(12)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("THREADS", v) for v in ("abc", "-1", "0", "1.5", "99999", "٣x")]
    + [("IDLE_S", v) for v in ("soon", "nan", "inf", "-1")]
    + [("DEVICE", v) for v in ("gpu", "cuda:x", "CPU", "cpu;")]
    + [("STORE", v) for v in ("nonsense", "nosuch://x", ":")],
)
def test_a_value_that_cannot_be_one_is_named_with_what_it_may_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TUNESMITH_{name}", value)
    with pytest.raises(InvalidSetting, match=f"TUNESMITH_{name} = "):
        open_store(Settings.read())
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith.interfaces.cli", "job", "list"],
        capture_output=True,
        text=True,
    )
    assert (
        shown.returncode == 2
        and shown.stderr.startswith("tunesmith: The setting")
        and "Traceback" not in shown.stderr
    )


@pytest.mark.parametrize("value", ["", " 3 ", "1"])
def test_good_values_and_empty_ones_are_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TUNESMITH_THREADS", value)
    assert Settings.read().threads == (
        int(value) if value.strip() else len(os.sched_getaffinity(0))
    )


def test_a_device_that_is_not_there_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")  # pragma: no cover
    monkeypatch.setenv("TUNESMITH_DEVICE", "cuda")
    with pytest.raises(InvalidSetting, match="torch finds no GPU here"):
        Tunesmith().complete("tunesmith-tiny", ["hi"], max_tokens=1)


@pytest.mark.parametrize("where", ["/dev/null/x", "file/below", "x" * 300])
def test_a_home_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed):
        Tunesmith(home=tmp_path / where).create("m", "tunesmith-tiny", ROWS)


NAMES = st.text(
    st.sampled_from(string.ascii_letters + string.digits + "?#%&=+;:@ ü'\"[]{}$!~^,()"),
    min_size=1,
    max_size=12,
)


@PROPERTY
@given(first=NAMES, second=NAMES)
def test_each_home_has_its_own_store_inside_it_whatever_its_name(
    tmp_path_factory: Any, first: str, second: str
) -> None:
    place = tmp_path_factory.mktemp("homes")
    homes = [place / f"{first}a", place / f"{second}b"]
    for n, home in enumerate(homes):
        store = open_store(Settings.read(home))
        store.add_usage(
            kind="complete",
            model=f"m{n}",
            base_model="b",
            input_tokens=1,
            output_tokens=1,
            started_at=0.0,
            ended_at=0.0,
            credits=0.0,
        )
        store.close()
    for n, home in enumerate(homes):
        store = open_store(Settings.read(home))
        assert [u["model"] for u in store.rows("usage")] == [f"m{n}"] and sorted(
            p.name for p in home.iterdir()
        ) == [
            "FORMAT",
            "state.db",
            "tmp",
        ]
        store.close()
    assert sorted(p.name for p in place.iterdir()) == sorted({h.name for h in homes}), (
        "nothing beside the homes"
    )


@PROPERTY
@given(name=NAMES)
def test_a_sqlite_source_is_found_whatever_its_path(tmp_path_factory: Any, name: str) -> None:
    import sqlite3
    from urllib.parse import quote

    file = tmp_path_factory.mktemp("sources") / f"{name}.db"
    with sqlite3.connect(file) as c:
        c.execute("CREATE TABLE t AS SELECT 1 AS x")
    c.close()
    with opened(f"sqlite:///{quote(str(file))}", ["t"]) as connection:
        assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_a_fresh_home_is_safe_from_the_threads_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    for turn in range(5):
        for shared in (True, False):
            home, errors, start = tmp_path / f"{turn}-{shared}", [], threading.Barrier(6)
            one = Tunesmith(home=home)

            def create(
                n: int,
                one: Tunesmith = one,
                home: Path = home,
                errors: list[Any] = errors,
                start: Any = start,
                shared: bool = shared,
            ) -> None:
                try:
                    start.wait()
                    (one if shared else Tunesmith(home=home)).create(
                        "m", "tunesmith-tiny", [*ROWS, {"prompt": f"own {n}", "completion": 1.5}]
                    )
                except Exception as e:  # whatever it is
                    errors.append(e)

            threads = [threading.Thread(target=create, args=(n,)) for n in range(6)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert not errors and len(Tunesmith(home=home).show()) == 6


def test_a_forked_child_answers_as_its_parent_does(home: Path) -> None:
    """With two threads a child would wait for its parent's, which it does not have."""
    program = """
import multiprocessing as mp
import torch
from tunesmith import Tunesmith
ts = Tunesmith()
torch.set_num_threads(2)
ask = lambda: ts.complete("tunesmith-tiny", ["Hello there, how are you"], max_tokens=6)[0].text
mine = ask()
def child(q): q.put(ask())
q = mp.get_context("fork").Queue()
p = mp.get_context("fork").Process(target=child, args=(q,))
p.start(); theirs = q.get(timeout=60); p.join(10)
print(mine == theirs, p.exitcode, len(ts.rows("usage")))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert shown.stdout.strip() == "True 0 2", shown.stderr

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import in_process_worker, kill_worker
from tunesmith import Tunesmith, worker
from tunesmith.jobs import JobStatus
from tunesmith.worker import ATTEMPTS_LIMIT

ROWS = "SELECT 'q' || i AS prompt, 'a' AS completion FROM range(20) r(i)"


def test_a_home_has_one_worker_and_lookers_do_not_hinder_it(home: Path) -> None:
    assert not worker.is_alive(home)
    looking = threading.Event()

    def look() -> None:
        while not looking.is_set():
            worker.is_alive(home)

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for t in lookers:
        t.start()
    try:
        for _ in range(20):
            with worker._only_worker(home):
                assert worker.is_alive(home)
                with pytest.raises(BlockingIOError):
                    worker._lock(home, fcntl.LOCK_EX)
    finally:
        looking.set()
        for t in lookers:
            t.join()
    assert not worker.is_alive(home)


def test_the_lock_ends_with_its_process_however_that_ends(home: Path) -> None:
    code = f"import time\nfrom pathlib import Path\nfrom tunesmith import worker\nwith worker._only_worker(Path({str(home)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert (
        holder.stdout is not None and holder.stdout.readline() == "held\n" and worker.is_alive(home)
    )
    assert kill_worker(home) == holder.pid
    holder.wait()
    assert not worker.is_alive(home)


def test_a_worker_that_has_not_written_its_number_yet_is_waited_for(home: Path) -> None:
    """A kill of process 0 ends the killer's whole group, the test run with it; so this one runs in
    a group of its own."""
    code = f"""
import os, subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from conftest import kill_worker, until
from tunesmith import worker
home = Path({str(home)!r})
late = "import os, sys, time; from pathlib import Path; from tunesmith import worker; fd = worker._lock(Path(sys.argv[1]), 2); os.truncate(fd, 0); print(1, flush=True); time.sleep(0.5); os.write(fd, str(os.getpid()).encode()); time.sleep(60)"
holder = subprocess.Popen([sys.executable, "-c", late, str(home)], stdout=subprocess.PIPE)
holder.stdout.readline()
assert kill_worker(home) == holder.pid and holder.wait() == -9
"""
    done = subprocess.run([sys.executable, "-c", code], start_new_session=True)
    assert done.returncode == 0


def test_a_worker_starts_by_itself_and_goes_home_without_work(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_IDLE_S", "0.5")
    service = Tunesmith()
    worker.ensure(service.settings, service.store)
    assert home not in worker._started, "nothing to do, nobody to start"
    job = service.create(
        "m", "tunesmith-tiny", "SELECT 'x' AS prompt, repeat('long ', 900) AS completion"
    )
    assert (
        job.wait(timeout_s=30).status is JobStatus.FAILED
    )  # no row fits: it ends without a trainer
    error = job.refresh().error
    assert error is not None and "1 x too long" in error["message"]
    end = time.monotonic() + 20
    while worker.is_alive(home) and time.monotonic() < end:
        time.sleep(0.1)
    assert not worker.is_alive(home)


def test_each_home_has_a_worker_of_its_own(home: Path, tmp_path: Path) -> None:
    services = [Tunesmith(home=tmp_path / "one"), Tunesmith(home=tmp_path / "two")]
    try:
        jobs = [
            s.create(
                "m", "tunesmith-tiny", "SELECT 'x' AS prompt, repeat('long ', 900) AS completion"
            )
            for s in services
        ]
        assert all(j.wait(timeout_s=30).status is JobStatus.FAILED for j in jobs)
    finally:
        for s in services:
            kill_worker(s.settings.home)


def test_the_worker_never_imports_torch() -> None:
    code = "import sys, tunesmith.worker, tunesmith.phases.prepare; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "False"
    )


def test_a_job_that_ends_every_worker_is_given_up(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    service = Tunesmith()
    job = service.create("m", "tunesmith-tiny", ROWS)
    mine = in_process_worker(service)
    for _ in range(ATTEMPTS_LIMIT):
        assert service.store.claim(mine._holder) is not None
    claimed = service.store.claim(mine._holder)
    assert claimed is not None
    mine.work(claimed)
    ended = job.refresh()
    assert (
        ended.status is JobStatus.FAILED
        and ended.error is not None
        and f"after {ATTEMPTS_LIMIT} attempts" in ended.error["message"]
    )


def test_a_child_whose_worker_is_gone_does_not_go_on(home: Path) -> None:
    """The child asks the kernel to be killed with its parent; the parent here ends at once, by
    force."""
    code = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import os; from tunesmith.phases.child import die_with_parent; die_with_parent(os.getppid()); print(1, flush=True); import time; time.sleep(60)"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(ended.stdout)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
                return
            os.kill(pid, 0)
        except (OSError, FileNotFoundError):
            return
        time.sleep(0.05)
    raise AssertionError(f"the child {pid} is still alive")

"""A store with many jobs, made from one that really ran: what its doors take in time and memory.

    python proofs/large.py JOBS METRICS HOME     fills a home, from the newest job there that has succeeded

Every made job is a row like the real one's, its documents included, sealed as the store does it; it
has no files.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.home import open_store
from tunesmith.jobs import JobStatus
from tunesmith.schema import jobs, metrics, sealed
from tunesmith.settings import Settings

SOME = 2000


def fill(home: Path, n_jobs: int, n_metrics: int) -> list[str]:
    """Add so many jobs that have ended, and so many metric rows spread over them; the jobs' ids."""
    store = open_store(Settings.read(home))
    real = store.rows("jobs", store.all_jobs([JobStatus.SUCCEEDED], newest=1)[0].id)[0]
    last = store.all_jobs(newest=1)
    number = store.count_jobs() + len(last)
    ids = [f"ft_{i:08x}-0000-4000-8000-000000000000" for i in range(n_jobs)]

    def made_jobs() -> Iterator[dict[str, Any]]:
        for i, job_id in enumerate(ids):
            name = f"made_{i}"
            changes = {
                "id": job_id,
                "sequence": number + i,
                "name": name,
                "model_key": name,
                "idempotency_key": None,
            }
            yield sealed(jobs, {**real, **changes})

    def made_metrics() -> Iterator[dict[str, Any]]:
        for i in range(n_metrics):
            row = {
                "job_id": ids[i // -(-n_metrics // n_jobs)],
                "step": i % -(-n_metrics // n_jobs),
                "epoch": 1,
                "training_loss": 1.0 / (i + 1),
            }
            yield sealed(metrics, row)

    with store._engine.begin() as c:
        for table, rows in ((jobs, made_jobs()), (metrics, made_metrics())):
            while some := [row for _, row in zip(range(SOME), rows, strict=False)]:
                c.execute(table.insert(), some)
    store.close()
    return ids


MEASURED = """
import sys, time
began = time.perf_counter()
{work}
print(time.perf_counter() - began, int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) / 1024, file=sys.stderr)
"""
DOORS = {
    "job list": "from tunesmith.interfaces.cli import app; app(['job', 'list'], standalone_mode=False)",
    "job list --status": "from tunesmith.interfaces.cli import app; app(['job', 'list', '--status', 'FAILED'], standalone_mode=False)",
    "job list --all": "from tunesmith.interfaces.cli import app; app(['job', 'list', '--all'], standalone_mode=False)",
    "job show": "from tunesmith.interfaces.cli import app; app(['job', 'show', {id!r}], standalone_mode=False)",
    "tunesmith.jobs": "import tunesmith; print(tunesmith.connect().execute('SELECT count(*), sum(step) FROM tunesmith.jobs').fetchall())",
    "tunesmith.jobs LIMIT 5": "import tunesmith; print(tunesmith.connect().execute('SELECT id FROM tunesmith.jobs LIMIT 5').fetchall())",
    "FINETUNE('SHOW')": "import tunesmith; print(len(tunesmith.connect().execute(\"SELECT FINETUNE('SHOW')\").fetchall()[0][0]))",
    "metrics_of one job": "import tunesmith; print(tunesmith.connect().execute(\"SELECT count(*) FROM tunesmith.metrics_of('{id}')\").fetchall())",
    "tunesmith.metrics": "import tunesmith; print(tunesmith.connect().execute('SELECT count(*), sum(training_loss) FROM tunesmith.metrics').fetchall())",
}


def doors(home: Path, job_id: str) -> dict[str, tuple[float, float]]:
    """Seconds and MB of each door, in a new process each."""
    found = {}
    for name, work in DOORS.items():
        ended = subprocess.run(
            [sys.executable, "-c", MEASURED.format(work=work.format(id=job_id))],
            env={**os.environ, "TUNESMITH_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        seconds, memory = ended.stderr.strip().splitlines()[-1].split()
        found[name] = float(seconds), float(memory)
    return found


def one_real_job(home: Path) -> str:
    """A job that succeeds, on the smallest rows."""
    from tunesmith import Tunesmith

    rows = [{"prompt": f"say {i}", "completion": "red" if i % 2 else "blue"} for i in range(40)]
    service = Tunesmith(home=home)
    job = service.create("real", "tunesmith-tiny", rows, max_epochs=1)
    job = service.wait(job.id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    return job.id


if __name__ == "__main__":
    where = Path(sys.argv[3])
    one_real_job(where)
    began = time.perf_counter()
    made = fill(where, int(sys.argv[1]), int(sys.argv[2]))
    print(f"filled in {time.perf_counter() - began:.0f} s")
    print(json.dumps(doors(where, made[-1]), indent=1))

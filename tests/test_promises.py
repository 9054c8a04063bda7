"""The promises of docs/promises.md in small doses; `make proofs` has the figures. Hostile queries:
data/test_served.py.

A proof runs in a process of its own, because what forks may not have used torch before.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DOSES = [
    "store.py --clients 8 --each 10 --kills 20 --races 50 --dead 3 --steps 10",
    "crash.py --points 8 --kills 12",
    "files.py --damaged 40 --states 150 --every 18",
    "jobs.py --cancels 5 --kinds 5 --minutes 0.33",
    "homes.py --homes 2 --each 2 --flips 30 --kills 4 --jobs 0",
    "models.py --every 22",
    "guards.py --first 3",
]


@pytest.mark.parametrize("dose", DOSES, ids=[d.split(".")[0] for d in DOSES])
@pytest.mark.timeout(480)
def test_the_promise_holds_in_a_small_dose(dose: str, tmp_path: Path) -> None:
    name, *arguments = dose.split()
    results, log = tmp_path / "results.json", tmp_path / "log.txt"
    ended = subprocess.run(
        [sys.executable, str(ROOT / "proofs" / name), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PROOF_RESULTS": str(results), "PROOF_LOG": str(log)},
    )
    said = log.read_text()[-2000:] if log.exists() else ""
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}\n{said}"
    assert all(p["ok"] for p in json.loads(results.read_text()))

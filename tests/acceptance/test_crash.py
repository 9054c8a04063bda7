"""A job that dies before any operation on files ends with the same model; a small dose of `python proofs/crash.py`."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, random, sys, tempfile
from pathlib import Path
sys.path[:0] = [{proofs!r}, {tests!r}]
import crash

folder = Path(sys.argv[1])
assert crash.forked(lambda: crash.make_base(folder / "base")) == 0
trials = crash.Trials(folder / "base", crash.rows(), folder)
n = trials.operations
points = [1, *random.Random(7).sample(range(2, n), 4), n]
told = {{"operations": n, "wrong": [p for p in points if trials.killed_at(p) != trials.truth]}}
told["control"] = trials.killed_at(n // 2, crash.forget_the_optimizer) != trials.truth
print(json.dumps(told))
"""


def test_a_job_killed_before_any_operation_ends_with_the_same_model_once(tmp_path: Path) -> None:
    code = SCRIPT.format(proofs=str(ROOT / "proofs"), tests=str(ROOT / "tests"))
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["operations"] > 50 and told["wrong"] == [] and told["control"], "a resume that forgets the optimizer is seen"

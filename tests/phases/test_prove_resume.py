import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import next_word_rows
from tunesmith.phases import prove_resume
from tunesmith.phases.messages import Compared
from tunesmith.tuning import checkpoints

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from in_process import run_job

ROWS = [(r["prompt"], r["completion"]) for r in next_word_rows()]


def compared(base: Path, folder: Path, **options: Any) -> Compared:
    folder.mkdir()
    parts = {"training": ROWS, "validation": ROWS[:3], "test": ROWS[:3]}
    _, told = run_job(
        folder,
        parts,
        str(base),
        {"learning_rate": 1e-2, "batch_size": 4, **options},
        phases=[prove_resume.run],
    )
    assert not [f for f in (folder / "tmp").glob("*") if f.is_dir()], "nothing is left"
    return told[Compared]


@pytest.mark.parametrize(
    "options",
    [{"method": "lora"}, {"method": "full"}, {"max_epochs": 1, "batch_size": 64}],
    ids=str,
)
def test_a_kill_and_a_resume_change_no_weight(
    tuned_base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    found = compared(tuned_base, tmp_path / "job", **options)
    assert found.different == [] and found.tensors > 5
    assert (found.steps, found.resumed_from) == ((1, 0) if "batch_size" in options else (12, 6))


def test_the_comparison_sees_a_resume_that_forgets_the_optimizer(
    tuned_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "restore_optimizer", lambda *a: None)
    found = compared(tuned_base, tmp_path / "job", method="lora")
    assert len(found.different) == found.tensors

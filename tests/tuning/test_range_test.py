"""The rate to begin with, found by trying: not so high that the loss grows, not so low that nothing
is learnt."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import next_word_rows
from tunesmith import Tunesmith
from tunesmith.tuning.range_test import Tried, suggested


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
    found = [Tried(1e-3, 2.0), Tried(2e-2, 1.0), Tried(0.1, 9.0), Tried(1.0, float("nan"))]
    assert suggested(found) == pytest.approx(2e-3)


@pytest.mark.parametrize("kind", ["text", "labels"])
def test_a_tuning_at_the_suggested_rate_learns_and_nothing_is_kept(
    home: Path, tiny_encoder: Path, tuned_base: Path, kind: str
) -> None:
    ts, rows = Tunesmith(), next_word_rows(8)
    base = tuned_base
    if kind == "labels":
        base = tiny_encoder
        rows = [{"text": r["prompt"], "label": r["completion"]} for r in rows]
    found = ts.find_rate(rows, base_model=str(base), batch_size=5)
    rates = [t["rate"] for t in found.tried]
    assert rates == sorted(rates) and rates[0] < 1e-5 < found.suggested < rates[-1]
    assert "a tenth of" in found.reason and f"{found.by_rule:g}" in found.told
    assert ElementTree.fromstring(found.plot().svg).tag.endswith("svg")
    assert not ts.show() and not list((home / "jobs").glob("*"))
    job = ts.create(
        "m", str(base), rows, learning_rate=found.suggested, batch_size=5, max_epochs=3
    ).wait()
    assert job.status == "SUCCEEDED" and not any("diverge" in w for w in job.warnings)
    assert job.training_loss and job.training_loss < found.tried[0]["loss"]


def test_the_command_line_finds_a_rate(home: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = [f"{r['prompt']},{r['completion']}\n" for r in next_word_rows(4)]
    file.write_text("text,label\n" + "".join(lines))
    words = [sys.executable, "-m", "tunesmith.interfaces.cli", "lr-find", str(file)]
    out = tmp_path / "rates.svg"
    words += ["--base", str(tiny_encoder), "--out", str(out), "--json"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["suggested"] > 0 and out.read_text().startswith("<svg")

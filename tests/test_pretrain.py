"""The script that makes the bundled base: any text in, an ordinary folder out, going on where it
was stopped."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb

from tunesmith import Tunesmith

SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain.py"
SMALL = [
    "--vocabulary",
    "300",
    "--width",
    "16",
    "--heads",
    "2",
    "--layers",
    "1",
    "--hidden",
    "32",
    "--context",
    "32",
    "--positions",
    "64",
    "--batch",
    "4",
]


def pretrain(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [
        sys.executable,
        str(SCRIPT),
        "--prose",
        str(folder / "prose.parquet"),
        "--tasks",
        str(folder / "tasks.jsonl"),
    ]
    ended = subprocess.run(
        [*command, "--out", str(folder / "base"), *SMALL, "--threads", "1", *arguments],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "base" / "pretraining.json").read_text())  # type: ignore[no-any-return]


def test_text_becomes_a_base_that_can_be_asked_and_tuned(home: Path, tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT 'the cat sat on the mat ' || i AS text FROM range(600) r(i)) TO '{tmp_path}/prose.parquet'"
        )
        connection.execute(
            f"COPY (SELECT 'say ' || i AS prompt, i::VARCHAR AS completion FROM range(600) r(i)) TO '{tmp_path}/tasks.jsonl'"
        )
    first = pretrain(tmp_path, "--minutes", "0.03", "--save-minutes", "0.005")
    assert (
        first["tokens"] > 0
        and 0 < first["held_out_bits_per_byte"]["prose"] < 8
        and first["sources"] == ["prose.parquet", "tasks.jsonl"]
    )
    longer = pretrain(tmp_path, "--minutes", "0.06", "--save-minutes", "0.005")
    letters = Counter("".join(f"the cat sat on the mat {i}" for i in range(600)))
    by_letters = -sum(
        n / letters.total() * math.log2(n / letters.total()) for n in letters.values()
    )
    assert (
        longer["tokens"] > first["tokens"] / 2
        and longer["held_out_bits_per_byte"]["prose"] < by_letters
    ), "what no context tells"
    base = str(tmp_path / "base")
    [answer] = Tunesmith().complete(base, ["say 3"], max_tokens=3)
    assert answer.completion_tokens <= 3
    assert Tunesmith().model(base).base.prompt_window == 48


def test_rows_of_copies_ask_only_for_what_was_said_before() -> None:
    import numpy as np

    sys.path.insert(0, str(SCRIPT.parent))
    import pretrain as script

    ids, labels = script.copy_rows(
        6, 128, 16, np.arange(5, 300).reshape(5, 59), np.random.default_rng(0)
    )
    targets = labels != -100
    assert (labels[targets] == ids[targets]).all() and 0.4 < targets.mean() < 0.75
    for row, wanted in zip(ids, targets, strict=True):
        assert all(row[t] in row[max(0, t - 16) : t] for t in np.nonzero(wanted)[0]), (
            "said again within the longest stretch"
        )
    assert ids.min() >= 5, "no special token"

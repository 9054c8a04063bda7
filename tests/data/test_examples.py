from pathlib import Path

import duckdb
import pytest

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset, snapshot
from tunesmith.data.examples import encode
from tunesmith.data.given import sources_of
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.options import Options

SPEC = ModelSpec(name="b", prompt_window=20, completion_window=6)


@pytest.fixture
def scene(tiny_base: Path, tmp_path: Path) -> tuple[Dataset, Encoder]:
    """Row 1 fits, rows 2 and 3 fit exactly, 4 has a long prompt, 5 a long completion. The template
    takes 3 tokens, the stop id 1."""
    rows = [
        ("short", "yes"),
        ("p" * 17, "yes"),
        ("short", "c" * 5),
        ("begin " + "p" * 40, "yes"),
        ("short", "c" * 6),
    ]
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (prompt VARCHAR, completion VARCHAR)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        found = snapshot(
            connection,
            sources_of({"training": "SELECT * FROM t"}),
            tmp_path / "d",
            home=tmp_path,
            seed=0,
        )
    return Dataset.open(tmp_path / "d", found.digest), Encoder(
        PromptTemplate.of_base(tiny_base), tiny_base
    )


def test_rows_over_a_window_are_rejected_by_id_and_nothing_is_cut(
    scene: tuple[Dataset, Encoder],
) -> None:
    found = encode(*scene[:1], "train", scene[1], SPEC, Options(learn="last"))
    assert [e.row.row for e in found.accepted] == [1, 2, 3] and not any(
        e.cut for e in found.accepted
    )
    assert [(r["row"], r["detail"]) for r in found.rejected] == [
        (4, "prompt: 49 tokens, window 20"),
        (5, "completion: 7 tokens, window 6"),
    ]
    assert sum(len(e.encoded.ids) for e in found.accepted) == (3 + 5 + 4) + (3 + 17 + 4) + (
        3 + 5 + 6
    )


def test_cut_prompt_keeps_the_end_of_the_prompt_and_the_whole_answer(
    scene: tuple[Dataset, Encoder],
) -> None:
    found = encode(scene[0], "train", scene[1], SPEC, Options(on_long="cut_prompt", learn="last"))
    [cut] = [e for e in found.accepted if e.cut]
    assert cut.row.row == 4 and cut.encoded.n_prompt == 20
    assert scene[1].decode(cut.encoded.ids) == "p" * 17 + "yes"
    assert [r["row"] for r in found.rejected] == [5], "an answer is never cut"

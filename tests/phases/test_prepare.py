"""What is known after rows were rejected by the base: parts filled again, warnings told again, and
what is learnt."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith import durable
from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset, snapshot
from tunesmith.data.given import sources_of
from tunesmith.data.split import PARTS
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import NoUsableRows
from tunesmith.options import Options
from tunesmith.phases.prepare import Plan, plan_of

SPEC = ModelSpec(name="b", prompt_window=80, completion_window=10)
LONG = "x" * 200


def prepared(home: Path, base: Path, rows: Any, **options: Any) -> tuple[Dataset, Plan]:
    data = {"training": rows, **{k: options.pop(k) for k in ("validation", "test") if k in options}}
    with duckdb.connect() as connection:
        found = snapshot(connection, sources_of(data), home / "data", home=home, seed=0)
    dataset = Dataset.open(home / "data", found.digest)
    made = plan_of(
        dataset, Encoder(PromptTemplate.of_base(base), base), SPEC, Options.parse(options), 0.0
    )
    return dataset, made


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(long=st.sets(st.integers(0, 59), max_size=59), seed=st.integers(0, 3))
def test_parts_are_filled_again_after_rejections(
    tmp_path_factory: Any, tiny_base: Path, long: set[int], seed: int
) -> None:
    home = tmp_path_factory.mktemp("again")
    rows = [{"prompt": f"{LONG if i in long else 'q'} {i}", "completion": "a"} for i in range(60)]
    dataset, made = prepared(home, tiny_base, rows)
    left = 60 - len(long)
    share = 0 if left < 10 else max(1, round(left / 10))
    assert {p: made.rows[p] for p in PARTS} == {
        "train": left - 2 * share,
        "validation": share,
        "verdict": share,
    }
    divided = Dataset(
        dataset.folder, dataset.rows_per_part, dataset.source_of, dataset.sources, made.moved
    )
    refused = {(r["part"], r["row"]) for r in made.rejected}
    seen = {
        p: [
            r.row
            for r in divided.rows(p)
            if ("training", r.row) not in refused and not r.prompt.startswith("xx")
        ]
        for p in PARTS
    }
    assert {p: len(r) for p, r in seen.items()} == {p: made.rows[p] for p in PARTS}, (
        "every child sees the same parts"
    )
    assert sorted(sum(seen.values(), [])) == [i + 1 for i in range(60) if i not in long]
    for part in PARTS:
        assert [n for _, n in divided.hashes(part)] == [r.row for r in divided.rows(part)]
    assert (
        ("no verdict rows" in " ".join(made.warnings)) is False
        if left >= 10
        else any("usable row" in w for w in made.warnings)
    )


def test_groups_of_equal_prompts_stay_together_when_parts_are_filled_again(
    tmp_path: Path, tiny_base: Path
) -> None:
    rows = [{"prompt": f"{LONG} {i}", "completion": "a"} for i in range(30)] + [
        {"prompt": f"q {i // 3}", "completion": "a"} for i in range(60)
    ]
    dataset, made = prepared(tmp_path, tiny_base, rows)
    divided = Dataset(
        dataset.folder, dataset.rows_per_part, dataset.source_of, dataset.sources, made.moved
    )
    prompts = {
        p: {r.prompt for r in divided.rows(p) if not r.prompt.startswith("xx")} for p in PARTS
    }
    assert (
        not prompts["train"] & prompts["validation"] and not prompts["train"] & prompts["verdict"]
    )
    assert made.rows["validation"] == made.rows["verdict"] == 6


def test_rows_of_a_validation_query_never_become_training_rows(
    tmp_path: Path, tiny_base: Path
) -> None:
    rows = [{"prompt": f"q {i}", "completion": "a"} for i in range(20)]
    held = [{"prompt": f"{LONG if i % 2 else 'v'} {i}", "completion": "a"} for i in range(20)]
    _, made = prepared(tmp_path, tiny_base, rows, validation=held)
    assert {p: made.rows[p] for p in PARTS} == {"train": 20, "validation": 5, "verdict": 5}


def test_a_part_that_rejections_emptied_is_filled_or_told(tmp_path: Path, tiny_base: Path) -> None:
    rows = [{"prompt": f"q {i}", "completion": "a"} for i in range(20)]
    _, made = prepared(
        tmp_path,
        tiny_base,
        rows,
        validation=[{"prompt": LONG, "completion": "a"}],
        test=[{"prompt": LONG, "completion": "a"}],
    )
    assert {p: made.rows[p] for p in PARTS} == {"train": 16, "validation": 2, "verdict": 2}
    assert [w.split(":")[0] for w in made.warnings[:2]] == [
        "no row of the validation query is left",
        "no row of the test query is left",
    ]
    (tmp_path / "few").mkdir()
    few = [{"prompt": f"{LONG if i > 8 else 'q'} {i}", "completion": "a"} for i in range(20)]
    _, made = prepared(tmp_path / "few", tiny_base, few)
    assert {p: made.rows[p] for p in PARTS} == {
        "train": 9,
        "validation": 0,
        "verdict": 0,
    } and "only 9 usable rows" in made.warnings[0]
    (tmp_path / "b").mkdir()
    with pytest.raises(NoUsableRows, match="20 x too long"):
        prepared(
            tmp_path / "b",
            tiny_base,
            [{"prompt": f"{LONG} {i}", "completion": "a"} for i in range(20)],
        )


REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}<|{{ m.role }}|>{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_row_that_the_template_refuses_is_rejected_with_its_words(
    tmp_path: Path, tiny_base: Path
) -> None:
    rows = [
        {
            "messages": [
                *([{"role": "system", "content": "s"}] if i == 5 else []),
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": "a"},
            ]
        }
        for i in range(24)
    ]
    with duckdb.connect() as connection:
        found = snapshot(
            connection, sources_of({"training": rows}), tmp_path / "data", home=tmp_path, seed=0
        )
    template = PromptTemplate(REFUSES, "", "<|end|>", 0, (0,), "2026-01-01")
    made = plan_of(
        Dataset.open(tmp_path / "data", found.digest),
        Encoder(template, tiny_base),
        SPEC,
        Options(),
        0.0,
    )
    [row] = made.rejected
    assert (
        row["row"] == 6
        and row["reason"] == "refused by the chat template"
        and "no system message here" in row["detail"]
    )
    assert (
        any("no system message here" in w for w in made.warnings)
        and sum(made.rows[p] for p in PARTS) == 23
    )


TALK = [
    {
        "messages": [
            {"role": r, "content": f"{r[:2]} {i}"}
            for r in ("user", "assistant", "user", "assistant")
        ]
    }
    for i in range(12)
]


def test_all_answers_are_learnt_or_the_last_where_the_template_allows_no_more(
    tmp_path: Path, tiny_base: Path
) -> None:
    _, made = prepared(tmp_path, tiny_base, TALK, learn="all")
    assert made.resolved.learn == "all" and not made.warnings
    forgetful = "{% for m in messages[-1:] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    encoder = Encoder(PromptTemplate(forgetful, "", "<|end|>", 0, (0,), "2026-01-01"), tiny_base)
    dataset = Dataset.open(tmp_path / "data", durable.sha256(tmp_path / "data" / durable.MANIFEST))
    made = plan_of(dataset, encoder, SPEC, Options(), 0.0)
    reason = made.resolved.reasons["learn"]
    assert made.resolved.learn == "last" and reason.origin == "measured"
    assert reason.words in made.warnings
    assert plan_of(dataset, encoder, SPEC, Options(learn="last"), 0.0).warnings == []


def test_a_conversation_and_what_it_begins_with_are_never_parted(
    tmp_path: Path, tiny_base: Path
) -> None:
    """Its first answer is learnt, so the row that asks just that must not judge."""
    more = [{"role": "user", "content": "more"}, {"role": "assistant", "content": "b"}]

    def turns(i: int, n: int) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"user {i}"},
            {"role": "assistant", "content": "a"},
            *more[: 2 * n],
        ]

    rows = [{"messages": turns(i, n)} for i in range(40) for n in (0, 1)]
    dataset, _ = prepared(tmp_path, tiny_base, rows)
    first = {p: {r.messages[0]["content"] for r in dataset.rows(p)} for p in PARTS}
    assert (
        all(first.values())
        and not first["train"] & first["verdict"]
        and not first["train"] & first["validation"]
    )

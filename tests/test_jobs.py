import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import jobs
from tunesmith.catalog import ModelSpec
from tunesmith.errors import (
    InvalidModelName,
    InvalidOption,
    InvalidOptions,
    InvalidOptionValue,
    OptionNotRead,
)
from tunesmith.jobs import MOVES, WORKING, Job, JobStatus
from tunesmith.models import methods
from tunesmith.names import model_key
from tunesmith.options import Decided, Options
from tunesmith.tasks.specs import TEXT_GENERATION
from tunesmith.tuning.recipe import Known, decide


def test_every_status_has_moves_and_a_word_at_every_door() -> None:
    assert set(MOVES) == set(JobStatus)
    assert {s.sql for s in JobStatus} == {"PENDING", "IN_PROGRESS", "SUCCESS", "ERROR", "CANCELLED"}
    assert (
        JobStatus.VALIDATING.sql == "PENDING" and JobStatus.VALIDATING.openai == "validating_files"
    )
    assert JobStatus.CANCELLING.openai == "running" and JobStatus.PENDING.openai == "queued"


@given(st.lists(st.integers(0, 9), max_size=30))
def test_whatever_moves_are_taken_a_final_state_is_never_left(choices: list[int]) -> None:
    status, seen_final = JobStatus.PENDING, None
    for choice in choices:
        after = sorted(MOVES[status])
        if seen_final is not None:
            assert status is seen_final and not after
        if not after:
            seen_final = status
            continue
        status = after[choice % len(after)]
    assert status.is_final == (
        status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    )


def test_success_is_reached_from_evaluating_alone_and_a_cancel_from_every_working_state() -> None:
    assert [s for s in JobStatus if JobStatus.SUCCEEDED in MOVES[s]] == [JobStatus.EVALUATING]
    assert all(JobStatus.CANCELLING in MOVES[s] for s in WORKING - {JobStatus.CANCELLING})


def test_options_are_read_from_json_text_objects_and_numbers_sent_as_text() -> None:
    assert Options.parse('{"max_epochs": 3}').max_epochs == 3
    assert Options.parse({"MAX_EPOCHS": "3", "learning_rate": "1e-4"}) == Options(
        max_epochs=3, learning_rate=1e-4
    )
    assert Options.parse(None) == Options.parse("") == Options()


@pytest.mark.parametrize(
    "value", [0, 11, -1, 1.5, "many", True, None.__class__, float("nan"), float("inf"), 10**12, [3]]
)
def test_a_number_of_epochs_outside_one_to_ten_is_refused(value: object) -> None:
    with pytest.raises(InvalidOptionValue, match=r"max_epochs.*1 to 10"):
        Options.parse({"max_epochs": value})


def test_an_unknown_option_names_the_nearest_one() -> None:
    with pytest.raises(InvalidOption, match=r"'max_epoch' = 3.*'max_epochs'"):
        Options.parse({"max_epoch": 3})


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"x"'])
def test_options_that_are_no_json_object_are_refused(text: str) -> None:
    with pytest.raises(InvalidOptions, match="max_epochs"):
        Options.parse(text)


def test_every_option_is_declared_with_help_and_survives_its_own_json() -> None:
    assert all(f.metadata["help"] for f in fields(Options))
    asked = Options.parse({"max_epochs": 2, "method": "lora", "seed": 5})
    assert Options.parse(json.dumps(asked.to_json())) == asked


def test_what_was_decided_has_every_option_and_survives_json_also_of_an_earlier_release() -> None:
    made = decide(Options.parse({"max_epochs": 3}), Known(ModelSpec(name="b", parameters=1), 100))
    data = made.to_json()
    assert data["max_epochs"] == {"value": 3, "origin": "user", "reason": "as asked"}
    assert Decided.from_json(data) == made and Decided.from_json(data).to_json() == data
    assert [f.name for f in fields(Decided)] == [*(f.name for f in fields(Options)), "reasons"]
    del data["swap_terms"]  # as if the job were older than the option
    assert Decided.from_json(data) == made


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Support_V1", "support_v1"),
        ("support-v1", "support-v1"),
        ("MyDb.Main.m", "mydb.main.m"),
        ('"Any Thing!"', '"Any Thing!"'),
        ('db."X"', 'db."X"'),
    ],
)
def test_names_fold_unless_quoted(name: str, key: str) -> None:
    assert model_key(name) == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1a",
        "a b",
        "a.b.c.d",
        "a..b",
        "../x",
        "a/b",
        'a"',
        "x\x00",
        "%2e",
        "é",
        '""',
        "a" * 64,
        "C:/x",
        "a#b",
    ],
)
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InvalidModelName):
        model_key(name)


def test_the_notebook_card_escapes_what_users_wrote() -> None:
    job = Job(Job.new_id(), "<script>", "b", "text_generation", "", "", Options())
    assert "<script>" not in job._repr_html_()


@pytest.mark.parametrize("pairs", ["he", "he/", "/she", "he/she,", "he/ ", " / ", "he/she/it"])
def test_pairs_of_words_to_exchange_are_checked_at_the_door(pairs: str) -> None:
    assert (
        Options.parse({"swap_terms": "new york/lagos, anna/ali"}).swap_terms
        == "new york/lagos, anna/ali"
    )
    with pytest.raises(InvalidOptionValue, match="swap_terms.*pairs such as he/she"):
        Options.parse({"swap_terms": pairs})


ONLY_LORA = {"rank": 8, "targets": "attention", "precision": "bfloat16"}


@pytest.mark.parametrize("name", ONLY_LORA)
def test_an_option_that_the_method_does_not_read_is_an_error_that_says_who_does(name: str) -> None:
    with pytest.raises(
        OptionNotRead, match=f"{name} = .*read by the method lora, and the method is full"
    ):
        Options.parse({"method": "full", name: ONLY_LORA[name]}).must_be_read(
            TEXT_GENERATION, methods.READERS
        )
    for method in ("lora", "auto"):
        Options.parse({"method": method, name: ONLY_LORA[name]}).must_be_read(
            TEXT_GENERATION, methods.READERS
        )
    unset = {f.name: f.default for f in fields(Options)}
    Options.parse({**unset, "method": "full"}).must_be_read(TEXT_GENERATION, methods.READERS)


def test_an_option_of_one_method_decides_for_it_with_that_as_the_reason() -> None:
    facts = Known(ModelSpec(name="b", parameters=3_000_000), 100)
    for name, value in ONLY_LORA.items():
        decided = decide(Options.parse({name: value}), facts)
        assert decided.method == "lora"
        assert decided.reasons["method"].words == f"{name} is set, which only lora reads"
    assert (
        decide(Options.parse(ONLY_LORA), facts).reasons["method"].words
        == "rank and targets and precision are set, which only lora reads"
    )
    assert decide(Options(), facts).method == "full"


def test_every_option_has_a_reader_in_the_code() -> None:
    """An option nobody reads is no option: each is looked at outside the place that declares it."""
    source = Path(jobs.__file__).parent
    read = "\n".join(p.read_text() for p in source.rglob("*.py") if p.name != "options.py")
    assert [f.name for f in fields(Options) if not re.search(rf"\.{f.name}\b", read)] == []

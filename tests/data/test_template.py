import json
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_base
from tunesmith import catalog
from tunesmith.data import render, template
from tunesmith.data.conversation import question
from tunesmith.data.render import Rendering
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import InvalidPrompt, TemplateTooCostly, UnsafeBaseModel

ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(PromptTemplate.of_base(tiny_base), tiny_base)


def test_a_row_is_prompt_then_completion_then_the_stop_id(encoder: Encoder) -> None:
    row = encoder.row(ASK, "yo")
    assert row.ids[: row.n_prompt] == encoder.prompt(ASK) == [1, *encoder.text("hi"), 0, 2]
    assert row.ids[row.n_prompt :] == [*encoder.text("yo"), 0]
    assert row.ids[-1] in encoder.template.stop_ids


@given(st.text(max_size=40))
def test_every_text_survives_and_ends_with_a_stop_id(tiny_base: Path, text: str) -> None:
    encoder = Encoder(PromptTemplate.of_base(tiny_base), tiny_base)
    row = encoder.row([{"role": "user", "content": text}], text)
    assert row.ids[-1] == 0 and encoder.decode(row.ids[row.n_prompt : -1]) == text


@pytest.mark.parametrize(
    "text",
    [
        "<|end|>",
        "a<|assistant|>b",
        "{{ 7 * 7 }}",
        "{% for x in y %}",
        "\ue0000\ue001",
        "\x00",
        "</s>",
    ],
)
def test_a_users_text_never_becomes_control(encoder: Encoder, text: str) -> None:
    ids = encoder.prompt([{"role": "user", "content": text}])
    assert [i for i in ids if i < 4] == [1, 0, 2], "only the template's own special ids"
    assert encoder.decode(ids[1:-2]) == text


def test_the_template_is_frozen_as_json(encoder: Encoder, tiny_base: Path) -> None:
    again = PromptTemplate.from_json(json.loads(json.dumps(encoder.template.to_json())))
    assert again == encoder.template and again.digest == encoder.template.digest


def test_a_system_message_and_earlier_turns_are_part_of_the_prompt(encoder: Encoder) -> None:
    messages = [
        {"role": r, "content": c}
        for r, c in (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    assert [i for i in encoder.prompt(messages) if i < 4] == [3, 0, 1, 0, 2, 0, 1, 0, 2]


def test_a_base_without_a_chat_template_gets_the_plain_form(tmp_path: Path) -> None:
    base = make_base(tmp_path / "plain")
    (base / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "bos_token": "<|user|>"})
    )
    encoder = Encoder(PromptTemplate.of_base(base), base)
    assert encoder.prompt(ASK) == [1, *encoder.text("hi"), *encoder.text("\n")]
    assert encoder.row(ASK, "yo").ids[-1] == 0


def test_the_end_of_turn_of_the_chat_template_is_what_is_learnt_and_every_declared_end_stops(
    tmp_path: Path,
) -> None:
    base = make_base(tmp_path / "turns")
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|system|>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    (base / "chat_template.jinja").write_text(source)
    (base / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    template = PromptTemplate.of_base(base)
    assert template.end_id == 3 and template.stop_ids == (0, 2, 3)


def test_a_date_in_a_template_is_the_date_of_create(tmp_path: Path) -> None:
    base = make_base(tmp_path / "dated")
    (base / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    template = PromptTemplate.from_json(
        {**PromptTemplate.of_base(base).to_json(), "frozen_on": "1999-12-31"}
    )
    assert template.pieces(ASK)[0] == "1999"


def test_a_base_without_any_end_token_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "endless")
    (base / "tokenizer_config.json").write_text("{}")
    (base / "generation_config.json").unlink()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    with pytest.raises(UnsafeBaseModel, match="no end token"):
        PromptTemplate.of_base(base)


def test_a_tokenizer_with_more_words_than_any_has_is_refused(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PromptTemplate.of_base(tiny_base)
    monkeypatch.setattr(template, "MOST_WORDS", 200)
    with pytest.raises(UnsafeBaseModel, match="over 200 words"):
        PromptTemplate.of_base(tiny_base)


def test_a_template_cannot_run_code(tmp_path: Path) -> None:
    base = make_base(tmp_path / "evil")
    (base / "chat_template.jinja").write_text(
        "{{ messages.__class__.__mro__ }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(InvalidPrompt, match="unsafe"):
        PromptTemplate.of_base(base)


LOOPS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 5000000000 }}",
        LOOPS,
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ ''.ljust(2000000000) }}",
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 2000000 }}",
        "{# " + "x" * 70000 + " #}",
        "{{ [1] * 3000000000 }}",
        "{{ range(10) | list | tojson | center(999999999) }}",
    ],
    ids=range(11),
)
def test_a_template_that_would_take_all_time_or_memory_is_stopped(
    tmp_path: Path, source: str
) -> None:
    base = make_base(tmp_path / "costly")
    (base / "chat_template.jinja").write_text(
        source + "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((TemplateTooCostly, InvalidPrompt)):
        PromptTemplate.of_base(base)
    assert time.monotonic() - began < render.WALL_SECONDS + 5, "the promise"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10, (
        "not in this process"
    )


def test_a_file_of_the_current_folder_is_not_taken_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    (tmp_path / "jinja2.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    assert PromptTemplate.of_base(base).pieces(ASK)


def test_our_own_template_needs_no_child_and_says_the_same_in_one(tmp_path: Path) -> None:
    source = (
        Path(catalog.find("tunesmith-tiny", tmp_path).folder) / "chat_template.jinja"
    ).read_text()
    asked = Rendering(source, ASK, True, "", "", "2026-01-01")
    assert source in render._own() and asked.text() == render._render_limited(asked)


def test_cutting_takes_tokens_from_the_start_of_the_last_message(encoder: Encoder) -> None:
    assert encoder.cut([{"role": "user", "content": "abcdef"}], 2)[0]["content"] == "cdef"
    assert encoder.cut([{"role": "user", "content": "ab"}], 9)[0]["content"] == ""


def test_a_text_of_ten_megabytes_is_known_to_be_long_without_tokenising(encoder: Encoder) -> None:
    assert encoder.surely_longer("x" * 10_000_000, 1000) and not encoder.surely_longer(
        "x" * 10, 1000
    )


GOOD = [
    "text",
    [{"role": "user", "content": "a"}],
    [{"content": "a"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
]
BAD = [
    3,
    None,
    [],
    {},
    ["x"],
    [{"role": "user"}],
    [{"role": "tool", "content": "x"}],
    [{"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    [{"role": "system", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": 3}],
]


@pytest.mark.parametrize("value", GOOD)
def test_prompts_may_be_texts_or_messages(value: object) -> None:
    assert question(value)[-1]["role"] == "user"


@pytest.mark.parametrize("value", BAD)
def test_other_prompts_are_refused_with_the_reason(value: object) -> None:
    with pytest.raises(InvalidPrompt, match="invalid prompt object"):
        question(value)

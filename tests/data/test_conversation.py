"""The one validator of conversations: the same rows are taken, and the same refused, in training
and in COMPLETE."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_files import frozen

from tunesmith.data.conversation import is_conversation, lesson, question
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import AnswersNotFound, InvalidPrompt, NoUsableRows


def user(text: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def answer(text: Any = "yo", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "be brief"}
CALL = [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]

REFUSED = {
    "tool calls": (
        [user(), answer("Let me look.", tool_calls=CALL)],
        "message 2 has tool_calls: tool calls are not supported",
    ),
    "a function call": (
        [user(), answer(None, function_call={"name": "f"})],
        "message 2 has function_call",
    ),
    "a tool's answer": (
        [user(), {"role": "tool", "content": "5", "tool_call_id": "c"}, answer()],
        "message 2 has tool_call_id",
    ),
    "a picture": (
        [user([{"type": "image_url", "image_url": {"url": "x"}}]), answer()],
        "message 1 has a part of the type 'image_url'",
    ),
    "audio": (
        [user([{"type": "input_audio", "input_audio": {}}]), answer()],
        "'input_audio': only text parts",
    ),
    "reasoning": ([user(), answer(reasoning_content="hm")], "message 2 has reasoning_content"),
    "two users": ([user(), user(), answer()], "the roles are user, user, assistant"),
    "a late system message": ([user(), SYSTEM, answer()], "the roles are user, system, assistant"),
    "two systems": (
        [SYSTEM, SYSTEM, user(), answer()],
        "the roles are system, system, user, assistant",
    ),
    "an assistant first": (
        [answer(), user(), answer()],
        "the roles are assistant, user, assistant",
    ),
    "no content": ([user(), {"role": "assistant"}], "message 2 has no content"),
    "a number as content": (
        [user(5), answer()],
        "message 1 has a content that is neither a text nor a list of parts",
    ),
    "half an emoji": ([user(), answer("ok \ud83d")], "message 2 is no valid Unicode"),
    "a role of another API": (
        [{"role": "developer", "content": "x"}, user(), answer()],
        "message 1 has the role 'developer'",
    ),
    "no message at all": (["hi", "yo"], "message 1 is not an object"),
    "half a weight": ([user(), answer(weight=0.5)], "message 2 has the weight 0.5"),
    "a weight that is no number": ([user(), answer(weight=True)], "message 2 has the weight True"),
    "a user's weight": ([user(weight=1), answer()], "message 1 has a weight of 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_supported_is_refused_by_name_and_rejects_its_row_alone(
    tmp_path: Path, kind: str
) -> None:
    messages, words = REFUSED[kind]
    with pytest.raises(InvalidPrompt) as caught:
        lesson(messages)
    assert words in caught.value.fields["reason"]
    rows = [{"messages": [user("a"), answer("b")]}, {"messages": messages}]
    assert [r.row for r in frozen(rows, tmp_path)] == [1]
    if messages[-1] != "yo" and kind not in (
        "tool calls",
        "a function call",
        "no content",
        "half an emoji",
        "half a weight",
        "a weight that is no number",
        "reasoning",
    ):
        with pytest.raises(InvalidPrompt):  # asked without its last answer, it is refused too
            question(messages[:-1])


def test_text_parts_are_joined_and_a_weight_of_one_is_the_usual_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    assert lesson([user(parts), answer(parts, weight=1)]) == [user("abc"), answer("abc")]
    assert question([user(parts)]) == [user("abc")]


def test_answers_of_weight_zero_are_read_and_not_learnt() -> None:
    with pytest.raises(InvalidPrompt, match="every answer has weight 0"):
        lesson([user(), answer(weight=0)])
    assert lesson([user("a"), answer("b", weight=0), user("c"), answer("d")]) == [
        user("a"),
        answer("b", weight=0),
        user("c"),
        answer("d"),
    ]
    assert lesson([user("a"), answer("b"), user("c"), answer("d", weight=0)]) == [
        user("a"),
        answer("b"),
    ], "what follows the last learnt answer"


SHAPES = {
    "two lists, as TRL has them": {"prompt": [user("a")], "completion": [answer("b")]},
    "a list and a text": {"prompt": [user("a")], "completion": "b"},
    "a text and a list": {"prompt": "a", "completion": [answer("b")]},
    "messages": {"messages": [user("a"), answer("b")]},
    "content parts": {
        "messages": [user([{"type": "text", "text": "a"}]), answer([{"type": "text", "text": "b"}])]
    },
    "keys that mean nothing": {"messages": [user("a", name="Ann"), answer("b", name=None)]},
    "text": {"prompt": "a", "completion": "b"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_one_exchange_is_one_row(tmp_path: Path, shape: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(SHAPES[shape]) + "\n")
    for data in ([SHAPES[shape]], str(tmp_path / "rows.jsonl")):
        [row] = frozen(data, tmp_path)
        assert (row.prompt, row.completion, row.chat, row.messages) == (
            "a",
            "b",
            False,
            [user("a")],
        )


def test_longer_conversations_are_joined_of_prompt_and_completion(tmp_path: Path) -> None:
    whole = [SYSTEM, user("a"), answer("b"), user("c"), answer("d")]
    for cut in (2, 4):
        [row] = frozen([{"prompt": whole[:cut], "completion": whole[cut:]}], tmp_path)
        assert row.messages == whole[:4] and row.completion == "d" and row.chat


@pytest.mark.parametrize(
    "value", [["a", "b"], [1, 2], [], [{"slot": "time", "value": "7pm"}], {"role": "user"}]
)
def test_other_lists_and_objects_are_text(tmp_path: Path, value: Any) -> None:
    assert not is_conversation(value)
    text = json.dumps(value)
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "a", "completion": {text}}}\n')
    [row] = frozen(str(tmp_path / "rows.jsonl"), tmp_path)
    assert row.completion == text


def test_tools_beside_messages_reject_the_row(tmp_path: Path) -> None:
    rows = [{"messages": [user(), answer()], "tools": tools} for tools in ([], None, CALL)]
    assert [r.row for r in frozen(rows, tmp_path)] == [1, 2]
    with pytest.raises(NoUsableRows, match="the row has tools: tool calls are not supported"):
        frozen(rows[2:], tmp_path)


def test_a_row_that_is_no_list_of_messages_is_rejected(tmp_path: Path) -> None:
    for messages in ("no json", "{}", [], [user()], None, 5):
        with pytest.raises(NoUsableRows, match="messages is"):
            frozen([{"messages": messages}], tmp_path)


# ---------------------------------------------------------------- which answers are learnt


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(PromptTemplate.of_base(tiny_base), tiny_base)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=5), st.booleans()), min_size=1, max_size=5),
    st.booleans(),
)
def test_every_answer_but_those_of_weight_zero_is_learnt_with_its_end(
    encoder: Encoder, turns: list[tuple[str, bool]], system: bool
) -> None:
    messages: list[dict[str, Any]] = [SYSTEM] if system else []
    for text, learnt in turns:
        messages += [user(), answer(text) if learnt else answer(text, weight=0)]
    messages = [*messages, user("last")]
    row = encoder.row(messages, "end", "all")
    wanted = [
        [*encoder.text(text), encoder.template.end_id] for text, learnt in turns if learnt
    ] + [[*encoder.text("end"), encoder.template.end_id]]
    assert [row.ids[i] for i in row.learnt] == sum(wanted, []) and row.n_learnt == len(row.learnt)
    assert row.ids[: row.n_prompt] == encoder.prompt(messages), (
        "the same tokens, whatever is learnt"
    )
    for start, _ in row.earlier:  # each stands behind what the model is asked at that turn
        n = next(
            n
            for n in range(len(messages))
            if len(encoder.prompt(messages[:n])) == start and messages[n]["role"] == "assistant"
        )
        assert row.ids[:start] == encoder.prompt(messages[:n])
    last = encoder.row(messages, "end")
    assert last.ids == row.ids and last.earlier == () and last.n_learnt == last.n_completion


TEMPLATES = {
    "drops earlier turns": "{% for m in messages[-1:] %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "writes no end after an earlier answer": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if loop.last %}<|end|>{% endif %}{% endfor %}[assistant]",
    "asks otherwise than it writes": "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_an_earlier_answer_that_the_template_does_not_write_as_asked_cannot_be_learnt(
    tiny_base: Path, kind: str
) -> None:
    template = PromptTemplate(TEMPLATES[kind], "", "<|end|>", 0, (0,), "2026-01-01")
    encoder = Encoder(template, tiny_base)
    messages = [user("a"), answer("b"), user("c")]
    with pytest.raises(AnswersNotFound, match="message 2"):
        encoder.row(messages, "d", "all")
    assert (
        encoder.row(messages, "d").n_learnt == 2
        and encoder.row(messages[:1], "d", "all").n_learnt == 2
    )
    assert encoder.row([user("a"), answer("b", weight=0), user("c")], "d", "all").n_learnt == 2, (
        "nothing earlier is learnt"
    )

"""What text generation knows of rows, without torch: a prompt and the text that follows it, or a
conversation. The functions are those of `rules.RowRules`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from tunesmith import architectures
from tunesmith.catalog import ModelSpec
from tunesmith.data import conversation, metrics
from tunesmith.data.checks.texts import TextChecks as Checks
from tunesmith.data.conversation import Message
from tunesmith.data.dataset import NORMAL, Dataset, Row, insert_beginnings, insert_rows
from tunesmith.data.examples import encode
from tunesmith.data.staging import Source
from tunesmith.data.template import Encoder, Messages, PromptTemplate
from tunesmith.data.text import INVALID, LIST, MISSING, Broken, is_empty, plain, value_of
from tunesmith.errors import InvalidPrompt

__all__ = [
    "Checks",
    "add_rows",
    "count_tokens",
    "encode",
    "encoder",
    "fitted",
    "metrics_for",
    "preprocessing",
    "question",
    "words",
]


def preprocessing(spec: ModelSpec) -> dict[str, Any]:
    """The base's prompt template. UnfitBaseModel where the base is no language model for it."""
    architectures.must_fit(Path(spec.folder))
    return PromptTemplate.of_base(Path(spec.folder)).to_json()


def fitted(preprocessing: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    return dict(preprocessing)


def encoder(preprocessing: Mapping[str, Any], spec: ModelSpec) -> Encoder:
    return Encoder(PromptTemplate.from_json(preprocessing), Path(spec.folder))


def question(value: Any) -> Messages:
    """Messages as they are, every other value as the text that training would make of it."""
    value = plain(value) if not isinstance(value, (str, Broken)) else value
    if conversation.is_conversation(value):
        return conversation.question(value)
    found = value_of(value)
    if found is None or isinstance(found, Broken):
        raise InvalidPrompt(reason="it is missing" if found is None else "it is no valid Unicode")
    return conversation.question(str(found))


def metrics_for(completions: Sequence[str], encoder: Encoder) -> dict[str, metrics.Metric]:
    return {name: metrics.METRICS[name] for name in metrics.metrics_for(completions)}


def count_tokens(encoder: Encoder, text: str) -> int:
    return len(encoder.text(text))


def words(row: Row) -> str:
    """The last thing the user says."""
    return row.question


def add_rows(
    own: duckdb.DuckDBPyConnection, source: Source, file: Path, unread: dict[str, int]
) -> None:
    values = {"source": source.part, "file": str(file)}
    if not source.is_chat:
        own.execute(_PAIRS, values)
    _add_conversations(own, source, values, unread)


_LISTS = f"prompt_is = '{LIST}' OR completion_is = '{LIST}'"


def _reasons(column: str) -> str:
    return (
        f"WHEN {column}_is = '{MISSING}' THEN '{column} is missing' "
        f"WHEN {column}_is = '{INVALID}' THEN '{column} is no valid Unicode' "
        f"WHEN NOT regexp_matches({column}, '\\S') THEN '{column} is empty' "
    )


_PAIRS = f"""
INSERT INTO rows SELECT $source, row, prompt, completion, context, false,
    md5({NORMAL.format("prompt")}),
    CASE {_reasons("prompt")} {_reasons("completion")} END, NULL, NULL
FROM read_parquet($file) WHERE NOT ({_LISTS})
"""


def _add_conversations(
    own: duckdb.DuckDBPyConnection,
    source: Source,
    values: Mapping[str, str],
    unread: dict[str, int],
) -> None:
    """Rows with a list in them: messages, or a text after all."""
    columns = (
        "messages, messages_is, NULL, NULL"
        if source.is_chat
        else "prompt, prompt_is, completion, completion_is"
    )
    where = "true" if source.is_chat else _LISTS
    query = f"SELECT row, {columns}, context FROM read_parquet($file) WHERE {where} ORDER BY row"
    with own.cursor() as reading:
        found = reading.execute(query, {"file": values["file"]})
        while batch := found.fetchmany(8192):
            source.has_lists = True
            judged = [_judged(source, values, unread) for values in batch]
            insert_rows(own, source.part, [row for row, _ in judged])
            pairs = [pair for _, pairs in judged for pair in pairs]
            insert_beginnings(own, source.part, pairs)


_Judged = tuple[
    tuple[int, str | None, str | None, str, bool, str | None, str | None], list[tuple[str, str]]
]


def _judged(source: Source, values: tuple[Any, ...], unread: dict[str, int]) -> _Judged:
    """A row of `rows` without its source, and what its conversation begins with that is learnt too,
    as pairs of keys."""
    row, first, first_is, second, second_is, context = values
    names = ("messages", "") if source.is_chat else ("prompt", "completion")
    try:
        parsed = [
            _parsed(n, v, k, source.is_chat)
            for n, v, k in zip(names, (first, second), (first_is, second_is), strict=True)
            if n
        ]
        if not source.is_chat and not any(map(conversation.is_conversation, parsed)):
            return (row, first, second, context, False, first, _empty(first, second)), []
        if tools := next(
            (t for t in ("tools", "functions") if _is_something(json.loads(context).get(t))), ""
        ):
            raise InvalidPrompt(reason=f"the row has {tools}: tool calls are not supported")
        messages = parsed[0] if source.is_chat else _joined(parsed, (first, second))
        for key in conversation.unread_keys(messages):
            unread[key] = unread.get(key, 0) + 1
        turns = conversation.lesson(messages)
    except InvalidPrompt as e:
        return (row, None, None, context, False, None, str(e.fields["reason"])), []
    before, answer = turns[:-1], turns[-1]["content"]
    is_plain = len(before) == 1
    prompt = before[0]["content"] if is_plain else json.dumps(before, ensure_ascii=False)
    key = _key_of(before)
    learnt = [n for n, m in enumerate(before) if m["role"] == "assistant" and "weight" not in m]
    return (row, prompt, answer, context, not is_plain, key, None), [
        (key, _key_of(before[:n])) for n in learnt
    ]


def _parsed(name: str, text: str | None, kind: str, is_chat: bool) -> Any:
    if kind == MISSING or text is None:
        raise InvalidPrompt(
            reason=f"{name} is {'missing' if kind == MISSING else 'no valid Unicode'}"
        )
    if kind != LIST and not is_chat:
        return text
    try:
        return conversation.read(text)
    except (ValueError, RecursionError):
        if (
            not is_chat
        ):  # a list all the same, of numbers that nobody can hold, or too deep to look into: a text
            return text
        raise InvalidPrompt(reason=f"{name} is no JSON list of messages") from None


def _is_something(value: Any) -> bool:
    return value not in (None, [], {}, "", "[]", "{}", "null")


def _joined(parsed: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """One conversation of prompt and completion, each messages or a text."""
    if empty := next(
        (name for side, name in zip(parsed, ("prompt", "completion"), strict=True) if side == []),
        "",
    ):
        raise InvalidPrompt(reason=f"{empty} is empty")
    sides = zip(parsed, texts, ("user", "assistant"), strict=True)
    return [
        m
        for side, text, role in sides
        for m in (side if conversation.is_conversation(side) else [{"role": role, "content": text}])
    ]


def _empty(prompt: str, completion: str) -> str | None:
    return next(
        (
            f"{name} is empty"
            for name, text in (("prompt", prompt), ("completion", completion))
            if is_empty(text)
        ),
        None,
    )


def _key_of(messages: Sequence[Message]) -> str:
    """The text by which duplicates are told: a single question's own, as for rows without
    messages."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)

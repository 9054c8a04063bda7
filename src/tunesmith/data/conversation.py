"""Conversations: the one validator of messages, for training, audit and COMPLETE.

A message has a role, a content (a text, or text parts, which are joined) and, in training data,
perhaps a weight: an assistant's message of weight 0 is read and not learnt (OpenAI, fine-tuning:
multi-turn chat). One system message may come first, then user and assistant take turns (Snowflake,
complete-snowflake-cortex). What a base cannot be shown (tool calls, pictures, audio) is refused by
name, never left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.text import is_empty, is_unicode
from tunesmith.errors import InvalidPrompt

Message = dict[str, Any]
"""role and content, and weight 0 where an assistant's message is not learnt."""

ROLES = ("system", "user", "assistant")
NOT_SUPPORTED = {
    "tool_calls": "tool calls",
    "function_call": "function calls",
    "tool_call_id": "tool calls",
    "audio": "audio",
    "images": "pictures",
    "image": "pictures",
    "refusal": "refusals",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "thinking": "reasoning",
}
_KNOWN = {"role", "content", "weight", *NOT_SUPPORTED}


def read(text: str) -> Any:
    """What JSON holds; InvalidPrompt where it is a conversation in which an object has a key twice.
    ValueError or RecursionError."""
    found = json.loads(text)
    if is_conversation(found):
        json.loads(text, object_pairs_hook=_must_be_distinct)
    return found


def _must_be_distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if twice := next((k for k in keys if keys.count(k) > 1), None):
        raise InvalidPrompt(reason=f"a message has the key {twice!r:.40} twice")
    return dict(pairs)


def is_conversation(value: Any) -> bool:
    """Whether a list is meant as messages: one of its objects has a role or a content. Other lists
    are text."""
    return isinstance(value, list) and any(
        isinstance(m, Mapping) and ("role" in m or "content" in m) for m in value
    )


def question(value: Any) -> list[Message]:
    """A prompt as COMPLETE takes it (a text, or messages that end with the user's) in one form;
    InvalidPrompt says what is wrong.

    A message without a role is the user's (Snowflake, REST inference:complete); training rows must
    say whose it is.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InvalidPrompt(reason=f"{value!r:.100} is neither a text nor a list of messages")
    messages = [
        _message(n, {"role": "user", **m} if isinstance(m, Mapping) else m)
        for n, m in enumerate(value, 1)
    ]
    _must_take_turns(messages)
    if messages[-1]["role"] != "user":
        raise InvalidPrompt(
            reason=f"the roles are {_roles(messages)}, and the last message must be the user's"
        )
    return messages


def lesson(value: Sequence[Any]) -> list[Message]:
    """The messages of a training row, up to the last answer that is learnt; InvalidPrompt says why
    a row cannot be used.

    What comes after the last learnt answer cannot change how anything before it is learnt, so it is
    left off.
    """
    if not isinstance(value, list) or len(value) < 2:
        raise InvalidPrompt(reason="messages is not a list of two or more")
    messages = [_message(n, m) for n, m in enumerate(value, 1)]
    if messages[-1]["role"] != "assistant":
        raise InvalidPrompt(reason="the last message is not the assistant's")
    _must_take_turns(messages)
    learnt = [n for n, m in enumerate(messages) if m["role"] == "assistant" and "weight" not in m]
    if not learnt:
        raise InvalidPrompt(reason="every answer has weight 0: nothing to learn")
    for n, m in enumerate(messages[: learnt[-1] + 1], 1):
        if m["role"] != "system" and is_empty(m["content"]):
            raise InvalidPrompt(reason=f"message {n} is empty")
    return messages[: learnt[-1] + 1]


def unread_keys(value: Any) -> set[str]:
    """Keys of messages that mean nothing here, such as a name or a time: they are not trained
    on."""
    messages = [m for m in value if isinstance(m, Mapping)] if isinstance(value, list) else []
    keys = {
        str(k).encode("utf-8", "backslashreplace").decode()
        for m in messages
        for k, v in m.items()
        if v is not None
    }
    return keys - _KNOWN


def _message(n: int, m: Any) -> Message:
    if not isinstance(m, Mapping):
        raise InvalidPrompt(reason=f"message {n} is not an object with role and content")
    for key, what in NOT_SUPPORTED.items():
        if m.get(key) not in (None, "", [], {}):
            raise InvalidPrompt(reason=f"message {n} has {key}: {what} are not supported")
    role = m.get("role")
    if role is None or role == "":
        raise InvalidPrompt(reason=f"message {n} has no role")
    if role not in ROLES:
        raise InvalidPrompt(
            reason=f"message {n} has the role {role!r:.40}, which is none of {', '.join(ROLES)}"
        )
    content = _content(n, m.get("content"))
    if not is_unicode(content):
        raise InvalidPrompt(reason=f"message {n} is no valid Unicode (half of a surrogate pair)")
    weight = m.get("weight")
    if weight is None:
        return {"role": role, "content": content}
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidPrompt(
            reason=f"message {n} has the weight {weight!r:.40}: 0 and 1 are supported"
        )
    if role != "assistant" and weight:
        raise InvalidPrompt(
            reason=f"message {n} has a weight of 1 and is the {role}'s: only the assistant's "
            f"messages are learnt"
        )
    return {
        "role": role,
        "content": content,
        **({"weight": 0} if role == "assistant" and not weight else {}),
    }


def _content(n: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise InvalidPrompt(reason=f"message {n} has no content")
    if not isinstance(content, list):
        raise InvalidPrompt(
            reason=f"message {n} has a content that is neither a text nor a list of parts "
            f"({type(content).__name__})"
        )
    return "".join(_parts(n, content))


def _parts(n: int, content: list[Any]) -> Iterator[str]:
    for part in content:
        if (
            isinstance(part, Mapping)
            and part.get("type", "text") == "text"
            and isinstance(part.get("text"), str)
        ):
            if other := [k for k, v in part.items() if k not in ("type", "text") and v is not None]:
                raise InvalidPrompt(
                    reason=f"message {n} has a part with {other[0]}: only text parts are supported"
                )
            yield part["text"]
        elif isinstance(part, str):
            yield part
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidPrompt(
                reason=f"message {n} has a part of the type {kind!r:.40}: only text parts are "
                f"supported"
            )


def _must_take_turns(messages: Sequence[Message]) -> None:
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise InvalidPrompt(
            reason=f"the roles are {_roles(messages)}; after one system message, or none, user "
            f"and assistant take turns, the user first"
        )


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(m["role"] for m in messages)

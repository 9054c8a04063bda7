"""PromptTemplate: the one function from messages to token ids, used by training, evaluation and
COMPLETE alike.

It is made from the base's own chat template at CREATE, stored with the model, and needs no torch.
Text of users is tokenised with special tokens switched off, so a prompt can never write <|end|>;
the stop id is appended as an id, never as text. A base without a chat template gets the plain form:
start token, prompt, newline, completion, end token.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from tunesmith.catalog import read_json
from tunesmith.data.render import LONGEST_SOURCE, Rendering
from tunesmith.errors import (
    AnswersNotFound,
    DamagedFiles,
    InvalidPrompt,
    UnfitBaseModel,
    UnsafeBaseModel,
)
from tunesmith.safe_files import check_normalizer, check_regular, from_object, read_object

Messages = Sequence[Mapping[str, Any]]
_SLOT = re.compile(
    "\ue000([0-9]{1,6})\ue001"
)  # private use characters: no honest template writes them
FILE = "prompt_template.json"
UNFINISHED = "\ufffd"  # what decoders write for the bytes of a character that is not whole yet
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
KEEPING = {
    "ByteLevel",
    "ByteFallback",
    "BPEDecoder",
    "Fuse",
    "Metaspace",
    "Replace",
    "Sequence",
    "Strip",
}
"""Decoders that leave what they wrote as it is when another token follows."""
# of a tokenizer; the largest known have half of it, and the library takes seconds for a million
MOST_WORDS = 600_000


@dataclass(frozen=True)
class PromptTemplate:
    chat_template: str
    """Jinja source of the base, or "" for the plain form."""
    bos: str
    eos: str
    end_id: int
    """Appended to every completion; the model learns to write it."""
    stop_ids: tuple[int, ...]
    """An answer ends at the first of these."""
    frozen_on: str
    """The date that templates with a date see, in training and in every later answer."""

    @classmethod
    def of_base(cls, folder: Path) -> Self:
        """From the JSON files of a base's folder. UnsafeBaseModel where no end token can be found,
        or they are not what they should be; UnfitBaseModel where tokenizer and model do not fit."""
        try:
            return cls._of_base(folder)
        except (
            TypeError,
            KeyError,
            AttributeError,
            ValueError,
            OverflowError,
            RecursionError,
            OSError,
        ) as e:
            reason = f"its tokenizer's files are not as they should be ({type(e).__name__}: {e})"
            raise UnsafeBaseModel(folder=str(folder), reason=reason) from None

    @classmethod
    def _of_base(cls, folder: Path) -> Self:
        tokenizer, config = (
            read_json(folder, "tokenizer_config.json"),
            read_json(folder, "config.json"),
        )
        words = read_json(folder, "tokenizer.json")
        if len(words.get("model", {}).get("vocab", ())) > MOST_WORDS:
            raise ValueError(f"over {MOST_WORDS:,} words")
        check_normalizer(folder / "tokenizer.json", words.get("normalizer"))
        added = _added_tokens(words, tokenizer)
        _must_fit(folder, words, added, config)
        source = _chat_template(folder, tokenizer)
        eos = _text_of(tokenizer.get("eos_token")) or next(
            (t for t, i in added.items() if i == config.get("eos_token_id")), ""
        )
        bos = _text_of(tokenizer.get("bos_token"))
        stops = {
            *_ids(config.get("eos_token_id")),
            *_ids(read_json(folder, "generation_config.json").get("eos_token_id")),
        }
        if eos in added:
            stops.add(added[eos])
        template = cls(source, bos, eos, -1, (), date.today().isoformat())
        end = template._end_of_turn(added)
        end_id = added[end] if end else added.get(eos, min(stops, default=-1))
        if end_id < 0:
            raise UnsafeBaseModel(
                folder=str(folder),
                reason="no end token in tokenizer_config.json, config.json or the chat template",
            )
        size = _size(config)
        if end_id >= (size or end_id + 1):
            raise UnfitBaseModel(
                folder=str(folder),
                task="text generation",
                reason=f"its end token has the id {end_id}, and its embedding {size:,} rows",
            )
        stops = {i for i in stops if 0 <= i < (size or i + 1)}
        return cls(source, bos, eos, end_id, tuple(sorted({end_id, *stops})), template.frozen_on)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """ValueError unless every field is there and of its type."""
        return from_object(cls, data)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The one that a tuned model's folder holds; DamagedFiles where it cannot be."""
        try:
            return cls.from_json(read_object(folder / FILE))
        except (ValueError, UnsafeBaseModel) as e:
            raise DamagedFiles(folder=str(folder), reason=f"{FILE} cannot be used: {e}") from None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "stop_ids": list(self.stop_ids)}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def pieces(self, messages: Messages) -> list[str | int]:
        """The prompt as template text and, as numbers, the messages whose content stands
        between."""
        if not self.chat_template:
            return _plain_pieces(self.bos, messages)
        rendered = _render(self, tuple(m["role"] for m in messages), True)
        parts: list[str | int] = list(_SLOT.split(rendered))
        found = [int(p) if i % 2 else p for i, p in enumerate(parts) if p != ""]
        if any(isinstance(p, int) and p >= len(messages) for p in found):
            raise InvalidPrompt(
                reason="the base's chat template writes a mark that stands for a message which is "
                "not there"
            )
        return found

    def begins_as_asked(self, messages: Messages, n: int) -> bool:
        """Whether what stands before the answer messages[n] is what the model would have been asked
        then."""
        asked = self.pieces(messages[:n])
        return self.pieces(messages)[: len(asked)] == asked

    def _end_of_turn(self, added: Mapping[str, int]) -> str | None:
        """The special token that the chat template writes after an answer."""
        if not self.chat_template:
            return None
        after = _render(self, ("user", "assistant"), False).partition("\ue0001\ue001")[2]
        found = [(after.index(t), -len(t), t) for t in added if t in after]
        return min(found)[2] if found else None


def _render(template: PromptTemplate, roles: tuple[str, ...], prompt_only: bool) -> str:
    found = _rendered(template, roles, prompt_only)
    if isinstance(found, InvalidPrompt):
        raise found
    return found


@lru_cache(maxsize=256)
def _rendered(
    template: PromptTemplate, roles: tuple[str, ...], prompt_only: bool
) -> str | InvalidPrompt:
    """The text, or what the template says to these roles: a refusal is kept too, since asking costs
    a process."""
    messages = [{"role": r, "content": f"\ue000{i}\ue001"} for i, r in enumerate(roles)]
    try:
        return Rendering(
            template.chat_template,
            messages,
            prompt_only,
            template.bos,
            template.eos,
            template.frozen_on,
        ).text()
    except InvalidPrompt as e:
        return e


def _plain_pieces(bos: str, messages: Messages) -> list[str | int]:
    pieces: list[str | int] = [bos] if bos else []
    for i, _ in enumerate(messages):
        pieces += [i, "\n"]
    return pieces


def _answers(messages: Messages) -> tuple[int, ...]:
    """The places of the assistant's messages that are learnt."""
    return tuple(
        n for n, m in enumerate(messages) if m["role"] == "assistant" and "weight" not in m
    )


@dataclass(frozen=True)
class Encoded:
    """A row as ids: the prompt, then (when training) the completion and the stop id."""

    ids: list[int]
    n_prompt: int
    earlier: tuple[tuple[int, int], ...] = ()
    """Where earlier answers that are learnt too begin and end among the ids, each with the token
    that ends it."""

    @property
    def n_completion(self) -> int:
        """Tokens of the last answer, with the stop id."""
        return len(self.ids) - self.n_prompt

    @property
    def learnt(self) -> list[int]:
        """The places of all ids that are learnt, in order."""
        return [
            i
            for start, end in (*self.earlier, (self.n_prompt, len(self.ids)))
            for i in range(start, end)
        ]

    @property
    def n_learnt(self) -> int:
        return self.n_completion + sum(end - start for start, end in self.earlier)


@contextmanager
def _own_words(folder: Path) -> Iterator[None]:
    """UnsafeBaseModel for what the tokenizer library raises: bare exceptions, and panics that are
    none."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        raise UnsafeBaseModel(
            folder=str(folder), reason=f"its tokenizer.json does not work ({type(e).__name__}: {e})"
        ) from None


class Encoder:
    """A prompt template bound to its base's tokenizer."""

    def __init__(self, template: PromptTemplate, base_folder: Path) -> None:
        self.template = template
        self.file = base_folder / "tokenizer.json"
        with _own_words(base_folder):
            self._text, self._control = (
                Tokenizer.from_file(str(self.file)),
                Tokenizer.from_file(str(self.file)),
            )
        for tokenizer in (self._text, self._control):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self._text.encode_special_tokens = True  # special tokens in a user's text are plain text
        kinds, words = _kinds(json.loads(self._text.to_str())["decoder"]), self._text.get_vocab()
        self._joins = kinds - KEEPING != set()
        falls_back = "ByteFallback" in kinds
        self._bytes = {i for word, i in words.items() if falls_back and BYTE.fullmatch(word)}
        added = self._control.get_added_tokens_decoder()  # left out of a text, also between bytes
        self._bytes |= {i for i, token in added.items() if falls_back and token.special}
        self._longest_token = max(len(t.encode()) for t in words)
        self._control_ids = lru_cache(maxsize=1024)(
            lambda text: self._control.encode(text, add_special_tokens=False).ids
        )

    def prompt(self, messages: Messages) -> list[int]:
        ids: list[int] = []
        for piece in self.template.pieces(messages):
            ids += (
                self._control_ids(piece)
                if isinstance(piece, str)
                else self.text(messages[piece]["content"])
            )
        return ids

    def row(self, messages: Messages, completion: str, learn: str = "last") -> Encoded:
        """A training row: prompt, completion and the stop id. `learn`: "all" learns earlier answers
        too, but those of weight 0.

        AnswersNotFound where the template does not write an earlier answer as it would have asked
        for it.
        """
        earlier: list[tuple[int, int]] = []
        wanted = _answers(messages) if learn == "all" else ()
        for n in wanted:
            if not self.template.begins_as_asked(messages, n):
                raise AnswersNotFound(message=n + 1)
        ids: list[int] = []
        pieces = self.template.pieces(messages)
        for place, piece in enumerate(pieces):
            start = len(ids)
            ids += (
                self._control_ids(piece)
                if isinstance(piece, str)
                else self.text(messages[piece]["content"])
            )
            if piece in wanted and isinstance(piece, int):
                after = pieces[place + 1] if place + 1 < len(pieces) else ""
                if not isinstance(after, str) or self._control_ids(after)[:1] != [
                    self.template.end_id
                ]:
                    raise AnswersNotFound(message=piece + 1)
                earlier.append((start, len(ids) + 1))
        if len(earlier) != len(wanted):
            raise AnswersNotFound(message=1 + max(wanted))
        return Encoded(
            [*ids, *self.text(completion), self.template.end_id], len(ids), tuple(earlier)
        )

    def count_rows(self, rows: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        """Tokens of many rows' prompts (texts) and completions, as `row` would give them."""
        if not rows:
            return []
        completions = self._text.encode_batch([c for _, c in rows], add_special_tokens=False)
        frame = len(self.prompt([{"role": "user", "content": "x"}])) - len(
            self.text("x")
        )  # the same around every text
        prompts = [
            frame + len(e.ids)
            for e in self._text.encode_batch([p for p, _ in rows], add_special_tokens=False)
        ]
        return [(p, len(c.ids) + 1) for p, c in zip(prompts, completions, strict=True)]

    def text(self, text: str) -> list[int]:
        with _own_words(self.file.parent):
            return self._text.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._control.decode(list(ids), skip_special_tokens=True)

    def pieces(self) -> Callable[[int], str]:
        """Takes the ids of a text one by one and gives what each adds; nothing while that could
        still be written otherwise. What was given always begins the whole text."""
        ids: list[int] = []
        said = ""

        def step(i: int) -> str:
            nonlocal said
            ids.append(i)
            text = self._settled(ids)
            if len(text) <= len(said) or not text.startswith(said):
                return ""
            piece, said = text[len(said) :], text
            return piece

        return step

    def _settled(self, ids: list[int]) -> str:
        """What of a text no further token changes: not a character that is not whole, a run of
        bytes that stands for other characters where one of them is wrong, or the last word of a
        tokenizer that joins words when it decodes."""
        end = len(ids)
        while end and ids[end - 1] in self._bytes:
            end -= 1
        text = self.decode(ids[:end]).rstrip(UNFINISHED)
        if not self._joins or not end:
            return text
        before = self.decode(ids[: end - 1])
        pairs = enumerate(zip(text, before, strict=False))
        return text[: next((n for n, (a, b) in pairs if a != b), min(len(text), len(before)))]

    def surely_longer(self, text: str, tokens: int) -> bool:
        """Whether a text is over a number of tokens whatever its tokens are: spares tokenising a 10
        MB row."""
        return len(text.encode(errors="replace")) > tokens * self._longest_token

    def cut(self, messages: Messages, over: int) -> list[dict[str, str]]:
        """The messages with `over` tokens taken from the start of the last one; the rest stands
        whole."""
        last = messages[-1]["content"]
        ids = self._text.encode(last, add_special_tokens=False)
        offset = ids.offsets[over][0] if over < len(ids.ids) else len(last)
        return [*map(dict, messages[:-1]), {"role": messages[-1]["role"], "content": last[offset:]}]


def _added_tokens(
    tokenizer: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> dict[str, int]:
    added = {t["content"]: int(t["id"]) for t in tokenizer.get("added_tokens", [])}
    for number, token in tokenizer_config.get("added_tokens_decoder", {}).items():
        added.setdefault(token["content"], int(number))
    return added


def _must_fit(
    folder: Path,
    words: Mapping[str, Any],
    added: Mapping[str, int],
    config: Mapping[str, Any],
) -> None:
    """UnfitBaseModel where the tokenizer can write a token that the model has no embedding of."""
    vocabulary = words.get("model", {}).get("vocab", {})
    ids = (
        vocabulary
        if isinstance(vocabulary, dict)
        else {w: i for i, (w, *_) in enumerate(vocabulary)}
    )
    size = _size(config)
    over = [(i, token) for token, i in (*ids.items(), *added.items()) if size and i >= size]
    if over:
        i, token = max(over)
        reason = (
            f"its tokenizer.json has the token {token!r:.60} as number {i:,}, and the embedding "
            f"{size:,} rows (vocab_size in config.json): resize the embedding, or remove the token"
        )
        raise UnfitBaseModel(folder=str(folder), task="text generation", reason=reason)


def _size(config: Mapping[str, Any]) -> int:
    """Rows of the embedding; 0 where config.json does not say."""
    inner = config.get("text_config")
    found = config.get("vocab_size") or (inner.get("vocab_size") if isinstance(inner, dict) else 0)
    return found if type(found) is int else 0


def _kinds(decoder: Any) -> set[str]:
    """The types of a tokenizer's decoder and of all in it."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*map(_kinds, decoder.get("decoders", ())))


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if os.path.lexists(file):
        check_regular(file)
        if file.stat().st_size > 4 * LONGEST_SOURCE:
            raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes")
        return file.read_text("utf-8")
    found = tokenizer_config.get("chat_template") or ""
    if isinstance(found, list):  # several named ones: the default is meant
        found = next((t["template"] for t in found if t["name"] == "default"), "")
    return str(found)


def _text_of(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token or "")


def _ids(value: Any) -> list[int]:
    found = [] if value is None else [value] if isinstance(value, int) else list(value)
    if not all(type(i) is int for i in found):
        raise TypeError(f"{value!r:.40} as eos_token_id")
    return found

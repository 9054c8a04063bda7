"""The verdict rows as language models are asked them: with and without examples, with words for
groups exchanged; and how well plain prose is still written."""

import math
from collections.abc import Sequence

import torch

from tunesmith.data import prose
from tunesmith.data.examples import Example
from tunesmith.data.rules import different_first
from tunesmith.data.swaps import PAIRS, Swap
from tunesmith.data.template import Encoded, Messages
from tunesmith.inference.engine import Completion, Engine, Sampling
from tunesmith.options import Decided
from tunesmith.tasks.task import Exam, Told
from tunesmith.tasks.text_generation.batches import collate, token_losses

ROOM = 2  # an answer may be this many times as long as the longest wanted one before it is cut
# in the prompt; more cost time in proportion, whatever they bring
LEAST_EXAMPLES, MOST_EXAMPLES = 3, 16
MOST_SWAPPED = 200  # rows


class TextExam(Exam[Example]):
    why_no_examples = (
        f"the base was not asked with examples: its window holds fewer than {LEAST_EXAMPLES}"
    )

    def __init__(self, train: Sequence[Example], rows: Sequence[Example], decided: Decided) -> None:
        super().__init__(train, rows, decided)
        self._sampling = Sampling(max_tokens=ROOM * max(e.encoded.n_completion for e in rows))
        self._exchanged = swapped(rows, Swap(decided.swap_terms or PAIRS))
        self.swapped = list(self._exchanged)

    def answers(
        self, engine: Engine, told: Told, examples: Sequence[Messages] = ()
    ) -> list[Completion]:
        turns = [m for example in examples for m in example]
        asked = [with_examples(e.messages, turns) for e in self.rows]
        return engine.generate(asked, self._sampling, told)

    def swapped_answers(self, engine: Engine, told: Told) -> list[Completion]:
        return engine.generate(list(self._exchanged.values()), self._sampling, told)

    def retention(self, engine: Engine) -> float:
        return retention(engine)

    def examples(self, engine: Engine) -> list[Messages]:
        """As turns before the question: as many as fit beside the longest one, different answers
        first."""
        longest = max(self.rows, key=lambda e: e.encoded.n_prompt).messages
        room = engine.context - self._sampling.max_tokens
        found: list[Messages] = []
        for example in different_first(self.train, self.decided.seed)[:MOST_EXAMPLES]:
            answer = {"role": "assistant", "content": example.row.completion}
            turn = [*(m for m in example.messages if m["role"] != "system"), answer]
            turns = [m for one in (*found, turn) for m in one]
            if len(engine.encoder.prompt(with_examples(longest, turns))) > room:
                break
            found.append(turn)
        return found if len(found) >= LEAST_EXAMPLES else []


def swapped(rows: Sequence[Example], swap: Swap) -> dict[int, list[dict[str, str]]]:
    """The rows, by place, whose messages hold a word to exchange, with it exchanged; at most
    MOST_SWAPPED."""
    found: dict[int, list[dict[str, str]]] = {}
    for i, example in enumerate(rows):
        messages = [{**m, "content": swap(m["content"])} for m in example.messages]
        if len(found) < MOST_SWAPPED and messages != list(example.messages):
            found[i] = messages
    return found


def with_examples(messages: Messages, examples: Messages) -> list[dict[str, str]]:
    """Examples as turns of the chat: after a system message, before all else."""
    head = [dict(m) for m in messages if m["role"] == "system"]
    return [*head, *map(dict, examples), *(dict(m) for m in messages if m["role"] != "system")]


def retention(engine: Engine) -> float:
    """Bits per byte of plain prose that ships with the package: what the base could do before it
    was tuned to something else."""
    lines = prose.lines()
    batch = collate([Encoded(engine.encoder.text(line), 1) for line in lines], engine.model)
    with torch.inference_mode():
        nats = float(token_losses(engine.model, batch).sum())
    return nats / math.log(2) / sum(len(line.encode()) for line in lines)

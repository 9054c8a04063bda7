"""The rows of a part as token ids: which are accepted, which are too long. The same for trainer, evaluator and audit."""

from dataclasses import dataclass, field
from typing import Any

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset, Row
from tunesmith.data.template import Encoded, Encoder, Messages


@dataclass(frozen=True)
class Example:
    """An accepted row with its ids."""

    row: Row
    encoded: Encoded
    cut: Messages | None = None
    """The messages that are left of a prompt over the window."""

    @property
    def messages(self) -> Messages:
        """What the model is asked: the row's messages, or what is left of them."""
        return self.row.messages if self.cut is None else self.cut


@dataclass
class Examples:
    """The accepted rows of a part, and those that were too long."""

    accepted: list[Example] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(e.encoded.ids) for e in self.accepted)


def encode(dataset: Dataset, part: str, encoder: Encoder, spec: ModelSpec, on_long: str) -> Examples:
    """A part's rows as ids. The same rows are accepted whoever asks: prepare, trainer or evaluator. An answer is never cut."""
    found = Examples()
    for row in dataset.rows(part):
        example, detail = _fit(row, encoder, spec, on_long)
        if example is not None:
            found.accepted.append(example)
        else:
            found.rejected.append({"part": part, "row": row.row, "reason": "too long", "detail": detail, "context": row.context})
    return found


def _fit(row: Row, encoder: Encoder, spec: ModelSpec, on_long: str) -> tuple[Example | None, str]:
    if encoder.surely_longer(row.completion, spec.completion_window):
        return None, f"completion: {len(row.completion):,} characters, window {spec.completion_window} tokens"
    if encoder.surely_longer(row.prompt, spec.prompt_window) and on_long != "cut_prompt":
        return None, f"prompt: {len(row.prompt):,} characters, window {spec.prompt_window} tokens"
    messages = row.messages
    encoded = encoder.row(messages, row.completion)
    if encoded.n_completion > spec.completion_window:
        return None, f"completion: {encoded.n_completion} tokens, window {spec.completion_window}"
    over = encoded.n_prompt - spec.prompt_window
    if over <= 0:
        return Example(row, encoded), ""
    if on_long == "cut_prompt":
        # cutting inside a text can change how its rest is tokenised, so look again
        for more in range(over, over + 8):
            kept = encoder.cut(messages, more)
            cut = encoder.row(kept, row.completion)
            if cut.n_prompt <= spec.prompt_window:
                return Example(row, cut, kept), ""
    return None, f"prompt: {encoded.n_prompt} tokens, window {spec.prompt_window}"

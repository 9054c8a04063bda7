"""The rows of a part as token ids: which are accepted, which are too long. The same for trainer,
evaluator and audit."""

from dataclasses import dataclass, field
from typing import Any

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset, Row
from tunesmith.data.template import Encoded, Encoder, Messages
from tunesmith.errors import InvalidPrompt
from tunesmith.words import counted


@dataclass(frozen=True)
class Example:
    """An accepted row with its ids."""

    row: Row
    encoded: Encoded
    cut: Messages | None = None
    """The messages that are left of a prompt over the window."""

    @property
    def number(self) -> int:
        return self.row.row

    @property
    def size(self) -> int:
        """Tokens."""
        return len(self.encoded.ids)

    @property
    def weight(self) -> int:
        """Learnt tokens."""
        return self.encoded.n_learnt

    @property
    def messages(self) -> Messages:
        """What the model is asked: the row's messages, or what is left of them."""
        return self.row.messages if self.cut is None else self.cut


@dataclass
class Examples:
    """The accepted rows of a part, and those that this base cannot take."""

    accepted: list[Example] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(e.size for e in self.accepted)


def encode(
    dataset: Dataset,
    part: str,
    encoder: Encoder,
    spec: ModelSpec,
    on_long: str,
    learn: str = "last",
) -> Examples:
    """A part's rows as ids. The same rows are accepted whoever asks: prepare, trainer or evaluator.
    An answer is never cut.

    `learn`: which answers of a conversation, "all" or "last"; AnswersNotFound where the base's
    template does not allow "all".
    """
    found = Examples()
    for row in dataset.rows(part):
        fit = _fit(row, encoder, spec, on_long, learn)
        if isinstance(fit, Example):
            found.accepted.append(fit)
        else:
            reason, detail = fit
            found.rejected.append(
                {
                    "part": part,
                    "row": row.row,
                    "reason": reason,
                    "detail": detail,
                    "context": row.context,
                }
            )
    return found


TOO_LONG, REFUSED = "too long", "refused by the chat template"


def _fit(
    row: Row, encoder: Encoder, spec: ModelSpec, on_long: str, learn: str
) -> Example | tuple[str, str]:
    """The example, or why there is none: the reason and its detail."""
    if encoder.surely_longer(row.completion, spec.completion_window):
        return (
            TOO_LONG,
            f"completion: {len(row.completion):,} characters, window {spec.completion_window} "
            f"tokens",
        )
    if encoder.surely_longer(row.prompt, spec.prompt_window) and on_long != "cut_prompt":
        return (
            TOO_LONG,
            f"prompt: {len(row.prompt):,} characters, window {spec.prompt_window} tokens",
        )
    messages = row.messages
    try:
        encoded = encoder.row(messages, row.completion, learn)
    except InvalidPrompt as e:
        return REFUSED, str(e.fields["reason"])
    if encoded.n_completion > spec.completion_window:
        return (
            TOO_LONG,
            f"completion: {counted(encoded.n_completion, 'token')}, window "
            f"{spec.completion_window}",
        )
    over = encoded.n_prompt - spec.prompt_window
    if over <= 0:
        return Example(row, encoded)
    if on_long == "cut_prompt":
        # cutting inside a text can change how its rest is tokenised, so look again
        for more in range(over, over + 8):
            kept = encoder.cut(messages, more)
            cut = encoder.row(kept, row.completion, learn)
            if cut.n_prompt <= spec.prompt_window:
                return Example(row, cut, kept)
    return TOO_LONG, f"prompt: {counted(encoded.n_prompt, 'token')}, window {spec.prompt_window}"

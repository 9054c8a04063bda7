"""The rows of a part as token ids: which are accepted, which are too long. The same for trainer,
evaluator and audit."""

from dataclasses import dataclass

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset, Row
from tunesmith.data.rules import REFUSED, TOO_LONG, Encoding
from tunesmith.data.template import Encoded, Encoder, Messages
from tunesmith.errors import InvalidPrompt
from tunesmith.options import Decided, Options
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
    def is_cut(self) -> bool:
        return self.cut is not None

    @property
    def messages(self) -> Messages:
        """What the model is asked: the row's messages, or what is left of them."""
        return self.row.messages if self.cut is None else self.cut


def encode(
    dataset: Dataset,
    part: str,
    encoder: Encoder,
    spec: ModelSpec,
    options: Options | Decided,
) -> Encoding[Example]:
    """A part's rows as ids. The same rows are accepted whoever asks: prepare, trainer or evaluator.
    An answer is never cut.

    AnswersNotFound where all answers of conversations are to be learnt (the option `learn`) and
    the base's template does not allow that.
    """
    found = Encoding[Example]()
    for row in dataset.rows(part):
        fit = _fit(row, encoder, spec, options.on_long, options.learn)
        if isinstance(fit, Example):
            found.accepted.append(fit)
        else:
            found.reject(part, row, *fit)
    return found


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

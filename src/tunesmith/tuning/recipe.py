"""How `auto` is decided: plain rules, each with its reason, kept with the job. Imports no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tunesmith.catalog import ModelSpec
from tunesmith.models import methods
from tunesmith.options import Decided, Options, Reason
from tunesmith.tasks.specs import TEXT_CLASSIFICATION
from tunesmith.words import counted

SMALL = (
    50_000_000  # weights; below it tuning the whole model is cheap, and a low rank holds it back
)


@dataclass(frozen=True)
class Known:
    """What the rules may look at."""

    spec: ModelSpec
    rows: int
    """Accepted training rows."""
    only_for: tuple[tuple[str, str], ...] = ()
    """Options that were set and that one method alone reads, each with that method."""
    learn: str = ""
    """Why only last answers can be learnt; empty where the template allows all."""


def token_budget(options: Decided, price: float) -> tuple[int, str]:
    """The tighter of the budgets in tokens and in credits (`price` is credits per token), and its
    option; 0 tokens: no limit."""
    by_credits = (
        max(1, int(options.budget_credits / price)) if options.budget_credits and price else 0
    )
    if by_credits and (not options.budget_tokens or by_credits < options.budget_tokens):
        return by_credits, "budget_credits"
    return options.budget_tokens, "budget_tokens"


def decide(options: Options, facts: Known) -> Decided:
    """Every option with its value: the user's, or by rule where he said `auto`."""
    alone = {o: names for o, names in methods.READERS.items() if len(names) == 1}
    names = options.set_for_some(alone)
    facts = replace(facts, only_for=tuple((n, methods.READERS[n][0]) for n in names))
    values: dict[str, Any] = {}
    reasons: dict[str, Reason] = {}
    for f in fields(Options):
        value = values[f.name] = getattr(options, f.name)
        if value == "auto":
            values[f.name], words = _RULES[f.name](facts, values)
            reasons[f.name] = Reason("default", words)
        elif value == f.default:
            reasons[f.name] = Reason("default", "the default")
        else:
            reasons[f.name] = Reason("user", "as asked")
    if facts.learn and options.learn == "all":
        values["learn"], reasons["learn"] = "last", Reason("measured", facts.learn)
    return Decided(**values, reasons=reasons)


def _method(facts: Known, known: Mapping[str, Any]) -> tuple[str, str]:
    possible = facts.spec.task_spec.methods
    if len(possible) == 1:
        return possible[0], f"the one method that {facts.spec.task} has"
    if facts.only_for:
        names = " and ".join(name for name, _ in facts.only_for)
        method = facts.only_for[0][1]
        return (
            method,
            f"{names} {'is' if len(facts.only_for) == 1 else 'are'} set, which only {method} reads",
        )
    if facts.spec.parameters < SMALL or not facts.spec.task_spec.samples:
        return (
            "full",
            f"{facts.spec.parameters / 1e6:.1f}M weights: small enough to tune whole, which "
            f"learns more than an adapter",
        )
    return (
        "lora",
        f"{facts.spec.parameters / 1e6:,.0f}M weights: an adapter needs a fraction of the memory",
    )


def _batch_size(facts: Known, known: Mapping[str, Any]) -> tuple[int, str]:
    size = 8 if facts.rows < 2000 and facts.spec.task_spec.samples else 16
    return (
        size,
        f"{counted(facts.rows, 'row')}: enough steps per epoch, and a gradient that is not all "
        f"noise",
    )


def _max_epochs(facts: Known, known: Mapping[str, Any]) -> tuple[int, str]:
    steps = math.ceil(facts.rows / _known(known, "batch_size", facts))
    wanted = 1000 if _known(known, "method", facts) == "full" else 500
    epochs = min(10, max(3, math.ceil(wanted / steps)))
    return (
        epochs,
        f"{counted(steps, 'step')} an epoch: 3 epochs, or up to 10 where that gives fewer than "
        f"{wanted} steps; the best epoch is kept",
    )


def _learning_rate(facts: Known, known: Mapping[str, Any]) -> tuple[float, str]:
    return usual_rate(facts.spec, _known(known, "method", facts))


def usual_rate(spec: ModelSpec, method: str) -> tuple[float, str]:
    """The rate of the rule for a base and a method, and the rule in words."""
    millions = max(1.0, spec.parameters / 1e6)
    if spec.task == TEXT_CLASSIFICATION.name:
        return _rate_of_labels(spec, method, millions)
    if method == "full":
        rate = 1e-3 / math.sqrt(millions / 3) if millions < 50 else 2e-5
        return (
            _capped(spec, rate),
            f"whole model of {millions:,.0f}M weights: 1e-3 at 3M, falling with the square root; "
            f"2e-5 from 50M on",
        )
    rate = 3e-3 if millions < 50 else 5e-4 if millions < 1000 else 2e-4
    reason = (
        "3e-3 below 50M, 5e-4 below a billion (half and four times as fast are worse for SmolLM2 "
        "on two tables), 2e-4 above; never over pretraining's"
    )
    return _capped(spec, rate), f"LoRA on {millions:,.0f}M weights: {reason}"


def _rate_of_labels(spec: ModelSpec, method: str, millions: float) -> tuple[float, str]:
    if method == "head":
        return _capped(spec, 1e-3), "a head alone: 1e-3, times head_rate"
    if method == "lora":
        return _capped(spec, 1e-3), "LoRA below a head: 1e-3"
    rate = 3e-4 * min(1.0, 22 / millions)
    return (
        _capped(spec, rate),
        f"encoder of {millions:,.0f}M weights: 3e-4 up to 22M, falling with their number above",
    )


def _capped(spec: ModelSpec, rate: float) -> float:
    """Two digits are enough, and no rule goes above the rate that the base was pretrained with."""
    return min(float(f"{rate:.1e}"), spec.pretraining_rate or 1.0)


def _rank(facts: Known, known: Mapping[str, Any]) -> tuple[int, str]:
    return 16, "16 on every linear layer"


def split_seed(options: Options) -> int:
    """The seed of the split, which is needed before anything else is decided."""
    return options.seed if options.split_seed == "auto" else int(options.split_seed)


def _seed(facts: Known, known: Mapping[str, Any]) -> tuple[int, str]:
    return known["seed"], "as seed"


_RULES: dict[str, Callable[[Known, Mapping[str, Any]], tuple[Any, str]]] = {
    "max_epochs": _max_epochs,
    "method": _method,
    "learning_rate": _learning_rate,
    "batch_size": _batch_size,
    "rank": _rank,
    "split_seed": _seed,
    "order_seed": _seed,
}


def _known(known: Mapping[str, Any], name: str, facts: Known) -> Any:
    """A value that another rule needs: decided already, or by its own rule."""
    value = known.get(name, "auto")
    return _RULES[name](facts, known)[0] if value == "auto" else value

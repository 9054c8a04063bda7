"""The model card of an exported model: what it was tuned on and how, what it is worth, how it was
proven, how to load it.

It leaves the machine with the model, so it holds no path, no query and no row: the data is known by
its fingerprint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith import catalog
from tunesmith.documents.certificate import Certificate
from tunesmith.documents.verdict import sentence
from tunesmith.tasks import specs
from tunesmith.words import counted

HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "bsd-3-clause",
    "gemma",
    "llama3",
    "llama3.1",
)
CURVE = "curve.svg"


@dataclass(frozen=True)
class Facts:
    """What is known of a model besides its files."""

    name: str
    base_model: str
    """Its public name; never a path."""
    hub_id: str
    licence: str
    method: str
    task: str = specs.TEXT_GENERATION.name
    rows: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those that decide training, as they were decided."""
    trained_tokens: int = 0
    verdict: Mapping[str, Any] | None = None
    curve: Sequence[tuple[int, float | None, float | None]] = ()
    """Step, training loss, validation loss."""
    dequantised: str = ""
    """The quantisation that the base's weights were in before."""
    has_base: bool = False
    """Whether the base lies beside the model, in `base/`."""


def model_card(facts: Facts, certificate: Certificate) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    artefact = {
        "adapter": "an adapter",
        "whole": "a whole model",
        "merged": "one model with its adapter merged in",
    }[certificate.artefact]
    what = (
        f"{facts.base_model}, tuned by Tunesmith ({facts.method}); here as {artefact}, in "
        f"{certificate.precision}."
    )
    what += _whose_base(facts, certificate)
    parts = {
        "What it is worth": _worth(facts),
        "How it was proven": _proof(certificate),
        "How it was tuned": _tuning(facts, certificate),
        "How to load it": _loading(facts, certificate),
    }
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in parts.items())
    return f"{_front_matter(facts, certificate)}\n# {facts.name}\n\n{what}\n{body}"


def _whose_base(facts: Facts, certificate: Certificate) -> str:
    """What whoever puts the adapter onto a base must know of it."""
    if certificate.artefact != "adapter" or facts.hub_id or facts.base_model in catalog.entries():
        told = ""
    else:
        told = (
            f" Its base is known by a local folder alone, {facts.base_model}: on weights of the "
            f"same name from elsewhere it answers otherwise."
        )
    if certificate.artefact == "adapter" and facts.dequantised:
        told = (
            f" The weights of {facts.base_model} were made of a file in {facts.dequantised}: on "
            f"the weights that a hub has of it, the adapter answers otherwise."
        )
    return told + (" The base lies in `base/`." if facts.has_base else "")


def _front_matter(facts: Facts, certificate: Certificate) -> str:
    licence = facts.licence.lower()
    known = {
        "library_name": _library(certificate),
        "pipeline_tag": specs.find(facts.task).pipeline_tag,
        "base_model": facts.hub_id,
        "license": licence if licence in HUB_LICENCES else "other",
        "license_name": "" if licence in HUB_LICENCES else f'"{facts.licence}"',
        "tags": "[tunesmith]",
    }
    return "---\n" + "".join(f"{k}: {v}\n" for k, v in known.items() if v) + "---\n"


def _library(certificate: Certificate) -> str:
    return "peft" if certificate.artefact == "adapter" else "transformers"


def _worth(facts: Facts) -> str:
    v = facts.verdict
    if not v:
        return "No verdict: there were no rows to measure on, or the model came from elsewhere."
    rows = "".join(f"| {arm} | {score:.1%} |\n" for arm, score in v["arms"].items())
    return (
        f"{sentence(v)}.\n\n| on the same {counted(v['n'], 'row')}, which chose nothing | "
        f"{v['metric']} |\n|---|---|\n{rows}"
    ).rstrip()


def _proof(c: Certificate) -> str:
    return (
        f"{c.probes} stored probes were answered again from these files: {c.equal} as the trained "
        f"model answered, {c.ties} otherwise only "
        f"at a tie. The best token is the same at {c.top1:.2%} of the positions, mean KL "
        f"{c.kl:.2g}. {c.different_from_base} are answered "
        f"otherwise than by the base, and {c.stop_rate:.0%} stop by themselves.\n\n"
        f"Base {c.base} `{c.base_digest}`, template `{c.template_digest}`; all figures in "
        "`certificate.json`."
    )


def _tuning(facts: Facts, certificate: Certificate) -> str:
    counts = {
        **{f"{part} rows": n for part, n in facts.rows.items()},
        "trained tokens": facts.trained_tokens,
    }
    lines = [f"{k}: {n:,}" for k, n in counts.items() if n] + [
        f"{k}: {v}" for k, v in facts.options.items()
    ]
    lines.append(
        f"data fingerprint (SHA-256 of the frozen rows' manifest): `{certificate.data_digest}`"
    )
    curve = f"\n\n![training and validation loss]({CURVE})" if facts.curve else ""
    return "".join(f"- {line}\n" for line in lines).rstrip() + curve


def _loading(facts: Facts, certificate: Certificate) -> str:
    rights = (
        f"Licence of the base: {facts.licence}. The rows that it learned from are not here; what "
        "they allow, their owner knows."
    )
    if facts.task == specs.TEXT_CLASSIFICATION.name:
        return f"{_loading_of_labels(facts, certificate)}\n\n{rights}"
    if facts.task != specs.TEXT_GENERATION.name:
        return (
            f"It is a model for the task `{facts.task}`: `tunesmith model import FOLDER` takes it "
            f"in where its base and the package of that task are installed.\n\n{rights}"
        )
    if _library(certificate) == "peft":
        where = "base" if facts.has_base else facts.hub_id or facts.base_model
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, "
            "AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{where}")  #'
            " its name or folder\n"
            'model = PeftModel.from_pretrained(base, ".")\n'
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained(".")\n'
        )
    return (
        f'```python\n{code}tokenizer = AutoTokenizer.from_pretrained(".")\n```\n\n'
        "Prompts go through the chat template beside the weights; an answer ends at a stop id of "
        f"`prompt_template.json`.\n\n{rights}"
    )


def _loading_of_labels(facts: Facts, certificate: Certificate) -> str:
    where = "base" if facts.has_base else facts.hub_id or facts.base_model
    if _library(certificate) == "peft":
        code = (
            "from peft import PeftConfig, PeftModel\n"
            "from transformers import AutoModelForSequenceClassification\n\n"
            f'base = AutoModelForSequenceClassification.from_pretrained("{where}", num_labels=…)\n'
            'model = PeftModel.from_pretrained(base, ".")\n'
        )
    else:
        code = (
            "from transformers import pipeline\n\n"
            'classify = pipeline("text-classification", ".", top_k=None)\n'
        )
    return (
        f"```python\n{code}```\n\nThe labels are in `preprocessing.json`, in the order of the "
        "model's outputs; the temperature by which its logits were divided is in "
        "`calibration.json`, and is in the weights already."
    )


def curve_svg(curve: Sequence[tuple[int, float | None, float | None]]) -> str:
    """Training (line) and validation loss (dots) over optimizer steps."""
    width, height, margin = 640, 280, 50
    values = [v for _, *losses in curve for v in losses if v is not None]
    top, last = max(values, default=1.0) or 1.0, max((s for s, *_ in curve), default=1)

    def place(step: int, loss: float) -> tuple[float, float]:
        return (
            margin + (width - 2 * margin) * step / last,
            height - margin - (height - 2 * margin) * loss / top,
        )

    line = " ".join(
        f"{x:.1f},{y:.1f}" for x, y in (place(s, t) for s, t, _ in curve if t is not None)
    )
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#b3261e"/>'
        for s, _, v in curve
        if v is not None
        for x, y in [place(s, v)]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}"'
        f' fill="white"/><path d="M{margin} {margin}V{height - margin}H{width - margin}"'
        f' fill="none" stroke="#666"/><text x="{margin - 6}" y="{margin + 4}"'
        f' text-anchor="end">{top:.2f}</text><text x="{margin - 6}" y="{height - margin}"'
        f' text-anchor="end">0</text><text x="{width - margin}" y="{height - margin + 18}"'
        f' text-anchor="end">step {last}</text><polyline points="{line}" fill="none"'
        f' stroke="#4a78b5" stroke-width="1.5"/>{dots}<text x="{margin + 10}" y="{margin - 12}"'
        f' fill="#4a78b5">training loss</text><text x="{margin + 110}" y="{margin - 12}"'
        ' fill="#b3261e">validation loss</text></svg>\n'
    )

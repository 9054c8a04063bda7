"""Write the figures of docs/base.md and docs/pretraining.svg from the bundled base itself: what the
script recorded, what the model says.

python scripts/model_card.py
"""

import json
from pathlib import Path

from plot import line_plot
from transformers import AutoConfig

from tunesmith import catalog
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.registry import TunedModel

ROOT = Path(__file__).parents[1]
NAME = "tunesmith-tiny"
ASKED = (
    "Turn this into a question: The museum opens at ten.",
    "Find the city in this text: We flew from Lisbon on Monday.",
    "What is the capital of France?",
)


def main() -> None:
    spec = catalog.find(NAME, Path())
    recorded = json.loads((Path(spec.folder) / "pretraining.json").read_text())
    (ROOT / "docs" / "pretraining.svg").write_text(curve(recorded))
    page = ROOT / "docs" / "base.md"
    text = page.read_text()
    for name, made in (("facts", facts(spec, recorded)), ("answers", answers(spec))):
        before, start, rest = text.partition(f"<!-- card: {name} -->\n")
        end = f"<!-- end: {name} -->"
        text = before + start + made + end + rest.partition(end)[2]
    page.write_text(text)


def curve(recorded: dict) -> str:
    points = [(p["seconds"] / 60, [p["loss"]]) for p in recorded["curve"]]
    title = "Pretraining loss, nats per token, mean of 50 steps"
    ticks = [t for t in range(0, 1000, 10) if t <= recorded["minutes"]]
    return line_plot(title, "minutes", {"loss": points}, ticks, log_x=False)


def facts(spec: catalog.ModelSpec, recorded: dict) -> str:
    c = AutoConfig.from_pretrained(spec.folder)
    held, per_token = recorded["held_out_bits_per_byte"], recorded["bytes_per_token"]
    rows = {
        "architecture": (
            f"Llama, {spec.parameters:,} weights: {c.num_hidden_layers} layers, width"
            f" {c.hidden_size}, {c.num_attention_heads} heads, MLP {c.intermediate_size}, embedding"
            " shared with the head"
        ),
        "tokenizer": (
            f"byte-level BPE of {c.vocab_size:,} entries, digits one by one;"
            f" {per_token['prose']:.2f} bytes per token of prose, {per_token['tasks']:.2f} of tasks"
        ),
        "context": (
            f"{c.max_position_embeddings:,} tokens: rows of {recorded['context']} first, "
            f"of {c.max_position_embeddings:,} in the last quarter"
        ),
        "pretraining": (
            " then ".join(
                f"{r['minutes']:.0f} minutes ({r['tokens'] / 1e6:.1f}M tokens)"
                for r in rounds(recorded)
            )
            + " on two cores, beside other work at times"
        ),
        "peak rates": (
            f"{recorded['peak_learning_rate']:g} (AdamW: embeddings, norms), 0.02 (Muon: matrices);"
            " in each round warm-up 2 %, level, linear to zero over the last half"
        ),
        "weight decay": (
            ", ".join(f"{r.get('weight_decay', 0.0):g}" for r in rounds(recorded))
            + " (decoupled, matrices and embeddings), round by round"
        ),
        "copying": (
            "the last round begins with rows of repeated random tokens and keeps an eighth of"
            f" them; of such tokens, said a second time, the model gives {recorded['copied']:.0%}"
            " as the most likely next one"
        ),
        "held-out loss": (
            f"{held['prose']:.2f} bits per byte of prose, {held['tasks']:.2f} of task completions"
            " (200 documents each, never trained on)"
        ),
        "template": (
            "`<\\|user\\|>…<\\|end\\|><\\|assistant\\|>` …`<\\|end\\|>`; `<\\|system\\|>` first if"
            " given; `<\\|end\\|>` stops"
        ),
    }
    return "| | |\n|---|---|\n" + "".join(f"| {k} | {v} |\n" for k, v in rows.items())


def rounds(recorded: dict) -> list[dict]:
    """Each round of pretraining, the first one first; a later one began with the weights of the one
    before."""
    return [*(rounds(recorded["began_with"]) if recorded.get("began_with") else []), recorded]


def answers(spec: catalog.ModelSpec) -> str:
    engine = Engine.load(TunedModel(name=NAME, base=spec), "cpu")
    found = engine.generate(
        [[{"role": "user", "content": q}] for q in ASKED], Sampling(max_tokens=40)
    )
    return "".join(
        f"- {q}\n  → {c.text.strip() or '(nothing)'}\n" for q, c in zip(ASKED, found, strict=True)
    )


if __name__ == "__main__":
    main()

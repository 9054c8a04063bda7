"""Work (c): how long until a tuning of banking77 is as good as the fair peer's after two epochs.
All take turns in one run.

    python benchmarks/tuning.py [--threads 2] [--peers .venv-peers/bin/python]
                                [--data ../shared/data]

1,000 training and 200 validation rows, an instruction that lists the 77 intents before each, LoRA
of rank 16 on all linear layers of `tunesmith-tiny`, 16 rows a step, 126 steps. The fair peer trains
at 2e-4, the rate of PEFT's and TRL's own LoRA examples, ours at the rate that `auto` decides.
Seconds are of steps, validation left out. TRL trains as the fair peer does and reaches what it
reaches; its time is taken from the pace of its first steps.
"""

import argparse
import csv
import random
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import marked
from offtheshelf import Peer, Setting, by_trainer
from train import known_sweep

from tunesmith import catalog
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.options import Options
from tunesmith.tuning.recipe import Known, decide

BASE, RANK, ROWS, EPOCHS = "tunesmith-tiny", 16, 16, 2
TRAIN, VALIDATION = 1000, 200
PEER_RATE = 2e-4
EVERY = 6  # steps between two validations
PACE_STEPS = 4  # of TRL


def rows_of(data: Path, base: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with (data / "text_classification" / "banking77_train.csv").open(
        newline="", encoding="utf-8"
    ) as f:
        rows = [(r["text"].strip(), r["label"]) for r in csv.DictReader(f)]
    random.Random(0).shuffle(rows)
    labels = ", ".join(sorted({label for _, label in rows}))
    instruction = (
        f"Which of these intents does the customer's message have? Answer with one of "
        f"them. {labels}. Message: "
    )
    encoder = Encoder(PromptTemplate.of_base(base), base)
    found = []
    for text, label in rows[: TRAIN + VALIDATION]:
        prompt = encoder.prompt([{"role": "user", "content": instruction + text}])
        ids = [*prompt, *encoder.text(label), encoder.template.end_id]
        found.append({"ids": ids, "n_prompt": len(prompt)})
    return found[:TRAIN], found[TRAIN:]


class Curve:
    """Seconds of steps, and the validation loss after some of them."""

    def __init__(self, peer: Peer, steps: int) -> None:
        self.peer, self.left, self.seconds, self.points = (
            peer,
            steps,
            [0.0],
            list[tuple[float, float]](),
        )

    def advance(self, validate: bool) -> None:
        for _ in range(min(EVERY, self.left)):
            self.seconds.append(self.seconds[-1] + ROWS * self.peer.step())
        self.left -= EVERY
        if validate or self.left <= 0:
            self.points.append((self.seconds[-1], self.peer.validate()))

    def until(self, loss: float) -> float | None:
        return next((s for s, at in self.points if at <= loss), None)


def compare(data: Path, threads: int, python: str) -> dict[str, Any]:
    spec = catalog.find(BASE, Path())
    train, validation = rows_of(data, Path(spec.folder))
    rate = decide(Options(method="lora"), Known(spec, TRAIN)).learning_rate
    steps = EPOCHS * -(-TRAIN // ROWS)

    def work(rate: float) -> dict[str, Any]:
        return {
            "base_folder": spec.folder,
            "rank": RANK,
            "rows": train,
            "validation_rows": validation,
            "rows_per_step": ROWS,
            "learning_rate": rate,
            "total_steps": steps,
        }

    with ExitStack() as stack:

        def begin(side: str, rate: float) -> Curve:
            return Curve(stack.enter_context(Peer("", work(rate), Setting(side), threads)), steps)

        sides = {"fair": begin("fair", PEER_RATE), "ours": begin("ours", rate)}
        trl = []
        if python and (settings := by_trainer(known_sweep("15M", "a")).get("trl")):
            other = stack.enter_context(Peer(python, work(PEER_RATE), settings[0], threads))
            trl = [other.step() for _ in range(PACE_STEPS)][1:]
        while sides["fair"].left > 0:
            for name, side in sides.items():
                side.advance(validate=name == "ours")  # padded, a validation takes half a minute
            print(
                f"{[round(s.seconds[-1]) for s in sides.values()]} s, ours at "
                f"{sides['ours'].points[-1][1]:.4f}",
                flush=True,
            )
    target = sides["fair"].points[-1][1]
    whole = {name: side.seconds[-1] for name, side in sides.items()}
    whole |= {"trl": statistics.median(trl) * ROWS * steps} if trl else {}
    return {
        "threads": threads,
        "shared_tokens": _shared(train),
        "tokens_per_row": statistics.mean(len(r["ids"]) for r in train),
        "peer_rate": PEER_RATE,
        "our_rate": rate,
        "target_loss": target,
        "whole_seconds": whole,
        "our_seconds_to_target": sides["ours"].until(target),
        "our_last_loss": sides["ours"].points[-1][1],
        "curves": {name: side.points for name, side in sides.items()},
        "trl": str(settings[0]) if trl else "",
    }


def _shared(rows: Sequence[dict[str, Any]]) -> int:
    first, last = min(r["ids"] for r in rows), max(r["ids"] for r in rows)
    return next(i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)


def table_md(f: dict[str, Any]) -> str:
    whole, ours = f["whole_seconds"], f["our_seconds_to_target"]
    lines = [
        f"| tuning until the validation loss is {f['target_loss']:.3f} | seconds | against ours |",
        "|---|---|---|",
        f"| ours, at the rate that `auto` decides ({f['our_rate']:g}) | {ours:.1f} | 1 |",
        f"| fair peer, two epochs at {f['peer_rate']:g} | {whole['fair']:.1f} | "
        f"**{whole['fair'] / ours:.1f}** |",
    ]
    if "trl" in whole:
        lines.append(
            f"| TRL ({f['trl']}), two epochs, from its pace | {whole['trl']:.0f} | "
            f"**{whole['trl'] / ours:.1f}** |"
        )
    faster = whole["fair"] / whole["ours"]
    lines += [
        "",
        f"Rows of {f['tokens_per_row']:.0f} tokens, of which all share {f['shared_tokens']}. Ours "
        f"ends, after its two epochs "
        f"({whole['ours']:.0f} s, a step {faster:.1f} times as fast as the peer's), at "
        f"{f['our_last_loss']:.3f}.",
        f"At our rate the peer would be there in about {ours * faster:.0f} s: the rest is due to "
        f"the rate, which `auto` has from "
        f"[tables that were swept](base.md#lora-or-full-tuning). {f['threads']} threads.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", default="")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    args = parser.parse_args()
    found = compare(args.data, args.threads, args.peers)
    marked.record("tuning", found)
    marked.write("performance.md", {"tuning": table_md(found)})
    print(table_md(found))


if __name__ == "__main__":
    main()

"""How fast an encoder is tuned and asked for labels, beside transformers' own trainer and pipeline
and a padded loop, taking turns on one machine.

    python benchmarks/labels_speed.py [--threads 2] [--rounds 3]

Training: an epoch of full tuning at 16 rows a step, float32, no dropout on any side; rows of
banking77, and rows of 20 to 400 tokens made of its words. The trainer groups by length and pads to
the batch, the loop of ours pads within a step as a good engineer would. Classifying: texts in a
column, the pipeline at its best batch of three. The base must be here (`tunesmith base add
all-minilm-l6-v2`). Writes docs/performance.md.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import marked
import torch
from base import ROOT, _query
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.utils import logging

from tunesmith import catalog
from tunesmith.data.dataset import Row
from tunesmith.data.labels import Labels
from tunesmith.data.text_classification import Example, TextEncoder
from tunesmith.models import classifier, features, head
from tunesmith.tasks import text_classification
from tunesmith.tasks.text_classification.engine import Classifier
from tunesmith.tuning.loop import grouped, optimizer_step

BASE, BATCH, CPU = "all-minilm-l6-v2", 16, torch.device("cpu")
logging.set_verbosity_error()


class Scene:
    """A base, its labels, and rows with their ids."""

    def __init__(self, data: str) -> None:
        with tempfile.TemporaryDirectory() as home:
            self.folder = Path(catalog.find(BASE, Path(home)).folder)
        rows = _query(f"SELECT text, label FROM '{data}/text_classification/banking77_train.csv'")
        random.Random(0).shuffle(rows)
        self.labels = Labels(tuple(sorted({label for _, label in rows})))
        self.encoder = TextEncoder(self.folder, 512, self.labels)
        self.texts = [text for text, _ in rows]
        self.short = self._examples(rows[:640])
        draw = random.Random(1)
        words = " ".join(self.texts[:2000]).split()
        long = [" ".join(draw.choices(words, k=draw.randint(15, 330))) for _ in range(96)]
        self.long = self._examples([(t, draw.choice(self.labels.names)) for t in long])

    def _examples(self, rows: list[tuple[str, str]]) -> list[Example]:
        made = self.encoder.encode([(text, None) for text, _ in rows])
        return [
            Example(Row(i, t, c, "{}"), e.ids[:400], None, self.labels.places(c), (t, None))
            for i, ((t, c), e) in enumerate(zip(rows, made, strict=True))
        ]

    def model(self) -> Any:
        torch.manual_seed(0)
        return classifier.load(self.folder, CPU, self.labels)


def ours(scene: Scene, rows: list[Example]) -> Callable[[], None]:
    model = scene.model()
    trained = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(grouped(trained, {}), lr=1e-5, weight_decay=0.0, fused=True)

    def epoch() -> None:
        for i in range(0, len(rows), BATCH):
            some = rows[i : i + BATCH]
            optimizer_step(text_classification, model, trained, optimizer, some, 1e-5, 1.0)

    return epoch


def padded(scene: Scene, rows: list[Example]) -> Callable[[], None]:
    """Sorted within a step, two halves each padded to its own longest row."""
    model = scene.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def epoch() -> None:
        model.train()
        for i in range(0, len(rows), BATCH):
            some = sorted(rows[i : i + BATCH], key=lambda r: r.size)
            optimizer.zero_grad(set_to_none=True)
            for half in (some[: len(some) // 2], some[len(some) // 2 :]):
                logits = model(**classifier.padded(model, half)).logits
                wanted = torch.tensor([r.targets[0] for r in half])
                loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
                (loss / len(some)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return epoch


def trainer(scene: Scene, rows: list[Example]) -> Callable[[], None]:
    model, tokenizer = scene.model(), AutoTokenizer.from_pretrained(scene.folder)
    model.set_attn_implementation("sdpa")
    model.tunesmith_texts_packed = False
    data = [{"input_ids": list(r.ids), "labels": r.targets[0], "length": r.size} for r in rows]

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                learning_rate=1e-5,
                train_sampling_strategy="group_by_length",
                length_column_name="length",
                optim="adamw_torch_fused",
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            collator = DataCollatorWithPadding(tokenizer)
            Trainer(model, arguments, train_dataset=data, data_collator=collator).train()  # type: ignore[arg-type]

    return epoch


def head_alone(scene: Scene, kept: bool) -> Callable[[], None]:
    """An epoch of the head alone, with and without what the frozen layers give being kept."""
    model = scene.model().requires_grad_(False)
    trained = head.trained(model)
    for p in trained.values():
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(grouped(trained, {}), lr=1e-4, weight_decay=0.0, fused=True)
    rows = scene.short
    if kept:
        place = Path(tempfile.mkdtemp())
        opened = features.remembering(model, rows, place, "base", classifier.READER)
        opened.__enter__()

    def epoch() -> None:
        for i in range(0, len(rows), BATCH):
            some = rows[i : i + BATCH]
            optimizer_step(text_classification, model, trained, optimizer, some, 1e-4, 1.0)

    return epoch


def times(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(rounds + 1):  # the first turn of each warms it up
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if n:
                found[name].append(time.perf_counter() - began)
    return found


def asked(scene: Scene, rounds: int, count: int) -> tuple[dict[str, list[float]], int]:
    from transformers import pipeline

    texts = scene.texts[:count]
    engine = Classifier(scene.model(), scene.encoder, BASE)
    plain = scene.model()
    plain.set_attn_implementation("sdpa")
    tokenizer = AutoTokenizer.from_pretrained(scene.folder)
    pipe = pipeline("text-classification", model=plain, tokenizer=tokenizer)
    from tunesmith.inference.engine import Sampling

    few: dict[int, float] = {}
    for size in (8, 32, 128):
        began = time.perf_counter()
        pipe(texts[:500], batch_size=size)
        few[size] = time.perf_counter() - began
    best = min(few, key=few.__getitem__)
    sides: dict[str, Callable[[], None]] = {
        "ours": lambda: engine.generate([(t, None) for t in texts], Sampling()) and None,
        "pipeline": lambda: pipe(texts, batch_size=best) and None,
    }
    return times(sides, rounds), best


def ratio(found: dict[str, list[float]], other: str, ours: str = "ours") -> str:
    each = [a / b for a, b in zip(found[other], found[ours], strict=True)]
    return f"**{statistics.median(each):.2f}** ({min(each):.2f} to {max(each):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=4000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scene = Scene(args.data)
    lines = [
        "| an epoch | ours, s | padded loop, times | transformers' Trainer, times |",
        "|---|---|---|---|",
    ]
    for name, rows in (
        ("banking77, 640 rows", scene.short),
        ("20 to 400 tokens, 96 rows", scene.long),
    ):
        sides = {"ours": ours, "padded": padded, "trainer": trainer}
        found = times({n: make(scene, rows) for n, make in sides.items()}, args.rounds)
        middle = statistics.median(found["ours"])
        lines.append(
            f"| {name} | {middle:.2f} | {ratio(found, 'padded')} | {ratio(found, 'trainer')} |"
        )
        print(lines[-1], flush=True)
    alone = times({"kept": head_alone(scene, True), "not": head_alone(scene, False)}, args.rounds)
    labels, best = asked(scene, args.rounds, args.texts)
    lines += [
        "",
        f"An epoch of the head alone: {ratio(alone, 'not', 'kept')} times as fast once what the "
        f"frozen layers give is kept ({statistics.median(alone['kept']):.2f} s).",
        "",
        f"Labels of {args.texts:,} texts: {ratio(labels, 'pipeline')} times as fast as the "
        f"pipeline at its best batch ({best}), {statistics.median(labels['ours']):.1f} s.",
        "",
        f"Medians of {args.rounds} turns, {args.threads} threads; {marked.machine()}.",
    ]
    made = "\n".join(lines)
    print(made)
    marked.write("performance.md", {"labels": made})


if __name__ == "__main__":
    main()

"""How fast an encoder is tuned and asked for labels, beside transformers' own trainer and pipeline
and a padded loop, taking turns on one machine.

    python benchmarks/labels_speed.py [--threads 2] [--rounds 3]

Training: an epoch of full tuning at 16 rows a step, float32, no dropout on any side; rows of
banking77, and rows of 20 to 400 tokens made of its words. The trainer groups by length and pads to
the batch, the loop of ours pads within a step as a good engineer would. Classifying: texts in a
column, the pipeline at its best batch of three. The bases must be here (`tunesmith base add
all-minilm-l6-v2`, `smollm2-135m-instruct-gguf`). Writes docs/performance.md.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
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
from tunesmith.data.conversation import question
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example as Spoken
from tunesmith.data.labels import Labels
from tunesmith.data.text_classification import Example, TextEncoder
from tunesmith.models import classifier, embeddings, features, head, methods
from tunesmith.options import Decided, Options
from tunesmith.tasks import text_classification, text_generation
from tunesmith.tasks.text_classification.engine import Classifier
from tunesmith.tuning.loop import grouped, optimizer_step

BASE, LANGUAGE = "all-minilm-l6-v2", "smollm2-135m-instruct-gguf"
BATCH, CPU = 16, torch.device("cpu")
STAYS = ExitStack()  # what a side has opened stays open until the script ends
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
    STAYS.enter_context(embeddings.only_read(model, text_classification.words(rows)))
    trained = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(grouped(trained, {}), lr=1e-5, weight_decay=0.0, fused=True)

    def epoch() -> None:
        for i in range(0, len(rows), BATCH):
            some = rows[i : i + BATCH]
            optimizer_step(text_classification, model, trained, optimizer, some, 1e-5, 1.0)

    return epoch


def language(data: str, freeze: str, kept: bool) -> Callable[[], None]:
    """An epoch of LoRA on a language model, some of its lower layers frozen."""
    with tempfile.TemporaryDirectory() as home:
        spec = catalog.find(LANGUAGE, Path(home))
    rules = spec.task_spec.rules
    encoder = rules.encoder(rules.preprocessing(spec), spec)
    rows = _query(f"SELECT text, label FROM '{data}/text_classification/banking77_train.csv'")
    random.Random(0).shuffle(rows)
    examples = [
        Spoken(Row(i, text, label, "{}"), encoder.row(question(text), label))
        for i, (text, label) in enumerate(rows[:64])
    ]
    torch.manual_seed(0)
    usual = {**vars(Options()), "rank": 16, "freeze": freeze}
    base = text_generation.load(spec, CPU, encoder)
    model = methods.METHODS["lora"].prepare(base, Decided(**usual))
    trained = methods.trained_tensors(model)
    optimizer = torch.optim.AdamW(grouped(trained, {}), lr=1e-4, weight_decay=0.0, fused=True)
    if kept:
        place = Path(tempfile.mkdtemp())
        STAYS.enter_context(text_generation.remembering(model, examples, place, "base"))

    def epoch() -> None:
        for i in range(0, len(examples), BATCH):
            some = examples[i : i + BATCH]
            optimizer_step(text_generation, model, trained, optimizer, some, 1e-4, 1.0)

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


def head_alone(scene: Scene, rows: list[Example], kept: bool) -> Callable[[], None]:
    """An epoch of the head alone, with and without what the frozen layers give being kept."""
    model = scene.model().requires_grad_(False)
    trained = head.trained(model)
    for p in trained.values():
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(grouped(trained, {}), lr=1e-4, weight_decay=0.0, fused=True)
    if kept:
        place = Path(tempfile.mkdtemp())
        STAYS.enter_context(features.remembering(model, rows, place, "base", classifier.READER))

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
    alone = [
        times({n: head_alone(scene, rows, n == "kept") for n in ("kept", "not")}, args.rounds)
        for rows in (scene.short, scene.long)
    ]
    heads = [ratio(found, "not", "kept") for found in alone]
    print(f"head alone {heads}", flush=True)
    half = times(
        {
            "kept": language(args.data, "0.5", True),
            "not": language(args.data, "0.5", False),
            "whole": language(args.data, "", False),
        },
        args.rounds,
    )
    print(f"half {ratio(half, 'not', 'kept')} {ratio(half, 'whole', 'kept')}", flush=True)
    labels, best = asked(scene, args.rounds, args.texts)
    lines += [
        "",
        f"An epoch of the head alone, once what the frozen layers give is kept: {heads[0]} times "
        f"as fast on banking77 ({1e3 * statistics.median(alone[0]['kept']):.0f} ms), {heads[1]} "
        f"times on the longer rows.",
        "",
        f"LoRA on SmolLM2-135M with its lower half frozen: an epoch is "
        f"{ratio(half, 'not', 'kept')} times as fast once what the half gives is kept, and "
        f"{ratio(half, 'whole', 'kept')} times as fast as one with nothing frozen.",
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

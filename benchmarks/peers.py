"""Off-the-shelf trainers as peers: TRL's SFTTrainer and transformers' Trainer, a child process that
takes turns with a benchmark.

    .venv-peers/bin/python benchmarks/peers.py WORK.json --trainer trl --mode padded --micro-batch 4

It runs in an environment of its own, see requirements.txt, so it imports nothing of ours. WORK.json
has `config` (of LlamaConfig) or a `base_folder`, `rank`, `rows` (each `ids` and `n_prompt`),
`rows_per_step`, and maybe `learning_rate` and `validation_rows`. Lines in: `step`, `validate`,
`end`. Lines out, JSON each: `ready`, one for each step or validation, the totals at the end, or
`error`.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries below are imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

PACK_TOKENS = 2048
PAD = 0  # never seen by the loss: masked, with label -100
VALIDATION_ROWS = 4  # at once, the head on all their positions
Row = dict[str, Any]


class Ended(Exception):
    """The benchmark wants no more steps. The trainers look at `should_training_stop` only after a
    step, so it leaves through them."""


class Turns(transformers.TrainerCallback):
    """Waits for the benchmark between two steps. A trainer collects a step's batches before
    `on_step_begin`, so a turn lasts from the end of one step to the end of the next: collation and
    the update are inside, the wait is not."""

    def __init__(self, out: TextIO, validation_rows: list[Row]) -> None:
        self.out, self.validation_rows = out, validation_rows
        self.seen: dict[str, float] = {}
        self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.say(ready=True)
        self.wait(rest["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.say(seconds=time.perf_counter() - self.began, **self.seen)
        self.wait(rest["model"])

    def wait(self, model: Any) -> None:
        while (line := sys.stdin.readline().strip()) == "validate":
            self.say(**validation(model, self.validation_rows))
        if line != "step":
            raise Ended
        self.seen = {"rows": 0, "tokens": 0, "positions": 0, "loss": 0.0}
        self.began = time.perf_counter()

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.out, flush=True)


def counted(trainer: type[Any], turns: Turns) -> type[Any]:
    """The trainer as it is, which also notes what a step saw: packs hold any number of rows, and
    padding costs positions."""

    class Counted(trainer):  # type: ignore[misc]
        def get_batch_samples(self, *args: Any) -> Any:
            batches, n_items = super().get_batch_samples(*args)
            for batch in batches:
                ids, mask, positions = (
                    batch["input_ids"],
                    batch.get("attention_mask"),
                    batch.get("position_ids"),
                )
                turns.seen["rows"] += len(ids) if positions is None else int((positions == 0).sum())
                turns.seen["tokens"] += ids.numel() if mask is None else int(mask.sum())
                turns.seen["positions"] += ids.numel()
            return batches, n_items

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            turns.seen["loss"] += loss.item()
            return loss

    return Counted


@torch.no_grad()
def validation(model: Any, rows: list[Row]) -> dict[str, float]:
    """Mean nats for each completion token."""
    model.eval()
    nats, tokens = 0.0, 0
    rows = sorted(rows, key=lambda row: len(row["ids"]))
    for first in range(0, len(rows), VALIDATION_ROWS):
        batch = padded(tokenizer())(
            [labelled(row) for row in rows[first : first + VALIDATION_ROWS]]
        )
        logits, labels = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
            batch["labels"][:, 1:],
        )
        supervised = labels != -100
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1][supervised].float(), labels[supervised], reduction="sum"
        )
        nats, tokens = nats + losses.item(), tokens + int(supervised.sum())
    model.train()
    return {"validation_loss": nats / tokens, "tokens": tokens}


def labelled(row: Row) -> dict[str, list[int]]:
    return {
        "input_ids": row["ids"],
        "labels": [-100] * row["n_prompt"] + row["ids"][row["n_prompt"] :],
    }


def tokenizer() -> Any:
    """Rows come tokenised: the trainers only ask it how to pad."""
    words = Tokenizer(WordLevel({"<pad>": PAD}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<pad>"
    )


def padded(tokens: Any) -> Any:
    return transformers.DataCollatorForSeq2Seq(tokens)


def base_model(work: dict[str, Any], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    if work.get("base_folder"):
        return transformers.AutoModelForCausalLM.from_pretrained(work["base_folder"], dtype=dtype)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**work["config"])).to(dtype)


def dataset_of(work: dict[str, Any]) -> Dataset:
    """Repeated only until an epoch is a whole number of steps: the trainers start another epoch by
    themselves."""
    times = work["rows_per_step"] // math.gcd(len(work["rows"]), work["rows_per_step"])
    return Dataset.from_list([labelled(row) for row in work["rows"]] * times)


def settings(
    args: argparse.Namespace, work: dict[str, Any], *, batches_per_step: int
) -> dict[str, Any]:
    """What both trainers are told. Rows go in the order given, unless grouped by length, so that
    both sides take the same ones."""
    return dict(
        output_dir=tempfile.mkdtemp(prefix="peers-"),
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=batches_per_step,
        max_steps=10**6,
        learning_rate=work.get("learning_rate", 1e-4),
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length"
        if args.mode == "length-grouped"
        else "sequential",
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
    )


def trl_trainer(
    args: argparse.Namespace, work: dict[str, Any], *, model: Any, lora: LoraConfig, turns: Turns
) -> Any:
    from trl import SFTConfig, SFTTrainer, pack_dataset

    rows, packing = dataset_of(work), args.mode == "packing"
    per_step = float(work["rows_per_step"])
    if (
        packing
    ):  # a micro-batch is one of packs, and a step takes as many packs as hold its rows on average
        per_step *= len(pack_dataset(rows, PACK_TOKENS, "bfd", {})) / len(rows)
    told = settings(args, work, batches_per_step=max(1, round(per_step / args.micro_batch)))
    shape = dict(
        packing=packing,
        max_length=PACK_TOKENS if packing else None,
        padding_free=args.mode == "padding-free",
    )
    config = SFTConfig(**told, **shape)
    trainer = counted(SFTTrainer, turns)
    return trainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=lora,
        callbacks=[turns],
    )


def hf_trainer(
    args: argparse.Namespace, work: dict[str, Any], *, model: Any, lora: LoraConfig, turns: Turns
) -> Any:
    if args.mode == "packing":
        raise ValueError("transformers.Trainer offers no packing")
    tokens = tokenizer()
    collator = (
        transformers.DataCollatorWithFlattening() if args.mode == "padding-free" else padded(tokens)
    )
    told = transformers.TrainingArguments(
        **settings(args, work, batches_per_step=max(1, work["rows_per_step"] // args.micro_batch))
    )
    trainer = counted(transformers.Trainer, turns)
    return trainer(
        model=get_peft_model(model, lora),
        args=told,
        train_dataset=dataset_of(work),
        data_collator=collator,
        processing_class=tokens,
        callbacks=[turns],
    )


def peak_memory_mb() -> float:
    """The high-water mark of resident memory. Not getrusage's: Linux lets a child inherit its
    parent's there."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def train(args: argparse.Namespace, turns: Turns) -> None:
    work = json.loads(args.work.read_text())
    turns.validation_rows = work.get("validation_rows", [])
    model = base_model(work, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    lora = LoraConfig(
        r=work["rank"],
        lora_alpha=2 * work["rank"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = {"trl": trl_trainer, "hf": hf_trainer}[args.trainer](
        args, work, model=model, lora=lora, turns=turns
    )
    try:
        trainer.train()
    except Ended:
        Path(trainer.args.output_dir).rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--trainer", choices=["trl", "hf"], default="trl")
    parser.add_argument(
        "--mode", choices=["padded", "length-grouped", "padding-free", "packing"], default="padded"
    )
    parser.add_argument(
        "--micro-batch",
        type=int,
        choices=[1, 2, 4, 8, 16],
        default=4,
        help="rows, or packs with --mode packing",
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="of the frozen weights; PEFT picks the adapter's",
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    disable_progress_bars()
    turns = Turns(os.fdopen(os.dup(1), "w"), [])
    os.dup2(2, 1)  # what the libraries print is not for the benchmark
    try:
        train(args, turns)
    except Exception as error:
        turns.say(error=f"{type(error).__name__}: {error}")
        raise
    versions = {
        name: metadata.version(name)
        for name in ("trl", "transformers", "peft", "accelerate", "datasets", "torch")
    }
    turns.say(memory_mb=peak_memory_mb(), threads=torch.get_num_threads(), **versions)


if __name__ == "__main__":
    main()

"""Our trainer and the fair peer, each a child process that takes turns with a benchmark, as
`peers.py` does for trainers of other projects.

    python benchmarks/sides.py WORK.json --side ours|fair|compiled

The fair peer is the same PEFT model with PEFT's own layers, rows padded, the head on completion
positions only. WORK.json has `config` (of LlamaConfig) or a `base_folder`, `rank`, `rows` (each
`ids` and `n_prompt`), `rows_per_step`, and maybe `learning_rate`, `total_steps` (then the rate
rises and falls as in the product) and `validation_rows`. Lines in: `step`, `step ROWS MICRO_BATCH`,
`validate`, `end`. Lines out, JSON each: `ready`, one for each step or validation, the totals at the
end.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded
from tunesmith.models import layout, methods, packed, trim
from tunesmith.options import Options
from tunesmith.tasks import text_generation
from tunesmith.tuning.batches import rows_of_step
from tunesmith.tuning.loop import accumulate, evaluate, mean_loss, schedule
from tunesmith.tuning.recipe import Known, decide


def model_of(work: dict[str, Any], side: str) -> Any:
    torch.manual_seed(0)
    base: Any
    if work.get("base_folder"):
        base = AutoModelForCausalLM.from_pretrained(work["base_folder"], dtype=torch.float32)
    else:
        base = LlamaForCausalLM(LlamaConfig(**work["config"]))
    base.config.use_cache = False
    torch.manual_seed(1)
    if side == "fair":
        lora = LoraConfig(
            r=work["rank"],
            lora_alpha=2 * work["rank"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(base, lora)
    packed.enable(base)
    trim.enable(base)
    options = Options.parse({"method": "lora", "rank": work["rank"]})
    decided = decide(options, Known(ModelSpec(name="peer", parameters=1), 1))
    model: Any = methods.METHODS["lora"].prepare(base, decided)
    for layer in base.model.layers if side == "compiled" else []:
        layer.compile(dynamic=True)
    return model


def examples(rows: list[dict[str, Any]]) -> list[Example]:
    return [
        Example(Row(i, "", "", ""), Encoded(r["ids"], r["n_prompt"])) for i, r in enumerate(rows)
    ]


class Side:
    def __init__(self, work: dict[str, Any], side: str) -> None:
        self.side, self.work = side, work
        self.rows, self.validation = (
            examples(work["rows"]),
            examples(work.get("validation_rows", [])),
        )
        self.model = model_of(work, side)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=work.get("learning_rate", 1e-4), weight_decay=0.0, fused=True
        )
        self.done, self.micro = 0, 4

    def step(self, n_rows: int | None = None, micro: int | None = None) -> dict[str, Any]:
        self.micro = micro or self.micro
        per_step = n_rows or self.work["rows_per_step"]
        rows = [
            self.rows[i]
            for i in rows_of_step(len(self.rows), min(per_step, len(self.rows)), 0, self.done)
        ]
        if total := self.work.get("total_steps"):
            self.optimizer.param_groups[0]["lr"] = self.work["learning_rate"] * schedule(
                self.done, total, 0.03
            )
        began = time.perf_counter()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        limits: dict[str, int] = (
            {"max_tokens": layout.micro_tokens(self.model)}
            if self.side != "fair"
            else {"max_tokens": 10**9, "max_rows": self.micro}
        )
        loss, _ = accumulate(text_generation, self.model, rows, **limits)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.done += 1
        return {"seconds": time.perf_counter() - began, "rows": len(rows), "loss": loss}

    def validate(self) -> dict[str, Any]:
        return {
            "validation_loss": mean_loss(evaluate(text_generation, self.model, self.validation))
        }


def peak_memory_mb() -> float:
    """The high-water mark of resident memory. Not getrusage's: Linux lets a child inherit its
    parent's there."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--side", choices=["ours", "fair", "compiled"], default="ours")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is not for the benchmark

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=out, flush=True)

    side = Side(json.loads(args.work.read_text()), args.side)
    say(ready=True)
    while (line := sys.stdin.readline().split()) and line[0] != "end":
        say(**(side.validate() if line[0] == "validate" else side.step(*map(int, line[1:]))))
    say(memory_mb=peak_memory_mb(), threads=torch.get_num_threads(), torch=torch.__version__)


if __name__ == "__main__":
    main()

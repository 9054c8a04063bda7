"""Training steps of LoRA, ours against the fair peer, interleaved in one run: ratios of medians.

    python benchmarks/train.py [--threads 2] [--repeats 5] [--shapes 15M 135M] [--work a b]

The fair peer is the same PEFT model with PEFT's own layers, rows padded, the head on completion positions only, at its best micro-batch of
2, 4, 8 and 16 rows, found first. Both take the same 16 rows an optimizer step, rank 16 on all linear layers, float32, AdamW.
Work (a): 300 tokens that all rows share, then 30 to 120, and 2 to 10 to learn. (b): prompts of 50 to 600 tokens with a long tail, and
20 to 200 to learn.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tunesmith.data.template import Encoded
from tunesmith.models import causal_lm, methods, packed
from tunesmith.models.layout import MICRO_TOKENS, micro_batches

RESULTS = Path(__file__).parent / "results" / "train.json"
ROWS, RANK = 16, 16
SHAPES: dict[str, dict[str, int]] = {
    "15M": dict(
        vocab_size=32_000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6
    ),
    "135M": dict(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    ),
}


def model_of(shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True)).eval()


def rows_of(work: str) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def ids(n: int) -> list[int]:
        return torch.randint(5, 30_000, (n,), generator=generator).tolist()

    head, rows = ids(300), []
    for _ in range(ROWS):
        if work == "a":
            prompt, completion = head + ids(number(30, 120)), ids(number(2, 10))
        else:
            share = float(torch.rand((), generator=generator)) ** 3  # many short rows, a few long ones
            prompt, completion = ids(50 + int(550 * share)), ids(20 + int(180 * float(torch.rand((), generator=generator)) ** 2))
        rows.append(Encoded(prompt + completion, len(prompt)))
    return rows


def ours(shape: str) -> Callable[[Sequence[Encoded]], None]:
    from tunesmith.jobs import Resolved, ResolvedOptions

    base = model_of(shape)
    packed.enable(base)
    options = ResolvedOptions({"rank": Resolved(RANK, "user", ""), "targets": Resolved("all-linear", "user", "")})
    model = methods.load("lora").prepare(base, options)
    return stepper(model, lambda rows: causal_lm.groups(rows, model, MICRO_TOKENS))


def fair_peer(shape: str, micro: int) -> Callable[[Sequence[Encoded]], None]:
    base = model_of(shape)
    model: Any = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    return stepper(model, lambda rows: micro_batches([len(r.ids) for r in rows], 10**9, micro))


def stepper(model: Any, groups: Callable[[Sequence[Encoded]], list[list[int]]]) -> Callable[[Sequence[Encoded]], None]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    model.train()

    def step(rows: Sequence[Encoded]) -> None:
        optimizer.zero_grad(set_to_none=True)
        count = sum(r.n_completion for r in rows)
        for group in groups(rows):
            batch = causal_lm.collate([rows[i] for i in group], model)
            (causal_lm.token_losses(model, batch).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def seconds(step: Callable[[Sequence[Encoded]], None], rows: Sequence[Encoded]) -> float:
    began = time.perf_counter()
    step(rows)
    return time.perf_counter() - began


def compare(shape: str, work: str, repeats: int) -> dict[str, Any]:
    rows = rows_of(work)
    sweep = {}
    for micro in (2, 4, 8, 16):
        step = fair_peer(shape, micro)
        step(rows[:2])
        sweep[micro] = min(seconds(step, rows) for _ in range(2))
    best = min(sweep, key=lambda m: sweep[m])
    peer, mine = fair_peer(shape, best), ours(shape)
    peer(rows), mine(rows)
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(repeats):
        times["peer"].append(seconds(peer, rows))
        times["ours"].append(seconds(mine, rows))
    ratios = [p / o for p, o in zip(times["peer"], times["ours"], strict=True)]
    found = {
        "shape": shape, "work": work, "ours_ms_per_row": 1000 * statistics.median(times["ours"]) / ROWS,
        "peer_ms_per_row": 1000 * statistics.median(times["peer"]) / ROWS, "peer_micro_batch": best,
        "ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)],
    }  # fmt: skip
    print(f"{shape} ({work}): ours {found['ours_ms_per_row']:.0f} ms a row, fair peer {found['peer_ms_per_row']:.0f} (micro-batch {best}), "
          f"{found['ratio']:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--work", nargs="+", default=["a", "b"], choices=["a", "b"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [compare(shape, work, args.repeats) for shape in args.shapes for work in args.work]
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": args.threads, "runs": found}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

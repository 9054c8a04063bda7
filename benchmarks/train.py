"""Training steps of LoRA, ours against the fair peer, interleaved in one run: ratios of medians.

    python benchmarks/train.py [--threads 2] [--repeats 5] [--shapes 15M 135M] [--work a b] [--peers .venv-peers/bin/python]

The fair peer is the same PEFT model with PEFT's own layers, rows padded, the head on completion positions only, at its best micro-batch of
2, 4, 8 and 16 rows, found first. Both take the same 16 rows an optimizer step, rank 16 on all linear layers, float32, AdamW.
Work (a): 300 tokens that all rows share, then 30 to 120, and 2 to 10 to learn. (b): prompts of 50 to 600 tokens with a long tail, and
20 to 200 to learn. With --peers, TRL and transformers' Trainer take turns with them too, in an environment of their own: each setting
once on four rows, then the best of each. --profile shows where our own step spends its time.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import marked
import offtheshelf
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tunesmith.data.template import Encoded
from tunesmith.models import causal_lm, methods, packed
from tunesmith.models.layout import MICRO_TOKENS, micro_batches

RESULTS = Path(__file__).parent / "results" / "train.json"
ROWS, RANK = 16, 16
OTHERS_REPEATS = 2  # rounds in which the trainers of other projects take part: a step of theirs can take a minute
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


def useful_flops(shape: str, rows: Sequence[Encoded]) -> float:
    """Of the matrix products that a step cannot do without: the frozen weights forward and backward (no gradient of their own) at every
    distinct position, the head at supervised ones. Attention and the adapter are left out."""
    s = SHAPES[shape]
    d, kv = s["hidden_size"], s["hidden_size"] * s["num_key_value_heads"] // s["num_attention_heads"]
    weights = s["num_hidden_layers"] * (2 * d * d + 2 * d * kv + 3 * d * s["intermediate_size"])
    positions = len(packed.pack([r.ids for r in rows]).ids_T)
    return 4.0 * weights * positions + 4.0 * d * s["vocab_size"] * sum(r.n_completion for r in rows)


def matrix_ceiling(shape: str) -> float:
    """GFLOP/s of this machine, now, for the shape's widest product."""
    d, hidden = SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    x, w = torch.randn(2048, d), torch.randn(2 * hidden, d)
    best = min(_matrix_seconds(x, w) for _ in range(20))
    return 2 * 2048 * d * 2 * hidden / best / 1e9


def _matrix_seconds(x: torch.Tensor, w: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.mm(x, w.T)
    return time.perf_counter() - began


def table_md(found: list[dict[str, Any]], threads: int) -> str:
    head = ["shape", "work", "ours, ms a row", "fair peer, ms a row (its micro-batch)", "times (range)", "best TRL",
            "best transformers Trainer", "utilisation"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for f in found:
        low, high = f["spread"]
        beside = " | ".join(_other(f.get("others", {}).get(t)) for t in ("trl", "hf"))
        lines.append(
            f"| {f['shape']} | ({f['work']}) | {f['ours_ms_per_row']:.0f} | {f['peer_ms_per_row']:.0f} ({f['peer_micro_batch']}) "
            f"| **{f['ratio']:.2f}** ({low:.2f} to {high:.2f}) | {beside} | {f['utilisation']:.2f} of {f['probe_gflops']:.0f} GFLOP/s |"
        )
    return "\n".join([*lines, "", f"{threads} threads, torch {torch.__version__}, float32.", ""])


def _other(told: dict[str, Any] | None) -> str:
    return f"{told['ms_per_row']:.0f} ({told['setting']}): **{told['ratio']:.1f}** times" if told else "not run"


def known_sweep(shape: str, work: str) -> list[dict[str, Any]]:
    """What an earlier run recorded; take the file away to sweep again."""
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    return next((r.get("swept", []) for r in runs if (r["shape"], r["work"]) == (shape, work)), [])


def compare(shape: str, work: str, repeats: int, python: str) -> dict[str, Any]:
    rows = rows_of(work)
    plain = [{"ids": r.ids, "n_prompt": r.n_prompt} for r in rows]
    config, threads = {**SHAPES[shape], "max_position_embeddings": 2048, "tie_word_embeddings": True}, torch.get_num_threads()
    swept = (known_sweep(shape, work) or offtheshelf.sweep(python, config, plain, RANK, threads)) if python else []
    sweep = {}
    for micro in (2, 4, 8, 16):
        step = fair_peer(shape, micro)
        step(rows[:2])
        sweep[micro] = min(seconds(step, rows) for _ in range(2))
    best = min(sweep, key=lambda m: sweep[m])
    peer, mine = fair_peer(shape, best), ours(shape)
    peer(rows), mine(rows)
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        work_of_step = {"config": config, "rank": RANK, "rows": plain, "rows_per_step": ROWS}
        others = [offtheshelf.Peer(python, work_of_step, s, threads, Path(folder)) for s in offtheshelf.best(swept)]
        of_others: list[list[float]] = [[] for _ in others]
        for round_ in range(repeats):
            times["peer"].append(seconds(peer, rows))
            times["ours"].append(seconds(mine, rows))
            if round_ < OTHERS_REPEATS:
                for other, told in zip(others, of_others, strict=True):
                    told.append(ROWS * other.step())
        memory = [other.close() for other in others]
    ratios = [p / o for p, o in zip(times["peer"], times["ours"], strict=True)]
    probe, ours_s, peer_s = matrix_ceiling(shape), statistics.median(times["ours"]), statistics.median(times["peer"])
    found = {
        "shape": shape, "work": work, "ours_ms_per_row": 1000 * ours_s / ROWS, "peer_ms_per_row": 1000 * peer_s / ROWS,
        "peer_micro_batch": best, "ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)],
        "probe_gflops": probe, "utilisation": useful_flops(shape, rows) / ours_s / 1e9 / probe,
    }  # fmt: skip
    found["swept"] = swept
    found["others"] = {
        other.setting.trainer: {
            "setting": str(other.setting), "ms_per_row": 1000 * statistics.median(told) / ROWS,
            "ratio": statistics.median(t / o for t, o in zip(told, times["ours"], strict=False)), "told": used,
        }
        for other, told, used in zip(others, of_others, memory, strict=True)
    }  # fmt: skip
    print(table_md([found], torch.get_num_threads()), flush=True)
    return found


def profile(shape: str, work: str) -> None:
    """Where the time of one step of ours goes, by operator."""
    rows, step = rows_of(work), ours(shape)
    step(rows)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(rows)
    print(shape, work)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--work", nargs="+", default=["a", "b"], choices=["a", "b"])
    parser.add_argument("--peers", default="", help="Python of the environment with requirements.txt; without it they are left out")
    parser.add_argument("--profile", action="store_true", help="show where the time of our step goes, and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.profile:
        for shape in args.shapes:
            for work in args.work:
                profile(shape, work)
        return
    found = [compare(shape, work, args.repeats, args.peers) for shape in args.shapes for work in args.work]
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": args.threads, "runs": found}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    marked.write("performance.md", {"train": table_md(found, args.threads)})


if __name__ == "__main__":
    main()

"""Training steps of LoRA, ours against the fair peer, interleaved in one run: ratios of medians.

    python benchmarks/train.py [--threads 2] [--repeats 5] [--shapes 15M 135M] [--work a b]
                               [--peers .venv-peers/bin/python]

The fair peer is the same PEFT model with PEFT's own layers, rows padded, the head on completion
positions only, at its best micro-batch of 2, 4, 8 and 16 rows (2 and 4 at 360M), found first. Both
take the same 16 rows an optimizer step, rank 16 on all linear layers, float32, AdamW. Work (a): 300
tokens that all rows share, then 30 to 120, and 2 to 10 to learn. (b): prompts of 50 to 600 tokens
with a long tail, and 20 to 200 to learn. With --peers, TRL and transformers' Trainer take turns
with them too, in an environment of their own: each setting once on four rows, then the best of
each. --profile shows where our own step spends its time.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import marked
import torch
from offtheshelf import Peer, Setting, by_trainer, sweep
from sides import Side
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tunesmith.data.template import Encoded
from tunesmith.models import packed

ROWS, RANK = 16, 16
MICRO_BATCHES = {
    "15M": (2, 4, 8, 16),
    "135M": (2, 4, 8, 16),
    "360M": (2, 4),
}  # at 135M, 2 won; 16 rows of 360M are killed for memory
# rounds in which the trainers of other projects take part: a step of theirs can take a minute
OTHERS_REPEATS = 2
SHAPES: dict[str, dict[str, int]] = {
    "15M": dict(
        vocab_size=32_000,
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
    ),
    "135M": dict(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "360M": dict(
        vocab_size=49_152,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
    ),
}


def config_of(shape: str) -> dict[str, Any]:
    return {**SHAPES[shape], "max_position_embeddings": 2048, "tie_word_embeddings": True}


def model_of(shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**config_of(shape))).eval()


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
            share = (
                float(torch.rand((), generator=generator)) ** 3
            )  # many short rows, a few long ones
            prompt, completion = (
                ids(50 + int(550 * share)),
                ids(20 + int(180 * float(torch.rand((), generator=generator)) ** 2)),
            )
        rows.append(Encoded(prompt + completion, len(prompt)))
    return rows


def useful_flops(shape: str, rows: Sequence[Encoded]) -> float:
    """Of the matrix products that a step cannot do without: the frozen weights forward and backward
    (no gradient of their own) at every distinct position, the head at supervised ones. Attention
    and the adapter are left out."""
    s = SHAPES[shape]
    d, kv = (
        s["hidden_size"],
        s["hidden_size"] * s["num_key_value_heads"] // s["num_attention_heads"],
    )
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


def known_sweep(shape: str, work: str) -> list[dict[str, Any]]:
    """What an earlier run recorded; `--sweep` sweeps again."""
    swept: list[dict[str, Any]] = (
        marked.results().get("sweeps", {"found": {}})["found"].get(f"{shape} {work}", [])
    )
    return swept


def best_micro_batch(
    told: dict[str, Any], shape: str, threads: int
) -> tuple[int, dict[int, float]]:
    """Of the fair peer, in a process of its own each: the larger ones may need more memory than
    there is."""
    found = {}
    for micro in MICRO_BATCHES[shape]:
        with Peer("", told, Setting("fair"), threads) as fair:
            try:
                fair.step(2, 2)
                found[micro] = min(
                    fair.step(min(ROWS, 2 * micro), micro)
                    for _ in range(2 if shape == "15M" else 1)
                )
            except RuntimeError:
                break
    return min(found, key=lambda m: found[m]), found


@dataclass(frozen=True)
class Turns:
    """What a side and ours took, in turns, and what the side said of itself at its end."""

    setting: str
    theirs: list[float]
    ours: list[float]
    told: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        ratios = [t / o for t, o in zip(self.theirs, self.ours, strict=True)]
        return {
            "ms_per_row": 1000 * statistics.median(self.theirs),
            "ratio": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "memory_mb": self.told["memory_mb"],
            "setting": self.setting,
            "told": self.told,
        }


def in_turns(
    mine: Peer,
    order: Sequence[Setting],
    repeats: int,
    args: argparse.Namespace,
    told: dict[str, Any],
    *how: int,
) -> Turns | None:
    """The fastest setting that lives through it, alone with ours in memory: what is fast on four
    rows may need too much for sixteen."""
    for setting in order:
        try:
            with Peer(args.peers, told, setting, args.threads) as other:
                other.step(*how)
                pairs = [(other.step(*how), mine.step()) for _ in range(repeats)]
                theirs, ours = (list(side) for side in zip(*pairs, strict=True))
                return Turns(str(setting), theirs, ours, other.close())
        except (RuntimeError, BrokenPipeError) as e:
            print(f"  {setting}: {e}", flush=True)
    return None


def compare(shape: str, work: str, args: argparse.Namespace) -> dict[str, Any]:
    """Ours takes turns with the fair peer, then with the best setting of each of the others that
    are at hand."""
    rows = rows_of(work)
    told = {
        "config": config_of(shape),
        "rank": RANK,
        "rows": [{"ids": r.ids, "n_prompt": r.n_prompt} for r in rows],
        "rows_per_step": ROWS,
    }
    swept = [] if args.sweep else known_sweep(shape, work)
    if args.peers and not swept:
        before = (
            [Setting(**f["setting"]) for f in known_sweep("15M", work)] if shape != "15M" else []
        )  # what won there comes first
        swept = sweep(args.peers, told, args.threads, before)
        marked.record(
            "sweeps",
            {**marked.results().get("sweeps", {"found": {}})["found"], f"{shape} {work}": swept},
        )
    micro, by_micro = best_micro_batch(told, shape, args.threads)
    others = by_trainer(swept) if args.peers else {}
    if args.compiled:
        others["compiled"] = [Setting("compiled")]
    with Peer("", told, Setting("ours"), args.threads) as mine:
        mine.step()
        fair = in_turns(mine, [Setting("fair")], args.repeats, args, told, ROWS, micro)
        assert fair, "the fair peer lived through its sweep, and not through its turns"
        found_of = {
            t: in_turns(mine, order, min(args.repeats, OTHERS_REPEATS), args, told)
            for t, order in others.items()
        }
        told_by_mine = mine.close()
    turns = [fair, *(t for t in found_of.values() if t)]
    ours_s = statistics.median(s for t in turns for s in t.ours)
    probe = matrix_ceiling(shape)
    found = {
        "work": work,
        "shape": shape,
        "threads": args.threads,
        "ours": {
            "ms_per_row": 1000 * ours_s,
            "memory_mb": told_by_mine["memory_mb"],
            "told": told_by_mine,
        },
        "fair_peer": {**fair.facts(), "setting": f"{micro} rows", "by_micro_batch": by_micro},
        "others": {name: t.facts() for name, t in found_of.items() if t},
        "probe_gflops": probe,
        "utilisation": useful_flops(shape, rows) / (ROWS * ours_s) / 1e9 / probe,
    }
    print(table_md([found]), flush=True)
    return found


def table_md(found: Sequence[dict[str, Any]]) -> str:
    head = [
        "shape",
        "work",
        "ours, ms a row",
        "fair peer, ms a row (its micro-batch)",
        "times (range)",
        "best TRL",
        "best transformers Trainer",
        "peak memory: ours, fair peer, TRL, Trainer",
        "utilisation",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for f in found:
        fair, others = f["fair_peer"], f["others"]
        sides = [f["ours"], fair, *(others[t] for t in ("trl", "hf") if t in others)]
        memory = ", ".join(f"{side['memory_mb'] / 1000:.1f}" for side in sides)
        lines.append(
            f"| {f['shape']} | ({f['work']}) | {f['ours']['ms_per_row']:.0f} | "
            f"{fair['ms_per_row']:.0f} ({fair['setting']}) "
            f"| **{fair['ratio']:.2f}** ({fair['spread'][0]:.2f} to {fair['spread'][1]:.2f}) "
            f"| {' | '.join(_other(others.get(t)) for t in ('trl', 'hf'))} "
            f"| {memory} GB "
            f"| {f['utilisation']:.2f} of {f['probe_gflops']:.0f} GFLOP/s |"
        )
    threads = sorted({f["threads"] for f in found})
    return "\n".join(
        [
            *lines,
            "",
            f"{marked.machine()}; {threads[0]} threads, torch {torch.__version__}, float32.",
            "",
        ]
    )


def _other(told: dict[str, Any] | None) -> str:
    return (
        f"{told['ms_per_row']:.0f} ({told['setting']}): **{told['ratio']:.1f}** times"
        if told
        else "not run"
    )


def profile(shape: str, work: str) -> None:
    """Where the time of one step of ours goes, by operator."""
    rows = [{"ids": r.ids, "n_prompt": r.n_prompt} for r in rows_of(work)]
    side = Side(
        {"config": config_of(shape), "rank": RANK, "rows": rows, "rows_per_step": ROWS}, "ours"
    )
    side.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        side.step()
    print(shape, work)
    print(
        seen.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=["15M", "135M"], choices=list(SHAPES))
    parser.add_argument("--work", nargs="+", default=["a", "b"], choices=["a", "b"])
    parser.add_argument(
        "--peers",
        default="",
        help="Python of the environment with requirements.txt; without it they are left out",
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="ours with torch.compile beside it; prints, records nothing",
    )
    parser.add_argument("--sweep", action="store_true", help="sweep the peers' settings again")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="show where the time of our step goes, and nothing else",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for shape in args.shapes:
        for work in args.work:
            if args.profile:
                profile(shape, work)
                continue
            new = compare(shape, work, args)
            if args.compiled:
                print(
                    f"ours compiled: {new['others']['compiled']['ratio']:.2f} times the time of "
                    f"ours"
                )
                continue
            before = marked.results().get("train", {"found": []})["found"]
            kept = [f for f in before if (f["shape"], f["work"]) != (shape, work)]
            marked.record(
                "train",
                sorted([*kept, new], key=lambda f: (list(SHAPES).index(f["shape"]), f["work"])),
            )
    if not args.profile and not args.compiled:
        marked.write("performance.md", {"train": table_md(marked.results()["train"]["found"])})


if __name__ == "__main__":
    main()

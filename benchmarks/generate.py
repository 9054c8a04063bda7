"""Answers to a column, ours against the best use of transformers' generate, interleaved in one run:
ratios of medians.

    python benchmarks/generate.py [--threads 2] [--repeats 3] [--shapes 15M 135M]

Work (a): 300 tokens that all prompts share, then 30 to 120, 8 new tokens, greedy, float32, a whole
model (as after merging). The peer sorts the prompts by length and takes the best batch of 8, 16, 32
and 64, found first. Answers that differ are counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import marked
import torch
from train import SHAPES, model_of

from tunesmith import catalog
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import packed, prepacked, trim

ROWS, NEW = 64, 8
Answers = list[list[int]]


def column(encoder: Encoder) -> list[list[dict[str, str]]]:
    """Prompts of about the asked lengths in the bundled base's tokens."""
    generator = torch.Generator().manual_seed(2)

    def words(n: int) -> str:
        return encoder.decode(torch.randint(300, 4000, (n,), generator=generator).tolist())

    shared = words(300)
    return [
        [
            {
                "role": "user",
                "content": shared + words(int(torch.randint(30, 121, (), generator=generator))),
            }
        ]
        for _ in range(ROWS)
    ]


def peer(model: Any, prompts: Answers, batch: int) -> Callable[[], Answers]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))

    def answer() -> Answers:
        found: Answers = [[]] * len(prompts)
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            longest = max(len(prompts[i]) for i in rows)
            ids, mask = (
                torch.zeros(len(rows), longest, dtype=torch.long),
                torch.zeros(len(rows), longest, dtype=torch.long),
            )
            for b, i in enumerate(rows):
                ids[b, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[b, longest - len(prompts[i]) :] = 1
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                use_cache=True,
            )
            for b, i in enumerate(rows):
                found[i] = out[b, longest:].tolist()
        return found

    return answer


def timed(answer: Callable[[], Answers]) -> tuple[float, Answers]:
    began = time.perf_counter()
    found = answer()
    return time.perf_counter() - began, found


@torch.inference_mode()
def compare(shape: str, repeats: int) -> dict[str, Any]:
    base = Path(catalog.find("tunesmith-tiny", Path()).folder)
    encoder = Encoder(PromptTemplate.of_base(base), base)
    model = model_of(shape)
    model.generation_config.eos_token_id = None
    same = model_of(shape)
    packed.enable(same)
    trim.enable(same)
    prepacked.enable(same)
    engine = Engine(same, encoder, shape, 2048)
    asked = column(encoder)
    prompts = [encoder.prompt(m) for m in asked]

    def ours() -> Answers:
        return [list(c.ids) for c in engine.generate(asked, Sampling(max_tokens=NEW))]

    sweep = {n: timed(peer(model, prompts, n))[0] for n in (8, 16, 32, 64)}
    best = min(sweep, key=lambda n: sweep[n])
    theirs = peer(model, prompts, best)
    times: dict[str, list[float]] = {"peer": [], "ours": []}
    timed(ours)
    for _ in range(repeats):
        (peer_s, wanted), (ours_s, found) = timed(theirs), timed(ours)
        times["peer"].append(peer_s)
        times["ours"].append(ours_s)
    ratios = [p / o for p, o in zip(times["peer"], times["ours"], strict=True)]
    result = {
        "shape": shape,
        "ours_rows_per_s": ROWS / statistics.median(times["ours"]),
        "peer_rows_per_s": ROWS / statistics.median(times["peer"]),
        "peer_batch": best,
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "different": sum(a[: len(b)] != b for a, b in zip(wanted, found, strict=True)),
    }
    print(table_md([result], torch.get_num_threads()), flush=True)
    return result


def table_md(found: list[dict[str, Any]], threads: int) -> str:
    lines = [
        "| shape | ours, rows a second | generate, best batch | times (range) | answers that "
        "differ |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['shape']} | {f['ours_rows_per_s']:.1f} | {f['peer_rows_per_s']:.1f} "
        f"({f['peer_batch']} rows) "
        f"| **{f['ratio']:.2f}** ({f['spread'][0]:.2f} to {f['spread'][1]:.2f}) | "
        f"{f['different']} of {ROWS} |"
        for f in found
    ]
    return "\n".join([*lines, "", f"{threads} threads, torch {torch.__version__}, float32.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=["15M"], choices=list(SHAPES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [compare(shape, args.repeats) for shape in args.shapes]
    marked.record("generate", found)
    marked.write("performance.md", {"generate": table_md(found, args.threads)})


if __name__ == "__main__":
    main()

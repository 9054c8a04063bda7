"""Load a tuned model with transformers and PEFT alone, and compare its greedy answers with
COMPLETE's on 20 prompts.

    python examples/plain_libraries.py support_router --database demo.duckdb

Exits 1 where an answer differs, unless the two best logits were closer than 1e-4 somewhere in it
(counted and printed).
"""

import argparse
import json
import sys
from pathlib import Path

import duckdb
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith import Tunesmith

TIE = 1e-4


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--database", default="demo.duckdb")
    p.add_argument("--query", default="SELECT message FROM tickets WHERE split = 'test' LIMIT 20")
    p.add_argument("--max-tokens", type=int, default=16)
    args = p.parse_args()
    with duckdb.connect(args.database, read_only=True) as connection:
        prompts = [row[0] for row in connection.execute(args.query).fetchall()]
    service = Tunesmith()
    answers = [c.text for c in service.complete(args.model, prompts, max_tokens=args.max_tokens)]

    # From here on Tunesmith is only asked where the files are.
    tuned = service.model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(tuned.base.folder)
    model = load(Path(tuned.folder), tuned.base.folder).eval()
    stops = json.loads((Path(tuned.folder) / "prompt_template.json").read_text())["stop_ids"]
    different = ties = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        text, gap = generate(model, tokenizer, prompt, stops, args.max_tokens)
        ties += gap < TIE
        if text != answer and gap >= TIE:
            different += 1
            print(f"{prompt!r}: COMPLETE {answer!r}, plain libraries {text!r}", file=sys.stderr)
    print(
        f"{args.model} ({tuned.method}): {len(prompts) - different} of {len(prompts)} greedy "
        f"answers equal, {ties} with a tie under {TIE}"
    )
    sys.exit(bool(different))


def load(folder: Path, base: str) -> torch.nn.Module:
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from peft import PeftModel

    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
    )


def generate(
    model: torch.nn.Module, tokenizer: AutoTokenizer, prompt: str, stops: list[int], max_tokens: int
) -> tuple[str, float]:
    """The library's own greedy answer, and how close its closest choice was."""
    messages = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(
        **asked,
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=stops,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [s[0].topk(2).values for s in out.logits]
    text = tokenizer.decode(
        out.sequences[0, asked["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text, min(float(b[0] - b[1]) for b in best)


if __name__ == "__main__":
    main()

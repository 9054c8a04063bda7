"""Pretrain a small Llama on any text, by the wall clock.

    python scripts/pretrain.py --prose prose.parquet --tasks tasks.parquet --out base/ --minutes 20

`--prose` holds running text (a column `text`), `--tasks` rows of `prompt` and `completion`; both
may be Parquet, CSV or JSON lines, several files each. The script trains a byte-level BPE, packs
both sources into rows of `--context` tokens (joined to `--positions` tokens in the last part),
mixes more and more tasks in towards the end, and lets the learning rate fall to zero exactly when
the minutes are over. State is saved every `--save-minutes`; the same command goes on from there.
The result is an ordinary Hugging Face folder (safetensors, float16) with `pretraining.json` beside
the weights: what was read, how fast, and the held-out loss in bits per byte.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import duckdb
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD, SYSTEM, USER, ASSISTANT = range(5)
SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
STAGES = (
    (64, 12),
    (128, 32),
    (256, 64),
)  # copying alone: length of a row, longest stretch; on to the next when the loss is below COPIED
COPIED = 2.0
HELD_OUT = 200  # the last rows of each source are never trained on


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    state = Path(args.state or f"{out}.state")
    state.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)

    prose, tasks = read_sources(args)
    if args.start:
        shutil.copy(Path(args.start) / "tokenizer.json", state / "tokenizer.json")
    tokenizer = trained_tokenizer(state / "tokenizer.json", prose, tasks, args.vocabulary)
    streams = {
        "prose": packed(
            state / "prose.npy", tokenizer, [(p,) for p in prose[:-HELD_OUT]], args.context
        ),
        "tasks": packed(state / "tasks.npy", tokenizer, tasks[:-HELD_OUT], args.context),
    }
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(architecture(args))
        initialise(model)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters, "
        + ", ".join(f"{k} {v.size:,} tokens" for k, v in streams.items()),
        flush=True,
    )

    curve, tokens = pretrain(model, streams, args, state)
    held_out = {
        "prose": bits_per_byte(model, tokenizer, [(p,) for p in prose[-HELD_OUT:]], args.context),
        "tasks": bits_per_byte(model, tokenizer, tasks[-HELD_OUT:], args.context),
    }
    earlier = (
        json.loads((Path(args.start) / "pretraining.json").read_text()) if args.start else None
    )
    facts = {
        "parameters": parameters,
        "tokens": tokens,
        "minutes": args.minutes,
        "peak_learning_rate": args.rate,
        "weight_decay": args.weight_decay,
        "context": args.context,
        "seed": args.seed,
        "held_out_bits_per_byte": held_out,
        "curve": curve,
        "bytes_per_token": {
            "prose": bytes_per_token(tokenizer, prose[:500]),
            "tasks": bytes_per_token(tokenizer, [p + c for p, c in tasks[:500]]),
        },
        "copies": args.copies,
        "began_with": earlier,
        "copied": copied(model, streams["tasks"]),
        "sources": [Path(f).name for f in args.prose + args.tasks],
    }
    save(model, tokenizer, args, out, facts)
    print(json.dumps({k: v for k, v in facts.items() if k != "curve"}, indent=1))


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--prose", nargs="+", required=True)
    p.add_argument("--tasks", nargs="+", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--state", help="resumable state; default: OUT.state")
    p.add_argument("--minutes", type=float, default=90.0)
    p.add_argument("--save-minutes", type=float, default=10.0)
    p.add_argument("--vocabulary", type=int, default=4096)
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--layers", type=int, default=5)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--hidden", type=int, default=640)
    p.add_argument("--context", type=int, default=512, help="length of a packed training row")
    p.add_argument(
        "--positions",
        type=int,
        default=1024,
        help="longest input that the base declares: rows of the last part",
    )
    p.add_argument(
        "--long-from",
        type=float,
        default=0.75,
        help="share of the time after which rows are `positions` long",
    )
    p.add_argument(
        "--copies-first",
        type=float,
        default=0.2,
        help="share of the time, at the start, for copying alone, at most",
    )
    p.add_argument(
        "--copies",
        type=float,
        default=0.125,
        help="share of the rows that go on repeating random tokens",
    )
    p.add_argument(
        "--start",
        help="folder of an earlier result, whose weights and tokenizer this run begins with",
    )
    p.add_argument("--batch", type=int, default=8, help="packed rows per step")
    p.add_argument("--rate", type=float, default=3e-3, help="peak AdamW rate (embeddings, norms)")
    p.add_argument("--matrix-rate", type=float, default=0.02, help="peak Muon rate (matrices)")
    p.add_argument(
        "--weight-decay",
        type=float,
        default=0.1,
        help="decoupled, for matrices and embeddings; without it Muon's weights grow "
        "until attention saturates, and a saturated base hardly learns when it is tuned",
    )
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


# ---------------------------------------------------------------- text


def read_sources(args: argparse.Namespace) -> tuple[list[str], list[tuple[str, str]]]:
    con = duckdb.connect()
    prose = [r[0] for f in args.prose for r in con.sql(f"SELECT text FROM '{f}'").fetchall()]
    tasks = [
        r for f in args.tasks for r in con.sql(f"SELECT prompt, completion FROM '{f}'").fetchall()
    ]
    con.close()
    generator = np.random.default_rng(args.seed)
    return [prose[i] for i in generator.permutation(len(prose))], [
        tasks[i] for i in generator.permutation(len(tasks))
    ]


def trained_tokenizer(
    path: Path, prose: list[str], tasks: list[tuple[str, str]], vocabulary: int
) -> Tokenizer:
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prose[::4] + [f"{p}\n{c}" for p, c in tasks[::4]], trainer)
    tokenizer.save(str(path))
    return tokenizer


def token_ids(tokenizer: Tokenizer, documents: list[tuple[str, ...]]) -> list[list[int]]:
    """One list of ids per document: text and <|end|>, or the chat form of a prompt and its
    completion."""
    parts = [
        tokenizer.encode_batch([d[i] for d in documents], add_special_tokens=False)
        for i in range(len(documents[0]))
    ]
    if len(parts) == 1:
        return [[*e.ids, END] for e in parts[0]]
    return [[USER, *p.ids, END, ASSISTANT, *c.ids, END] for p, c in zip(*parts, strict=True)]


def packed(
    path: Path, tokenizer: Tokenizer, documents: list[tuple[str, ...]], context: int
) -> np.ndarray:
    if not path.exists():
        ids = np.concatenate([np.asarray(i, np.uint16) for i in token_ids(tokenizer, documents)])
        np.save(path, ids[: len(ids) // context * context].reshape(-1, context))
    return np.load(path)


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    ids = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
    return round(sum(len(t.encode()) for t in texts) / ids, 3)


# ---------------------------------------------------------------- model and optimizer


def architecture(args: argparse.Namespace) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=args.positions,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )


def initialise(model: LlamaForCausalLM) -> None:
    """Matrices that write into the residual stream start at zero: every block starts as the
    identity."""
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix (Jordan et al. 2024, quintic Newton-Schulz), in
    float32: torch's own works in bfloat16, which a processor without AVX-512 computes six hundred
    times slower."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        xx = x @ x.T
        x = a * x + (b * xx + c * xx @ xx) @ x
    return x.T if g.shape[0] > g.shape[1] else x


# ---------------------------------------------------------------- the loop


def pretrain(
    model: LlamaForCausalLM, streams: dict[str, np.ndarray], args: argparse.Namespace, state: Path
) -> tuple[list, int]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    decayed = [
        {"params": [p for p in rest if p.ndim == 2]},
        {"params": [p for p in rest if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizers = [
        Muon(matrices, args.matrix_rate, args.weight_decay),
        torch.optim.AdamW(
            decayed, args.rate, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True
        ),
    ]
    for group in (g for o in optimizers for g in o.param_groups):
        group["peak"] = group["lr"]
    progress = restore(model, optimizers, state)
    groups = [
        g for o in optimizers for g in o.param_groups
    ]  # not before: what is restored are new ones
    step, tokens, stage, used, curve = (
        progress[k] for k in ("step", "tokens", "stage", "used", "curve")
    )
    started = saved = time.monotonic() - used
    saved += used
    losses: list[float] = []
    while (fraction := (time.monotonic() - started) / (60 * args.minutes)) < 1:
        stage = len(STAGES) if fraction > args.copies_first else stage
        batch, labels = rows_of_step(streams, step, fraction, stage, args)
        for group in groups:
            group["lr"] = group["peak"] * schedule(fraction)
        loss = model(input_ids=batch, labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if stage < len(STAGES) and len(losses) >= 25 and sum(losses[-25:]) / 25 < COPIED:
            stage, losses = stage + 1, []
        tokens += batch.numel()
        step += 1
        if step % 50 == 0:
            mean = sum(losses[-50:]) / max(1, len(losses[-50:]))
            seconds = time.monotonic() - started
            curve.append({"step": step, "seconds": round(seconds), "loss": round(mean, 4)})
            rate = tokens / seconds
            copy = copied(model, streams["tasks"])
            print(
                f"step {step}  loss {mean:.3f}  copied {copy:.1%}  {rate:,.0f} tokens/s  "
                f"{100 * fraction:.0f} %",
                flush=True,
            )
        if time.monotonic() - saved > 60 * args.save_minutes:
            saved = time.monotonic()
            keep(
                model,
                optimizers,
                state,
                {
                    "step": step,
                    "tokens": tokens,
                    "stage": stage,
                    "used": saved - started,
                    "curve": curve,
                },
            )
    return curve, tokens


def schedule(fraction: float) -> float:
    """Up over the first 2 %, level, then linearly to zero over the last half."""
    return min(1.0, fraction / 0.02 + 0.02, 2 * (1 - fraction))


def rows_of_step(
    streams: dict[str, np.ndarray], step: int, fraction: float, stage: int, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of a step: short rows of copies at first, then `batch` rows of `context`,
    later fewer rows of `positions`."""
    generator = np.random.default_rng([args.seed, step])
    if stage < len(STAGES):
        ids, labels = copy_rows(16, *STAGES[stage], streams["tasks"], generator)
        return torch.from_numpy(ids), torch.from_numpy(labels)
    joined = args.positions // args.context if fraction > args.long_from else 1
    count = args.batch // joined
    copies = round(count * args.copies)
    tasks = round((count - copies) * (0.35 + 0.45 * fraction))
    rows = []
    for name, n in (("tasks", tasks), ("prose", count - copies - tasks)):
        picked = np.random.default_rng([args.seed, step, len(name), n])
        stream = streams[name][: len(streams[name]) // joined * joined].reshape(
            -1, args.context * joined
        )
        rows.append(stream[picked.integers(0, len(stream), n)].astype(np.int64))
    ids, labels = copy_rows(copies, args.context * joined, 128, streams["tasks"], generator)
    return torch.from_numpy(np.concatenate([*rows, ids])), torch.from_numpy(
        np.concatenate([*rows, labels])
    )


def copy_rows(
    n: int, length: int, reach: int, stream: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of random tokens, each stretch of 2 to `reach` said twice or three times; only what was
    said before is a target.

    What comes next can be told from nothing but where the same tokens stood before. Text alone
    teaches that very late to a model this small (Olsson et al. 2022, arXiv 2209.11895), and a model
    that cannot copy a name cannot fill a slot.
    """
    ids = np.empty((n, length), np.int64)
    labels = np.full((n, length), -100, np.int64)
    common = stream.reshape(-1)
    for row in range(n):
        at = 0
        while at < length:
            size, times = int(generator.integers(2, reach + 1)), int(generator.integers(2, 4))
            some = (
                common[generator.integers(0, len(common), size)]
                if generator.random() < 0.5
                else generator.integers(5, common.max() + 1, size)
            )
            said = np.tile(some.astype(np.int64), times)[: length - at]
            ids[row, at : at + len(said)] = said
            labels[row, at + size : at + len(said)] = said[size:]
            at += len(said)
    return ids, labels


def keep(model: nn.Module, optimizers: list, state: Path, progress: dict) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for n, o in enumerate(optimizers):
        for i, s in o.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{i}.{k}": v for k, v in s.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, state / "state.tmp")
    os.replace(state / "state.tmp", state / "state.safetensors")
    (state / "progress.json").write_text(json.dumps(progress))


def restore(model: nn.Module, optimizers: list, state: Path) -> dict:
    if not (state / "progress.json").exists():
        return {"step": 0, "tokens": 0, "stage": 0, "used": 0.0, "curve": []}
    tensors = load_file(state / "state.safetensors")
    model.load_state_dict(
        {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False
    )
    for n, o in enumerate(optimizers):
        loaded = o.state_dict()
        for k, v in tensors.items():
            if k.startswith(f"optimizer.{n}."):
                _, _, i, name = k.split(".")
                loaded["state"].setdefault(int(i), {})[name] = v
        o.load_state_dict(loaded)
    return json.loads((state / "progress.json").read_text())


@torch.no_grad()
def copied(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    """Share of the tokens of random stretches, said a second time, that the model gives as the most
    likely next one."""
    ids, labels = (
        torch.from_numpy(x) for x in copy_rows(8, 256, 64, stream, np.random.default_rng(1))
    )
    best = model(ids).logits[:, :-1].argmax(-1)
    wanted = labels[:, 1:]
    return round(float((best == wanted)[wanted != -100].float().mean()), 3)


@torch.no_grad()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: Tokenizer, documents: list[tuple[str, ...]], context: int
) -> float:
    """Bits needed for the documents' last part (all of the text; a task's completion) per byte of
    it."""
    nats, size = 0.0, 0
    for document, ids in zip(documents, token_ids(tokenizer, documents), strict=True):
        target = len(tokenizer.encode(document[-1], add_special_tokens=False).ids)
        for start in range(0, len(ids), context):
            piece = torch.tensor([ids[max(0, start - 1) : start + context]])
            if piece.shape[1] < 2:
                continue
            losses = nn.functional.cross_entropy(
                model(piece).logits[0, :-1], piece[0, 1:], reduction="none"
            )
            if len(document) > 1:  # a task: only its completion, the end mark left out
                first = len(ids) - 1 - target - max(0, start - 1) - 1
                losses = losses[max(0, first) : len(ids) - 1 - max(0, start - 1) - 1]
            nats += losses.sum().item()
        size += len(document[-1].encode())
    return round(nats / math.log(2) / size, 4)


def save(
    model: LlamaForCausalLM, tokenizer: Tokenizer, args: argparse.Namespace, out: Path, facts: dict
) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
        model_max_length=args.positions,
        additional_special_tokens=SPECIAL[SYSTEM:],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    model.to(torch.float16).save_pretrained(out)
    (out / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

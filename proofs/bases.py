"""Every architecture that transformers has for causal language models, tried whole on a tiny random
model of it: what may be tuned and asked, how, and what is refused.

    python proofs/bases.py [NAME ...] [--seconds 120]      without names: all, written to docs/bases.md

Each model is tried in a process of its own, forked from one that has imported everything.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
import zoo
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

from tunesmith import catalog
from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded, Encoder, PromptTemplate
from tunesmith.errors import TunesmithError
from tunesmith.inference import readers
from tunesmith.inference.engine import Engine, Sampling
from tunesmith.models import chunked_loss, loading, methods, packed, trim
from tunesmith.models.adapters import Adapters
from tunesmith.options import Decided, Options
from tunesmith.tasks import specs, text_generation
from tunesmith.tuning.loop import Run, Training, accumulate, train

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
SHORT, LONG, STEPS = 12, 44, 4
"""Tokens of a row, within every layer's window and beyond it; tokens of an answer."""
EXACT = 1e-10
SMALL = 1e-3
"""Of what other words before it would change: see `models.trial`."""


@dataclass
class Found:
    architecture: str
    packs: bool = False
    why_padded: str = ""
    answers: str = ""
    methods: dict[str, str] = field(default_factory=dict)
    """By method: empty where it holds everything, else what it does not."""
    refused: str = ""
    """By `catalog.find` or at loading: what a user is told."""


def examine(architecture: str, folder: Path) -> Found:
    """The whole way of a base; whatever goes wrong is written down where it does."""
    found = Found(architecture)
    if zoo.has_parts(architecture):
        found.refused = "made of several parts: language models alone are tuned"
        return found
    tiny = zoo.model_of(architecture)
    with torch.no_grad():
        _alone(tiny, [5, 6, 7])  # or the tiny configuration is none that works
    base = zoo.save(tiny, folder / "base")
    try:
        spec = catalog.find(str(base), folder)
        model = loading.load(base, CPU)
    except TunesmithError as e:
        found.refused = str(e.fields.get("reason", e))
        return found
    found.why_padded = packed.why_padded(model, SHORT)
    found.packs = not found.why_padded
    with _told(found.methods, "answers"):
        found.answers = answers(model, base, spec)
    for name in specs.TEXT_GENERATION.methods:
        method = methods.METHODS[name]
        with _told(found.methods, name):
            gradients(architecture, name)
            gradients(architecture, name, LONG)
            keeps(method, base, spec, folder / name)
            resumes(name, base, folder / f"{name}-runs")
    return found


def rewrite(config: Path, **changes: Any) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@contextmanager
def _told(into: dict[str, str], name: str) -> Iterator[None]:
    into[name] = ""
    try:
        yield
    except Exception as e:
        into[name] = _said(e)


def _said(e: Exception) -> str:
    return f"{type(e).__name__}: {e}".splitlines()[0][:300]


# ---------------------------------------------------------------- answers


def rows_of(n: int, *, seed: int = 1) -> list[list[int]]:
    """Rows of up to `n` tokens; the first ones begin alike."""
    generator = torch.Generator().manual_seed(seed)

    def draw(k: int) -> list[int]:
        return torch.randint(5, 300, (k,), generator=generator).tolist()

    shared = draw(max(n - 3, n // 2))
    return [
        shared + draw(n - len(shared)),
        shared + draw(2),
        draw(n // 2),
        shared + draw(1),
        draw(4),
    ]


def answers(model: Any, base: Path, spec: ModelSpec) -> str:
    """Rows of a batch are answered as alone, within windows and beyond, and in pieces as at once."""
    ways = set()
    for n in (SHORT, LONG):
        prompts = rows_of(n)
        reader = readers.reader_for(model, prompts, [None] * len(prompts), None, n + STEPS)
        ways.add(
            {"PackedReader": "packed", "PaddedReader": "held", "WholeReader": "whole"}[
                type(reader).__name__
            ]
        )
        must_be(
            _answer_error(model, prompts) < SMALL, "a row beside others is not answered as alone"
        )
    encoder = Encoder(PromptTemplate.of_base(base), base)
    engine = Engine(model, encoder, "base", spec.context)
    for n, said in enumerate(("hi", "the invoice is late " * 5)):
        messages = [{"role": "user", "content": said}]
        sampling = Sampling(max_tokens=12, temperature=1.0, seed=n)
        [whole], pieces = (
            engine.generate([messages], sampling),
            list(engine.stream(messages, sampling)),
        )
        must_be(
            pieces[-1] == whole and pieces[-1].text.startswith(pieces[0].text),
            "in pieces another answer",
        )
    return " and ".join(sorted(ways))


@torch.inference_mode()
def _answer_error(model: Any, prompts: list[list[int]]) -> float:
    """The largest error of a row's logits, as a share of what other words before it would change."""
    longest = max(map(len, prompts)) + STEPS
    reader: Any = readers.reader_for(model, prompts, [None] * len(prompts), None, longest)
    worst = 0.0
    while reader.waiting:
        cohort, group, logits_BV = reader.read()
        rows = [list(prompts[i]) for i in group]
        for _ in range(STEPS):
            for row, logits in zip(rows, logits_BV, strict=True):
                alone, control = (
                    _alone(model, ids) for ids in (row, [*reversed(row[:-1]), row[-1]])
                )
                worst = max(
                    worst, float((logits - alone).abs().max() / (alone - control).abs().max())
                )
            ids_B = logits_BV.argmax(-1)
            places_B = torch.tensor([len(row) for row in rows])
            rows = [[*row, int(i)] for row, i in zip(rows, ids_B, strict=True)]
            logits_BV = reader.step([cohort], ids_B, places_B)
    return worst


def _alone(model: Any, ids: list[int]) -> Tensor:
    """The logits of a row's last token, by the plain library."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def must_be(held: bool, what: str) -> None:
    if not held:
        raise AssertionError(what)


# ---------------------------------------------------------------- gradients


class Double(TorchFunctionMode):
    """Inside, nothing is rounded to float32: libraries do so for norms and soft-maxes, also in a
    float64 model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_wide, args), **{k: _wide(v) for k, v in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def decided(**values: Any) -> Decided:
    usual = {"max_epochs": 2, "method": "lora", "learning_rate": 1e-2, "batch_size": 2, "rank": 4}
    usual |= {"split_seed": 0, "order_seed": 0}
    return Decided(**{**vars(Options()), **usual, **values})


def gradients(architecture: str, method: str, n: int = SHORT) -> None:
    """Of rows that go through the model together, packed or padded, against those of one row at a
    time through the plain library, in float64."""
    before, chunk = torch.get_default_dtype(), chunked_loss.CHUNK_LOGITS
    torch.set_default_dtype(torch.float64)
    try:
        with Double():
            plain = zoo.model_of(architecture).double().eval()
            ours = zoo.model_of(architecture).double().eval()
            for model in (plain, ours):  # grouped products know no float64
                model.set_experts_implementation("eager")
            packed.enable(ours)
            trim.enable(ours)
            tuned = [prepared(method, model) for model in (plain, ours)]
            rows = [Encoded(ids, max(1, len(ids) // 2)) for ids in rows_of(n)]
            truth = one_by_one(tuned[0], rows)
            for chunk_logits in (chunk, 3 * zoo.VOCABULARY):
                chunked_loss.CHUNK_LOGITS = chunk_logits
                tuned[1].zero_grad(set_to_none=True)
                accumulate(
                    text_generation, tuned[1], [Example(Row(1, "", "", ""), r) for r in rows]
                )
                error = worst(gradients_of(tuned[1]), truth)
                must_be(error < EXACT, f"gradients of rows of {n} tokens are off by {error:.0e}")
    finally:
        torch.set_default_dtype(before)
        chunked_loss.CHUNK_LOGITS = chunk


def prepared(method: str, model: Any) -> Any:
    torch.manual_seed(0)
    tuned = methods.METHODS[method].prepare(model, decided(method=method))
    for p in methods.trained_tensors(tuned).values():
        p.data = p.data.double()
        if not p.any() and method != "full":  # B starts at zero, where A has no gradient to compare
            torch.nn.init.normal_(p, std=0.05)
    return tuned.eval()


def one_by_one(model: Any, rows: list[Encoded]) -> dict[str, Tensor]:
    count = sum(r.n_learnt for r in rows)
    model.zero_grad(set_to_none=True)
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
        targets = torch.tensor(row.ids[row.n_prompt :])
        (
            F.cross_entropy(logits[row.n_prompt - 1 : -1], targets, reduction="sum") / count
        ).backward()
    return gradients_of(model)


def gradients_of(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest relative error of any tensor; one whose true gradient is next to nothing is
    compared on the scale of the others."""
    must_be(found.keys() == truth.keys() and bool(truth), "other tensors have gradients")
    floor = 1e-6 * max(t.norm() for t in truth.values())
    return max(
        float((found[n] - truth[n]).norm() / truth[n].norm().clamp_min(floor)) for n in truth
    )


# ---------------------------------------------------------------- artefacts and resume


def keeps(method: methods.Method, base: Path, spec: ModelSpec, folder: Path) -> None:
    """What was trained answers the same after it was saved: with us, in one batch with others, and
    in the plain libraries."""
    torch.manual_seed(0)
    model = method.prepare(loading.load(base, CPU), decided(method=method.name))
    with torch.no_grad():
        for p in methods.trained_tensors(model).values():
            p.add_(torch.randn_like(p) * 0.1)
        ids = torch.tensor([rows_of(LONG)[0]])
        wanted = model.eval()(input_ids=ids, use_cache=False).logits
        method.save(model, folder, spec)
        is_whole = method.artefact == "whole"
        again = method.attach(loading.load(folder if is_whole else base, CPU), folder).eval()
        untuned = loading.load(base, CPU)(input_ids=ids, use_cache=False).logits
        found = {"saved and loaded": again(input_ids=ids, use_cache=False).logits}
        found["in the plain libraries"] = _plain(base, folder, is_whole)(
            input_ids=ids, use_cache=False
        ).logits
        if method.can_share:
            adapters = Adapters(loading.load(base, CPU))
            adapters.usual = adapters.load(folder)
            found["in one batch with others"] = adapters.model(
                input_ids=ids, use_cache=False
            ).logits
        if method.can_merge:
            merged = method.merge(
                method.attach(loading.load(folder if is_whole else base, CPU), folder)
            )
            found["merged"] = merged.eval()(input_ids=ids, use_cache=False).logits
    scale = (wanted - untuned).abs().max()
    must_be(bool(scale > 0), "training changes no answer")
    for where, logits in found.items():
        error = float((logits - wanted).abs().max() / scale)
        must_be(error < SMALL, f"another answer {where} (off by {error:.0e})")


def _plain(base: Path, folder: Path, is_whole: bool) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder if is_whole else base, dtype=torch.float32)
    return (model if is_whole else PeftModel.from_pretrained(model, folder)).eval()


class Cut(Exception):
    pass


def resumes(method: str, base: Path, folder: Path) -> None:
    """A run that is cut and goes on from its checkpoint ends with the same bits."""

    def run(place: Path, attempt: int, cut_at: int = -1) -> dict[str, Tensor]:
        torch.manual_seed(0)
        chosen = decided(method=method)
        model = methods.METHODS[method].prepare(loading.load(base, CPU), chosen)
        steps = 0

        def report(message: Any) -> None:
            nonlocal steps
            steps += type(message).__name__ == "Stepped"
            if steps == cut_at:
                raise Cut

        rows = [
            Example(Row(i, "", "", ""), Encoded(ids, len(ids) // 2))
            for i, ids in enumerate(rows_of(SHORT), 1)
        ]
        attempts = [place / f"attempt-{n}" for n in range(attempt, 0, -1)]
        train(
            Training(text_generation, model, rows, rows[:1], chosen),
            Run(attempts, place, {"data": "d"}, report),
        )
        return {n: p.detach().clone() for n, p in methods.trained_tensors(model).items()}

    whole = run(folder / "whole", 1)
    try:
        run(folder / "cut", 1, cut_at=4)
    except Cut:
        pass
    resumed = run(folder / "cut", 2)
    must_be(all(torch.equal(whole[n], resumed[n]) for n in whole), "a resumed run ends otherwise")


# ---------------------------------------------------------------- all of them


def apart(architecture: str, seconds: float) -> Found:
    """In a process of its own, with so much time."""
    with tempfile.TemporaryDirectory() as place:
        told = Path(place) / "found.json"
        if (child := os.fork()) == 0:
            try:
                found = examine(architecture, Path(place))
                told.write_text(json.dumps(asdict(found)))
            except BaseException as e:
                told.write_text(json.dumps(asdict(Found(architecture, refused=UNTRIED + _said(e)))))  # type: ignore[arg-type]
            finally:
                os._exit(0)
        end = time.monotonic() + seconds
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Found(architecture, refused=f"{UNTRIED}over {seconds:.0f} s")
            time.sleep(0.02)
        return (
            Found(**json.loads(told.read_text()))
            if told.exists()
            else Found(architecture, refused="its process ended")
        )


def main(run: Callable[[str, float], Found] = apart) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    from tunesmith.models.methods import full, lora  # noqa: F401

    found, begun = [], time.monotonic()
    for name in asked.names or KNOWN:
        found.append(run(name, asked.seconds))
        print(_line(found[-1]), flush=True)
    if not asked.names:
        write(found, (time.monotonic() - begun) / 60)


# ---------------------------------------------------------------- what is written

TABLE = ROOT / "docs" / "bases.md"
LIST = ROOT / "src" / "tunesmith" / "architectures.json"
UNTRIED = "no tiny model of it: "
HEAD = """\
# Bases: which architectures work, and how

Every architecture that transformers {version} has for causal language models, each tried with a tiny
random model of its own configuration class (`make bases`, {minutes:.0f} minutes on one processor
core; models in `proofs/zoo.py`, what is tried in `proofs/bases.py`). **{works} of {every} work whole.**

What is tried: rows beside others are answered as alone, within windows and beyond; in pieces as at
once; gradients of rows that go through the model together equal those of one row at a time through
the plain library to 1e-10 in float64, for `full` and `lora`, also with the head in chunks; a saved
model answers as the trained one, here, merged, and in plain transformers and PEFT; a run that is cut
ends with the same bits.

A base is not trusted for its name: when its weights are loaded, a few tokens show whether it is
causal, whether rows may be packed, and what may be held of them while they are answered. *Packed*
rows cost the least. *Padded* rows give the same and take longer. Answers are written from what is
*held* of the rows before, packed or padded; where a model holds what cannot be held for several rows,
the *whole* row is read again for every token: the same, and slow. LoRA changes the linear layers;
experts that are one tensor stay as they are. What is refused is refused at CREATE.

| Architecture | Training | Answers | |
| --- | --- | --- | --- |
"""


def _line(found: Found) -> str:
    return " | ".join(_cells(found))


def _cells(found: Found) -> list[str]:
    if found.refused.startswith(UNTRIED):
        return [found.architecture, "not tried", "", found.refused]
    if found.refused:
        return [found.architecture, "refused", "", found.refused]
    if wrong := "; ".join(f"{name}: {said}" for name, said in found.methods.items() if said):
        return [found.architecture, "refused", "", wrong]
    told = found.why_padded and f"padded: {found.why_padded}"
    return [found.architecture, "packed" if found.packs else "padded", found.answers, told]


def write(every: list[Found], minutes: float) -> None:
    """The table for people, and the list that CREATE reads."""
    works = [f for f in every if not f.refused and not any(f.methods.values())]
    head = HEAD.format(
        version=transformers.__version__, minutes=minutes, works=len(works), every=len(every)
    )
    TABLE.write_text(head + "".join(f"| {' | '.join(_cells(f))} |\n" for f in every))
    told = {}
    for f in every:
        kind, layout, _, why = f.architecture, *_cells(f)[1:]
        if layout != "not tried":
            told[kind] = layout if f in works else f"refused: {why}"
    LIST.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

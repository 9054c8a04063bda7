"""Hostile bases, tuned models and chat templates: whatever their bytes are, they are refused in
words or harmlessly taken in.

    python proofs/models.py              # every case
    python proofs/models.py --every 12   # each twelfth, spread over all kinds

Each case spoils a fresh copy of a good folder in a forked process and takes it in by the product's
own doors. It is judged by what happened: code that ran leaves a canary, a process that stayed is in
the group, and time, memory, pickles read, programs started and connections are watched. Nothing
here looks at what a file says.
"""

import argparse
import json
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import import_module
from itertools import product
from pathlib import Path
from subprocess import run
from typing import Any

os.environ |= {
    "TOKENIZERS_PARALLELISM": "false",
    "TUNESMITH_THREADS": "1",
    "TUNESMITH_DEVICE": "cpu",
}
os.environ.pop("HF_HUB_OFFLINE", None)  # a user has not set it

sys.path.insert(0, str(Path(__file__).parent))
from forks import InThisProcess
from record import Proof, show_and_save

import tunesmith
from tunesmith import catalog, durable
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import TunesmithError

for name in (
    "tunesmith.service",
    "tunesmith.phases.export",
    "tunesmith.models.methods.lora",
    "tunesmith.models.methods.full",
    "transformers.models.llama.modeling_llama",
):
    import_module(name)  # before the first fork, so that a case costs tenths of a second

SPACE = 6 << 30  # bytes of address space a case may map; the imports alone map 1
GROWTH = 512 << 20  # bytes of memory a case may need beyond what the imports took
SECONDS = 5.0  # of processor time, children included
DEADLINE = 20.0  # seconds on the wall
ASK = [{"role": "user", "content": "say " + "a" * 40 + "!"}]
SECRET = b"a stranger's secret, which lies outside the folder"
Make = Callable[[Path, Path], Any]
"""make(folder, canary): spoil the good copy in `folder`; `canary` is what executed code would
create."""


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    door: str = "base"
    """base, template, import, or start: a program of the product is started while the user stands
    in the folder."""
    whole: bool = False
    """Of an import: the merged model is spoilt, not the adapter."""
    outside: bool = False
    """To accept it would be to read what lies outside the folder."""
    signed: bool = True
    """The stranger writes the manifest anew afterwards, so that it fits."""


@dataclass(frozen=True)
class Outcome:
    kind: str
    """refused, accepted or violation"""
    what: str
    seconds: float = 0.0
    growth: int = 0


# ---------------------------------------------------------------- how folders are spoilt


class Runs:
    """A pickle of it creates a file when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.canary, "w")


def text(name: str, content: str | bytes) -> Make:
    """A file with this content; CANARY in it is the canary's path, SIDE the folder beside the
    case's."""

    def make(folder: Path, canary: Path) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(
            raw.replace(b"CANARY", str(canary).encode()).replace(
                b"SIDE", str(folder.parent / "side").encode()
            )
        )

    return make


def value(name: str, content: Any) -> Make:
    return text(name, json.dumps(content))


def edit(file_name: str, /, **changes: Any) -> Make:
    """Keys of a JSON file set anew; the file is made where it is missing."""

    def make(folder: Path, canary: Path) -> None:
        file = folder / file_name
        known = json.loads(file.read_text()) if file.exists() else {}
        value(file_name, {**known, **changes})(folder, canary)

    return make


def all_of(*makes: Make) -> Make:
    return lambda folder, canary: [m(folder, canary) for m in makes]


def without(*names: str) -> Make:
    return lambda folder, canary: [(folder / n).unlink(missing_ok=True) for n in names]


def moved(old: str, new: str) -> Make:
    def make(folder: Path, canary: Path) -> None:
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)

    return make


def pickled(name: str, form: str = "plain") -> Make:
    """A pickle that runs code, as a plain one or as torch writes it."""

    def make(folder: Path, canary: Path) -> None:
        raw = pickle.dumps(Runs(canary), 0 if form == "old" else 4)
        if form != "torch":
            (folder / name).write_bytes(raw)
            return
        with zipfile.ZipFile(folder / name, "w") as z:
            z.writestr("archive/data.pkl", raw)
            z.writestr("archive/version", "3\n")

    return make


def header(
    entries: Any, data: int = 0, length: int | None = None, name: str = "model.safetensors"
) -> Make:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return text(
        name, (len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data)
    )


def cut(name: str, off: int) -> Make:
    return lambda folder, canary: os.truncate(folder / name, (folder / name).stat().st_size - off)


def borrowed(name: str) -> Make:
    """A file of the good adapter."""
    return lambda folder, canary: shutil.copy(folder.parent / "good" / "adapter" / name, folder)


def sparse(name: str, size: int) -> Make:
    def make(folder: Path, canary: Path) -> None:
        with (folder / name).open("wb") as f:
            f.truncate(size)

    return make


def special(name: str, kind: str) -> Make:
    """In place of a file what is none."""

    def make(folder: Path, canary: Path) -> None:
        file = folder / name
        if file.exists():
            file.unlink()
        match kind:
            case "fifo":
                os.mkfifo(file)
            case "folder":
                file.mkdir()
            case "loop":
                file.symlink_to(name)
            case "hard link":
                file.hardlink_to(folder.parent / "side" / "secret.txt")
            case "no right":
                file.symlink_to("/proc/1/mem")
            case _:
                file.symlink_to(kind.replace("SIDE", str(folder.parent / "side")))

    return make


def nested(depth: int, inside: str = "1", key: str = "") -> str:
    return (f'{{"{key}":' if key else "[") * depth + inside + ("}" if key else "]") * depth


CODE = "open('CANARY', 'w')\nclass Evil: pass\n"
with_code = all_of(
    *(
        text(f, CODE)
        for f in (
            "modeling_evil.py",
            "configuration_evil.py",
            "tokenization_evil.py",
            "processing_evil.py",
            "custom_generate/generate.py",
            "evil.py",
            "__init__.py",
            "evil/__init__.py",
            "hub_kernel/__init__.py",
            "setup.py",
            "evil.pth",
        )
    )
)
MAP = {
    "AutoConfig": "configuration_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", None],
    "AutoProcessor": "processing_evil.Evil",
}


# ---------------------------------------------------------------- the cases


def pickle_cases() -> Iterator[Case]:
    beside = [
        "pytorch_model.bin",
        "adapter_model.bin",
        "model.pkl",
        "model.pickle",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "model.joblib",
        "vectors.npy",
        "arrays.npz",
        "training_args.bin",
        "optimizer.pt",
        "optimizer.bin",
        "scheduler.pt",
        "scaler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "tokenizer.pickle",
        "tokenizer.pkl",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.dill",
        "consolidated.00.pth",
        "trainer_state.pkl",
        "data.mar",
        "model.onnx",
        "tokenizer.model",
        "spiece.model",
        "vocab.json",
        "merges.txt",
        "model.fp32.bin",
        "pytorch_model-00001-of-00002.bin",
        "model.cloudpickle",
        "special_tokens_map.json",
    ]
    for n, file in enumerate(beside):
        yield Case(
            f"pickle {file} beside good weights", pickled(file, ("plain", "old", "torch")[n % 3])
        )
    for file, form in product(
        ("pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl", "adapter_model.bin"),
        ("plain", "torch"),
    ):
        yield Case(
            f"pickle {file} ({form}) alone",
            all_of(without("model.safetensors"), pickled(file, form)),
        )
    for file, form in product(
        (
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
            "adapter_config.json",
        ),
        ("old", "torch"),
    ):
        yield Case(f"pickle ({form}) in place of {file}", pickled(file, form))
    decoy = all_of(
        moved("model.safetensors", "decoy.safetensors"), pickled("pytorch_model.bin", "torch")
    )
    yield Case("pickle pytorch_model.bin with a decoy.safetensors", decoy)
    yield Case(
        "transformers_weights names a pickle",
        all_of(decoy, edit("config.json", transformers_weights="pytorch_model.bin")),
    )
    for target in ("pytorch_model.bin", "../side/evil.bin", "SIDE/evil.bin"):
        index = value(
            "model.safetensors.index.json",
            {"metadata": {}, "weight_map": {"model.embed_tokens.weight": target}},
        )
        yield Case(f"the index names the pickle {target}", all_of(decoy, index))
        index = value(
            "pytorch_model.bin.index.json",
            {"metadata": {}, "weight_map": {"model.embed_tokens.weight": target}},
        )
        yield Case(
            f"pytorch_model.bin.index.json names {target}",
            all_of(decoy, without("pytorch_model.bin"), index),
        )


def code_cases() -> Iterator[Case]:
    """A wish to run code, at every place where a library might fulfil it."""
    wishes: list[dict[str, Any]] = [
        {"auto_map": MAP},
        {"model_type": "evil", "architectures": ["Evil"], "auto_map": MAP},
        {"auto_map": "modeling_evil.Evil"},
        {"auto_map": ["evil"]},
        {"auto_map": {"AutoModelForCausalLM": "someone/evil--modeling_evil.Evil"}},
        {"text_config": {"auto_map": MAP}},
        {"a": [{"b": {"auto_map": MAP}}]},
        {"trust_remote_code": True},
        {"text_config": {"trust_remote_code": 1}},
        {"custom_pipelines": {"evil": {"impl": "evil.Evil"}}},
        {"_attn_implementation": "someone/evil"},
        {"_attn_implementation_internal": "someone/evil:f"},
        {"attn_implementation": "someone/evil"},
        {"attn_implementation": "kernels-community/flash-attn3"},
        {"attn_implementation": "./evil"},
        {"_experts_implementation": "someone/evil"},
        {"experts_implementation": "someone/evil"},
        {"_name_or_path": "SIDE"},
        {"name_or_path": "../side"},
        {"use_kernels": True},
        {"kernel_config": {"kernel_mapping": {"RMSNorm": "someone/evil:RMSNorm"}}},
        {"Auto_Map": MAP},
        {"auto_map ": MAP},
        {"_auto_class": "evil.Evil"},
        {"architectures": ["../evil.Evil"]},
        {"architectures": ["os.system"]},
        {"architectures": "evil"},
        {"architectures": None},
        {"model_type": "evil"},
        {"model_type": "../evil"},
        {"model_type": "os"},
        {"model_type": 7},
        {"model_type": ["llama"]},
        {"model_type": None},
        {"hidden_act": "__import__('os').system('touch CANARY')"},
        {"hidden_act": "evil.Evil"},
        {"dtype": "load"},
        {"dtype": "os"},
        {"torch_dtype": "hub"},
        {"dtype": ["float32"]},
        {"tokenizer_class": "evil.Evil"},
        {"pipeline_tag": "evil", "library_name": "evil"},
        {"__class__": "evil.Evil"},
        {"from_pretrained": "evil"},
        {"_from_config": "evil"},
        {"to_dict": "evil"},
        {"transformers_weights": "../side/model.safetensors"},
        {"transformers_weights": ["model.safetensors"]},
        {"id2label": {"x": "evil"}},
        {"problem_type": "os.system('touch CANARY')"},
        {"base_model_tp_plan": {"x": "evil"}},
        {"pruned_heads": {"a": [1]}},
        {"sub_configs": {"text_config": "evil"}},
    ]
    for wish in wishes:
        yield Case(
            f"config.json: {json.dumps(wish):.120}", all_of(with_code, edit("config.json", **wish))
        )
    for method in (
        "bitsandbytes",
        "gptq",
        "awq",
        "torchao",
        "hqq",
        "quark",
        "compressed-tensors",
        "fp8",
        "aqlm",
        "vptq",
        "eetq",
        "quanto",
        "evil",
    ):
        wish = {
            "quant_method": method,
            "bits": 4,
            "group_size": 32,
            "load_in_4bit": method == "bitsandbytes",
            "quant_type": "evil.Evil",
            "modules": ["evil"],
        }
        yield Case(
            f"quantization_config by {method}",
            all_of(with_code, edit("config.json", quantization_config=wish)),
        )
    for wish in ("x", [], {"quant_method": 3}, {}):
        yield Case(f"quantization_config {wish!r}", edit("config.json", quantization_config=wish))
    for file, wish in product(
        (
            "tokenizer_config.json",
            "generation_config.json",
            "processor_config.json",
            "preprocessor_config.json",
        ),
        ({"auto_map": MAP}, {"trust_remote_code": True, "_commit_hash": "x"}),
    ):
        yield Case(f"{file}: {json.dumps(wish):.40}", all_of(with_code, edit(file, **wish)))
    more: list[tuple[str, dict[str, Any]]] = [
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "tokenizer_file": "../side/x"}),
        ("tokenizer_config.json", {"backend": "evil"}),
        ("generation_config.json", {"custom_generate": "someone/evil"}),
        ("generation_config.json", {"assistant_model": "evil", "cache_implementation": "evil"}),
        (
            "generation_config.json",
            {"max_new_tokens": "x", "temperature": "{{ 7 }}", "num_beams": -1},
        ),
        ("generation_config.json", {"eos_token_id": "evil"}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", {"compile_config": {"backend": "evil"}}),
        ("processor_config.json", {"processor_class": "Evil"}),
        (
            "adapter_config.json",
            {
                "peft_type": "LORA",
                "auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"},
            },
        ),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "SIDE/evil"}),
        ("adapter_config.json", {"base_model_name_or_path": "someone/evil"}),
        ("adapter_config.json", {"peft_type": "LORA"}),
        ("adapter_config.json", {"_adapter_model_path": "SIDE"}),
    ]
    for file, wish in more:
        yield Case(f"{file}: {json.dumps(wish):.70}", all_of(with_code, edit(file, **wish)))
    elsewhere = edit("adapter_config.json", peft_type="LORA", base_model_name_or_path="SIDE/evil")
    yield Case(
        "adapter_config.json of a base names another folder's model",
        all_of(elsewhere, pickled("adapter_model.bin")),
        outside=True,
    )
    adapter = all_of(*(borrowed(f) for f in ("adapter_config.json", "adapter_model.safetensors")))
    yield Case(
        "a base that is an adapter of another folder's model",
        all_of(adapter, elsewhere),
        outside=True,
    )
    for file in (
        "json.py",
        "tokenizers.py",
        "tunesmith/__init__.py",
        "duckdb/__init__.py",
        "sitecustomize.py",
        "usercustomize.py",
    ):
        yield Case(
            f"{file} in the folder the user stands in",
            text(file, CODE + "raise SystemExit\n"),
            "start",
        )


GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
}


def changed(**facts: Any) -> dict[str, Any]:
    return {**GOOD, "a": {**GOOD["a"], **facts}}


def weight_cases() -> Iterator[Case]:
    lies: list[tuple[str, Make]] = [
        ("a header longer than the file", header(GOOD, 26, 10**6)),
        ("a header of 2^63 bytes", header(GOOD, 26, 2**63)),
        ("no header", header(GOOD, 26, 0)),
        ("8 bytes alone", text("model.safetensors", bytes(8))),
        ("nothing", text("model.safetensors", b"")),
        ("7 bytes", text("model.safetensors", b"1234567")),
        ("a header of 5 MB", header({**GOOD, "x" * (5 << 20): GOOD["a"]}, 26)),
        ("100,000 tensors", header({f"t{i}": GOOD["a"] for i in range(100_000)}, 24)),
        (
            "39,000 empty tensors",
            header(
                {
                    f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for i in range(39_000)
                }
            ),
        ),
        (
            "one name twice",
            header(
                b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
                2,
            ),
        ),
        ("tensors that overlap", header({"a": GOOD["a"], "b": GOOD["a"]}, 24)),
        ("a gap", header(changed(data_offsets=[1, 25]), 26)),
        ("a tail", header(GOOD, 27)),
        ("data too short", header(GOOD, 25)),
        ("a shape of 2^124", header(changed(shape=[2**62, 2**62]), 26)),
        ("a shape below zero", header(changed(shape=[-2, -3]), 26)),
        ("an unknown type", header(changed(dtype="F128"), 26)),
        ("a type of code", header(changed(dtype="O"), 26)),
        ("a header 100,000 deep", header(b"[" * 100_000)),
        ("a header of no object", header(b"[1, 2]")),
        ("metadata of code", header({**GOOD, "__metadata__": {"__reduce__": "os.system"}}, 26)),
        ("metadata that is no object", header({**GOOD, "__metadata__": [1]}, 26)),
        ("metadata of numbers", header({**GOOD, "__metadata__": {"format": 3}}, 26)),
        ("tensors of another model", header(GOOD, 26)),
        ("no tensor", header({})),
        (
            "a name of ..",
            header({"../../x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1),
        ),
        ("its last byte missing", cut("model.safetensors", 1)),
        ("its second half missing", cut("model.safetensors", 20_000)),
        ("an archive", lambda f, c: shutil.copy(f.parent / "side/x.zip", f / "model.safetensors")),
        ("100 MB of nothing", sparse("model.safetensors", 100 << 20)),
        ("1 GB of nothing", sparse("model.safetensors", 1 << 30)),
        ("a format of jax", header({**GOOD, "__metadata__": {"format": "jax"}}, 26)),
        (
            "F8 that no library knows",
            header({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}, 2),
        ),
        (
            "surrogates in a name",
            header(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
        ),
    ]
    for told, make in lies:
        yield Case(f"model.safetensors with {told}", make)
    decoy = moved("model.safetensors", "decoy.safetensors")
    for target in (
        "../side/model.safetensors",
        "SIDE/model.safetensors",
        "sub/../../side/model.safetensors",
    ):
        names = dict.fromkeys(_names(), target)
        index = value(
            "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": names}
        )
        yield Case(f"the index names {target}", all_of(decoy, index), outside=True)
    for told, content in (
        ("missing shards", {"weight_map": {"a": "none.safetensors"}}),
        ("a list", []),
        ("no map", {}),
        ("a map of lists", {"weight_map": {"a": ["x"]}}),
        ("a map of null", {"weight_map": {"a": None}}),
        ("a map that is a list", {"weight_map": ["decoy.safetensors"]}),
        ("no metadata", {"weight_map": {"a": "decoy.safetensors"}}),
        ("a FIFO", {"metadata": {}, "weight_map": {"a": "pipe.safetensors"}}),
        ("a device", {"metadata": {}, "weight_map": {"a": "/dev/zero"}}),
        (
            "100,000 shards",
            {"metadata": {}, "weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(10**5)}},
        ),
    ):
        extra = [special("pipe.safetensors", "fifo")] if told == "a FIFO" else []
        yield Case(
            f"an index with {told}",
            all_of(decoy, *extra, value("model.safetensors.index.json", content)),
        )
    sharded = all_of(
        moved("model.safetensors", "sub/x.safetensors"), header(GOOD, 26, name="decoy.safetensors")
    )
    for told, bad in (
        ("cut", cut("sub/x.safetensors", 5)),
        ("lying", header({"a": GOOD["a"], "b": GOOD["a"]}, 24, name="sub/x.safetensors")),
    ):
        index = value(
            "model.safetensors.index.json",
            {"metadata": {}, "weight_map": dict.fromkeys(_names(), "sub/x.safetensors")},
        )
        yield Case(f"a {told} shard in a folder below", all_of(sharded, bad, index))


def _names() -> list[str]:
    """The tensors of the good base."""
    layer = (
        [f"self_attn.{p}_proj" for p in "qkvo"]
        + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
        + ["input_layernorm", "post_attention_layernorm"]
    )
    return [
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"model.layers.{n}.{part}.weight" for n in range(2) for part in layer),
    ]


def file_cases() -> Iterator[Case]:
    files = (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
        "adapter_config.json",
    )
    for file, kind in product(files, ("fifo", "/dev/zero", "folder", "loop", "no right")):
        yield Case(f"{file} is: {kind}", special(file, kind))
    for file in (
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "extra.bin",
        "extra.safetensors",
        "README.md",
    ):
        yield Case(f"{file} is: fifo", special(file, "fifo"))
    for told, make in (
        ("CONFIG.JSON beside config.json", with_code),
        ("a folder that is a link to itself", special("sub", ".")),
        ("a link to /", special("root", "/")),
        ("a hard link to a secret", special("extra.json", "hard link")),
        ("a link to a secret as template", special("chat_template.jinja", "SIDE/secret.txt")),
    ):
        yield Case(told, all_of(make, text("CONFIG.JSON", json.dumps({"auto_map": MAP}))))
    for kind in ("x.zip", "x.tar"):
        yield Case(
            f"{kind} in place of the folder",
            lambda f, c, kind=kind: (shutil.rmtree(f), shutil.copy(f.parent / "side" / kind, f)),
        )
        yield Case(
            f"{kind} in place of config.json",
            lambda f, c, kind=kind: shutil.copy(f.parent / "side" / kind, f / "config.json"),
        )
    yield Case("an empty folder", lambda f, c: [p.unlink() for p in f.iterdir()])
    yield Case("no folder", lambda f, c: shutil.rmtree(f))


def json_cases() -> Iterator[Case]:
    raw: list[tuple[str, str | bytes]] = [
        ("[ 1,000,000 deep", "[" * 10**6),
        ("objects 100,000 deep", nested(10**5, key="a")),
        ("objects 900 deep", nested(900, key="a")),
        ("a byte order mark", b"\xef\xbb\xbf{}"),
        ("invalid UTF-8", b'{"a": "\xff\xfe"}'),
        ("UTF-16", '{"model_type": "llama"}'.encode("utf-16")),
        ("nothing", ""),
        ("null", "null"),
        ("a number", "1"),
        ("a list", "[]"),
        ("an integer of 10,000 digits", '{"a": ' + "9" * 10**4 + "}"),
        ("an integer of 4,000 digits", '{"max_position_embeddings": ' + "9" * 4000 + "}"),
        ("NUL", b'{"a": "\x00"}'),
        ("a lone surrogate", '{"model_type": "\\ud800"}'),
        ("code", "__import__('os').system('touch CANARY')"),
        ("YAML", "!!python/object/apply:os.system ['touch CANARY']"),
    ]
    for told, content in raw:
        yield Case(f"config.json: {told}", text("config.json", content))
    for file, (told, content) in product(
        ("tokenizer_config.json", "generation_config.json", "tokenizer.json"), raw[:11:2]
    ):
        yield Case(
            f"{file}: {told}",
            text(file, content),
            "base" if file == "generation_config.json" else "template",
        )
    for file in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ):
        yield Case(f"{file} of 100 MB", sparse(file, 100 << 20))
    yield Case(
        "config.json: two of one key",
        lambda f, c: text(
            "config.json",
            '{"auto_map": {"AutoConfig": "evil.E"}, "auto_map": null, '
            + (f / "config.json").read_text()[1:],
        )(f, c),
    )
    numbers: dict[str, list[Any]] = {
        "max_position_embeddings": [
            "128",
            "x",
            [1],
            {},
            -1,
            1,
            1e308,
            float("nan"),
            float("inf"),
            10**30,
            True,
        ],
        "vocab_size": [10**12, 0, -1, "x", None, 2**63, 1],
        "hidden_size": [0, -32, 10**9, 33, "32"],
        "num_hidden_layers": [10**9, 10**6, 0, -1, "2", 2.5],
        "num_attention_heads": [0, -4, 3, 10**9, "4"],
        "num_key_value_heads": [0, 3],
        "intermediate_size": [10**12, 0, -1],
        "rope_scaling": [
            "x",
            [],
            {"rope_type": "evil"},
            {"rope_type": "yarn", "factor": "x"},
            {"rope_type": "dynamic", "factor": 0},
            7,
        ],
        "rope_parameters": [
            {"rope_type": "longrope", "short_factor": [1] * 10**5, "long_factor": None},
            {"rope_theta": "evil"},
            {"rope_theta": 0},
        ],
        "rope_theta": ["x", -1],
        "rms_norm_eps": ["x", float("nan")],
        "eos_token_id": ["x", [None], {"a": 1}, 10**12, -1, [[0]], 1.5],
        "pad_token_id": [10**12, -1, "x"],
        "head_dim": [10**9, 0, "x"],
        "initializer_range": ["x", -1, 1e308],
        "attention_dropout": ["x", 2],
        "tie_word_embeddings": ["no", False],
        "n_positions": ["x"],
        "hidden_act": [None, 5, ["silu"]],
        "attention_bias": ["x", True],
        "layer_types": [["evil"] * 2, "x"],
        "pretraining_tp": [10**9, "x"],
        "is_encoder_decoder": [True],
        "num_labels": [10**9, "x"],
        "text_config": [{"vocab_size": 10**12}, "x"],
        "bos_token_id": ["x"],
    }
    for key, values in numbers.items():
        for v in values:
            yield Case(f"config.json: {key} = {v!r:.50}", edit("config.json", **{key: v}))
    for kind in (
        "gpt2",
        "mixtral",
        "mamba",
        "whisper",
        "t5",
        "clip",
        "bert",
        "llava",
        "gemma3",
        "deepseek_v3",
        "qwen3_next",
        "timm_wrapper",
    ):
        yield Case(
            f"config.json of the kind {kind}",
            edit("config.json", model_type=kind, architectures=None),
        )


def tokenizer_cases() -> Iterator[Case]:
    word = {
        "id": 0,
        "content": "<|end|>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }

    def regex(pattern: str, key: str = "pre_tokenizer") -> Make:
        return edit(
            "tokenizer.json",
            **{
                key: {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                }
            },
        )

    def replaced(pattern: str, content: str) -> Make:
        return edit(
            "tokenizer.json",
            normalizer={
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
                ]
                * 40,
            },
        )

    wishes: list[tuple[str, Make]] = [
        *(
            (f"the pattern {p}", regex(p))
            for p in (
                r"(a+)+$",
                r"(a|a)*$",
                r"(a|aa)+\Z",
                r"(.*a){25}$",
                r"((a*)*)*b",
                r"(?=(a+))\1*b",
                "(",
                "a{1000000}",
                "(?#",
                r"(?<n>a\g<n>?)+$",
            )
        ),
        ("a replacement that doubles 40 times", replaced("a", "aa")),
        ("a replacement that grows", replaced("", "x" * 100)),
        (
            "a prefix of 20 MB",
            edit("tokenizer.json", normalizer={"type": "Prepend", "prepend": "x" * (20 << 20)}),
        ),
        (
            "300,000 added tokens",
            lambda f, c: edit(
                "tokenizer.json",
                added_tokens=[
                    word,
                    *({**word, "id": 260 + i, "content": f"<{i}>"} for i in range(300_000)),
                ],
            )(f, c),
        ),
        (
            "a million words",
            lambda f, c: edit(
                "tokenizer.json",
                model={"type": "BPE", "vocab": {f"w{i}": i for i in range(10**6)}, "merges": []},
            )(f, c),
        ),
        *(
            (f"added_tokens {v!r:.40}", edit("tokenizer.json", added_tokens=v))
            for v in (
                5,
                "x",
                {},
                [1],
                [None],
                [{}],
                [{"content": "x"}],
                [{**word, "id": "x"}],
                [{**word, "id": -1}],
                [{**word, "id": 2**70}],
                [{**word, "content": ["x"]}],
                [{**word, "content": ""}],
                [{**word, "id": None}],
                None,
            )
        ),
        *(
            (f"model {v!r:.40}", edit("tokenizer.json", model=v))
            for v in (
                None,
                5,
                {},
                {"type": "evil"},
                {"type": "BPE", "vocab": {"a": -1}, "merges": []},
                {"type": "BPE", "vocab": {}, "merges": ["a b"]},
                {"type": "BPE", "vocab": {"a": 2**31}, "merges": []},
                {"type": "WordLevel", "vocab": {}, "unk_token": "x"},
                {"type": "Unigram", "vocab": [], "unk_id": 5},
                {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 2**40},
            )
        ),
        *(
            (f"{k} {v!r:.40}", edit("tokenizer.json", **{k: v}))
            for k, v in (
                ("post_processor", {"type": "evil"}),
                ("decoder", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
                (
                    "truncation",
                    {
                        "max_length": 0,
                        "strategy": "LongestFirst",
                        "stride": 5,
                        "direction": "Right",
                    },
                ),
                (
                    "padding",
                    {
                        "strategy": {"Fixed": 10**12},
                        "direction": "Right",
                        "pad_id": 0,
                        "pad_type_id": 0,
                        "pad_token": "x",
                        "pad_to_multiple_of": 10**12,
                    },
                ),
                ("version", 10**30),
                ("pre_tokenizer", "x"),
            )
        ),
        ("a deep pre-tokenizer", text("tokenizer.json", '{"pre_tokenizer":' * 100_000)),
        (
            "deep sequences",
            edit(
                "tokenizer.json",
                pre_tokenizer=json.loads(
                    '{"type":"Sequence","pretokenizers":[' * 120
                    + '{"type":"Digits","individual_digits":false}'
                    + "]}" * 120
                ),
            ),
        ),
        (
            "more tokens than the model has rows",
            edit("tokenizer.json", added_tokens=[word, {**word, "id": 10**6, "content": "say"}]),
        ),
    ]
    for told, make in wishes:
        yield Case(f"tokenizer.json with {told}", make, "template")
    values: list[dict[str, Any]] = [
        {"eos_token": 5},
        {"eos_token": ["x"]},
        {"eos_token": {}},
        {"eos_token": {"content": None}},
        {"eos_token": {"content": {"a": 1}}},
        {"bos_token": "x" * 10**7},
        {"bos_token": {"content": "{{ 7 * 7 }}"}},
        {"added_tokens_decoder": 5},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": 5}},
        {"added_tokens_decoder": {"1": {}}},
        {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}},
        {"chat_template": 5},
        {"chat_template": True},
        {"chat_template": {"a": "b"}},
        {"chat_template": [5]},
        {"chat_template": [{}]},
        {"chat_template": [{"name": "default"}]},
        {"chat_template": [{"name": "default", "template": ["x"]}]},
        {
            "chat_template": [
                {
                    "name": "default",
                    "template": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
                }
            ]
        },
        {"chat_template": "\ud800"},
        {"bos_token": "\ud800"},
        {"added_tokens_decoder": {"2": {"content": ["x"]}}},
        {"model_max_length": 10**40},
        {"eos_token": "x" * 10**7},
        {"added_tokens_decoder": {str(i): {"content": f"<{i}>"} for i in range(300_000)}},
    ]
    for wish in values:
        yield Case(
            f"tokenizer_config.json: {json.dumps(wish)[:70]}",
            edit("tokenizer_config.json", **wish),
            "template",
        )


TAIL = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
SHELL = ".os.system('touch CANARY')"
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ cycler.__init__.__globals__" + SHELL + " }}",
    "{{ joiner.__init__.__globals__" + SHELL + " }}",
    "{{ namespace.__init__.__globals__" + SHELL + " }}",
    "{{ lipsum.__globals__" + SHELL + " }}",
    "{{ lipsum|attr('__globals__') }}",
    "{{ (lipsum|attr('__globals__'))['os'].popen('touch CANARY').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__" + SHELL + " }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__globals__['jinja2'].__builtins__ }}",
    "{{ strftime_now.__self__.__class__.__mro__ }}",
    "{{ strftime_now.__self__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__mro__[1]}'.format(1) }}",
    "{{ ('{0.__class__}'|string).format(lipsum) }}",
    "{{ '{x.__globals__}'.format_map({'x': lipsum}) }}",
    "{{ '%s'|format(lipsum.__globals__) }}",
    "{% set f = '{0.__globals__}'.format %}{{ f(lipsum) }}",
    "{{ [lipsum]|map(attribute='__globals__')|list }}",
    "{{ [lipsum]|map('attr', '__globals__')|list }}",
    "{{ ['{0.__class__}']|map('format', lipsum)|list }}",
    "{{ [lipsum]|groupby('__globals__') }}",
    "{{ [lipsum]|sort(attribute='__globals__.x') }}",
    "{{ [lipsum]|selectattr('__globals__')|list }}",
    "{{ [lipsum]|sum(attribute='__globals__') }}",
    "{{ messages.append.__self__ }}",
    "{{ messages.append({}) }}",
    "{% set _ = messages.clear() %}",
    "{% set _ = messages[0].update({'role': 'system'}) %}",
    "{{ messages[0].pop('content') }}",
    "{% do messages.append({}) %}",
    "{% set messages = [] %}",
    "{% set messages[0].content = 'x' %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace(**{'__init__': 1}) %}{{ ns.__init__ }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends 'config.json' %}",
    "{% from 'os' import system %}",
    "{% include ['a', '../config.json'] ignore missing %}",
    "{% set x %}{{ ''.__class__ }}{% endset %}{{ x }}",
    "{{ dict.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ range.__class__ }}",
    "{{ (0).__class__ }}",
    "{{ g.gi_frame }}",
    "{{ (messages|map('upper')).gi_frame }}",
    "{{ (messages|map('upper')).gi_frame.f_back.f_globals }}",
    "{{ (messages|select).gi_code }}",
    "{{ cycler.next.__func__ }}",
    "{{ caller.__globals__ }}",
    "{% macro m() %}{{ caller }}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "{{ loop }}{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._recurse }}{{ loop._iterator }}{% endfor %}",
    "{{ undefined.__init__.__globals__ }}",
    "{{ ''.\uff3f\uff3fclass\uff3f\uff3f }}",
    "{{ ''|attr('_'~'_class_'~'_') }}",
    "{{ ''|attr(['__', 'class', '__']|join) }}",
    "{{ x|attr }}",
    "{{ open('CANARY', 'w') }}",
    "{{ __import__('os').system('touch CANARY') }}",
    "{{ eval('1') }}",
    "{{ environment.from_string('x') }}",
    "{{ ''.encode.__self__.__reduce_ex__(2) }}",
    "{% debug %}",
    "{% trans %}{{ x }}{% endtrans %}",
    "{% call(x) lipsum() %}{{ x.__globals__ }}{% endcall %}",
    "{{ messages|tojson(cls=cycler) }}",
    "{{ messages|tojson(default=lipsum) }}",
    "{{ messages|tojson(indent=999999999) }}",
    "{{ lipsum|tojson(default=raise_exception) }}",
    "{{ lipsum|tojson(default=strftime_now) }}",
    "{{ raise_exception('{0.__class__}'.format(1)) }}",
    "{{ raise_exception(lipsum) }}",
    "{{ raise_exception('x' * 100000) }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ strftime_now('%999999999Y') }}",
    "{{ strftime_now(5) }}",
    "{{ strftime_now('\\ud800') }}",
    "{{ '\\ud800' }}",
    "{{ '\ue000999\ue001' }}",
    "{{ '\ue000' ~ 10**6 ~ '\ue001' }}",
    "{{ '\ue000' ~ '9' * 5000 ~ '\ue001' }}",
    "{{ '\ue000\u0662\ue001' }}",
    "{{ '\\x00' }}",
    "{{ 1 / 0 }}",
    "{{ messages[99].content.x }}",
    "{{ 'x'|nosuchfilter }}",
    "{{ 'x' is nosuchtest }}",
    "{{ [].pop() }}",
    "{{ {}['a']['b'] }}",
    "{{",
    "{% for %}",
    "{% endfor %}",
    "{{ 0x }}",
    "{% raw %}",
    "{{ 'a'.join(5) }}",
    "{{ messages|sort }}",
    "{{ 5|length }}",
    "{{ none.x.y }}",
    "{{ range(-1, 'a') }}",
    "{{ 'x'.zfill('a') }}",
    "{{ dict(a=1, **5) }}",
    "{{ lipsum(n='x') }}",
    "{{ '%d' % 'x' }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2, 3) }}",
]
BOMBS = [
    "{{ 'x' * 500000000 }}",
    "{{ 'x' * 5000000000 }}",
    "{{ [1] * 3000000000 }}",
    "{{ range(10**12)|list }}",
    "{{ range(99999)|list|string * 9999 }}",
    "{% for a in range(10**12) %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** 100000 ** 5 }}",
    "{{ (10 ** 4000)|string }}",
    "{{ (10 ** 9000)|string }}",
    "{{ 10 ** 999999 % 7 }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '{:>999999999}'.format('') }}",
    "{{ ''.ljust(2000000000) }}",
    "{{ ''.center(10**10) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ 'x'|center(999999999) }}",
    "{{ 'x'|indent(999999999, true) }}",
    "{{ '\\t'.expandtabs(2000000000) }}",
    "{{ ('a' * 999999).replace('', 'b' * 9999) }}",
    "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
    "{{ ('a,' * 999999).split(',')|join('x' * 9999) }}",
    "{{ lipsum(n=100000) }}",
    "{{ lipsum(min=10**9, max=10**10) }}",
    "{{ range(99999)|batch(1)|list|tojson(indent=9999) }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 30
    + "x"
    + "{% endcall %}" * 30,
    "{% for x in [[1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "{% for a in cycler(1, 2) %}{% endfor %}",
    "{% set c = cycler(*range(99999)) %}{% for a in range(99999) %}{{ c.next() }}{% endfor %}",
    "{{ range(99999)|map('string')|join(('x' * 99999)) }}",
    "{{ ('x' * 999999)|wordwrap(1)|length }}",
    "{{ ('a ' * 499999)|title|urlize|length }}",
    "{{ ('<' * 99999)|striptags }}",
    "{{ ('http://' * 9999)|urlize }}",
    "{{ ('<!--' * 99999)|striptags|length }}",
    "{{ ('www.' * 99999)|urlize|length }}",
    "{{ '[' * 50000 }}",
    "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "{{ " + "[" * 150 + "]" * 150 + " }}",
    "{{ " + "not " * 15000 + "1 }}",
    "{{ " + "1+" * 30000 + "1 }}",
    "{{ 1" + "|string" * 9000 + " }}",
    "{{ x" + ".a" * 20000 + " }}",
    "{% if 1 %}" * 6000 + "{% endif %}" * 6000,
    "{% for x in y %}" * 25 + "{% endfor %}" * 25,
    "{" * 65000,
    "{% raw %}" * 7000,
    "{# " * 20000,
    "{{ '" + "\\" * 60000 + "' }}",
    "{# " + "x" * (10 << 20) + " #}",
    "x" * 65000,
    "{{ 'x' * 1100000 }}",
    "{{ 'x' * 1000000 }}",
    "{{ '\U0001f600' * 1000000 }}",
    "{{ '\\x00' * 1000000 }}",
    "{{ 9" + "9" * 60000 + " }}",
    "{{ 1e999999999 }}",
    "{{ 1.5 ** 1e9 }}",
    "{{ (1, 2) * 10**9 }}",
    "{{ 'abc'[::-1] * 10**9 }}",
    "{{ messages * 10**9 }}",
    "{% set x = messages * 30000000 %}{{ x|length }}",
    "{{ (range(99999)|list * 999)|unique|list|length }}",
    "{{ (range(99999)|list)|product }}",
    "{{ range(99999)|slice(99999)|list|length }}",
    "{{ 'x'|attr('x' * 99999999) }}",
    "{{ ('%s' * 999999) % (range(999999)|list) }}",
    "{{ dict(a=1)|xmlattr * 10**9 }}",
    "{% set x = 'a' * 99999 %}" + "{{ x }}" * 8000,
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% block a %}{% for i in range(9) %}{{ self.a() }}{% endfor %}{% endblock %}",
    "{% set ns = namespace(n=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set ns.n = ns.n + 1 %}{% endfor %}{% endfor %}",
]


def template_cases() -> Iterator[Case]:
    for source in (*ESCAPES, *BOMBS):
        told = source if len(source) < 80 else f"{source[:60]}… ({len(source):,})"
        yield Case(
            f"template {told}",
            text("chat_template.jinja", (source + TAIL).encode("utf-8", "surrogatepass")),
            "template",
        )
    for told, raw in (
        ("invalid UTF-8", b"\xff\xfe{{ x }}"),
        ("UTF-16", TAIL.encode("utf-16")),
        ("nothing", b""),
        ("NUL", b"\0" * 100),
        ("a mark", b"\xef\xbb\xbf" + TAIL.encode()),
    ):
        yield Case(f"template: {told}", text("chat_template.jinja", raw), "template")
    yield Case(
        "template only costly when a prompt is rendered",
        text(
            "chat_template.jinja",
            "{% if add_generation_prompt %}{{ 'x' * 10**10 }}{% endif %}" + TAIL,
        ),
        "template",
    )
    yield Case("template of 2 GB", sparse("chat_template.jinja", 2**31 - 1), "template")
    yield Case(
        "template without the user's words", text("chat_template.jinja", "<|end|>"), "template"
    )
    yield Case(
        "template that repeats the user's words",
        text(
            "chat_template.jinja",
            "{% for m in messages %}{% for i in range(50000) %}{{ m.content }}{% endfor %}<|end|>{% endfor %}",
        ),
        "template",
    )


def import_cases() -> Iterator[Case]:
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    for file, form in product(
        ("adapter_model.bin", "pytorch_model.bin", "adapter_model.pt"), ("plain", "torch")
    ):
        yield Case(
            f"import: pickle {file} ({form}) alone",
            all_of(without(weights), pickled(file, form)),
            "import",
        )
        yield Case(
            f"import: pickle {file} ({form}) alone, whole",
            all_of(without("model.safetensors"), pickled(file, form)),
            "import",
            whole=True,
        )
    for file in (
        "adapter_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "tokenizer.pkl",
        "probes.pkl",
        "pytorch_model.bin",
    ):
        yield Case(f"import: pickle {file} beside", pickled(file), "import")
    for file in (
        weights,
        config,
        "probes.safetensors",
        "prompt_template.json",
        "certificate.json",
        "MANIFEST.json",
    ):
        yield Case(
            f"import: pickle in place of {file}",
            pickled(file),
            "import",
            signed=file != "MANIFEST.json",
        )
        for kind in ("fifo", "/dev/zero", "folder", "loop"):
            yield Case(
                f"import: {file} is: {kind}",
                special(file, kind),
                "import",
                signed=file != "MANIFEST.json",
            )
    wishes: list[dict[str, Any]] = [
        {"auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"}},
        {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
        {"base_model_name_or_path": "SIDE/evil"},
        {"base_model_name_or_path": "../side"},
        {"base_model_name_or_path": "https://evil.example/x"},
        {"revision": "../../x"},
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        {"megatron_config": {"a": 1}, "megatron_core": "transformers.models"},
        {"task_type": "EVIL"},
        {"task_type": None},
        {"task_type": "SEQ_CLS"},
        {"peft_type": "EVIL"},
        {"peft_type": None},
        {"peft_type": 5},
        {"r": 10**9},
        {"r": 0},
        {"r": -1},
        {"r": "x"},
        {"r": 10**18},
        {"lora_alpha": "x"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e308},
        {"lora_dropout": 2},
        {"lora_dropout": "x"},
        {"target_modules": []},
        {"target_modules": None},
        {"target_modules": "(\\w+\\.?)+!"},
        {"target_modules": "(.*.*.*.*.*.*.*)*x"},
        {"target_modules": "("},
        {"target_modules": ["../../x"]},
        {"target_modules": 5},
        {"target_modules": {"a": 1}},
        {"target_modules": ["q_proj", 5]},
        {"target_modules": "all-linear"},
        {"target_modules": [f"m{i}" for i in range(10**6)]},
        {"exclude_modules": "(\\w+\\.?)+!"},
        {"layers_pattern": "(\\w+\\.?)+!", "layers_to_transform": [0]},
        {"layers_to_transform": [10**12]},
        {"layers_to_transform": "x"},
        {"rank_pattern": {"(\\w+\\.?)+!": 8}},
        {"rank_pattern": {"q_proj": 10**9}},
        {"rank_pattern": 5},
        {"alpha_pattern": {"(\\w+\\.?)+!": 8}},
        {"alpha_pattern": {"(": 8}},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": "x"},
        {"modules_to_save": [""]},
        {"layer_replication": [[0, 10**9]]},
        {"layer_replication": [[0, 2]] * 10**5},
        {"layer_replication": "x"},
        {"init_lora_weights": "evil"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_999999999"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        {"init_lora_weights": "eva", "eva_config": {}},
        {
            "init_lora_weights": "corda",
            "corda_config": {"cache_file": "SIDE/evil.bin", "covariance_file": "SIDE/evil.bin"},
        },
        {"init_lora_weights": "lora_ga", "lora_ga_config": {"cache_file": "SIDE/evil.bin"}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": 5},
        {"use_dora": True},
        {"use_rslora": True},
        {"use_qalora": True},
        {"bias": "evil"},
        {"bias": "all"},
        {"lora_bias": True},
        {"target_parameters": ["x"]},
        {"trainable_token_indices": [10**9]},
        {"trainable_token_indices": "x"},
        {"trainable_token_indices": {"lm_head": list(range(10**6))}},
        {"alora_invocation_tokens": [1]},
        {"arrow_config": {"task_adapter_names": ["../side"]}},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
        {"runtime_config": 5},
        {"custom_module": "evil"},
        {"_custom_modules": {"torch.nn.Linear": "evil.Evil"}},
        {"auto_map": MAP},
        {"trust_remote_code": True},
        {"peft_version": "evil"},
        {"inference_mode": "x"},
        {"unknown": nested(900)},
        {"velora_config": {"num_groups": 0}},
        {"monteclora_config": {"num_samples": 10**9}},
        {"kasa_config": {}},
        {"use_bdlora": {"nblocks": 0}},
        {"fan_in_fan_out": "x"},
        {"ensure_weight_tying": True},
        {"loftq_config": "x"},
    ]
    for wish in wishes:
        yield Case(
            f"import: {config}: {json.dumps(wish):.90}",
            all_of(with_code, edit(config, **wish)),
            "import",
        )
    others: list[dict[str, Any]] = [
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**12},
        {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": 8,
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": "x",
            "tokenizer_name_or_path": "SIDE/evil",
            "tokenizer_kwargs": {"trust_remote_code": True},
        },
        {
            "peft_type": "MULTITASK_PROMPT_TUNING",
            "num_virtual_tokens": 8,
            "num_tasks": 1,
            "prompt_tuning_init": "EXACT_SOURCE_TASK",
            "prompt_tuning_init_state_dict_path": "SIDE/evil.bin",
        },
        {"peft_type": "XLORA", "adapters": {"1": "SIDE/evil"}},
        {"peft_type": "BOFT", "boft_block_size": 4, "target_modules": ["q_proj"]},
        {"peft_type": "ADAPTION_PROMPT", "adapter_len": 10**9, "adapter_layers": 2},
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**9},
        {"peft_type": "CPT", "cpt_token_ids": [0]},
        {"peft_type": "P_TUNING", "num_virtual_tokens": 8, "encoder_hidden_size": 10**9},
        {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []},
        {"peft_type": "VERA", "r": 10**9, "target_modules": ["q_proj"]},
        {"peft_type": "LOHA", "target_modules": ["q_proj"]},
        {"peft_type": "OFT", "target_modules": ["q_proj"]},
        {"peft_type": "SHIRA", "target_modules": ["q_proj"]},
        {"peft_type": "CARTRIDGE", "num_virtual_tokens": 10**9},
        {"peft_type": "POLY", "target_modules": ["q_proj"]},
        {},
    ]
    for wish in others:
        yield Case(
            f"import: {config} is {json.dumps(wish):.90}",
            value(config, {"task_type": "CAUSAL_LM", **wish} if wish else {}),
            "import",
        )
    for told, content in (
        ("deep", "[" * 10**6),
        ("a list", "[]"),
        ("null", "null"),
        ("nothing", ""),
        ("invalid UTF-8", b"\xff{"),
        ("an integer of 10,000 digits", '{"r": ' + "9" * 10**4 + "}"),
    ):
        for file in (config, "certificate.json", "prompt_template.json", "MANIFEST.json"):
            yield Case(
                f"import: {file}: {told}",
                text(file, content),
                "import",
                signed=file != "MANIFEST.json",
            )
    for told, make in (
        ("overlaps", header({"a": GOOD["a"], "b": GOOD["a"]}, 24, name=weights)),
        ("100,000 tensors", header({f"t{i}": GOOD["a"] for i in range(10**5)}, 24, name=weights)),
        ("other tensors", header(GOOD, 26, name=weights)),
        ("its last byte missing", cut(weights, 1)),
        ("a header of 2^63", header(GOOD, 26, 2**63, name=weights)),
        ("nothing", text(weights, b"")),
        ("no file", without(weights)),
    ):
        yield Case(f"import: {weights} with {told}", make, "import")
    longs = [{"dtype": "I32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(6)]
    probes = "probes.safetensors"
    for told, make in (
        ("other tensors", header(GOOD, 26, name=probes)),
        ("nothing", text(probes, b"")),
        ("no file", without(probes)),
        (
            "lengths that do not fit",
            header(
                dict(
                    zip(
                        (
                            "prompts",
                            "prompt_lengths",
                            "answers",
                            "answer_lengths",
                            "stopped",
                            "ids",
                        ),
                        longs,
                        strict=True,
                    )
                ),
                24,
                name=probes,
            ),
        ),
        ("fewer probes", _probes(lambda t: {**t, "stopped": t["stopped"][:0]})),
        ("ids beyond the vocabulary", _probes(lambda t: {**t, "answers": t["answers"] + 10**6})),
        ("ids below zero", _probes(lambda t: {**t, "prompts": t["prompts"] - 10**6})),
        ("kept ids below zero", _probes(lambda t: {**t, "ids": t["ids"] - 10**6})),
        ("nan", _probes(lambda t: {**t, "logp": t["logp"] * float("nan")})),
        ("no position", _probes(lambda t: {**t, "ids": t["ids"][:0], "logp": t["logp"][:0]})),
        ("scalars", _probes(lambda t: {k: v.flatten()[0].clone() for k, v in t.items()})),
        (
            "one kept token",
            _probes(
                lambda t: {**t, "ids": t["ids"][:, :1].clone(), "logp": t["logp"][:, :1].clone()}
            ),
        ),
        ("text as floats", _probes(lambda t: {k: v.float() for k, v in t.items()})),
        ("lengths below zero", _probes(lambda t: {**t, "answer_lengths": -t["answer_lengths"]})),
    ):
        yield Case(f"import: {probes} with {told}", make, "import")
    facts: list[dict[str, Any]] = [
        {"probes": "x"},
        {"probes": None},
        {"top1": "x", "precision": "bfloat16"},
        {"kl": None, "precision": "bfloat16"},
        {"kl": float("nan"), "precision": "bfloat16"},
        {"precision": "__class__"},
        {"precision": 5},
        {"precision": "../../x"},
        {"base": 5},
        {"base_digest": 5},
        {"base_digest": "x"},
        {"base_digest": None},
        {"base_digest": {"a": 1}},
        {"template_digest": 5},
        {"data_digest": {"a": 1}},
        {"artefact": "../../x"},
        {"equal": 10**30},
        {"equal": "x"},
        {"ties": []},
        {"stop_rate": "x"},
        {"different_from_base": "x"},
        {"precision": "SIDE/out"},
    ]
    for wish in facts:
        yield Case(
            f"import: certificate.json: {json.dumps(wish)}",
            edit("certificate.json", **wish),
            "import",
        )
    spoilt = _probes(lambda t: {**t, "answers": t["answers"] * 0})
    for place in ("SIDE/out", "../../x", "../../../x", "."):
        yield Case(
            f"import: staged in {place}, then refused",
            all_of(spoilt, edit("certificate.json", precision=place)),
            "import",
        )
    manifests: list[Any] = [
        [],
        {},
        {"files": []},
        {"files": 5},
        {"files": None},
        {"files": {"../side/secret.txt": {"bytes": 1, "sha256": "x"}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "x"}}},
        {"files": {"a\0b": {}}},
        "x",
    ]
    for content in manifests:
        make = sealed(content) if isinstance(content, dict) else value("MANIFEST.json", content)
        yield Case(f"import: MANIFEST.json is {content!r:.60}", make, "import", signed=False)
    for told, make in (
        ("that was edited", all_of(lambda f, c: sign(f), edit("MANIFEST.json", name="other"))),
        ("of another format", resealed(lambda known: {**known, "format": 2})),
    ):
        yield Case(f"import: a MANIFEST.json {told}", make, "import", signed=False)
    for wish in (
        {"name": 5},
        {"name": None},
        {"name": "../../../x"},
        {"name": ["x"]},
        {"name": "x" * 10**6},
        {"name": "a\0b"},
        {"name": "'; DROP TABLE models; --"},
    ):
        yield Case(
            f"import: MANIFEST.json: {json.dumps(wish):.60}",
            resealed(lambda known, wish=wish: {**known, **wish}),
            "import",
            signed=False,
        )
    for told, entry in (
        ("null", None),
        ("numbers", 5),
        ("a list", []),
        ("no digest", {"bytes": 1}),
        ("nothing", {}),
    ):
        yield Case(
            f"import: MANIFEST.json with entries that are {told}",
            entries(entry),
            "import",
            signed=False,
        )
    for told, target in (
        ("a folder with secrets", "SIDE"),
        ("the file system", "/usr"),
        ("itself", "."),
        ("nothing", "nowhere"),
        ("a secret file", "SIDE/secret.txt"),
        ("/proc/self", "/proc/self"),
    ):
        yield Case(f"import: a link to {told}", special("extra", target), "import", outside=True)
    yield Case(
        "import: a link to a folder below a folder",
        lambda f, c: ((f / "a").mkdir(), special("a/b", "SIDE")(f, c)),
        "import",
        outside=True,
    )
    yield Case("import: code beside the adapter", with_code, "import")
    yield Case("import: a FIFO as an extra file", special("extra", "fifo"), "import")
    yield Case("import: 1 GB of nothing", sparse("extra.bin", 1 << 30), "import")
    yield Case(
        "import: 20,000 empty files",
        lambda f, c: [(f / f"x{i}").touch() for i in range(20_000)],
        "import",
    )
    yield Case(
        "import: folders 200 deep",
        lambda f, c: (f / "/".join(["d" * 10] * 200)).mkdir(parents=True),
        "import",
    )
    yield Case(
        "import: an archive",
        lambda f, c: (shutil.rmtree(f), shutil.copy(f.parent / "side" / "x.zip", f)),
        "import",
        signed=False,
    )
    yield Case(
        "import: names that differ in case",
        text("ADAPTER_CONFIG.JSON", json.dumps({"auto_mapping": {"parent_library": "evil"}})),
        "import",
    )
    yield Case(
        "import: an adapter and a whole model",
        lambda f, c: shutil.copy(f.parent / "side" / "model.safetensors", f),
        "import",
    )
    for wish in (
        {"auto_map": MAP},
        {"text_config": {"auto_map": MAP}},
        {"_attn_implementation": "someone/evil"},
        {"attn_implementation": "someone/evil"},
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 0},
        {"model_type": "evil"},
        {"transformers_weights": "pytorch_model.bin"},
        {"quantization_config": {"quant_method": "evil"}},
        {"hidden_act": "evil"},
        {"dtype": "load"},
        {"max_position_embeddings": "x"},
        {"_experts_implementation": "someone/evil"},
        {"trust_remote_code": True},
    ):
        yield Case(
            f"import, whole: config.json: {json.dumps(wish):.70}",
            all_of(with_code, pickled("pytorch_model.bin", "torch"), edit("config.json", **wish)),
            "import",
            whole=True,
        )
    for told, make in (
        ("overlaps", header({"a": GOOD["a"], "b": GOOD["a"]}, 24)),
        ("100,000 tensors", header({f"t{i}": GOOD["a"] for i in range(10**5)}, 24)),
        ("its last byte missing", cut("model.safetensors", 1)),
        ("other tensors", header(GOOD, 26)),
        ("a pickle in its place", pickled("model.safetensors", "torch")),
    ):
        yield Case(f"import, whole: model.safetensors with {told}", make, "import", whole=True)
    index = value(
        "model.safetensors.index.json",
        {"metadata": {}, "weight_map": dict.fromkeys(_names(), "SIDE/model.safetensors")},
    )
    yield Case(
        "import, whole: the index names weights outside",
        all_of(without("model.safetensors"), index),
        "import",
        whole=True,
        outside=True,
    )
    bombs = (
        {"chat_template": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"},
        {"chat_template": "{{ 'x' * 10**10 }}"},
        {"chat_template": "x" * (10 << 20)},
        {"chat_template": 5},
        {"chat_template": None},
        {"frozen_on": "evil"},
        {"frozen_on": 5},
        {"frozen_on": None},
        {"bos": 5},
        {"eos": ["x"]},
        {"end_id": "x"},
        {"end_id": 10**12},
        {"end_id": -1},
        {"stop_ids": 5},
        {"stop_ids": None},
        {"stop_ids": [10**12]},
        {"stop_ids": ["x"]},
        {"stop_ids": []},
        {"unknown": 1},
        {"bos": "x" * (10 << 20)},
    )
    for wish in bombs:
        yield Case(
            f"import: prompt_template.json: {json.dumps(wish):.70}",
            edit("prompt_template.json", **wish),
            "import",
        )
    yield Case("import: prompt_template.json: {}", value("prompt_template.json", {}), "import")
    yield Case("import, whole: no config.json", without("config.json"), "import", whole=True)
    yield Case(
        "import, whole: config.json 1,000,000 deep",
        text("config.json", "[" * 10**6),
        "import",
        whole=True,
    )


def _probes(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    def make(folder: Path, canary: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(
            {
                k: v.contiguous()
                for k, v in change(load_file(folder / "probes.safetensors")).items()
            },
            folder / "probes.safetensors",
        )

    return make


def sealed(manifest: dict[str, Any]) -> Make:
    """A manifest with a seal of its own, as anyone can make it."""
    return text(
        durable.MANIFEST,
        durable._sealed(json.loads(json.dumps({"format": durable.FORMAT, **manifest}))),
    )


def resealed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    """A manifest that fits, changed and sealed again."""

    def make(folder: Path, canary: Path) -> None:
        sign(folder)
        known = json.loads((folder / durable.MANIFEST).read_text())
        sealed(change({k: v for k, v in known.items() if k != "seal"}))(folder, canary)

    return make


def entries(entry: Any) -> Make:
    """Every entry of the manifest set to this."""
    return resealed(lambda known: {**known, "files": dict.fromkeys(known["files"], entry)})


TABLES = (
    pickle_cases,
    code_cases,
    weight_cases,
    file_cases,
    json_cases,
    tokenizer_cases,
    template_cases,
    import_cases,
)
HOSTILE: list[Case] = [c for table in TABLES for c in table()]


CONTROLS = [
    Case(f"control: {source}", all_of(pickled("x.bin"), text("control.py", source)), "control")
    for source in (
        "import pickle; pickle.load((folder / 'x.bin').open('rb'))",
        "import os; os.system('touch CANARY')",
        "raise KeyError('raw')",
        "import time\nwhile time.process_time() < 9: pass",
        "bytearray(900 << 20)",
        "import subprocess; subprocess.Popen(['sleep', '60'])",
        "import torch; torch.load(folder / 'x.bin', weights_only=True)",
        "import socket; socket.getaddrinfo('example.com', 80)",
        "import os; os.kill(os.getpid(), 11)",
        "import shutil; shutil.copytree(folder.parent / 'side', home)",
        "import time; time.sleep(60)",
    )
]
GOOD_CASES = [
    Case(f"good: {door}", all_of(), door, whole)
    for door, whole in (("base", False), ("import", False), ("import", True))
]


def sample(n: int) -> list[Case]:
    """`n` cases, evenly spread."""
    return [HOSTILE[i * len(HOSTILE) // n] for i in range(min(n, len(HOSTILE)))]


# ---------------------------------------------------------------- the doors


def take_base(folder: Path, home: Path) -> None:
    """As CREATE, the preparation and the training do it."""
    from tunesmith.models import loading

    spec = take_template(folder, home)
    loading.load_base(spec, loading.device_of("cpu"))


def take_template(folder: Path, home: Path) -> catalog.ModelSpec:
    spec = catalog.find(str(folder), home)
    Encoder(PromptTemplate.of_base(folder), folder).prompt(ASK)
    return spec


def take_import(folder: Path, home: Path) -> None:
    """As `model import` does it, the phase in this process instead of one of its own: what it
    raises is seen as it is."""
    service = tunesmith.Tunesmith(home=home, executor=InThisProcess())
    try:
        model = service.import_model(folder, base_model=str(home.parent / "good" / "base"))
    except TunesmithError:
        if left := [p.name for p in (home / "models").rglob("*") if p.is_file()]:
            raise RuntimeError(f"what was refused was left in the home: {left}") from None
        raise
    service.complete(model.name, [ASK], max_tokens=4)


def take_start(folder: Path, home: Path) -> None:
    """What phases are forked from, started from where the user is; it ends for want of somebody who
    asks."""
    run(
        [sys.executable, "-P", "-m", "tunesmith.executors.preloaded"],
        input=b"",
        cwd=folder,
        capture_output=True,
        timeout=DEADLINE,
    )


def take_control(folder: Path, home: Path) -> None:
    """No door of the product: it does what must never happen."""
    exec((folder / "control.py").read_text(), {"folder": folder, "home": home})


DOORS: dict[str, Callable[[Path, Path], Any]] = {
    "base": take_base,
    "template": take_template,
    "import": take_import,
    "start": take_start,
    "control": take_control,
}


# ---------------------------------------------------------------- the judge


def prepared(folder: Path) -> Path:
    """Good folders to spoil, and beside them what nobody should reach."""
    if forked(lambda: _good(folder), 120.0).code != 0:  # torch is used in children alone
        raise SystemExit("no good models")
    side = folder / "side"
    side.mkdir()
    (side / "secret.txt").write_bytes(SECRET)
    shutil.copy(folder / "good/base/model.safetensors", side)
    pickled("evil.bin")(side, folder / "canary")
    shutil.copytree(folder / "good/base", side / "evil")
    all_of(with_code, edit("config.json", _attn_implementation="eager", auto_map=MAP))(
        side / "evil", folder / "canary"
    )
    for kind in ("zip", "tar"):
        shutil.make_archive(str(side / "x"), kind, folder / "good/base")
    return folder


def _good(folder: Path) -> None:
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / place) for place in ("", "phases")]
    from test_export_artefacts import adapter, noise

    from conftest import make_base
    from tunesmith.phases import export
    from tunesmith.phases.child import Transfer

    base = make_base(folder / "good/base")
    spec = catalog.find(str(base), folder)
    made = adapter(spec, noise, folder / "adapter")
    for merged in (False, True):
        target = folder / "good" / ("merged" if merged else "adapter")
        export.run(
            Transfer("m", spec.to_json(), "lora", str(made), str(target), merged, None, "cpu", 1),
            lambda message: None,
        )


def sign(folder: Path) -> None:
    """A certificate and a manifest that fit what is there, as far as it can be read."""
    file = folder / "certificate.json"
    if (
        file.is_file()
        and (folder / "prompt_template.json").is_file()
        and isinstance(known := _json(file), dict)
    ):
        digest = durable.sha256(folder / "prompt_template.json")
        file.write_text(
            json.dumps({**known, "template_digest": digest})
            if isinstance(known.get("template_digest"), str)
            else json.dumps(known)
        )
    files = [p for p in folder.rglob("*") if not p.is_dir() and p.name != durable.MANIFEST]
    listed = {str(p.relative_to(folder)): _entry(p) for p in files}
    sealed({"files": listed, "name": "m"})(folder, folder)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (ValueError, RecursionError):
        return None


def _entry(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {
            "bytes": file.stat().st_size if file.exists() else 0,
            "sha256": sha256(b"").hexdigest(),
        }
    return {"bytes": file.stat().st_size, "sha256": durable.sha256(file)}


@dataclass(frozen=True)
class End:
    code: int | None
    """None where it had to be killed for its time."""
    left: bool
    """A process of its group was still there."""


def forked(body: Callable[[], Any], seconds: float) -> End:
    """Run `body` in a process of a group of its own, and end the group."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            quiet = os.open(os.devnull, os.O_RDWR)
            for n in range(3):
                os.dup2(quiet, n)
            body()
            code = 0
        finally:
            os._exit(code)
    watch = os.pidfd_open(pid)
    ended = bool(select.select([watch], [], [], seconds)[0])
    os.close(watch)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return End(code if ended else None, left=False)
    return End(code if ended else None, left=ended)


class Watch:
    """What the doors did that no effect on files shows: pickles read, programs started, connections
    sought."""

    def __init__(self) -> None:
        self.on, self.seen = False, set[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("socket.getaddrinfo", "socket.connect"):
            self.seen.add("it reached for the network")
            raise OSError("no network in a proof")
        if event in ("os.system", "os.exec", "os.posix_spawn") or (
            event == "subprocess.Popen" and str(args[0]) != sys.executable
        ):
            self.seen.add(f"it started a program: {args[:2]!r:.100}")
        if event == "pickle.find_class":
            self.seen.add(f"a pickle was read: {args!r:.100}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        import torch

        load = torch.load

        def seen_load(*args: Any, **options: Any) -> Any:
            self.seen.add("torch.load was called")
            return load(*args, **options)

        torch.load = seen_load
        self.on = True
        try:
            yield
        finally:
            self.on = False


def attempt(case: Case, folder: Path) -> Outcome:
    """Take a case in, in a process that can be killed; `folder` is one that `prepared` made."""
    trial, told = folder / "trial", folder / "told.json"
    before, began = _around(folder), time.monotonic()
    end = forked(lambda: told.write_text(json.dumps(_taken(case, folder, trial))), DEADLINE)
    seconds = time.monotonic() - began
    try:
        found = json.loads(told.read_text()) if told.exists() else {}
        outcome = Outcome(
            found.get("kind", "violation"),
            found.get("what", ""),
            found.get("seconds", seconds),
            found.get("growth", 0),
        )
        wrong = [
            *_traces(folder, before),
            *_ending(end, bool(found)),
            *found.get("seen", []),
            *_costs(outcome),
        ]
        return (
            replace(outcome, kind="violation", what="; ".join([*wrong, outcome.what]))
            if wrong
            else outcome
        )
    finally:
        for left in (trial, folder / "home"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(
                missing_ok=True
            )
        told.unlink(missing_ok=True)
        (folder / "canary").unlink(missing_ok=True)


def _taken(case: Case, folder: Path, trial: Path) -> dict[str, Any]:
    """In the forked process: spoil, take in, and say how that went."""
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    good = ("merged" if case.whole else "adapter") if case.door == "import" else "base"
    shutil.copytree(folder / "good" / good, trial)
    watch = Watch()
    case.make(trial, folder / "canary")
    if case.door == "import" and case.signed:
        sign(trial)
    before, began = _used()
    try:
        with watch.listening():
            DOORS[case.door](trial, folder / "home")
        kind, what = (
            ("violation", "what lies outside was taken in") if case.outside else ("accepted", "")
        )
    except TunesmithError as e:
        kind, what = "refused", f"{type(e).__name__}: {e}"
        if not what.isascii() and what.encode(errors="replace").decode() != what:
            kind = "violation"  # who prints it gets a UnicodeEncodeError
    except BaseException as e:
        kind, what = (
            "violation",
            f"raw {type(e).__module__}.{type(e).__name__}: {e!s:.150} [{_place(e)}]",
        )
    after, ended = _used()
    return {
        "kind": kind,
        "what": what,
        "seen": sorted(watch.seen),
        "seconds": ended - began,
        "growth": after - before,
    }


def _used() -> tuple[int, float]:
    """The most memory this process has had, in bytes, and the processor time of it and its
    children, in seconds."""
    own, below = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_maxrss << 10, own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime


def _place(e: BaseException) -> str:
    """The last line of the product that it came through."""
    place, trace = "", e.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        place = f"{Path(file).name}:{trace.tb_lineno}" if "/tunesmith/" in file else place
        trace = trace.tb_next
    return place


def _around(folder: Path) -> set[Path]:
    """What lies where no door has anything to write."""
    return {
        p
        for p in [*folder.iterdir(), *(folder / "side").rglob("*")]
        if p.name not in ("trial", "home", "told.json", "canary")
    }


def _traces(folder: Path, before: set[Path]) -> Iterator[str]:
    if new := _around(folder) - before:
        yield f"it wrote outside: {', '.join(sorted(p.name for p in new))[:60]}"
        for p in new:
            shutil.rmtree(p, ignore_errors=True) if p.is_dir() else p.unlink(missing_ok=True)
    if (folder / "canary").exists():
        yield "CODE RAN"
    if any(
        SECRET in f.read_bytes()
        for f in (folder / "home").rglob("*")
        if f.is_file() and f.stat().st_size == len(SECRET)
    ):
        yield "a file from outside was copied"


def _ending(end: End, told: bool) -> Iterator[str]:
    if end.code is None:
        yield f"it took over {DEADLINE:.0f} s"
    elif end.code or not told:
        yield f"its process ended by {end.code}"
    if end.left:
        yield "a process was left behind"


def _costs(outcome: Outcome) -> Iterator[str]:
    if outcome.seconds > SECONDS:
        yield f"it took {outcome.seconds:.1f} s"
    if outcome.growth > GROWTH:
        yield f"it took {outcome.growth >> 20} MB"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--every", type=int, default=1, help="take each n-th case alone")
    options.add_argument(
        "--name", default="", help="cases with this in their name alone; nothing is saved then"
    )
    options.add_argument("--verbose", action="store_true", help="show every case")
    asked = options.parse_args()
    cases = [c for c in sample(len(HOSTILE) // asked.every) if asked.name in c.name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = prepared(Path(temporary))
        if bad := [o for o in (attempt(c, folder) for c in GOOD_CASES) if o.kind != "accepted"]:
            raise SystemExit(f"what is good was not taken in: {bad}")
        began = time.monotonic()
        found = [_shown(c, attempt(c, folder), asked.verbose) for c in cases]
        seconds = time.monotonic() - began
        controls = [] if asked.name else [attempt(c, folder) for c in CONTROLS]
    broken, refused = (sum(o.kind == kind for o in found) for kind in ("violation", "refused"))
    print(
        f"{len(cases)} cases: {refused} refused, {len(cases) - refused - broken} harmlessly taken in, {broken} broke it, {seconds:.0f} s"
    )
    if not controls:
        sys.exit(bool(broken))
    ran, seen = (
        sum("CODE RAN" in o.what for o in found),
        sum(o.kind == "violation" for o in controls),
    )
    promise, reached = (
        f"{len(cases)} hostile models and templates: nothing runs",
        f"{ran} executions, {broken - ran} other breaks",
    )
    nothing = Proof(promise, "0 executions, 0 raw errors", reached, not broken, seconds)
    promise = "the control: code, raw errors, cost and the rest are seen"
    control = Proof(promise, f"{len(controls)} seen", f"{seen} seen", seen == len(controls), 0.0)
    show_and_save([nothing, control], "python proofs/models.py")


def _shown(case: Case, outcome: Outcome, verbose: bool) -> Outcome:
    if verbose or outcome.kind == "violation":
        line = f"{outcome.kind:<10} {outcome.seconds:5.1f} s {outcome.growth >> 20:4} MB  {case.name}  |  {outcome.what[:300]}"
        print(line.encode(errors="backslashreplace").decode(), flush=True)
    return outcome


if __name__ == "__main__":
    main()

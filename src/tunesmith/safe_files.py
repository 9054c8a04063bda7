"""Model files from elsewhere, looked at before any library reads them. No torch.

A safetensors file is believed only where its header is small and its tensors fill the file without
gaps or overlaps; a config.json only where it asks for no code.
"""

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tunesmith.errors import UnsafeBaseModel

T = TypeVar("T")
LARGEST_HEADER, MOST_TENSORS = 4 << 20, 40_000
LARGEST_JSON = 64 << 20  # tokenizer.json of the largest vocabularies
BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
ASKING = (
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "attn_implementation",
    "experts_implementation",
    "transformers_weights",
)
"""What makes a library load code of others, or weights from elsewhere; as every private key can."""
MEANT = {("max_relative_positions", -1)}
"""Below zero all the same: how DeBERTa says that it takes its longest text."""
LARGEST_NUMBER = 2**31  # of a config: a count beyond it is nothing that could be built
NORMALIZERS = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "StripAccents",
    "Strip",
    "BertNormalizer",
    "Precompiled",
    "ByteLevel",
    "Prepend",
    "Replace",
}
LONGEST_CHAIN, LONGEST_WORD = (
    64,
    500,
)  # normalizers one after the other; characters of a pattern, and of what is put before a text
MOST_GROWTH = 16.0  # of a text, by all of them together
INDEX = "model.safetensors.index.json"
WRITTEN = ("_name_or_path", "_attn_implementation_autoset", "_commit_hash")
"""Private keys that libraries write into every file: left out without a word."""
NUMBER = "__float__"  # how transformers writes an infinite number: an object of this one key
NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def check_regular(file: Path) -> None:
    """UnsafeBaseModel unless it is an ordinary file (a link to one, as the hub's cache has them,
    included)."""
    try:
        mode = file.stat().st_mode
    except OSError as e:
        raise _unsafe(file, f"cannot be read: {e.strerror}") from None
    if not stat.S_ISREG(mode):
        raise _unsafe(file, "is no ordinary file")


def _unsafe(file: Path, reason: str) -> UnsafeBaseModel:
    return UnsafeBaseModel(folder=str(file.parent), reason=f"{file.name} {reason}")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object."""
    check_regular(file)
    if file.stat().st_size > LARGEST_JSON:
        raise _unsafe(file, f"has {file.stat().st_size:,} bytes, {LARGEST_JSON:,} at most")
    try:
        value = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise _unsafe(file, f"cannot be read: {e}") from None
    if not isinstance(value, dict):
        raise _unsafe(file, "holds no object")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json without what could load code or other weights: no library sees more of it.
    UnsafeBaseModel where it cannot be read without."""
    return _cleaned(folder)[0]


def left_out(folder: Path) -> tuple[str, ...]:
    """What a config.json asks for and `read_config` leaves out."""
    return tuple(sorted(_cleaned(folder)[1]))


def _cleaned(folder: Path) -> tuple[dict[str, Any], set[str]]:
    config = read_object(folder / "config.json")
    for key, value in _entries(config):
        if key == "quantization_config" and value:
            kind = value.get("quant_method") if isinstance(value, Mapping) else None
            reason = (
                f"its weights are quantised ({key}: {kind or value!r:.60}); bring them as they "
                f"were before. With precision=nf4 a job quantises frozen weights itself"
            )
            raise UnsafeBaseModel(folder=str(folder), reason=reason)
        if (
            key.startswith(("num_", "max_", "n_"))
            and isinstance(value, (int, float))
            and not 0 <= value < LARGEST_NUMBER
            and (key, value) not in MEANT
        ):
            raise UnsafeBaseModel(
                folder=str(folder), reason=f"its config.json sets {key} to {value!r:.20}"
            )
    gone: set[str] = set()
    try:
        return _without(config, gone), gone
    except RecursionError:
        raise _unsafe(folder / "config.json", "is too deep to be read") from None


def _without(value: Any, gone: set[str]) -> Any:
    if isinstance(value, list):
        return [_without(one, gone) for one in value]
    if not isinstance(value, Mapping):
        return value
    if set(value) == {NUMBER} and str(value[NUMBER]) in NUMBERS:
        return NUMBERS[str(value[NUMBER])]
    kept = {k: v for k, v in value.items() if k not in ASKING and not k.startswith("_")}
    gone |= {k for k, v in value.items() if k not in kept and k not in WRITTEN and v}
    return {k: _without(v, gone) for k, v in kept.items()}


def check_model(folder: Path) -> int:
    """The number of weights of a whole model in a folder; UnsafeBaseModel unless all of it lies
    there, as its headers say."""
    config = read_config(folder)
    if (folder / "adapter_config.json").exists():
        raise UnsafeBaseModel(
            folder=str(folder),
            reason="it holds an adapter_config.json: an adapter is imported, not a base",
        )
    files = sorted(folder.glob("*.safetensors"))
    sizes = [tensor_sizes(f) for f in files]
    if os.path.lexists(folder / INDEX):
        named = read_object(folder / INDEX).get("weight_map")
        known = {f.name for f in files}
        if not isinstance(named, dict) or not all(
            isinstance(n, str) and n in known for n in named.values()
        ):
            raise UnsafeBaseModel(
                folder=str(folder),
                reason=f"{INDEX} names files that are not .safetensors files of this folder",
            )
    layers, tensors = (
        config.get("num_hidden_layers") or config.get("n_layer") or 0,
        sum(map(len, sizes)),
    )
    if files and (type(layers) is not int or layers > tensors):
        reason = (
            f"weights are missing: its config.json asks for {layers!r:.20} layers, and its "
            f"files hold {tensors} tensors"
        )
        raise UnsafeBaseModel(folder=str(folder), reason=reason)
    if files and _is_nothing(config):
        raise UnsafeBaseModel(
            folder=str(folder),
            reason="its config.json gives a width, or a number of words or labels, that is none",
        )
    return sum(n for s in sizes for n in s.values())


def check_normalizer(file: Path, normalizer: Any) -> None:
    """UnsafeBaseModel where a tokenizer.json rewrites texts so that they can grow without bound;
    the library does whatever stands there."""
    todo, growth = [normalizer], 1.0
    while todo:
        one = todo.pop()
        if one is None:
            continue
        kind = one.get("type") if isinstance(one, dict) else None
        if kind == "Sequence" and isinstance(one.get("normalizers"), list):
            todo += one["normalizers"]
            continue
        growth *= _growth(one) if kind in NORMALIZERS else math.inf
        if growth > MOST_GROWTH or len(todo) > LONGEST_CHAIN:
            raise _unsafe(file, f"has a normalizer that is not taken: {json.dumps(one)[:120]}")


def _growth(normalizer: Mapping[str, Any]) -> float:
    """How much longer a text can become by it; without bound where nothing is replaced by
    something."""
    if normalizer["type"] == "Prepend":
        return 1.0 if len(str(normalizer.get("prepend", ""))) <= LONGEST_WORD else math.inf
    if normalizer["type"] != "Replace":
        return 1.0
    pattern, added = normalizer.get("pattern"), normalizer.get("content")
    kind, wanted = next(iter(pattern.items()), ("", "")) if isinstance(pattern, dict) else ("", "")
    if (
        not isinstance(added, str)
        or not isinstance(wanted, str)
        or not 1 <= len(wanted) <= LONGEST_WORD
    ):
        return math.inf
    return max(1.0, len(added) / (len(wanted) if kind == "String" else 1))


def _is_nothing(config: Mapping[str, Any]) -> bool:
    """A width or a count of labels that is no sound number."""
    named = [
        config.get(k) for k in ("hidden_size", "vocab_size", "intermediate_size", "num_labels")
    ]
    numbers = [n for v in named if v is not None for n in (v if isinstance(v, list) else [v])]
    return not all(type(n) is int and 0 < n < 10**8 for n in numbers)


def from_object(kind: type[T], data: Any) -> T:
    """A dataclass of plain fields from a JSON object of strangers; ValueError unless every field is
    there, of its type, and no other."""
    if not isinstance(data, Mapping) or {f.name for f in fields(kind)} != set(data):  # type: ignore[arg-type]
        raise ValueError("it has other fields than it should")
    known = {"str": str, "int": int, "float": (int, float), "bool": bool}
    found = {}
    for f in fields(kind):  # type: ignore[arg-type]
        name, value = str(getattr(f.type, "__name__", f.type)), data[f.name]
        if name == "tuple" or "tuple[int" in str(f.type):
            good, value = (
                isinstance(value, (list, tuple)) and all(type(v) is int for v in value),
                tuple(value) if isinstance(value, list) else value,
            )
        else:
            wanted: Any = known[name]
            good = isinstance(value, wanted) and (name == "bool" or not isinstance(value, bool))
        if not good:
            raise ValueError(f"{f.name} is {value!r:.40}")
        found[f.name] = value
    return kind(**found)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            yield from ((str(k), v) for k, v in one.items())
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def tensor_sizes(file: Path) -> dict[str, int]:
    """Elements of every tensor of a safetensors file, from its header alone."""
    check_regular(file)
    size = file.stat().st_size
    with _opened(file) as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            reason = (
                f"is no safetensors file: its header would have {length:,} bytes of "
                f"{size:,}, {LARGEST_HEADER:,} at most"
            )
            raise _unsafe(file, reason)
        text = f.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as e:
        raise _unsafe(file, f"has a header that cannot be read: {e}") from None
    if not isinstance(header, dict) or len(header) > MOST_TENSORS:
        raise _unsafe(file, f"has a header of no tensors, or of over {MOST_TENSORS:,}")
    header.pop("__metadata__", None)
    found, ends = {}, []
    for name, facts in header.items():
        found[name], place = _elements(file, name, facts)
        ends.append(place)
    at = 0
    for start, end in sorted(ends):
        if start != at:
            raise _unsafe(file, f"holds tensors that overlap or leave a gap at byte {at:,}")
        at = end
    if at != size - 8 - length:
        raise _unsafe(file, f"holds tensors that fill {at:,} of its {size - 8 - length:,} bytes")
    return found


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb") as f:
            yield f
    except OSError as e:
        raise _unsafe(file, f"cannot be read: {e.strerror}") from None


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _elements(file: Path, name: str, facts: Any) -> tuple[int, tuple[int, int]]:
    try:
        shape, (start, end), width = facts["shape"], facts["data_offsets"], BYTES[facts["dtype"]]
        numbers = [*shape, start, end]
        good = (
            all(type(n) is int and 0 <= n < 2**48 for n in numbers)
            and len(shape) <= 8
            and end - start == width * math.prod(shape)
        )
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise _unsafe(file, f"has no sound type, shape and place for the tensor {name!r:.80}")
    return math.prod(shape), (start, end)

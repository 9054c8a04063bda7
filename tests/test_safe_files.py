"""Files from elsewhere: whatever their bytes are, they are believed or refused in words, and
nothing else happens."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_base
from tunesmith import catalog, safe_files
from tunesmith.errors import UnsafeBaseModel
from tunesmith.safe_files import from_object, read_config, tensor_sizes

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
}


ASKED = (
    "auto_map",
    "trust_remote_code",
    "_attn_implementation_internal",
    "_attn_implementation",
    "_experts_implementation",
    "custom_pipelines",
)


def stored(file: Path, header: Any, data: int = 26, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(
        (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)
    )
    return file


def changed(**facts: Any) -> dict[str, Any]:
    return {**GOOD, "a": {**GOOD["a"], **facts}}


def test_the_elements_of_every_tensor_are_read_from_the_header_alone(tmp_path: Path) -> None:
    assert tensor_sizes(stored(tmp_path / "x", {"__metadata__": {"format": "pt"}, **GOOD})) == {
        "a": 6,
        "b": 1,
    }
    assert tensor_sizes(stored(tmp_path / "x", {}, 0)) == {}


HOSTILE: list[tuple[Any, dict[str, int]]] = [
    (GOOD, {"data": 25}),
    (GOOD, {"data": 27}),
    (GOOD, {"length": 0}),
    (GOOD, {"length": 1}),
    (GOOD, {"length": 2**63}),
    (GOOD, {"length": 10_000}),
    (b"", {}),
    (b"{", {}),
    (b"[]", {"data": 0}),
    (b"null", {"data": 0}),
    (b"\xff\xfe{}", {"data": 0}),
    (b"[" * 100_000, {"data": 0}),
    (
        b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
        {"data": 24},
    ),
    (changed(dtype="F128"), {}),
    (changed(dtype=None), {}),
    (changed(dtype=["F32"]), {}),
    (changed(shape=[2, 4]), {}),
    (changed(shape=[-2, -3]), {}),
    (changed(shape=[2.0, 3]), {}),
    (changed(shape="23"), {}),
    (changed(shape=[True, 6]), {}),
    (changed(shape=[2**62, 2**62, 0]), {}),
    (changed(shape=None), {}),
    (changed(data_offsets=[0]), {}),
    (changed(data_offsets=[24, 0]), {}),
    (changed(data_offsets=[0, 24, 30]), {}),
    (changed(data_offsets=[-24, 0]), {}),
    (changed(data_offsets=[1, 25]), {}),
    (changed(data_offsets=[2, 26]), {}),
    (changed(data_offsets=None), {}),
    ({"a": 3}, {}),
    ({"a": None}, {}),
    ({"a": {}}, {}),
    ({f"t{i}": GOOD["a"] for i in range(3)}, {"data": 24}),
    (
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(40_001)},
        {"data": 0},
    ),
    ({"a": {"dtype": "U8", "shape": [1] * 9, "data_offsets": [0, 1]}}, {"data": 1}),
    ({**GOOD, "x" * (5 << 20): GOOD["a"]}, {}),
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_header_that_lies_is_refused(tmp_path: Path, case: int) -> None:
    header, rest = HOSTILE[case]
    with pytest.raises(UnsafeBaseModel):
        tensor_sizes(stored(tmp_path / "x", header, **rest))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 220),
)
def test_garbled_bytes_are_believed_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, bytes_: list[tuple[int, int]], end: int
) -> None:
    file = stored(tmp_path_factory.getbasetemp() / "garbled", GOOD)
    whole = bytearray(file.read_bytes())
    for place, value in bytes_:
        whole[place % len(whole)] = value
    file.write_bytes(whole[: max(1, len(whole) - end)] if end < 20 else whole)
    try:
        assert sum(tensor_sizes(file).values()) <= 26
    except UnsafeBaseModel:
        pass


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to nothing", "device"])
def test_what_is_no_ordinary_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "x.safetensors"
    match kind:
        case "fifo":
            os.mkfifo(file)  # reading it would wait for ever
        case "folder":
            file.mkdir()
        case "link to nothing":
            file.symlink_to(tmp_path / "nowhere")
        case "device":
            file.symlink_to("/dev/zero")
    with pytest.raises(UnsafeBaseModel, match="ordinary|cannot be read"):
        tensor_sizes(file)
    with pytest.raises(UnsafeBaseModel, match="ordinary|cannot be read"):
        safe_files.read_object(file)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "x.Y"}},
        {"text_config": {"auto_map": {"AutoModel": "x.Y"}}},
        {"a": [{"b": {"trust_remote_code": True}}]},
        {"_attn_implementation": "someone/kernel"},
        {"_attn_implementation_internal": "someone/kernel:f"},
        {"custom_pipelines": {"x": {}}},
        {"vision_config": {"_experts_implementation": "someone/x"}},
    ],
)
def test_what_asks_for_code_is_left_out_of_a_configuration_however_deep(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_base(tmp_path / "base")
    kept = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**kept, **config}))
    wanted = next(key for key in ASKED if key in json.dumps(config))
    assert catalog.find(str(folder), tmp_path).left_out == (wanted,)
    assert not any(key in json.dumps(read_config(folder)) for key in ASKED)


def test_a_configuration_as_libraries_write_it_is_believed(tmp_path: Path) -> None:
    config = {
        "_name_or_path": "x/y",
        "architectures": ["LlamaForCausalLM"],
        "auto_map": None,
        "rope_parameters": {"rope_type": "default"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    left = {k: v for k, v in config.items() if k not in ("_name_or_path", "auto_map")}
    assert read_config(tmp_path) == left and safe_files.left_out(tmp_path) == ()
    config["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path)["time_step_limit"] == [0.0, float("inf")]


@dataclass(frozen=True)
class Told:
    name: str
    count: int
    share: float
    ids: tuple[int, ...]


TOLD: dict[str, Any] = {"name": "a", "count": 3, "share": 0.5, "ids": [1, 2]}


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {},
        {**TOLD, "more": 1},
        {k: v for k, v in TOLD.items() if k != "ids"},
        TOLD | {"name": 3},
        TOLD | {"count": "3"},
        TOLD | {"count": True},
        TOLD | {"count": 3.5},
        TOLD | {"share": None},
        TOLD | {"ids": "12"},
        TOLD | {"ids": [1, "2"]},
        TOLD | {"ids": [True]},
    ],
)
def test_an_object_of_strangers_has_every_field_of_its_type_and_no_other(data: Any) -> None:
    assert (
        from_object(Told, TOLD) == Told("a", 3, 0.5, (1, 2))
        and from_object(Told, TOLD | {"share": 1}).share == 1
    )
    with pytest.raises(ValueError):
        from_object(Told, data)

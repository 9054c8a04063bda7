"""Shared by all tests: a home of its own, tiny real models, real data where it is at hand. Nothing
is mocked, no network is reached."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))
from postgresql import programs, server

from tunesmith import catalog

BROUGHT = os.environ.setdefault("TUNESMITH_TESTS_BROUGHT", str(catalog.bases_folder()))
"""Where this user's own bases are, for tests that name one, also in the workers of a test run."""
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TUNESMITH_BASES": tempfile.mkdtemp(),  # what this user brought is none of a test's
    "TUNESMITH_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TUNESMITH_IDLE_S": "5",
    "TOKENIZERS_PARALLELISM": "false",
}
T = TypeVar("T")
CI = bool(os.environ.get("CI"))
DATA = Path(os.environ.get("TUNESMITH_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def pytest_configure(config: pytest.Config) -> None:
    """One process that has torch imported serves all workers of a test run: a phase costs no
    import."""
    if hasattr(config, "workerinput") or "TUNESMITH_PRELOADED" in os.environ:
        return
    place = Path(tempfile.mkdtemp()) / "preloaded"
    words = ["--socket", str(place), "--parent", str(os.getpid())]
    subprocess.Popen([sys.executable, "-m", "tunesmith.executors.preloaded", *words])
    os.environ["TUNESMITH_PRELOADED"] = str(place)


SPREAD = ("test_promises.py", "test_docs.py")  # whose tests take long and share nothing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first, each for whoever is free; those of any other file stay together."""
    items.sort(key=lambda item: item.path.name not in SPREAD)
    for item in items:
        if item.path.name not in SPREAD:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With CI set, what is missing is a failure, not a skip."""
    outcome: Any = yield
    report = outcome.get_result()
    if CI and report.skipped and not hasattr(report, "wasxfail") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI is set: {report.longrepr}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(
            ("127.", "::1", "localhost")
        ):
            raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def need_base(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let this test see the bases that the user brought; a skip where the one that it needs is not
    among them."""
    monkeypatch.setenv("TUNESMITH_BASES", BROUGHT)
    if name not in catalog.brought():
        pytest.skip(f"tunesmith base add {name}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of this test's own; the workers it started end with it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("TUNESMITH_HOME", str(folder))
    monkeypatch.delenv("TUNESMITH_STORE", raising=False)
    yield folder
    kill_worker(folder)


def until(condition: Callable[[], T], seconds: float = 60) -> T:
    """Wait for something; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def in_process_worker(service: Any) -> Any:
    """A worker of this process, with real phases."""
    from tunesmith.executors.local import LocalExecutor
    from tunesmith.worker import Worker

    return Worker(service.settings, service.store, LocalExecutor(service.settings))


def kill_worker(home: Path) -> int | None:
    """Kill the worker of a home, as `kill -9` does; its process id, if there was one alive."""
    from tunesmith.worker import is_alive

    if not (home / "worker.lock").exists():
        return None
    while is_alive(home):
        # It holds the lock a moment before its number stands there; 0 would be this whole test run.
        if pid := int((home / "worker.lock").read_text() or 0):
            os.kill(pid, signal.SIGKILL)
            return pid
        time.sleep(0.01)
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real rows and real small models; the test skips where they are absent."""
    if not DATA.is_dir():
        pytest.skip(f"no test data in {DATA}; set TUNESMITH_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A real PostgreSQL server of this test run, on loopback; its URL without a database. Skips
    where no server is installed."""
    if programs() is None:
        pytest.skip("no PostgreSQL server: install the package postgresql")
    with server() as url:
        yield url


def decided(**values: Any) -> Any:
    """Options as they might have been decided; those that are named, as named."""
    from tunesmith.options import Decided, Options

    usual = {"max_epochs": 3, "method": "lora", "learning_rate": 1e-2, "batch_size": 4, "rank": 4}
    usual |= {"split_seed": 0, "order_seed": 0}
    return Decided(**{**vars(Options()), **usual, **values})


WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "stone")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers and width 32 with a byte-level tokenizer, saved as a Hugging
    Face folder."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    return make_base(folder)


def make_base(folder: Path, **changes: Any) -> Path:
    """Write a tiny base; `changes` go into its config."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(special + alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "chat_template": template})
    )
    config = {
        "vocab_size": len(special) + len(alphabet),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 0,
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**config, **changes}))
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def make_encoder(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """Write a tiny encoder of whole words and letters; `changes` go into its config."""
    import string

    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    special = ["<pad>", "<unk>", "<cls>", "<sep>"]
    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = [*special, *WORDS, *letters, *(f"##{c}" for c in letters)]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", 2), ("<sep>", 3)],
    )
    tokenizer.enable_truncation(16)  # as some bases are saved: it must not be read
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<cls>", "sep_token": "<sep>"}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    config = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.1,
    }
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[kind](**{**config, **changes}))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has learnt which words a text holds: what random weights make of texts is all
    alike."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    torch.set_num_threads(1)
    folder = make_encoder(tmp_path_factory.mktemp("bases") / "encoder")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=12)
    config = {"num_labels": len(WORDS), "problem_type": "multi_label_classification"}
    model = BertForSequenceClassification.from_pretrained(folder, **config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        held = torch.rand(16, len(WORDS), generator=draw) < 0.25
        texts = [" ".join(w for w, h in zip(WORDS, row, strict=True) if h) for row in held]
        made = tokenizer.encode_batch(texts)
        ids, mask = (torch.tensor([getattr(e, n) for e in made]) for n in ("ids", "attention_mask"))
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=held.float()).loss.backward()
        optimizer.step()
    model.bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tuned_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base after it has learnt to repeat a word: adapters on random weights learn nothing,
    so tests of learning start here."""
    import shutil

    import torch
    from transformers import LlamaForCausalLM

    from tunesmith.data.template import Encoder, PromptTemplate
    from tunesmith.tasks.text_generation import collate, token_losses

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases") / "repeats"
    shutil.copytree(tiny_base, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    encoder = Encoder(PromptTemplate.of_base(folder), folder)
    batch = collate(
        [encoder.row([{"role": "user", "content": f"say {w}"}], w) for w in WORDS], model
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(token_losses(model, batch).mean())
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def next_word_rows(copies: int = 1) -> list[dict[str, str]]:
    """A mapping to learn: each word is answered with the next one."""
    return [
        {"prompt": f"say {w}", "completion": WORDS[(i + 1) % len(WORDS)]}
        for i, w in enumerate(WORDS)
    ] * copies


@atexit.register
def _quiet_end() -> None:
    """DuckDB's binding counts as leaked what pytest and torch still hold when Python ends (no
    connection is among it); 43 lines after the closing line help nobody. What a user's own process
    prints is tested in interfaces/test_duckdb.py."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

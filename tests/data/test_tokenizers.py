"""Tokenizers of every kind: what is streamed always begins the whole text, and one that does not fit
its model is named at CREATE."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from conftest import make_base
from tunesmith import Tunesmith
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import UnfitBaseModel

TEXT = ["the invoice isn't late", "do not, billing €", "the parcel is broken 😀", "I 've been"] * 50
SPECIAL = ["<unk>", "<|end|>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Qwen, Llama 3."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    t.train_from_iterator(TEXT, trainer)
    return t


def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral, Gemma."""
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=SPECIAL + bytes_)
    t.train_from_iterator(["▁" + x.replace(" ", "▁") for x in TEXT], trainer)
    found = json.loads(t.to_str())
    found["added_tokens"] = [a for a in found["added_tokens"] if a["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(found))


def unigram() -> Tokenizer:
    """As T5, XLM-R, ALBERT."""
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    t.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return t


def word_pieces() -> Tokenizer:
    """As BERT: its decoder joins words and signs."""
    t = Tokenizer(models.WordPiece(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    t.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    return t


KINDS = {f.__name__: f for f in (byte_level, byte_fallback, unigram, word_pieces)}


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("tokenizers") / "base"
    make_base(folder)
    KINDS[request.param]().save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return Encoder(PromptTemplate.of_base(folder), folder)


@settings(max_examples=300, deadline=None)
@given(draw=st.data())
def test_what_is_streamed_always_begins_the_whole_text(encoder: Encoder, draw: Any) -> None:
    size = len(encoder._text.get_vocab())
    ids = draw.draw(st.lists(st.integers(0, size - 1), max_size=24))
    step, said = encoder.pieces(), ""
    for n, i in enumerate(ids, 1):
        said += step(i)
        assert encoder.decode(ids[:n]).startswith(said)
        assert encoder.decode(ids).startswith(said), (encoder.decode(ids), said)


def test_bytes_on_both_sides_of_a_special_token_are_one_run(encoder: Encoder) -> None:
    """As a draw once found: the second makes the first another character."""
    words = encoder._text.get_vocab()
    ids = [words[w] for w in ("<0x00>", "<|end|>", "<0x82>") if w in words]
    step = encoder.pieces()
    said = "".join(map(step, ids))
    assert encoder.decode(ids).startswith(said)


@pytest.mark.parametrize("text", ["the invoice isn't late", "billing €", "😀 do not 😀"])
def test_a_text_is_streamed_to_its_last_word(encoder: Encoder, text: str) -> None:
    """A control: it is not only little that is said early."""
    ids = encoder.text(text)
    step = encoder.pieces()
    said = "".join(map(step, ids))
    whole = encoder.decode(ids)
    assert whole.startswith(said) and len(said) >= len(whole) - (8 if encoder._joins else 0)


def changed(folder: Path, name: str, **facts: Any) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, **facts}))


def test_a_token_without_an_embedding_is_named_at_create(home: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    words = Tokenizer.from_file(str(base / "tokenizer.json"))
    words.add_tokens(["frobnicate"])
    words.save(str(base / "tokenizer.json"))
    rows = [{"prompt": f"say {i}", "completion": "yes"} for i in range(20)]
    with pytest.raises(UnfitBaseModel, match=f"'frobnicate' as number {size}.* {size} rows"):
        Tunesmith().create("m", str(base), rows)
    with pytest.raises(UnfitBaseModel, match="frobnicate"):
        Tunesmith().complete(str(base), ["frobnicate"])
    padded = make_base(tmp_path / "padded")  # more rows than the tokenizer has words
    changed(padded, "config.json", vocab_size=size - 1)
    with pytest.raises(UnfitBaseModel):
        PromptTemplate.of_base(padded)
    changed(padded, "config.json", vocab_size=size + 64)
    assert PromptTemplate.of_base(padded).stop_ids


def test_an_end_token_that_is_none_of_the_embedding_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "tokenizer_config.json").write_text("{}")
    (base / "generation_config.json").unlink(missing_ok=True)
    changed(base, "config.json", eos_token_id=5000)
    with pytest.raises(UnfitBaseModel, match="id 5000"):
        PromptTemplate.of_base(base)
    changed(base, "config.json", eos_token_id=[3, 5000])  # one of several: it is never written
    assert PromptTemplate.of_base(base).stop_ids == (3,)

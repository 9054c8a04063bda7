"""A generative job whose answers are a few names is told what a classifier would reach."""

from pathlib import Path

import pytest

from conftest import WORDS
from tunesmith import Tunesmith, catalog
from tunesmith.interfaces.pages import quote_text


def test_the_quote_names_a_classifier_that_is_here_and_what_it_would_score(
    home: Path,
    tuned_base: Path,
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNESMITH_BASES", str(tmp_path / "bases"))
    rows = [
        {"prompt": f"{WORDS[i % 2]} {WORDS[3 + i % 5]} {i}", "completion": WORDS[i % 2]}
        for i in range(100)
    ]
    ts = Tunesmith()
    assert ts.quote(rows, base_model=str(tuned_base)).classifier == ""
    ts.add_base(str(tiny_encoder), "labels")
    assert catalog.find("labels", home).task == "text_classification"
    quote = ts.quote(rows, base_model=str(tuned_base))
    assert quote.classifier == "labels" and quote.classifier_score > 0.8
    assert "--base labels" in quote_text(quote)
    free = [{**r, "completion": f"an answer of its own, {i}"} for i, r in enumerate(rows)]
    assert ts.quote(free, base_model=str(tuned_base)).classifier == ""

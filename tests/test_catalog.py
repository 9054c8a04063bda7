from pathlib import Path

import pytest

from conftest import make_base
from tunesmith import catalog
from tunesmith.errors import UnknownBaseModel, UnsafeBaseModel, WeightsNotHere

CONTRACT = {
    "llama3-8b": (6000, 2000, 186_000),
    "llama3-70b": (6000, 2000, 21_000),
    "llama3.1-8b": (20_000, 4000, 150_000),
    "llama3.1-70b": (6000, 2000, 13_500),
    "mistral-7b": (28_000, 4000, 45_000),
    "mixtral-8x7b": (28_000, 4000, 27_000),
}


def test_the_contracts_six_names_have_their_windows_and_row_limits() -> None:
    found = {n: s for n, s in catalog.entries().items() if n in CONTRACT}
    assert {
        n: (s.prompt_window, s.completion_window, s.row_limit) for n, s in found.items()
    } == CONTRACT
    assert found["llama3.1-8b"].context == 128_000


def test_every_entry_has_a_licence_and_a_way_to_its_weights() -> None:
    for spec in catalog.entries().values():
        assert spec.licence != "unknown" and spec.parameters > 0
        assert spec.bundled or spec.hub_id or spec.name in catalog.origins()
        assert spec.prompt_window + spec.completion_window <= spec.context


def test_the_bundled_base_is_found_in_any_case(tmp_path: Path) -> None:
    spec = catalog.find("TuneSmith-Tiny", tmp_path)
    assert (
        spec.name == "tunesmith-tiny"
        and (Path(spec.folder) / "model.safetensors").is_file()
        and spec.pretraining_rate
    )


def test_a_local_folder_needs_no_entry(tiny_base: Path, tmp_path: Path) -> None:
    spec = catalog.find(str(tiny_base), tmp_path)
    assert (spec.context, spec.prompt_window, spec.completion_window) == (
        128,
        96,
        32,
    ) and 0 < spec.parameters < 60_000
    assert spec.public_name == "tiny"


def test_weights_are_found_in_the_home_and_in_the_hubs_cache(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    home = tmp_path / "home"
    with pytest.raises(WeightsNotHere):
        catalog.find("smollm2-135m", home)
    shutil.copytree(tiny_base, home / "bases" / "smollm2-135m")
    assert catalog.find("smollm2-135m", home).context == 128, "never more than the weights' own"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / "hub" / "models--someone--something"
    shutil.copytree(tiny_base, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert catalog.find("someone/something", home).public_name == "someone/something"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda f: (f / "config.json").write_text('{"quantization_config": {"bits": 4}}'),
            "quantised",
        ),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "no object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer\.json"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"no \.safetensors"),
    ],
)
def test_a_folder_that_cannot_be_trusted_or_read_is_refused(
    tmp_path: Path, damage: object, reason: str
) -> None:
    folder = make_base(tmp_path / "base")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UnsafeBaseModel, match=reason):
        catalog.find(str(folder), tmp_path)


def test_an_empty_folder_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(UnknownBaseModel):
        catalog.find(str(tmp_path), tmp_path)

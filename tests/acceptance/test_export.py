"""A tuned model leaves as a Hugging Face folder that plain libraries load, and comes back only
while it answers its probes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import WORDS, next_word_rows
from tunesmith import Tunesmith, durable
from tunesmith.errors import BaseNotHere, CertificateRefused, DamagedFiles, FolderTaken
from tunesmith.jobs import Job

FAST = {
    "learning_rate": 1e-2,
    "batch_size": 5,
    "max_epochs": 6,
    "patience": 0,
    "method": "lora",
    "test_data": "SELECT 'say red' AS prompt, 'green, a secret' AS completion",
}
PROMPTS = [f"say {w}" for w in WORDS]


@pytest.fixture
def service(home: Path) -> Tunesmith:
    return Tunesmith()


@pytest.fixture
def job(service: Tunesmith, tuned_base: Path) -> Job:
    job = service.create(
        "words", str(tuned_base), next_word_rows(4), next_word_rows(2), **FAST
    ).wait(timeout_s=120)
    assert job.verdict is not None, job.error
    return job


def answers_of(model: torch.nn.Module, folder: Path) -> list[str]:
    """What plain transformers answers, with the folder's own tokenizer and chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        out = model.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0
        )  # type: ignore[operator]
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def test_an_exported_model_answers_the_same_in_plain_libraries_and_after_its_return(
    service: Tunesmith, job: Job, tuned_base: Path, tmp_path: Path
) -> None:
    wanted = [c.text for c in service.complete("words", PROMPTS, max_tokens=12)]
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert service.export("words", adapter).artefact == "adapter"
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "tunesmith.interfaces.cli",
            "model",
            "export",
            "words",
            str(merged),
            "--merged",
        ],
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "merged, float32; 32 of 32 probes equal" in shown.stdout, (
        shown.stderr
    )
    assert (
        answers_of(
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tuned_base), adapter),
            adapter,
        )
        == wanted
    )
    assert answers_of(AutoModelForCausalLM.from_pretrained(merged), merged) == wanted
    assert not list(merged.glob("adapter*")) and list(tmp_path.glob(".*")) == [], (
        "nothing half written stays"
    )

    card = (adapter / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and str(
        job.verdict["word"] if job.verdict else ""
    ) in card.replace("_", " ").replace("NO EVIDENCE", "NO_EVIDENCE")
    assert (
        job.data_digest in card
        and "curve.svg" in card
        and (adapter / "curve.svg").read_text().startswith("<svg")
    )
    everything = [
        f.read_bytes() for folder in (adapter, merged) for f in folder.rglob("*") if f.is_file()
    ]
    assert not any(
        str(tuned_base.parent).encode() in text or str(service.settings.home).encode() in text
        for text in everything
    ), "no local path"

    assert "secret" not in card and "SELECT" not in card, "no query and no row of the user's"

    with pytest.raises(FolderTaken):
        service.export("words", adapter)
    for folder, name in ((adapter, "again"), (merged, "again_merged")):
        model = service.import_model(folder, name, base_model=str(tuned_base))
        assert (model.name, model.job_id) == (name, "")
        assert [c.text for c in service.complete(name, PROMPTS, max_tokens=12)] == wanted
    assert service.import_model(adapter, "again", base_model=str(tuned_base)).name == "again_2"
    with pytest.raises(BaseNotHere, match="tunesmith-tiny"):
        service.import_model(adapter, "lost")

    edited = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: torch.zeros_like(v) for k, v in edited.items()},
        adapter / "adapter_model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(DamagedFiles, match="adapter_model.safetensors"):
        service.import_model(adapter, "edited", base_model=str(tuned_base))
    (adapter / durable.MANIFEST).unlink()
    forged = tmp_path / "forged"
    durable.publish(
        adapter, forged, {"name": "forged"}
    )  # whoever edits an adapter can also write a manifest; the probes tell
    with pytest.raises(
        CertificateRefused,
        match="answered otherwise than by the trained model.*the tuning does nothing",
    ):
        service.import_model(forged, "edited", base_model=str(tuned_base))
    assert {m.name for m in service.models()} == {"words", "again", "again_merged", "again_2"}
    certificate = json.loads((merged / "certificate.json").read_text())
    assert (certificate["artefact"], certificate["equal"]) == ("merged", certificate["probes"])

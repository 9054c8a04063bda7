"""Which architectures are causal language models that can be tuned, told from config.json alone.
No torch.

`architectures.json` is what `make bases` found with a tiny random model of each; an architecture
that it does not know is tried when its weights are loaded.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.errors import UnfitBaseModel
from tunesmith.safe_files import left_out, read_config

REFUSED = "refused"
PARTS = ("vision_config", "audio_config", "text_config", "encoder", "decoder")


@cache
def known() -> Mapping[str, str]:
    """By the `model_type` of config.json: `packed`, `padded`, or `refused: ` and why."""
    found: dict[str, str] = json.loads(
        files("tunesmith").joinpath("architectures.json").read_text()
    )
    return found


def must_fit(folder: Path) -> None:
    """UnfitBaseModel where a base can be no causal language model that is tuned here."""
    if reason := _objection(read_config(folder), folder):
        raise UnfitBaseModel(folder=str(folder), task="text generation", reason=reason)


def _objection(config: Mapping[str, Any], folder: Path) -> str:
    kind = str(config.get("model_type") or "")
    parts = [name for name in PARTS if isinstance(config.get(name), Mapping)]
    if parts:
        return (
            f"it is made of several parts ({', '.join(parts)} in config.json), and language models "
            f"alone are tuned; save its language part by itself with transformers"
        )
    if config.get("is_encoder_decoder"):
        return "it has an encoder and a decoder (is_encoder_decoder in config.json)"
    told = known().get(kind)
    if told is None and not _in_library(kind):
        own = " but as code of its own" if "auto_map" in left_out(folder) else ""
        return f"there is no causal language model {kind!r:.60} in transformers{own}"
    return told.partition(": ")[2] if told and told.startswith(REFUSED) else ""


def _in_library(kind: str) -> bool:
    """Whether the transformers that is installed has it, which may be newer than the list: read
    from its own list, since importing the library takes a second."""
    found = find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        return True
    file = Path(found.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    if not file.is_file():
        return True
    mapping = file.read_text("utf-8").partition("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES =")[2]
    return f'("{kind}",' in mapping.partition("\n)\n")[0]

"""Base models: their names, windows, limits and prices, and where their weights are on this
machine.

A base is named by its entry in catalog.toml, by the name under which it was brought, by a local
folder (written with a slash), or as organisation/name of the hub. Nothing is downloaded here: the
weights are bundled, brought (`weights`), in the home's `bases/`, in the hub's own cache, or in a
folder.
"""

import errno
import hashlib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from tunesmith import safe_files
from tunesmith.errors import (
    DamagedFiles,
    InvalidSetting,
    TunesmithError,
    UnknownBaseModel,
    UnreadableSettings,
    UnsafeBaseModel,
    WeightsNotHere,
    closest,
)
from tunesmith.tasks import specs
from tunesmith.tasks.specs import TaskSpec


@dataclass(frozen=True)
class ModelSpec:
    name: str
    task: str = specs.TEXT_GENERATION.name
    hub_id: str = ""
    bundled: bool = False
    scratch_of: str = ""
    """The bundled base whose configuration and tokenizer this control has; its weights are random
    and were never pretrained."""
    parameters: int = 0
    """0 where it is not known before the weights are read."""
    context: int = 0
    """Inference window in tokens, prompt and answer together."""
    prompt_window: int = 0
    """Longest prompt when tuning, in tokens, the template's included."""
    completion_window: int = 0
    """Longest completion when tuning, in tokens, the stop id included."""
    row_limit: int = 200_000
    """Training rows at one epoch; at e epochs row_limit / e (Snowflake, cortex-finetuning)."""
    pretraining_rate: float | None = None
    licence: str = "unknown"
    about: str = ""
    folder: str = ""
    """Where the weights are; empty while they are not here."""
    dequantised: str = ""
    """The quantisation that its weights were in before: they are not those that the hub has, and an
    adapter on one does not fit the other."""
    left_out: tuple[str, ...] = ()
    """What its config.json asks for and nobody gives it, since it could load code or other
    weights."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        found = {k: v for k, v in data.items() if k in known}
        return cls(**found | {"left_out": tuple(found.get("left_out", ()))})

    @property
    def task_spec(self) -> TaskSpec:
        """UnknownTask where no package that is installed here declares its task."""
        return specs.find(self.task)

    @property
    def public_name(self) -> str:
        """What is written into files that leave the machine: never a local path."""
        return self.hub_id or (Path(self.name).name if "/" in self.name else self.name)


PLACES = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the positions that a model has."""
COUNTED_FROM_PADDING = {
    "camembert",
    "data2vec-text",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}
"""Model types whose first place is the one behind that of the padding token: they have fewer."""
PRICED = ("training", "inference")
FACTS = "base.json"
"""Beside weights that were brought: their licence and where they come from."""


@dataclass(frozen=True)
class Origin:
    """What of a wheel of the package index is a base."""

    package: str
    """With its version, as pip takes it."""
    sha256: str
    """Of the wheel."""
    size: int
    """Of the wheel, in bytes."""
    file: str
    """In the wheel: a GGUF file, or a folder with a slash at its end."""


@cache
def _read() -> tuple[dict[str, ModelSpec], dict[str, Origin]]:
    table = tomllib.loads(files("tunesmith").joinpath("catalog.toml").read_text())
    origins = {
        name: Origin(**facts.pop("origin")) for name, facts in table.items() if "origin" in facts
    }
    return {name: ModelSpec(name=name, **facts) for name, facts in table.items()}, origins


def entries() -> dict[str, ModelSpec]:
    """The catalogue, by name."""
    return _read()[0]


def origins() -> dict[str, Origin]:
    """Of those whose weights are in the package index, where."""
    return _read()[1]


def offered() -> list[str]:
    """The catalogue's bases that are not here and that the package index has, each as one may be
    told of it: the command that brings it, and its size."""
    here = brought()
    return [
        f"tunesmith base add {name} ({origin.size / 1e6:,.0f} MB)"
        for name, origin in origins().items()
        if name not in here
    ]


def bases_folder() -> Path:
    """Where bases lie that were brought, for all homes of a user: TUNESMITH_BASES, by default in
    the folder of his caches."""
    named = os.environ.get("TUNESMITH_BASES")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(named or f"{cache}/tunesmith/bases").expanduser().absolute()
    except (RuntimeError, OSError) as e:  # a user without a home of his own
        allowed = f"it is a folder of your own ({e})"
        raise InvalidSetting(name="TUNESMITH_BASES", value=named or "", allowed=allowed) from None


def brought() -> dict[str, Path]:
    """The names under which something was brought, each with its link."""
    try:
        names = bases_folder() / "names"
    except InvalidSetting:
        if os.environ.get("TUNESMITH_BASES"):
            raise
        return {}  # he has no folder for them, and so has brought none
    links = sorted(names.glob("[!.]*"))
    return {link.name: link for link in links if (link / "config.json").is_file()}


def find(name: str, home: Path) -> ModelSpec:
    """The base called `name`, its weights located; UnknownBaseModel or WeightsNotHere otherwise."""
    spec = entries().get(name.lower())
    if spec is None and (link := brought().get(name.lower())):
        folder = link.resolve()
        return _of_brought(ModelSpec(name=link.name, task=task_of(folder).name), folder)
    if spec is None and ("/" in name or os.sep in name):
        folder = Path(name).expanduser()
        if folder.is_dir() or name.startswith((".", "/", "~")):
            return _of_folder(name, folder.absolute())
        spec = ModelSpec(name=name, hub_id=name)
    if spec is None:
        raise UnknownBaseModel(name=name, closest=closest(name, entries()))
    folder_here = locate(spec, home)
    if folder_here is None:
        raise WeightsNotHere(name=name)
    if spec.name not in entries():
        spec = replace(spec, task=task_of(folder_here).name)
    if folder_here in {link.resolve() for link in brought().values()}:
        return _of_brought(spec, folder_here)
    return completed(spec, folder_here)


def find_for(name: str, home: Path, task: str) -> ModelSpec:
    """The same, to be tuned to a task, which is its own where that is empty. UnknownTask."""
    found = find(name, home)
    if not task or task == found.task:
        return found
    spec = replace(found, task=specs.find(task).name, prompt_window=0, completion_window=0)
    return completed(spec, Path(found.folder))


def _of_brought(spec: ModelSpec, folder: Path) -> ModelSpec:
    facts = read_json(folder, FACTS)
    licence, hub_id, before = (str(facts.get(k, "")) for k in ("licence", "hub_id", "dequantised"))
    return completed(replace(spec, licence=licence, hub_id=hub_id, dequantised=before), folder)


def task_of(folder: Path) -> TaskSpec:
    return specs.of_config(safe_files.read_config(folder))


def listed(home: Path) -> list[tuple[ModelSpec, Path | None]]:
    """The catalogue and what was brought beside it, each with the folder of its weights, or None
    where they are not here, or are damaged (`about` says how)."""
    found = [(spec, locate(spec, home)) for spec in entries().values()]
    for name in brought().keys() - entries().keys():
        try:
            spec = find(name, home)
            found.append((spec, Path(spec.folder)))
        except TunesmithError as e:
            found.append((ModelSpec(name, about=str(e)), None))
    return found


def locate(spec: ModelSpec, home: Path) -> Path | None:
    """The folder with the weights of a catalogue entry or hub id, if they are on this machine."""
    if spec.bundled:
        return Path(str(files("tunesmith.bases").joinpath(spec.scratch_of or spec.name)))
    candidates = [home / "bases" / spec.name]
    if link := brought().get(spec.name):
        candidates.append(link.resolve())
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    repository = hub / ("models--" + spec.hub_id.replace("/", "--"))
    revision = repository / "refs" / "main"
    if spec.hub_id and revision.is_file():
        candidates.append(repository / "snapshots" / revision.read_text().strip())
    return next((c for c in candidates if (c / "config.json").is_file()), None)


def _of_folder(name: str, folder: Path) -> ModelSpec:
    if not (folder / "config.json").is_file():
        raise UnknownBaseModel(name=name, closest=closest(folder.name, entries()))
    return completed(ModelSpec(name=name, task=task_of(folder).name), folder)


def completed(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec with its folder, its weights counted, and with the windows that its task needs."""
    weights = safe_files.check_model(folder)
    for name in spec.task_spec.needs:
        if not (folder / name).is_file():
            raise UnsafeBaseModel(
                folder=str(folder), reason=f"there is no {name}{BRING.get(name, '')}"
            )
    if not list(folder.glob("*.safetensors")):
        raise UnsafeBaseModel(
            folder=str(folder),
            reason="there is no .safetensors file; save the model once with save_pretrained",
        )
    found = replace(
        spec,
        folder=str(folder),
        parameters=spec.parameters or weights,
        left_out=safe_files.left_out(folder),
    )
    return _with_windows(found, folder) if spec.task_spec.has_windows else found


BRING = {
    "tokenizer.json": "; write one with transformers: "
    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
}
"""How a file that is missing comes into a base's folder."""


def _with_windows(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Those of the catalogue, and from config.json where it gives none."""
    config = safe_files.read_config(folder)
    positions = next((found for name in PLACES if (found := config.get(name))), 2048)
    if type(positions) is not int or positions < 2:
        raise UnsafeBaseModel(
            folder=str(folder),
            reason=f"its config.json gives {positions!r:.40} as the longest text it takes",
        )
    if config.get("model_type") in COUNTED_FROM_PADDING:
        positions -= 1 + int(config.get("pad_token_id") or 0)
    context = min(spec.context or positions, positions)
    if not spec.task_spec.samples:
        window = min(spec.prompt_window or context, context)
        return replace(spec, context=context, completion_window=0, prompt_window=window)
    completion = spec.completion_window or context // 4
    return replace(
        spec,
        context=context,
        completion_window=min(completion, context),
        prompt_window=min(
            spec.prompt_window or context - completion, context - min(completion, context)
        ),
    )


@cache
def _fingerprint(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """A digest of a base's configuration and what else its task needs, and of its weights' headers
    and 64 places spread over each file."""
    digest = hashlib.sha256()
    for name, size, _ in stamps:
        digest.update(f"{name}:{size};".encode())
        with (folder / name).open("rb") as file:
            for place in sorted({0, *(size * i // 64 for i in range(64))}):
                file.seek(place)
                digest.update(file.read(65_536 if place == 0 else 4096))
    return digest.hexdigest()


def fingerprint(spec: ModelSpec) -> str:
    """What tells one base from another: cheap for files of any size, and blind to a few changed
    bytes between its places."""
    folder = Path(spec.folder)
    named = [folder / name for name in ("config.json", *spec.task_spec.needs)]
    files = sorted([*folder.glob("*.safetensors"), *named])
    try:
        stamps = tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
        return _fingerprint(folder, stamps) + (":scratch" if spec.scratch_of else "")
    except OSError as e:
        raise DamagedFiles(
            folder=str(folder), reason=f"the base's files cannot be read: {e}"
        ) from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a base's folder; {} where the file is missing, UnsafeBaseModel where it
    cannot be read."""
    return safe_files.read_object(folder / name) if os.path.lexists(folder / name) else {}


def prices(home: Path) -> dict[str, dict[str, float]]:
    """Credits per million tokens: the user's table over the shipped one."""
    table: dict[str, dict[str, float]] = tomllib.loads(
        files("tunesmith").joinpath("prices.toml").read_text()
    )
    for name, row in _own_prices(home / "prices.toml").items():
        table[name] = {**table.get(name, {}), **row}
    return table


def _own_prices(file: Path) -> dict[str, dict[str, float]]:
    """The table that a person wrote: [base], then training and inference in credits per million
    tokens; none where there is no file. UnreadableSettings where it cannot be used."""
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as e:
        if (
            isinstance(e, OSError) and e.errno == errno.ENAMETOOLONG
        ):  # the home's name: told where the home is made
            return {}
        raise UnreadableSettings(file=str(file), reason=str(e)) from None
    for name, row in table.items():
        if not isinstance(row, dict):
            reason = (
                f"{name} = {row!r:.40} is no table: write [{name}], then training = … and "
                f"inference = …"
            )
            raise UnreadableSettings(file=str(file), reason=reason)
        for kind, price in row.items():
            if kind not in PRICED:
                raise UnreadableSettings(
                    file=str(file),
                    reason=f"[{name}] has the key {kind!r}: {' and '.join(PRICED)} are read",
                )
            if (
                isinstance(price, bool)
                or not isinstance(price, (int, float))
                or not 0 <= price < math.inf
            ):
                raise UnreadableSettings(
                    file=str(file),
                    reason=f"[{name}] {kind} = {price!r:.40} is no price: a number from 0",
                )
    return table


def credits(home: Path, base_model: str, kind: str, tokens: int) -> float:
    """The price of `tokens` of `training` or `inference` on a base, in credits."""
    table = prices(home)
    rate = table.get(base_model, {}).get(kind, table["default"][kind])
    return tokens * rate / 1e6

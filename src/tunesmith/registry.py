"""Tuned models: a name, its version, its files, where it comes from. Reads the store; files are written by durable."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import catalog
from tunesmith.catalog import ModelSpec
from tunesmith.errors import UnknownBaseModel, UnknownModel, closest
from tunesmith.jobs import model_key
from tunesmith.store import JobStore


@dataclass(frozen=True)
class TunedModel:
    name: str
    base: ModelSpec
    """The base it was tuned from, with the folder of its weights."""
    version: int = 1
    method: str = ""
    job_id: str = ""
    folder: str = ""
    """The adapter, or the whole model where it was tuned whole; empty for a base model itself."""
    digest: str = ""
    """Of the folder's manifest; the files are checked against it before they are loaded."""
    verdict: Mapping[str, Any] | None = None
    created_at: float = 0.0
    owner: str = ""


def resolve(store: JobStore, home: Path, name: str) -> TunedModel:
    """The tuned model of this name, or else the base model of this name; UnknownModel otherwise."""
    row = store.model(model_key(name)) if not _is_path(name) else None
    if row is not None:
        return _tuned(row, home)
    try:
        return TunedModel(name=name, base=catalog.find(name, home))
    except UnknownBaseModel:
        known = [m.name for m in store.all_models()] + list(catalog.entries())
        raise UnknownModel(name=name, closest=closest(name, known)) from None


def listing(store: JobStore, home: Path) -> list[TunedModel]:
    return [_tuned(row, home) for row in store.all_models()]


def _is_path(name: str) -> bool:
    """A base given as a folder or hub id, or with a dot that belongs to its name."""
    return "/" in name or name.lower() in catalog.entries()


def _tuned(row: Any, home: Path) -> TunedModel:
    return TunedModel(
        name=row.name, base=ModelSpec.from_json(row.base), version=row.version, method=row.method, job_id=row.job_id,
        folder=str(home / row.folder), digest=row.digest, verdict=row.verdict, created_at=row.created_at, owner=row.owner,
    )  # fmt: skip

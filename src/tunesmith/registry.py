"""Tuned models: a name, its version, its files, where it comes from. Reads the store; files are
written by durable."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import catalog, durable
from tunesmith.catalog import ModelSpec
from tunesmith.documents import certificate
from tunesmith.errors import UnknownBaseModel, UnknownModel, closest
from tunesmith.names import model_key
from tunesmith.store import JobStore


@dataclass(frozen=True)
class TunedModel:
    name: str
    base: ModelSpec
    """The base it was tuned from, with the folder of its weights."""
    line: str = ""
    """Key of the name whose versions it is one of: its own, or that of the model it was tuned to
    replace (`new_version_of`)."""
    version: int = 1
    is_current: bool = True
    """Whether that name answers with this version."""
    method: str = ""
    id: str = ""
    job_id: str = ""
    """Empty for a model that came from elsewhere."""
    folder: str = ""
    """The adapter, or the whole model where it was tuned whole; empty for a base model itself."""
    digest: str = ""
    """Of the folder's manifest; the files are checked against it before they are loaded."""
    verdict: Mapping[str, Any] | None = None
    created_at: float = 0.0
    owner: str = ""
    home: str = ""
    """Identity of the home where its files are."""


def resolve(store: JobStore, home: Path, name: str) -> TunedModel:
    """The tuned model of this name, or else the base model of this name; UnknownModel otherwise.

    A name that has versions answers with the current one; `name@2` is the second, whatever is
    current.
    """
    if not _is_path(name):
        plain, number = _numbered(name)
        key = model_key(plain)
        row = store.model(key)
        if (
            row is None or row.line == row.model_key or number
        ):  # a name whose first version was removed answers with those that are left
            row = store.version(row.line if row is not None else key, number)
        if row is not None:
            return _tuned(row, home)
    try:
        return TunedModel(name=name, base=catalog.find(name, home))
    except UnknownBaseModel:
        known = store.model_names() + list(catalog.entries())
        raise UnknownModel(name=name, closest=closest(name, known)) from None


def itself(store: JobStore, home: Path, name: str) -> TunedModel:
    """The tuned model that bears this name, or is this version (`name@2`); UnknownModel for a name
    under which another one answers."""
    plain, number = _numbered(name)
    row = store.model(model_key(plain))
    if number:
        row = store.version(row.line if row is not None else model_key(plain), number)
    if row is None:
        raise UnknownModel(name=name, closest=closest(name, store.model_names()))
    return _tuned(row, home)


def must_be_proven(tuned: TunedModel) -> None:
    """DamagedFiles or CertificateRefused unless the files are those that were published, and may be
    used."""
    durable.verify(Path(tuned.folder), tuned.digest)
    certificate.check(tuned.name, Path(tuned.folder), catalog.fingerprint(tuned.base))


def listing(store: JobStore, home: Path) -> list[TunedModel]:
    return [_tuned(row, home) for row in store.all_models()]


def _numbered(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)@([0-9]{1,9})", name)
    return (match[1], int(match[2])) if match else (name, None)


def _is_path(name: str) -> bool:
    """A base given as a folder or hub id, or with a dot that belongs to its name; what stands in
    quotes is a name."""
    return ("/" in name and not name.startswith('"')) or name.lower() in catalog.entries()


def _tuned(row: Any, home: Path) -> TunedModel:
    return TunedModel(
        name=row.name,
        base=ModelSpec.from_json(row.base),
        line=row.line,
        version=row.version,
        is_current=row.is_current,
        method=row.method,
        id=row.id,
        job_id=row.job_id or "",
        folder=str(home / row.folder),
        digest=row.digest,
        verdict=row.verdict,
        created_at=row.created_at,
        owner=row.owner,
        home=row.home,
    )

"""Rows and files that no longer belong together, as after a restore of one without the other.

Nothing is deleted but rows of models whose files are gone or damaged: folders without a row are put aside, under `unclaimed/` of the home.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith import durable
from tunesmith.errors import DamagedFiles
from tunesmith.settings import Settings
from tunesmith.store import JobStore

UNCLAIMED = "unclaimed"


@dataclass(frozen=True)
class Mismatch:
    kind: str
    """model_without_files, damaged_model, files_without_model, files_without_job, job_without_rows"""
    what: str
    """The model's or the job's name, or the folder."""
    remedy: str
    """What repair does about it."""
    row: str = ""
    """Id of the model or the job."""
    folder: Path | None = None
    """What is put aside."""


def mismatches(settings: Settings, store: JobStore, *, read: bool) -> Iterator[Mismatch]:
    """`read`: compare every model's files with their digests, which takes as long as reading them; else only see that they are there."""
    models, jobs = store.all_models(), {j.id: j for j in store.all_jobs()}
    leaves = "it leaves the catalogue; its job keeps what is known of it"
    for model in models:
        folder = settings.home / model.folder
        if not folder.is_dir():
            yield Mismatch("model_without_files", model.name, leaves, model.id)
        elif read and (reason := _damage(folder, model.digest)):
            yield Mismatch("damaged_model", f"{model.name}: {reason}", f"{leaves}, its files go to {UNCLAIMED}/", model.id, folder)
    known = {(settings.home / m.folder).parent.name for m in models}
    working = {j.id.removeprefix("ft_") for j in jobs.values() if not j.status.is_final}  # a worker adopts what was published
    for folder in _folders(settings.home / "models"):
        if folder.name not in known | working:
            yield Mismatch("files_without_model", str(folder), f"they go to {UNCLAIMED}/", folder=folder)
    for folder in _folders(settings.home / "jobs"):
        if f"ft_{folder.name}" not in jobs:
            yield Mismatch("files_without_job", str(folder), f"they go to {UNCLAIMED}/", folder=folder)
    for job in jobs.values():
        if not job.status.is_final and not (settings.job_folder(job.id) / "data").is_dir():
            yield Mismatch("job_without_rows", f"{job.name} ({job.id})", "it is cancelled: its frozen rows are gone", job.id)


def repair(settings: Settings, store: JobStore) -> list[Mismatch]:
    """Do what each mismatch says, and tell them. Only while no worker is at work."""
    found = list(mismatches(settings, store, read=True))
    for one in found:
        if one.folder is not None:
            durable.put_aside(one.folder, settings.home / UNCLAIMED / one.folder.relative_to(settings.home))
        if one.kind == "job_without_rows":
            store.request_cancel(one.row)
        elif one.row:
            store.drop_model(one.row)
    return found


def _damage(folder: Path, digest: str) -> str:
    try:
        durable.verify(folder, digest)
    except DamagedFiles as e:
        return str(e.fields["reason"])
    return ""


def _folders(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.is_dir()) if place.is_dir() else []

"""Rows and files that no longer belong together, as after a restore of one without the other.

Nothing is deleted: folders without a row are put aside, under `unclaimed/` of the home, and rows of
models whose files are gone or damaged are kept there too. A repair is written down before it is
done, so that it can be undone. What belongs to another home is never looked at.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import durable
from tunesmith.errors import DamagedFiles
from tunesmith.home import folders
from tunesmith.jobs import JobStatus
from tunesmith.schema import jobs, models
from tunesmith.settings import ROWS, SNAPSHOTS, UNCLAIMED, Settings
from tunesmith.store import JobStore

RECORD = "repair.json"


@dataclass(frozen=True)
class Mismatch:
    kind: str
    """model_without_files, damaged_model, files_without_model, files_without_job,
    job_without_rows"""
    what: str
    """The model's or the job's name, or the folder."""
    remedy: str
    """What repair does about it."""
    row: str = ""
    """Id of the model or the job."""
    folder: Path | None = None
    """What is put aside."""


def mismatches(settings: Settings, store: JobStore, *, read: bool) -> Iterator[Mismatch]:
    """`read`: compare every model's files with their digests, which takes as long as reading them;
    else only see that they are there."""
    home, states = settings.home, store.states()
    mine, known = {i.removeprefix("ft_") for i in store.own_ids(jobs)}, store.own_ids(models)
    leaves = "it leaves the catalogue; its job keeps what is known of it"
    for model in (m for m in store.all_models() if m.home == store.home):
        folder = home / model.folder
        if not folder.is_dir():
            yield Mismatch("model_without_files", model.name, leaves, model.id)
        elif read and (reason := damage(folder, model.digest)):
            yield Mismatch(
                "damaged_model",
                f"{model.name}: {reason}",
                f"{leaves}, its files go to {UNCLAIMED}/",
                model.id,
                folder,
            )
    working = {
        i.removeprefix("ft_")
        for i, (_, s, at) in states.items()
        if at == store.home and not s.is_final
    }
    for folder in (
        f for f in folders(home) if not durable.is_marked(f)
    ):  # the next worker sees to those
        if (
            folder.parent.name == "models" and folder.name not in known | working
        ):  # a worker adopts what was published
            yield Mismatch(
                "files_without_model", _sized(folder), f"they go to {UNCLAIMED}/", folder=folder
            )
        elif folder.parent.name == "jobs" and folder.name not in mine:
            yield Mismatch(
                "files_without_job", _sized(folder), f"they go to {UNCLAIMED}/", folder=folder
            )
    for job_id, (name, status, at) in states.items():
        has_rows = (
            status.is_final or at != store.home or (settings.job_folder(job_id) / ROWS).is_dir()
        )
        if not has_rows and store.is_sound(job_id):
            yield Mismatch(
                "job_without_rows",
                f"{name} ({job_id})",
                "it is cancelled: its frozen rows are gone",
                job_id,
            )


def repair(settings: Settings, store: JobStore, found: Sequence[Mismatch]) -> Path | None:
    """Do what each mismatch says; where it was written down. Only while no worker is at work."""
    if not found:
        return None
    place, states = _new_folder(settings.home), store.states()
    rows = {m.id: {k: v for k, v in m._mapping.items() if k != "seal"} for m in store.all_models()}
    actions: list[dict[str, Any]] = []
    for one in found:
        moved = {} if one.folder is None else {"from": str(one.folder.relative_to(settings.home))}
        known = (
            {"status": states[one.row][1].value}
            if one.kind == "job_without_rows"
            else {"model": rows.get(one.row)}
        )
        actions.append({"kind": one.kind, "what": one.what, "row": one.row, **known, **moved})
    durable.write_json(place / RECORD, {"actions": actions})
    for one in found:
        if one.folder is not None:
            with durable.alone(settings.home / SNAPSHOTS):  # its link is counted before and after
                durable.put_aside(one.folder, place / one.folder.relative_to(settings.home))
        if one.kind == "job_without_rows":
            store.request_cancel(one.row)
        elif one.row:
            store.drop_model(one.row)
    return place


def undo(settings: Settings, store: JobStore) -> list[str]:
    """Take the newest repair back; a line for each thing that came back, or could not. Empty where
    there is none."""
    if (place := last_repair(settings.home)) is None:
        return []
    said = []
    for one in json.loads((place / RECORD).read_bytes())["actions"][::-1]:
        if source := one.get("from"):
            aside, back = place / source, settings.home / source
            if aside.is_dir() and not back.exists():
                with durable.alone(settings.home / SNAPSHOTS):
                    durable.put_aside(aside, back)
                said.append(f"{back} is back")
            elif aside.is_dir():
                said.append(f"{aside} stays: {back} is there")
        if model := one.get("model"):
            done = store.put_back(models, model)
            said.append(
                f"model {model['name']} is in the catalogue again"
                if done
                else f"model {model['name']} is there, or its name is taken"
            )
        if status := one.get("status"):
            has_rows = (settings.job_folder(one["row"]) / ROWS).is_dir()
            if has_rows:
                store.put_back_status(one["row"], JobStatus(status))
            said.append(
                f"job {one['row']} "
                + (
                    f"is {status} again"
                    if has_rows
                    else "stays cancelled: its frozen rows are not back"
                )
            )
    durable.replace_text(place / "undone.json", (place / RECORD).read_text())
    (place / RECORD).unlink()
    return said


def last_repair(home: Path) -> Path | None:
    """Where the newest repair that was not undone put things."""
    return max((p.parent for p in (home / UNCLAIMED).glob(f"*/{RECORD}")), default=None)


def at_rest(settings: Settings, store: JobStore) -> Iterator[str]:
    """What is damaged among the rows of the store and the files of jobs and models, each read
    whole."""
    for row in store.damaged():
        yield str(row)
    for model in (m for m in store.all_models() if m.home == store.home):
        if reason := damage(settings.home / model.folder, model.digest):
            yield f"model {model.name}: {reason}"
    whole = set[tuple[Path, str]]()
    for job in store.jobs_in_pages():
        folder = settings.job_folder(job.id) / ROWS
        known = (folder.resolve(), job.data_digest)
        if job.home != store.home or not job.data_digest or known in whole:
            continue
        if reason := damage(folder, job.data_digest):
            yield f"the rows that job {job.id} ({job.name}) learned from: {reason}"
        else:
            whole.add(known)


def _sized(folder: Path) -> str:
    return f"{folder} ({sum(f.lstat().st_size for f in folder.rglob('*') if f.is_file()):,} bytes)"


def damage(folder: Path, digest: str) -> str:
    try:
        durable.verify(folder, digest)
    except DamagedFiles as e:
        return str(e.fields["reason"])
    return ""


def _new_folder(home: Path) -> Path:
    """The first free one of this second; names are in the order of time."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    taken = {p.name for p in (home / UNCLAIMED).glob(f"{stamp}*")}
    folder = (
        home
        / UNCLAIMED
        / next(n for i in range(len(taken) + 1) if (n := f"{stamp}-{i:03}") not in taken)
    )
    durable.make_folder(folder)
    return folder

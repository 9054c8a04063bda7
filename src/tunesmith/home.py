"""A home and the store of its jobs: who the home is, and whether both belong together.

Several homes may share one store (PostgreSQL). Each has an identity, in its file FORMAT and on
every row of its jobs and models: what belongs to another is shown, never claimed, repaired or
removed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith import durable
from tunesmith.errors import HomeCopied, NotACopy, StoreLost
from tunesmith.jobs import JobStatus
from tunesmith.settings import Settings
from tunesmith.store import JobStore


def open_store(settings: Settings, *, lost_too: bool = False) -> JobStore:
    """The store, as this home sees it. A home that was moved says so in its marker and goes on.

    HomeCopied where the home is a copy of one that is still there. StoreLost where the store was
    emptied or is another one; `lost_too`: open it all the same, to mend that.
    """
    home, marker = settings.home, durable.open_home(settings.home)
    if marker["place"] != str(home):
        if _is_home(Path(marker["place"]), marker["id"], home):
            raise HomeCopied(home=str(home), place=marker["place"])
        marker |= {"place": str(home), "moved_from": marker["place"]}
        _note(home, marker)
    store = JobStore(settings.store_url, home=marker["id"])
    before = (
        "" if is_inside(settings) else store.last_place()
    )  # a store inside a home was copied with it
    if before and before != str(home) and _is_home(Path(before), marker["id"], home):
        raise HomeCopied(home=str(home), place=before)
    if not store.is_read_only:
        _take_back(settings, store)
    if not lost_too:
        _must_know(settings, store, marker)
    if not store.is_read_only:
        store.register(str(home))
        if not marker.get("stored"):
            _note(home, marker | {"stored": True})
    return store


def _take_back(settings: Settings, store: JobStore) -> None:
    """Rows whose files are in this home are its own, though they bear another identity: its marker
    was lost, or the program that wrote them did not know homes yet (what such a program left in a
    store inside the home is all its own)."""
    home, inside = settings.home, is_inside(settings)
    others = store.rows_of_others("" if inside else str(home))
    for former in {of for _, of in others}:
        ids = [i for i, of in others if of == former]
        store.take_over(
            [
                i
                for i in ids
                if (inside and not former) or any(p.exists() for p in _folders_of(home, i))
            ],
            former,
        )


def separate(settings: Settings, *, unseen: bool = False) -> int:
    """Make a copied home one of its own: a new identity, for the rows of a store inside it too; how
    many unfinished jobs were cancelled.

    NotACopy where no other home of its identity is seen, unless it is known to be `unseen`, on
    another machine.
    """
    marker = durable.open_home(settings.home)
    former = marker["id"]
    places = {marker["place"], JobStore(settings.store_url, home=former).last_place()} - {
        "",
        str(settings.home),
    }
    if not unseen and not any(_is_home(Path(p), former, settings.home) for p in places):
        raise NotACopy(home=str(settings.home))
    durable.write_json(
        settings.home / durable.MARKER,
        {"format": durable.FORMAT, "id": durable.new_identity(), "place": str(settings.home)},
    )
    store = open_store(settings, lost_too=True)
    if not is_inside(settings):
        return 0
    store.take_over(None, former)
    unfinished = [
        j for j in store.all_jobs([s for s in JobStatus if not s.is_final]) if j.home == store.home
    ]
    for job in unfinished:
        store.request_cancel(job.id)
    return len(unfinished)


def is_inside(settings: Settings) -> bool:
    """Whether the store is a file of this home."""
    return settings.store_url == Settings.own_store(settings.home)


def folders(home: Path) -> Iterator[Path]:
    """Those of jobs and of models."""
    for kind in ("jobs", "models"):
        if (home / kind).is_dir():
            yield from (p for p in sorted((home / kind).iterdir()) if p.is_dir())


def _must_know(settings: Settings, store: JobStore, marker: dict[str, Any]) -> None:
    if not store.is_empty():
        return
    found = [p for p in folders(settings.home) if not durable.is_marked(p)]
    forgotten = marker.get("stored") and not store.last_place()
    worked = [p for p in found if p.parent.name == "models" or any(p.glob("attempt-*"))]
    if worked or (found and forgotten):
        raise StoreLost(home=str(settings.home), folders=len(found), store=store.place())


def _is_home(place: Path, identity: str, home: Path) -> bool:
    """Whether a home of this identity is at `place`, and is not `home` itself by another way."""
    try:
        return durable.read_marker(place).get("id") == identity and not place.samefile(home)
    except OSError:
        return False


def _folders_of(home: Path, row: str) -> tuple[Path, Path]:
    plain = row.removeprefix("ft_")
    return home / "jobs" / plain, home / "models" / plain


def _note(home: Path, marker: dict[str, Any]) -> None:
    if os.access(home, os.W_OK):
        durable.write_json(home / durable.MARKER, marker)

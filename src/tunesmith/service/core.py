"""What every verb of the service needs: who asks, where his queries run, the store, and a process
for what needs torch."""

import copy
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Self, TypeAlias, TypeVar

import duckdb

from tunesmith import catalog
from tunesmith.access import Principal
from tunesmith.data.session import SESSION_SQL, Session, session
from tunesmith.errors import (
    DatabaseBusy,
    DatabaseNotOpened,
    MissingExtra,
    OfAnotherHome,
)
from tunesmith.executors import Executor, ask
from tunesmith.executors.local import LocalExecutor
from tunesmith.home import open_store
from tunesmith.jobs import Job
from tunesmith.phases.child import Phase, Work
from tunesmith.registry import TunedModel
from tunesmith.settings import Settings
from tunesmith.store import JobStore

Source: TypeAlias = str | os.PathLike[str] | duckdb.DuckDBPyConnection
"""Where a user's queries run: a DuckDB file, or an open connection."""
M = TypeVar("M")


class Core:
    """Who asks, with which rights, in which database."""

    def __init__(
        self,
        database: Source = ":memory:",
        *,
        home: str | os.PathLike[str] | None = None,
        executor: Executor | None = None,
    ) -> None:
        """`executor` runs what a verb needs torch for in a process of its own."""
        self.principal = Principal.of_process()
        self.settings = Settings.read(home)
        self._executor = executor or LocalExecutor(self.settings)
        self._database = database
        self._store: JobStore | None = None
        self._process, self._opening = os.getpid(), threading.Lock()
        self._encoders: dict[tuple[str, str], Any] = {}
        self._warned: set[str] = set()

    def as_(self, principal: Principal, source: Source | None = None) -> Self:
        """The same service for somebody else: with his rights, and with the file or connection in
        which his queries run. Store and executor are shared."""
        other = copy.copy(self)
        other._store = self.store
        other.principal, other._warned = principal, set()
        other._database = self._database if source is None else source
        return other

    @property
    def store(self) -> JobStore:
        with self._opening:
            if (
                self._store is None or self._process != os.getpid()
            ):  # a forked child must not go on with its parent's connections
                self._store, self._process = open_store(self.settings), os.getpid()
            return self._store

    def _run(self, phase: Phase, work: Work, answer: type[M]) -> M:
        """A phase for whoever asks, in a process of its own; its error is raised here."""
        with tempfile.TemporaryFile() as log:
            return ask(self._executor, phase, work, answer, log)

    def _encoder_of(self, spec: catalog.ModelSpec) -> Any:
        key, rules = (spec.task, spec.folder), spec.task_spec.rules
        if key not in self._encoders:
            self._encoders[key] = rules.encoder(rules.preprocessing(spec), spec)
        return self._encoders[key]

    @contextmanager
    def _source(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of the user's connection, or the database file opened for reading only."""
        if isinstance(self._database, duckdb.DuckDBPyConnection):
            known = session.get()
            if known is None:  # asked from Python; a function within a statement was told
                known = Session.read(str(self._database.execute(SESSION_SQL).fetchall()[0][0]))
            token = session.set(known)
            try:
                with self._database.cursor() as cursor:
                    yield cursor
            finally:
                session.reset(token)
            return
        path = os.fspath(self._database)
        try:
            connection = duckdb.connect(path, read_only=path != ":memory:")
        except (
            duckdb.ConnectionException
        ):  # this process holds the file open for writing: share that
            connection = duckdb.connect(path)
        except duckdb.Error as e:
            raise database_error(path, e) from None
        with connection:
            yield connection

    def _here(self, job: Job) -> Job:
        """OfAnotherHome for a job that another home runs."""
        if job.home != self.store.home:
            raise OfAnotherHome(
                what=f"Job {job.id} ({job.name})", place=self.store.place_of(job.home)
            )
        return job

    def _files_here(self, model: TunedModel) -> TunedModel:
        """OfAnotherHome for a tuned model whose files are elsewhere."""
        if model.folder and model.home != self.store.home:
            raise OfAnotherHome(
                what=f"The model {model.name}", place=self.store.place_of(model.home)
            )
        return model


def must_be_able_to_train() -> None:
    if not all(map(_is_installed, ("torch", "transformers", "peft"))):
        raise MissingExtra(what="tuning", extra="train")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was switched off in this process
        return False


def database_error(path: str, e: duckdb.Error) -> DatabaseBusy | DatabaseNotOpened:
    """What DuckDB says when a file cannot be opened, in our words."""
    reason = str(e).splitlines()[0]
    return (
        DatabaseBusy(path=path, reason=reason)
        if "lock" in reason
        else DatabaseNotOpened(path=path, reason=reason)
    )

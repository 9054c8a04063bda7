"""Tunesmith, the service: the few verbs that every door calls. Embedded, a user's queries run on
his own connection."""

import atexit
import copy
import json
import os
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import WeakSet

import duckdb

from tunesmith import access, catalog, durable, imports, registry, worker
from tunesmith.access import Principal
from tunesmith.data import baseline
from tunesmith.data.checks import audit
from tunesmith.data.dataset import Dataset, Snapshot, snapshot
from tunesmith.data.gate import quoted
from tunesmith.data.given import Data, sources_of
from tunesmith.data.session import SESSION_SQL, Session, session
from tunesmith.data.split import PARTS
from tunesmith.documents import certificate
from tunesmith.documents.audit import AuditReport
from tunesmith.documents.card import Facts
from tunesmith.documents.certificate import Certificate
from tunesmith.documents.quote import Quote
from tunesmith.documents.verdict import Verdict, Word, objection, sentence
from tunesmith.errors import (
    BaseNotHere,
    DamagedFiles,
    DamagedRow,
    DatabaseBusy,
    DatabaseNotOpened,
    FolderTaken,
    InvalidOptionValue,
    InvalidSchema,
    JobNotInState,
    LineAwaited,
    MissingExtra,
    MoreRowsThan,
    Notice,
    NotMergeable,
    NotPromoted,
    OfAnotherHome,
    TooManyRows,
    TunesmithError,
    UnfinishedAnswer,
    UnknownJob,
    UnknownModel,
    UsageNotRecorded,
    ViewNotWritten,
    WorkerAtWork,
    WrongTask,
    closest,
)
from tunesmith.executors import Executor, ask
from tunesmith.executors.local import LocalExecutor
from tunesmith.home import open_store
from tunesmith.jobs import Job, JobStatus
from tunesmith.models import methods
from tunesmith.names import model_key
from tunesmith.options import Options
from tunesmith.phases.child import EXPORT, PROVE_RESUME, REHEARSE, Assignment, Phase, Transfer, Work
from tunesmith.phases.messages import Compared, Measured, Written
from tunesmith.phases.prepare import plan_of
from tunesmith.registry import TunedModel
from tunesmith.settings import ROWS, Settings
from tunesmith.store import JobStore
from tunesmith.tuning.recipe import split_seed
from tunesmith.words import counted

if TYPE_CHECKING:
    import pyarrow

    from tunesmith.inference.engine import Completion

Source: TypeAlias = str | os.PathLike[str] | duckdb.DuckDBPyConnection
"""Where a user's queries run: a DuckDB file, or an open connection."""
M = TypeVar("M")
POLL_S = 0.5  # between two looks of a waiter
PRIVATE_OPTIONS = ("test_data", "swap_terms", "new_version_of")  # never in a model card
UNUSABLE = (
    2  # times the row limit is read at most: rows that cannot be used do not count against it
)
DEFAULT_EPOCHS = 3  # Snowflake's default; decides the row limit where max_epochs is auto


class Tunesmith:
    """Tune models on the rows of a query, and ask them.

    `database` is a DuckDB file or an open connection: where training queries run. `home` keeps jobs
    and models.
    """

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

    def as_(self, principal: Principal, source: Source | None = None) -> "Tunesmith":
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

    # ------------------------------------------------------------ jobs

    def create(
        self,
        name: str,
        base_model: str,
        training_data: Data,
        validation_data: Data = None,
        *,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """Freeze the rows and accept a job; durable before it returns. The job runs in a worker of
        its own.

        `options` are those of `Options`. A taken name gets a suffix; the same idempotency key gives
        the same job.
        """
        access.require(self.principal, "CREATE MODEL", name)
        model_key(name)  # InvalidModelName before anything is read
        store = self.store
        _must_be_able_to_train()
        spec = catalog.find(base_model, self.settings.home)
        task = spec.task_spec
        parsed = Options.parse(options).must_be_read(task, methods.READERS)
        catalog.prices(self.settings.home)  # UnreadableSettings now, not when the job has run
        if parsed.new_version_of:
            self._tuned(parsed.new_version_of)  # UnknownModel now, not when the job has run
        job = Job(
            id=Job.new_id(),
            name=name,
            base_model=spec.name,
            task=spec.task,
            training_data=_described(training_data),
            validation_data=_described(validation_data),
            options=parsed,
            owner=self.principal.user,
            template=task.rules.preprocessing(spec),
            base=spec.to_json(),
        )
        folder = self.settings.job_folder(job.id)
        worker.ensure(self.settings, store, expecting=True)  # it starts while the rows are frozen
        try:
            accepted = self._accept(job, folder, training_data, validation_data, idempotency_key)
        except BaseException:
            self._collect()
            raise
        if accepted.id != job.id:  # the same request came before
            durable.remove(folder)
            self._collect()
        worker.ensure(self.settings, self.store)
        return self._hand_out(accepted)

    def _accept(
        self,
        job: Job,
        folder: Path,
        training_data: Data,
        validation_data: Data,
        idempotency_key: str | None,
    ) -> Job:
        spec, asked = catalog.ModelSpec.from_json(job.base), job.options
        with durable.making(folder):
            frozen = self._snapshot(training_data, validation_data, asked, folder / ROWS, spec)
            self._check_row_limit(spec, asked, sum(frozen.rows[p] for p in PARTS))
            known = replace(
                job, data_digest=frozen.digest, rows=frozen.rows, warnings=frozen.warnings
            )
            return self.store.add(known, idempotency_key)

    def _collect(self) -> None:
        """Frozen rows that no job of this home has any more; what cannot be told now waits for the
        next worker."""
        with suppress(TunesmithError):
            worker.collect_snapshots(self.settings, self.store)

    def show(self, *, statuses: Collection[JobStatus] = (), newest: int | None = None) -> list[Job]:
        """All jobs, or those in some states, or the newest so many of them; the oldest first."""
        worker.ensure(self.settings, self.store)
        return [self._hand_out(j) for j in self.store.all_jobs(statuses, newest)]

    def each_job(self, statuses: Collection[JobStatus] = ()) -> Iterator[Job]:
        """The same, the oldest first, with few of them in memory at a time."""
        worker.ensure(self.settings, self.store)
        return map(self._hand_out, self.store.jobs_in_pages(statuses))

    def describe(self, job_id: str) -> Job:
        """One job as it stands now; UnknownJob otherwise."""
        worker.ensure(self.settings, self.store)
        return self._hand_out(self.store.get(job_id))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop: a waiting one stops now, a working one within a step. No model will
        appear."""
        access.require(self.principal, "OPERATE", job_id)
        job = self.store.request_cancel(job_id)
        if (
            job.status.is_final and job.home == self.store.home
        ):  # it waited or was paused: no worker will come for what it left
            worker.collect(self.settings, job)
        return self._hand_out(job)

    def pause(self, job_id: str) -> Job:
        """Stop a training job for now; JobNotInState unless it is RUNNING. What came after its last
        checkpoint is done again later."""
        access.require(self.principal, "OPERATE", job_id)
        return self._hand_out(self.store.request_pause(job_id))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on from its last checkpoint; it ends with the weights it would have
        had."""
        access.require(self.principal, "OPERATE", job_id)
        job = self.store.resume(job_id)
        worker.ensure(self.settings, self.store)
        return self._hand_out(job)

    def delete_job(self, job_id: str) -> None:
        """Remove a job that has ended: its row, metrics and events, its frozen rows, its logs. What
        it used stays counted.

        JobNotInState before its end, JobHasModel while its model is in the catalogue,
        OfAnotherHome.
        """
        access.require(self.principal, "OWNERSHIP", job_id)
        try:
            self._here(self.store.get(job_id))
        except (
            DamagedRow
        ):  # what cannot be read can be removed, where it is this home's and nobody works on it
            _, _, home = self.store.states().get(job_id, ("", None, ""))
            if home != self.store.home and not self.settings.job_folder(job_id).is_dir():
                raise
            if worker.is_alive(self.settings.home):
                raise WorkerAtWork(home=str(self.settings.home)) from None
        with durable.removing(self.settings.job_folder(job_id)):
            self.store.delete_job(job_id)
        self._collect()

    def prune(self, *, older_than_s: float, dry_run: bool = False) -> list[Job]:
        """Remove this home's jobs that ended so long ago and whose model is not in the catalogue
        (any more); what was, or would be, removed."""
        before, named = time.time() - older_than_s, self.store.jobs_with_models()
        old = [
            job
            for job in self.store.jobs_in_pages([s for s in JobStatus if s.is_final])
            if job.home == self.store.home
            and (job.finished_at or 0.0) < before
            and job.id not in named
        ]
        for job in old if not dry_run else ():
            self.delete_job(job.id)
        return old

    def verify_resume(self, job_id: str) -> Compared:
        """Do the job's first steps in one go and again with a kill and a resume in between, and
        compare the weights to the bit.

        In a process of its own, on the job's own rows and options; nothing of the job is touched.
        JobNotInState before its options are decided.
        """
        access.require(self.principal, "MONITOR", job_id)
        job = self._here(self.store.get(job_id))
        if job.resolved is None:
            raise JobNotInState(id=job.id, status=job.status.value, needed="past VALIDATING")
        _must_be_able_to_train()
        return self._run(PROVE_RESUME, Assignment.of(job, self.settings), Compared)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """Block until the job has ended (or `timeout_s` is over) and return it; `on_change` sees
        every look."""
        began = time.monotonic()
        while True:
            job = self.describe(job_id)
            if on_change is not None:
                on_change(job)
            if job.status.is_final or (
                timeout_s is not None and time.monotonic() - began >= timeout_s
            ):
                return job
            time.sleep(POLL_S)

    def metrics(self, job_id: str) -> "pyarrow.Table":
        """The recorded steps of a job as an Arrow table."""
        try:
            import pyarrow
        except ImportError:
            raise MissingExtra(what="an Arrow table", extra="train") from None
        self.store.get(job_id)
        return pyarrow.Table.from_pylist(self.store.rows("metrics", job_id))

    # ------------------------------------------------------------ before a job

    def audit(
        self,
        training_data: Data,
        validation_data: Data = None,
        *,
        test_data: Data = None,
        base_model: str = "tunesmith-tiny",
        groups: Sequence[str] = (),
        encoding: str = "",
    ) -> AuditReport:
        """What is wrong with the rows, which rows, and the SQL that mends it. Nothing is stored, no
        job is created.

        `base_model` decides tokens and windows; `groups` names columns whose values are groups
        (default: those with few values).
        """
        access.require(self.principal, "USAGE", base_model)
        spec = catalog.find(base_model, self.settings.home)
        given = {"training": training_data, "validation": validation_data, "test": test_data}
        sources = sources_of(given, encoding, spec.task_spec)
        with self._source() as connection:
            return audit(connection, sources, self._encoder_of(spec), spec, groups)

    def quote(
        self,
        training_data: Data,
        validation_data: Data = None,
        *,
        base_model: str = "tunesmith-tiny",
        **options: Any,
    ) -> Quote:
        """What a job would take: exact tokens, and seconds and memory from three steps run and
        thrown away in a process of their own.

        Nothing is kept and no job is created. Errors are those of `create`, and those that would
        fail the job.
        """
        access.require(self.principal, "CREATE MODEL", base_model)
        spec = catalog.find(base_model, self.settings.home)
        rules = spec.task_spec.rules
        parsed = Options.parse(options).must_be_read(spec.task_spec, methods.READERS)
        _must_be_able_to_train()
        with durable.staging(self.settings.home) as folder:
            frozen = self._snapshot(training_data, validation_data, parsed, folder / ROWS, spec)
            dataset = Dataset.open(folder / ROWS, frozen.digest)
            price = catalog.credits(self.settings.home, spec.name, "training", 1)
            plan = plan_of(dataset, self._encoder_of(spec), spec, parsed, price)
            assignment = Assignment(
                job_id="quote",
                home=str(self.settings.home),
                folder=str(folder / "attempt-1"),
                data_folder=str(folder / ROWS),
                data_digest=frozen.digest,
                options=parsed.to_json(),
                resolved=plan.resolved.to_json(),
                base=spec.to_json(),
                template=rules.preprocessing(spec),
                device=self.settings.device,
                threads=self.settings.threads,
                moved=plan.moved,
            )
            measured = self._run(REHEARSE, assignment, Measured)
            divided = replace(dataset, moved=plan.moved)
            train, validation = (
                [(rules.words(r), r.completion) for r in divided.rows(p)]
                for p in ("train", "validation")
            )
        self._collect()
        found = Quote.of(
            spec,
            plan.resolved,
            plan.tokens,
            plan.rows["train"],
            measured,
            price,
            self.settings.threads,
        )
        has_words = baseline.is_installed() and all(w is not None for w, _ in train + validation)
        linear = baseline.score(train, validation) if has_words else None
        return replace(found, linear=linear, linear_rows=len(validation))

    def write_view(self, name: str, sql: str) -> int:
        """Make (or replace) a view of a query, such as `AuditReport.clean_sql`, in the user's
        database; returns its rows."""
        parts = ".".join(map(quoted, name.split(".")))
        database = self._database
        if (
            not isinstance(database, duckdb.DuckDBPyConnection)
            and os.fspath(database) == ":memory:"
        ):
            raise ViewNotWritten(
                name=name, reason="there is no database file; name one (--database)"
            )
        try:
            cursor = (
                database.cursor()
                if isinstance(database, duckdb.DuckDBPyConnection)
                else duckdb.connect(os.fspath(database))
            )
            with cursor:
                cursor.execute(f"CREATE OR REPLACE VIEW {parts} AS {sql}")
                return int(cursor.execute(f"SELECT count(*) FROM {parts}").fetchall()[0][0])
        except duckdb.Error as e:
            raise ViewNotWritten(name=name, reason=str(e).splitlines()[0]) from None

    # ------------------------------------------------------------ models

    def models(self) -> list[TunedModel]:
        return registry.listing(self.store, self.settings.home)

    def bases(self) -> list[tuple[catalog.ModelSpec, Path | None]]:
        """The catalogue of base models, each with the folder of its weights, or None where they are
        not here."""
        return [
            (spec, catalog.locate(spec, self.settings.home)) for spec in catalog.entries().values()
        ]

    def model(self, name: str) -> TunedModel:
        """The tuned or base model of this name; UnknownModel otherwise."""
        return registry.resolve(self.store, self.settings.home, name)

    def promote(self, name: str, *, force: bool = False) -> TunedModel:
        """Let the name whose versions `name` is one of (its option `new_version_of`) answer with
        it; also back: `router@1`.

        NotPromoted unless its verdict is HELPED and its answers stop, or `force`; never past a
        certificate (CertificateRefused).
        """
        tuned = self._tuned(name)
        access.require(self.principal, "OWNERSHIP", tuned.line)
        registry.must_be_proven(tuned)
        if not force and (reason := objection(tuned.verdict)):
            raise NotPromoted(line=tuned.line, name=tuned.name, reason=reason)
        self.store.promote(tuned.id)
        return self.model(f"{tuned.line}@{tuned.version}")

    def drop_model(self, name: str) -> str:
        """Remove a tuned model and its files, and give its name; its job keeps what is known of it
        and gives its name back.

        The model is the one that bears the name, or `name@2`; the name of a line answers with the
        last version that is left.

        UnknownModel, OfAnotherHome, or LineAwaited while an unfinished job is to become a version
        of a line of which this is the last.
        """
        try:
            tuned = self._files_here(registry.itself(self.store, self.settings.home, name))
        except DamagedRow as e:
            return self._drop_damaged(name, e)
        access.require(self.principal, "OWNERSHIP", tuned.name)
        is_last = [m.id for m in self.models() if m.line == tuned.line] == [tuned.id]
        for job in self.store.all_jobs([s for s in JobStatus if not s.is_final]):
            if job.options.new_version_of and _is_of(
                self.store, tuned, job.options.new_version_of, is_last
            ):
                raise LineAwaited(name=tuned.name, id=job.id, job=job.name)
        with durable.removing(Path(tuned.folder).parent):
            self.store.drop_model(tuned.id)
        return tuned.name

    def _drop_damaged(self, name: str, error: DamagedRow) -> str:
        """A model whose row cannot be believed: its row, and its files in the folder of its id,
        which is here or the error stays."""
        access.require(self.principal, "OWNERSHIP", name)
        folder = self.settings.home / "models" / str(error.fields["row"])
        if folder.name not in {p.name for p in (self.settings.home / "models").glob("*")}:
            raise error
        with durable.removing(folder):
            self.store.drop_model(folder.name)
        return name

    def export(
        self, name: str, folder: str | os.PathLike[str], *, merged: bool = False
    ) -> Certificate:
        """Write a tuned model as a Hugging Face folder with its model card, once it has answered
        its probes again from those files.

        `merged`: one plain model in the base's precision, or in float32 where that would round too
        much away (`Certificate.precision`). FolderTaken, or CertificateRefused where it does not
        answer as the trained model did; then nothing is written.
        """
        tuned = self._tuned(name)
        access.require(self.principal, "USAGE", tuned.name)
        target = Path(folder).expanduser().absolute()
        with durable.typed_errors(target):
            if os.path.lexists(target):
                raise FolderTaken(folder=str(folder))
            target.exists()  # a name that is too long is told before anything is computed
        if merged and not methods.METHODS[tuned.method].can_merge:
            raise NotMergeable(name=tuned.name, method=tuned.method)
        registry.must_be_proven(tuned)
        work = Transfer(
            tuned.name,
            tuned.base.to_json(),
            tuned.method,
            tuned.folder,
            str(target),
            merged,
            asdict(self._facts(tuned)),
            self.settings.device,
            self.settings.threads,
        )
        return Certificate.from_json(dict(self._run(EXPORT, work, Written).certificate))

    def import_model(
        self, folder: str | os.PathLike[str], name: str = "", *, base_model: str = ""
    ) -> TunedModel:
        """Take in a model that `export` wrote, here or elsewhere, once it has answered its probes
        on this machine.

        Its base must be here: it is found by its fingerprint, or named. DamagedFiles, BaseNotHere
        or CertificateRefused otherwise.
        """
        source = Path(folder).expanduser().absolute()
        manifest = durable.verify(source)
        name = name or str(manifest.get("name", source.name))
        access.require(self.principal, "CREATE MODEL", name)
        key = model_key(name)
        base = self._base_of(folder, base_model, certificate.read(name, source).base_digest)
        certificate.check(name, source, catalog.fingerprint(base))
        model_id = str(uuid.uuid4())
        place = Path("models") / model_id / "v1"
        method = "lora" if (source / "adapter_config.json").exists() else "full"
        work = Transfer(
            name,
            base.to_json(),
            method,
            str(source),
            str(self.settings.home / place),
            False,
            None,
            self.settings.device,
            self.settings.threads,
        )
        store = self.store
        with durable.making(self.settings.home / "models" / model_id):
            written = self._run(EXPORT, work, Written)
            facts = dict(
                id=model_id,
                name=name,
                model_key=key,
                job_id=None,
                base_model=base.name,
                base=base.to_json(),
                task=base.task,
                method=method,
                folder=str(place),
                digest=written.digest,
                verdict=None,
                owner=self.principal.user,
            )
            store.add_model(facts)
        return next(m for m in self.models() if m.id == model_id)

    def complete(
        self,
        name: str | Sequence[str],
        prompts: Sequence[Any],
        *,
        allow_unfinished: bool = False,
        **options: Any,
    ) -> "list[Completion]":
        """One answer per prompt, in order. `name`: a model, or one for each prompt. A prompt is a
        text or a list of messages.

        Models that were tuned as adapters of one base answer together. Options: temperature, top_p,
        max_tokens, seed, and response_format, {"type": "json", "schema": {…}}: answers that follow
        a JSON schema. Greedy by default. PromptTooLong, InvalidPrompt or InvalidSchema before
        anything is computed, of 16 models at a time; UnfinishedAnswer where an answer that should
        follow a schema was cut, unless `allow_unfinished`.
        """
        began = time.time()
        names = [name] * len(prompts) if isinstance(name, str) else list(name)
        if len(names) != len(prompts):
            raise InvalidOptionValue(
                name="name",
                value=counted(len(names), "model"),
                allowed=f"one, or one for each of {counted(len(prompts), 'prompt')}",
            )
        catalog.prices(self.settings.home)  # UnreadableSettings before anything is computed
        tuned = {
            n: self._usable(n) for n in ([name] if isinstance(name, str) else dict.fromkeys(names))
        }
        questions = [
            tuned[n].base.task_spec.rules.question(p) for n, p in zip(names, prompts, strict=True)
        ]
        self._must_record(tuned.values())
        inference, sampling = _inference(), _sampling(options)
        pool, most = inference.of_device(self.settings.device), inference.MOST_TOGETHER
        found: dict[int, Completion] = {}
        by_base = sorted(tuned, key=lambda n: tuned[n].base.name)
        for some in (by_base[i : i + most] for i in range(0, len(by_base), most)):
            places = [i for i, n in enumerate(names) if n in some]
            asked = [(tuned[names[i]], questions[i]) for i in places]
            answers = pool.complete(inference.Request(asked, inference.Sampling(**sampling)))
            found |= zip(places, answers, strict=True)
        for n in tuned:
            self._charge(tuned[n], [found[i] for i, other in enumerate(names) if other == n], began)
        cut = [i for i in sorted(found) if "schema" in sampling and not found[i].stopped]
        if cut and not allow_unfinished:
            most, first = max(found[i].completion_tokens for i in cut), found[cut[0]]
            raise UnfinishedAnswer(
                count=len(cut),
                model=tuned[names[cut[0]]].name,
                answer=first.text[:60] + "…",
                max_tokens=most,
            )
        return [found[i] for i in range(len(prompts))]

    def stream(self, name: str, prompt: Any, **options: Any) -> Iterator[str]:
        """The answer to one prompt in pieces as they are written; joined they are what `complete`
        gives. Options as there.

        Who stops listening pays for what he heard until then.
        """
        written = self._written(name, prompt, options)
        _streams.add(written)
        return written

    def _written(
        self, name: str, prompt: Any, options: Mapping[str, Any]
    ) -> Generator[str, None, None]:
        began = time.time()
        catalog.prices(self.settings.home)
        tuned = self._usable(name)
        question = tuned.base.task_spec.rules.question(prompt)
        inference, asked = _inference(), _sampling(options)
        self._must_record([tuned])
        request = inference.Request([(tuned, question)], inference.Sampling(**asked))
        last = None
        written = inference.of_device(self.settings.device).stream(request)
        try:
            for so_far in written:
                piece, last = so_far.text[len(last.text) if last else 0 :], so_far
                if piece:
                    yield piece
        finally:
            written.close()
            if last:
                self._charge(tuned, [last], began)

    def _usable(self, name: str) -> TunedModel:
        tuned = self._files_here(self.model(name))
        access.require(self.principal, "USAGE", tuned.name)
        self._warn_once(tuned)
        return tuned

    def _must_record(self, asked: Iterable[TunedModel]) -> None:
        """UsageNotRecorded before anything is computed, where answers have a price and the home
        cannot be written."""
        home = self.settings.home
        if not self.store.is_read_only or not (home / "prices.toml").exists():
            return
        for model in asked:
            if catalog.credits(home, model.base.name, "inference", 10**6) > 0:
                raise UsageNotRecorded(name=model.name, home=str(home))

    def _charge(self, tuned: TunedModel, found: "Sequence[Completion]", began: float) -> None:
        if self.store.is_read_only:
            if "usage" not in self._warned:
                self._warned.add("usage")
                words = (
                    f"the home {self.settings.home} cannot be written: its answers are not "
                    f"recorded as usage"
                )
                warnings.warn(words, Notice, stacklevel=4)
            return
        used = sum(c.prompt_tokens for c in found), sum(c.completion_tokens for c in found)
        self.store.add_usage(
            kind="complete",
            model=tuned.name,
            base_model=tuned.base.name,
            job_id=tuned.job_id or None,
            input_tokens=used[0],
            output_tokens=used[1],
            started_at=began,
            ended_at=time.time(),
            credits=catalog.credits(self.settings.home, tuned.base.name, "inference", sum(used)),
        )

    def count_tokens(self, name: str, text: str) -> int:
        """Tokens of a text for this model, its template left out; WrongTask for a model that reads
        none."""
        spec = self.model(name).base
        if spec.task_spec.unit != "token":
            raise WrongTask(
                what="Counting tokens", needed="text", name=name, task=spec.task_spec.name
            )
        return len(self._encoder_of(spec).text(text))

    def rows(self, table: str, job_id: str | None = None) -> list[dict[str, Any]]:
        """A table of the store (jobs, metrics, models, rejections, row_losses, usage, events), or
        `lineage` or `verdicts`; of one job where it is named: then no other row is read. What is
        damaged is told and left out."""
        found: list[dict[str, Any]] = []
        after, is_first = None, True
        while is_first or after is not None:
            page, after = self.page(table, job_id, after)
            found += page
            is_first = False
        return found

    def page(
        self, table: str, job_id: str | None = None, after: str | None = None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The next rows of the same: those after the place `after`, and the place to go on from,
        None at the end."""
        key = json.loads(after) if after else None
        if table == "lineage":
            rows, key = self._lineage(job_id, key)
        elif table == "verdicts":
            rows, key = self.store.page("jobs", job_id, key)
            rows = [_verdict_row(r) for r in rows if r["verdict"]]
        else:
            rows, key = self.store.page(table, job_id, key)
        return rows, None if key is None else json.dumps(key)

    def _lineage(
        self, job_id: str | None, after: Sequence[Any] | None
    ) -> tuple[list[dict[str, Any]], Sequence[Any] | None]:
        """Which model learned from which rows, the next model's: a row is known by its content
        hash, wherever it came from."""
        models, following = self.store.page("models", job_id, after, size=1)
        for model in (m for m in models if m["home"] == self.store.home and m["job_id"]):
            try:
                job = self.store.get(model["job_id"])
                refused = {
                    r["row"] for r in self.store.rows("rejections", job.id) if r["part"] == "train"
                }
                hashes = Dataset.open(
                    self.settings.job_folder(job.id) / ROWS, job.data_digest, job.moved
                ).hashes("train")
            except (DamagedFiles, DamagedRow, UnknownJob) as e:  # the others are told all the same
                warnings.warn(
                    f"what {model['name']} learned from cannot be read: {e}", Notice, stacklevel=2
                )
                continue
            known = {"model": model["name"], "job_id": job.id, "base_model": job.base_model}
            return [
                {"row_hash": row_hash, "row": row, **known}
                for row_hash, row in hashes
                if row not in refused
            ], following
        return [], following

    # ------------------------------------------------------------ inside

    def _run(self, phase: Phase, work: Work, answer: type[M]) -> M:
        """A phase for whoever asks, in a process of its own; its error is raised here."""
        with tempfile.TemporaryFile() as log:
            return ask(self._executor, phase, work, answer, log)

    def _facts(self, tuned: TunedModel) -> Facts:
        """What a model card tells."""
        base = tuned.base
        known = Facts(
            tuned.name,
            base.public_name,
            base.hub_id,
            base.licence,
            tuned.method,
            base.task,
            verdict=tuned.verdict,
        )
        if not tuned.job_id:
            return known
        job = self.store.get(tuned.job_id)
        options = job.resolved.to_json() if job.resolved else {}
        curve = [
            (m["step"], m["training_loss"], m["validation_loss"])
            for m in self.store.rows("metrics", job.id)
        ]
        return replace(
            known,
            rows=dict(job.rows),
            trained_tokens=job.trained_tokens,
            curve=curve,
            options={
                k: v["value"]
                for k, v in options.items()
                if v["value"] not in ("", 0) and k not in PRIVATE_OPTIONS
            },
        )

    def _base_of(
        self, folder: str | os.PathLike[str], named: str, digest: str
    ) -> catalog.ModelSpec:
        """The base of a model from elsewhere: the one that is named, or the one here whose
        fingerprint it carries."""
        here = (
            [catalog.find(named, self.settings.home)]
            if named
            else [
                catalog.find(spec.name, self.settings.home)
                for spec, place in self.bases()
                if place is not None
            ]
        )
        for spec in here:
            if catalog.fingerprint(spec) == digest:
                return spec
        raise BaseNotHere(
            folder=os.fspath(folder), tried=[s.name for s in here], digest=digest[:12] + "…"
        )

    def _tuned(self, name: str) -> TunedModel:
        """A tuned model; UnknownModel for a base."""
        found = self.model(name)
        if not found.folder:
            raise UnknownModel(name=name, closest=closest(name, self.store.model_names()))
        return self._files_here(found)

    def _files_here(self, model: TunedModel) -> TunedModel:
        """OfAnotherHome for a tuned model whose files are elsewhere."""
        if model.folder and model.home != self.store.home:
            raise OfAnotherHome(
                what=f"The model {model.name}", place=self.store.place_of(model.home)
            )
        return model

    def _here(self, job: Job) -> Job:
        """OfAnotherHome for a job that another home runs."""
        if job.home != self.store.home:
            raise OfAnotherHome(
                what=f"Job {job.id} ({job.name})", place=self.store.place_of(job.home)
            )
        return job

    def _warn_once(self, tuned: TunedModel) -> None:
        """A model that tuning harmed answers all the same; whoever asks it is told once."""
        if (
            tuned.verdict
            and tuned.verdict["word"] == Word.HARMED
            and tuned.name not in self._warned
        ):
            self._warned.add(tuned.name)
            warnings.warn(f"{tuned.name}: {sentence(tuned.verdict)}", Notice, stacklevel=4)

    def _hand_out(self, job: Job) -> Job:
        return replace(job, service=self)

    def _encoder_of(self, spec: catalog.ModelSpec) -> Any:
        key, rules = (spec.task, spec.folder), spec.task_spec.rules
        if key not in self._encoders:
            self._encoders[key] = rules.encoder(rules.preprocessing(spec), spec)
        return self._encoders[key]

    def _snapshot(
        self,
        training_data: Data,
        validation_data: Data,
        options: Options,
        folder: Path,
        spec: catalog.ModelSpec,
    ) -> Snapshot:
        given = {
            "training": training_data,
            "validation": validation_data,
            "test": options.test_data,
        }
        sources = sources_of(given, options.encoding, spec.task_spec)
        with self._source() as connection:
            limit, epochs = spec.row_limit // _epochs(options), _epochs(options)
            try:
                return snapshot(
                    connection,
                    sources,
                    folder,
                    home=self.settings.home,
                    seed=split_seed(options),
                    most=UNUSABLE * limit,
                )
            except MoreRowsThan as e:
                rows = f"More than {e.fields['most']}"
                raise TooManyRows(
                    rows=rows, base_model=spec.name, limit=f"{limit:,}", epochs=epochs
                ) from None

    def _check_row_limit(self, spec: catalog.ModelSpec, options: Options, rows: int) -> None:
        epochs = _epochs(options)
        limit = spec.row_limit // epochs
        if rows > limit:
            raise TooManyRows(
                rows=f"{rows:,}", base_model=spec.name, limit=f"{limit:,}", epochs=epochs
            )

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


def _is_of(store: JobStore, tuned: TunedModel, name: str, is_last: bool) -> bool:
    """Whether a name means this model, or the line of which it is the last."""
    plain = model_key(name.partition("@")[0])
    if not is_last:
        return plain == model_key(tuned.name)
    try:
        row = store.model(plain)
    except DamagedRow:
        return False
    return tuned.line == (plain if row is None else row.line)


def _verdict_row(job: Mapping[str, Any]) -> dict[str, Any]:
    v = Verdict.from_json(job["verdict"])
    return {
        "job_id": job["id"],
        "model": job["name"],
        "base_model": job["base_model"],
        "finished_at": job["finished_at"],
        **v.arms,
        **{
            k: getattr(v, k)
            for k in ("word", "metric", "n", "against", "difference", "low", "high", "stop_rate")
        },
        "base_loss": v.losses["base"],
        "tuned_loss": v.losses["tuned"],
        "rows_won": len(v.won),
        "rows_lost": len(v.lost),
    }


def _epochs(options: Options) -> int:
    return DEFAULT_EPOCHS if options.max_epochs == "auto" else int(options.max_epochs)


def _must_be_able_to_train() -> None:
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


def _described(data: Data) -> str:
    """Training data as text, for DESCRIBE."""
    if data is None:
        return ""
    return (
        os.fspath(data)
        if isinstance(data, (str, os.PathLike))
        else f"<{type(data).__module__.partition('.')[0]} {type(data).__name__}>"
    )


def _inference() -> Any:
    """The one late import of the house: answering needs torch, and `tunesmith job list` must not
    wait for it."""
    try:
        # SciPy: for losses of object detection
        with imports.quickly("transformers", without="scipy"):
            from tunesmith.inference import pool
    except ImportError as e:
        raise MissingExtra(what=f"answering ({e.name})", extra="train") from None
    if _is_forked:
        pool.use_one_thread()
    return pool


_streams: WeakSet[Generator[str, None, None]] = WeakSet()


@atexit.register
def _close_streams() -> None:
    """What was heard is counted, also where a program ends in the middle of an answer."""
    for written in list(_streams):
        written.close()


_is_forked = False


def _note_fork() -> None:
    """A child forked beside torch has none of its parent's threads, which torch would wait for: it
    answers with one of its own."""
    global _is_forked
    _is_forked = "torch" in sys.modules


os.register_at_fork(after_in_child=_note_fork)


_LIMITS = {"temperature": (0.0, 1.0), "top_p": (0.0, 1.0), "max_tokens": (1, 8192)}


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of COMPLETE (Snowflake, complete-snowflake-cortex), checked; numbers may come as
    text."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name == "guardrails":
            continue
        if name == "response_format":
            found["schema"] = _schema(value)
        elif name == "seed":
            if not str(value).lstrip("-").isdecimal():
                raise InvalidOptionValue(name=name, value=value, allowed="a whole number")
            found[name] = int(value)
        elif name in _LIMITS:
            found[name] = _limited(name, value)
        else:
            raise InvalidOptionValue(
                name=name,
                value=value,
                allowed="COMPLETE takes temperature, top_p, max_tokens, response_format",
            )
    return found


def _limited(name: str, value: Any) -> float | int:
    low, high = _LIMITS[name]
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    is_whole = name == "max_tokens"
    if not low <= number <= high or (is_whole and number != int(number)):
        raise InvalidOptionValue(
            name=name,
            value=value,
            allowed=f"a {'whole ' if is_whole else ''}number from {low} to {high}",
        )
    return int(number) if is_whole else number


def _schema(response_format: Any) -> str:
    """The JSON schema of a response_format, as text: {"type": "json", "schema": {…}} (Snowflake,
    complete-structured-outputs)."""
    found = response_format.get("schema") if isinstance(response_format, Mapping) else None
    if not isinstance(found, Mapping):
        raise InvalidSchema(
            schema=json.dumps(response_format, default=str),
            reason="there is no object under 'schema'",
        )
    return json.dumps(found)

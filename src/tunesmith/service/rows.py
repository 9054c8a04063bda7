"""A user's rows: frozen for a job, or looked at before one."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from tunesmith import access, catalog, durable, worker
from tunesmith.data import baseline
from tunesmith.data.checks import audit
from tunesmith.data.dataset import Dataset, Snapshot, snapshot
from tunesmith.data.gate import quoted
from tunesmith.data.given import Data, sources_of
from tunesmith.documents.audit import AuditReport
from tunesmith.documents.quote import Quote
from tunesmith.documents.rates import Rates
from tunesmith.errors import (
    MoreRowsThan,
    TooManyRows,
    TunesmithError,
    ViewNotWritten,
)
from tunesmith.models import methods
from tunesmith.options import Options
from tunesmith.phases.child import FIND_RATE, PROBE, REHEARSE, SUSPECT, Assignment
from tunesmith.phases.messages import Measured, Probed, RatesTried, Suspected
from tunesmith.phases.prepare import Plan, plan_of
from tunesmith.service.core import Core, must_be_able_to_train
from tunesmith.settings import ROWS
from tunesmith.tasks.specs import TEXT_CLASSIFICATION, TEXT_GENERATION
from tunesmith.tuning.recipe import split_seed, usual_rate

UNUSABLE = (
    2  # times the row limit is read at most: rows that cannot be used do not count against it
)
DEFAULT_EPOCHS = 3  # Snowflake's default; decides the row limit where max_epochs is auto


class Rows(Core):
    """The verbs before a job."""

    def audit(
        self,
        training_data: Data,
        validation_data: Data = None,
        *,
        test_data: Data = None,
        base_model: str = "tunesmith-tiny",
        groups: Sequence[str] = (),
        encoding: str = "",
        label_separator: str = "",
    ) -> AuditReport:
        """What is wrong with the rows, which rows, and the SQL that mends it. Nothing is stored, no
        job is created.

        `base_model` decides tokens and windows, and where it gives labels its own features tell
        which look wrong; `groups` names columns whose values are groups (default: those with few
        values).
        """
        access.require(self.principal, "USAGE", base_model)
        spec = catalog.find(base_model, self.settings.home)
        given = {"training": training_data, "validation": validation_data, "test": test_data}
        if label_separator:
            Options(label_separator=label_separator).must_be_read(spec.task_spec, methods.READERS)
        sources = sources_of(given, encoding, spec.task_spec, label_separator)
        suspects = (
            None if label_separator else self._suspects(spec, base_model, training_data, encoding)
        )
        with self._source() as connection:
            return audit(connection, sources, self._encoder_of(spec), spec, groups, suspects)

    def _suspects(
        self, spec: catalog.ModelSpec, base_model: str, training_data: Data, encoding: str
    ) -> Sequence[int] | None:
        """Rows whose labels the base's features speak against; None where it is not asked: then
        the audit's own model on words says."""
        if spec.task != TEXT_CLASSIFICATION.name or not baseline.is_installed():
            return None
        with (
            suppress(TunesmithError),  # of rows that no job would take: the audit says why
            self._tried(training_data, None, base_model, {"encoding": encoding}) as (work, _),
        ):
            return self._run(SUSPECT, work, Suspected).rows
        return None

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
        with self._tried(training_data, validation_data, base_model, options) as (work, plan):
            measured = self._run(REHEARSE, work, Measured)
            rules = work.spec.task_spec.rules
            train, validation = (
                [(rules.words(r), r.completion) for r in work.dataset().rows(p)]
                for p in ("train", "validation")
            )
        price = catalog.credits(self.settings.home, work.spec.name, "training", 1)
        tokens, rows, threads = plan.tokens, plan.rows["train"], self.settings.threads
        found = Quote.of(work.spec, plan.resolved, tokens, rows, measured, price, threads)
        has_words = baseline.is_installed() and all(w is not None for w, _ in train + validation)
        linear = baseline.score(train, validation) if has_words else None
        found = replace(found, linear=linear, linear_rows=len(validation))
        if linear is None or not validation or work.spec.task != TEXT_GENERATION.name:
            return found
        return self._with_classifier(found, training_data, validation_data)

    def _with_classifier(self, quote: Quote, training_data: Data, validation_data: Data) -> Quote:
        """With what a base that gives labels would reach on the same rows, where one is here."""
        here = [
            spec.name
            for spec, folder in catalog.listed(self.settings.home)
            if folder is not None and spec.task == TEXT_CLASSIFICATION.name
        ]
        for name in here:
            with (
                suppress(TunesmithError),  # of rows that are no texts with labels
                self._tried(training_data, validation_data, name, {}) as (work, _),
            ):
                found = self._run(PROBE, work, Probed)
                if found.score is not None:
                    return replace(
                        quote,
                        classifier=name,
                        classifier_score=found.score,
                        classifier_seconds=found.seconds,
                    )
        return quote

    def find_rate(
        self,
        training_data: Data,
        validation_data: Data = None,
        *,
        base_model: str = "tunesmith-tiny",
        **options: Any,
    ) -> Rates:
        """Which learning rate to begin with: some steps at rising rates, in a process of their own
        and thrown away. `Rates.plot()` shows the loss. Errors are those of `quote`."""
        with self._tried(training_data, validation_data, base_model, options) as (work, plan):
            found = self._run(FIND_RATE, work, RatesTried)
        method = plan.resolved.method
        rate, rule = usual_rate(work.spec, method)
        return Rates(work.spec.name, method, found.suggested, rate, rule, found.tried)

    @contextmanager
    def _tried(
        self,
        training_data: Data,
        validation_data: Data,
        base_model: str,
        options: Mapping[str, Any],
    ) -> Iterator[tuple[Assignment, Plan]]:
        """A job as it would be given to a phase; nothing of it is kept."""
        access.require(self.principal, "CREATE MODEL", base_model)
        parsed = Options.parse(options)
        spec = catalog.find_for(base_model, self.settings.home, parsed.task)
        rules = spec.task_spec.rules
        parsed.must_be_read(spec.task_spec, methods.READERS)
        must_be_able_to_train()
        try:
            with durable.staging(self.settings.home) as folder:
                frozen = self._snapshot(training_data, validation_data, parsed, folder / ROWS, spec)
                dataset = Dataset.open(folder / ROWS, frozen.digest)
                price = catalog.credits(self.settings.home, spec.name, "training", 1)
                template = rules.fitted(rules.preprocessing(spec), dataset)
                plan = plan_of(dataset, rules.encoder(template, spec), spec, parsed, price)
                work = Assignment(
                    job_id="quote",
                    home=str(self.settings.home),
                    folder=str(folder / "attempt-1"),
                    data_folder=str(folder / ROWS),
                    data_digest=frozen.digest,
                    options=parsed.to_json(),
                    resolved=plan.resolved.to_json(),
                    base=spec.to_json(),
                    template=dict(template),
                    device=self.settings.device,
                    threads=self.settings.threads,
                    moved=plan.moved,
                )
                yield work, plan
        finally:
            self._collect()

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
        sources = sources_of(given, options.encoding, spec.task_spec, options.label_separator)
        with self._source() as connection:
            limit, epochs = spec.row_limit // epochs_of(options), epochs_of(options)
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
        epochs = epochs_of(options)
        limit = spec.row_limit // epochs
        if rows > limit:
            raise TooManyRows(
                rows=f"{rows:,}", base_model=spec.name, limit=f"{limit:,}", epochs=epochs
            )

    def _collect(self) -> None:
        """Frozen rows that no job of this home has any more; what cannot be told now waits for the
        next worker."""
        with suppress(TunesmithError, OSError):
            worker.collect_snapshots(self.settings, self.store)


def epochs_of(options: Options) -> int:
    return DEFAULT_EPOCHS if options.max_epochs == "auto" else int(options.max_epochs)

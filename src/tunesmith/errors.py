"""Every exception of Tunesmith. Nothing else defines one.

A class's docstring is its message: it names the thing, the value and the way out, and its
`{fields}` are the keyword arguments of the constructor. An error travels as JSON between processes
and through the store (`to_json`, `from_json`). A door needs only the families: the CLI exits with
`exit_code`, SQL shows the sentence.

To add one: subclass a family, write the sentence, raise it with its fields.
"""

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

from tunesmith.words import field_of


class TunesmithError(Exception):
    """Something went wrong in Tunesmith: {reason}"""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "tunesmith_error"

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(
            " ".join((type(self).__doc__ or "").split()).format_map(
                {k: field_of(_shown(v)) for k, v in fields.items()}
            )
        )

    def __init_subclass__(cls) -> None:
        cls.code = "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_json, (self.to_json(),))

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": str(self), "fields": self.fields}


class Notice(UserWarning):
    """What a user is told without being stopped; the command line prints its sentence."""


def from_json(data: dict[str, Any]) -> TunesmithError:
    kind = _by_code().get(data["code"])
    if kind is None:
        return TunesmithError(reason=data["message"])
    return kind(**data["fields"])


def _by_code() -> dict[str, type[TunesmithError]]:
    found: dict[str, type[TunesmithError]] = {}
    todo: list[type[TunesmithError]] = [TunesmithError]
    while todo:
        kind = todo.pop()
        found[kind.code] = kind
        todo += kind.__subclasses__()
    return found


def _shown(value: Any) -> Any:
    """Long values are shortened in the sentence; the fields keep them whole."""
    if isinstance(value, str) and len(value) > 300:
        return value[:200] + f"… ({len(value)} characters)"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value[:10]) + (
            f", … ({len(value)} in all)" if len(value) > 10 else ""
        )
    return value


def closest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, for "did you mean"; the first one where nothing is near."""
    names = sorted(n for n in known if isinstance(n, str))
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.0)
    return next((n for n in names if near and n.lower() == near[0]), "(there are none)")


# ---------------------------------------------------------------- families


class NotFound(TunesmithError):
    """{what} was not found."""

    exit_code = 3


class Invalid(TunesmithError):
    """{what} is not valid."""

    exit_code = 2


class Conflict(TunesmithError):
    """{what} is not possible in this state."""


class Forbidden(TunesmithError):
    """{principal} may not {privilege} {object}. Ask its owner for the privilege."""


class Failed(TunesmithError):
    """{what} failed."""


# ---------------------------------------------------------------- not found


class UnknownBaseModel(NotFound):
    """No base model named {name!r}. Did you mean {closest!r}? `tunesmith base list` shows
    all; a local folder is written with a slash (./my-model), a model of the hub as
    organisation/name."""


class UnknownTask(NotFound):
    """The task {name!r} is known to no package that is installed here: {known}. Install the package
    that brings it, where the worker runs too."""


class TaskNotLoaded(Invalid):
    """The task {name!r} cannot be used: {reason}. Mend or remove the package that declares it."""


class WrongTask(Invalid):
    """{what} needs a model for {needed}, and {name} is one for {task}."""


class UnknownGroup(NotFound):
    """The training query gives no column {name!r} to look at as a group. Did you mean {closest!r}?
    Its other columns are: {known}. Add the column to the SELECT."""


class BaseNotHere(NotFound):
    """The model in {folder} was tuned from another base than {tried}: its certificate names
    {digest}. Bring that base to this machine and name it (--base)."""


class CertificateRefused(Conflict):
    """The model {name} is not used: {reasons}. Its certificate (tunesmith model show) says what was
    measured; tune it anew."""


class FolderTaken(Conflict):
    """The folder {folder} is there already. Name one that is not; nothing was written."""


class NotPromoted(Conflict):
    """The name {line} does not move to {name}: {reason}. It answers as before. `tunesmith model
    promote {name} --force` moves it all the same; {name} itself always answers under its own
    name."""


class ViewNotWritten(Conflict):
    """The view {name} was not written: {reason}"""


class WeightsNotHere(NotFound):
    """The weights of base model {name!r} are not on this machine, and Tunesmith never downloads
    unasked. Bring them with `tunesmith base add {name}`, or name a local folder as the base model
    (on a machine without a network, copy one there). Nothing was read and no job was created."""


class BaseNotBrought(Failed):
    """A base model could not be brought from {source}: {reason}. Nothing of it was kept; try again,
    or bring a folder with its files: `tunesmith base add FOLDER`."""


class NotConfirmed(Invalid):
    """{what}. Nothing was done; say so to agree: SELECT {call}"""


class InvalidBaseName(Invalid):
    """{name!r} cannot be a base's name: letters in lower case, digits, dots, hyphens and
    underscores, at most 100. Say another with --name."""


class BaseNameTaken(Conflict):
    """{name!r} is a base of the catalogue and means its own weights, not these. Say another name
    with --name."""


class BaseInUse(Conflict):
    """{count} models here answer on the base {name!r} ({models}), and would answer no more. Delete
    them first, or remove it by force."""


class UnknownJob(NotFound):
    """No fine-tuning job {id!r}. Did you mean {closest!r}? `tunesmith job list` or FINETUNE('SHOW')
    shows all."""


class UnknownModel(NotFound):
    """unknown model "{name}". Did you mean {closest!r}? `tunesmith model list` shows the tuned
    models and `tunesmith base list` the base models; a model answers once its job has
    succeeded."""


# ---------------------------------------------------------------- invalid input


class InvalidOption(Invalid):
    """Unknown option {name!r} = {value!r}. Did you mean {closest!r}? Options: {known}."""


class NotMergeable(Conflict):
    """The model {name} was tuned by the method {method}, which cannot be merged into its base.
    Export it without --merged."""


class InvalidOptionValue(Invalid):
    """Option {name} = {value!r} is out of range: {allowed}."""


class OptionNotRead(Invalid):
    """Option {name} = {value!r} would have no effect: it is read by {readers}, and {here}. Leave it
    out, or change the other."""


class InvalidSetting(Invalid):
    """The setting {name} = {value!r} cannot be used: {allowed}. Change it in the environment, or
    unset it for the default."""


class UnreadableSettings(Invalid):
    """The file {file} cannot be used: {reason}. Mend it, or take it away for the shipped one."""


class InvalidOptions(Invalid):
    """invalid options object {value!r}: {reason}. Give JSON such as {{"max_epochs": 3}}."""


class InvalidSchema(Invalid):
    """the schema of response_format cannot be followed: {reason}. It is a JSON schema in an object
    such as {{"type": "json", "schema": {{"type": "object", "properties": {{"name": {{"type":
    "string"}}}}, "required": ["name"]}}}}; this one is {schema!r}."""


class InvalidModelName(Invalid):
    """{name!r} is not a model name: letters, digits, _ and -, beginning with a letter, at most 63
    each, optionally as database.schema.name; anything else in double quotes."""


class QueryRefused(Invalid):
    """The {part} query was refused: {reason}. Give one SELECT (tables, views, CTEs, files) with the
    columns prompt and completion, or messages. The query: {query}"""


class QueryFailed(Invalid):
    """The {part} query failed: {reason}. The query: {query}"""


class NoSuchTable(Invalid):
    """The {part} query names a table that cannot be seen: {reason}. A temporary table, or one that
    is not committed yet, is invisible here: write an ordinary table and COMMIT first. The query:
    {query}"""


class MissingColumns(Invalid):
    """The {part} query gives no column {missing}; it gives: {found}. Nearest: {nearest}. Name or
    alias the columns: SELECT {wanted}."""


class TwoColumns(Invalid):
    """The {part} data gives two columns {name}: {columns}. Leave one of them out, or give it
    another name."""


class NoSuchFile(Invalid):
    """No file, folder or glob of files {path!r} (seen from {folder}). Name one that is there, or
    give a query."""


class UnreadableFile(Invalid):
    """The file {path} cannot be read as data: {where}{reason}."""


class UnreadableValue(Invalid):
    """The value {value} of the type {type}{where} has no form as text. Give it as a text, number,
    date, list or dictionary."""


class UnreadableInput(Invalid):
    """Standard input cannot be read: {where}{reason}."""


class AnswersNotFound(Invalid):
    """The base's chat template does not write the answer in message {message} as it would have been
    asked for it, so it cannot be learnt. Set the option learn to 'last'."""


class NoUsableRows(Invalid):
    """No usable row in the {part} query: {rows:row}, all rejected ({reasons}). Mend the
    rows, or look at the query: a row needs what goes into the model and what it learns to give."""


class TooManyRows(Invalid):
    """{rows:training row}, more than {base_model} takes: {limit} at {epochs} epochs. Sample the
    query (a few hundred good rows often do), or lower max_epochs."""


class MoreRowsThan(Invalid):
    """The {part} data has more than {most} rows, which is more than this base takes: no more of
    them were read. Sample it (a few hundred good rows often do)."""


class DatabaseBusy(Invalid):
    """The database {path} is held open by another process ({reason}). Close it there, or run the
    query through that process's own connection (tunesmith.connect), or export the rows to Parquet
    and name the file."""


class DatabaseNotOpened(Invalid):
    """The database {path} cannot be opened: {reason}. Name an existing DuckDB file (`tunesmith
    init` makes one), or leave it out and name Parquet, CSV or JSON lines files in the query."""


class NotADataSource(Invalid):
    """{value} is not training data: give a query, a file, folder or glob (Parquet, CSV, TSV, JSON),
    rows as dictionaries, or a table of pandas or Arrow."""


class CreateNotTopLevel(Invalid):
    """{call} acts, so it runs only as a statement of its own: SELECT {call}, with no FROM, no
    EXPLAIN, no view and no other column. Nothing was done. From Python, use connection.execute(…).
    The statement: {statement}"""


class InvalidCall(Invalid):
    """FINETUNE takes ('CREATE', name, base_model, training_query [, validation_query [, options]]),
    ('SHOW'), ('DESCRIBE', id) or ('CANCEL', id), not {call}."""


class InvalidPrompt(Invalid):
    """invalid prompt object: {reason}. Give a text, or a list of {{"role": …, "content": …}} with
    roles system (first), user and assistant in turn, the last one user."""


class InvalidQuestion(Invalid):
    """A model for the task {task} cannot be asked this: {reason}."""


class PromptTooLong(Invalid):
    """max tokens of {window} exceeded: the prompt has {tokens:token}, {model!r} takes {window} with
    its answer. Shorten the prompt ({prompt!r})."""


class NotTuned(Invalid):
    """{name} is a base without labels of its own: it answers once it was tuned (FINETUNE('CREATE',
    …), tunesmith job create)."""


class UnfinishedAnswer(Invalid):
    """{count:answer} of {model!r} did not end within their tokens, so they are no whole JSON; the
    first: {answer!r}. Raise max_tokens ({max_tokens}), or limit what the schema allows (enum,
    maxLength, maxItems). TRY_COMPLETE gives NULL for them."""


class RowsTooLong(Invalid):
    """{count:row} over what {base_model} takes when tuning ({window} prompt tokens,
    {completion_window} completion tokens), and on_long is 'fail': rows {rows}. Shorten them, or say
    on_long = 'reject' or 'cut_prompt'."""


class BudgetTooSmall(Invalid):
    """{name} allows {tokens:token}, less than the first optimizer step of {batch_size:row}: raise
    it, or lower batch_size."""


class UnsafeBaseModel(Invalid):
    """The base model in {folder} was refused: {reason}. Tunesmith reads safetensors and JSON only
    and runs no code of a model."""


class UnfitLabels(Invalid):
    """These labels cannot be learnt: {reason}. A classifier tells two or more labels apart, each of
    which several rows have; look at the column with them."""


class UnfitBaseModel(Invalid):
    """The base model in {folder} cannot be used for {task}: {reason}."""


class TemplateTooCostly(Invalid):
    """The chat template of this base was stopped: {reason}. A template may take two seconds and 512
    MB; put a simpler one into chat_template.jinja in the base's folder. It begins with
    {template!r}."""


class ReservedSchemaName(Invalid):
    """The database has a {kind} named {name!r}, and Tunesmith uses that name itself: one would hide
    the other. Open it under another name: tunesmith.connect(), then ATTACH the file AS mine, and
    query mine.{name}."""


class ReservedDatabaseName(Invalid):
    """A database file named {name!r} hides the functions of the same name. Rename the file, for
    example to my_{name}.duckdb."""


# ---------------------------------------------------------------- conflict


class JobAlreadyFinished(Conflict):
    """Job {id} has already ended as {status}; it cannot be cancelled. `tunesmith job show {id}`
    shows its result."""


class JobHasModel(Conflict):
    """Job {id} made the model {name}, which is in the catalogue. Remove that first (tunesmith model
    delete {name}); nothing was removed."""


class LineAwaited(Conflict):
    """The model {name} is the only version of its name, and job {id} ({job}) is to become the next
    one. Cancel that job first, or wait for it; nothing was removed."""


class OfAnotherHome(Conflict):
    """{what} belongs to another home that shares this store: {place}. Its files are there, so this
    is done there (TUNESMITH_HOME)."""


class HomeCopied(Conflict):
    """The home {home} is a copy of {place}: both are there, with one identity, and jobs would run
    twice. Use that one (TUNESMITH_HOME), or remove it; or make this one a home of its own, whose
    unfinished jobs are cancelled here: tunesmith doctor --as-copy. Nothing was done."""


class NotACopy(Conflict):
    """The home {home} is no copy: no other home of its identity is seen from here. Nothing was
    changed. Where the other one is on another machine, say so: tunesmith doctor --as-copy --yes."""


class StoreLost(Conflict):
    """The home {home} has {folders:folder} of jobs and models, and its store knows none of them:
    {store} was emptied or is another one. Put its file back from a backup, or set TUNESMITH_STORE
    as it was; or begin anew: tunesmith doctor --repair puts those folders aside (doctor --undo
    brings them back). Nothing was changed."""


class JobNotInState(Conflict):
    """Job {id} is {status}; only a job that is {needed} takes this. `tunesmith job show {id}` shows
    how it goes."""


class UsageNotRecorded(Conflict):
    """The home {home} cannot be written, so answers of {name} could not be charged, and the price
    table there (prices.toml) has a price for them. Nothing was computed. Make the home writable, or
    take that price away."""


class WorkerAtWork(Conflict):
    """A worker is at work in {home}. Wait until it has gone home (a minute after its last job), or
    pause or cancel its jobs."""


class IdempotencyConflict(Conflict):
    """The idempotency key {key!r} was used before, for job {id} with other arguments. Use a new key
    for a new job."""


class LeaseLost(Conflict):
    """Attempt {attempt} of job {id} has lost its lease; another worker has taken over. This attempt
    stops and changes nothing."""


class CheckpointOfAnother(Conflict):
    """The checkpoint {folder} was made with another {what} than the job has now, so going on from
    it would be another run. Bring back what was changed, or create the job again."""


class HomeTooNew(Conflict):
    """The home {home} was written in the format {found}, and this Tunesmith knows {known}. Use the
    newer Tunesmith, or another home (TUNESMITH_HOME); nothing was changed."""


class StoreTooNew(Conflict):
    """The store {store} was written by a newer Tunesmith, or by one before the first release (its
    schema is {found}, this one knows {known} and those before). Nothing was changed. Upgrade: pip
    install -U tunesmith."""


# ---------------------------------------------------------------- things that went wrong


class DiskFull(Failed):
    """No space on the disk of {path}: {needed_mb} MB needed, {free_mb} MB free. Free some space;
    nothing was lost."""


class StorageFailed(Failed):
    """{path} could not be written: {reason}. What was there before is whole; mend the disk or its
    permissions, and try again."""


class FreezingFailed(Failed):
    """The rows could not be frozen: {reason}. Nothing was kept; give fewer or shorter rows, or free
    some memory and space."""


class StoreUnavailable(Failed):
    """The store of jobs cannot be used: {reason}. Jobs keep their state and go on when it can:
    {store}"""


class SourceFailed(Failed):
    """The {source} source could not be read: {reason}. It is read in a read-only transaction with a
    time limit; nothing was changed there."""


class DamagedRow(Failed):
    """The store's row {row} of {table} is damaged: {reason}. It is left out, the rest is as it was.
    Bring the store back from a backup, or remove it: tunesmith job delete, tunesmith model
    delete."""


class DamagedFiles(Failed):
    """The files in {folder} are damaged or incomplete: {reason}. They were not loaded."""


class ChildDied(Failed):
    """The {phase} process of job {id} died {times:time} without getting further (last: {reason}).
    The end of its log: {log}"""


class TooManyAttempts(Failed):
    """Job {id} was given up after {attempts:attempt}: whatever ran it ended each time. worker.log
    in the home folder says how; create the job again when the cause is gone."""


class NonFiniteLoss(Failed):
    """The loss or a gradient was not a finite number in {steps} steps in a row, also after going
    back to the last checkpoint at half the learning rate. Rows of the last batch: {rows}. Look at
    them, or lower learning_rate (it was {learning_rate})."""


class OutOfMemory(Failed):
    """There is not enough memory even for {micro_tokens} tokens at once (the longest row there,
    {row}, has {tokens} tokens). Shorten the longest rows, take a smaller base or method='lora', or
    a machine with more memory."""


class TrainingFailed(Failed):
    """Job {id} failed while {phase}: {reason}"""


class MissingExtra(Failed):
    """{what} needs packages that are not installed. Install PyTorch first (its own install page,
    choice CPU where there is no GPU), then the rest: pip install 'tunesmith[{extra}]'. Nothing was
    created."""

"""The audit of a dataset before it is paid for. No torch.

`audit` runs the user's queries once, on his own connection, through the same door as CREATE. What
is looked for is the task's: `rows` for every task, `texts` for texts.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import collect
from tunesmith.data.staging import Source
from tunesmith.documents.audit import AuditReport


def audit(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[Source],
    encoder: Any,
    spec: ModelSpec,
    groups: Sequence[str] = (),
    suspects: Sequence[int] | None = None,
) -> AuditReport:
    """The report on the data `training` and, where given, `validation` and `test`, for one base
    model.

    `groups` names context columns; without it every column of two to twenty values is looked at.
    UnknownGroup where one is not there. `suspects`: training rows whose answers the base holds for
    wrong, where it was asked; without them a model on words says.
    """
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as own:
        told = collect(connection, sources, own, Path(folder))
        checks = sources[0].task.rules.Checks
        report: AuditReport = checks(own, sources, told, encoder, spec, suspects).report(groups)
        return report

"""The door to every stored model that answers, whatever its task: it is checked, then loaded."""

from pathlib import Path
from typing import Any

from tunesmith import durable, registry
from tunesmith.registry import TunedModel


def open_model(tuned: TunedModel, device: str, shared: Any = None) -> Any:
    """A tuned model or a base as one that answers (`tasks.task.Engine`). `shared`: what another
    engine on its base holds.

    DamagedFiles unless a tuned model's files are whole; CertificateRefused where a published one is
    not what was certified, on the base that it was certified with.
    """
    if tuned.digest:
        registry.must_be_proven(tuned)
    elif tuned.folder:
        durable.verify(Path(tuned.folder))
    return tuned.base.task_spec.task.engine(tuned, device, shared)

"""What the exporter is asked to do. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Transfer:
    """A tuned model in `source`, to be written to `target`."""

    name: str
    base: Mapping[str, Any]
    method: str
    source: str
    target: str
    merged: bool
    facts: Mapping[str, Any] | None
    """Of `card.Facts`, where a model leaves; None where one comes."""
    device: str
    threads: int

    @property
    def job_id(self) -> str:
        return self.name

"""`head`: the base stays as it is, and what was put behind it is trained; the whole model is
saved."""

from typing import Any

from tunesmith.models import head
from tunesmith.models.methods.full import attach, merge, save
from tunesmith.options import Decided

__all__ = ["attach", "merge", "prepare", "save"]


def prepare(model: Any, options: Decided) -> Any:
    model.requires_grad_(False)
    for parameter in head.trained(model).values():
        parameter.requires_grad_(True)
    return model

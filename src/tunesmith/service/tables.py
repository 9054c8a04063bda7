"""The tables of the store, page by page, for doors that show them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.dataset import Dataset
from tunesmith.documents.verdict import Verdict
from tunesmith.errors import (
    DamagedFiles,
    DamagedRow,
    Notice,
    UnknownJob,
)
from tunesmith.service.core import Core
from tunesmith.settings import ROWS


class Tables(Core):
    """The verbs that read tables."""

    def rows(self, table: str, job_id: str | None = None) -> list[dict[str, Any]]:
        """A table of the store (jobs, metrics, models, rejections, row_losses, predictions, usage,
        events), or `lineage` or `verdicts`; of one job where it is named: then no other row is
        read. What is damaged is told and left out."""
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
        "base_loss": v.losses.get("base"),
        "tuned_loss": v.losses["tuned"],
        "rows_won": len(v.won),
        "rows_lost": len(v.lost),
    }

"""The JSON that Snowflake's FINETUNE and COMPLETE answer with, made from our nouns. No key outside
the contract: real clients refuse it."""

import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tunesmith.jobs import Job, JobStatus

if TYPE_CHECKING:
    from tunesmith.inference.engine import Completion


def description(job: Job) -> str:
    """FINETUNE('DESCRIBE', id) (Snowflake, finetune-describe). Times are milliseconds since
    1970."""
    options: dict[str, Any] = job.options.to_json()
    if job.resolved is not None:
        options["max_epochs"] = job.resolved.max_epochs
    found: dict[str, Any] = {
        "base_model": job.base_model,
        "created_on": _ms(job.created_at),
        "id": job.id,
        "progress": round(job.progress, 4),
        "status": job.status.sql,
        "training_data": job.training_data,
        "validation_data": job.validation_data,
        "options": options,
    }
    if job.status is JobStatus.SUCCEEDED:
        found |= {
            "finished_on": _ms(job.finished_at),
            "model": job.name,
            "trained_tokens": job.trained_tokens,
            "training_result": {
                "validation_loss": job.validation_loss,
                "training_loss": job.training_loss,
            },
        }
    if job.status is JobStatus.FAILED and job.error is not None:
        found["error"] = {"code": job.error["code"], "message": job.error["message"]}
    return json.dumps(found, allow_nan=False)


def listing(jobs: Iterable[Job]) -> str:
    """FINETUNE('SHOW') (Snowflake, finetune-show)."""
    return json.dumps(
        [
            {
                "id": j.id,
                "status": j.status.sql,
                "base_model": j.base_model,
                "created_on": _ms(j.created_at),
            }
            for j in jobs
        ]
    )


def cancelled(job: Job) -> str:
    """FINETUNE('CANCEL', id): exactly this sentence; clients look for it (Snowflake,
    finetune-cancel)."""
    return f"Canceled Cortex Fine-tuning job: {job.id}"


def completion_object(model: str, completion: "Completion", follows_schema: bool = False) -> str:
    """COMPLETE with options (Snowflake, complete-snowflake-cortex): `messages` is a text, `created`
    in seconds.

    Where the answer follows a schema it stands, parsed, under `structured_output`
    (complete-structured-outputs), where clients look for it.
    """
    used = completion.prompt_tokens, completion.completion_tokens
    answer: dict[str, Any] = {"choices": [{"messages": completion.text}]}
    if follows_schema:
        answer = {
            "structured_output": [{"raw_message": json.loads(completion.text), "type": "json"}]
        }
    return json.dumps(
        {
            **answer,
            "created": int(time.time()),
            "model": model,
            "usage": {
                "completion_tokens": used[1],
                "prompt_tokens": used[0],
                "total_tokens": sum(used),
            },
        },
        ensure_ascii=False,
    )


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)

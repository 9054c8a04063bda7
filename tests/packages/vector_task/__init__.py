"""A task of somebody else: a number from a vector. Tunesmith knows nothing of it but this
declaration, which it finds by the entry point of the package."""

from tunesmith.tasks.specs import TaskSpec

SPEC = TaskSpec(
    "vector_to_number",
    columns={"prompt": ("vector",), "completion": ("number",)},
    methods=("full",),
    rows="vector_task.rows",
    code="vector_task.code",
    model_types=frozenset({"vector_numbers"}),
)

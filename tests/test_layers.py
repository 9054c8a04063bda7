"""Imports point down only, only four packages import torch, and only durable writes durable
files."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "tunesmith"

# Higher may import lower; on one line, left may import right.
LAYERS = [
    ["interfaces"],
    ["service", "worker", "repair"],
    ["executors"],
    ["phases"],
    ["evaluation"],
    ["tuning"],
    ["tasks"],
    ["inference"],
    ["models"],
    ["data"],
    ["home"],
    ["registry", "access"],
    ["store"],
    ["documents", "weights"],
    ["durable", "schema"],
    [
        "architectures",
        "messages",
        "catalog",
        "jobs",
        "options",
        "names",
        "specs",
        "settings",
        "safe_files",
        "errors",
        "words",
    ],
]
# what lies lower than the rest of its folder
APART = {"phases/messages.py": "messages", "tasks/specs.py": "specs"}
ALONE = {"demo", "bases", "migrations", "__init__"}
TORCH = {"tuning", "inference", "evaluation", "models", "phases", "tasks"}
HEAVY = {"torch", "transformers", "peft", "safetensors"}
LATE = {("service", "inference")}


def files() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE)
        yield APART.get(str(name), name.parts[0].removesuffix(".py")), path


def target_of(name: str) -> str:
    """The part that an imported name belongs to; empty for another package's."""
    words = name.split(".")
    if words[0] != "tunesmith" or len(words) == 1:
        return ""
    return APART.get("/".join(words[1:3]) + ".py", words[1])


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if not SOURCE.parent.joinpath(*node.module.split(".")).is_dir():
                yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def rank(part: str) -> tuple[int, int]:
    return next((i, layer.index(part)) for i, layer in enumerate(LAYERS) if part in layer)


def test_imports_point_down() -> None:
    wrong = []
    for part, path in files():
        if part in ALONE:
            continue
        for name in imports(path):
            target = target_of(name)
            if (
                not target
                or target == part
                or target in ALONE
                or not any(target in layer for layer in LAYERS)
            ):
                continue
            if (part, target) not in LATE and rank(target) <= rank(part):
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_only_four_packages_import_torch() -> None:
    wrong = [
        f"{p.name}: {n}"
        for part, p in files()
        if part not in TORCH
        for n in imports(p)
        if n.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_what_a_worker_imports_and_the_preparation_import_no_torch() -> None:
    light = (
        "phases/child",
        "phases/messages",
        "phases/prepare",
        "tasks/specs",
        "tuning/batches",
        "tuning/recipe",
    )
    for name in light:
        assert not [n for n in imports(SOURCE / f"{name}.py") if n.split(".")[0] in HEAVY]


FORBIDDEN = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "yaml"}


def test_nothing_reads_pickles_runs_a_shell_or_trusts_remote_code() -> None:
    for _, path in files():
        text = path.read_text()
        assert not FORBIDDEN & {n.split(".")[0] for n in imports(path)}, path
        for phrase in (
            "torch.load(",
            "shell=True",
            "trust_remote_code=True",
            "eval(",
            "exec(",
            "os.system",
        ):
            assert phrase not in text.replace("model.eval()", "").replace(".eval()", ""), (
                path,
                phrase,
            )


def test_only_errors_defines_exceptions() -> None:
    for part, path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and part != "errors":
                assert not any(
                    "Error" in ast.unparse(b) or "Exception" in ast.unparse(b) for b in node.bases
                ), (path, node.name)


LOGS = {"worker.log", "log.txt"}  # what processes say while they run; nothing reads them back


def test_only_durable_writes_files() -> None:
    """Libraries write too, but into a folder that durable opened and will sync, hash and rename."""
    wrong = []
    for part, path in files():
        if part == "durable":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, text = ast.unparse(node.func).rpartition(".")[2], ast.unparse(node)
            modes = [
                a.value
                for a in node.args + [k.value for k in node.keywords]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
            writes = name in {"write_text", "write_bytes"} or (
                name == "open"
                and any(set(m) <= set("wax+bt") and set(m) & set("wax+") for m in modes)
            )
            if writes and not any(log in text for log in LOGS):
                wrong.append(f"{path.name}: {text}")
    assert not wrong


def test_only_the_store_writes_sql_about_jobs() -> None:
    for part, path in files():
        if part not in ("store", "schema", "migrations"):
            assert "sqlalchemy" not in {n.split(".")[0] for n in imports(path)}, path

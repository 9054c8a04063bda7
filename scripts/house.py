"""How the code reads, in figures: python scripts/house.py [FOLDER …]

Of each folder of Python: lines of a function (median, 90th percentile, largest; with its decorators
and docstring), files over 500 lines, `fmt: skip`, and `Any` in the signatures of public functions.
"""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

LONG_FILE = 500


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(f: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = min([f.lineno, *(d.lineno for d in f.decorator_list)])
    return (f.end_lineno or f.lineno) - first + 1


def bare_any(f: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether an argument or what a public function gives is `Any` itself."""
    every = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg]
    marks = [a.annotation for a in every if a is not None] + [f.returns]
    return not f.name.startswith("_") and any(
        isinstance(m, ast.Name) and m.id == "Any" for m in marks
    )


def figures(folder: Path) -> dict[str, str]:
    texts = {p: p.read_text() for p in sorted(folder.rglob("*.py"))}
    every = [(length(f), p, f) for p, t in texts.items() for f in functions(ast.parse(t))]
    sizes = [n for n, _, _ in every]
    largest, where, which = max(every, key=lambda e: e[0])
    long = {p: t.count("\n") for p, t in texts.items() if t.count("\n") > LONG_FILE}
    told = ", ".join(f"{p.name} {n}" for p, n in sorted(long.items(), key=lambda x: -x[1]))
    return {
        "files and lines": f"{len(texts)}, {sum(t.count(chr(10)) for t in texts.values()):,}",
        "functions": f"{len(sizes):,}",
        "median": f"{statistics.median(sizes):g}",
        "90th percentile": f"{statistics.quantiles(sizes, n=10)[-1]:.0f}",
        "largest": f"{largest} ({where.name}: {which.name})",
        "files over 500 lines": f"{len(long)} ({told})" if long else "0",
        "fmt: skip": str(sum(len(re.findall(r"# fmt: skip", t)) for t in texts.values())),
        "public functions with a bare Any": str(sum(bare_any(f) for _, _, f in every)),
        "longest line": str(max(len(x) for t in texts.values() for x in t.split("\n"))),
    }


def main() -> None:
    folders = [Path(a) for a in sys.argv[1:]] or [Path(__file__).parents[1] / "src" / "tunesmith"]
    found = [figures(f) for f in folders]
    for name in found[0]:
        print(f"{name:<34}" + "   ".join(f[name] for f in found))


if __name__ == "__main__":
    main()

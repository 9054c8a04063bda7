"""Every promise at its figure, one after the other; then docs/promises.md is written from what they
reached.

python proofs/all.py [NAME …]
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from record import LATEST

PROOFS = ("store", "crash", "files", "jobs", "homes", "served", "models", "guards", "verdict")
ARGUMENTS = {"models": ("--every", "3")}  # a third of its cases: 330
PAGE = Path(__file__).parents[1] / "docs" / "promises.md"
BEGIN, END = "<!-- proofs: begin -->\n", "<!-- proofs: end -->"


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| promise | required | reached | seconds | command |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['promise']} | {r['required']} | {'' if r['ok'] else '**missed:** '}{r['reached']} | {r['seconds']:.0f} | `{r['command']}` |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    began, failed = time.monotonic(), []
    here = Path(__file__).parent
    for name in sys.argv[1:] or PROOFS:
        if subprocess.run(
            [sys.executable, str(here / f"{name}.py"), *ARGUMENTS.get(name, ())],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ).returncode:
            failed.append(name)
    rows = json.loads(LATEST.read_text())
    order = [f"python proofs/{name}.py" for name in PROOFS]
    rows.sort(key=lambda r: order.index(r["command"]) if r["command"] in order else len(order))
    LATEST.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{table(rows)}\n{time.monotonic() - began:.0f} s in all")
    if not os.environ.get("CI"):
        text = PAGE.read_text()
        head, rest = text.split(BEGIN)
        PAGE.write_text(head + BEGIN + table(rows) + END + rest.split(END)[1])
    if failed:
        sys.exit(f"missed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

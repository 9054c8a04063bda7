"""Where benchmarks leave what they found: benchmarks/results/latest.json, and parts of a docs page
between two comments."""

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "latest.json"


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def record(name: str, facts: Any) -> None:
    """Put what one benchmark found, with the machine and the day, in place of what it found
    before."""
    told = {
        "on": date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "found": facts,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**results(), name: told}, indent=1) + "\n")


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    units = [u for u in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if u in flags][:1]
    return f"{os.cpu_count()} cores, {model}, {', '.join(units)}"


def write(page: str, parts: dict[str, str]) -> None:
    """Put each text between `<!-- benchmark: name -->` and `<!-- end: name -->` of docs/page."""
    file = DOCS / page
    text = file.read_text()
    for name, made in parts.items():
        start, end = f"<!-- benchmark: {name} -->\n", f"<!-- end: {name} -->"
        before, found, rest = text.partition(start)
        assert found, f"{page} has no {start.strip()}"
        text = before + start + made.rstrip() + "\n" + end + rest.partition(end)[2]
    file.write_text(text)

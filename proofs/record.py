"""What a proof reached, as a table on the screen and as rows of proofs/results/latest.json."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

LATEST = Path(os.environ.get("PROOF_RESULTS") or Path(__file__).parent / "results" / "latest.json")


@dataclass(frozen=True)
class Proof:
    promise: str
    required: str
    reached: str
    ok: bool
    seconds: float


def show_and_save(proofs: Iterable[Proof], command: str) -> None:
    """Print each as it comes, replace this command's rows in the file, and end with 1 where a
    promise was missed."""
    done = []
    for p in proofs:
        print(
            f"{'ok  ' if p.ok else 'FAIL'}  {p.promise:<70} required {p.required:<12} reached {p.reached}  ({p.seconds:.0f} s)",
            flush=True,
        )
        done.append(p)
    known = json.loads(LATEST.read_text()) if LATEST.exists() else []
    rows = [r for r in known if r["command"] != command]
    rows += [{**asdict(p), "seconds": round(p.seconds, 1), "command": command} for p in done]
    LATEST.parent.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps(rows, indent=1) + "\n")
    if not all(p.ok for p in done):
        sys.exit(1)

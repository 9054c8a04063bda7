"""The large doses, promise by promise; it may be stopped at any time and goes on where it was.

    python proofs/soak.py [PROMISE …] [--minutes 30]

Every round is a proof with another seed; proofs/results/soak.json counts what has been done. A
round that fails ends it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "soak.json"


@dataclass(frozen=True)
class Dose:
    what: str
    command: str
    """A round of it; {seed} is another one each time."""
    each: int
    """What a round counts."""
    wanted: int


DOSES = {
    "storm": Dose(
        "jobs of 64 clients, 2,000 kills, SQLite",
        "store.py --only storm --clients 64 --each 200 --kills 2000 --seed {seed}",
        12_800,
        12_800,
    ),
    "storm-postgresql": Dose(
        "jobs of 64 clients, 2,000 kills, PostgreSQL",
        "store.py --only storm --clients 64 --each 200 --kills 2000 --postgresql --seed {seed}",
        12_800,
        12_800,
    ),
    "kills": Dose(
        "random kills of a job", "crash.py --points 0 --kills 50 --seed {seed}", 50, 1000
    ),
    "damaged": Dose(
        "damaged files", "files.py --only damaged --damaged 1000 --seed {seed}", 1000, 20_000
    ),
    "power": Dose(
        "states after a power cut",
        "files.py --only power --states 5000 --seed {seed}",
        5000,
        100_000,
    ),
    "races": Dose(
        "races of a cancel and an end",
        "store.py --only races --races 500 --seed {seed}",
        500,
        20_000,
    ),
    "cancels": Dose(
        "cancels of working jobs",
        "jobs.py --cancels 50 --kinds 0 --minutes 0 --seed {seed}",
        50,
        500,
    ),
    "queries": Dose(
        "mutated queries", "served.py --hostile 10 --mutations 1000 --seed {seed}", 1000, 10_000
    ),
    "models": Dose("hostile models and templates", "models.py", 990, 990),
    "dead": Dose("killed workers", "store.py --only dead --dead 20 --seed {seed}", 20, 200),
    "clocks": Dose(
        "steps of the clock", "store.py --only clocks --steps 100 --seed {seed}", 100, 500
    ),
    "growth": Dose(
        "minutes of small jobs", "jobs.py --cancels 0 --kinds 0 --minutes 60 --seed {seed}", 60, 60
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("promises", nargs="*", metavar="PROMISE", help=", ".join(DOSES))
    parser.add_argument("--minutes", type=float, default=30.0, help="no round begins after so many")
    args = parser.parse_args()
    if unknown := set(args.promises) - DOSES.keys():
        sys.exit(f"no promise {', '.join(unknown)}; there are {', '.join(DOSES)}")
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    end = time.monotonic() + 60 * args.minutes
    for name in args.promises or DOSES:
        dose, seen = DOSES[name], done.setdefault(name, {"done": 0, "rounds": 0, "seconds": 0})
        while seen["done"] < dose.wanted and time.monotonic() < end:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "PROOF_RESULTS": str(Path(folder) / "r.json")}
                words = dose.command.format(seed=1000 + seen["rounds"]).split()
                code = subprocess.run(
                    [sys.executable, str(HERE / words[0]), *words[1:]], env=environment
                ).returncode
            if code:
                sys.exit(f"{name}: round {seen['rounds']} failed: python proofs/{' '.join(words)}")
            seen["rounds"] += 1
            seen["done"] += dose.each
            seen["seconds"] = round(seen["seconds"] + time.monotonic() - began)
            seen["last"] = datetime.now(UTC).strftime("%Y-%m-%d")
            RESULTS.write_text(json.dumps(done, indent=1) + "\n")
            print(
                f"{name}: {seen['done']:,} of {dose.wanted:,} {dose.what} in {seen['rounds']} rounds, {seen['seconds']} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

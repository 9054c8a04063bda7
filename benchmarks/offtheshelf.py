"""Trainers as child processes that take turns: ours, the fair peer, and those of other projects in
an environment of their own.

Those of others are swept on few rows first, then each one's best setting is run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

HERE = Path(__file__).parent
SWEEP_ROWS, SWEEP_S = (
    4,
    10 * 60,
)  # rows of a sweep, and seconds that it may take at one size and work


@dataclass(frozen=True)
class Setting:
    trainer: str
    """ours, fair, compiled (ours with torch.compile), trl (SFTTrainer) or hf (transformers'
    Trainer)"""
    mode: str = ""
    micro_batch: int = 0
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.trainer} {self.mode}, {self.micro_batch} rows, {self.precision}"

    def command(self, python: str, work: Path, threads: int) -> list[str]:
        if self.trainer in ("ours", "fair", "compiled"):
            return [
                sys.executable,
                str(HERE / "sides.py"),
                str(work),
                "--side",
                self.trainer,
                "--threads",
                str(threads),
            ]
        return [
            python,
            str(HERE / "peers.py"),
            str(work),
            "--trainer",
            self.trainer,
            "--mode",
            self.mode,
            "--micro-batch",
            str(self.micro_batch),
            "--precision",
            self.precision,
            "--threads",
            str(threads),
        ]


def settings() -> list[Setting]:
    """What is swept: bfloat16 only where the processor has units for it, since elsewhere a step
    takes minutes."""
    precisions = ["fp32", "bf16"] if {"avx512_bf16", "amx_bf16"} & _flags() else ["fp32"]
    modes = {
        "trl": ["padded", "length-grouped", "padding-free", "packing"],
        "hf": ["padded", "length-grouped"],
    }
    return [
        Setting(t, m, n, p)
        for t, ms in modes.items()
        for m in ms
        for n in ((1,) if m == "packing" else (2, 4, 8))
        for p in precisions
    ]


def _flags() -> set[str]:
    return next(
        (
            set(line.split())
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("flags")
        ),
        set(),
    )


class Peer:
    """One trainer at work."""

    def __init__(self, python: str, work: dict[str, Any], setting: Setting, threads: int) -> None:
        self.setting = setting
        self._folder = TemporaryDirectory()
        file = Path(self._folder.name) / "work.json"
        file.write_text(json.dumps(work))
        self._process = subprocess.Popen(
            setting.command(python, file, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        self._hear("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def step(self, *how: int) -> float:
        """Seconds a row of one optimizer step; `how`, for ours and the fair peer: rows, rows of a
        micro-batch."""
        told = self._say(" ".join(["step", *map(str, how)]), "seconds")
        return float(told["seconds"]) / float(told["rows"])

    def validate(self) -> float:
        """Nats for each completion token."""
        return float(self._say("validate", "validation_loss")["validation_loss"])

    def close(self) -> dict[str, Any]:
        """What it used and what it is: memory_mb, versions."""
        told = self._say("end", "memory_mb")
        self._process.wait(60)
        return told

    def _say(self, word: str, wanted: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._hear(wanted)

    def _hear(self, wanted: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, Any] = json.loads(line)
            if "error" in told:
                raise RuntimeError(told["error"])
            if wanted in told:
                return told
        raise RuntimeError(f"{self.setting} ended without a word")


def by_trainer(swept: Sequence[dict[str, Any]]) -> dict[str, list[Setting]]:
    """The settings of each trainer that ran, the fastest first."""
    found: dict[str, list[Setting]] = {}
    for facts in swept:
        if "ms_per_row" in facts:
            setting = Setting(**facts["setting"])
            found.setdefault(setting.trainer, []).append(setting)
    return found


def sweep(
    python: str, work: dict[str, Any], threads: int, only: Sequence[Setting] = ()
) -> list[dict[str, Any]]:
    """Every setting (or some) once on few rows, the fastest first; what does not run, or was not
    reached in time, is told too."""
    began, found = time.monotonic(), []
    for setting in only or settings():
        facts: dict[str, Any] = {"setting": asdict(setting)}
        found.append(facts)
        if time.monotonic() - began > SWEEP_S:
            facts["why"] = "not reached"
            continue
        few = {**work, "rows": work["rows"][:SWEEP_ROWS], "rows_per_step": SWEEP_ROWS}
        try:
            with Peer(python, few, setting, threads) as peer:
                peer.step()
                facts["ms_per_row"] = round(1000 * peer.step(), 1)
        except RuntimeError as e:
            facts["why"] = str(e)[:200]
        print(f"  swept {setting}: {facts.get('ms_per_row', facts.get('why'))}", flush=True)
    return sorted(found, key=lambda f: f.get("ms_per_row", float("inf")))

"""Trainers of other projects, in an environment of their own, taking turns with ours: swept on few rows, then each one's best is run."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PEERS = Path(__file__).parent / "peers.py"
SWEEP_ROWS, SWEEP_S = 4, 20 * 60  # rows of a sweep, and seconds that it may take at one size


@dataclass(frozen=True)
class Setting:
    trainer: str
    """trl (SFTTrainer) or hf (transformers' Trainer)"""
    mode: str
    micro_batch: int
    precision: str

    def __str__(self) -> str:
        return f"{self.trainer} {self.mode}, {self.micro_batch} rows, {self.precision}"


def settings() -> list[Setting]:
    """What is swept: bfloat16 only where the processor has units for it, since elsewhere a step takes minutes."""
    precisions = ["fp32", "bf16"] if {"avx512_bf16", "amx_bf16"} & _flags() else ["fp32"]
    modes = {"trl": ["padded", "length-grouped", "padding-free", "packing"], "hf": ["padded", "length-grouped"]}
    return [
        Setting(t, m, n, p) for t, ms in modes.items() for m in ms for n in ((1,) if m == "packing" else (2, 4, 8)) for p in precisions
    ]  # fmt: skip


def _flags() -> set[str]:
    return next((set(line.split()) for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), set())


class Peer:
    """One trainer at work; `step` gives the seconds of one optimizer step over all rows."""

    def __init__(self, python: str, work: dict[str, Any], setting: Setting, threads: int, folder: Path) -> None:
        self.setting = setting
        file = folder / f"{abs(hash(setting))}-{len(work['rows'])}.json"
        file.write_text(json.dumps(work))
        command = [python, str(PEERS), str(file), "--trainer", setting.trainer, "--mode", setting.mode,
                   "--micro-batch", str(setting.micro_batch),
                   "--precision", setting.precision, "--threads", str(threads)]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        self._hear("ready")

    def step(self) -> float:
        """Seconds a row."""
        told = self._say("step", "seconds")
        return float(told["seconds"]) / float(told["rows"])

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


def best(swept: Sequence[dict[str, Any]]) -> list[Setting]:
    """The fastest setting of each trainer."""
    found: dict[str, Setting] = {}
    for facts in swept:  # the fastest first
        if "ms_per_row" in facts:
            setting = Setting(**facts["setting"])
            found.setdefault(setting.trainer, setting)
    return list(found.values())


def sweep(python: str, config: dict[str, Any], rows: Sequence[dict[str, Any]], rank: int, threads: int) -> list[dict[str, Any]]:
    """Every setting once on few rows, the fastest first; what does not run, or was not reached in time, is told too."""
    began, found = time.monotonic(), []
    with TemporaryDirectory() as folder:
        for setting in settings():
            facts: dict[str, Any] = {"setting": asdict(setting)}
            found.append(facts)
            if time.monotonic() - began > SWEEP_S:
                facts["why"] = "not reached"
                continue
            work = {"config": config, "rank": rank, "rows": list(rows[:SWEEP_ROWS]), "rows_per_step": SWEEP_ROWS}
            try:
                peer = Peer(python, work, setting, threads, Path(folder))
                peer.step()
                facts["ms_per_row"] = round(1000 * peer.step(), 1)
                peer.close()
            except RuntimeError as e:
                facts["why"] = str(e)[:200]
            print(f"  swept {setting}: {facts.get('ms_per_row', facts.get('why'))}", flush=True)
    return sorted(found, key=lambda f: f.get("ms_per_row", float("inf")))

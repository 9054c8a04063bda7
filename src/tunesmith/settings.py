"""Where things are and on what they run: read from the environment once, at the door."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tunesmith.errors import InvalidSetting

SNAPSHOTS = "snapshots"
"""In a home: folders of frozen rows, each named by its digest and shared by all jobs on them."""
ROWS = "data"
"""In a job's folder: a link to its snapshot; in one of the first release, the rows themselves."""
UNCLAIMED = "unclaimed"
"""In a home: what a repair put aside."""


@dataclass(frozen=True)
class Settings:
    home: Path
    """Folder of all durable state (TUNESMITH_HOME, default ~/.tunesmith). Back up this one
    folder."""
    store_url: str
    """SQLAlchemy URL of the job store (TUNESMITH_STORE, default SQLite inside the home)."""
    device: str
    """Torch device to train and answer on: auto, cpu, cuda, cuda:1 (TUNESMITH_DEVICE, default
    auto)."""

    threads: int
    """Threads of the trainer and the evaluator (TUNESMITH_THREADS, default: the processors this
    process may use)."""

    idle_s: float
    """Seconds without work after which a worker goes home (TUNESMITH_IDLE_S, default 60)."""

    preloaded: str = ""
    """A socket on which `python -m tunesmith.executors.preloaded --socket` listens, for programs
    that start many workers (TUNESMITH_PRELOADED, default: each worker starts a process for
    itself)."""

    @classmethod
    def read(cls, home: str | os.PathLike[str] | None = None) -> "Settings":
        """`home` beats the environment, the environment beats the default. InvalidSetting for a
        value that cannot be one."""
        named = os.fspath(home or os.environ.get("TUNESMITH_HOME") or "~/.tunesmith")
        try:
            folder = Path(named).expanduser().absolute()
        except (
            RuntimeError,
            OSError,
        ) as e:  # a user without an entry or a home of his own, a current folder that is gone
            allowed = f"it is a folder of your own ({e})"
            raise InvalidSetting(name="TUNESMITH_HOME", value=named, allowed=allowed) from None
        if named.encode("utf-8", "replace").decode() != named:
            raise InvalidSetting(
                name="TUNESMITH_HOME", value=repr(named), allowed="its name is valid UTF-8"
            )
        store_url = os.environ.get("TUNESMITH_STORE") or cls.own_store(folder)
        return cls(
            home=folder,
            store_url=store_url,
            device=_read("DEVICE", "auto", _device, "auto, cpu, cuda, cuda:0, … or mps"),
            threads=_read(
                "THREADS", str(processors()), _threads, f"a whole number from 1 to {MOST_THREADS}"
            ),
            idle_s=_read("IDLE_S", "60", _seconds, "a number of seconds from 0"),
            preloaded=os.environ.get("TUNESMITH_PRELOADED") or "",
        )

    @staticmethod
    def own_store(home: Path) -> str:
        """URL of the store inside a home."""
        return f"sqlite:///{quote(str(home / 'state.db'))}"

    def job_folder(self, job_id: str) -> Path:
        return self.home / "jobs" / job_id.removeprefix("ft_")

    def environment(self) -> dict[str, str]:
        """What a child process needs to read the same settings."""
        return {
            "TUNESMITH_HOME": str(self.home),
            "TUNESMITH_STORE": self.store_url,
            "TUNESMITH_DEVICE": self.device,
            "TUNESMITH_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


MOST_THREADS = 1024


def _read(name: str, default: str, kind: Callable[[str], Any], allowed: str) -> Any:
    text = os.environ.get(f"TUNESMITH_{name}") or default
    try:
        return kind(text.strip())
    except ValueError:
        raise InvalidSetting(
            name=f"TUNESMITH_{name}", value=text, allowed=f"it is {allowed}"
        ) from None


def _threads(text: str) -> int:
    if not 1 <= (n := int(text)) <= MOST_THREADS:
        raise ValueError(text)
    return n


def _seconds(text: str) -> float:
    if not math.isfinite(seconds := float(text)) or seconds < 0:
        raise ValueError(text)
    return seconds


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|(cuda|mps)(:[0-9]+)?", text):
        raise ValueError(text)
    return text


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Where things are and on what they run: read from the environment once, at the door."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    home: Path
    """Folder of all durable state (TUNESMITH_HOME, default ~/.tunesmith). Back up this one folder."""
    store_url: str
    """SQLAlchemy URL of the job store (TUNESMITH_STORE, default SQLite inside the home)."""
    device: str
    """Torch device to train and answer on: auto, cpu, cuda (TUNESMITH_DEVICE, default auto)."""

    threads: int
    """Threads of the trainer and the evaluator (TUNESMITH_THREADS, default: the processors this process may use)."""

    idle_s: float
    """Seconds without work after which a worker goes home (TUNESMITH_IDLE_S, default 60)."""

    @classmethod
    def read(cls, home: str | os.PathLike[str] | None = None) -> "Settings":
        """`home` beats the environment, the environment beats the default."""
        folder = Path(home or os.environ.get("TUNESMITH_HOME") or "~/.tunesmith").expanduser().absolute()
        store_url = os.environ.get("TUNESMITH_STORE") or f"sqlite:///{folder / 'state.db'}"
        return cls(
            home=folder, store_url=store_url, device=os.environ.get("TUNESMITH_DEVICE") or "auto",
            threads=int(os.environ.get("TUNESMITH_THREADS") or processors()), idle_s=float(os.environ.get("TUNESMITH_IDLE_S") or 60),
        )  # fmt: skip

    def job_folder(self, job_id: str) -> Path:
        return self.home / "jobs" / job_id.removeprefix("ft_")

    def environment(self) -> dict[str, str]:
        """What a child process needs to read the same settings."""
        return {
            "TUNESMITH_HOME": str(self.home), "TUNESMITH_STORE": self.store_url, "TUNESMITH_DEVICE": self.device,
            "TUNESMITH_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

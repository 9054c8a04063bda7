"""A job that dies at any point ends with the same model, to the bit, and only one.

    python proofs/crash.py [--points N] [--kills 100] [--seed 7]

Each trial is a copy of one home in which a job waits, and a process forked from one that has
imported torch and never used it. The real worker and trainer run in it and die by SIGKILL before
the n-th operation on durable files, or at a random moment. Then a second process goes on, and what
it ends with is compared.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

sys.path.insert(0, str(Path(__file__).parent))
import torch
from forks import InThisProcess, at_once, forked, moved, room
from record import Proof, show_and_save

from tunesmith import Tunesmith, durable, worker
from tunesmith.executors import preloaded
from tunesmith.home import open_store
from tunesmith.settings import Settings
from tunesmith.tuning import checkpoints, loop

for name in preloaded.MODULES:
    import_module(name)  # before the first fork, so that a life costs seconds

OPTIONS = {
    "method": "lora",
    "rank": 4,
    "learning_rate": 1e-2,
    "batch_size": 5,
    "max_epochs": 2,
    "patience": 0,
    "test_data": "SELECT 'say red' AS prompt, 'red' AS completion",
}


def work(home: Path) -> None:
    """Do all that waits in a home, then return."""
    settings = Settings.read(home)
    loop.RECORD_SECONDS = 0.0
    worker.Worker(settings, open_store(settings), InThisProcess()).work_all()


def dying_at(n: int, home: Path) -> Callable[[], None]:
    """Work that dies before its n-th operation on durable files (counted from 1)."""

    def body() -> None:
        left = n

        def observer(operation: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        durable.observer = observer
        work(home)

    return body


@dataclass(frozen=True)
class End:
    """What a home holds at the end."""

    status: str
    models: int
    weights: str
    """Digest of the model's weights."""


def end_of(home: Path) -> End:
    service = Tunesmith(home=home)
    [job] = service.show()
    models = service.models()
    digest = hashlib.sha256()
    for m in models:
        durable.verify(Path(m.folder), m.digest)
        digest.update(next(Path(m.folder).glob("*.safetensors")).read_bytes())
    return End(job.status.value, len(models), digest.hexdigest())


class Trials:
    """Trials from one prepared home."""

    def __init__(self, base: Path, rows: Sequence[dict[str, str]], folder: Path) -> None:
        self._folder, self._start, self._n = folder, folder / "start", 0
        service = Tunesmith(home=self._start)
        ensure, worker.ensure = worker.ensure, lambda *a, **k: None
        try:
            service.create("m", str(base), list(rows), **OPTIONS)
        finally:
            worker.ensure = ensure
        service.store.close()
        undisturbed = self.home()
        began = time.monotonic()
        count = self._count(undisturbed)
        self.seconds, self.operations = time.monotonic() - began, count
        self.truth = end_of(undisturbed)
        if (self.truth.status, self.truth.models) != ("SUCCEEDED", 1):
            raise SystemExit(f"the undisturbed job ended so: {self.truth}")

    def home(self) -> Path:
        self._n += 1
        return moved(
            Path(shutil.copytree(self._start, self._folder / f"home-{os.getpid()}-{self._n}"))
        )

    def _count(self, home: Path) -> int:
        """Operations of a whole job, told by the process that did it."""
        told = self._folder / "operations"

        def body() -> None:
            seen: list[str] = []
            durable.observer = lambda operation, path: seen.append(operation)
            work(home)
            told.write_text(str(len(seen)))

        if forked(body) != 0:
            raise SystemExit("the undisturbed job failed")
        return int(told.read_text())

    def killed_at(self, n: int, spoil: Callable[[], None] = lambda: None) -> End:
        """Die before operation n, go on, and end. `spoil` is called in the second life first: a
        control."""
        home = self.home()
        return self._resumed(home, forked(dying_at(n, home)), spoil)

    def killed_after(self, seconds: float) -> End:
        home = self.home()
        return self._resumed(home, forked(lambda: work(home), kill_after=seconds))

    def _resumed(self, home: Path, code: int, spoil: Callable[[], None] = lambda: None) -> End:
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"the first life ended with {code}, not by the kill")
        if forked(lambda: (spoil(), work(home))) != 0:  # type: ignore[func-returns-value]
            raise SystemExit("the second life failed")
        end = end_of(home)
        shutil.rmtree(home)
        return end


def make_base(folder: Path) -> None:
    """A tiny base that drops values at random, so that a resume has to have the random state;
    without a chat template, since a foreign one is rendered in children of its own, which would be
    half of a life."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import conftest

    conftest.make_base(folder, attention_dropout=0.2)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["chat_template"]
    file.write_text(json.dumps(config))


def rows() -> list[dict[str, str]]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import next_word_rows

    return next_word_rows()


def forget_the_optimizer() -> None:
    """A resume that is not one."""
    checkpoints.restore_optimizer = lambda checkpoint, trained, optimizer: None


def forget_the_random_state() -> None:
    """Another one: everything but the state of the random numbers."""
    restore = checkpoints.restore_optimizer

    def without(checkpoint: checkpoints.Checkpoint, trained: Any, optimizer: Any) -> None:
        before = torch.get_rng_state()
        restore(checkpoint, trained, optimizer)
        torch.set_rng_state(before)

    checkpoints.restore_optimizer = without


CONTROLS = {"the optimizer": forget_the_optimizer, "the random state": forget_the_random_state}


def proofs(trials: Trials, n_points: int, n_kills: int, seed: int) -> Iterator[Proof]:
    began, chance = time.monotonic(), random.Random(seed)
    every = range(1, trials.operations + 1)
    points = every if n_points >= len(every) else sorted(chance.sample(every, n_points))
    differ = at_once(points, lambda n: trials.killed_at(n) != trials.truth)
    promise = f"killed before {len(points)} of {trials.operations} operations on files: the same model, once"
    yield Proof(promise, "0 differ", f"{len(differ)} differ", not differ, time.monotonic() - began)
    began = time.monotonic()
    middle = range(trials.operations // 3, trials.operations, 12)
    seen = [
        c
        for c in CONTROLS
        if n_points
        and at_once(middle, lambda n, c=c: trials.killed_at(n, CONTROLS[c]) != trials.truth)
    ]
    promise = f"the controls: a resume that forgets {' or '.join(CONTROLS)} is seen"
    yield Proof(
        promise,
        "both seen",
        f"{len(seen)} seen",
        len(seen) == len(CONTROLS) or not n_points,
        time.monotonic() - began,
    )
    began = time.monotonic()
    moments = [chance.uniform(0, trials.seconds) for _ in range(n_kills)]
    wrong = at_once(moments, lambda at: trials.killed_after(at) != trials.truth)
    promise = f"killed at {n_kills} random moments: the same model, once"
    yield Proof(promise, "0 differ", f"{len(wrong)} differ", not wrong, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    with room() as temporary:
        folder = Path(temporary)
        if forked(lambda: make_base(folder / "base")) != 0:  # torch is used in a child alone
            raise SystemExit("no base")
        show_and_save(
            proofs(Trials(folder / "base", rows(), folder), args.points, args.kills, args.seed),
            "python proofs/crash.py",
        )


if __name__ == "__main__":
    main()

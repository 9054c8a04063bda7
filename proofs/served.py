"""A served query reads only what its user may: judged by effect, not by the error.

    python proofs/served.py [--hostile 300] [--mutations 2000] [--seed 0]

Every hostile query must be refused by the gate, or do no harm where it is only costly; and it is
run in the confined child all the same, as if the gate had let it through. Harm is: the canary in
its answer, a file made or changed, a connection, or more time than it may have.
"""

import argparse
import hashlib
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
from queries import CANARY, GRANTED, HOSTILE, ORDINARY, make_shop, mutations
from record import Proof, show_and_save

from tunesmith.data import served
from tunesmith.errors import QueryFailed, QueryRefused

LIMITS = served.Limits(seconds=2.0, memory_mb=256, rows=200_000, result_mb=32)
GRACE_S = 2.0  # over the limit, for a busy machine
CATALOG = "shop"
COSTLY = "resources"


class Shop:
    """The database, the copy of what is granted, the canary, and a port that nobody may call."""

    def __init__(self, folder: Path) -> None:
        self._watched, self._copy = folder / "watched", folder / "copy"
        for new in (self._watched, self._copy):
            new.mkdir()
        self.database, self.canary = (
            self._watched / f"{CATALOG}.duckdb",
            self._watched / "canary.txt",
        )
        make_shop(self.database, self.canary)
        with duckdb.connect(str(self.database), read_only=True) as connection:
            self.files = served.copy(connection, GRANTED, CATALOG, self._copy)
        self._port = socket.create_server(("127.0.0.1", 0))
        self._port.settimeout(0.0)
        self._before, self._runs = self._state(), 0

    def text(self, sql: str) -> str:
        """The query with its places filled in."""
        places = {
            "canary_file": self.canary,
            "database_file": self.database,
            "out_file": self._watched / "out",
        }
        for name, place in places.items():
            sql = sql.replace("{" + name + "}", str(place))
        return sql.replace("{port}", str(self._port.getsockname()[1]))

    def harm(self, sql: str) -> str:
        """What a query did that it may not, when it is run in the confined child; empty:
        nothing."""
        self._runs += 1
        folder = self._copy / f"run-{self._runs}-{id(sql)}"
        folder.mkdir()
        began = time.monotonic()
        try:
            answer = str(
                served.run(
                    self.text(sql), self.files, CATALOG, folder, part="training", limits=LIMITS
                ).to_pydict()
            )
        except QueryFailed as e:
            answer = str(e.fields["reason"])
        took = time.monotonic() - began
        if CANARY in answer:
            return "it read the canary"
        if took > LIMITS.seconds + GRACE_S:
            return f"it took {took:.1f} s"
        if any((folder / "empty").iterdir()):
            return "it wrote a file"
        return ""

    def damage(self) -> str:
        """What all queries so far left behind."""
        try:
            self._port.accept()
            return "a connection was made"
        except BlockingIOError:
            return "" if self._state() == self._before else "files were made or changed"

    def _state(self) -> dict[str, str]:
        files = [*self._watched.rglob("*"), *(Path(f) for f in self.files.values())]
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def passes(sql: str) -> bool:
    try:
        served.check(sql, GRANTED, catalog=CATALOG)
        return True
    except QueryRefused:
        return False


def spread(n: int) -> list[tuple[str, str]]:
    """n hostile queries, of every kind."""
    return sorted(random.Random(3).sample(HOSTILE, min(n, len(HOSTILE))))


def hostile(shop: Shop, n: int) -> Iterator[Proof]:
    began, chosen = time.monotonic(), spread(n)
    through = [sql for kind, sql in chosen if kind != COSTLY and passes(shop.text(sql))]
    harmful = at_once(lambda case: (shop.harm(case[1]), case[1]), chosen)
    for why, sql in [*(("the gate let it through", sql) for sql in through), *harmful]:
        print(f"  {why}: {shop.text(sql)[:200]}")
    bad = len(through) + len(harmful) + bool(shop.damage())
    yield Proof(
        f"{len(chosen)} hostile queries, refused, and run all the same: no effect",
        "0",
        f"{bad}{shop.damage()}",
        not bad,
        time.monotonic() - began,
    )


def mutated(shop: Shop, n: int, seed: int = 0) -> Iterator[Proof]:
    began = time.monotonic()
    accepted = [sql for sql in mutations(seed, n) if passes(shop.text(sql))]
    harmful = at_once(lambda sql: (shop.harm(sql), sql), accepted)
    for why, sql in harmful:
        print(f"  {why}: {shop.text(sql)[:200]}")
    bad = len(harmful) + bool(shop.damage())
    yield Proof(
        f"{n} mutated queries, the {len(accepted)} that were accepted run: no effect",
        "0",
        f"{bad}{shop.damage()}",
        not bad,
        time.monotonic() - began,
    )


def ordinary(shop: Shop) -> Iterator[Proof]:
    began = time.monotonic()
    refused = [sql for sql in ORDINARY if not passes(sql)]
    for sql in refused:
        print(f"  refused: {sql}")
    yield Proof(
        f"{len(ORDINARY)} ordinary training queries are accepted",
        "all",
        f"{len(ORDINARY) - len(refused)}",
        not refused,
        time.monotonic() - began,
    )


def at_once(harm: Callable[[Any], tuple[str, str]], cases: Sequence[Any]) -> list[tuple[str, str]]:
    """The cases that did harm, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [found for found in pool.map(harm, cases) if found[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hostile", type=int, default=300)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder))
        proofs = chain(
            ordinary(shop), hostile(shop, args.hostile), mutated(shop, args.mutations, args.seed)
        )
        show_and_save(proofs, "python proofs/served.py")


if __name__ == "__main__":
    main()

"""One owner computes for many threads: together, and with the answers that each would get alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import WORDS
from tunesmith import Tunesmith
from tunesmith.catalog import ModelSpec
from tunesmith.errors import PromptTooLong
from tunesmith.inference import pool as pools
from tunesmith.inference.engine import Completion, Sampling
from tunesmith.inference.pool import Pool, Request, _joined, _Waiting
from tunesmith.registry import TunedModel
from tunesmith.tasks import text_generation

GREEDY = Sampling(max_tokens=8)


@pytest.fixture
def base(tuned_base: Path) -> TunedModel:
    return TunedModel("b", ModelSpec(name="b", folder=str(tuned_base), context=128))


def request(base: TunedModel, *prompts: str, sampling: Sampling = GREEDY) -> Request:
    return Request([(base, [{"role": "user", "content": p}]) for p in prompts], sampling)


def at_once(pool: Pool, requests: list[Request]) -> list[Any]:
    """What each of as many threads is told; they begin together."""
    begin, found = threading.Barrier(len(requests)), list[Any]([None] * len(requests))

    def ask(i: int) -> None:
        begin.wait()
        try:
            found[i] = pool.complete(requests[i])
        except BaseException as e:
            found[i] = e

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return found


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of what was computed in one go."""
    sizes: list[int] = []
    real = text_generation.answer_all

    def counted(asked: Any, *arguments: Any) -> list[Completion]:
        sizes.append(len(asked))
        if len(sizes) == 1:
            time.sleep(0.5)  # the others arrive meanwhile
        return real(asked, *arguments)

    monkeypatch.setattr(text_generation, "answer_all", counted)
    yield sizes


def test_sixteen_threads_get_the_answers_they_would_get_alone(
    base: TunedModel, batches: list[int]
) -> None:
    requests = [request(base, f"say {WORDS[i % 10]}", f"{i} say {WORDS[3]}") for i in range(16)]
    alone = [Pool("cpu").complete(r) for r in requests]
    batches.clear()
    assert at_once(Pool("cpu"), requests) == alone
    assert len(batches) <= 4 and sum(batches) == 32, "what waited was answered together"


def test_a_request_that_cannot_be_answered_fails_alone(
    base: TunedModel, batches: list[int]
) -> None:
    requests = [request(base, "say red") for _ in range(4)] + [request(base, "x" * 500)]
    pool = Pool("cpu")
    pool.complete(requests[0])
    batches.clear()
    *good, bad = at_once(pool, requests)
    assert isinstance(bad, PromptTooLong) and all(g == good[0] for g in good)
    assert pool.complete(requests[0]) == good[0], "and the owner goes on"


def test_what_is_drawn_or_streamed_is_answered_alone(base: TunedModel) -> None:
    hot = Sampling(max_tokens=8, temperature=1.0, seed=1)
    kinds = [request(base, "a"), request(base, "a", sampling=hot), request(base, "b")]
    waiting = [_Waiting(r) for r in kinds] + [_Waiting(kinds[0], pieces=pools.Pieces())]
    assert [len(g) for g in _joined(waiting)] == [2, 1, 1]
    pool = Pool("cpu")
    drawn = pool.complete(request(base, "a", "a", sampling=hot))
    assert at_once(pool, [request(base, "a", "a", sampling=hot)] * 4) == [drawn] * 4
    pieces = list(pool.stream(request(base, "say red")))
    assert pieces[-1] == pool.complete(request(base, "say red"))[0]


def test_who_gives_up_stops_the_work_and_nobody_else(base: TunedModel) -> None:
    pool = Pool("cpu")
    long = request(base, "say red", sampling=Sampling(max_tokens=100))
    pieces = pool.stream(long)
    next(pieces)
    pieces.close()
    assert pool.complete(request(base, "say red"))[0].text


def test_a_forked_child_answers_with_an_owner_of_its_own(base: TunedModel) -> None:
    pool = pools.of_device("cpu")
    wanted = pool.complete(request(base, "say red"))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            pools.use_one_thread()
            found = pools.of_device("cpu").complete(request(base, "say red"))
            os.write(write, b"same" if found == wanted else b"other")
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b"same"
    os.waitpid(pid, 0)


def test_a_panic_of_a_library_fails_its_request_and_the_owner_goes_on(
    base: TunedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As Rust's are."""

    def panics(*arguments: Any) -> Any:
        raise Panic

    pool = Pool("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(text_generation, "answer_all", panics)
        assert all(isinstance(f, Panic) for f in at_once(pool, [request(base, "a")] * 3))
    assert pool.complete(request(base, "say red"))[0].text


@pytest.mark.parametrize("ends", ["by itself", "by Ctrl-C"])
def test_a_program_that_ends_while_something_is_computed_ends_well(home: Path, ends: str) -> None:
    program = """
from tunesmith import Tunesmith
service = Tunesmith()
pieces = service.stream("tunesmith-tiny", "Where is my card?", max_tokens=200)
print(next(pieces), flush=True)
"""
    if ends == "by Ctrl-C":
        program += (
            "service.complete('tunesmith-tiny', [f'{i} cards' for i in range(500)], max_tokens=300)"
        )
    started = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert started.stdout is not None and started.stdout.readline()
    if ends == "by Ctrl-C":
        time.sleep(1.0)
        started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == (0 if ends == "by itself" else -signal.SIGINT), said
    assert "Exception ignored" not in said
    assert ends != "by itself" or Tunesmith(home=home).rows("usage"), "what was heard is counted"

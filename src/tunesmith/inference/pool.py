"""The one owner of the models that are loaded on a device. Requests of many threads wait in its
queue, and those that can be answered in one batch are.

A request is plain data, so that the owner can be a thread here, or stand in a process of its own.
"""

import atexit
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

from tunesmith.inference.engine import Completion, Sampling
from tunesmith.inference.opening import open_model
from tunesmith.models import prepacked
from tunesmith.models.methods import Model
from tunesmith.registry import TunedModel

# of this machine's memory, for the weights of models that are kept loaded; the last one asked
# always is
LOADED_SHARE = 0.25
FINISH_S = 30.0  # at most, for what is being computed when a program ends
MOST_TOGETHER = 16  # models that are loaded and answer together


@dataclass(frozen=True)
class Request:
    """Questions as the task asks them, each with its model; names and rights were looked at
    before."""

    asked: Sequence[tuple[TunedModel, Any]]
    sampling: Sampling

    @property
    def models(self) -> set[tuple[str, str]]:
        return {(t.base.name, t.folder) for t, _ in self.asked}


@dataclass
class _Waiting:
    """A request in the queue, and where its answers go."""

    request: Request
    answers: "Future[list[Completion]]" = field(default_factory=Future)
    pieces: "Pieces | None" = None
    is_given_up: bool = False

    def fail(self, error: BaseException) -> None:
        if self.pieces is not None:
            self.pieces.end(error)
        elif not self.answers.done():
            self.answers.set_exception(error)


class Pieces:
    """A streamed answer on its way: who writes leaves it as far as it is, who reads takes the
    latest, however slowly."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: Completion | None = None
        self._is_over, self._error = False, None  # type: bool, BaseException | None

    def put(self, so_far: Completion) -> None:
        with self._changed:
            self._latest = so_far
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._is_over, self._error = True, error
            self._changed.notify()

    def __iter__(self) -> Generator[Completion]:
        while True:
            with self._changed:
                while self._latest is None and not self._is_over:
                    self._changed.wait()
                found, self._latest = self._latest, None
                error = self._error if found is None else None
            if error is not None:
                raise error
            if found is None:
                return
            yield found


class Pool:
    """The models that are loaded on one device, and the thread that alone computes with them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._starting, self._owner = threading.Lock(), None  # type: threading.Lock, threading.Thread | None
        self.is_busy = self._is_over = False
        self.engines: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._bases: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()

    def complete(self, request: Request) -> list[Completion]:
        """One answer for each prompt, in order. Errors are those of the task; they are the
        same whoever else asks at the time, and so are the answers, near ties apart."""
        waiting = self._ask(_Waiting(request))
        try:
            return waiting.answers.result()
        finally:
            waiting.is_given_up = True

    def stream(self, request: Request) -> Generator[Completion]:
        """The answer to the one prompt of a request, as far as it is written. Other requests wait
        until it has ended, or is closed."""
        pieces = Pieces()
        waiting = self._ask(_Waiting(request, pieces=pieces))
        try:
            yield from pieces
        finally:
            waiting.is_given_up = True

    def _ask(self, waiting: _Waiting) -> _Waiting:
        with self._starting:
            if self._is_over:
                raise CancelledError
            if self._owner is None or not self._owner.is_alive():
                self._owner = threading.Thread(
                    target=self._serve, name="tunesmith-owner", daemon=True
                )
                self._owner.start()
            self._queue.put(waiting)
        return waiting

    def finish(self) -> None:
        """Before the process ends: a thread that is inside torch then would abort it."""
        with self._starting:
            self._is_over = True
            self._queue.put(None)
        if self._owner is not None:
            self._owner.join(FINISH_S)

    # ------------------------------------------------------------ in the owner's thread

    def _serve(self) -> None:
        while not self._is_over:
            found = [self._queue.get()]
            self.is_busy = True
            while not self._queue.empty():
                found.append(self._queue.get())
            for group in _joined([w for w in found if w is not None]):
                self._answer(group)
            self.is_busy = False

    def _answer(self, group: list[_Waiting]) -> None:
        """Answer requests in one batch; one that cannot be answered fails alone."""
        try:
            if group[0].pieces is not None:
                self._write_pieces(group[0], group[0].pieces)
            elif len(group) == 1:
                group[0].answers.set_result(self._answers(group))
            else:
                good = [w for w in group if self._is_answerable(w)]
                found = self._answers(good) if good else []
                for w in good:
                    n = len(w.request.asked)
                    w.answers.set_result(found[:n])
                    found = found[n:]
        except CancelledError as e:
            for w in group:
                w.fail(e)
        except BaseException as e:  # also what a library in Rust raises when it panics
            waiting = [w for w in group if not w.answers.done()]
            for w in waiting if len(group) > 1 else ():
                self._answer([w])
            if len(group) == 1:
                group[0].fail(e)

    def _is_answerable(self, waiting: _Waiting) -> bool:
        try:
            for tuned, question in waiting.request.asked:
                self.engine_for(tuned).must_take(question)
        except BaseException as e:
            waiting.fail(e)
            return False
        return True

    def _answers(self, group: list[_Waiting]) -> list[Completion]:
        def look(done: int) -> None:
            if self._is_over or all(w.is_given_up for w in group):
                raise CancelledError  # nobody waits for any of these answers any more

        asked = [
            (t.base.task_spec, self.engine_for(t), q) for w in group for t, q in w.request.asked
        ]
        found: dict[int, Completion] = {}
        for task in dict.fromkeys(spec.name for spec, *_ in asked):
            places = [i for i, (spec, *_) in enumerate(asked) if spec.name == task]
            answer_all = asked[places[0]][0].task.answer_all
            answers = answer_all([asked[i][1:] for i in places], group[0].request.sampling, look)
            found |= zip(places, answers, strict=True)
        return [found[i] for i in range(len(asked))]

    def _write_pieces(self, waiting: _Waiting, pieces: Pieces) -> None:
        [(tuned, question)] = waiting.request.asked
        for so_far in self.engine_for(tuned).stream(question, waiting.request.sampling):
            pieces.put(so_far)
            if waiting.is_given_up or self._is_over:
                break
        pieces.end()

    def engine_for(self, tuned: TunedModel) -> Any:
        """The engine of a model, loaded when first asked and kept while the weights of all fit into
        `LOADED_SHARE` of the memory."""
        of_base = tuned.base.task, tuned.base.name, tuned.base.folder
        key = (*of_base, tuned.folder, tuned.digest)
        if key not in self.engines:
            shared = self._bases.get(of_base)
            engine = open_model(tuned, self._device, shared)
            self.engines[key] = engine
            if shared is None and engine.adapters:
                self._bases[of_base] = engine.adapters
        self.engines.move_to_end(key)
        room = LOADED_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        while len(self.engines) > 1 and self.bytes_loaded() > room:
            self.engines.popitem(last=False)
        return self.engines[key]

    def bytes_loaded(self) -> int:
        models = {id(e.model): e.model for e in self.engines.values()}
        adapters = (e.adapter.size for e in self.engines.values() if e.adapter)
        return sum(map(_weights, models.values())) + int(sum(adapters))


def _joined(waiting: list[_Waiting]) -> list[list[_Waiting]]:
    """Requests that are answered together: greedy, with the same limits, and of no more models than
    are loaded at once. What is drawn at random is answered alone, since a row draws by how often
    its prompt stood in its request; so is what is streamed."""
    groups: list[list[_Waiting]] = []
    for w in waiting:
        for group in groups:
            first = group[0]
            models = set().union(*(g.request.models for g in [*group, w]))
            if (
                w.pieces is None is first.pieces
                and w.request.sampling == first.request.sampling
                and w.request.sampling.temperature == 0
                and len(models) <= MOST_TOGETHER
            ):
                group.append(w)
                break
        else:
            groups.append([w])
    return groups


def _weights(model: Model) -> int:
    plain: int = sum(p.nbytes for p in model.parameters())
    return plain + sum(m.size for m in model.modules() if isinstance(m, prepacked.Prepacked))


# ---------------------------------------------------------------- the pools of this process

_pools: dict[str, Pool] = {}
_finding = threading.Lock()


def use_one_thread() -> None:
    """In a child that was forked beside torch: more would wait for the parent's threads for
    ever."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def of_device(device: str) -> Pool:
    with _finding:
        if device not in _pools:
            _pools[device] = Pool(device)
        return _pools[device]


def _after_fork() -> None:
    """A child has none of its parent's threads: it answers with an owner of its own. Models that
    were computing when it was forked may hold locks, and are loaded anew."""
    global _finding
    _finding = threading.Lock()
    for device, pool in list(_pools.items()):
        fresh = _pools[device] = Pool(device)
        if not pool.is_busy:
            fresh.engines, fresh._bases = pool.engines, pool._bases


def _finish() -> None:
    for pool in list(_pools.values()):
        pool.finish()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_finish)

"""The emitters under test, all behind one small face."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pyventus import AsyncIOEventEmitter, Emission, EventEmitter, EventLinker, ExecutorEventEmitter
from pyventus.emitters.celery import CeleryEventEmitter
from tests.workers import worker

from . import app, handlers
from .handlers import Contract

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 30.0

Make = Callable[[type[EventLinker]], EventEmitter]
Run = Callable[[Callable[[], Any]], Any]


class UnderTest:
    """An emitter, and how to call it.

    Attributes:
        name: which of the six it is.
        shares_context: whether its handlers run in the process that emits.
    """

    def __init__(self, name: str, make: Make, *, shares_context: bool, loop: asyncio.AbstractEventLoop | None = None):
        self.name = name
        self.shares_context = shares_context
        self.emitter = handlers.EMITTERS[name] = make(Contract)
        self._make = make
        self._loop = loop

    def run(self, function: Callable[[], Any]) -> Any:
        """Call a function where the emitter is used, so for one inside a loop on that loop."""
        if self._loop is None:
            return function()

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(WAIT_SECONDS)

    def run_async(self, emitter: EventEmitter, event: object) -> Emission:
        if self._loop is not None:
            return asyncio.run_coroutine_threadsafe(emitter.aemit(event), self._loop).result(WAIT_SECONDS)

        async def main() -> Emission:
            emission = await emitter.aemit(event)
            if isinstance(emitter, AsyncIOEventEmitter):
                await emitter.drain()
            return emission

        return asyncio.run(main())

    def of(self, linker: type[EventLinker]) -> EventEmitter:
        return self._make(linker)

    def settle(self) -> None:
        """Wait until what was emitted has run, where an emitter can say so."""
        if isinstance(self.emitter, ExecutorEventEmitter):
            self.emitter.drain()
        elif isinstance(self.emitter, AsyncIOEventEmitter) and self._loop is not None:
            asyncio.run_coroutine_threadsafe(self.emitter.drain(), self._loop).result(WAIT_SECONDS)


class Record:
    """What one test emits, and what its handlers wrote down."""

    def __init__(self, under_test: UnderTest, path: Path) -> None:
        self._under_test = under_test
        self._path = path
        self._headers = {handlers.RECORD: str(path), handlers.EMITTER: under_test.name}
        self.emitter = under_test.emitter.with_options(headers=self._headers)
        self._fences = 0

    def emit(self, event: object, /, *args: Any, **kwargs: Any) -> Emission:
        return self.emit_with({}, event, *args, **kwargs)

    def emit_with(self, options: dict[str, Any], event: object, /, *args: Any, **kwargs: Any) -> Emission:
        emission: Emission = self._under_test.run(
            lambda: self.emitter.with_options(**options).emit(event, *args, **kwargs)
        )
        return emission

    def emit_in(self, linker: type[EventLinker], event: object) -> Emission:
        emitter = self._under_test.of(linker).with_options(headers=self._headers)
        emission: Emission = self._under_test.run(lambda: emitter.emit(event))
        return emission

    def emit_many(self, events: list[object]) -> list[Emission]:
        emissions: list[Emission] = self._under_test.run(lambda: self.emitter.emit_many(events))
        return emissions

    def aemit(self, event: object) -> Emission:
        return self._under_test.run_async(self.emitter, event)

    def send(self, emission: Emission) -> Emission:
        sent: Emission = self._under_test.run(lambda: self.emitter.send(emission))
        return sent

    def lines(self) -> list[list[str]]:
        return [line for line in handlers.recorded(self._path) if line[0] != "fence"]

    def wait_for(self, count: int) -> list[list[str]]:
        """Wait for as many lines, and for what comes before a fence, and return them sorted; more are a failure too."""
        self._wait_until(lambda: len(self.lines()) >= count)
        self.pass_fence()
        lines = self.lines()
        assert len(lines) == count, lines
        return sorted(lines)

    def pass_fence(self) -> None:
        """Wait for one more emission: on a queue with one consumer all that was emitted before it has run by then."""
        self._under_test.settle()
        self._fences += 1
        self.emit("fence")
        self._wait_until(lambda: handlers.recorded(self._path).count(["fence"]) == self._fences)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain, with {handlers.recorded(self._path)}"
            time.sleep(0.005)


# -- One context manager for each ---------------------------------------------------------------------------------


@contextlib.contextmanager
def inside_a_loop() -> Iterator[UnderTest]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    under_test = UnderTest("inside a loop", AsyncIOEventEmitter, shares_context=True, loop=loop)
    try:
        yield under_test
        under_test.settle()
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(WAIT_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def outside_a_loop() -> Iterator[UnderTest]:
    yield UnderTest("outside a loop", AsyncIOEventEmitter, shares_context=True)


@contextlib.contextmanager
def threads() -> Iterator[UnderTest]:
    with contextlib.ExitStack() as stack:
        yield UnderTest(
            "threads",
            lambda linker: stack.enter_context(ExecutorEventEmitter(event_linker=linker)),
            shares_context=True,
        )


@contextlib.contextmanager
def processes() -> Iterator[UnderTest]:
    # Three handlers that wait for one another; spawned, because forking a process with threads is not safe.
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        yield UnderTest("processes", lambda linker: ExecutorEventEmitter(pool, linker), shares_context=False)


@contextlib.contextmanager
def celery(name: str, broker_url: str, queue_name: str, log: Path) -> Iterator[UnderTest]:
    """One worker with one consumer, so that a fence is passed when all before it has run."""
    queue = app.make_queue(broker_url, queue_name)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {app.BROKER: broker_url, app.QUEUE: queue_name, app.NAME: name, "PYTHONPATH": path}
    with worker("tests.contract.app", cwd=ROOT, log=log, queues=queue_name, env=env):
        yield UnderTest(name, lambda linker: CeleryEventEmitter(queue=queue, event_linker=linker), shares_context=False)

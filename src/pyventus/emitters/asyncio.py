"""An emitter whose handlers run in this process, on the running loop."""

from __future__ import annotations

import asyncio
import time
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Self

from pyventus.emission import Emission
from pyventus.emitters.base import EventEmitter, find_handlers_here, linker_of, logger, seconds_until
from pyventus.errors import PyventusError
from pyventus.linkers import EventLinker
from pyventus.running import (
    handler_context,
    is_expired,
    is_plain,
    jobs_of,
    process_loop,
    run_on_loop,
    run_plain,
    run_until_final,
)

Runs = set[asyncio.Task[None]]

#: The loop on which the emission of the running handler runs: a sync handler, in a thread, emits to it too.
_home: ContextVar[asyncio.AbstractEventLoop] = ContextVar("pyventus.home")
#: The emissions on a loop inside whose handlers we are.
_around: ContextVar[tuple[asyncio.Task[None], ...]] = ContextVar("pyventus.around", default=())
#: What was emitted on a loop inside an emit that was called outside one, and that this one waits for.
_inside: ContextVar[Runs] = ContextVar("pyventus.inside")


class AsyncIOEventEmitter(EventEmitter):
    """Runs handlers on the running loop, side by side; sync ones in the threads of the loop's default executor.

    Outside a running loop `emit` runs the handlers before it returns, their retries and what they emit included; async
    ones on a loop that this process keeps for it. A sync handler that emits emits to the loop of the emission that it
    handles. As an async context manager it waits, when left, for what was emitted meanwhile.
    """

    def __init__(self, event_linker: type[EventLinker] = EventLinker, debug: bool | None = None) -> None:
        super().__init__(event_linker, debug)
        self._running: Runs = set()

    def _process(self, emission: Emission) -> None:
        linker = linker_of(emission, self._linker)
        context = handler_context(emission)
        loop = asyncio._get_running_loop()
        if loop is not None:
            self._start(loop, linker, emission, context)
        elif (home := context.get(_home)) is None or not self._start_at(home, linker, emission, context):
            _run_here(linker, emission, context)

    def _start(
        self, loop: asyncio.AbstractEventLoop, linker: type[EventLinker], emission: Emission, context: Context
    ) -> None:
        task = loop.create_task(_run(linker, emission), context=context)
        # The loop itself keeps only weak references to its tasks.
        for runs in (self._running, context.get(_inside)):
            if runs is not None:
                runs.add(task)
                task.add_done_callback(runs.discard)
        task.add_done_callback(lambda task: _report(task, emission))

    def _start_at(
        self, home: asyncio.AbstractEventLoop, linker: type[EventLinker], emission: Emission, context: Context
    ) -> bool:
        try:
            home.call_soon_threadsafe(self._start, home, linker, emission, context)
        except RuntimeError:  # It is closed; our thread has outlived it.
            return False
        return True

    async def drain(self) -> None:
        """Wait until all that was emitted on this loop has run, what handlers emit meanwhile included.

        Raises:
            PyventusError: it was called inside a handler, for which it would wait for ever.
        """
        if not self._running.isdisjoint(_around.get()):
            raise PyventusError("drain() was called inside a handler of the same emitter, and would wait for itself")
        loop = asyncio.get_running_loop()
        # A copy, because threads with loops of their own add to the set and discard from it.
        while running := [task for task in self._running.copy() if task.get_loop() is loop]:
            await asyncio.wait(running)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()


async def _run(linker: type[EventLinker], emission: Emission) -> None:
    if delay := seconds_until(emission.due):
        await asyncio.sleep(delay)
    task = asyncio.current_task()
    assert task is not None
    _home.set(asyncio.get_running_loop())
    _around.set((*(each for each in _around.get() if not each.done()), task))
    handlers = [] if is_expired(emission) else find_handlers_here(linker, emission)
    await run_on_loop(jobs_of(linker, handlers, emission, copy_context()))


def _run_here(linker: type[EventLinker], emission: Emission, context: Context) -> None:
    inside: Runs = set()
    context.run(_inside.set, inside)
    if emission.due is not None:
        time.sleep(seconds_until(emission.due))
    handlers = [] if is_expired(emission) else find_handlers_here(linker, emission)
    if len(handlers) == 1 and is_plain(handlers[0]):
        run_plain(handlers[0], emission, context)
    else:
        run_until_final(jobs_of(linker, handlers, emission, context))
    while inside and (running := inside.copy()):
        process_loop().submit(asyncio.wait(running)).result()


def _report(task: asyncio.Task[None], emission: Emission) -> None:
    """Nobody awaits the task of an emission, so that it says itself what kept handlers from running."""
    if task.cancelled():
        logger.error(
            "Emission %s of %r was cancelled with its loop before its handlers had ended: leave the emitter with "
            "`async with`, or await its drain(), before the loop ends",
            emission.id, emission.event,
        )  # fmt: skip
    elif (error := task.exception()) is not None:
        logger.error("Emission %s of %r did not run: %r", emission.id, emission.event, error, exc_info=error)

"""What a queue's workers open before their first emission and close at shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any

from pyventus import native
from pyventus.errors import PyventusError
from pyventus.running import process_loop, result_of

logger = logging.getLogger("pyventus")

CLOSE_SECONDS = 30.0

Factory = Callable[[], AbstractAsyncContextManager[Any]]


class NotReady(PyventusError):
    """The lifespan of a queue could not be entered in this process."""


class Lifespan:
    """Enters an async context manager once per process, on its loop."""

    def __init__(self, factory: Factory | None) -> None:
        self._factory = factory
        self._lock = threading.Lock()
        self._entered: _Entered | None = None

    def state(self) -> Any:
        """What the context manager yielded in this process; entered if it is not, or not any more.

        Raises:
            NotReady: it could not be entered; the next call tries again.
        """
        if self._factory is None:
            return None
        with self._lock:
            if self._entered is None or self._entered.is_over:
                self._entered = _Entered(self._factory)
            entered = self._entered
        try:
            return result_of(entered.state)
        except (Exception, asyncio.CancelledError) as error:
            if not entered.state.done() and isinstance(error, asyncio.CancelledError):
                raise
            # Celery's soft time limit among them, which may interrupt the wait.
            raise NotReady(f"the lifespan of the queue was not entered: {error!r}") from error


class _Entered:
    """A context manager that one asyncio task enters and leaves, as those with cancel scopes require."""

    def __init__(self, factory: Factory) -> None:
        self.pid = os.getpid()
        self.state: Future[Any] = native.shared(Future())
        self._end = asyncio.Event()
        self._loop = process_loop()
        self._left = self._loop.submit(self._live(factory))
        # Without those that could not be entered, of which there may be one every few seconds.
        _entered[:] = [*(each for each in _entered if not each.is_over), self]

    @property
    def is_over(self) -> bool:
        return self.pid != os.getpid() or self._left.done()

    async def _live(self, factory: Factory) -> None:
        try:
            async with factory() as state:
                self.state.set_result(state)
                await self._end.wait()
        except BaseException as error:  # A SystemExit among them, for which nobody else waits.
            if self.state.done():
                logger.error("The lifespan of a queue ended with an error: %r", error, exc_info=error)
            else:
                self.state.set_exception(error)

    def leave(self) -> None:
        if self.is_over:
            return
        self._loop.loop.call_soon_threadsafe(self._end.set)
        try:
            self._left.result(CLOSE_SECONDS)
        except TimeoutError:
            logger.error("The lifespan of a queue was not left within %g s", CLOSE_SECONDS)


_entered: list[_Entered] = []


def leave_lifespans() -> None:
    """Leave what was entered in this process, last first."""
    while _entered:
        _entered.pop().leave()

"""A pool for Celery's workers in which emissions run on the loop of the process, hundreds at once.

Celery's own tracer, unchanged, runs each emission in a greenlet on the loop; where the emission's task waits, its
greenlet leaves the loop to others. What may block runs in threads: sync handlers, and tasks that are no emissions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import SecurityError, SoftTimeLimitExceeded, WorkerLostError
from celery.utils.threads import USE_FAST_LOCALS

from pyventus import native, running
from pyventus.emitters.celery.task import EmissionTask
from pyventus.emitters.celery.watchdog import Watchdog
from pyventus.errors import MissingExtra
from pyventus.running import Waiter, process_loop

try:
    from greenlet import getcurrent, greenlet
except ModuleNotFoundError:
    raise MissingExtra("AsyncIOPool needs greenlet, which is not installed: pip install 'pyventus[celery]'") from None

logger = logging.getLogger("pyventus")


class AsyncIOPool(BasePool):
    """Runs emissions on the loop of one process, and other tasks in threads; together as many as the concurrency."""

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(**options)
        self.limit = limit
        _check_isolation()
        self._waiting: deque[_Job] = deque()
        self._jobs: set[_Job] = set()
        self._is_woken = False
        #: Set on the loop when a job has ended or was terminated.
        self.has_changed = asyncio.Event()

    def on_start(self) -> None:
        """Called once, before any task."""
        self._say_what_has_no_effect()
        self.loop = process_loop(_new_loop)
        running.find_waiter = _find_waiter
        native.start_thread(Watchdog(self.loop.loop).run)
        # As solo does, which runs tasks in the main process, too.
        signals.worker_process_init.send(sender=None)

    def _say_what_has_no_effect(self) -> None:
        for option in ("maxtasksperchild", "max_memory_per_child"):
            if self.options.get(option):
                logger.warning(
                    "%s=%s has no effect in AsyncIOPool, whose one process is never replaced: remove it, or start the "
                    "worker with -P prefork", _SETTINGS[option], self.options[option],
                )  # fmt: skip
        if self.options.get("timeout"):
            logger.warning(
                "The hard time limit of %g s kills nothing in AsyncIOPool: async handlers are cancelled, and what runs "
                "in a thread goes on until it ends; start the worker with -P prefork to have that killed",
                self.options["timeout"],
            )

    # -- Tasks ------------------------------------------------------------------------------------------------------

    def on_apply(self, target: Callable[..., Any], args: Any, kwargs: Any, **options: Any) -> _Job:
        """Called for each task, in Celery's main thread or in that of its timer."""
        soft = options.get("soft_timeout") or self.options.get("soft_timeout")
        hard = options.get("timeout") or self.options.get("timeout")
        # Of a Request of Celery's, from 5.5 to 5.7, whose methods all callbacks are.
        job = _Job(self, options["callback"].__self__, partial(target, *args, **kwargs), soft, hard)
        self._waiting.append(job)
        if not self._is_woken:  # Once for all that come in a burst.
            self._is_woken = True
            self.call_soon(self._start_waiting)
        return job

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have a call made on the loop."""
        self.loop.loop.call_soon_threadsafe(call)

    def _start_waiting(self) -> None:
        self._is_woken = False
        while self._waiting and len(self._jobs) < self.limit:
            job = self._waiting.popleft()
            self._jobs.add(job)
            self.loop.loop.create_task(job.run()).add_done_callback(partial(self._end, job))

    def _end(self, job: _Job, _: object) -> None:
        self._jobs.discard(job)
        self.has_changed.set()
        self._start_waiting()

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Nothing: the process is everybody's. Celery terminates what `on_apply` returned, too."""

    # -- Its size ---------------------------------------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        """Run ``n`` more at once."""
        self.limit += n
        self.call_soon(self._start_waiting)

    def shrink(self, n: int = 1) -> None:
        """Run ``n`` less at once, when what runs has ended."""
        self.limit = max(1, self.limit - n)

    def _get_info(self) -> dict[str, Any]:
        loop = type(self.loop.loop)
        counts = {"running": len(self._jobs), "waiting": len(self._waiting)}
        return {
            **super()._get_info(),
            **counts,
            "processes": [os.getpid()],
            "loop": f"{loop.__module__}.{loop.__name__}",
        }

    # -- The end of the worker --------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Wait for what runs and was not terminated; what has not started goes back to the broker."""
        if not self.loop.loop.is_closed():
            self.loop.submit(self._drain()).result()

    async def _drain(self) -> None:
        self._waiting.clear()
        while not all(job.is_terminated for job in self._jobs):
            self.has_changed.clear()
            await self.has_changed.wait()


_SETTINGS = {
    "maxtasksperchild": "worker_max_tasks_per_child",
    "max_memory_per_child": "worker_max_memory_per_child",
}


def _check_isolation() -> None:
    """Celery's current task is known by greenlet; with that variable set, by thread."""
    if USE_FAST_LOCALS:
        raise SecurityError(
            "the environment variable USE_FAST_LOCALS is set, with which tasks that share a thread take one another's "
            "request for their own in AsyncIOPool: unset it"
        )


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


# -- One task ---------------------------------------------------------------------------------------------------------


class _Job:
    """A task on its way through the pool. Celery keeps a weak reference, to terminate it."""

    def __init__(
        self, pool: AsyncIOPool, request: Any, trace: Callable[[], Any], soft: float | None, hard: float | None
    ) -> None:
        self.is_terminated = False
        self._pool = pool
        self._request = request
        self._trace = trace
        self._is_emission = isinstance(request.task, EmissionTask)
        self._soft, self._hard = soft, hard
        self._is_late = False
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run it to its end; whatever becomes of it is told to Celery."""
        self._task = asyncio.current_task()
        with self._limited():
            if self._is_emission:
                await _run_in_greenlet(self._work)
            else:
                await asyncio.get_running_loop().run_in_executor(None, self._work)

    def _work(self) -> None:
        request = self._request
        try:
            if request.revoked():  # While it waited here.
                return
            request.on_accepted(os.getpid(), time.monotonic())
            if not self.is_terminated:
                self._trace_and_tell()
        except BaseException as error:  # A SystemExit would end the loop.
            logger.error(
                "The message of task %s is held until this worker ends, after %r", request.id, error, exc_info=error
            )

    def _trace_and_tell(self) -> None:
        try:
            tell = partial(self._request.on_success, self._trace())
        except BaseException as error:
            tell = partial(self._request.on_failure, _info(error))
        if self._is_late:
            tell = partial(self._request.on_timeout, False, self._hard)
        if not self.is_terminated:
            tell()

    # -- What ends it early -----------------------------------------------------------------------------------------

    def terminate(self, signal: Any = None) -> None:
        """Called by Celery, which has acknowledged its message, or lets it go back."""
        self.is_terminated = True
        self._pool.call_soon(self._terminate)

    def _terminate(self) -> None:
        self._cancel()
        self._pool.has_changed.set()

    def _cancel(self, *carried: Exception) -> None:
        # A thread cannot be stopped.
        if self._is_emission and self._task is not None:
            self._task.cancel(*carried)

    @contextlib.contextmanager
    def _limited(self) -> Generator[None]:
        limits = ((self._soft, self._pass_soft_limit), (self._hard, self._pass_hard_limit))
        call_later = asyncio.get_running_loop().call_later
        timers = [call_later(seconds, call) for seconds, call in limits if seconds]
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def _pass_soft_limit(self) -> None:
        self._request.on_timeout(True, self._soft)
        self._cancel(SoftTimeLimitExceeded())

    def _pass_hard_limit(self) -> None:
        logger.error(
            "Task %s is still running after its hard time limit of %g s: its async handlers are cancelled, and what "
            "runs in a thread cannot be stopped; to have it killed, start the worker with -P prefork",
            self._request.id, self._hard,
        )  # fmt: skip
        self._is_late = self._is_emission
        self._cancel()


def _info(error: BaseException) -> ExceptionInfo:
    """What Celery's requests take for a failure; called while ``error`` is handled."""
    if isinstance(error, Exception):
        return ExceptionInfo()
    try:
        raise WorkerLostError(repr(error)) from error
    except WorkerLostError:
        return ExceptionInfo()


# -- Greenlets --------------------------------------------------------------------------------------------------------


class _Greenlet(greenlet):
    """Code on the loop that can wait; it has context variables of its own, and a current task of Celery's."""


def _find_waiter() -> Waiter | None:
    current = getcurrent()
    if isinstance(current, _Greenlet):
        wait_for: Waiter = current.parent.switch
        return wait_for
    return None


async def _run_in_greenlet(call: Callable[[], None]) -> None:
    inside = _Greenlet(call)
    coroutine: Coroutine[Any, Any, Any] = inside.switch()
    while not inside.dead:
        try:
            value = await coroutine
        except BaseException as error:
            coroutine = inside.throw(_carried(error))
        else:
            coroutine = inside.switch(value)


def _carried(error: BaseException) -> BaseException:
    """What a cancellation stands for."""
    is_cancelled = isinstance(error, asyncio.CancelledError)
    return next((each for each in error.args if is_cancelled and isinstance(each, Exception)), error)

"""Runs the handlers of an emission: the way of one handler, the two ways to drive it, and the loop of a process."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from pyventus.emission import Emission
from pyventus.errors import HandlerTimeout, InvalidHandler, PyventusError
from pyventus.handlers import Callback, EventHandler, callback_id, is_async
from pyventus.linkers import EventLinker

T = TypeVar("T")

logger = logging.getLogger("pyventus")

CLOSE_SECONDS = 30.0

Middleware = Callable[[Emission, EventHandler], AbstractContextManager[Any]]

_emission: ContextVar[Emission] = ContextVar("pyventus.emission")
_state: ContextVar[Any] = ContextVar("pyventus.state")


def current_emission() -> Emission:
    """The emission whose handler is running.

    Raises:
        PyventusError: no handler is running here.
    """
    try:
        return _emission.get()
    except LookupError:
        raise PyventusError("current_emission() was called outside a handler") from None


def current_state() -> Any:
    """What the ``lifespan`` of the queue yielded in this worker process; None without a lifespan.

    Raises:
        PyventusError: no handler is running here.
    """
    current_emission()
    return _state.get(None)


_MISSING: Any = object()


def handler_context(emission: Emission, state: Any = _MISSING) -> Context:
    """A copy of the current context in which handlers of ``emission`` run; the caller's state stays unless given."""
    context = copy_context()
    context.run(_emission.set, emission)
    if state is not _MISSING:
        context.run(_state.set, state)
    return context


def is_expired(emission: Emission) -> bool:
    """Whether the caller no longer wants the emission's handlers to run; if so, logged."""
    if emission.expires is None or datetime.now(UTC) < emission.expires:
        return False
    logger.info("Emission %s of %r dropped: it expired at %s", emission.id, emission.event, emission.expires)
    return True


# -- The way of one handler -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one handler; ``error`` is None when it succeeded."""

    handler: EventHandler
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One handler that is to run for an emission."""

    handler: EventHandler
    emission: Emission
    context: Context
    middleware: Sequence[Middleware] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One call that a job wants made; its driver decides where."""

    callback: Callback
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    job: Job | None = None  # Of the event callback alone: its timeout and its middleware hold.

    @contextlib.contextmanager
    def surrounded(self) -> Generator[None]:
        with ExitStack() as stack:
            if self.job is not None:
                for middleware in self.job.middleware:
                    stack.enter_context(middleware(self.job.emission, self.job.handler))
            yield

    @property
    def timeout(self) -> float | None:
        return self.job.handler.timeout if self.job else None


def jobs_of(
    linker: type[EventLinker],
    handlers: Iterable[EventHandler],
    emission: Emission,
    context: Context,
    middleware: Sequence[Middleware] = (),
) -> list[Job]:
    """A job for each of ``handlers`` that may start."""
    return [Job(handler, emission, context.copy(), middleware) for handler in handlers if linker.claim(handler)]


def steps(job: Job) -> Generator[Call, Any, Result]:
    """The way of one handler: yields each call to make, is sent what it returned or thrown what it raised."""
    handler, emission = job.handler, job.emission
    try:
        value = yield Call(handler.event_callback, emission.args, emission.kwargs, job)
    except GeneratorExit:
        raise
    except BaseException as error:  # gevent.Timeout among them.
        log_failure(handler, emission, error)
        if handler.failure_callback is not None:
            yield from _call_back(job, Call(handler.failure_callback, (error,)))
        return Result(handler, error)
    if handler.success_callback is not None:
        yield from _call_back(job, Call(handler.success_callback, () if value is None else (value,)))
    return Result(handler)


def _call_back(job: Job, call: Call) -> Generator[Call, Any, None]:
    """A success or failure callback that raises is reported and changes nothing else."""
    try:
        yield call
    except GeneratorExit:
        raise
    except BaseException as error:
        logger.error(
            "Callback %s of handler %s failed on emission %s of %r: %r",
            callback_id(call.callback), job.handler.id, job.emission.id, job.emission.event, error, exc_info=error,
        )  # fmt: skip


def log_failure(handler: EventHandler, emission: Emission, error: BaseException) -> None:
    logger.error(
        "Handler %s failed on emission %s of %r: %r", handler.id, emission.id, emission.event, error, exc_info=error
    )


def _raise_if_signalled(error: BaseException) -> None:
    """In the main thread a signal may have raised it, and means the program; elsewhere only the callback can have.

    Who kills a greenlet means all of it, too.
    """
    is_exit = isinstance(error, (SystemExit, KeyboardInterrupt))
    if is_exit and threading.current_thread() is threading.main_thread():
        raise error
    greenlet = sys.modules.get("greenlet")
    if greenlet is not None and isinstance(error, greenlet.GreenletExit):
        raise error


# -- Driving it on a loop -----------------------------------------------------------------------------------------


async def run_on_loop(jobs: Iterable[Job]) -> list[Result]:
    """Run jobs side by side from the running loop; sync callbacks run in the threads of its default executor."""
    return await asyncio.gather(*[start_on_loop(job) for job in jobs])


def start_on_loop(job: Job) -> asyncio.Task[Result]:
    """Start a job on the running loop, in the job's own context."""
    return asyncio.get_running_loop().create_task(_drive_on_loop(job), context=job.context)


async def _drive_on_loop(job: Job) -> Result:
    way = steps(job)
    call = next(way)
    try:
        while True:
            try:
                value = await (_await_call(call) if is_async(call.callback) else _call_in_thread(call))
            except BaseException as error:
                _raise_if_cancelled(error)
                _raise_if_signalled(error)
                call = way.throw(error)
            else:
                call = way.send(value)
    except StopIteration as stop:
        result: Result = stop.value
        return result


def _raise_if_cancelled(error: BaseException) -> None:
    """A handler may end in a CancelledError of its own making; only our own task being cancelled ends the job."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


async def _await_call(call: Call) -> Any:
    with call.surrounded():
        try:
            async with asyncio.timeout(call.timeout) as deadline:
                return await call.callback(*call.args, **call.kwargs)
        except TimeoutError:
            if call.job is not None and deadline.expired():
                raise _timed_out(call.job) from None
            raise


async def _call_in_thread(call: Call) -> Any:
    # The context is entered by the task that awaits here, so the thread takes a copy and hands back what it changed.
    context = copy_context()
    outcome = await asyncio.get_running_loop().run_in_executor(None, context.run, _outcome_here, call)
    for variable, value in context.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)
    return outcome.value()


class Outcome(NamedTuple):
    """What a call returned or raised, on its way from one thread to another.

    A future would not do: asyncio's make a new error of a TimeoutError, wait for ever on a StopIteration (before Python
    3.12, see python/cpython#112182), and end the loop on a SystemExit.
    """

    returned: Any = None
    raised: BaseException | None = None

    def value(self) -> Any:
        if self.raised is not None:
            raise self.raised
        return self.returned


def _outcome_here(call: Call) -> Outcome:
    try:
        return Outcome(_call_here(call))
    except BaseException as error:
        return Outcome(raised=error)


async def _outcome_of(call: Call) -> Outcome:
    try:
        return Outcome(await _await_call(call))
    except BaseException as error:
        _raise_if_cancelled(error)
        return Outcome(raised=error)


# -- Driving it in a thread ---------------------------------------------------------------------------------------


def run_in_thread(job: Job) -> Result:
    """Run a job in this thread; ``async def`` callbacks run on the loop of the process, which must be another one."""
    way = steps(job)
    call = next(way)
    try:
        while True:
            try:
                value = _await_elsewhere(call, job) if is_async(call.callback) else job.context.run(_call_here, call)
            except BaseException as error:
                _raise_if_signalled(error)
                call = way.throw(error)
            else:
                call = way.send(value)
    except StopIteration as stop:
        result: Result = stop.value
        return result


def _await_elsewhere(call: Call, job: Job) -> Any:
    return process_loop().submit(_outcome_of(call), job.context).result().value()


def _call_here(call: Call) -> Any:
    """Make a sync call; one that outlives its timeout is reported at once and fails when it ends."""
    with call.surrounded():
        with _alarm(call) as is_late:
            value = call.callback(*call.args, **call.kwargs)
        if call.job is not None and is_late():
            raise _timed_out(call.job)
        if inspect.iscoroutine(value):
            value.close()
            raise InvalidHandler(
                f"{callback_id(call.callback)} is no async function and returned a coroutine, which nothing awaits: "
                "link an async def function"
            )
        return value


@contextlib.contextmanager
def _alarm(call: Call) -> Generator[Callable[[], bool]]:
    if call.timeout is None or call.job is None:
        yield lambda: False
        return
    end = time.monotonic() + call.timeout
    timer = threading.Timer(call.timeout, _report_overrun, [call.job])
    timer.daemon = True
    timer.start()
    try:
        yield lambda: time.monotonic() >= end
    finally:
        timer.cancel()


def _report_overrun(job: Job) -> None:
    logger.error(
        "Handler %s is still running after its timeout of %g s on emission %s of %r: a sync handler cannot be stopped "
        "and counts as failed when it ends; to have it killed, set a time limit of Celery's",
        job.handler.id, job.handler.timeout, job.emission.id, job.emission.event,
    )  # fmt: skip


def _timed_out(job: Job) -> HandlerTimeout:
    return HandlerTimeout(f"handler {job.handler.id} took longer than its timeout of {job.handler.timeout:g} s")


def run_jobs(jobs: Sequence[Job], interrupts: tuple[type[Exception], ...] = ()) -> list[Result]:
    """Run jobs side by side and wait for all: async ones on the process's loop, one sync one in this thread.

    An exception that arrives in this thread from outside, such as Celery's soft time limit, cancels the async ones and
    is raised when the sync ones have ended, because a thread cannot be stopped.

    Args:
        jobs: what to run.
        interrupts: exceptions that come from outside even when a handler in this thread seems to raise them.
    """
    sync = [job for job in jobs if not is_async(job.handler.event_callback)]
    here = sync[-1] if sync else None  # The last, so that those linked before it have started.
    futures = {job.handler: _start(job) for job in jobs if job is not here}
    try:
        results = {} if here is None else {here.handler: _run_here(here, interrupts)}
        results |= {handler: future.result() for handler, future in futures.items()}
    except Exception:
        _give_up(futures.values())
        raise
    except BaseException:
        # The process is to end, and its threads with it.
        _cancel(futures.values())
        raise
    return [results[job.handler] for job in jobs]


def _run_here(job: Job, interrupts: tuple[type[Exception], ...]) -> Result:
    result = run_in_thread(job)
    if isinstance(result.error, interrupts):
        raise result.error
    return result


def _start(job: Job) -> Future[Result]:
    if is_async(job.handler.event_callback):
        return process_loop().submit(_drive_on_loop(job), job.context)
    return _start_thread(job)


def _start_thread(job: Job) -> Future[Result]:
    """A thread of its own for each, so that no limit makes one handler wait for another."""
    future: Future[Result] = Future()
    name = f"pyventus-{job.handler.id}"
    threading.Thread(target=_settle, args=(future, run_in_thread, job), name=name, daemon=True).start()
    return future


def _cancel(futures: Iterable[Future[Result]]) -> None:
    for future in futures:
        future.cancel()


def _give_up(futures: Iterable[Future[Result]]) -> None:
    _cancel(futures)
    for future in futures:
        with contextlib.suppress(BaseException):
            future.result()


# -- The loop of a process ----------------------------------------------------------------------------------------


class ProcessLoop:
    """An event loop in a thread of its own, shared by everything that runs ``async def`` callbacks in this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = _native_loop() if _is_patched() else asyncio.new_event_loop()
        # Of asyncio's own, six threads on two cores, one sync callback would wait for another.
        self.loop.set_default_executor(_NativeThreads())
        self._stopped = threading.Event()
        start_native_thread(self._run)

    def submit(self, coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> Future[T]:
        """Start a coroutine on the loop, in ``context``; cancelling the future cancels it there."""
        future: Future[T] = Future()

        def start() -> None:
            task = self.loop.create_task(coroutine, context=context)
            task.add_done_callback(lambda task: _copy_outcome(task, future))
            future.add_done_callback(lambda future: self._cancel_with(future, task))

        self.loop.call_soon_threadsafe(start)
        return future

    def _cancel_with(self, future: Future[T], task: asyncio.Task[T]) -> None:
        if future.cancelled():
            self.loop.call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """Stop the loop after what runs on it was cancelled."""
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        if not self._stopped.wait(CLOSE_SECONDS):
            logger.error(
                "What ran on the loop of the process did not end within %g s of its cancellation", CLOSE_SECONDS
            )

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.get_loop().run_forever()
        finally:
            self._stopped.set()


def _copy_outcome(task: asyncio.Task[T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if task.cancelled():
        future.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


# -- Under gevent ---------------------------------------------------------------------------------------------------
# Its patched threads are greenlets: a loop in one of them would be found by ``get_running_loop()`` of unrelated
# greenlets, and its selector would wait for a hub that never runs. So the loop gets native ones.


def _is_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _unpatched(module: str, name: str) -> Any:
    return sys.modules["gevent.monkey"].get_original(module, name)


def start_native_thread(target: Callable[[], None]) -> None:
    """Start a daemon thread that no greenlet can be."""
    if _is_patched():
        _unpatched("_thread", "start_new_thread")(target, ())
    else:
        threading.Thread(target=target, name="pyventus", daemon=True).start()


def _native_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(_unpatched("selectors", "DefaultSelector")())


class _NativeThreads(ThreadPoolExecutor):
    """A native thread for each call, so that none waits for another."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        start_native_thread(lambda: _settle(future, function, *args, **kwargs))
        return future


def _settle(future: Future[T], function: Callable[..., T], *args: Any, **kwargs: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


_loop: ProcessLoop | None = None
_loop_lock = threading.Lock()


def process_loop() -> ProcessLoop:
    """The loop of this process; made when first asked for, and anew in a forked child."""
    global _loop
    loop = _loop
    if loop is None or loop.pid != os.getpid() or loop.loop.is_closed():
        with _loop_lock:
            loop = _loop
            if loop is None or loop.pid != os.getpid() or loop.loop.is_closed():
                loop = _loop = ProcessLoop()
    return loop


def close_process_loop() -> None:
    """Stop the loop of this process, if there is one."""
    if _loop is not None:
        _loop.close()


def _renew_lock() -> None:
    # A thread that held it at the fork does not exist in the child.
    global _loop_lock
    _loop_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

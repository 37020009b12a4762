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
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from pyventus import native
from pyventus.emission import Emission, now
from pyventus.errors import HandlerTimeout, InvalidHandler, PyventusError
from pyventus.handlers import Callback, EventHandler, callback_id, is_async
from pyventus.linkers import EventLinker
from pyventus.retry import Retry, next_delay

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
    if emission.expires is None or now() < emission.expires:
        return False
    logger.info("Emission %s of %r dropped: it expired at %s", emission.id, emission.event, emission.expires)
    return True


# -- The way of one handler -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """What became of one run of a handler.

    Attributes:
        handler: which one.
        error: what it failed with; None when it succeeded.
        again: seconds after which it is to be run again; None: this is the end.
        is_lost: whether another process has taken the handler over, so that nothing follows from this run.
    """

    handler: EventHandler
    error: BaseException | None = None
    again: float | None = None
    is_lost: bool = False


@dataclass(slots=True)
class Job:
    """One handler that is to run for an emission.

    Attributes:
        handler: which one.
        emission: what it is called with.
        origin: the context of which each run has a copy.
        context: of this run.
        middleware: around its event callback.
        retry: what says whether it is run again after a failure.
        record: called with the result before any success or failure callback, which come only if it returns the same;
            its errors end the run.
    """

    handler: EventHandler
    emission: Emission
    origin: Context
    context: Context
    middleware: Sequence[Middleware] = ()
    retry: Retry | None = None
    record: Callable[[Result], Result] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether all there is to it, if it succeeds, is the call of a sync function."""
        return is_plain(self.handler) and not self.middleware and self.record is None

    def next(self) -> Job:
        """The job of the handler's next attempt."""
        emission = replace(self.emission, attempt=self.emission.attempt + 1, handlers=(self.handler.id,))
        context = self.origin.copy()
        context.run(_emission.set, emission)
        return replace(self, emission=emission, context=context)


@dataclass(slots=True)
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
    def is_async(self) -> bool:
        return self.job.handler.is_async if self.job else is_async(self.callback)

    @property
    def is_bounded(self) -> bool:
        """Whether middleware is around it, or a timeout."""
        return self.job is not None and (bool(self.job.middleware) or self.job.handler.timeout is not None)

    @property
    def timeout(self) -> float | None:
        return self.job.handler.timeout if self.job else None


def job_of(
    handler: EventHandler,
    emission: Emission,
    origin: Context,
    middleware: Sequence[Middleware] = (),
    retry: Retry | None = None,
    record: Callable[[Result], Result] | None = None,
) -> Job:
    """The job of a handler; ``retry`` is for one that has no policy of its own."""
    return Job(handler, emission, origin, origin.copy(), middleware, handler.retry or retry, record)


def jobs_of(
    linker: type[EventLinker], handlers: Iterable[EventHandler], emission: Emission, origin: Context
) -> list[Job]:
    """A job for each of ``handlers`` that may start."""
    return [job_of(handler, emission, origin) for handler in handlers if linker.claim(handler, emission)]


def steps(job: Job) -> Generator[Call, Any, Result]:
    """The way of one handler: yields each call to make, is sent what it returned or thrown what it raised."""
    handler, emission = job.handler, job.emission
    try:
        value = yield Call(handler.event_callback, emission.args, emission.kwargs, job)
    except GeneratorExit:  # Nobody drives it any more.
        raise
    except BaseException as error:  # gevent.Timeout among them.
        result = _failed(job, error)
        callback = handler.failure_callback and Call(handler.failure_callback, (error,))
    else:
        result = Result(handler)
        callback = handler.success_callback and Call(handler.success_callback, () if value is None else (value,))
    if job.record is not None:
        recorded: Result = yield Call(job.record, (result,))
        if recorded is not result:
            return recorded
    if callback is not None and result.again is None:
        yield from _call_back(job, callback)
    return result


def _failed(job: Job, error: BaseException) -> Result:
    handler, emission = job.handler, job.emission
    again = next_delay(job.retry, emission.attempt, error)
    if again is not None and emission.expires is not None and now() + timedelta(seconds=again) >= emission.expires:
        again = None  # It would be dropped then, and nobody would hear of the failure.
    if again is None:
        logger.error(
            "Handler %s failed on emission %s of %r, attempt %d: %r",
            handler.id, emission.id, emission.event, emission.attempt, error, exc_info=error,
        )  # fmt: skip
    else:
        logger.warning(
            "Handler %s failed on emission %s of %r, attempt %d, and runs again in %.3g s: %r",
            handler.id, emission.id, emission.event, emission.attempt, again, error, exc_info=error,
        )  # fmt: skip
    return Result(handler, error, again)


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


def _thrown(error: BaseException) -> BaseException:
    """What a way is told of an error: a GeneratorExit would end the way itself."""
    if not isinstance(error, GeneratorExit):
        return error
    thrown = RuntimeError("a GeneratorExit was raised")
    thrown.__cause__ = error
    return thrown


# -- Driving it on a loop -----------------------------------------------------------------------------------------


async def run_on_loop(jobs: Iterable[Job]) -> list[Result]:
    """Run jobs side by side from the running loop, again until each is final; returns the final results.

    Sync callbacks run in the threads of the loop's default executor.
    """
    results = await asyncio.gather(*[_run_until_final(job) for job in jobs])
    return [result for result in results if result is not None]


async def _run_until_final(job: Job) -> Result | None:
    loop = asyncio.get_running_loop()
    while (result := await loop.create_task(_drive_on_loop(job), context=job.context)).again is not None:
        await asyncio.sleep(result.again)
        job = job.next()
        if is_expired(job.emission):
            return None
    return result


async def _drive_on_loop(job: Job) -> Result:
    way = steps(job)
    call = next(way)
    try:
        while True:
            try:
                value = await (_await_call(call) if call.is_async else _call_in_thread(call))
            except BaseException as error:
                _raise_if_cancelled(error)
                _raise_if_signalled(error)
                call = way.throw(_thrown(error))
            else:
                call = way.send(value)
    except StopIteration as stop:
        result: Result = stop.value
        return result


def handler_at(frame: FrameType) -> EventHandler | None:
    """Whose way on the loop a frame is, if it is one."""
    if frame.f_code is not _drive_on_loop.__code__:
        return None
    handler: EventHandler = frame.f_locals["job"].handler
    return handler


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


def run_in_thread(job: Job, failure: BaseException | None = None) -> Result:
    """Run a job in this thread; ``async def`` callbacks run on the loop of the process, which must be another one.

    Args:
        job: what to run.
        failure: what its handler has already failed with, elsewhere.
    """
    if failure is None and job.is_plain:
        failure = _call_plain(job.handler, job.emission, job.context)
        if failure is None:
            return Result(job.handler)
    way = steps(job)
    call = next(way)
    try:
        if failure is not None:
            call = way.throw(failure)
        while True:
            try:
                value = _await_elsewhere(call, job) if call.is_async else job.context.run(_call_here, call)
            except BaseException as error:
                _raise_if_signalled(error)
                call = way.throw(_thrown(error))
            else:
                call = way.send(value)
    except StopIteration as stop:
        result: Result = stop.value
        return result


def _await_elsewhere(call: Call, job: Job) -> Any:
    return process_loop().submit(_outcome_of(call), job.context).result().value()


def _call_here(call: Call) -> Any:
    """Make a sync call; one that outlives its timeout is reported at once and fails when it ends."""
    if not call.is_bounded:
        value = call.callback(*call.args, **call.kwargs)
        _refuse_coroutine(value, call.callback)
        return value
    with call.surrounded():
        with _alarm(call) as is_late:
            value = call.callback(*call.args, **call.kwargs)
        if call.job is not None and is_late():
            raise _timed_out(call.job)
        _refuse_coroutine(value, call.callback)
        return value


def _refuse_coroutine(value: object, callback: Callback) -> None:
    if inspect.iscoroutine(value):
        value.close()
        raise InvalidHandler(
            f"{callback_id(callback)} is no async function and returned a coroutine, which nothing awaits: "
            "link an async def function"
        )


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

    An interrupt, which arrives in this thread from outside, such as Celery's soft time limit, cancels the async ones,
    which have failed with it then. Sync ones go on until they end, because a thread cannot be stopped.

    Args:
        jobs: what to run.
        interrupts: exceptions that come from outside even when a handler in this thread seems to raise them.
    """
    if (wait_for := find_waiter()) is not None:
        results_there: list[Result] = wait_for(_run_side_by_side(jobs, interrupts))
        return results_there
    if len(jobs) == 1 and not jobs[0].handler.is_async:
        return [run_in_thread(jobs[0])]
    sync = [job for job in jobs if not job.handler.is_async]
    here = sync[-1] if sync else None  # The last, so that those linked before it have started.
    futures = {job.handler: _start(job) for job in jobs if job is not here}
    results: dict[EventHandler, Result] = {}
    try:
        if here is not None:
            results[here.handler] = run_in_thread(here)
        interrupt = _wait(futures.values(), results.values(), interrupts)
    except Exception:
        # An error of our own: what runs beside it is to end as it would have.
        native.wait_for(futures.values())
        raise
    except BaseException:
        # The process is to end, and its threads with it.
        _cancel(futures.values())
        raise
    return [results.get(job.handler) or _result_of(job, futures[job.handler], interrupt) for job in jobs]


def _wait(
    futures: Iterable[Future[Result]], results: Iterable[Result], interrupts: tuple[type[Exception], ...]
) -> BaseException | None:
    """Wait until the futures are done; returns the interrupt that cancelled some, if one came."""
    interrupt = next((result.error for result in results if isinstance(result.error, interrupts)), None)
    if interrupt is None:
        try:
            native.wait_for(futures)
        except interrupts as error:
            interrupt = error
    if interrupt is not None:
        for future in futures:
            if isinstance(future, _OnLoop):
                future.interrupt()
        native.wait_for(futures)
    return interrupt


def _result_of(job: Job, future: Future[Result], interrupt: BaseException | None) -> Result:
    try:
        return future.result()
    except asyncio.CancelledError as cancelled:
        if interrupt is None and process_loop().is_closing:
            raise
        # Without an interrupt somebody else on the loop has cancelled it.
        return run_in_thread(job, interrupt or cancelled)


def run_until_final(jobs: Iterable[Job]) -> list[Result]:
    """Run jobs as `run_jobs` does, again until each is final, and wait for that; returns the final results."""
    return _run_waiting([(0.0, job) for job in jobs])


def _run_waiting(waiting: list[tuple[float, Job]]) -> list[Result]:
    """As `run_until_final`, each job not before its moment of ``time.monotonic()``."""
    final: list[Result] = []
    while waiting:
        sleep_until(min(due for due, _ in waiting))
        moment = time.monotonic()
        ready = [job for due, job in waiting if due <= moment and not is_expired(job.emission)]
        waiting = [(due, job) for due, job in waiting if due > moment]
        for job, result in zip(ready, run_jobs(ready), strict=True):
            if result.again is None:
                final.append(result)
            else:
                waiting.append((time.monotonic() + result.again, job.next()))
    return final


def sleep_until(moment: float) -> None:
    """Sleep until a moment of ``time.monotonic()``, if it is to come: ``sleep(0)`` takes 60 microseconds on Linux."""
    if (seconds := moment - time.monotonic()) > 0:
        time.sleep(seconds)


def is_plain(handler: EventHandler) -> bool:
    """Whether all there is to a run of the handler, if it succeeds, is the call of a sync function."""
    return not (handler.is_async or handler.once or handler.timeout or handler.success_callback)


def run_plain(handler: EventHandler, emission: Emission, origin: Context) -> None:
    """Run a plain handler in this thread as `run_until_final` does, and make a job of it only when it fails: that
    costs more than the call of a function that does little.
    """
    context = origin.copy()
    failure = _call_plain(handler, emission, context)
    if failure is not None:
        job = Job(handler, emission, origin, context, retry=handler.retry)
        result = run_in_thread(job, failure)
        if result.again is not None:
            _run_waiting([(time.monotonic() + result.again, job.next())])


def _call_plain(handler: EventHandler, emission: Emission, context: Context) -> BaseException | None:
    """Call a sync event callback in this thread; what it has failed with."""
    try:
        value = context.run(handler.event_callback, *emission.args, **emission.kwargs)
        if value is not None:
            _refuse_coroutine(value, handler.event_callback)
    except BaseException as error:
        _raise_if_signalled(error)
        return _thrown(error)
    return None


def _start(job: Job) -> Future[Result]:
    if job.handler.is_async:
        return process_loop().submit(_drive_on_loop(job), job.context)
    return _start_thread(job)


def _start_thread(job: Job) -> Future[Result]:
    """A thread of its own for each, so that no limit makes one handler wait for another."""
    future: Future[Result] = native.shared(Future())
    name = f"pyventus-{job.handler.id}"
    threading.Thread(target=_settle, args=(future, run_in_thread, job), name=name, daemon=True).start()
    return future


def _cancel(futures: Iterable[Future[Result]]) -> None:
    for future in futures:
        future.cancel()


# -- Waiting on the loop itself ---------------------------------------------------------------------------------
# In one pool of workers the code that has handlers run is itself on the loop of the process, each task of Celery's in a
# greenlet. It waits by leaving the loop to others; what a cancellation carries is raised there in its place.

Waiter = Callable[[Coroutine[Any, Any, Any]], Any]


def _may_block() -> None:
    """The answer where no such pool runs."""


#: How the code that asks waits for a coroutine; None: it is not on the loop, and may block.
find_waiter: Callable[[], Waiter | None] = _may_block


def off_loop(call: Callable[[], T]) -> T:
    """Make a call that may block, in a thread if need be; nothing interrupts the wait for that."""
    if (wait_for := find_waiter()) is None:
        return call()
    future: Future[T] = _start_call(copy_context().run, call)
    wait_for(_wait_through(future))
    return future.result()


def result_of(future: Future[T]) -> T:
    """What becomes of a future."""
    if not future.done() and (wait_for := find_waiter()) is not None:
        wait_for(_wait_until_done(future))
    return future.result()


async def _wait_until_done(future: Future[Any]) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    await done.wait()


async def _wait_through(future: Future[Any]) -> None:
    """Wait whatever comes; a cancellation then strikes at the next wait."""
    cancelled = None
    while not future.done():
        try:
            await _wait_until_done(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and (task := asyncio.current_task()) is not None:
        task.cancel(*cancelled.args)


async def _run_side_by_side(jobs: Sequence[Job], interrupts: tuple[type[Exception], ...]) -> list[Result]:
    """What `run_jobs` does, on the loop; cancelled by what is no interrupt, it ends when the sync ones have ended."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_drive_on_loop(job), context=job.context) for job in jobs]
    interrupt: BaseException | None = None
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as cancelled:
            interrupt = _carried(cancelled, interrupts)
            for job, task in zip(jobs, tasks, strict=True):
                if job.handler.is_async:
                    task.cancel()
    if isinstance(interrupt, asyncio.CancelledError):
        raise interrupt
    return [await _result_there(job, task, interrupt) for job, task in zip(jobs, tasks, strict=True)]


def _carried(cancelled: asyncio.CancelledError, interrupts: tuple[type[Exception], ...]) -> BaseException:
    return next((carried for carried in cancelled.args if isinstance(carried, interrupts)), cancelled)


async def _result_there(job: Job, task: asyncio.Task[Result], interrupt: BaseException | None) -> Result:
    try:
        return task.result()
    except asyncio.CancelledError as cancelled:
        # Without an interrupt somebody else on the loop has cancelled it.
        failure = interrupt or cancelled
        return await asyncio.get_running_loop().run_in_executor(None, run_in_thread, job, failure)


# -- The loop of a process ----------------------------------------------------------------------------------------


class ProcessLoop:
    """An event loop in a thread of its own, shared by everything that runs ``async def`` callbacks in this process."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
        self.pid = os.getpid()
        self.is_closing = False
        self.loop = _native_loop() if native.is_patched() else new_loop()
        # Of asyncio's own, six threads on two cores, one sync callback would wait for another.
        self.loop.set_default_executor(_NativeThreads())
        self._stopped: Future[None] = native.shared(Future())
        # In a greenlet, ``get_running_loop()`` of unrelated greenlets would find the loop.
        native.start_thread(self._run)

    def submit(self, coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> _OnLoop[T]:
        """Start a coroutine on the loop, in ``context``; cancelling the future cancels it there."""
        future: _OnLoop[T] = native.shared(_OnLoop(self.loop))

        def start() -> None:
            future.task = task = self.loop.create_task(coroutine, context=context)
            task.add_done_callback(lambda task: _copy_outcome(task, future))
            future.add_done_callback(lambda _: future.interrupt() if future.cancelled() else None)

        self.loop.call_soon_threadsafe(start)
        return future

    def close(self) -> None:
        """Stop the loop after what runs on it was cancelled."""
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        self.is_closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        try:
            self._stopped.result(CLOSE_SECONDS)
        except TimeoutError:
            logger.error(
                "What ran on the loop of the process did not end within %g s of its cancellation", CLOSE_SECONDS
            )

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.get_loop().run_forever()
        finally:
            self._stopped.set_result(None)


class _OnLoop(Future[T]):
    """What becomes of a task on the loop of the process."""

    task: asyncio.Task[T]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def interrupt(self) -> None:
        """Cancel the task; the future is done when the task has ended."""
        with contextlib.suppress(RuntimeError):  # The loop is closed, and the task with it.
            self._loop.call_soon_threadsafe(lambda: self.task.cancel())


def _copy_outcome(task: asyncio.Task[T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if task.cancelled():
        future.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _native_loop() -> asyncio.AbstractEventLoop:
    """One that is not gevent's, whose selector would wait for a hub that never runs."""
    return asyncio.SelectorEventLoop(native.unpatched("selectors", "DefaultSelector")())


class _NativeThreads(ThreadPoolExecutor):
    """A native thread for each call, so that none waits for another."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return _start_call(function, *args, **kwargs)


def _start_call(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
    future: Future[T] = native.shared(Future())
    native.start_thread(lambda: _settle(future, function, *args, **kwargs))
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
_loop_lock = native.new_lock()


def process_loop(new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> ProcessLoop:
    """The loop of this process; made when first asked for, with ``new_loop``, and anew in a forked child."""
    global _loop
    loop = _loop
    if loop is None or loop.pid != os.getpid() or loop.loop.is_closed():
        with _loop_lock:
            loop = _loop
            if loop is None or loop.pid != os.getpid() or loop.loop.is_closed():
                loop = _loop = ProcessLoop(new_loop)
    return loop


def close_process_loop() -> None:
    """Stop the loop of this process, if there is one."""
    if _loop is not None:
        _loop.close()


def _renew_lock() -> None:
    # A thread that held it at the fork does not exist in the child.
    global _loop_lock
    _loop_lock = native.new_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

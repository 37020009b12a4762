"""The way of one handler, on a loop and in threads, and the loop of a process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pyventus import Emission, EventHandler, HandlerTimeout, PyventusError, current_emission, current_state
from pyventus.emission import now
from pyventus.errors import InvalidHandler
from pyventus.retry import Retry
from pyventus.running import (
    Middleware,
    Result,
    close_process_loop,
    handler_context,
    job_of,
    process_loop,
    run_in_thread,
    run_jobs,
    run_on_loop,
)

from .conftest import wait_until

EMISSION = Emission(id="the-emission", event="the event", args=(1, "two"), kwargs={"three": 3})

variable: ContextVar[str] = ContextVar("variable", default="unset")

Job = Any
Driver = Callable[[Sequence[Job]], list[Result]]


class Uncommon(BaseException):
    """As gevent.Timeout is one."""


def on_loop(jobs: Sequence[Job]) -> list[Result]:
    return asyncio.run(run_on_loop(jobs))


def in_threads(jobs: Sequence[Job]) -> list[Result]:
    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(run_in_thread, jobs))


def both(jobs: Sequence[Job]) -> list[Result]:
    return run_jobs(jobs)


def both_beside_the_main_thread(jobs: Sequence[Job]) -> list[Result]:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run_jobs, jobs).result(20)


DRIVERS = [on_loop, in_threads, both, both_beside_the_main_thread]


@pytest.fixture(params=DRIVERS, ids=lambda driver: driver.__name__)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Every way in which an emitter or a worker runs handlers."""
    chosen: Driver = request.param
    return chosen


@pytest.fixture
def off_main(driver: Driver) -> Driver:
    """The same, for what in the main thread a signal might have done."""

    def run(jobs: Sequence[Job]) -> list[Result]:
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(driver, jobs).result(20)

    return run


class Log:
    """What happened, in order, from whichever thread."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def sync(self, name: str, returns: Any = None, raises: BaseException | None = None) -> Callable[..., Any]:
        def callback(*args: Any, **kwargs: Any) -> Any:
            self.said.append((name, *args, *kwargs.items()))
            if raises is not None:
                raise raises
            return returns

        return callback

    def asynchronous(self, name: str, returns: Any = None, raises: BaseException | None = None) -> Callable[..., Any]:
        callback = self.sync(name, returns, raises)

        async def async_callback(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return callback(*args, **kwargs)

        return async_callback

    def of(self, kind: str) -> Callable[..., Any]:
        return self.sync if kind == "sync" else self.asynchronous


@pytest.fixture
def log() -> Log:
    return Log()


def handler(event_callback: Callable[..., Any], id: str = "h", **options: Any) -> EventHandler:
    return EventHandler(event_callback, id=id, **options)


def jobs(*handlers: EventHandler, emission: Emission = EMISSION, middleware: Sequence[Middleware] = ()) -> list[Job]:
    return [job_of(handler, emission, handler_context(emission), middleware) for handler in handlers]


kinds = pytest.mark.parametrize("event_kind", ["sync", "async"])
callback_kinds = pytest.mark.parametrize("callback_kind", ["sync", "async"])


# -- Callbacks --------------------------------------------------------------------------------------------------


@kinds
@callback_kinds
@pytest.mark.parametrize(("returned", "received"), [("value", ("value",)), (0, (0,)), (None, ())])
def test_success(
    driver: Driver, log: Log, event_kind: str, callback_kind: str, returned: Any, received: tuple[Any, ...]
) -> None:
    """The success callback gets what the event callback returned, nothing for None; the failure callback stays out."""
    done, failed = log.of(callback_kind)("success"), log.of(callback_kind)("failure")
    one = handler(log.of(event_kind)("event", returned), success_callback=done, failure_callback=failed)
    assert driver(jobs(one)) == [Result(one)]
    assert log.said == [("event", 1, "two", ("three", 3)), ("success", *received)]


@kinds
@callback_kinds
def test_failure(
    driver: Driver, log: Log, caplog: pytest.LogCaptureFixture, event_kind: str, callback_kind: str
) -> None:
    """The failure callback gets the exception; it is logged with handler, emission and event."""
    error = ValueError("broken")
    done, failed = log.of(callback_kind)("success"), log.of(callback_kind)("failure")
    one = handler(log.of(event_kind)("event", raises=error), success_callback=done, failure_callback=failed)
    assert driver(jobs(one)) == [Result(one, error)]
    assert log.said[1:] == [("failure", error)]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert (
        record.getMessage()
        == "Handler h failed on emission the-emission of 'the event', attempt 1: ValueError('broken')"
    )
    assert record.exc_info
    assert record.exc_info[1] is error


@kinds
@callback_kinds
@pytest.mark.parametrize(
    "error", [ValueError("x"), asyncio.CancelledError(), SystemExit(3), StopIteration(), Uncommon()], ids=repr
)
@pytest.mark.parametrize("role", ["success", "failure"])
def test_a_callback_that_raises_is_reported_and_changes_nothing(
    off_main: Driver,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    event_kind: str,
    callback_kind: str,
    role: str,
    error: BaseException,
) -> None:
    """Whatever it raises: the outcome of the handler and its neighbours is what it was."""
    raises = ValueError("event") if role == "failure" else None
    callbacks = {f"{role}_callback": log.of(callback_kind)(role, raises=error)}
    one = handler(log.of(event_kind)("event", raises=raises), **callbacks)
    neighbour = handler(log.asynchronous("neighbour"), "n")
    assert off_main(jobs(one, neighbour)) == [Result(one, raises), Result(neighbour)]
    reports = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Callback ")]
    assert len(reports) == 1
    assert "of handler h failed on emission the-emission of 'the event': " in reports[0]


@kinds
@pytest.mark.parametrize(
    "error",
    [ValueError(), asyncio.CancelledError(), TimeoutError(), StopIteration(), SystemExit(1), Uncommon()],
    ids=repr,
)
def test_whatever_a_handler_raises_is_its_failure_alone(
    off_main: Driver, log: Log, event_kind: str, error: BaseException
) -> None:
    """Its failure callback hears of it, its neighbours run on, and the loop lives."""
    one = handler(log.of(event_kind)("event", raises=error), failure_callback=log.sync("failure"))
    neighbours = [handler(log.asynchronous("neighbour"), "a"), handler(log.sync("neighbour"), "s")]
    first, *others = off_main(jobs(one, *neighbours))
    # Python itself makes a RuntimeError of a StopIteration that would leave a coroutine.
    assert first.error is error or (isinstance(first.error, RuntimeError) and first.error.__cause__ is error)
    assert [result.error for result in others] == [None, None]
    assert ("failure", first.error) in log.said
    assert not process_loop().loop.is_closed()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("run", [both, run_in_thread], ids=["both", "in thread"])
def test_an_exit_in_the_main_thread_ends_the_program(log: Log, run: Callable[[Any], Any], error: BaseException) -> None:
    """There it may have come from a signal, such as the TERM by which Celery ends its children."""
    one = handler(log.sync("event", raises=error), failure_callback=log.sync("failure"))
    work = jobs(one)
    with pytest.raises(type(error)):
        run(work if run is both else work[0])
    assert [said[0] for said in log.said] == ["event"]


def test_a_sync_handler_that_returns_a_coroutine_fails(driver: Driver, log: Log) -> None:
    """A lambda around an async function, say: nothing would await it, so it cannot count as a success."""
    one = handler(lambda *args, **kwargs: log.asynchronous("never")(), success_callback=log.sync("success"))
    (result,) = driver(jobs(one))
    assert isinstance(result.error, InvalidHandler)
    assert "is no async function and returned a coroutine, which nothing awaits: link an async def" in str(result.error)
    assert not log.said


# -- Side by side -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ss", "as", "sa", "aa", "ssaass"])
def test_handlers_run_side_by_side(driver: Driver, shape: str) -> None:
    """Each waits for all others to have started."""
    everyone = threading.Barrier(len(shape))

    def sync(*_: Any, **__: Any) -> None:
        everyone.wait(20)

    async def asynchronous(*_: Any, **__: Any) -> None:
        await asyncio.to_thread(everyone.wait, 20)

    handlers = [handler(sync if kind == "s" else asynchronous, f"{kind}{n}") for n, kind in enumerate(shape)]
    assert driver(jobs(*handlers)) == [Result(each) for each in handlers]


@pytest.mark.parametrize("driver", [on_loop, both])  # A pool starts its threads in whatever order.
def test_async_handlers_start_in_link_order(driver: Driver, log: Log) -> None:
    """They are started one after the other on one loop."""
    handlers = [handler(log.asynchronous(str(n)), str(n)) for n in range(20)]
    driver(jobs(*handlers))
    assert [said[0] for said in log.said] == [str(n) for n in range(20)]


def test_a_lone_sync_handler_runs_in_the_callers_thread() -> None:
    """As in any Celery task; of several, all but the last get threads of their own, so that they have started first."""
    threads: dict[str, threading.Thread] = {}

    def note(name: str) -> EventHandler:
        return handler(lambda *_, **__: threads.update({name: threading.current_thread()}), name)

    run_jobs(jobs(note("alone")))
    run_jobs(jobs(note("first"), note("last")))
    assert threads["alone"] is threads["last"] is threading.current_thread()
    assert threads["first"] is not threading.current_thread()


def test_sync_handlers_never_run_on_the_loop(driver: Driver) -> None:
    """Nor do their callbacks, so that they may block."""
    places: list[bool] = []

    def look(*_: Any, **__: Any) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            places.append(True)
        places.append(False)

    driver(jobs(handler(look, success_callback=look), handler(look, "other", success_callback=look)))
    assert places == [False] * 4


class Interruption(Exception):
    """Such as Celery's soft time limit."""


def is_waiting(thread: int) -> bool:
    frame = sys._current_frames()[thread]
    return frame.f_code.co_filename == threading.__file__ and frame.f_code.co_name == "wait"


def test_an_exception_that_arrives_while_waiting_ends_the_wait(log: Log) -> None:
    """Async handlers are cancelled and have failed with it; sync ones cannot be, and are waited for."""
    started, cancelled, arrived = threading.Barrier(2), threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def arrive(*_: Any) -> None:
        if not arrived.is_set():
            arrived.set()
            raise Interruption

    async def endless(*_: Any, **__: Any) -> None:
        try:
            await asyncio.to_thread(started.wait, 20)
            # Not before, or it would be the failure of the handler that runs in this thread.
            wait_until(lambda: ("here", 1, "two", ("three", 3)) in log.said and is_waiting(main))
            while not arrived.is_set():
                # Again, because Python misses a signal that comes in the moment before a thread blocks.
                signal.pthread_kill(main, signal.SIGUSR1)
                await asyncio.sleep(0.01)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def stubborn(*_: Any, **__: Any) -> None:
        started.wait(20)
        assert cancelled.wait(20)
        log.said.append("ended")

    before = signal.signal(signal.SIGUSR1, arrive)
    try:
        results = run_jobs(
            jobs(
                handler(endless, "async", failure_callback=log.sync("failure")),
                handler(stubborn, "own thread"),
                handler(log.sync("here"), "here"),
            ),
            interrupts=(Interruption,),
        )
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert arrived.is_set()
    assert [type(result.error) for result in results] == [Interruption, type(None), type(None)]
    assert log.said[-2:] == ["ended", ("failure", results[0].error)]


def test_an_interruption_inside_a_handler_of_this_thread(log: Log) -> None:
    """Ends the async ones too, when it is one of those that come from outside."""
    started, cancelled = threading.Event(), threading.Event()

    async def endless(*_: Any, **__: Any) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def here(*_: Any, **__: Any) -> None:
        assert started.wait(20)
        log.said.append(("here",))
        raise Interruption

    interrupted = handler(here, failure_callback=log.sync("failure"))
    results = run_jobs(jobs(handler(endless, "async"), interrupted), interrupts=(Interruption,))
    assert [type(result.error) for result in results] == [Interruption, Interruption]
    assert cancelled.wait(20)
    assert [said[0] for said in log.said] == ["here", "failure"]
    (result,) = run_jobs(jobs(interrupted))
    assert isinstance(result.error, Interruption)


def test_what_somebody_else_cancels_has_failed(log: Log) -> None:
    """Such as a handler that cancels all tasks of the loop that it shares; it is not lost."""

    async def cancelled(*_: Any, **__: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    results = run_jobs(jobs(handler(cancelled, "c", failure_callback=log.sync("failure")), handler(log.sync("d"), "d")))
    assert [type(result.error) for result in results] == [asyncio.CancelledError, type(None)]
    assert ("failure", results[0].error) in log.said


def test_a_generator_exit_is_a_failure(driver: Driver, log: Log) -> None:
    """And not the end of the way of its handler."""
    (result,) = driver(jobs(handler(log.sync("here", raises=GeneratorExit()), failure_callback=log.sync("failure"))))
    assert isinstance(result.error, RuntimeError)
    assert isinstance(result.error.__cause__, GeneratorExit)
    assert ("failure", result.error) in log.said


def test_what_would_be_retried_after_it_has_expired_has_failed(driver: Driver, log: Log) -> None:
    """Otherwise nobody would hear of it."""
    emission = replace(EMISSION, expires=now() + timedelta(seconds=30))
    patient = handler(log.sync("here", raises=ValueError()), failure_callback=log.sync("failure"))
    patient.retry = Retry(delay=60, jitter=0)
    (result,) = driver([job_of(patient, emission, handler_context(emission))])
    assert result.again is None
    assert ("failure", result.error) in log.said


# -- Timeouts ---------------------------------------------------------------------------------------------------


def test_a_timeout_cancels_an_async_handler(driver: Driver, log: Log) -> None:
    """It fails with a HandlerTimeout, which is a TimeoutError."""

    async def slow(*_: Any, **__: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.said.append("cancelled")
            raise

    (result,) = driver(jobs(handler(slow, timeout=0.05, failure_callback=log.sync("failure"))))
    assert isinstance(result.error, HandlerTimeout)
    assert isinstance(result.error, TimeoutError)
    assert str(result.error) == "handler h took longer than its timeout of 0.05 s"
    assert log.said == ["cancelled", ("failure", result.error)]


def test_a_sync_handler_that_outlives_its_timeout(driver: Driver, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """It is reported at once, while it runs, and has failed when it ends."""

    def slow(*_: Any, **__: Any) -> str:
        wait_until(lambda: any("is still running after its timeout of 0.05 s" in text for text in caplog.messages))
        log.said.append("ended")
        return "value"

    one = handler(slow, timeout=0.05, success_callback=log.sync("success"), failure_callback=log.sync("failure"))
    (result,) = driver(jobs(one))
    assert isinstance(result.error, HandlerTimeout)
    assert log.said == ["ended", ("failure", result.error)]
    assert "a sync handler cannot be stopped" in caplog.text


@kinds
def test_a_handler_within_its_timeout(
    driver: Driver, log: Log, caplog: pytest.LogCaptureFixture, event_kind: str
) -> None:
    """Is a success, and is not reported afterwards."""
    one = handler(log.of(event_kind)("event"), timeout=30)
    assert driver(jobs(one)) == [Result(one)]
    assert not caplog.records
    assert not any(
        isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate()
    )


@kinds
def test_a_timeout_of_the_handlers_own(driver: Driver, log: Log, event_kind: str) -> None:
    """A TimeoutError that a handler raises itself, from a socket say, stays what it is."""
    error = TimeoutError("socket")
    (result,) = driver(jobs(handler(log.of(event_kind)("event", raises=error), timeout=30)))
    assert result.error is error


@callback_kinds
def test_callbacks_have_no_timeout(driver: Driver, callback_kind: str) -> None:
    """It is the event callback's alone: success has been recorded by then."""
    late = threading.Event()
    timer = threading.Timer(0.15, late.set)

    def sync_success() -> None:
        timer.start()
        assert late.wait(20)

    async def async_success() -> None:
        timer.start()
        assert await asyncio.to_thread(late.wait, 20)

    success = sync_success if callback_kind == "sync" else async_success
    (result,) = driver(jobs(handler(lambda *_, **__: None, timeout=0.1, success_callback=success)))
    assert result.error is None
    assert late.is_set()


# -- Middleware -------------------------------------------------------------------------------------------------


def recording(log: Log, name: str) -> Middleware:
    @contextlib.contextmanager
    def middleware(emission: Emission, handler: EventHandler) -> Iterator[None]:
        log.said.append(f"{name} in {handler.id} {emission.id}")
        try:
            yield
        except BaseException as error:
            log.said.append(f"{name} saw {type(error).__name__}")
            raise
        log.said.append(f"{name} out")

    return middleware


@kinds
def test_middleware_surrounds_the_event_callback(driver: Driver, log: Log, event_kind: str) -> None:
    """In the order given, the first outermost, and done before the success callback starts."""
    one = handler(log.of(event_kind)("event"), success_callback=log.sync("success"))
    driver(jobs(one, middleware=[recording(log, "outer"), recording(log, "inner")]))
    event, success = ("event", 1, "two", ("three", 3)), ("success",)
    assert log.said == [
        "outer in h the-emission", "inner in h the-emission", event, "inner out", "outer out", success
    ]  # fmt: skip


@kinds
def test_middleware_sees_the_failure(driver: Driver, log: Log, event_kind: str) -> None:
    """So that it can roll back."""
    driver(jobs(handler(log.of(event_kind)("event", raises=KeyError())), middleware=[recording(log, "m")]))
    assert log.said[-1] == "m saw KeyError"


@kinds
def test_middleware_sees_a_timeout(driver: Driver, log: Log, event_kind: str) -> None:
    """A sync handler that ends too late counts as failed there too: nothing of it is committed."""
    late = threading.Event()

    def slow(*_: Any, **__: Any) -> None:
        threading.Timer(0.1, late.set).start()
        late.wait(20)

    async def async_slow(*_: Any, **__: Any) -> None:
        await asyncio.sleep(60)

    one = handler(slow if event_kind == "sync" else async_slow, timeout=0.05)
    driver(jobs(one, middleware=[recording(log, "m")]))
    assert log.said == ["m in h the-emission", "m saw HandlerTimeout"]


@kinds
def test_middleware_that_fails_is_the_handlers_failure(driver: Driver, log: Log, event_kind: str) -> None:
    """The handler does not run without it."""
    error = ConnectionError("database")

    def broken(*_: Any) -> Any:
        raise error

    (result,) = driver(jobs(handler(log.of(event_kind)("event")), middleware=[recording(log, "m"), broken]))
    assert result.error is error
    assert log.said == ["m in h the-emission", "m saw ConnectionError"]


@kinds
def test_middleware_may_swallow_a_failure(driver: Driver, log: Log, event_kind: str) -> None:
    """Then the handler has succeeded, with None."""
    swallow: Middleware = lambda *_: contextlib.suppress(KeyError)  # noqa: E731
    one = handler(log.of(event_kind)("event", raises=KeyError()), success_callback=log.sync("success"))
    assert driver(jobs(one, middleware=[swallow])) == [Result(one)]
    assert log.said[-1] == ("success",)


# -- Context ----------------------------------------------------------------------------------------------------


@kinds
@callback_kinds
def test_context_variables_travel(driver: Driver, event_kind: str, callback_kind: str) -> None:
    """From the emit into the handler, from there to its callbacks, and neither to neighbours nor back."""
    seen: list[tuple[str, str]] = []

    def event_callback(*_: Any, **__: Any) -> None:
        seen.append(("event", variable.get()))
        variable.set("changed")

    async def async_event_callback(*_: Any, **__: Any) -> None:
        event_callback()

    def success() -> None:
        seen.append(("success", variable.get()))

    async def async_success() -> None:
        success()

    callback = event_callback if event_kind == "sync" else async_event_callback
    done = success if callback_kind == "sync" else async_success
    token = variable.set("emitted")
    try:
        driver(jobs(*(handler(callback, str(n), success_callback=done) for n in range(3))))
        assert variable.get() == "emitted"
    finally:
        variable.reset(token)
    assert sorted(seen) == [("event", "emitted")] * 3 + [("success", "changed")] * 3


@kinds
@callback_kinds
def test_current_emission(driver: Driver, event_kind: str, callback_kind: str) -> None:
    """Is known to the handler and its callbacks."""
    seen: list[Emission] = []

    def look(*_: Any, **__: Any) -> None:
        seen.append(current_emission())

    async def async_look(*_: Any, **__: Any) -> None:
        look()

    of = {"sync": look, "async": async_look}
    driver(jobs(handler(of[event_kind], success_callback=of[callback_kind])))
    assert seen == [EMISSION] * 2
    assert seen[0] is EMISSION


def test_current_emission_outside_a_handler() -> None:
    """There is none, and no state."""
    with pytest.raises(PyventusError, match=r"current_emission\(\) was called outside a handler"):
        current_emission()
    with pytest.raises(PyventusError):
        current_state()


def test_current_state_is_inherited() -> None:
    """What a handler emits in its own process is handled with the same state."""
    assert handler_context(EMISSION).run(current_state) is None
    outer = handler_context(EMISSION, "state")
    assert outer.run(current_state) == "state"
    assert outer.run(handler_context, EMISSION).run(current_state) == "state"
    assert outer.run(handler_context, EMISSION, None).run(current_state) is None


# -- The loop of a process --------------------------------------------------------------------------------------


async def where() -> tuple[int, int, threading.Thread]:
    return os.getpid(), id(asyncio.get_running_loop()), threading.current_thread()


def test_one_loop_per_process() -> None:
    """However many threads ask for it at once."""
    close_process_loop()
    with ThreadPoolExecutor(32) as threads:
        loops = set(threads.map(lambda _: process_loop(), range(200)))
        places = set(threads.map(lambda _: process_loop().submit(where()).result(20), range(200)))
    assert len(loops) == len(places) == 1
    assert threading.main_thread() not in places.pop()


def test_close_cancels_what_runs_and_the_next_one_is_new() -> None:
    """Closing twice is closing once; without a loop there is nothing to close."""
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    first = process_loop()
    future = first.submit(endless())
    first.submit(where()).result(20)
    close_process_loop()
    close_process_loop()
    assert ended.is_set()
    with pytest.raises(asyncio.CancelledError):
        future.result(20)
    assert first.loop.is_closed()
    assert process_loop() is not first


def test_cancelling_a_future_cancels_what_runs_on_the_loop() -> None:
    """As giving up on a handler does."""
    started, cancelled = threading.Event(), threading.Event()

    async def endless() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    future = process_loop().submit(endless())
    assert started.wait(20)
    assert future.cancel()
    assert cancelled.wait(20)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """Even if another thread was just making one at the moment of the fork."""
    from pyventus import running

    parent = process_loop().submit(where()).result(20)
    with running._loop_lock:
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                here, _, _ = process_loop().submit(where()).result(20)
                (result,) = run_jobs(jobs(handler(lambda *_, **__: None)))
                status = 0 if here == os.getpid() and result.error is None else 2
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert process_loop().submit(where()).result(20) == parent


def test_under_gevent() -> None:
    """Handlers of both kinds run side by side, and no greenlet finds a running loop that is not its own."""
    pytest.importorskip("gevent")
    script = Path(__file__).with_name("under_gevent.py")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, check=False)
    met = ["async", "async", "fetched 5", "sync", "sync", "sync one side by side", "sync two side by side"]
    assert result.stdout == f"{met} []\n", result.stderr
    assert result.returncode == 0
    assert "Error" not in result.stderr

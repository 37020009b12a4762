"""What all emitters share, and what the two in-process ones do beyond the contract."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import logging
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from pyventus import (
    AsyncIOEventEmitter,
    Emission,
    EmitError,
    EventEmitter,
    EventLinker,
    ExecutorEventEmitter,
    PyventusError,
    Retry,
    current_emission,
)
from pyventus.emitters.base import first_this_minute
from pyventus.errors import InvalidEvent, InvalidOption, NotSerializable, Unhandled
from pyventus.running import process_loop

from . import in_processes

pytestmark = pytest.mark.filterwarnings("ignore::pyventus.linkers.UnstableHandlerIdWarning")

variable: ContextVar[str] = ContextVar("variable", default="unset")


class Recorder(EventEmitter):
    """The least that an emitter has to be."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[Emission] = []

    def _process(self, emission: Emission) -> None:
        self.sent.append(emission)


@dataclasses.dataclass
class Paid:
    amount: int = 0


# -- Emissions --------------------------------------------------------------------------------------------------


def test_an_emission_is_frozen() -> None:
    """It is what happened, and that does not change."""
    emission = Recorder().prepare("event")
    with pytest.raises(dataclasses.FrozenInstanceError):
        emission.event = "other"  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        emission.unknown = 1  # type: ignore[attr-defined]


def test_the_repr_of_an_emission_has_no_payload() -> None:
    """So that it can be logged."""
    emission = Recorder().with_options(headers={"token": "secret"}).prepare("event", "secret", word="secret")
    assert "secret" not in repr(emission)
    assert emission.id in repr(emission)
    assert "'event'" in repr(emission)


def test_what_an_emission_holds() -> None:
    """Arguments, name, version, bases, an id, and a moment."""
    before = datetime.now(UTC)
    text, paid = Recorder().prepare("event", 1, two=2), Recorder().prepare(Paid(3), 1, two=2)
    assert (text.event, text.version, text.bases, text.args, text.kwargs) == ("event", None, (), (1,), {"two": 2})
    assert (paid.event, paid.version, paid.args, paid.kwargs) == (f"{__name__}:Paid", 1, (Paid(3), 1), {"two": 2})
    assert before <= text.timestamp <= datetime.now(UTC)
    assert (text.due, text.expires, text.priority, text.attempt, text.handlers) == (None, None, None, 1, ())
    assert (text.linker, text.headers) == ("default", {})
    assert UUID(text.id) != UUID(paid.id)


def test_any_keyword_is_the_handlers() -> None:
    """Those that emit itself takes are positional only."""
    assert Recorder().emit("event", event=1, self=2).kwargs == {"event": 1, "self": 2}


def test_an_emission_can_be_pickled() -> None:
    """It is data."""
    emission = Recorder().with_options(headers={"a": "b"}, delay=3).prepare("event", 1)
    assert pickle.loads(pickle.dumps(emission)) == emission


# -- Emitting ---------------------------------------------------------------------------------------------------


def test_emit_returns_what_was_sent() -> None:
    """And so does aemit."""
    emitter = Recorder()
    assert emitter.emit("event") is emitter.sent[0]
    assert asyncio.run(emitter.aemit("event")) is emitter.sent[1]


def test_prepare_sends_nothing_and_send_keeps_the_id() -> None:
    """However often it is sent."""
    emitter = Recorder()
    emission = emitter.prepare("event")
    assert not emitter.sent
    assert emitter.send(emission) is emitter.send(emission) is emission
    assert asyncio.run(emitter.asend(emission)) is emission
    assert emitter.sent == [emission] * 3


@pytest.mark.parametrize("wrong", ["event", None, Paid()])
def test_send_takes_emissions_only(wrong: Any) -> None:
    """An event is emitted, not sent."""
    with pytest.raises(InvalidOption, match=r"send\(\) takes an emission that prepare\(\) made, not "):
        Recorder().send(wrong)


def test_debug_logs_each_emission(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, without its arguments."""
    caplog.set_level(logging.INFO, "pyventus")
    Recorder().emit("silent")
    emission = Recorder(debug=True).emit("event", "secret")
    assert caplog.messages == [f"Emission {emission.id} of 'event' emitted by <Recorder of linker 'default'>"]


@pytest.mark.parametrize("wrong", [object, "EventLinker", None, EventLinker()])
def test_the_linker_is_a_linker_class(wrong: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidOption, match="event_linker must be EventLinker or a subclass of it, not "):
        Recorder(event_linker=wrong)


def test_an_emitter_implements_process() -> None:
    """The one method that a subclass has to have."""
    with pytest.raises(TypeError, match="_process"):
        EventEmitter()  # type: ignore[abstract]


# -- with_options -----------------------------------------------------------------------------------------------


def test_options_are_bound_to_a_new_emitter() -> None:
    """Of the same type, sharing what the first one holds; the first one stays as it was."""
    emitter = Recorder()
    bound = emitter.with_options(priority=3)
    assert type(bound) is Recorder
    assert (emitter.emit("a").priority, bound.emit("b").priority) == (None, 3)
    assert len(emitter.sent) == 2


def test_options_add_up_and_the_last_one_holds() -> None:
    """What is not given stays bound, headers are added; delay and at replace one another."""
    moment = datetime(2100, 1, 1, tzinfo=UTC)
    first = Recorder().with_options(id="one", headers={"a": "1", "b": "1"}, priority=0, delay=10)
    second = first.with_options(headers={"b": "2"}, priority=9, at=moment)
    third = second.with_options(delay=timedelta(seconds=0)).with_options()
    assert second.prepare("x").id == third.prepare("x").id == "one"
    assert second.prepare("x").headers == third.prepare("x").headers == {"a": "1", "b": "2"}
    assert (first.prepare("x").priority, third.prepare("x").priority) == (0, 9)
    assert second.prepare("x").due == moment
    emission = third.prepare("x")
    assert emission.due == emission.timestamp
    emission = first.prepare("x")
    assert emission.due == emission.timestamp + timedelta(seconds=10)


def test_expires_counts_from_the_emit_or_is_a_moment() -> None:
    """Seconds are not counted from when they were bound."""
    moment = datetime(2100, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    emission = Recorder().with_options(expires=1.5).prepare("x")
    assert emission.expires == emission.timestamp + timedelta(seconds=1.5)
    assert Recorder().with_options(expires=moment).prepare("x").expires == datetime(2100, 1, 1, tzinfo=UTC)


def test_ids() -> None:
    """A UUID or any short text."""
    given = uuid4()
    assert Recorder().with_options(id=given).prepare("x").id == str(given)
    assert Recorder().with_options(id="order-7").prepare("x").id == "order-7"


def test_headers_of_one_emission_are_its_own() -> None:
    """A handler that changes them changes no other emission's, and the caller's mapping is copied."""
    mine = {"a": "1"}
    emitter = Recorder().with_options(headers=mine)
    emission = emitter.emit("x")
    assert isinstance(emission.headers, dict)
    emission.headers["b"] = "2"
    mine["c"] = "3"
    assert emitter.emit("x").headers == {"a": "1"}


NAIVE = datetime(2100, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 1, "at": datetime.now(UTC)}, "delay and at exclude one another"),
        ({"at": NAIVE}, r"at must be an aware datetime, such as datetime.now\(UTC\), not the naive datetime"),
        ({"expires": NAIVE}, "expires must be an aware datetime"),
        ({"at": 5}, "at must be an aware datetime, not 5"),
        ({"at": "tomorrow"}, "at must be an aware datetime"),
        ({"delay": -1}, "delay must be a number of seconds from 0 up, or a timedelta, not -1"),
        ({"delay": timedelta(seconds=-1)}, "delay must be"),
        ({"delay": True}, "delay must be"),
        ({"delay": "1"}, "delay must be"),
        ({"delay": float("nan")}, "delay must be"),
        ({"delay": float("inf")}, "delay must be"),
        ({"delay": 1e12}, "delay must be"),
        ({"delay": timedelta.max}, "delay must be"),
        ({"expires": -1}, "expires must be a number of seconds"),
        ({"expires": "1"}, "expires must be a number of seconds"),
        ({"priority": -1}, "priority must be a whole number from 0 to 9, 9 first, not -1"),
        ({"priority": 10}, "priority must be"),
        ({"priority": True}, "priority must be"),
        ({"priority": 1.0}, "priority must be"),
        ({"id": ""}, "id must be a UUID or 1 to 128 printable ASCII characters"),
        ({"id": "x" * 129}, "id must be"),
        ({"id": "a\nb"}, "id must be"),
        ({"id": "ä"}, "id must be"),
        ({"id": 7}, "id must be"),
        ({"headers": {"a": 1}}, "headers must be a mapping of strings to strings"),
        ({"headers": {1: "a"}}, "headers must be"),
        ({"headers": ["a"]}, "headers must be"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_options_are_checked_when_bound(options: dict[str, Any], message: str) -> None:
    """Not when something is emitted, and the error names the option, what it takes and what it was given."""
    with pytest.raises(InvalidOption, match=message):
        Recorder().with_options(**options)


def test_unknown_options() -> None:
    """Are a TypeError, as of any function."""
    with pytest.raises(TypeError):
        Recorder().with_options(later=1)  # type: ignore[call-arg]


# -- In this process --------------------------------------------------------------------------------------------


def test_a_missing_handler_is_said_once_a_minute(linker: type[EventLinker], caplog: pytest.LogCaptureFixture) -> None:
    """With the cure; the emission does nothing."""
    emitter = AsyncIOEventEmitter(linker)
    emission = emitter.emit("nobody")
    emitter.emit("nobody")
    (message,) = caplog.messages
    assert message.startswith(f"No handler is linked to 'nobody' in linker '{linker.name}': emission {emission.id} did")
    assert "link one, or import what links it" in message


def test_first_this_minute() -> None:
    """Per subject, and without remembering every subject there ever was."""
    subject = uuid4().hex
    times = [0.0, 1.0, 59.9, 60.1, 100.0, 120.2]
    assert [first_this_minute(subject, clock=time) for time in times] == [True, False, False, True, False, True]
    assert all(first_this_minute(f"{subject} {n}", clock=0.0) for n in range(3000))


@pytest.mark.parametrize("emitter", [AsyncIOEventEmitter, ExecutorEventEmitter])
def test_an_emission_runs_in_the_linker_that_it_names(linker: type[EventLinker], emitter: Callable[..., Any]) -> None:
    """Whichever emitter sends it; an unknown linker is an error of send."""
    ran: list[str] = []
    linker.subscribe("event", event_callback=lambda: ran.append("right"))
    emission = Recorder(event_linker=linker).prepare("event")
    sender = emitter()
    sender.send(emission)
    if isinstance(sender, ExecutorEventEmitter):
        sender.drain()
    assert ran == ["right"]
    with pytest.raises(Unhandled, match="linker 'gone' is not defined in this process"):
        sender.send(dataclasses.replace(emission, linker="gone"))


@pytest.mark.usefixtures("busy_threads")
def test_emitting_from_many_threads_through_one_emitter(linker: type[EventLinker]) -> None:
    """Outside a loop: each emit returns after its own handlers, sync and async."""
    ran: list[int] = []

    async def asynchronous(n: int) -> None:
        await asyncio.sleep(0)
        ran.append(n)

    linker.subscribe("event", event_callback=asynchronous)
    linker.subscribe("event", event_callback=lambda n: ran.append(n))
    emitter = AsyncIOEventEmitter(linker)

    def emit(n: int) -> bool:
        emitter.emit("event", n)
        return ran.count(n) == 2

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(emit, range(500)))


@pytest.mark.usefixtures("busy_threads")
def test_emitting_from_many_loops_through_one_emitter(linker: type[EventLinker]) -> None:
    """Each drain waits for what was emitted on its own loop, while other loops come and go."""
    ran: list[tuple[int, int]] = []
    linker.subscribe("event", event_callback=lambda n, m: ran.append((n, m)))
    emitter = AsyncIOEventEmitter(linker)

    async def emit(n: int) -> int:
        async with emitter:
            for m in range(20):
                emitter.emit("event", n, m)
        return sum(1 for each, _ in ran if each == n)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: asyncio.run(emit(n)), range(100))) == [20] * 100
    assert not emitter._running


def test_finished_emissions_leave_nothing_behind(linker: type[EventLinker]) -> None:
    """Neither their arguments nor their tasks."""

    class Big:
        pass

    linker.subscribe("event", event_callback=lambda big: None)
    emitter = AsyncIOEventEmitter(linker)

    async def emit() -> list[weakref.ref[Big]]:
        async with emitter:
            sent = [Big() for _ in range(100)]
            for each in sent:
                emitter.emit("event", each)
        return [weakref.ref(each) for each in sent]

    left = asyncio.run(emit())
    gc.collect()
    assert not emitter._running
    assert not any(ref() for ref in left)


def test_drain_inside_a_handler(linker: type[EventLinker], caplog: pytest.LogCaptureFixture) -> None:
    """Would wait for itself, and says so; draining another emitter there is fine."""
    ran: list[str] = []
    inner = AsyncIOEventEmitter(linker)
    linker.subscribe("inner", event_callback=lambda: ran.append("inner"))

    @linker.on("outer")
    async def outer() -> None:
        async with inner:
            inner.emit("inner")
        ran.append("drained")
        await emitter.drain()

    emitter = AsyncIOEventEmitter(linker)

    async def main() -> None:
        async with emitter:
            emitter.emit("outer")

    asyncio.run(asyncio.wait_for(main(), 20))
    assert ran == ["inner", "drained"]
    assert "drain() was called inside a handler of the same emitter, and would wait for itself" in caplog.text


def test_drain_after_a_handler_has_ended(linker: type[EventLinker]) -> None:
    """A task that a handler left behind may drain: it waits for others only."""
    emitter = AsyncIOEventEmitter(linker)
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        while emitter._running:
            await asyncio.sleep(0)
        await emitter.drain()

    @linker.on("event")
    async def handle() -> None:
        tasks.append(asyncio.create_task(later()))

    async def main() -> None:
        async with emitter:
            emitter.emit("event")
        await asyncio.wait_for(tasks[0], 20)

    asyncio.run(main())


def test_drain_waits_for_what_handlers_emit_and_for_delays(linker: type[EventLinker]) -> None:
    """Handlers of both kinds, however deep; what a sync one emits runs on the same loop."""
    ran: list[str] = []
    loops: set[object] = set()
    emitter = AsyncIOEventEmitter(linker)

    @linker.on("sync")
    def sync() -> None:
        emitter.with_options(delay=0.05).emit("async")

    @linker.on("async")
    async def asynchronous() -> None:
        loops.add(asyncio.get_running_loop())
        emitter.emit("last")

    @linker.on("last")
    async def last() -> None:
        loops.add(asyncio.get_running_loop())
        ran.append("last")

    async def main() -> None:
        loops.add(asyncio.get_running_loop())
        async with emitter:
            emitter.emit("sync")

    asyncio.run(main())
    assert ran == ["last"]
    assert len(loops) == 1


def test_emit_outside_a_loop_waits_for_what_async_handlers_emit(linker: type[EventLinker]) -> None:
    """Or it would be lost when the program ends."""
    ran: list[str] = []
    emitter = AsyncIOEventEmitter(linker)

    @linker.on("first")
    async def first() -> None:
        emitter.with_options(delay=0.05).emit("second")

    @linker.on("second")
    async def second() -> None:
        AsyncIOEventEmitter(linker).emit("third")

    @linker.on("third")
    async def third() -> None:
        await asyncio.sleep(0.05)
        ran.append("third")

    emitter.emit("first")
    assert ran == ["third"]


def test_a_handler_that_emits_itself_again_for_ever(linker: type[EventLinker]) -> None:
    """Neither stops drain from ending when it ends, nor remembers all that came before."""
    emitter = AsyncIOEventEmitter(linker)
    depths: list[int] = []

    @linker.on("tick")
    async def tick(n: int) -> None:
        from pyventus.emitters.asyncio import _around

        depths.append(len(_around.get()))
        if n:
            emitter.with_options(delay=0.0001).emit("tick", n - 1)

    async def main() -> None:
        async with emitter:
            emitter.emit("tick", 200)

    asyncio.run(main())
    assert len(depths) == 201
    assert max(depths) <= 3


def test_an_emission_that_its_loop_leaves_behind_is_reported(
    linker: type[EventLinker], caplog: pytest.LogCaptureFixture
) -> None:
    """With its id and what to do; nothing stays in the emitter."""

    @linker.on("event")
    async def slow() -> None:
        await asyncio.sleep(60)

    emitter = AsyncIOEventEmitter(linker)

    async def forgetful() -> Emission:
        emission = emitter.emit("event")
        await asyncio.sleep(0)
        return emission

    emission = asyncio.run(forgetful())
    (message,) = caplog.messages
    assert message.startswith(f"Emission {emission.id} of 'event' was cancelled with its loop before its handlers had")
    assert "`async with`" in message
    assert not emitter._running


def test_an_emission_for_a_handler_that_is_gone_is_reported(
    linker: type[EventLinker], caplog: pytest.LogCaptureFixture
) -> None:
    """On a loop nobody awaits it, so it says so itself."""
    emitter = AsyncIOEventEmitter(linker)

    async def main() -> None:
        async with emitter:
            emitter.send(dataclasses.replace(emitter.prepare("event"), handlers=("gone",)))

    asyncio.run(main())
    assert "did not run: Unhandled(" in caplog.text


# -- Executors --------------------------------------------------------------------------------------------------


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("wrong", [3, "threads", ThreadPoolExecutor])
def test_the_executor_is_an_executor(wrong: Any) -> None:
    """Neither its class nor a number of threads."""
    with pytest.raises(InvalidOption, match="executor must be a ThreadPoolExecutor or a ProcessPoolExecutor, not "):
        ExecutorEventEmitter(wrong)


def test_many_threads_emit_through_one_executor(linker: type[EventLinker]) -> None:
    """Leaving waits for all of it."""
    ran: list[int] = []
    linker.subscribe("event", event_callback=lambda n: ran.append(n))
    with ExecutorEventEmitter(event_linker=linker) as emitter, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: emitter.emit("event", n), range(1000)))
    assert sorted(ran) == list(range(1000))


def test_leaving_waits_for_delays_and_for_what_handlers_emit(linker: type[EventLinker]) -> None:
    """Nothing of it is lost."""
    ran: list[str] = []

    @linker.on("first")
    def first() -> None:
        emitter.with_options(delay=0.05).emit("second")

    linker.subscribe("second", event_callback=lambda: ran.append("second"))
    with ExecutorEventEmitter(event_linker=linker) as emitter:
        emitter.with_options(delay=0.05).emit("first")
    assert ran == ["second"]


def test_handlers_are_found_when_a_delay_is_over(linker: type[EventLinker]) -> None:
    """As on a loop and in a worker: one that was unlinked meanwhile does not run, one that was linked does."""
    ran: list[str] = []
    gone = linker.subscribe("event", event_callback=lambda: ran.append("gone"))
    with ExecutorEventEmitter(event_linker=linker) as emitter:
        emitter.with_options(delay=0.1).emit("event")
        linker.remove_event_handler(gone)
        linker.subscribe("event", event_callback=lambda: ran.append("new"))
    assert ran == ["new"]


def test_drain_inside_a_handler_of_an_executor(linker: type[EventLinker], caplog: pytest.LogCaptureFixture) -> None:
    """Would wait for itself, and says so; so does shutting down there."""
    errors: list[BaseException] = []
    linker.subscribe("drain", event_callback=lambda: emitter.drain(), failure_callback=errors.append)
    linker.subscribe("shutdown", event_callback=lambda: emitter.shutdown(), failure_callback=errors.append)
    with ExecutorEventEmitter(event_linker=linker) as emitter:
        emitter.emit("drain")
        emitter.with_options(delay=0.01).emit("shutdown")
    assert [type(error) for error in errors] == [PyventusError] * 2
    assert "drain() was called inside a handler of the same emitter" in str(errors[0])


def test_emitting_after_shutdown(linker: type[EventLinker]) -> None:
    """Is an EmitError that carries the emission."""
    linker.subscribe("event", event_callback=print)
    emitter = ExecutorEventEmitter(event_linker=linker)
    emitter.shutdown()
    with pytest.raises(EmitError, match="cannot run: cannot schedule new futures after shutdown") as caught:
        emitter.emit("event")
    assert caught.value.emission is not None
    assert caught.value.emission.event == "event"
    emitter.drain()


def test_shutdown_without_waiting(linker: type[EventLinker], caplog: pytest.LogCaptureFixture) -> None:
    """What had not started is cancelled if asked for, what was delayed cannot run any more; both are said."""
    started, free = threading.Event(), threading.Event()

    @linker.on("event")
    def handle() -> None:
        started.set()
        assert free.wait(20)

    emitter = ExecutorEventEmitter(ThreadPoolExecutor(1), linker)
    emitter.emit("event")
    emitter.emit("event")
    emitter.with_options(delay=0.05).emit("event")
    assert started.wait(20)
    emitter.shutdown(wait=False, cancel_futures=True)
    free.set()
    emitter.drain()
    assert sum("was lost on emission" in text and "it was cancelled" in text for text in caplog.messages) == 1
    assert sum("of 'event' is lost: EmitError(" in text for text in caplog.messages) == 1


def test_once_in_processes(linker: type[EventLinker], processes: ProcessPoolExecutor, tmp_path: Path) -> None:
    """It is claimed where it is emitted, so it runs once whichever process gets it."""
    linker.subscribe("event", event_callback=in_processes.write, once=True)
    with ExecutorEventEmitter(processes, linker) as emitter:
        for n in range(5):
            emitter.emit("event", str(tmp_path / "file"), f"{n};")
    assert (tmp_path / "file").read_text() == "0;"


def test_what_cannot_go_to_a_process_is_refused_by_emit(
    linker: type[EventLinker], processes: ProcessPoolExecutor
) -> None:
    """Also when it is delayed; a once handler that could not be sent is still there."""
    handler = linker.subscribe("event", event_callback=in_processes.write, once=True, name="write")
    emitter = ExecutorEventEmitter(processes, linker)
    for each in (emitter, emitter.with_options(delay=60)):
        with pytest.raises(NotSerializable, match=r"handler write cannot go to another process: .*lock"):
            each.emit("event", threading.Lock())
    assert linker.get_event_handlers() == [handler]
    linker.subscribe("local", event_callback=lambda: None, name="local")
    with pytest.raises(NotSerializable, match="handler local cannot go .* use functions of a module"):
        emitter.emit("local")
    emitter.drain()


def test_what_a_process_cannot_unpickle_harms_no_other(
    linker: type[EventLinker], processes: ProcessPoolExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception whose constructor takes other arguments, say: reported, and the processes live on."""
    linker.subscribe(in_processes.Unfit, event_callback=in_processes.ignore, name="ignore")
    linker.subscribe("event", event_callback=in_processes.write)
    with ExecutorEventEmitter(processes, linker) as emitter:
        emission = emitter.emit(in_processes.Unfit(1, 2))
        emitter.drain()
        emitter.emit("event", str(tmp_path / "file"), "alive")
    assert (tmp_path / "file").read_text() == "alive"
    (message,) = caplog.messages
    assert message.startswith(f"Handler ignore was lost on emission {emission.id} of '{in_processes.__name__}:Unfit': ")


def test_a_process_that_dies_is_reported(
    linker: type[EventLinker], processes: ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """With its handler and emission; drain returns, and the next emit says that the executor is broken."""
    linker.subscribe("die", event_callback=in_processes.die, name="dying")
    emitter = ExecutorEventEmitter(processes, linker)
    emission = emitter.emit("die", int(signal.SIGKILL))
    emitter.drain()
    assert any(
        text.startswith(f"Handler dying was lost on emission {emission.id} of 'die': ") for text in caplog.messages
    )
    with pytest.raises(EmitError, match="cannot run: ") as caught:
        emitter.emit("die", 0)
    assert caught.value.emission is not None
    emitter.shutdown()


def test_contextvars_of_the_emit_reach_threads(linker: type[EventLinker]) -> None:
    """Also after a delay, as they were when it was emitted."""
    seen: list[tuple[str, str]] = []
    linker.subscribe("event", event_callback=lambda: seen.append((current_emission().event, variable.get())))
    token = variable.set("emitted")
    with ExecutorEventEmitter(event_linker=linker) as emitter:
        emitter.with_options(delay=0.05).emit("event")
        variable.reset(token)
    assert seen == [("event", "emitted")]


def test_async_handlers_of_executors_share_one_loop(linker: type[EventLinker]) -> None:
    """So that clients which belong to a loop can be shared by them."""
    loops: set[object] = set()

    @linker.on("event")
    async def handle() -> None:
        loops.add(asyncio.get_running_loop())

    with ExecutorEventEmitter(event_linker=linker) as emitter:
        for _ in range(20):
            emitter.emit("event")
    AsyncIOEventEmitter(linker).emit("event")
    assert loops == {process_loop().loop}


def test_invalid_events_reach_no_handler(linker: type[EventLinker]) -> None:
    """They are refused where they are emitted."""
    emitter = ExecutorEventEmitter(event_linker=linker)
    with pytest.raises(InvalidEvent):
        emitter.emit("")
    emitter.shutdown()


# -- What is saved in process -------------------------------------------------------------------------------------


def test_an_emission_has_one_id_in_whatever_thread_it_is_first_asked_for(busy_threads: None) -> None:
    for _ in range(200):
        emission = Recorder().emit("Paid")
        start = threading.Barrier(4)

        def ask(emission: Emission = emission, start: threading.Barrier = start) -> str:
            start.wait()
            return emission.id

        with ThreadPoolExecutor(4) as threads:
            ids = {asked.result() for asked in [threads.submit(ask) for _ in range(4)]}
        assert ids == {emission.id}


def test_ids_are_random_uuids() -> None:
    ids = {Recorder().emit("Paid").id for _ in range(1000)}
    assert len(ids) == 1000
    assert {(str(UUID(id)) == id, UUID(id).version, UUID(id).variant) for id in ids} == {
        (True, 4, "specified in RFC 4122")
    }


@pytest.mark.parametrize(
    "copied",
    [
        lambda emission: pickle.loads(pickle.dumps(emission)),
        dataclasses.replace,
        copy.copy,
        copy.deepcopy,
    ],
)
def test_a_copy_of_an_emission_has_its_id(copied: Callable[[Emission], Emission]) -> None:
    emission = Recorder().emit("Paid", 17)
    other = copied(emission)
    assert other == emission
    assert other.id == emission.id


def test_an_emission_stays_frozen() -> None:
    emission = Recorder().emit("Paid")
    with pytest.raises(dataclasses.FrozenInstanceError):
        emission.event = "Refunded"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="no attribute 'evnt'"):
        emission.evnt  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_failure_callback_sees_what_its_handler_left_in_the_context(attempts: int, linker: type[EventLinker]) -> None:
    """And the next attempt does not."""
    seen: list[tuple[str, str]] = []

    def fail() -> None:
        seen.append(("handler", variable.get()))
        variable.set("left")
        raise ValueError

    linker.subscribe(
        "failing",
        event_callback=fail,
        failure_callback=lambda error: seen.append(("callback", variable.get())),
        retry=Retry(max_attempts=attempts, delay=0.01),
    )
    AsyncIOEventEmitter(linker).emit("failing")
    assert seen == [("handler", "unset")] * attempts + [("callback", "left")]
    assert variable.get() == "unset"

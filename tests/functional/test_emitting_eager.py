"""With ``task_always_eager``, which its users set in tests, handlers run in the process that emits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.errors import HandlersFailed


class Eager(EventLinker, name="eager"):
    """The linker of these tests."""


@pytest.fixture(autouse=True)
def ran() -> Iterator[list[Any]]:
    ran: list[Any] = []

    @Eager.on("Sync")
    def sync(*args: Any) -> None:
        ran.append(("sync", threading.current_thread(), *args))

    @Eager.on("Async")
    async def on_loop(*args: Any) -> None:
        await asyncio.sleep(0)
        ran.append(("async", threading.current_thread(), *args))

    @Eager.on("Failing")
    def fail() -> None:
        ran.append("failing")
        raise ValueError("wrong")

    yield ran
    Eager.remove_all()


pytestmark = pytest.mark.filterwarnings("ignore::pyventus.linkers.UnstableHandlerIdWarning")


def make_emitter(**settings: Any) -> CeleryEventEmitter:
    app = Celery("eager", broker="redis://nowhere.invalid", set_as_current=False)
    app.conf.update(task_always_eager=True, **settings)
    return CeleryEventEmitter(CeleryEventEmitter.Queue(app, secret="s" * 32), Eager)


def test_emit_runs_the_handlers_before_it_returns(ran: list[Any]) -> None:
    """A sync one in the thread that emits, with arguments that have travelled."""
    emitter = make_emitter()
    emitter.emit("Sync", (1, 2))
    assert ran == [("sync", threading.current_thread(), (1, 2))]
    emitter.emit("Async")
    assert ran[1][0] == "async"


def test_aemit_runs_them_without_blocking_the_loop(ran: list[Any]) -> None:
    asyncio.run(make_emitter().aemit("Sync"))
    assert ran[0][1] is not threading.current_thread()


def test_delays_are_ignored(ran: list[Any]) -> None:
    """As Celery does with an eager task's countdown."""
    make_emitter().with_options(delay=3600).emit("Sync")
    assert len(ran) == 1


def test_failures_are_logged(ran: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    make_emitter().emit("Failing")
    assert "ValueError('wrong')" in caplog.text


@pytest.mark.parametrize("how", ["emit", "aemit"])
def test_failures_propagate_where_celery_is_told_so(ran: list[Any], how: str) -> None:
    emitter = make_emitter(task_eager_propagates=True)
    with pytest.raises(HandlersFailed, match="ValueError: wrong"):
        emitter.emit("Failing") if how == "emit" else asyncio.run(emitter.aemit("Failing"))


def test_handlers_that_emit(ran: list[Any]) -> None:
    """Also an async one with emit, whose loop cannot wait for itself."""
    emitter = make_emitter()

    @Eager.on("Outer sync")
    def outer() -> None:
        emitter.emit("Async", 1)

    @Eager.on("Outer awaiting")
    async def awaiting() -> None:
        await emitter.aemit("Async", 2)

    @Eager.on("Outer async")
    async def blocking() -> None:
        emitter.emit("Async", 3)

    emitter.emit("Outer sync")
    emitter.emit("Outer awaiting")
    assert [args[2] for args in ran] == [1, 2]
    emitter.emit("Outer async")
    end = time.monotonic() + 10
    while len(ran) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_handlers_of_the_main_script_run(ran: list[Any]) -> None:
    """Nobody else has to find them."""

    def handle() -> None:
        ran.append("main")

    handle.__module__ = "__main__"
    Eager.subscribe("Main", event_callback=handle, name="main")
    make_emitter().emit("Main")
    assert ran == ["main"]

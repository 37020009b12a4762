"""Handlers of the tests' workers: each says in the log what it did, for which emission."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import current_task
from celery.exceptions import SoftTimeLimitExceeded

from pyventus import EventLinker, Retry
from pyventus.emitters.celery.delivery import current_ids
from pyventus.events import event
from pyventus.running import current_emission, current_state
from tests.functional.apps.support import BARRIER


@dataclass
class Parcel:
    id: int


@event("tests:Crate")
@dataclass
class Crate:
    id: int
    weight: int


class Shop(EventLinker, name="shop"):
    """A linker of the workers' own."""


def say(*words: object) -> None:
    print(" ".join(map(str, [current_emission().id, *words])))


def where() -> str:
    """On which thread, seen from the loop of the process."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "task" if threading.current_thread() is threading.main_thread() else "thread"
    return "loop"


@EventLinker.on("Plain", name="plain")
async def plain(*args: object, **kwargs: object) -> None:
    say("plain", *args, *kwargs.items())


@EventLinker.on("Frozen")
def frozen() -> None:
    say(gc.get_freeze_count(), "objects are frozen")


@EventLinker.on(Parcel, name="parcel")
def parcel(it: Parcel) -> None:
    say("parcel", it.id)


@EventLinker.on(Crate, name="crate")
def crate(it: Crate) -> None:
    say("crate", it.id)


@Shop.on("Plain", name="shop")
def in_shop() -> None:
    say("in the shop")


@EventLinker.on("Where")
async def where_async() -> None:
    say("async on", where(), "process", os.getpid(), "loop", id(asyncio.get_running_loop()))


@EventLinker.on("Where", "WhereAlone")
def where_sync() -> None:
    say("sync on", where())


@EventLinker.on("Where")
def where_sync_too() -> None:
    say("second sync on", where())


@EventLinker.on("Fails", name="fails")
def fails(text: str) -> None:
    raise ValueError(text)


@EventLinker.on("Fails", name="fails too")
async def fails_too(text: str) -> None:
    raise LookupError(text)


@EventLinker.on("Fails", name="succeeds")
async def succeeds(text: str) -> None:
    say("succeeded beside a failure")


@EventLinker.on("TooSlow", name="too slow", timeout=0.2)
async def too_slow() -> None:
    await asyncio.sleep(60)


@EventLinker.on("TooSlow", name="too slow, too", timeout=0.2)
def too_slow_too() -> None:
    time.sleep(0.5)


@EventLinker.on("Limited", name="limited")
async def limited() -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        say("was cancelled")
        raise


@EventLinker.on("Limited", name="in time", success_callback=lambda: say("ended before the limit"))
async def in_time() -> None:
    pass


@EventLinker.on("LimitedToo", name="limited-too-async")
async def limited_too() -> None:
    await limited()


@EventLinker.on("LimitedToo", name="limited-too-sync")
def limited_in_the_thread_of_the_task() -> None:
    time.sleep(60)


@EventLinker.on("Stubborn", name="stubborn")
def stubborn(file: str) -> None:
    """Outlives the soft time limit, the first time."""
    mark = Path(file)
    if mark.exists():
        return say("ran again")
    mark.touch()
    say("ran first")
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        time.sleep(60)
    return None


@EventLinker.on("Killed", name="killed")
def killed(file: str) -> None:
    """Is killed with its process, the first time."""
    mark = Path(file)
    if mark.exists():
        return say("ran again")
    mark.touch()
    say("is killed")
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def gave_up(error: Exception) -> None:
    say("gave up because of", type(error).__name__, error)


@EventLinker.on("Poison", "PoisonInTea", name="poison", failure_callback=gave_up)
def poison(file: str) -> None:
    """Takes its process with it, each time; counts how often it could."""
    with Path(file).open("a") as starts:
        starts.write("x")
    os._exit(1)


@EventLinker.on("PoisonInTea", "Tea", name="tea")
def tea(file: str) -> None:
    time.sleep(0.05)
    say("tea")


@EventLinker.on("Flaky", name="flaky", retry=Retry(max_attempts=3, delay=0.1), failure_callback=gave_up)
def flaky(attempts: int) -> None:
    """Fails until as many attempts have been made."""
    say("attempt", current_emission().attempt, "in task", current_task.request.id)
    if current_emission().attempt < attempts:
        raise ValueError("not yet")


@EventLinker.on("Flaky", name="steady")
async def steady(attempts: int) -> None:
    say("steady")


@EventLinker.on("AsTheQueueSays", name="as the queue says", failure_callback=gave_up)
async def as_the_queue_says(changed: list[int]) -> None:
    """Changes its arguments, which its next attempt must not notice."""
    changed.append(current_emission().attempt)
    say("was given", changed)
    raise ValueError("never")


@EventLinker.on("Heavy", name="heavy", queue=os.environ.get("TEST_HEAVY_QUEUE"), retry=Retry(max_attempts=2, delay=0))
def heavy() -> None:
    say("heavy, attempt", current_emission().attempt, "from", current_task.request.delivery_info["routing_key"])
    if current_emission().attempt < 2:
        raise ValueError("not yet")


@EventLinker.on("Heavy", name="light")
async def light() -> None:
    say("light")


@EventLinker.on("Urgent", name="urgent", priority=9)
def urgent() -> None:
    say("urgent in", current_ids.get())


@EventLinker.on("Urgent", name="ordinary")
def ordinary() -> None:
    say("ordinary in", current_ids.get())


@EventLinker.on("Meets", name="meets")
async def meets() -> None:
    """Waits for others of its kind, which run in other tasks."""
    state = current_state()
    if "barrier" not in state:
        state["barrier"] = asyncio.Barrier(BARRIER)
    await state["barrier"].wait()
    say("met the others")


@EventLinker.on("WaitsFor", name="waits")
async def waits_for(file: str) -> None:
    say("waits")
    while not Path(file).exists():
        await asyncio.sleep(0.02)
    say("finished")


@EventLinker.on("WaitsFor", name="waits, too")
def waits_for_too(file: str) -> None:
    say("waits, too")
    while not Path(file).exists():
        time.sleep(0.02)
    say("finished, too")


@EventLinker.on("HoldsOn", name="holds on")
def holds_on(file: str) -> None:
    waits_for_too(file)


@EventLinker.on("HoldsOn", name="holds on, too")
def holds_on_too(file: str) -> None:
    say("waits")
    waits_for_too(file)


@EventLinker.on("Halves", name="slow half")
def slow_half(file: str) -> None:
    waits_for_too(file)


@EventLinker.on("Halves", name="quick half", success_callback=lambda: say("quick half"))
async def quick_half(file: str) -> None:
    pass


@EventLinker.once("OnlyOnce", name="only once")
def only_once() -> None:
    say("the only one")


@EventLinker.once("OnceWaits", name="once waits")
def once_waits(file: str) -> None:
    say("the once handler waits")
    while not Path(file).exists():
        time.sleep(0.02)
    say("the once handler is done")


@EventLinker.on("CancelsItself", name="cancels itself")
async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@EventLinker.on("State", name="state")
async def state() -> None:
    say("state", current_state(), "process", os.getpid())


@EventLinker.on("Surrounded", name="surrounded")
async def surrounded() -> None:
    emission = current_emission()
    say("inside", emission.event, emission.headers["request"], current_middleware())


@EventLinker.on("Surrounded", name="surrounded, too")
def surrounded_too() -> None:
    say("inside, too", current_middleware())


def current_middleware() -> Any:
    return sys.modules["tests.functional.apps.service"].inside.get(None)


def dies(*_: object) -> None:
    with open(current_emission().headers["file"], "a") as file:
        file.write("called back\n")
    os.kill(os.getpid(), signal.SIGKILL)


@EventLinker.on(
    "DiesAfterSuccess", "DiesAfterFailure", name="dies afterwards", success_callback=dies, failure_callback=dies
)
def dies_afterwards() -> None:
    with open(current_emission().headers["file"], "a") as file:
        file.write("ran\n")
    if current_emission().event == "DiesAfterFailure":
        raise ValueError("in vain")


def link_in_order(name: str) -> None:
    @EventLinker.on("InOrder", name=name)
    async def starts() -> None:
        say("starts", name)


# By no other order than that of these lines.
for each in ("third", "first", "fifth", "second", "fourth"):
    link_in_order(each)

"""Run as a script: handlers of both kinds in a process that gevent has patched."""

# ruff: noqa: E402 - patched before anything else is imported, as gevent asks
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import asyncio
import threading

import gevent
from gevent.event import Event

from pyventus import AsyncIOEventEmitter, EventLinker, ExecutorEventEmitter, current_emission
from pyventus.running import close_process_loop, process_loop

met: list[str] = []
leaked: list[object] = []
both_there = threading.Barrier(2)
loop_is_busy = threading.Event()


@EventLinker.on("side by side")
def sync_one() -> None:
    both_there.wait(10)
    met.append(f"sync one {current_emission().event}")


@EventLinker.on("side by side")
def sync_two() -> None:
    both_there.wait(10)
    met.append(f"sync two {current_emission().event}")


async_started = Event()


@EventLinker.on("both kinds")
async def asynchronous() -> str:
    await asyncio.sleep(0.05)
    asyncio.get_running_loop()
    met.append("async")
    return "value"


@EventLinker.on("both kinds")
def synchronous() -> None:
    gevent.sleep(0.05)
    met.append("sync")


with EventLinker.on("callbacks") as link:

    @link.on_event
    async def fetch() -> int:
        await asyncio.sleep(0)
        return 5

    @link.on_success
    def fetched(value: int) -> None:
        met.append(f"fetched {value}")


def watch() -> None:
    """Other greenlets must not find the loop of ours."""
    while not leaked and not finished:
        try:
            leaked.append(asyncio.get_running_loop())
        except RuntimeError:
            gevent.sleep(0.001)


finished: list[bool] = []
watcher = gevent.spawn(watch)
emitter = AsyncIOEventEmitter()
greenlets = [gevent.spawn(emitter.emit, name) for name in ("side by side", "both kinds", "callbacks")]
gevent.joinall(greenlets, timeout=20, raise_error=True)
with ExecutorEventEmitter() as executor:
    executor.emit("both kinds")
first = process_loop()
assert first is process_loop()
close_process_loop()
assert first.loop.is_closed()
finished.append(True)
watcher.join(timeout=10)
print(sorted(met), leaked)

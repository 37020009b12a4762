"""Costs in one process as things grow in number or size: ``python -m benchmarks.growing others|async|sync|payload``.

It answers with one line for each step: the number or size, and the microseconds.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

from pyventus import AsyncIOEventEmitter, EventLinker

OTHERS = (1, 10, 100, 1_000, 10_000)
HANDLERS = (1, 10, 100, 1_000, 10_000)
# Each in a thread of its own while they run.
SYNC_HANDLERS = (1, 10, 100, 1_000)
BYTES = (100, 1_000, 10_000, 100_000, 200_000)


def nothing(*_: object) -> None:
    pass


async def nothing_async(*_: object) -> None:
    pass


def microseconds(call: Callable[[], object], seconds: float = 0.2) -> float:
    """The least of five runs, each as long as it takes to be measured."""
    call()
    count, passed = 1, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(count):
            call()
        passed = time.perf_counter() - start
        if passed > seconds / 5:
            break
        count *= 2
    return min(passed, *(_timed(call, count) for _ in range(4))) / count * 1e6


def _timed(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def others() -> None:
    """One emit to one handler, beside so many handlers of other events."""
    emitter, linked = AsyncIOEventEmitter(), 0
    EventLinker.subscribe("mine", event_callback=nothing, name="mine")
    for step in OTHERS:
        for number in range(linked, step):
            EventLinker.subscribe(f"other {number}", event_callback=nothing, name=f"other {number}")
        linked = step
        print(step, microseconds(lambda: emitter.emit("mine")), flush=True)


def handlers(callback: Callable[..., object], steps: tuple[int, ...]) -> None:
    """One emit to so many handlers of its event."""
    emitter, linked = AsyncIOEventEmitter(), 0
    for step in steps:
        for number in range(linked, step):
            EventLinker.subscribe("mine", event_callback=callback, name=f"handler {number}")
        linked = step
        print(step, microseconds(lambda: emitter.emit("mine")), flush=True)


def linking() -> None:
    """Linking and unlinking of a handler without a name, when so many are linked to the same event."""
    warnings.simplefilter("ignore")
    linked = 0
    for step in HANDLERS:
        for _ in range(linked, step):
            EventLinker.subscribe("mine", event_callback=nothing)
        linked = step
        print(step, microseconds(_link_and_unlink), flush=True)


def _link_and_unlink() -> None:
    EventLinker.remove_event_handler(EventLinker.subscribe("mine", event_callback=nothing))


def payload() -> None:
    """Sealing an emission, and opening its envelope again."""
    from benchmarks.shop import emitter, queue

    for step in BYTES:
        text = "x" * step

        def seal_and_open(text: str = text) -> None:
            emission = emitter.prepare("order.placed", 0, text)
            queue.open(queue.message(emission).text, emission.id)

        print(step, microseconds(seal_and_open), flush=True)


STEPS: dict[str, Callable[[], None]] = {
    "others": others,
    "async": lambda: handlers(nothing_async, HANDLERS),
    "sync": lambda: handlers(nothing, SYNC_HANDLERS),
    "linking": linking,
    "payload": payload,
}

if __name__ == "__main__":
    STEPS[sys.argv[1]]()

"""A process that emits to one sync handler in itself: ``python -m benchmarks.inprocess pyventus|pyee|blinker``.

For each line on its standard input, a number of emits, it answers with that number and the seconds they took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

TEXT = "x" * 570
handled = 0


def handle(number: int, text: str) -> None:
    global handled
    handled += 1


def pyventus() -> Callable[[], object]:
    from pyventus import AsyncIOEventEmitter, EventLinker

    EventLinker.subscribe("order.placed", event_callback=handle, name="handle")
    emitter = AsyncIOEventEmitter()
    return lambda: emitter.emit("order.placed", 17, TEXT)


def pyee() -> Callable[[], object]:
    from pyee.base import EventEmitter

    emitter = EventEmitter()
    emitter.on("order.placed", handle)
    return lambda: emitter.emit("order.placed", 17, TEXT)


def blinker() -> Callable[[], object]:
    from blinker import signal

    placed = signal("order.placed")

    def receive(sender: object, number: int, text: str) -> None:
        handle(number, text)

    placed.connect(receive, weak=False)
    return lambda: placed.send(None, number=17, text=TEXT)


def main(emit: Callable[[], object]) -> None:
    for line in sys.stdin:
        count, before = int(line), handled
        start = time.perf_counter()
        for _ in range(count):
            emit()
        passed = time.perf_counter() - start
        assert handled - before == count, "not each emit has been handled"
        print(count, passed, flush=True)


if __name__ == "__main__":
    main({"pyventus": pyventus, "pyee": pyee, "blinker": blinker}[sys.argv[1]]())

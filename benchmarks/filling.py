"""Puts messages into a broker for workers to drain: ``python -m benchmarks.filling emit order.placed 10000``."""

from __future__ import annotations

import sys

from benchmarks.shop import TEXT, app, emitter


def fill(way: str, what: str, count: int) -> None:
    if way == "emit":
        for number in range(count):
            emitter.emit(what, number, TEXT)
    elif way == "send_task":
        for number in range(count):
            app.send_task(what, args=(number, TEXT), queue=app.conf.task_default_queue, ignore_result=True)
    else:
        emissions = [emitter.prepare(what, number, TEXT) for number in range(count)]
        for start in range(0, count, 1000):
            emitter.emit_many(emissions[start : start + 1000], **({"batch": 100} if way == "batches" else {}))


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2], int(sys.argv[3]))

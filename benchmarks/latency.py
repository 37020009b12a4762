"""A process that emits to an idle worker and waits: ``python -m benchmarks.latency emit|send_task``.

For each line on its standard input, a number of messages, it answers with the microseconds from before each was
sent to the first line of its handler, which has noted the moment in the file of `benchmarks.oracle`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks.oracle import VARIABLE, Times
from benchmarks.shop import TEXT, app, emitter

DEADLINE = 10.0


def send(way: str, number: int) -> None:
    if way == "emit":
        emitter.emit("order.placed", number, TEXT)
    else:
        app.send_task("bench.note", args=(number, TEXT), queue=app.conf.task_default_queue, ignore_result=True)


def microseconds(way: str, number: int, times: Times) -> float:
    times.moments[number] = 0.0
    start = time.monotonic()
    send(way, number)
    while not times.moments[number]:
        assert time.monotonic() < start + DEADLINE, f"{way}: not handled within {DEADLINE} s"
        time.sleep(0.001)
    return (times.moments[number] - start) * 1e6


def main(way: str) -> None:
    times = Times(Path(os.environ[VARIABLE]))
    for line in sys.stdin:
        print(*[f"{microseconds(way, number, times):.0f}" for number in range(int(line))], flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""Runs emits, or a worker, under cProfile in all threads: ``python -m benchmarks.profiled emit|many|work COUNT FILE``.

It writes as JSON, for each function, its file and name, its calls, and the seconds in itself and with what it calls.
"""

from __future__ import annotations

import contextlib
import cProfile
import json
import os
import pstats
import sys
import threading
from pathlib import Path
from typing import Any

_profiles: list[cProfile.Profile] = []


def profile_here(*_: Any) -> None:
    """As the profile function of a new thread it puts a profiler in its own place."""
    profile = cProfile.Profile()
    _profiles.append(profile)
    profile.enable()


def forget() -> None:
    """What went before, such as what was imported and the first connections."""
    for profile in _profiles:
        profile.clear()


def emit(count: int) -> None:
    from benchmarks.shop import TEXT, emitter

    for _ in range(3):
        emitter.emit("order.placed", 0, TEXT)
    forget()
    for number in range(count):
        emitter.emit("order.placed", number, TEXT)


def many(count: int) -> None:
    from benchmarks.shop import TEXT, emitter

    emissions = [emitter.prepare("order.placed", number, TEXT) for number in range(1000)]
    for _ in range(2):
        emitter.emit_many(emissions)
    forget()
    for _ in range(0, count, len(emissions)):
        emitter.emit_many(emissions)


def work(count: int) -> None:
    """A solo worker, which ends by itself after so many emissions."""
    from celery.worker import state

    from benchmarks import shop
    from pyventus import EventLinker

    left = count

    def stop_at_last(number: int, text: str) -> None:
        nonlocal left
        if left == count:
            forget()
        left -= 1
        if left == 0:
            state.should_stop = 0

    EventLinker.remove_all()
    EventLinker.subscribe("order.placed", event_callback=stop_at_last, name="note")
    shop.app.worker_main(
        [
            "worker", "-P", "solo", "-Q", shop.queue.name, "-l", "ERROR",
            "--without-mingle", "--without-gossip", "--without-heartbeat",
        ]
    )  # fmt: skip


def main(what: str, count: int, path: Path) -> None:
    import benchmarks.shop  # noqa: F401 - so that importing is not measured

    threading.setprofile(profile_here)
    profile_here()
    with contextlib.suppress(SystemExit):
        {"emit": emit, "many": many, "work": work}[what](count)
    _profiles[0].disable()
    _write(path)
    os._exit(0)


def _write(path: Path) -> None:
    stats = pstats.Stats(_profiles[0])
    for profile in _profiles[1:]:
        profile.create_stats()
        if profile.stats:  # type: ignore[attr-defined]
            stats.add(profile)
    rows = [
        [file, name, calls, own, total]
        for (file, _, name), (_, calls, own, total, _) in stats.stats.items()  # type: ignore[attr-defined]
    ]
    path.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

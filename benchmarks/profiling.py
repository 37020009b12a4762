"""Where the time of an emit, of one of many, and of an emission in a worker, goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from benchmarks import features
from benchmarks.measure import ROOT, Bench, ours, say

COUNT = 3_000
SHOWN = 15
PACKAGES = ("pyventus", "celery", "kombu", "redis", "amqp", "vine", "billiard", "written in C")

# What waits for the other side, asleep or looking again and again.
WAITS = (
    "method 'acquire' of",
    "method 'poll' of",
    "select.epoll",
    "method 'recv'",
    "time.sleep",
    "_wait_for_tstate",
    "SimpleQueue",
)


def profiles(bench: Bench) -> None:
    """Each under cProfile, which makes calls dearer than they are: the order counts, not the microseconds."""
    env = {**os.environ, **bench.env(BENCH_BROKER=features.redis_url(bench.redis_url))}
    for what in ("emit", "many", "work"):
        path = bench.folder / f"{what}.json"
        subprocess.run(
            ours("profiled", what, str(COUNT), str(path)), cwd=ROOT, env=env, check=True, capture_output=True
        )
        rows = [row for row in json.loads(path.read_text()) if not any(wait in row[1] for wait in WAITS)]
        bench.profiles[what] = {"functions": _top(rows), "packages": _packages(rows)}
        say(f"profile of {what}: {bench.profiles[what]['packages']}")
    bench.redis.flushdb()


Row = tuple[str, str, int, float, float]


def _top(rows: list[Row]) -> list[list[str | float]]:
    """Function, its calls, and its share of the time, for one emission."""
    total = sum(own for _, _, _, own, _ in rows)
    top = sorted(rows, key=lambda row: -row[3])[:SHOWN]
    return [[_label(file, name), round(calls / COUNT, 1), own / total] for file, name, calls, own, _ in top]


def _packages(rows: list[Row]) -> dict[str, float]:
    """The share of each package; what is written in C has none of its own."""
    shares: dict[str, float] = {}
    total = sum(own for _, _, _, own, _ in rows)
    for file, name, _, own, _ in rows:
        package = _label(file, name).partition(":")[0].partition(".")[0] if file != "~" else "written in C"
        package = package if package in PACKAGES else "Python's own and others"
        shares[package] = shares.get(package, 0.0) + own / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _label(file: str, name: str) -> str:
    if file == "~":
        # Of C, without addresses.
        return re.sub(r" at 0x[0-9a-f]+", "", name)
    parts = Path(file).with_suffix("").parts
    for root in ("site-packages", "src", "lib"):
        if root in parts:
            parts = parts[len(parts) - 1 - parts[::-1].index(root) + 1 :]
            break
    return f"{'.'.join(part for part in parts if not part.startswith('python3'))}:{name}"

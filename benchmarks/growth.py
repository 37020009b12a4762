"""How the cost of an emission grows with what there is more of."""

from __future__ import annotations

import os
import subprocess

from benchmarks import features
from benchmarks.measure import ROOT, Bench, Snapshot, celery_worker, ours, running, say, senders, wait_until_handled
from benchmarks.oracle import Times
from benchmarks.sections import QUEUES

DEPTHS = (0, 1_000, 10_000, 100_000, 1_000_000)
WORKERS = (1, 2, 4, 8)
BYTES = (100, 1_000, 10_000, 100_000, 200_000)
DRAINED = 8_000
AT_DEPTH = 1_000


def growth(bench: Bench) -> None:
    for what in ("others", "async", "sync", "linking", "payload"):
        _in_one_process(bench, what)
    _emit_by_size(bench)
    _by_depth(bench)
    _by_workers(bench)


def _note(bench: Bench, what: str, step: int, value: float) -> None:
    bench.add(f"growth: {what}", str(step), value)
    say(f"growth: {what}: {step:,}: {value:,.4g}")


def _in_one_process(bench: Bench, what: str) -> None:
    env = {**os.environ, **bench.env()}
    done = subprocess.run(ours("growing", what), cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        step, value = line.split()
        _note(bench, what, int(step), float(value))


def _emit_by_size(bench: Bench) -> None:
    """Microseconds of an emit on Redis."""
    commands = {str(size): (ours("emitting", "emit"), bench.env(BENCH_BYTES=str(size))) for size in BYTES}
    with senders(commands) as started:
        for _ in range(3):
            for size, sender in started.items():
                _note(bench, "emit by size", int(size), 1e6 / sender.rate(0.5))
                bench.redis.flushdb()


def _by_depth(bench: Bench) -> None:
    """Microseconds of an emit, and of a message in a worker, while so many messages wait behind them."""
    env = bench.env(BENCH_BROKER=features.redis_url(bench.redis_url))
    times, client = Times(bench.folder / "times", AT_DEPTH), bench.redis
    client.flushdb()
    subprocess.run(
        ours("filling", "emit", "order.placed", str(AT_DEPTH)), cwd=ROOT, env={**os.environ, **env}, check=True
    )
    first, queue = Snapshot(client), QUEUES["ours"]
    message = client.lindex(queue, 0)
    assert isinstance(message, bytes)
    for depth in DEPTHS:
        first.restore()
        for _ in range(depth // 1_000):
            client.lpush(queue, *[message] * 1_000)
        with senders({"emit": (ours("emitting", "emit"), env)}) as started:
            _note(bench, "emit by depth", depth, 1e6 / started["emit"].rate(1.0))
        times.reset()
        command = celery_worker(queue, pool="solo")
        with running([command], env, bench.folder / "worker.log") as processes:
            wait_until_handled(times, AT_DEPTH, processes)
        _note(bench, "drain by depth", depth, times.seconds(AT_DEPTH) / AT_DEPTH * 1e6)
    client.flushdb()


def _by_workers(bench: Bench) -> None:
    """Handled messages per second of so many solo worker processes."""
    times, client = Times(bench.folder / "times", DRAINED), bench.redis
    sides = {
        "pyventus": (
            QUEUES["ours"],
            ("emit", "order.placed"),
            bench.env(BENCH_BROKER=features.redis_url(bench.redis_url)),
        ),
        "celery": (QUEUES["stock"], ("send_task", "bench.note"), bench.env()),
    }
    for side, (queue, fill, env) in sides.items():
        client.flushdb()
        subprocess.run(ours("filling", *fill, str(DRAINED)), cwd=ROOT, env={**os.environ, **env}, check=True)
        full = Snapshot(client)
        for number in WORKERS:
            full.restore()
            times.reset()
            commands = [[*celery_worker(queue, pool="solo"), "-n", f"{n}@%h"] for n in range(number)]
            with running(commands, env, bench.folder / "worker.log") as processes:
                wait_until_handled(times, DRAINED, processes)
            _note(bench, f"drain by workers, {side}", number, DRAINED / times.seconds(DRAINED))
    client.flushdb()

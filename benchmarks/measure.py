"""Processes beside one another, measured in turns, so that what a noisy machine does meanwhile meets them all alike."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.oracle import VARIABLE, Times
from tests.workers import Process

ROOT = Path(__file__).parents[1]
DEADLINE = 60.0

#: Measured values by side, one for each round.
Rounds = dict[str, list[float]]


@dataclass
class Bench:
    """What the sections share: the brokers, a folder, and where progress is told."""

    redis_url: str
    amqp_url: str | None
    folder: Path
    rounds: int
    is_quick: bool
    samples: dict[str, Rounds] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis_url)

    def env(self, **more: str) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT), "BENCH_BROKER": self.redis_url, VARIABLE: str(self.folder / "times"), **more}

    def add(self, section: str, side: str, value: float) -> None:
        self.samples.setdefault(section, {}).setdefault(side, []).append(value)

    def turns(self, section: str, sides: Mapping[str, Callable[[], float]], rounds: int | None = None) -> None:
        """Measure each side once in each round, in an order that changes from round to round."""
        names = list(sides)
        for turn in range(rounds or self.rounds):
            for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                value = sides[name]()
                self.add(section, name, value)
                say(f"{section}: {name}: {value:,.4g}")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


# -- Processes that send on demand --------------------------------------------------------------------------------


class Sender:
    """A process of `benchmarks.emitting`, or of a peer's own that speaks as it does."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: str) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{self._process.args!r} ended with {self._process.wait()}"
        return [float(part) for part in answer.split()]

    def rate(self, seconds: float) -> float:
        """Messages per second."""
        sent, passed, _ = self.ask(str(seconds))
        return sent / passed

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def senders(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> Iterator[dict[str, Sender]]:
    with contextlib.ExitStack() as stack:
        started: dict[str, Sender] = {}
        for name, (command, env) in commands.items():
            started[name] = Sender(command, env)
            stack.callback(started[name].close)
        yield started


def ours(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


# -- Workers ------------------------------------------------------------------------------------------------------


def celery_worker(*queues: str, pool: str, concurrency: int = 1) -> list[str]:
    # That pool is chosen in the app's configuration, which -P would overrule.
    chosen = [] if pool == "asyncio" else ["-P", pool]
    options = [*chosen, "-c", str(concurrency), "-Q", ",".join(queues), "-l", "ERROR"]
    return [
        sys.executable, "-m", "celery", "-A", "benchmarks.shop", "worker", *options,
        "--without-mingle", "--without-gossip", "--without-heartbeat",
    ]  # fmt: skip


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]], env: Mapping[str, str], log: Path) -> Iterator[list[Process]]:
    """Worker processes, none of which is left when the block ends."""
    processes = [Process(command, cwd=ROOT, log=log, env=env) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def wait_until_handled(times: Times, count: int, processes: Sequence[Process]) -> None:
    """Wait until each of ``count`` messages has been handled."""
    end = time.monotonic() + DEADLINE
    while not times.moments[count - 1] or times.missing(count):
        ended = [process for process in processes if process.process.poll() is not None]
        if ended or time.monotonic() > end:
            raise AssertionError(f"{times.missing(count)} of {count} were not handled:\n{processes[0].log()[-3000:]}")
        time.sleep(0.02)


def memory(pid: int) -> float:
    """Kilobytes of memory that a process holds."""
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)  # noqa: S607
    return float(answer.stdout)


# -- Full queues ----------------------------------------------------------------------------------------------------


class Snapshot:
    """All that a Redis holds, to be put there again: what was filled once is drained in each round."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        keys: Any = client.keys("*")
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.dump(key)
                pipeline.pttl(key)
            values = pipeline.execute()
        self._kept = [(key, max(0, values[2 * n + 1]), values[2 * n]) for n, key in enumerate(keys)]

    def restore(self) -> None:
        self._client.flushdb()
        with self._client.pipeline(transaction=False) as pipeline:
            for key, lives, value in self._kept:
                pipeline.restore(key, lives, value)
            pipeline.execute()

"""Workers that are ended in the middle of a load with retries: they end, and nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import RabbitMQ
from tests.chaos import IS_LONG, times
from tests.chaos.kill_points import Lane
from tests.chaos.oracle import read
from tests.functional.apps.support import wait_until

EMISSIONS = times(6, 60)
CONCURRENCY = {"prefork": 2, "threads": 4, "solo": 1, "gevent": 4, "asyncio": 10}
END_SECONDS = times(30, 60)
LOAD_SECONDS = times(60, 600)

SOFT = {"worker_soft_shutdown_timeout": 1.0, "worker_enable_soft_shutdown_on_idle": True}
#: Signal and settings of each way to end a worker.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "warm": (signal.SIGTERM, {}),
    "soft": (signal.SIGQUIT, SOFT),
    "cold": (signal.SIGQUIT, {}),
}

SHORT = {
    ("redis", "threads", "warm"),
    ("redis", "prefork", "soft"),
    ("amqp", "prefork", "cold"),
    ("own", "threads", "cold"),
    ("own", "asyncio", "warm"),
}
LONG = {(broker, pool, way) for broker in ("redis", "own", "amqp") for pool in CONCURRENCY for way in WAYS}
ENDS = sorted(LONG if IS_LONG else SHORT)

pytestmark = pytest.mark.timeout(times(240, 900))


def lane_of(broker: str, request: pytest.FixtureRequest, folder: Path, **options: Any) -> Lane:
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    lane = Lane(request.getfixturevalue(f"{broker}_url"), folder, **options)
    request.addfinalizer(lambda: lane.clean(rabbitmq))
    return lane


def load(lane: Lane) -> None:
    for _ in range(EMISSIONS):
        for event in ("Slow", "Retried"):
            lane.emitter.send(lane.prepare(event))


def effects(lane: Lane) -> int:
    return sum(line[0] == "effect" for line in read(lane.oracle.file))


def is_over(lane: Lane) -> Callable[[], bool]:
    return lambda: not lane.oracle.missing() and not lane.oracle.unacknowledged() and not lane.waiting()


@pytest.mark.parametrize(("broker", "pool", "way"), ENDS, ids=map("-".join, ENDS))
def test_a_worker_that_is_ended(
    broker: str, pool: str, way: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What runs ends at a warm end, async handlers among it, and comes back at a cold one."""
    number, settings = WAYS[way]
    lane = lane_of(broker, request, tmp_path, pool=pool, concurrency=CONCURRENCY[pool], settings=settings)
    with lane.plain_worker() as process:
        load(lane)
        wait_until(lambda: effects(lane) >= 3, "some effects")
        process.signal(number)
        process.wait(END_SECONDS)
    before = effects(lane)
    lane.pool, lane.concurrency = "threads", 10
    with lane.worker():
        wait_until(is_over(lane), "an end", LOAD_SECONDS)
    counts = lane.oracle.counts(lane.oracle.expected)
    print(f"{broker} {pool} {way}: {before} effects before the end, {counts}")
    assert (counts.lost, counts.unexpected) == (0, 0)
    # Celery 5.7's prefork pool discards what a child has begun when the main process has not read yet that it has.
    allowed = CONCURRENCY[pool] if pool == "prefork" else 0
    assert counts.duplicated <= 2 * allowed or way != "warm"


REPLACED = [("--max-tasks-per-child", "2"), ("--max-memory-per-child", "1000")]


@pytest.mark.parametrize("options", REPLACED if IS_LONG else REPLACED[:1], ids=lambda options: options[0])
@pytest.mark.parametrize("broker", ["redis", "own", "amqp"] if IS_LONG else ["amqp"])
def test_children_that_are_replaced(
    broker: str, options: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """After so many tasks, or with so much memory; each effect happens once."""
    lane = lane_of(broker, request, tmp_path, pool="prefork", concurrency=2)
    with lane.plain_worker(*options) as process:
        load(lane)
        wait_until(is_over(lane), "an end", LOAD_SECONDS)
        process.stop()
    counts = lane.oracle.counts(lane.oracle.expected)
    print(f"{broker} {options}: {counts}")
    assert (counts.lost, counts.duplicated, counts.unexpected) == (0, 0, 0)

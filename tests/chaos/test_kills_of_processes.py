"""Children of prefork and whole solo workers that are killed at exact calls, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import RabbitMQ, Valkey
from tests.chaos import IS_LONG, times
from tests.chaos.kill_points import ANYWHERE, WITH_A_LEDGER, Lane, LedgerKind, report

EACH = times(1, 5)
POINTS = {**ANYWHERE, "fetched": "Order"}

pytestmark = pytest.mark.timeout(times(300, 1800))

# Each broker, each ledger and each of who is killed once; all of them in the long run.
SHORT = {("redis", "none", "child"), ("amqp", "sqlite", "child"), ("amqp", "none", "solo"), ("amqp", "none", "main")}
LONG = {
    (b, k, w) for b in ("redis", "own", "amqp") for k in ("none", "redis", "sqlite") for w in ("child", "main", "solo")
}
LANES = sorted(LONG if IS_LONG else SHORT)

# The main process acknowledges, and receives; it does not die of its children.
IN_MAIN = ("fetched", "before-acknowledging", "after-acknowledging")


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey(appendonly="yes", appendfsync="always") as server:
        yield server


def points_of(lane: Lane, victim: str) -> dict[str, str]:
    points = {**POINTS, **(WITH_A_LEDGER if lane.ledger != "none" else {})}
    return points if victim == "solo" else {point: event for point, event in points.items() if point not in IN_MAIN}


@pytest.mark.parametrize(("broker", "ledger", "victim"), LANES, ids=map("-".join, LANES))
def test_killed_one_by_one(
    broker: str, ledger: LedgerKind, victim: str, request: pytest.FixtureRequest, valkey: Valkey, tmp_path: Path
) -> None:
    """Also the main process of prefork while its child is at the point, and goes on.

    One after the other where a neighbour would be killed elsewhere; and on Redis, where Celery's own transport loses
    what is on its way to a worker that is killed.
    """
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    with valkey.client() as client:
        client.flushall()
    lane = Lane(
        {"redis": valkey.url, "own": f"pyventus-{valkey.url}", "amqp": rabbitmq.url}[broker],
        tmp_path,
        ledger,
        valkey.url if ledger == "redis" else "",
        pool="solo" if victim == "solo" else "prefork",
        concurrency=1 if victim == "solo" else 3,
        who="main" if victim == "main" else "process",
    )
    points = points_of(lane, victim)
    is_alone = victim == "main" or (broker == "redis" and victim == "solo")
    with lane.worker() as process:
        for point, event in points.items() if is_alone else ():
            for _ in range(EACH):
                lane.kill_each({point: event}, 1)
                lane.wait_for_all(process)
        if not is_alone:
            lane.kill_each(points, EACH)
            lane.wait_for_all(process)
    lane.finish()
    counts = lane.counts()
    print(report(request.node.name, counts))
    for point, count in counts.items():
        assert (count.killed, count.lost, count.unexpected) == (EACH, 0, 0), point
        assert count.again == 0 or ledger == "none", point
    if broker == "amqp":
        lane.clean(rabbitmq)

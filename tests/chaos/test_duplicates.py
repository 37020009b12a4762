"""Messages that are delivered many times, to workers side by side: with a ledger each effect happens once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import RabbitMQ
from tests.chaos import times
from tests.chaos.kill_points import Lane, LedgerKind
from tests.chaos.oracle import read
from tests.functional.apps.support import wait_until

EMISSIONS = times(50, 500)
DELIVERIES = 20
SECONDS = times(100, 1800)


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize(
    ("broker", "ledger", "event"),
    [("redis", "redis", "Order"), ("amqp", "sqlite", "Shared")],
)
def test_each_effect_once(
    broker: str, ledger: LedgerKind, event: str, redis_url: str, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    url = redis_url if broker == "redis" else rabbitmq.url
    # Long enough for a busy machine, and not for much longer than its messages wait for one that runs elsewhere.
    lane = Lane(url, tmp_path, ledger, redis_url, concurrency=10, lease=5)
    emissions = [lane.prepare(event) for _ in range(EMISSIONS)]
    with lane.worker(), lane.worker():
        for emission in emissions:
            for _ in range(DELIVERIES):
                lane.emitter.send(emission)
        wait_until(lambda: not lane.oracle.unacknowledged() and not lane.waiting(), "an end", SECONDS)
    while lane.waiting():
        with lane.worker():
            wait_until(lambda: not lane.oracle.unacknowledged() and not lane.waiting(), "an end", SECONDS)
    counts = lane.oracle.counts(lane.oracle.expected, elsewhere=lane.elsewhere())
    received = [line for line in read(lane.oracle.file) if line[0] == "received"]
    print(f"{broker}-{ledger}: {len(received)} deliveries, {counts}")
    assert len(received) >= EMISSIONS * DELIVERIES
    assert (counts.lost, counts.duplicated, counts.unexpected, counts.again) == (0, 0, 0, 0)
    lane.clean(rabbitmq)

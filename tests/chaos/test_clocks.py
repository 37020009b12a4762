"""Workers whose clocks are a day wrong: nothing is too old before its time, and leases are not theirs to count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pyventus.emission import Emission
from tests.chaos import times
from tests.chaos.kill_points import Lane
from tests.chaos.oracle import read
from tests.functional.apps.support import wait_until

EMISSIONS = times(10, 100)
DELIVERIES = 10
# A day, less what a test takes.
ALMOST_A_DAY = 86_400 - 1_800
# As old as a queue takes; who does not look at the right clock has a day of tolerance.
OLD = timedelta(days=7)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("clock", [ALMOST_A_DAY, -ALMOST_A_DAY], ids=["ahead", "behind"])
def test_a_wrong_clock(clock: float, redis_url: str, tmp_path: Path) -> None:
    """Retries come by the clock of the worker that runs them; a ledger has its own, whoever else works there."""
    lane = Lane(redis_url, tmp_path, "redis", redis_url, concurrency=10, lease=2, clock=clock)
    long_ago = datetime.now(UTC) - OLD
    with lane.worker() as wrong:
        assert f"{datetime.now(UTC) + timedelta(seconds=clock):%Y-%m-%d}" in wrong.log(), "the clock is not wrong"
        for _ in range(EMISSIONS):
            lane.emitter.send(replace(lane.prepare("Retried"), timestamp=long_ago))
        wait_until(_is_over(lane), "the end of what was retried", 60)
        lane.clock = 0
        emissions: list[Emission] = [lane.prepare("Order") for _ in range(EMISSIONS)]
        with lane.worker():
            deliveries = _acknowledged(lane) + EMISSIONS * DELIVERIES
            for emission in emissions:
                for _ in range(DELIVERIES):
                    lane.emitter.send(emission)
            # A copy of what another one runs has a moment by the clock of the worker that made it, and may wait for a
            # day in the other.
            wait_until(lambda: not lane.waiting() and _acknowledged(lane) >= deliveries, "an end", 60)
    counts = lane.oracle.counts(lane.oracle.expected, elsewhere=lane.elsewhere())
    print(counts)
    assert (counts.lost, counts.duplicated, counts.unexpected, counts.again) == (0, 0, 0, 0)


def _is_over(lane: Lane) -> Callable[[], bool]:
    return lambda: not lane.oracle.missing() and not lane.oracle.unacknowledged() and not lane.waiting()


def _acknowledged(lane: Lane) -> int:
    return sum(line[0] == "acknowledged" for line in read(lane.oracle.file))

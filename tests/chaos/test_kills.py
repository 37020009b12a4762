"""Worker processes that are killed at exact calls: nothing is lost, and with a ledger nothing that is done runs again.

"Together" many emissions, each at a point of its own, are in one process when it is killed; "each" kills it once for
each emission.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.brokers import RabbitMQ, Valkey
from tests.chaos import times
from tests.chaos.kill_points import (
    ANYWHERE,
    IN_A_TRANSACTION,
    RECORDED,
    SPLITTING,
    WITH_A_LEDGER,
    Lane,
    LedgerKind,
    report,
    total,
)
from tests.workers import Process

# Five emissions for each point, twenty in the long run, in more deaths.
ROUNDS = times(1, 4)
EACH = 5
LANES_AT_ONCE = 3
# They wait for one another.
SECONDS = times(150, 3000)

pytestmark = pytest.mark.timeout(2 * SECONDS)

LEDGERS: tuple[LedgerKind, ...] = ("none", "redis", "sqlite")
LANES = [(broker, ledger) for broker in ("redis", "own", "amqp") for ledger in LEDGERS]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """One that keeps what it has answered for."""
    with Valkey(appendonly="yes", appendfsync="always") as server:
        yield server


def run(lane: Lane) -> Lane:
    """Kill at all points that the lane has."""
    points = {**ANYWHERE, **(WITH_A_LEDGER if lane.ledger != "none" else {})}
    points |= RECORDED if lane.ledger == "sqlite" else {}
    with lane.worker() as process:
        for _ in range(ROUNDS):
            lane.kill_together(points, EACH)
            lane.wait_for_all(process)
            lane.kill_together(SPLITTING, EACH, suspect=True)
            lane.wait_for_all(process)
        if lane.ledger == "sqlite":
            kill_in_transactions(lane, process)
    lane.finish()
    return lane


def kill_in_transactions(lane: Lane, process: Process) -> None:
    """Kill the process once for each emission; on Redis one after the other.

    Celery's own transport there loses what is on its way from the server to a worker that is killed meanwhile.
    """
    if not lane.url.startswith("redis"):
        lane.kill_each(IN_A_TRANSACTION, EACH * ROUNDS)
        lane.wait_for_all(process)
        return
    for _ in range(times(1, EACH * ROUNDS)):
        for point in IN_A_TRANSACTION:
            lane.kill_each({point: "Shared"}, 1)
            lane.wait_for_all(process)


@pytest.fixture(scope="module")
def lanes(
    request: pytest.FixtureRequest, valkey: Valkey, rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Lane]]]:
    """Those that are asked for, side by side: they wait most of their time, for leases among others."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("lanes")
    made = {}
    for number, (broker, ledger) in enumerate(LANES):
        # A database for each: what is restored there is all that a dead worker had, and nobody else's.
        database = valkey.url.replace("/0", f"/{number}")
        url = {"redis": database, "own": f"pyventus-{database}", "amqp": rabbitmq.url}[broker]
        name = f"{broker}-{ledger}"
        made[name] = Lane(url, folder / name, ledger, database if ledger == "redis" else "")
    with ThreadPoolExecutor(LANES_AT_ONCE) as executor:
        yield {name: executor.submit(run, lane) for name, lane in made.items() if name in asked}
    for lane in made.values():
        if lane.url == rabbitmq.url:
            lane.clean(rabbitmq)


@pytest.mark.parametrize("name", ["-".join(lane) for lane in LANES])
def test_killed_at_each_point(name: str, lanes: dict[str, Future[Lane]]) -> None:
    """Lost: none. Started again though done: none, if there is a ledger."""
    lane = lanes[name].result(SECONDS)
    counts = lane.counts()
    print(report(name, counts))
    for point, count in counts.items():
        assert (count.killed, count.lost, count.unexpected) == (count.emissions, 0, 0), point
        assert count.again == 0 or lane.ledger == "none", point
        assert count.killed >= EACH * ROUNDS or point in IN_A_TRANSACTION, point
    if lane.ledger == "sqlite":
        shared = lane.shared()
        print(f"  {'recorded by itself':22} {shared}")
        assert (shared.lost, shared.duplicated) == (0, 0)
        assert shared.killed == shared.effects
    assert total(counts.values()).recovered > 0

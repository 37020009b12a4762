"""What takes its process with it is given up after some starts, and none of its neighbours is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyventus.emitters.celery.suspects import MAX_STARTS
from tests.brokers import Valkey
from tests.functional.apps.support import ASYNCIO, new_emitter, service, wait_until
from tests.workers import Process


def starts(file: Path) -> int:
    return len(file.read_text()) if file.exists() else 0


def counters(valkey: Valkey) -> int:
    with valkey.client() as client:
        return len(client.keys("*.starts.*"))  # type: ignore[arg-type]


def test_a_poisonous_handler_is_given_up(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """After exactly as many starts, and it stays given up if it comes back."""
    file = tmp_path / "starts"
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1) as worker:
        emission = new_emitter(broker_url, queue_name).emit("Poison", str(file))
        worker.wait_for(
            f"{emission.id} gave up because of WorkerLost", f"FAILURE of {emission.id} HandlersFailed", timeout=40
        )
        assert starts(file) == MAX_STARTS
        last = new_emitter(broker_url, queue_name).emit("Plain")
        worker.wait_for(f"Plain[{last.id}] succeeded")
        assert worker.log().count(f"{emission.id} gave up") == 1


def test_a_neighbour_in_the_same_emission_is_not_given_up(
    broker_url: str, queue_name: str, valkey: Valkey, tmp_path: Path
) -> None:
    """After the first death each of them has a message of its own; nobody counts any more those that have run."""
    file = tmp_path / "starts"
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1) as worker:
        emission = new_emitter(broker_url, queue_name).emit("PoisonInTea", str(file))
        worker.wait_for(f"{emission.id} gave up because of WorkerLost", f"{emission.id} tea", timeout=40)
        if not broker_url.startswith("amqp"):
            wait_until(lambda: counters(valkey) == 1, "the end of the neighbour's counter")
    assert starts(file) == MAX_STARTS


@pytest.mark.parametrize("pool", [{"pool": "threads"}, ASYNCIO], ids=["threads", "asyncio"])
def test_neighbours_in_the_same_process_are_not_given_up(
    pool: dict[str, Any], amqp_url: str, queue_name: str, tmp_path: Path
) -> None:
    """In one process they die with it, again and again if they run with it."""
    file = tmp_path / "starts"
    emitter = new_emitter(amqp_url, queue_name)
    poison = emitter.emit("Poison", str(file))
    good = [emitter.emit("Tea", str(file)) for _ in range(20)]
    said = ""
    for _ in range(MAX_STARTS + 1):
        with service(amqp_url, queue_name, tmp_path, concurrency=10, **pool) as worker:

            def is_over(before: str = said, worker: Process = worker) -> bool:
                now = before + worker.log()
                return worker.process.poll() is not None or all(
                    text in now for text in (f"{poison.id} gave up", *(f"{each.id} tea" for each in good))
                )

            wait_until(is_over, "the end of the worker, or of all that was emitted", 40)
        said += worker.log()
    assert starts(file) == MAX_STARTS
    assert f"{poison.id} gave up because of WorkerLost" in said
    assert said.count("gave up") == 1
    assert [emission.id for emission in good if f"{emission.id} tea" not in said] == []

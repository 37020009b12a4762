"""What happens to a message when its process, its time or its queue's lifespan fails it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import FreezableProxy, Valkey
from tests.functional.apps.support import ASYNCIO, new_emitter, service, wait_until
from tests.workers import Process

NOT_OURS = {
    "acks_late": False,
    "acks_on_failure_or_timeout": False,
    "acks_on_failure": False,
    "acks_on_timeout": False,
    "reject_on_worker_lost": False,
    "retry_on_worker_lost": True,
    "ignore_result": False,
    "store_errors_even_if_ignored": True,
    "track_started": True,
}


def hostile_settings(queue: str, result_backend: str) -> dict[str, Any]:
    """Settings and annotations against all that the task of a queue relies on."""
    return {
        **{f"task_{name}": value for name, value in NOT_OURS.items()},
        "task_annotations": {"*": NOT_OURS, f"pyventus.{queue}": NOT_OURS},
        "result_backend": result_backend,
    }


# -- A process that is killed, against an app that does not mind -------------------------------------------------------


def test_killed_child_has_its_message_delivered_again(
    broker_url: str, redis_url: str, queue_name: str, valkey: Valkey, tmp_path: Path
) -> None:
    """In spite of the app's defaults and annotations; and failures and timeouts store no results, however asked for."""
    settings = hostile_settings(queue_name, redis_url)
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1, settings=settings) as worker:
        emitter = new_emitter(broker_url, queue_name)
        killed = emitter.emit("Killed", str(tmp_path / "killed"))
        worker.wait_for(f"{killed.id} is killed", f"{killed.id} ran again")
        failed = emitter.emit("Fails", "x")
        worker.wait_for(f"Killed[{killed.id}] succeeded", f"FAILURE of {failed.id} HandlersFailed")
        last = emitter.emit("Plain")
        worker.wait_for(f"Plain[{last.id}] succeeded")
    log = worker.log()
    assert log.count(f"{killed.id} ran again") == 1
    assert log.count(f"Fails[{failed.id}] received") == 1, "a failure was not acknowledged"
    with valkey.client() as client:
        assert client.keys("celery-task-meta-*") == []


# -- Time limits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def limited(broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A worker whose app has time limits."""
    settings = {"task_soft_time_limit": 1, "task_time_limit": 3}
    folder = tmp_path_factory.mktemp("limited")
    with service(broker.url, "limited", folder, pool="prefork", concurrency=1, settings=settings) as worker:
        yield worker


def test_soft_time_limit_fails_the_handlers_that_it_interrupts(limited: Process, broker: Valkey) -> None:
    """An async one that it cancels; one that had ended has succeeded."""
    emitter = new_emitter(broker.url, "limited")
    emission = emitter.emit("Limited")
    limited.wait_for(f"{emission.id} was cancelled", f"FAILURE of {emission.id} HandlersFailed")
    next_one = emitter.emit("Plain")
    log = limited.wait_for(f"Plain[{next_one.id}] succeeded")
    (line,) = [line for line in log.splitlines() if emission.id in line and "ERROR" in line]
    assert "Handler limited failed" in line
    assert "SoftTimeLimitExceeded" in line
    assert log.count(f"{emission.id} ended before the limit") == 1
    assert log.count(f"Limited[{emission.id}] received") == 1


def test_soft_time_limit_in_a_sync_handler_cancels_the_async_ones(limited: Process, broker: Valkey) -> None:
    """Celery raises it in the task's thread, where a sync handler runs and could keep it to itself."""
    emission = new_emitter(broker.url, "limited").emit("LimitedToo")
    limited.wait_for(
        f"Handler limited-too-sync failed on emission {emission.id}",
        f"Handler limited-too-async failed on emission {emission.id}",
        f"{emission.id} was cancelled",
        f"FAILURE of {emission.id} HandlersFailed",
    )


def test_hard_time_limit_does_not_lose_the_message(limited: Process, broker: Valkey, tmp_path: Path) -> None:
    emission = new_emitter(broker.url, "limited").emit("Stubborn", str(tmp_path / "first"))
    limited.wait_for(f"{emission.id} ran first", "Hard time limit (3s) exceeded", f"{emission.id} ran again")
    limited.wait_for(f"Stubborn[{emission.id}] succeeded")


# -- A cold end -------------------------------------------------------------------------------------------------------


def test_cold_shutdown_leaves_the_message_to_the_next_worker(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    file = tmp_path / "go"
    emission = new_emitter(broker_url, queue_name).emit("WaitsFor", str(file))
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1) as first:
        first.wait_for(f"{emission.id} waits", f"{emission.id} waits, too")
        first.signal(signal.SIGQUIT)
        first.wait()
    file.touch()
    with service(broker_url, queue_name, tmp_path) as second:
        second.wait_for(f"WaitsFor[{emission.id}] succeeded")
    assert f"WaitsFor[{emission.id}] succeeded" not in first.log()


# -- Pyventus' own errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "pool"), [("redis_url", {"pool": "prefork"}), ("amqp_url", {"pool": "threads"}), ("redis_url", ASYNCIO)]
)
def test_failing_lifespan_sends_the_emission_back(
    broker: str, pool: dict[str, Any], queue_name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It runs, once, when the lifespan works."""
    broker_url: str = request.getfixturevalue(broker)
    broken = tmp_path / "broken"
    broken.touch()
    options = {**pool, "env": {**pool.get("env", {}), "TEST_FAILS": str(broken)}}
    with service(broker_url, queue_name, tmp_path, concurrency=1, **options) as worker:
        emission = new_emitter(broker_url, queue_name).emit("Plain")
        worker.wait_for(
            "lifespan fails", f"Emission {emission.id} of 'Plain' could not be run and is sent back for 5 s"
        )
        worker.wait_for(f"Plain[{emission.id}] received", count=2)
        broken.unlink()
        worker.wait_for(f"{emission.id} plain", f"Plain[{emission.id}] succeeded")
        last = new_emitter(broker_url, queue_name).emit("Plain")
        worker.wait_for(f"Plain[{last.id}] succeeded")
    assert worker.log().count(f"{emission.id} plain") == 1


@pytest.mark.parametrize("pool", [{"pool": "prefork"}, ASYNCIO], ids=["prefork", "asyncio"])
def test_soft_time_limit_in_the_lifespan_sends_the_emission_back(
    pool: dict[str, Any], broker: Valkey, tmp_path: Path
) -> None:
    """No handler has had its turn yet; the lifespan goes on opening meanwhile."""
    options = {**pool, "settings": {"task_soft_time_limit": 1}, "env": {**pool.get("env", {}), "TEST_SLOW": "2"}}
    queue = f"slow-{pool['pool']}"
    with service(broker.url, queue, tmp_path, concurrency=1, **options) as worker:
        emission = new_emitter(broker.url, queue).emit("Plain")
        worker.wait_for(f"Emission {emission.id} of 'Plain' could not be run and is sent back", "NotReady")
        worker.wait_for(f"{emission.id} plain", f"Plain[{emission.id}] succeeded")
    assert worker.log().count("lifespan entered") == 1


def test_message_stays_if_it_cannot_be_sent_back(redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """The worker can read from its broker and not write to it."""
    broken = tmp_path / "broken"
    broken.touch()
    with FreezableProxy(redis_url) as proxy:
        settings = {"broker_read_url": redis_url, "broker_write_url": proxy.proxied_url}
        options: dict[str, Any] = {"settings": settings, "env": {"TEST_FAILS": str(broken)}}
        with service(redis_url, queue_name, tmp_path, "--without-heartbeat", **options) as worker:
            proxy.freeze()
            emission = new_emitter(redis_url, queue_name).emit("Plain")
            worker.wait_for(f"Emission {emission.id} of 'Plain' goes back to the queue")
            worker.wait_for(f"Plain[{emission.id}] received", count=2)
            broken.unlink()
            # A message that comes back is one that may have killed its process, and its starts are counted.
            proxy.thaw()
            worker.wait_for(f"{emission.id} plain", f"Plain[{emission.id}] succeeded", timeout=40)


def test_sudden_end_of_a_worker_leaves_the_message_unacknowledged(
    amqp_url: str, queue_name: str, tmp_path: Path
) -> None:
    """RabbitMQ delivers again what the killed worker had; on Redis the visibility timeout does."""
    file = tmp_path / "go"
    emission = new_emitter(amqp_url, queue_name).emit("WaitsFor", str(file))
    with service(amqp_url, queue_name, tmp_path) as first:
        first.wait_for(f"{emission.id} waits")
        first.kill()
    file.touch()
    with service(amqp_url, queue_name, tmp_path) as second:
        second.wait_for(f"WaitsFor[{emission.id}] succeeded")


def test_redis_keeps_what_a_killed_worker_had(redis_url: str, queue_name: str, valkey: Valkey, tmp_path: Path) -> None:
    emission = new_emitter(redis_url, queue_name).emit("WaitsFor", str(tmp_path / "go"))
    with service(redis_url, queue_name, tmp_path) as worker:
        worker.wait_for(f"{emission.id} waits")
        worker.kill()
    with valkey.client() as client:
        wait_until(lambda: client.hlen("unacked") == 1, "the message among those that were not acknowledged")

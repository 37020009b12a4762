"""A worker process from its first emission to its end: its lifespan, its loop, and what a warm shutdown waits for."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Valkey
from tests.functional.apps.support import ASYNCIO, BARRIER, new_emitter, service
from tests.workers import Process

POOLS: dict[str, dict[str, Any]] = {
    "prefork": {"pool": "prefork", "concurrency": 2},
    "solo": {"pool": "solo"},
    "threads": {"pool": "threads", "concurrency": 4},
    "gevent": {"pool": "gevent", "concurrency": 4},
    "asyncio": {**ASYNCIO, "concurrency": 4},
}


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def entered(log: str) -> list[str]:
    return re.findall(r"lifespan entered in (\d+)", log)


def left(log: str) -> list[str]:
    return re.findall(r"lifespan left in (\d+)", log)


@pytest.mark.parametrize("pool", POOLS)
def test_warm_shutdown_finishes_what_runs_and_then_leaves_the_lifespan(
    pool: str, broker: Valkey, tmp_path: Path
) -> None:
    emitter = new_emitter(broker.url, pool)
    file = tmp_path / "go"
    with service(broker.url, pool, tmp_path, **POOLS[pool]) as worker:
        assert not entered(worker.log()), "it is entered with the first emission"
        seen = emitter.emit("State")
        worker.wait_for(f"State[{seen.id}] succeeded")
        running = emitter.emit("WaitsFor", str(file))
        worker.wait_for(f"{running.id} waits", f"{running.id} waits, too")
        worker.signal(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        file.touch()
        assert worker.wait() == 0
    log = worker.log()
    assert f"{running.id} finished" in log
    assert f"{running.id} finished, too" in log
    assert f"WaitsFor[{running.id}] succeeded" in log
    assert entered(log)
    assert sorted(left(log)) == sorted(entered(log)), "each process leaves what it entered, once"
    assert log.index("lifespan left") > log.index(f"{running.id} finished, too")
    (shown,) = re.findall(rf"{seen.id} state {{'opened': (\d+)}} process (\d+)", log)
    assert shown[0] == shown[1], "handlers see what the lifespan of their own process yielded"
    if pool != "prefork":
        assert entered(log) == [str(worker.pid)]


@pytest.mark.parametrize("event", ["WaitsFor", "HoldsOn"])
@pytest.mark.parametrize("pool", POOLS)
def test_cold_shutdown_ends_what_runs_and_sends_it_back(pool: str, event: str, broker: Valkey, tmp_path: Path) -> None:
    """Ctrl-C twice: neither lost, nor held up by handlers that do not end, sync ones among them."""
    queue = f"cold-{pool}-{event}"
    emitter = new_emitter(broker.url, queue)
    with service(broker.url, queue, tmp_path, **POOLS[pool]) as worker, broker.client() as client:
        file = tmp_path / "go"
        emission = emitter.emit(event, str(file))
        worker.wait_for(f"{emission.id} waits", f"{emission.id} waits, too")
        worker.signal(signal.SIGINT)
        worker.wait_for("Warm shutdown")
        worker.signal(signal.SIGINT)
        worker.wait_for("Restoring" if pool in ("solo", "threads", "asyncio") else "again will terminate")
        if pool == "threads":
            file.touch()  # Python waits for the threads of such a pool, with or without Pyventus.
        worker.wait()
        assert client.llen(queue) == 1


def test_a_slow_lifespan_is_outside_of_the_start_up_limit(broker: Valkey, tmp_path: Path) -> None:
    """Celery kills a child of prefork that is not up within four seconds."""
    options: dict[str, Any] = {"pool": "prefork", "concurrency": 1, "env": {"TEST_SLOW": "5"}}
    with service(broker.url, "slow", tmp_path, **options) as worker:
        first, second = (new_emitter(broker.url, "slow").emit("State") for _ in range(2))
        log = worker.wait_for(f"State[{first.id}] succeeded", f"State[{second.id}] succeeded")
    assert len(entered(log)) == 1
    assert "Timed out" not in log


def test_children_that_are_replaced_leave_their_lifespan(broker: Valkey, tmp_path: Path) -> None:
    """With max_tasks_per_child, each child has a lifespan and a loop of its own."""
    options: dict[str, Any] = {"pool": "prefork", "concurrency": 1}
    with service(broker.url, "replaced", tmp_path, "--max-tasks-per-child=1", **options) as worker:
        emitter = new_emitter(broker.url, "replaced")
        emissions = [emitter.emit("State") for _ in range(2)]
        worker.wait_for(*(f"State[{emission.id}] succeeded" for emission in emissions))
        worker.wait_for("lifespan left", count=2)
        log = worker.log()
    assert len(set(entered(log))) == 2
    assert sorted(left(log)) == sorted(entered(log))


def test_children_that_autoscaling_ends_leave_their_lifespan(broker: Valkey, tmp_path: Path) -> None:
    file = tmp_path / "go"
    env = {"AUTOSCALE_KEEPALIVE": "1"}
    with service(broker.url, "scaled", tmp_path, "--autoscale=3,1", pool="prefork", env=env) as worker:
        emitter = new_emitter(broker.url, "scaled")
        emissions = [emitter.emit("WaitsFor", str(file)) for _ in range(3)]
        worker.wait_for(*(f"{emission.id} waits" for emission in emissions))
        assert len(set(entered(worker.log()))) == 3
        file.touch()
        worker.wait_for(*(f"WaitsFor[{emission.id}] succeeded" for emission in emissions))
        worker.wait_for("lifespan left", count=2)
    log = worker.log()
    assert sorted(left(log)) == sorted(entered(log))


@pytest.fixture(scope="module", params=["threads", "gevent", "asyncio"])
def side_by_side(
    request: pytest.FixtureRequest, broker: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, str]]:
    folder = tmp_path_factory.mktemp("side")
    queue = f"side-{request.param}"
    # Kombu's default of 10 is too few for as many greenlets that acknowledge at once: the worker would reconnect.
    settings = {"broker_transport_options": {"max_connections": 100}}
    options = {**POOLS[request.param], "concurrency": 50}
    with service(broker.url, queue, folder, settings=settings, **options) as worker:
        yield worker, queue


def test_async_handlers_of_many_tasks_run_on_one_loop(side_by_side: tuple[Process, str], broker: Valkey) -> None:
    """They meet at one asyncio barrier, made by whichever comes first and kept in what the lifespan yielded."""
    worker, queue = side_by_side
    emitter = new_emitter(broker.url, queue)
    emissions = [emitter.emit("Meets") for _ in range(BARRIER)]
    worker.wait_for(*(f"{emission.id} met the others" for emission in emissions))


def test_the_loop_is_no_other_tasks(side_by_side: tuple[Process, str], broker: Valkey) -> None:
    """Sync handlers see no running loop, under gevent either, where all share one thread."""
    worker, queue = side_by_side
    emitter = new_emitter(broker.url, queue)
    emissions = [emitter.emit("Where") for _ in range(5)]
    log = worker.wait_for(*(f"Where[{emission.id}] succeeded" for emission in emissions))
    said = re.findall(r"(async|sync) on (\w+)", log)
    assert {where for kind, where in said if kind == "async"} == {"loop"}
    assert "loop" not in {where for kind, where in said if kind == "sync"}
    assert len(set(re.findall(r"on loop process \d+ loop (\d+)", log))) == 1

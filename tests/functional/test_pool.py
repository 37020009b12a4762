"""The asyncio pool: many emissions at once on one loop, each as if it were alone there, and what blocks beside it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import Valkey
from tests.functional.apps.support import ASYNCIO, ROOT, new_emitter, service, wait_until
from tests.workers import Process

POOL = ASYNCIO["env"]["CELERY_CUSTOM_WORKER_POOL"]
MANY = 300


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@contextlib.contextmanager
def pooled(url: str, queue: str, folder: Path, *args: str, **options: Any) -> Iterator[Process]:
    with service(url, queue, folder, *args, app="pooled", **{**ASYNCIO, **options}) as worker:
        yield worker


@pytest.fixture(scope="module")
def worker(broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with pooled(broker.url, "pooled", tmp_path_factory.mktemp("pooled"), "-E", concurrency=MANY) as process:
        yield process


@pytest.fixture
def emitter(worker: Process, broker: Valkey) -> CeleryEventEmitter:
    return new_emitter(broker.url, "pooled")


def app_of(emitter: CeleryEventEmitter) -> Any:
    return emitter._queues[0].app


def node(worker: Process) -> list[str]:
    """Whom remote control is to reach; other workers share its broker."""
    (name,) = re.findall(r"-n (test-\w+)@%h", worker.command)
    return [f"{name}@{socket.gethostname()}"]


def pool_of(worker: Process, emitter: CeleryEventEmitter) -> dict[str, Any]:
    """What ``celery inspect stats`` says of it."""
    (stats,) = app_of(emitter).control.inspect(node(worker), timeout=10).stats().values()
    pool: dict[str, Any] = stats["pool"]
    return pool


# -- Side by side -----------------------------------------------------------------------------------------------------


def test_each_of_many_tasks_keeps_what_is_its_own(worker: Process, emitter: CeleryEventEmitter) -> None:
    """Its context variables, its emission and Celery's request, after all have met in the middle."""
    emissions = [emitter.emit("Isolated", number, MANY) for number in range(MANY)]
    worker.wait_for(*(f"Isolated[{each.id}] succeeded" for each in emissions), timeout=40)
    log = worker.log()
    for emission in emissions:
        assert f"{emission.id} kept its own: True" in log
        assert f"{emission.id} of its own: True" in log


def test_what_blocks_holds_up_no_async_handler(worker: Process, emitter: CeleryEventEmitter, tmp_path: Path) -> None:
    """Sync handlers and tasks that are no emissions wait in threads."""
    file = tmp_path / "go"
    tasks = [app_of(emitter).send_task("tests.ordinary", [str(file)], queue="pooled") for _ in range(5)]
    sync = emitter.emit("HoldsOn", str(file))
    worker.wait_for(f"{sync.id} waits, too", *(f"{task.id} in a thread: True" for task in tasks))
    plain = emitter.emit("Plain")
    worker.wait_for(f"Plain[{plain.id}] succeeded")
    file.touch()
    worker.wait_for(f"HoldsOn[{sync.id}] succeeded", *(f"tests.ordinary[{task.id}] succeeded" for task in tasks))


def test_a_task_that_exits_ends_neither_loop_nor_worker(worker: Process, emitter: CeleryEventEmitter) -> None:
    task = app_of(emitter).send_task("tests.exits", queue="pooled")
    worker.wait_for(f"FAILURE of {task.id} WorkerLostError SystemExit(3)")
    plain = emitter.emit("Plain")
    worker.wait_for(f"Plain[{plain.id}] succeeded")


def test_sends_celerys_events(worker: Process, emitter: CeleryEventEmitter) -> None:
    seen: list[tuple[str, str]] = []
    app = app_of(emitter)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda e: seen.append((e["type"], e.get("uuid")))})

        def capture() -> None:
            with contextlib.suppress(OSError, StopIteration):
                receiver.capture(limit=None, timeout=5, wakeup=False)

        watcher = threading.Thread(target=capture, daemon=True)
        watcher.start()
        emission = emitter.emit("Plain")
        worker.wait_for(f"Plain[{emission.id}] succeeded")
        expected = {(f"task-{kind}", emission.id) for kind in ("received", "started", "succeeded")}
        wait_until(lambda: expected <= set(seen), "the events")
        receiver.should_stop = True
        watcher.join()


def test_sends_the_signal_of_a_process_as_solo_does(worker: Process) -> None:
    assert worker.log().count("process init") == 1


def test_a_handler_that_blocks_the_loop_is_named(broker: Valkey, tmp_path: Path) -> None:
    file = tmp_path / "go"
    emitter = new_emitter(broker.url, "blocked")
    with pooled(broker.url, "blocked", tmp_path, concurrency=5) as worker:
        emission = emitter.emit("Blocks", str(file))
        log = worker.wait_for("The loop is held up by handler blocks at ")
        (line,) = [line for line in log.splitlines() if "held up by" in line]
        assert "pooled.py:" in line
        file.touch()
        worker.wait_for("The loop goes on, which handler blocks held up for ", f"Blocks[{emission.id}] succeeded")
    assert worker.log().count("The loop is held up") == 1


# -- How many ---------------------------------------------------------------------------------------------------------


def test_is_chosen_in_the_configuration_too(broker: Valkey, tmp_path: Path) -> None:
    settings = {"worker_pool": POOL, "worker_concurrency": 500}
    emitter = new_emitter(broker.url, "chosen")
    with service(broker.url, "chosen", tmp_path, pool="prefork", settings=settings) as worker:
        pool = pool_of(worker, emitter)
    assert (pool["implementation"], pool["max-concurrency"]) == (POOL, 500)


def test_runs_as_many_as_the_concurrency_says(broker: Valkey, tmp_path: Path) -> None:
    """Tasks in threads among them; it grows and shrinks, and what is revoked while it waits never runs."""
    emitter, file = new_emitter(broker.url, "bounded"), tmp_path / "go"
    app = app_of(emitter)
    with pooled(broker.url, "bounded", tmp_path, concurrency=2) as worker:
        task = app.send_task("tests.ordinary", [str(file)], queue="bounded")
        first = emitter.emit("WaitsFor", str(file))
        worker.wait_for(f"{first.id} waits, too", f"{task.id} in a thread")
        second, revoked = emitter.emit("Plain"), emitter.emit("Plain")
        worker.wait_for(f"Plain[{revoked.id}] received")
        app.control.revoke(revoked.id)
        wait_until(
            lambda: (pool_of(worker, emitter)["running"], pool_of(worker, emitter)["waiting"]) == (2, 2),
            "two that wait",
        )
        assert f"{second.id} plain" not in worker.log()
        app.control.pool_grow(1, node(worker))
        worker.wait_for(f"Plain[{second.id}] succeeded", f"Discarding revoked task: Plain[{revoked.id}]")
        app.control.pool_shrink(2, node(worker))
        wait_until(lambda: pool_of(worker, emitter)["max-concurrency"] == 1, "a smaller pool")
        file.touch()
        worker.wait_for(f"WaitsFor[{first.id}] succeeded")
        last = emitter.emit("Plain")
        worker.wait_for(f"Plain[{last.id}] succeeded")
    assert f"{revoked.id} plain" not in worker.log()


def test_says_what_has_no_effect(broker: Valkey, tmp_path: Path) -> None:
    limits = ("--max-tasks-per-child=5", "--max-memory-per-child=1000000", "--time-limit=60")
    with pooled(broker.url, "limits", tmp_path, *limits, concurrency=5) as worker:
        worker.wait_for(
            "worker_max_tasks_per_child=5 has no effect in AsyncIOPool",
            "worker_max_memory_per_child=1000000 has no effect in AsyncIOPool",
            "The hard time limit of 60 s kills nothing in AsyncIOPool",
        )


def test_does_not_start_where_tasks_could_not_be_told_apart(broker: Valkey, tmp_path: Path) -> None:
    env = {
        **os.environ, **ASYNCIO["env"], "USE_FAST_LOCALS": "1", "TEST_BROKER": broker.url, "TEST_QUEUE": "fast",
        "C_FORCE_ROOT": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "celery", "-A", "tests.functional.apps.pooled", "worker", "-P", "custom"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "USE_FAST_LOCALS is set" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# -- What ends a task early -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    settings = {"task_soft_time_limit": 1, "task_time_limit": 2}
    with pooled(
        broker.url, "limited", tmp_path_factory.mktemp("limited"), concurrency=10, settings=settings
    ) as process:
        yield process


def test_soft_time_limit_cancels_async_handlers(limited: Process, broker: Valkey) -> None:
    """One that had ended has succeeded."""
    emission = new_emitter(broker.url, "limited").emit("Limited")
    limited.wait_for(
        f"{emission.id} was cancelled", f"FAILURE of {emission.id} HandlersFailed", "Soft time limit (1s) exceeded"
    )
    log = limited.log()
    (line,) = [line for line in log.splitlines() if emission.id in line and "Handler limited failed" in line]
    assert "SoftTimeLimitExceeded" in line
    assert log.count(f"{emission.id} ended before the limit") == 1
    assert log.count(f"Limited[{emission.id}] received") == 1


def test_hard_time_limit_ends_async_handlers_and_sends_the_message_back(
    limited: Process, broker: Valkey, tmp_path: Path
) -> None:
    emission = new_emitter(broker.url, "limited").emit("Clings", str(tmp_path / "first"))
    limited.wait_for(
        f"{emission.id} clings",
        f"Task {emission.id} is still running after its hard time limit of 2 s",
        f"Hard time limit (2s) exceeded for Clings[{emission.id}]",
        f"{emission.id} ran again",
        f"Clings[{emission.id}] succeeded",
    )


def test_threads_outlive_the_hard_time_limit(limited: Process, broker: Valkey, tmp_path: Path) -> None:
    """A message is held until they end, and goes back then; a task that is no emission ends as if there were none."""
    file, emitter = tmp_path / "go", new_emitter(broker.url, "limited")
    emission = emitter.emit("HoldsOn", str(file))
    task = app_of(emitter).send_task("tests.ordinary", [str(file)], queue="limited")
    limited.wait_for(
        f"Task {emission.id} is still running after its hard", f"Task {task.id} is still running after its hard"
    )
    assert limited.log().count(f"HoldsOn[{emission.id}] received") == 1
    file.touch()
    limited.wait_for(f"tests.ordinary[{task.id}] succeeded", f"HoldsOn[{emission.id}] succeeded")
    assert limited.log().count(f"HoldsOn[{emission.id}] received") == 2


def test_terminating_cancels_async_handlers_for_good(broker: Valkey, tmp_path: Path) -> None:
    """Their slots are free then; sync ones run on in theirs, and neither runs again."""
    emitter, file = new_emitter(broker.url, "terminated"), tmp_path / "go"
    control = app_of(emitter).control
    with pooled(broker.url, "terminated", tmp_path, concurrency=2) as worker, broker.client() as client:
        waits, holds = emitter.emit("Waits"), emitter.emit("HoldsOn", str(file))
        worker.wait_for(f"{waits.id} waits", f"{holds.id} waits, too", f"{holds.id} waits")
        control.revoke([waits.id, holds.id], terminate=True)
        worker.wait_for(f"{waits.id} was cancelled")
        wait_until(lambda: pool_of(worker, emitter)["running"] == 1, "a free slot")
        plain = emitter.emit("Plain")
        worker.wait_for(f"Plain[{plain.id}] succeeded")
        file.touch()
        wait_until(lambda: pool_of(worker, emitter)["running"] == 0, "the end of the threads")
        wait_until(lambda: client.hlen("unacked") == 0, "the acknowledgements")
        assert client.llen("terminated") == 0
    log = worker.log()
    assert f"FAILURE of {waits.id}" not in log
    assert f"HoldsOn[{holds.id}] succeeded" not in log
    assert f"{holds.id} finished, too" in log


def test_warm_shutdown_waits_for_what_runs(broker: Valkey, tmp_path: Path) -> None:
    """It goes on after the pool was told to stop."""
    emitter, file = new_emitter(broker.url, "warm"), tmp_path / "go"
    with pooled(broker.url, "warm", tmp_path, "-l", "DEBUG", concurrency=5) as worker:
        emission = emitter.emit("Ticks", str(file))
        worker.wait_for(f"{emission.id} ticks")
        worker.signal(signal.SIGTERM)
        log = worker.wait_for("| Worker: Stopping Pool...")
        worker.wait_for(f"{emission.id} ticks", count=log.count(f"{emission.id} ticks") + 20)
        file.touch()
        assert worker.wait() == 0
    assert f"Ticks[{emission.id}] succeeded" in worker.log()


def test_soft_shutdown_lets_end_what_ends_in_time(broker: Valkey, tmp_path: Path) -> None:
    """And sends back what does not."""
    emitter, file = new_emitter(broker.url, "soft"), tmp_path / "go"
    settings = {"worker_soft_shutdown_timeout": 2.0}
    with pooled(broker.url, "soft", tmp_path, concurrency=5, settings=settings) as worker, broker.client() as client:
        waits, ends = emitter.emit("Waits"), emitter.emit("WaitsFor", str(file))
        worker.wait_for(f"{waits.id} waits", f"{ends.id} waits, too", f"{ends.id} waits")
        worker.signal(signal.SIGQUIT)
        worker.wait_for("Initiating Soft Shutdown")
        file.touch()
        worker.wait()
        assert client.llen("soft") == 1
    log = worker.log()
    assert f"WaitsFor[{ends.id}] succeeded" in log
    assert f"{waits.id} was cancelled" in log


def test_a_killed_worker_loses_nothing(amqp_url: str, queue_name: str, tmp_path: Path) -> None:
    emitter, file = new_emitter(amqp_url, queue_name), tmp_path / "go"
    with pooled(amqp_url, queue_name, tmp_path, concurrency=20) as first:
        emissions = [emitter.emit("WaitsFor", str(file)) for _ in range(40)]
        first.wait_for(" waits, too", count=20)
        first.kill()
    file.touch()
    with pooled(amqp_url, queue_name, tmp_path, concurrency=20) as second:
        second.wait_for(*(f"WaitsFor[{each.id}] succeeded" for each in emissions), timeout=40)

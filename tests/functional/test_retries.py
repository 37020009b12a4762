"""What fails is run again, alone, from a message of its own that is stored before the first one is acknowledged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import FreezableProxy, RabbitMQ, Valkey
from tests.functional.apps.support import new_emitter, service, wait_until
from tests.workers import Process

Place = tuple[Process, CeleryEventEmitter]

QUEUE_OPTIONS = {"retry": {"max_attempts": 2, "delay": 0.05, "jitter": 0}}


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module", params=["redis", "amqp"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker on each broker, and an emitter to it."""
    folder, queue = tmp_path_factory.mktemp("retries"), f"pyventus-retries-{uuid4().hex[:12]}"
    if request.param == "redis":
        url = request.getfixturevalue("broker").url
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        url = rabbitmq.url
    with service(url, queue, folder, env={"TEST_QUEUE_OPTIONS": json.dumps(QUEUE_OPTIONS)}) as worker:
        yield worker, new_emitter(url, queue)
    if request.param == "amqp":
        rabbitmq.delete(queue)


def test_only_what_failed_runs_again(place: Place) -> None:
    """While every failure is being retried the task succeeds; each attempt is a message of its own."""
    worker, emitter = place
    emission = emitter.emit("Flaky", 3)
    log = worker.wait_for(f"{emission.id} attempt 3")
    worker.wait_for("succeeded", count=3)
    assert log.count(f"{emission.id} steady") == 1
    tasks = re.findall(rf"{emission.id} attempt \d in task (\S+)", log)
    assert tasks[0] == emission.id
    assert len(set(tasks)) == 3
    warnings = [line for line in log.splitlines() if emission.id in line and "WARNING" in line and "Handler" in line]
    assert len(warnings) == 2
    assert f"Handler flaky failed on emission {emission.id} of 'Flaky', attempt 1, and runs again in" in warnings[0]
    assert "attempt 2, and runs again in" in warnings[1]
    assert f"{emission.id} gave up" not in worker.log()
    assert f"FAILURE of {emission.id}" not in worker.log()


def test_what_finally_fails_ends_the_last_task_in_failure(place: Place) -> None:
    """And ``on_failure`` runs once."""
    worker, emitter = place
    emission = emitter.emit("Flaky", 4)
    log = worker.wait_for(f"{emission.id} gave up because of ValueError not yet", "HandlersFailed handler flaky failed")
    (last,) = re.findall(rf"{emission.id} attempt 3 in task (\S+)", log)
    log = worker.wait_for(f"FAILURE of {last} HandlersFailed handler flaky failed: ValueError: not yet")
    assert log.count(f"{emission.id} gave up") == 1
    assert f"{emission.id} attempt 4" not in log


def test_the_queue_has_a_policy_and_arguments_come_as_they_were_sent(place: Place) -> None:
    """Whatever the first attempt has done to them."""
    worker, emitter = place
    emission = emitter.emit("AsTheQueueSays", [0])
    log = worker.wait_for(f"{emission.id} gave up because of ValueError never")
    assert re.findall(rf"{emission.id} was given (.*)", log) == ["[0, 1]", "[0, 2]"]


def test_an_emission_of_the_largest_size_is_retried(place: Place) -> None:
    """The message of a retry is longer than the first, which may be as long as the queue allows."""
    worker, emitter = place
    queue = emitter._queues[0]
    emission = emitter.prepare("AsTheQueueSays", [])
    queue.max_size = len(queue.message(emission).text)
    padded = emitter.prepare("AsTheQueueSays", [0] * ((256 * 1024 - queue.max_size) // 2 - 100))
    queue.max_size = 256 * 1024
    assert len(queue.message(padded).text) > 255 * 1024
    emitter.send(padded)
    worker.wait_for(f"{padded.id} gave up because of ValueError never")


def test_a_handler_with_a_queue_of_its_own_runs_there(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """Forwarded by the first worker, alone; its retries go there, too."""
    heavy = f"{queue_name}-heavy"
    env = {"TEST_HEAVY_QUEUE": heavy}
    emission = new_emitter(broker_url, queue_name).emit("Heavy")
    with service(broker_url, queue_name, tmp_path, env=env) as first:
        first.wait_for(f"{emission.id} light", f"Heavy[{emission.id}] succeeded")
    assert "heavy, attempt" not in first.log()
    with service(broker_url, queue_name, tmp_path, queues=heavy, env=env) as second:
        second.wait_for(f"{emission.id} heavy, attempt 1 from {heavy}", f"{emission.id} heavy, attempt 2 from {heavy}")
    assert f"{emission.id} light" not in second.log()
    assert "will run none of them" not in second.log()
    if broker_url.startswith("amqp"):
        RabbitMQ(broker_url).delete(heavy)


def test_a_queue_that_cannot_be_declared_holds_up_no_other_handler(
    amqp_url: str, queue_name: str, tmp_path: Path
) -> None:
    """Nor does one that is down: what runs here runs first, and only what could not be sent on comes again."""
    heavy = f"{queue_name}-heavy"
    env = {"TEST_HEAVY_QUEUE": heavy}
    with RabbitMQ(amqp_url).channel() as channel:
        channel.queue_declare(heavy, durable=True, auto_delete=False, arguments={"x-max-length": 5})
    emission = new_emitter(amqp_url, queue_name).emit("Heavy")
    with service(amqp_url, queue_name, tmp_path, env=env) as worker:
        worker.wait_for(f"{emission.id} light", "is tried again")
        assert worker.log().index(f"{emission.id} light") < worker.log().index("is tried again")
        RabbitMQ(amqp_url).delete(heavy)
        worker.wait_for(f"Heavy[{emission.id}] succeeded")
        assert worker.log().count(f"{emission.id} light") == 1
    with service(amqp_url, queue_name, tmp_path, queues=heavy, env=env) as second:
        second.wait_for(f"{emission.id} heavy, attempt 1 from {heavy}")
    RabbitMQ(amqp_url).delete(heavy)


def test_a_handler_with_a_priority_of_its_own_travels_with_it(
    redis_url: str, queue_name: str, valkey: Valkey, tmp_path: Path
) -> None:
    """Unless the emission has it already. On Redis what comes first waits in the list of the queue's own name."""
    with service(redis_url, queue_name, tmp_path) as worker:
        emitter = new_emitter(redis_url, queue_name)
        first, second = (emitter.with_options(priority=priority).emit("Urgent") for priority in (3, 9))
        worker.wait_for(*(f"{each.id} {kind} in" for each in (first, second) for kind in ("urgent", "ordinary")))
        assert f"{first.id} ordinary in ('{first.id}'" in worker.log()
        assert f"{first.id} urgent in ('{first.id}'" not in worker.log()
        assert f"{second.id} urgent in ('{second.id}'" in worker.log()
        queue = emitter._queues[0]
        handler = EventLinker.subscribe("x", event_callback=print, priority=7, queue="elsewhere", name="priority")
        envelope = queue.open(queue.message(first).text, first.id)
        alone = replace(first, handlers=(handler.id,))
        assert queue.follow_up(envelope, alone).priority == queue.message_again(envelope, alone, 5).priority == 7
        assert queue.follow_up(envelope, alone).queue == queue.message_again(envelope, alone, 5).queue == "elsewhere"
        EventLinker.remove_event_handler(handler)


def test_a_follow_up_waits_for_a_broker_that_comes_back(redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """What has run is not run again because the broker was away for a moment."""
    with FreezableProxy(redis_url) as proxy:
        settings = {"broker_read_url": redis_url, "broker_write_url": proxy.proxied_url}
        options: dict[str, Any] = {"settings": settings}
        with service(redis_url, queue_name, tmp_path, "--without-heartbeat", **options) as worker:
            proxy.freeze()
            emission = new_emitter(redis_url, queue_name).emit("Flaky", 2)
            worker.wait_for("and is tried again")
            proxy.thaw()
            worker.wait_for(f"{emission.id} attempt 2", timeout=40)
        assert worker.log().count(f"{emission.id} steady") == 1
        assert worker.log().count(f"{emission.id} attempt 1") == 1


def test_a_worker_that_only_has_a_handlers_queue_is_no_mistake(redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """Unlike one that has neither."""
    with service(redis_url, queue_name, tmp_path, queues="elsewhere", env={"TEST_HEAVY_QUEUE": "heavy"}) as worker:
        wait_until(lambda: "will run none of them" in worker.log(), "the complaint")

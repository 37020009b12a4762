"""A delayed emission runs once and not before it is due, however long the delay and whatever the queue."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport import native_delayed_delivery as native

from pyventus import Emission
from pyventus.emitters.celery import CeleryEventEmitter, delays
from tests.brokers import RabbitMQ, Valkey
from tests.functional.apps.delayed import new_queue
from tests.functional.apps.support import service, wait_until
from tests.workers import Process


def emit(emitter: CeleryEventEmitter, delay: float) -> Emission:
    return emitter.with_options(delay=delay).emit("Due")


def check_ran_once(emission: Emission, *workers: Process) -> None:
    log = "".join(worker.log() for worker in workers)
    assert log.count(f"{emission.id} on time") == 1, log
    assert f"{emission.id} EARLY" not in log


# -- RabbitMQ delays it -----------------------------------------------------------------------------------------------


@pytest.fixture
def undeclared(rabbitmq: RabbitMQ, queue_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """RabbitMQ as before any worker of an app with quorum queues has started; the name of the last exchange.

    All that delays has names of the test's own: others who use the same server are not to miss theirs.
    """
    delivery = f"{queue_name}-delivery"
    monkeypatch.setattr(native, "level_name", lambda level, *_: f"{queue_name}-{level}")
    monkeypatch.setattr(native, "CELERY_DELAYED_DELIVERY_EXCHANGE", delivery)
    monkeypatch.setattr(delays, "CELERY_DELAYED_DELIVERY_EXCHANGE", delivery)
    monkeypatch.setattr(delays, "ENTRY", Exchange(f"{queue_name}-27", "topic"))
    yield delivery
    rabbitmq.delete(delivery, *(f"{queue_name}-{level}" for level in range(28)))


@pytest.mark.usefixtures("undeclared")
@pytest.mark.parametrize("exchange", ["topic", "direct"])
def test_quorum_queue(exchange: str, amqp_url: str, queue_name: str, tmp_path: Path) -> None:
    """Emitted before any worker has ever run, and the worker holds none of it back."""
    emitter = CeleryEventEmitter(new_queue(amqp_url, queue_name, exchange), timeout=20)
    first = [emit(emitter, delay) for delay in (1.2, 0.3)]
    with service(amqp_url, queue_name, tmp_path, app="delayed", env={"TEST_EXCHANGE": exchange}) as worker:
        far = [emit(emitter, 3600) for _ in range(3)]
        last = emit(emitter, 0.9)
        worker.wait_for(*(f"Due[{emission.id}] succeeded" for emission in (*first, last)))
    for emission in (*first, last):
        check_ran_once(emission, worker)
        assert worker.log().count(f"Due[{emission.id}] received") == 1
    assert not [emission for emission in far if emission.id in worker.log()]


@pytest.mark.usefixtures("undeclared")
def test_goes_to_no_queue_whose_name_is_the_end_of_its_own(amqp_url: str, rabbitmq: RabbitMQ, queue_name: str) -> None:
    """Celery binds queue "b" to whatever ends in ".b"."""
    long_name = f"a.{queue_name}"
    emitter = CeleryEventEmitter(new_queue(amqp_url, long_name, "topic"), timeout=20)
    try:
        emit(emitter, 0.9)
        with Connection(amqp_url) as connection:
            short = Queue(queue_name, Exchange(queue_name, "topic"), queue_name)
            short(connection.default_channel).declare()
            native.bind_queue_to_native_delayed_delivery_exchange(connection, short)
        emit(emitter, 0.9)
        wait_until(lambda: rabbitmq.depth(long_name) == 2, "both are due")
        assert rabbitmq.depth(queue_name) == 0
    finally:
        rabbitmq.delete(long_name)


def test_queue_or_exchange_deleted_meanwhile(
    amqp_url: str, rabbitmq: RabbitMQ, queue_name: str, undeclared: str
) -> None:
    """What RabbitMQ would drop in silence once it is due."""
    emitter = CeleryEventEmitter(new_queue(amqp_url, queue_name, "direct"), timeout=20)
    emit(emitter, 0.9)
    wait_until(lambda: rabbitmq.depth(queue_name) == 1, "the first is due")
    rabbitmq.delete(queue_name)
    emit(emitter, 0.9)
    wait_until(lambda: rabbitmq.depth(queue_name) == 1, "the second is due")
    with rabbitmq.channel() as channel:
        channel.exchange_delete(undeclared)
    emit(emitter, 0.9)
    with rabbitmq.channel() as channel:
        # Now its messages lead nowhere, and come back.
        channel.exchange_delete(delays.ENTRY.name)
        channel.exchange_declare(delays.ENTRY.name, "topic", durable=True, auto_delete=False)
    emit(emitter, 0.9)
    wait_until(lambda: rabbitmq.depth(queue_name) == 3, "the third and the fourth are due")


def test_refused_by_rabbitmq(
    amqp_url: str,
    rabbitmq: RabbitMQ,
    queue_name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by a user who may not declare what it takes: then workers hold it, after a line in the log."""

    def refuse(*_: object) -> None:
        raise AccessRefused("no")

    monkeypatch.setattr(delays.Delays, "_bind_or_declare", refuse)
    emitter = CeleryEventEmitter(new_queue(amqp_url, queue_name, "topic"))
    with caplog.at_level(logging.WARNING, "pyventus"):
        for _ in range(2):
            emit(emitter, 0.5)
    assert rabbitmq.depth(queue_name) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.name == "pyventus"]
    assert line.startswith(f"RabbitMQ refuses what delays on queue {queue_name!r} need (")


# -- Workers hold it --------------------------------------------------------------------------------------------------


def test_delay_beyond_the_visibility_timeout(
    redis_url: str, queue_name: str, valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers neither holds it until Redis would deliver it again."""
    env = {"TEST_VISIBILITY": "3"}
    monkeypatch.setenv("TEST_VISIBILITY", env["TEST_VISIBILITY"])
    with (
        service(redis_url, queue_name, tmp_path, app="delayed", env=env) as one,
        service(redis_url, queue_name, tmp_path, app="delayed", env=env) as other,
        valkey.client() as client,
    ):
        emission = emit(CeleryEventEmitter(new_queue(redis_url, queue_name)), 6)
        wait_until(lambda: f"Due[{emission.id}] succeeded" in one.log() + other.log(), "it has run")
        wait_until(lambda: client.llen(queue_name) + client.hlen("unacked") == 0, "nothing is left of it")
    check_ran_once(emission, one, other)
    assert (one.log() + other.log()).count(f"Due[{emission.id}] received") >= 3


def test_delay_in_redis(own_url: str, queue_name: str, valkey: Valkey, tmp_path: Path) -> None:
    """Whole: no worker gets it before it is due."""
    with service(own_url, queue_name, tmp_path, app="delayed", env={"TEST_HELD": "0.5"}) as worker:
        far = emit(CeleryEventEmitter(new_queue(own_url, queue_name)), 3600 * 24)
        emission = emit(CeleryEventEmitter(new_queue(own_url, queue_name)), 2.9)
        worker.wait_for(f"Due[{emission.id}] succeeded")
        with valkey.client() as client:
            assert client.zcard(f"pyventus:delayed:{queue_name}") == 1
    check_ran_once(emission, worker)
    assert worker.log().count(f"Due[{emission.id}] received") == 1
    assert far.id not in worker.log()


def test_long_delay_on_a_classic_queue(
    amqp_url: str, queue_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed on before RabbitMQ would close the channel."""
    monkeypatch.setattr(delays, "LONGEST_HELD", 1.5)
    with service(amqp_url, queue_name, tmp_path, app="delayed", env={"TEST_HELD": "1.5"}) as worker:
        emission = emit(CeleryEventEmitter(new_queue(amqp_url, queue_name)), 2.9)
        worker.wait_for(f"Due[{emission.id}] succeeded")
    check_ran_once(emission, worker)
    assert worker.log().count(f"Due[{emission.id}] received") >= 2


@pytest.mark.parametrize(
    ("visibility", "delay", "held"),
    [
        (60, 29, 29),
        (60, 30, 30),
        (60, 30.5, 15.25),
        (60, 100, 25),
        (7200, 900, 900),
        (7200, 901, 450.5),
        (None, 3600, 900),
    ],
)
def test_parts_are_equal(visibility: float | None, delay: float, held: float) -> None:
    """So that none ends less than a second before it is due, which is when the task runs it."""
    connection = SimpleNamespace(transport=SimpleNamespace(driver_type="redis"))
    these = delays.Delays(Celery(), connection, SimpleNamespace(visibility_timeout=visibility), lambda: None)
    now = datetime.now(UTC)
    for given in ({"countdown": delay}, {"eta": now + timedelta(seconds=delay)}):
        options = these.options("any", {**given, "parent_id": "x", "headers": {"a": "b"}})
        eta = datetime.fromisoformat(options["headers"].pop("eta"))
        assert options == {"parent_id": "x", "headers": {"a": "b"}}
        assert (eta - now).total_seconds() == pytest.approx(held, abs=0.5)


@pytest.mark.parametrize("given", [{}, {"countdown": 0}, {"countdown": -5}, {"eta": datetime(2020, 1, 1, tzinfo=UTC)}])
def test_what_is_due_is_not_delayed(given: dict[str, Any]) -> None:
    connection = SimpleNamespace(transport=SimpleNamespace(driver_type="redis"))
    these = delays.Delays(Celery(), connection, SimpleNamespace(), lambda: None)
    assert these.options("any", {**given, "parent_id": "x"}) == {"parent_id": "x"}

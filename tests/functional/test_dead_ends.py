"""What a worker cannot handle is kept, before its message is acknowledged, and runs again when it is replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pyventus.dead_letters.base import DeadLetter
from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import FreezableProxy, RabbitMQ, Valkey, refused_port
from tests.functional.apps.support import new_emitter, new_queue, service, wait_until
from tests.workers import Process

Place = tuple[Process, CeleryEventEmitter]


@pytest.fixture(scope="module", params=["redis", "amqp"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker on each broker, and an emitter to it."""
    name = f"pyventus-ends-{uuid4().hex[:12]}"
    folder = tmp_path_factory.mktemp("ends")
    if request.param == "redis":
        with Valkey() as server, service(server.url, name, folder) as worker:
            yield worker, new_emitter(server.url, name)
        return
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    with service(rabbitmq.url, name, folder) as worker:
        yield worker, new_emitter(rabbitmq.url, name)
    rabbitmq.delete(name, f"{name}.dead", f"{name}.refused")


def letter_of(emitter: CeleryEventEmitter, emission_id: str) -> DeadLetter:
    letters = emitter._queues[0].dead_letters
    wait_until(lambda: any(each.emission == emission_id for each in letters.list()), "the dead letter")
    (letter,) = [each for each in letters.list() if each.emission == emission_id]
    return letter


def test_each_handler_that_finally_failed_has_a_letter(place: Place) -> None:
    worker, emitter = place
    emission = emitter.emit("Fails", "because")
    worker.wait_for(f"FAILURE of {emission.id}")
    letters = [each for each in emitter._queues[0].dead_letters.list() if each.emission == emission.id]
    assert sorted((each.handlers, each.reason, each.error) for each in letters) == [
        (("fails",), "failed", "ValueError: because"),
        (("fails too",), "failed", "LookupError: because"),
    ]
    assert "raise ValueError(text)" in letters[0].traceback + letters[1].traceback


def test_a_letter_of_what_was_retried_counts_the_attempts(place: Place) -> None:
    worker, emitter = place
    emission = emitter.emit("Flaky", 5)
    worker.wait_for(f"{emission.id} gave up")
    letter = letter_of(emitter, emission.id)
    assert (letter.attempt, letter.handlers, letter.event) == (3, ("flaky",), "Flaky")


@pytest.mark.parametrize(
    ("event", "changes", "reason"),
    [
        ("Unheard", {}, "unhandled"),
        ("Plain", {"linker": "nowhere"}, "unhandled"),
        ("Plain", {"handlers": ("gone",)}, "unhandled"),
        ("Plain", {"timestamp": datetime.now(UTC) - timedelta(days=30)}, "too old"),
    ],
)
def test_what_cannot_be_handled_is_kept(place: Place, event: str, changes: dict[str, Any], reason: str) -> None:
    _, emitter = place
    emission = replace(emitter.prepare(event, 1), **changes)
    emitter.send(emission)
    letter = letter_of(emitter, emission.id)
    assert (letter.reason, letter.event, letter.handlers) == (reason, event, changes.get("handlers", ()))
    assert emitter._queues[0].dead_letters.open(letter).decode().args == (1,)


def test_what_was_refused_is_kept_apart(place: Place) -> None:
    _, emitter = place
    queue = emitter._queues[0]
    stranger = CeleryEventEmitter(new_queue(queue.app.conf.broker_url, queue.name, "another secret " * 4))
    emission = stranger.emit("Plain", 1)
    wait_until(lambda: queue.dead_letters.list(refused=True), "the refused message")
    (letter,) = queue.dead_letters.list(refused=True)
    assert (letter.reason, letter.message_id, letter.event) == ("refused", emission.id, "")
    assert letter.text == stranger._queues[0].message(emission).text


def test_a_replay_runs_what_failed_and_nothing_else(place: Place, tmp_path: Path) -> None:
    """Its attempts start anew."""
    worker, emitter = place
    emission = emitter.emit("Flaky", 5)
    worker.wait_for(f"{emission.id} gave up")
    letters = emitter._queues[0].dead_letters
    letter = letter_of(emitter, emission.id)
    assert letters.replay(letter.id).replayed == (letter.id,)
    worker.wait_for(f"{emission.id} gave up", count=2)
    log = worker.log()
    assert [log.count(f"{emission.id} attempt {attempt}") for attempt in (1, 2, 3, 4)] == [2, 2, 2, 0]
    assert log.count(f"{emission.id} steady") == 1
    again = letter_of(emitter, emission.id)
    assert (again.replay, again.attempt) == (1, 3)
    assert again.id != letter.id


def test_what_succeeded_does_not_run_again_because_a_letter_cannot_be_stored(
    redis_url: str, queue_name: str, tmp_path: Path
) -> None:
    """Only what failed is sent again, when its patience is at an end."""
    with refused_port() as port:
        options = json.dumps({"dead_letters": f"redis://127.0.0.1:{port}/0"})
        env = {"TEST_QUEUE_OPTIONS": options, "TEST_PATIENCE": "1"}
        with service(redis_url, queue_name, tmp_path, env=env) as worker:
            emission = new_emitter(redis_url, queue_name).emit("Fails", "because")
            worker.wait_for(f"Handler fails failed on emission {emission.id}", count=2, timeout=40)
    assert worker.log().count(f"{emission.id} succeeded beside a failure") == 1


def test_a_handler_that_ends_cancelled_has_failed(place: Place) -> None:
    """It is kept, and its worker goes on."""
    worker, emitter = place
    emission = emitter.emit("CancelsItself")
    letter = letter_of(emitter, emission.id)
    assert letter.handlers == ("cancels itself",)
    assert "CancelledError" in letter.error
    worker.wait_for(f"Plain[{emitter.emit('Plain').id}] succeeded")


def test_a_message_waits_for_its_dead_letter(redis_url: str, queue_name: str, tmp_path: Path) -> None:
    """It is acknowledged when the letter is stored, and its handlers do not run again meanwhile."""
    with FreezableProxy(redis_url) as proxy:
        settings = {"broker_read_url": redis_url, "broker_write_url": proxy.proxied_url}
        with service(redis_url, queue_name, tmp_path, "--without-heartbeat", settings=settings) as worker:
            proxy.freeze()
            emitter = new_emitter(redis_url, queue_name)
            emission = emitter.emit("Fails", "because")
            worker.wait_for("and is tried again")
            assert f"FAILURE of {emission.id}" not in worker.log()
            proxy.thaw()
            worker.wait_for(f"FAILURE of {emission.id}", timeout=40)
        assert worker.log().count(f"{emission.id} succeeded beside a failure") == 1
        assert len(emitter._queues[0].dead_letters.list()) == 2

"""Emissions on their whole way: emitted here, run by a real worker, on both brokers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Queue as BrokerQueue

from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import RabbitMQ, Valkey
from tests.functional.emitting.app import SECRET
from tests.workers import Process, worker

ROOT = Path(__file__).parents[2]


@dataclass
class Service:
    """A worker of the app ``emitting.app``, and what its handlers have written."""

    url: str
    names: list[str]
    output: Path
    worker: Process

    def app(self) -> Celery:
        app = Celery("elsewhere", broker=self.url, set_as_current=False)
        app.conf.task_queue_max_priority = 9
        app.conf.task_queues = [BrokerQueue(name, routing_key=name) for name in self.names]
        return app

    def emitter(self, *names: str, **options: Any) -> CeleryEventEmitter:
        app = self.app()
        queues = [CeleryEventEmitter.Queue(app, name, secret=SECRET) for name in names or self.names[:1]]
        return CeleryEventEmitter(queues, **options)

    def lines(self) -> list[dict[str, Any]]:
        text = self.output.read_text() if self.output.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def runs(self, emission_id: str, count: int = 1) -> list[dict[str, Any]]:
        """What the handlers wrote for an emission, as soon as that many of them have."""
        end = time.monotonic() + 20
        while True:
            found = [line for line in self.lines() if line.get("id") == emission_id]
            if len(found) >= count:
                return found
            assert time.monotonic() < end, f"{emission_id} did not run {count} times:\n{self.worker.log()}"
            time.sleep(0.02)

    def barrier(self) -> None:
        """Wait until everything that was emitted before has been handled, in all queues."""
        for name in self.names:
            self.runs(self.emitter(name).emit("Record").id)


@pytest.fixture(scope="module", params=["redis", "amqp"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    names = [f"pyventus-test-{uuid4().hex[:8]}-{n}" for n in "ab"]
    folder = tmp_path_factory.mktemp(f"emitting-{request.param}")
    if request.param == "redis":
        with Valkey() as server:
            yield from _started(server.url, names, folder)
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        try:
            yield from _started(rabbitmq.url, names, folder)
        finally:
            rabbitmq.delete(*names)


def _started(url: str, names: list[str], folder: Path) -> Iterator[Service]:
    env = {"CELERY_BROKER_URL": url, "TEST_QUEUES": json.dumps(names), "TEST_OUTPUT": str(folder / "output")}
    with worker("tests.functional.emitting.app", cwd=ROOT, log=folder / "log", env=env) as process:
        yield Service(url, names, folder / "output", process)


# -- Ways to emit ---------------------------------------------------------------------------------------------------


def test_emit(service: Service) -> None:
    """The id that is returned is that of the emission and of the Celery task."""
    emission = service.emitter().emit("Record", 1, "two", a=[3.5, None])
    (run,) = service.runs(emission.id)
    assert (run["args"], run["kwargs"], run["task_id"]) == ([1, "two"], {"a": [3.5, None]}, emission.id)
    assert (run["parent_id"], run["root_id"]) == (None, emission.id)


def test_aemit(service: Service) -> None:
    emission = asyncio.run(service.emitter().aemit("Record", 1))
    assert [run["args"] for run in service.runs(emission.id)] == [[1]]


def test_prepared_emissions_are_sent_later(service: Service) -> None:
    emitter = service.emitter()
    sent, sent_async, kept = (emitter.prepare("Record", n) for n in range(3))
    assert emitter.send(sent) is sent
    assert asyncio.run(emitter.asend(sent_async)) is sent_async
    service.runs(sent.id)
    service.runs(sent_async.id)
    service.barrier()
    assert not [line for line in service.lines() if line.get("id") == kept.id]


def test_options(service: Service) -> None:
    """An id of one's own, and headers."""
    name = f"order-{uuid4()}"
    emitter = service.emitter().with_options(id=name, headers={"request": "r-1"}).with_options(headers={"user": "é"})
    assert emitter.emit("Record").id == name
    (run,) = service.runs(name)
    assert (run["task_id"], run["headers"]) == (name, {"request": "r-1", "user": "é"})


@pytest.mark.parametrize("option", ["delay", "at"])
def test_runs_not_before_it_is_due(service: Service, option: str) -> None:
    emitter, due = service.emitter(), datetime.now(UTC) + timedelta(seconds=1.5)
    emission = emitter.with_options(**({"delay": 1.5} if option == "delay" else {"at": due})).emit("Record")
    undelayed = emitter.emit("Record")
    (run,) = service.runs(emission.id)
    assert run["time"] >= due.timestamp() - 0.01
    assert service.runs(undelayed.id)[0]["time"] < run["time"]


def test_expired_emissions_are_dropped(service: Service) -> None:
    emitter = service.emitter()
    dropped = emitter.with_options(expires=0).emit("Record")
    past = emitter.with_options(expires=datetime.now(UTC) - timedelta(hours=1)).emit("Record")
    kept = emitter.with_options(expires=3600).emit("Record")
    service.runs(kept.id)
    service.barrier()
    assert not [line for line in service.lines() if line.get("id") in (dropped.id, past.id)]
    assert f"Emission {dropped.id} of 'Record' dropped: it expired" in service.worker.log()


def test_priority_9_is_first(service: Service, tmp_path: Path) -> None:
    """On both brokers, though Redis itself counts the other way."""
    emitter, gate = service.emitter(), tmp_path / "gate"
    emitter.emit("Block", str(gate))
    _wait_until_blocking(service, gate)
    # Fetched ahead of the others, whatever its priority.
    first = emitter.with_options(priority=9).emit("Record")
    time.sleep(0.3)
    emissions = {n: emitter.with_options(priority=n).emit("Record") for n in (0, 3, 6, 9)}
    gate.touch()
    for emission in emissions.values():
        service.runs(emission.id)
    ids = {emission.id: n for n, emission in emissions.items()}
    assert [ids[line["id"]] for line in service.lines() if line.get("id") in ids] == [9, 6, 3, 0]
    service.runs(first.id)


def _wait_until_blocking(service: Service, gate: Path) -> None:
    end = time.monotonic() + 20
    while {"blocking": str(gate)} not in service.lines():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- Several queues -------------------------------------------------------------------------------------------------


def test_each_of_several_queues_gets_a_copy(service: Service) -> None:
    """Under one emission id, in messages of different ids."""
    emission = service.emitter(*service.names).emit("Record")
    first, second = service.runs(emission.id, 2)
    assert emission.id in (first["task_id"], second["task_id"])
    assert first["task_id"] != second["task_id"]


def test_queues_of_two_brokers(service: Service, redis_url: str, valkey: Valkey, queue_name: str) -> None:
    here = CeleryEventEmitter.Queue(service.app(), service.names[0], secret=SECRET)
    there = CeleryEventEmitter.Queue(Celery("there", broker=redis_url, set_as_current=False), queue_name)
    emission = CeleryEventEmitter([there, here]).emit("Record")
    service.runs(emission.id)
    with valkey.client() as client:
        assert emission.id in client.lindex(queue_name, 0).decode()


# -- From inside a handler --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["Sync", "Async", "Awaiting"])
def test_emitted_by_a_handler(service: Service, event: str) -> None:
    """What a handler emits names the task that it came from, on whichever thread it ran."""
    emission = service.emitter().emit(event)
    end = time.monotonic() + 20
    while not (found := [line for line in service.lines() if line.get("parent_id") == emission.id]):
        assert time.monotonic() < end, service.worker.log()
        time.sleep(0.02)
    assert found[0]["root_id"] == emission.id
    assert {"emitted": found[0]["id"]} in service.lines()


# -- Celery's own settings and signals --------------------------------------------------------------------------------


def test_receivers_of_publish_signals_see_the_callers_context(service: Service) -> None:
    """Tracing puts its headers into messages there."""
    from contextvars import ContextVar

    from celery import signals

    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[tuple[str, str, str]] = []

    def before(sender: str, headers: dict[str, Any], **_: object) -> None:
        seen.append(("before", headers["id"], user.get()))

    def after(sender: str, headers: dict[str, Any], **_: object) -> None:
        seen.append(("after", headers["id"], user.get()))

    # Made anew: Celery 5.5 can miss receivers that are connected after an app's first message.
    emitter = service.emitter()
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        user.set("ada")
        emission = emitter.emit("Record")
        aemission = asyncio.run(emitter.aemit("Record"))
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    expected = [(when, each.id, "ada") for each in (emission, aemission) for when in ("before", "after")]
    assert seen == expected


def test_messages_are_json_whatever_the_app_sends(service: Service) -> None:
    """An app whose own tasks are pickled sends emissions that workers without pickle take."""
    app = service.app()
    app.conf.update(task_serializer="pickle", accept_content=["json", "pickle"], task_compression="gzip")
    queue = CeleryEventEmitter.Queue(app, service.names[0], secret=SECRET)
    service.runs(CeleryEventEmitter(queue).emit("Record").id)


SCRIPT = """
import os, sys
from tests.functional.emitting.app import emitter
os.close(0)
print(emitter.emit("Record", "from a script").id)
"""


def test_a_script_with_the_broker_in_its_environment(service: Service) -> None:
    """CELERY_BROKER_URL names the broker; a closed standard input, whose number the socket takes, does no harm."""
    env = {**os.environ, "CELERY_BROKER_URL": service.url, "TEST_QUEUES": json.dumps(service.names)}
    script = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=env, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    assert script.stderr == ""
    service.runs(script.stdout.strip())


# -- Other transports -------------------------------------------------------------------------------------------------


def test_memory() -> None:
    app = Celery("memory", broker="memory://", set_as_current=False)
    emission = CeleryEventEmitter(CeleryEventEmitter.Queue(app, "memory")).emit("Record")
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("memory").get(timeout=5)
        assert message.headers["id"] == emission.id


def test_filesystem(tmp_path: Path) -> None:
    app = Celery("files", broker="filesystem://", set_as_current=False)
    app.conf.broker_transport_options = {
        "data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path), "control_folder": str(tmp_path / "control"),
    }  # fmt: skip
    emission = CeleryEventEmitter(CeleryEventEmitter.Queue(app, "files")).emit("Record")
    assert [emission.id in file.read_text() for file in tmp_path.glob("*.msg")] == [True]

"""What a message carries, and the secret of its queue, appear nowhere but in the message and in the handlers."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
import pytest
import redis
from celery import Celery
from celery.events.receiver import EventReceiver

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import Valkey
from tests.functional.apps.support import ASYNCIO, SECRET, new_queue, service, wait_until
from tests.workers import Process

CANARY = "canary-1f3a9c"
HEADERS = {"x-request": CANARY, CANARY: "x"}


class Pin:
    def __init__(self, digits: str) -> None:
        self.digits = digits


class Stranger:
    pass


EventLinker.register(Pin, encode=lambda pin: pin.digits, decode=Pin)
EventLinker.register(Stranger, encode=lambda stranger: CANARY, decode=lambda value: Stranger())
# What the worker's own class is called.
Pin.__module__ = "tests.functional.apps.quiet"


class Watch:
    """The events of the workers of one broker, as a monitor sees them."""

    def __init__(self, url: str) -> None:
        self.seen: list[dict[str, Any]] = []
        ready = threading.Event()
        self._connection = Celery(broker=url).connection_for_read()
        self._receiver = EventReceiver(self._connection, handlers={"*": self.seen.append}, app=Celery(broker=url))
        self._receiver.on_consume_ready = lambda *args, **kwargs: ready.set()
        self._thread = threading.Thread(target=self._receiver.capture, kwargs={"wakeup": False}, daemon=True)
        self._thread.start()
        assert ready.wait(20)

    def has(self, kind: str, task_id: str) -> bool:
        return any(event["type"] == kind and event.get("uuid") == task_id for event in list(self.seen))

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(20)
        self._connection.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey(password="broker-password-7c1d") as server:
        yield server


class Place:
    """A worker, the queue that it serves, and all that others can see of it."""

    def __init__(self, broker: Valkey, queue: str, worker: Process, watch: Watch) -> None:
        self.broker = broker
        self.worker = worker
        self.watch = watch
        self.queue = new_queue(broker.url, queue)
        self.emitter = CeleryEventEmitter(self.queue).with_options(headers=HEADERS)
        self.ids: list[str] = []

    def emit(self, event: str, *args: object, **options: Any) -> str:
        emission = self.emitter.with_options(**options).emit(event, *args, CANARY, **{CANARY: [CANARY]})
        self.ids.append(emission.id)
        return emission.id

    def inspect(self, id: str, where: str) -> dict[str, Any]:
        """What the worker answers to whoever asks; the emission must be among what is ``where``."""
        inspect = self.queue.app.control.inspect(timeout=10, limit=1)
        answers = {name: getattr(inspect, name)() for name in INSPECTED.split()}
        answers |= {"query_task": inspect.query_task(self.ids), "conf": inspect.conf(with_defaults=True)}
        assert all(answers.values())
        assert id in json.dumps(answers[where])
        return answers


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "custom"])
def place(request: pytest.FixtureRequest, broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    name = f"secrecy-{request.param}"
    watch = Watch(broker.url)
    env = {"TEST_BACKEND": broker.url.replace("/0", "/1"), **ASYNCIO["env"]}
    folder = tmp_path_factory.mktemp(name)
    with service(
        broker.url, name, folder, "-E", "-l", "DEBUG", app="quiet", pool=request.param, concurrency=1, env=env
    ) as worker:
        yield Place(broker, name, worker, watch)
    watch.close()


INSPECTED = "active reserved scheduled report stats registered active_queues revoked"


def check(what: object) -> None:
    text = what if isinstance(what, str) else json.dumps(what, default=repr)
    for hidden in (CANARY, SECRET, "broker-password"):
        at = text.find(hidden)
        assert at < 0, f"{hidden} in: ...{text[max(0, at - 1500) : at + 300]}"


def test_nothing_shows_in_log_events_and_results(place: Place, tmp_path: Path) -> None:
    """Of emissions that succeed, fail, are nobody's, cannot be decoded, are refused or too late."""
    good = place.emit("Quiet")
    bad = place.emit("QuietFails")
    nobodys = place.emit("NobodyIsLinked")
    undecodable = place.emit("Quiet", Pin(CANARY))
    strange = place.emit("Quiet", Stranger())
    unsigned = _emit_badly(place)
    last = place.emit("Quiet")
    for id, kind in ((good, "succeeded"), (bad, "failed"), (nobodys, "failed"), (undecodable, "failed"),
                     (strange, "failed"), (last, "succeeded")):  # fmt: skip
        wait_until(lambda kind=kind, id=id: place.watch.has(f"task-{kind}", id), f"the event that {id} {kind}")
    log = place.worker.wait_for(f"Message '{unsigned}' refused", f"{last} done")
    assert log.count("nothing of it") >= 2
    assert f"Emission {undecodable} of 'Quiet' was not handled: the json of the arguments cannot be decoded" in log
    check(log)
    check(place.watch.seen)
    with redis.Redis.from_url(place.broker.url.replace("/0", "/1")) as results:
        check({str(key): str(results.dump(key)) for key in results.scan_iter()})


def _emit_badly(place: Place) -> str:
    """With a wrong key."""
    stranger = new_queue(place.broker.url, place.queue.name, secret="somebody else's " * 3)
    return CeleryEventEmitter(stranger).with_options(headers=HEADERS).emit("Quiet", CANARY).id


def test_nothing_shows_in_remote_control(place: Place, tmp_path: Path) -> None:
    """Of what runs, waits for it, and waits for its time."""
    file = tmp_path / "go"
    delayed = place.emit("Quiet", delay=3600)
    place.worker.wait_for(f"[{delayed}] received")
    check(place.inspect(delayed, "scheduled"))
    running = place.emit("QuietWaits", str(file))
    place.worker.wait_for(f"{running} waits")
    if "solo" not in place.queue.name:  # It answers nothing while it runs a task.
        place.emit("Quiet")
        check(place.inspect(running, "active"))
    file.touch()
    place.worker.wait_for(f"{running} done")
    check(place.worker.log())
    check(place.watch.seen)


def test_only_the_body_of_a_message_carries_it(broker: Valkey) -> None:
    """Not Celery's headers and properties, which monitors show."""
    name = f"unread-{uuid4().hex[:8]}"
    emitter = CeleryEventEmitter(new_queue(broker.url, name)).with_options(headers=HEADERS)
    emitter.emit("Quiet", CANARY, **{CANARY: CANARY})
    with kombu.Connection(broker.url) as connection:
        (entry,) = connection.default_channel.client.lrange(name, 0, -1)
    message = json.loads(entry)
    assert CANARY in b64decode(message.pop("body")).decode()
    check(message)


def test_nothing_shows_in_reprs_and_errors(broker: Valkey) -> None:
    """Of the emitter's side."""
    queue = new_queue(broker.url, "reprs")
    emitter = CeleryEventEmitter(queue).with_options(headers=HEADERS)
    emission = emitter.prepare("Quiet", CANARY, **{CANARY: CANARY})
    text = queue.seal(emission, emission.id)
    envelope = queue.open(text, emission.id)
    for each in (queue, queue.keyring, emitter, emission, envelope, queue.message(emission), queue.serializer):
        check(repr(each) + str(each))

"""What one worker does with the emissions of processes that never import its handlers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from pyventus import Emission, EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.events import event
from tests.brokers import Valkey
from tests.functional.apps import support
from tests.functional.apps.support import new_emitter, new_queue, service, wait_until
from tests.workers import Process

PARCEL = "tests.functional.apps.handlers:Parcel"
MARKER = "secret-marker"


@event(PARCEL)
@dataclass
class Parcel:
    """Looks on the wire as the class of the workers does."""

    id: int


@event("tests:Crate")
@dataclass
class Crate:
    """Of an older version than that of the workers, which has one more field."""

    id: int


@event("tests:Nowhere")
@dataclass
class Nowhere:
    id: int


class Shop(EventLinker, name="shop"):
    """Of the same name as that of the workers, with nothing linked."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def queue() -> str:
    return "worker"


@pytest.fixture(scope="module")
def worker(broker: Valkey, queue: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A prefork worker with task events, at DEBUG, so that what Celery may log it logs."""
    folder = tmp_path_factory.mktemp("worker")
    options: dict[str, Any] = {"pool": "prefork", "concurrency": 2}
    with service(broker.url, queue, folder, "-E", "-l", "DEBUG", **options) as process:
        yield process


@pytest.fixture
def emitter(worker: Process, broker: Valkey, queue: str) -> CeleryEventEmitter:
    return new_emitter(broker.url, queue)


def lines_of(worker: Process, emission: Emission, level: str = "") -> list[str]:
    return [line for line in worker.log().splitlines() if emission.id in line and level in line]


# -- Finding handlers ---------------------------------------------------------------------------------------------


def test_finds_handlers_by_the_name_of_the_event(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.emit("Plain", 1, b=None)
    worker.wait_for(f"{emission.id} plain 1 ('b', None)")


def test_finds_handlers_by_the_wire_name_of_a_class(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.emit(Parcel(7))
    worker.wait_for(f"{emission.id} parcel 7")


def test_finds_handlers_in_the_linker_of_the_emitter(worker: Process, broker: Valkey, queue: str) -> None:
    emission = new_emitter(broker.url, queue, Shop).emit("Plain")
    worker.wait_for(f"{emission.id} in the shop", f"Plain[{emission.id}] succeeded")
    assert f"{emission.id} plain" not in worker.log()


def test_runs_only_the_handlers_that_an_emission_names(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.send(replace(emitter.prepare("Fails", "x"), handlers=("succeeds",)))
    worker.wait_for(f"{emission.id} succeeded beside a failure", f"Fails[{emission.id}] succeeded")


# -- No silent drops ----------------------------------------------------------------------------------------------

LONG_AGO = datetime.now(UTC) - timedelta(days=30)


@pytest.mark.parametrize(
    ("event", "changes", "error", "cure"),
    [
        ("NobodyIsLinked", {}, "Unhandled", "import the module that links one"),
        ("Plain", {"linker": "elsewhere"}, "Unhandled", "import the module that defines it"),
        ("Plain", {"handlers": ("gone",)}, "Unhandled", "give it its former name"),
        (Crate(1), {}, "Undecodable", "weight"),
        ("Plain", {"timestamp": LONG_AGO}, "TooOld", "raise max_age"),
        ("Plain", {"timestamp": LONG_AGO, "due": LONG_AGO + timedelta(days=20)}, "TooOld", "10 days ago"),
    ],
)
def test_what_cannot_be_handled_is_one_error_that_names_the_cure(
    event: object, changes: dict[str, Any], error: str, cure: str, worker: Process, emitter: CeleryEventEmitter
) -> None:
    emission = emitter.send(replace(emitter.prepare(event), **changes))
    worker.wait_for(f"FAILURE of {emission.id} {error}")
    (line,) = lines_of(worker, emission, "ERROR")
    assert "was not handled" in line
    assert emission.event in line
    assert cure in line
    assert "Traceback" not in between(worker, emission)


def test_unknown_event_class_names_the_class_and_how_to_register_it(
    worker: Process, emitter: CeleryEventEmitter
) -> None:
    """The emission is for a linked handler, so that its arguments are decoded."""
    emission = emitter.send(replace(emitter.prepare(Nowhere(1)), handlers=("plain",)))
    worker.wait_for(f"FAILURE of {emission.id} UnknownClass")
    (line,) = lines_of(worker, emission, "ERROR")
    assert "tests:Nowhere" in line
    assert "EventLinker.register" in line


def test_undecodable_arguments(worker: Process, broker: Valkey, queue: str) -> None:
    class Broken:
        name = "json"

        def dumps(self, emission: Emission) -> bytes:
            return b"{"

        def loads(self, data: bytes) -> Emission:
            raise NotImplementedError

    emission = new_emitter(broker.url, queue, serializer=Broken()).emit("Plain")
    worker.wait_for(f"FAILURE of {emission.id} Undecodable")
    assert len(lines_of(worker, emission, "ERROR")) == 1
    assert "Traceback" not in between(worker, emission)


def between(worker: Process, emission: Emission) -> str:
    """The log from the first mention of an emission to the last, and the line after that."""
    lines = worker.log().splitlines()
    mentions = [number for number, line in enumerate(lines) if emission.id in line]
    return "\n".join(lines[mentions[0] : mentions[-1] + 2])


def test_expired_emission_is_dropped_at_info(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.with_options(expires=0).emit("Plain")
    worker.wait_for(f"Plain[{emission.id}] succeeded")
    assert f"Emission {emission.id} of 'Plain' dropped: it expired" in "\n".join(lines_of(worker, emission, "INFO"))
    assert not lines_of(worker, emission, "ERROR")
    assert f"{emission.id} plain" not in worker.log()


def test_max_age_counts_from_when_it_was_due(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.send(replace(emitter.prepare("Plain"), timestamp=LONG_AGO, due=datetime.now(UTC)))
    worker.wait_for(f"{emission.id} plain")


def test_early_delivery_waits_until_it_is_due(worker: Process, broker: Valkey, queue: str) -> None:
    """Celery's own ETA is not signed: here somebody has taken it off."""
    queue_here = new_queue(broker.url, queue)
    emitter = CeleryEventEmitter(queue_here)
    due = datetime.now(UTC) + timedelta(seconds=3)
    emission = emitter.with_options(at=due).prepare("Plain")
    text = queue_here.seal(emission, emission.id)
    support.publish(broker.url, queue, support.task_message(text, emission.id, task=queue_here.task_name))
    log = worker.wait_for(f"Task pyventus.{queue}[{emission.id}] received")
    worker.wait_for(f"{emission.id} plain")
    assert datetime.now(UTC) >= due
    assert f"{emission.id} plain" not in log
    assert not lines_of(worker, emission, "ERROR")


# -- Running handlers ---------------------------------------------------------------------------------------------


def test_async_handlers_on_the_loop_sync_ones_beside_it(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.emit("Where")
    log = worker.wait_for(f"Where[{emission.id}] succeeded")
    said = dict(re.findall(rf"{emission.id} (async|sync|second sync) on (\w+)", log))
    assert said.pop("async") == "loop"
    assert set(said) == {"sync", "second sync"}
    assert "loop" not in said.values()


def test_a_lone_sync_handler_runs_in_the_tasks_own_thread(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.emit("WhereAlone")
    worker.wait_for(f"{emission.id} sync on task")


def test_handlers_start_in_link_order(worker: Process, emitter: CeleryEventEmitter) -> None:
    """On the loop, where nothing comes between their start and their first line."""
    names = ["third", "first", "fifth", "second", "fourth"]
    emission = emitter.emit("InOrder")
    worker.wait_for(*[f"{emission.id} starts {name}" for name in names])
    starts = [line.split()[-1] for line in worker.log().splitlines() if f"{emission.id} starts " in line]
    assert starts == names


def test_one_loop_per_process(worker: Process, emitter: CeleryEventEmitter) -> None:
    """Prefork's children each have one, made after the fork, which all their tasks share."""
    emissions = [emitter.emit("Where") for _ in range(8)]
    log = worker.wait_for(*(f"Where[{emission.id}] succeeded" for emission in emissions))
    loops: dict[str, set[str]] = {}
    for emission in emissions:
        (found,) = re.findall(rf"{emission.id} async on loop process (\d+) loop (\d+)", log)
        loops.setdefault(found[0], set()).add(found[1])
    assert all(len(ids) == 1 for ids in loops.values())


def test_middleware_context_variables_and_current_emission(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.with_options(headers={"request": "r1"}).emit("Surrounded")
    worker.wait_for(
        f"{emission.id} inside Surrounded r1 middleware of surrounded",
        f"{emission.id} inside, too middleware of surrounded, too",
    )


# -- Failures show ------------------------------------------------------------------------------------------------


def test_failures_name_handler_and_emission_and_the_task_fails(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.emit("Fails", "because")
    worker.wait_for(
        f"FAILURE of {emission.id} HandlersFailed handler fails failed: ValueError: because; "
        "handler fails too failed: LookupError: because",
        f"{emission.id} succeeded beside a failure",
    )
    errors = lines_of(worker, emission, "ERROR")
    assert len(errors) == 2
    assert f"Handler fails failed on emission {emission.id} of 'Fails', attempt 1: ValueError('because')" in "\n".join(
        errors
    )
    assert f"Handler fails too failed on emission {emission.id} of 'Fails'" in "\n".join(errors)


def test_timeouts_are_failures(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = emitter.emit("TooSlow")
    worker.wait_for(
        f"FAILURE of {emission.id} HandlersFailed handler too slow failed: HandlerTimeout: "
        "handler too slow took longer than its timeout of 0.2 s; handler too slow, too failed: HandlerTimeout"
    )
    assert f"Handler too slow, too is still running after its timeout of 0.2 s on emission {emission.id}" in (
        worker.log()
    )


# -- What is shown ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def task_events(app: Celery) -> Iterator[list[str]]:
    """What monitors see."""
    shown: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: shown.append(repr(event))})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        try:
            wait_until(lambda: any("worker-heartbeat" in each for each in shown), "an event of the worker")
            yield shown
        finally:
            receiver.should_stop = True
            thread.join()


def test_shows_the_events_name_and_never_arguments(
    worker: Process, emitter: CeleryEventEmitter, broker: Valkey, queue: str, tmp_path: Path
) -> None:
    """Neither in the log at DEBUG, nor in remote control's answers, nor in task events, nor in headers."""
    app = Celery(broker=broker.url)
    go = tmp_path / f"{MARKER}-go"
    with task_events(app) as shown:
        running = emitter.emit("WaitsFor", str(go))
        later = emitter.with_options(delay=600).emit("Plain", MARKER, key=MARKER)
        failed = emitter.emit("Quiet", MARKER)
        log = worker.wait_for(
            f"{running.id} waits", f"Task Plain[{later.id}] received", f"FAILURE of {failed.id} Unhandled"
        )
        inspect = app.control.inspect(destination=list(app.control.inspect(limit=1).ping()))
        active, reserved, scheduled = inspect.active(), inspect.reserved(), inspect.scheduled()
        go.touch()
        worker.wait_for(f"WaitsFor[{running.id}] succeeded")
        wait_until(lambda: any("task-succeeded" in each and running.id in each for each in shown), "its end")
    assert running.id in repr(active)
    assert "'name': 'WaitsFor'" in repr(active)
    assert later.id in repr(scheduled)
    assert "'name': 'Plain'" in repr(scheduled)
    assert any(running.id in each and "'name': 'WaitsFor'" in each for each in shown)
    assert "TaskPool: Apply" in log, "the pool logged no arguments, so that this test shows nothing"
    assert MARKER not in repr((active, reserved, scheduled, inspect.registered())) + "".join(shown) + worker.log()


def test_headers_in_the_broker_show_no_arguments(broker: Valkey) -> None:
    """Argument representations are Celery's, and only the signed text holds the arguments."""
    new_emitter(broker.url, "nobody").emit("Plain", MARKER)
    with broker.client() as client:
        (raw,) = client.lrange("nobody", 0, -1)
    message = json.loads(raw)
    assert message["headers"]["shadow"] == "Plain"
    assert MARKER not in json.dumps(message)
    assert MARKER in b64decode(message["body"]).decode()


def test_names_with_control_characters_are_not_shown(worker: Process, broker: Valkey, queue: str) -> None:
    queue_here = new_queue(broker.url, queue)
    emission = CeleryEventEmitter(queue_here).prepare("Plain")
    forged = {"shadow": "forged\n[2000-01-01] ERROR line", "parent_id": "forged\n"}
    text = queue_here.seal(emission, emission.id)
    message = support.task_message(text, emission.id, task=queue_here.task_name, **forged)
    support.publish(broker.url, queue, message)
    worker.wait_for(f"Task pyventus.{queue}[{emission.id}] succeeded")
    assert "forged" not in worker.log()


def test_emits_from_its_handlers_loop(worker: Process, emitter: CeleryEventEmitter) -> None:
    emission = asyncio.run(emitter.aemit("Plain", "from asyncio"))
    worker.wait_for(f"{emission.id} plain from asyncio")

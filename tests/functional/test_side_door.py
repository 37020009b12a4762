"""A secret closes the side door: raw pickled messages run nothing in the tutorial's worker."""

from __future__ import annotations

import json
import pickle
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer

from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.queue import WeakSecretWarning
from tests.brokers import RabbitMQ, Valkey
from tests.functional.apps.support import new_queue, publish, service, task_message, wait_until
from tests.functional.test_quickstart import EXAMPLES, WORKER, copy_quickstart
from tests.workers import START_SECONDS, Process, run

PICKLE = "application/x-python-serialize"
REFUSAL = "Pickled messages are refused by this worker, because its emission queue has a secret"
BUILTIN_TASK = "celery.backend_cleanup"


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


# -- The attacks ----------------------------------------------------------------------------------------------------


def task_of_protocol_2(url: str, queue: str, task: str, attack: Attack) -> None:
    message = task_message(attack, str(uuid4()), task=task)
    publish(url, queue, message, content_type=PICKLE, encode=pickle.dumps)


def task_of_protocol_1(url: str, queue: str, task: str, attack: Attack) -> None:
    body = {"task": task, "id": str(uuid4()), "args": [attack], "kwargs": {}}
    publish(url, queue, {"headers": {}, "body": body}, content_type=PICKLE, encode=pickle.dumps)


def broadcast(url: str, attack: Attack, control: str = "celery") -> None:
    """A command of remote control, for all workers that listen there."""
    body = {"method": "ping", "arguments": {"attack": attack}, "destination": None, "matcher": None, "pattern": None}
    _publish(url, Exchange(f"{control}.pidbox", type="fanout", durable=False), "", body)


def event(url: str, attack: Attack) -> None:
    """One of the events by which workers hear of each other."""
    body = {"type": "worker-heartbeat", "hostname": "x", "attack": attack}
    _publish(url, Exchange("celeryev", type="topic"), "worker.heartbeat", body)


def _publish(url: str, exchange: Exchange, key: str, body: object) -> None:
    with Connection(url) as connection:
        Producer(connection.default_channel).publish(
            pickle.dumps(body), exchange=exchange, routing_key=key, declare=[exchange], content_type=PICKLE,
            content_encoding="binary", expiration=60,
        )  # fmt: skip


TASKS: list[Callable[[str, str, str, Attack], None]] = [task_of_protocol_2, task_of_protocol_1]


# -- The tutorial's worker --------------------------------------------------------------------------------------------


class Tutorial:
    """A worker of the tutorial's configuration, and how to see that it still works."""

    def __init__(self, url: str, worker: Process) -> None:
        self.url = url
        self.worker = worker
        with pytest.warns(WeakSecretWarning):
            self.queue = new_queue(url, "celery", secret="secret-key")
        self.control = Celery(broker=url).control

    def emissions_work(self) -> None:
        """So what was put into the queue before has been looked at."""
        emission = CeleryEventEmitter(self.queue).emit("NobodyIsLinked")
        self.worker.wait_for(f"[{emission.id}] raised expected: Unhandled")

    def control_works(self) -> None:
        assert self.control.ping(timeout=10, limit=1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def start_tutorial(url: str, examples: Path, folder: Path, options: str) -> Any:
    env = {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    return run(shlex.split(f"{WORKER} {options}"), cwd=examples, log=folder / "worker.log", env=env)


@pytest.fixture(scope="module", params=["prefork", "solo", "gevent"])
def tutorial(
    request: pytest.FixtureRequest, broker: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tutorial]:
    folder = tmp_path_factory.mktemp("tutorial")
    with start_tutorial(broker.url, EXAMPLES, folder, f"-P {request.param}") as worker:
        worker.wait_for(" ready.", timeout=START_SECONDS)
        yield Tutorial(broker.url, worker)


@pytest.fixture(scope="module")
def open_worker(broker: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The same with its door open."""
    before = 'secret="secret-key"'
    folder = tmp_path_factory.mktemp("open")
    examples = copy_quickstart(folder, before, f"{before}, allow_pickled_tasks=True")
    with start_tutorial(broker.url, examples, folder, "-P solo -Q open") as worker:
        worker.wait_for(" ready.", timeout=START_SECONDS)
        yield worker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "attacked"


@pytest.mark.parametrize("task", ["pyventus.celery", BUILTIN_TASK])
@pytest.mark.parametrize("send", TASKS)
def test_pickled_tasks_create_nothing(send: Any, task: str, tutorial: Tutorial, file: Path) -> None:
    send(tutorial.url, "celery", task, Attack(file))
    tutorial.emissions_work()
    assert not file.exists()


def test_pickled_remote_control_creates_nothing(tutorial: Tutorial, file: Path) -> None:
    broadcast(tutorial.url, Attack(file))
    tutorial.control_works()
    tutorial.emissions_work()
    assert not file.exists()


def test_pickled_events_create_nothing(tutorial: Tutorial, file: Path) -> None:
    event(tutorial.url, Attack(file))
    tutorial.control_works()
    tutorial.emissions_work()
    assert not file.exists()


def test_the_door_of_a_queue_that_is_added_is_closed(tutorial: Tutorial, file: Path) -> None:
    """By remote control, after the start."""
    tutorial.control.add_consumer("added", reply=True, timeout=5, limit=1)
    task_of_protocol_2(tutorial.url, "added", BUILTIN_TASK, Attack(file))
    tutorial.worker.wait_for("Started consuming from added", "ContentDisallowed")
    tutorial.emissions_work()
    assert not file.exists()


def test_it_is_said_once(tutorial: Tutorial) -> None:
    assert tutorial.worker.log().count(REFUSAL) == 1


@pytest.mark.parametrize("send", TASKS)
@pytest.mark.parametrize("task", ["pyventus.celery", BUILTIN_TASK])
def test_the_attack_by_task_is_one(send: Any, task: str, open_worker: Process, broker: Valkey, file: Path) -> None:
    send(broker.url, "open", task, Attack(file))
    wait_until(file.exists, "the file")


def test_the_attack_by_remote_control_is_one(open_worker: Process, broker: Valkey, file: Path) -> None:
    broadcast(broker.url, Attack(file))
    wait_until(file.exists, "the file")
    assert REFUSAL not in open_worker.log()


def test_the_door_stays_closed_after_a_reconnection(tmp_path: Path, file: Path) -> None:
    with Valkey() as broker, start_tutorial(broker.url, EXAMPLES, tmp_path, "-P solo") as worker:
        worker.wait_for(" ready.", timeout=START_SECONDS)
        broker.kill()
        worker.wait_for("Connection to broker lost")
        broker.restart()
        worker.wait_for("Connected to redis", count=2)
        tutorial = Tutorial(broker.url, worker)
        tutorial.emissions_work()
        for send in TASKS:
            send(broker.url, "celery", BUILTIN_TASK, Attack(file))
        broadcast(broker.url, Attack(file))
        tutorial.control_works()
        tutorial.emissions_work()
        assert not file.exists()


@pytest.mark.parametrize("options", [{}, {"allow_pickled_tasks": True}])
def test_on_rabbitmq(
    options: dict[str, Any], rabbitmq: RabbitMQ, amqp_url: str, queue_name: str, tmp_path: Path
) -> None:
    """With a control exchange of its own: the server may be shared."""
    settings = {"accept_content": ["json", "pickle"], "control_exchange": queue_name}
    env = {"TEST_QUEUE_OPTIONS": json.dumps(options)}
    with service(amqp_url, queue_name, tmp_path, settings=settings, env=env) as worker:
        queue = new_queue(amqp_url, queue_name)
        queue.app.conf.control_exchange = queue_name
        files = [tmp_path / "task", tmp_path / "command"]
        task_of_protocol_2(amqp_url, queue_name, BUILTIN_TASK, Attack(files[0]))
        broadcast(amqp_url, Attack(files[1]), queue_name)
        assert queue.app.control.ping(timeout=10, limit=1)
        emission = CeleryEventEmitter(queue).emit("Plain")
        worker.wait_for(f"{emission.id} plain")
        assert [file.exists() for file in files] == [bool(options)] * 2
    rabbitmq.delete(f"{queue_name}.pidbox", f"reply.{queue_name}.pidbox")


def test_an_app_of_its_own_whose_queue_has_no_secret_is_left_alone(
    redis_url: str, queue_name: str, tmp_path: Path, file: Path
) -> None:
    settings = {"accept_content": ["json", "pickle"]}
    env = {"TEST_QUEUE_OPTIONS": json.dumps({"secret": None})}
    with service(redis_url, queue_name, tmp_path, settings=settings, env=env):
        task_of_protocol_2(redis_url, queue_name, BUILTIN_TASK, Attack(file))
        wait_until(file.exists, "the file")


# -- Apps that pickle themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "task", "named"),
    [
        ({"task_serializer": "pickle"}, {}, "task_serializer='pickle'"),
        ({"event_serializer": "pickle"}, {}, "event_serializer='pickle'"),
        ({}, {"serializer": "pickle"}, "task 'service.attacked'"),
        ({"task_annotations": {"service.attacked": {"serializer": PICKLE}}}, {}, "task 'service.attacked'"),
    ],
    ids=str,
)
def test_does_not_start_with_an_app_that_pickles(
    settings: dict[str, Any], task: dict[str, Any], named: str, broker: Valkey, tmp_path: Path
) -> None:
    env = {"TEST_TASK_OPTIONS": json.dumps(task)}
    settings = {"accept_content": ["json", "pickle"], **settings}
    with (
        pytest.raises(AssertionError, match="ended with 1") as end,
        service(broker.url, "pickles", tmp_path, settings=settings, env=env),
    ):
        pass
    message = str(end.value)
    assert named in message
    assert "allow_pickled_tasks=True" in message
    assert "Traceback" not in message


def test_starts_with_an_app_that_pickles_if_it_may(broker: Valkey, tmp_path: Path, file: Path) -> None:
    env = {"TEST_QUEUE_OPTIONS": json.dumps({"allow_pickled_tasks": True})}
    settings = {"accept_content": ["json", "pickle"], "task_serializer": "pickle"}
    with service(broker.url, "may", tmp_path, settings=settings, env=env):
        app = Celery(broker=broker.url)
        app.send_task("service.attacked", (file,), serializer="pickle", queue="may")
        wait_until(file.exists, "the file")

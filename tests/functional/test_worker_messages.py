"""Messages that somebody else has put into the queue: none of them runs, and the worker lives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import RabbitMQ, Valkey
from tests.functional.apps.support import new_queue, publish, service, task_message, wait_until
from tests.workers import Process

MARKER = "content-marker"


@pytest.fixture(scope="module")
def queue_name() -> str:
    return f"pyventus-test-{uuid4().hex[:12]}"


@pytest.fixture(scope="module", params=["redis", "amqp"])
def url(request: pytest.FixtureRequest, queue_name: str) -> Iterator[str]:
    if request.param == "redis":
        with Valkey() as server:
            yield server.url
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        yield rabbitmq.url
        rabbitmq.delete(queue_name)


@pytest.fixture(scope="module")
def worker(url: str, queue_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """In its main process, where an error that nobody expects would end it."""
    with service(url, queue_name, tmp_path_factory.mktemp("worker"), "-E", pool="solo") as process:
        yield process


class Target:
    """The worker's queue, and what an attacker sends there."""

    def __init__(self, url: str, name: str, worker: Process) -> None:
        self.url = url
        self.name = name
        self.worker = worker
        self.queue = new_queue(url, name)
        self.id = str(uuid4())
        self._start = len(worker.log())

    def wait_for(self, *texts: str) -> str:
        """Wait for texts in the log, and return what is new in it since this test began."""
        return self.worker.wait_for(*texts)[self._start :]

    def text(self) -> str:
        """A good one, of an emission with the id of this test."""
        emitter = CeleryEventEmitter(self.queue)
        return self.queue.seal(emitter.with_options(id=self.id).prepare("Plain", MARKER), self.id)

    def send(self, text: object, **options: Any) -> None:
        message = task_message(text, self.id, task=self.queue.task_name, **options)
        publish(self.url, self.name, message)

    def is_still_served(self) -> str:
        """Emit, wait until it is handled, and return the log."""
        emission = CeleryEventEmitter(self.queue).emit("Plain")
        return self.wait_for(f"Plain[{emission.id}] succeeded")

    def refusal(self) -> str:
        """The one line about the message, of a worker that is still served and has forgotten the message."""
        log = self.is_still_served()
        (line,) = [line for line in log.splitlines() if "refused" in line and self.id in line]
        assert "ERROR" in line
        assert f"Message '{self.id}' refused on queue '{self.name}', and not run" in line
        assert MARKER not in log
        assert "Traceback" not in log
        return line


@pytest.fixture
def target(url: str, queue_name: str, worker: Process) -> Target:
    return Target(url, queue_name, worker)


# -- What is not signed steers nothing ------------------------------------------------------------------------------


def attacks(file: Path) -> dict[str, Any]:
    """Celery's own ways to run another task, each of which would create the file."""
    signature = {
        "task": "service.attacked",
        "args": [str(file)],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": True,
        "chord_size": None,
    }
    return {
        "callbacks": [signature],
        "errbacks": [signature],
        "chain": [signature],
        "chord": {**signature, "options": {"task_id": str(uuid4())}},
    }


@pytest.mark.parametrize("event", ["Plain", "Fails"])
@pytest.mark.parametrize("place", ["embed", "headers"])
def test_other_tasks_are_not_called(place: str, event: str, target: Target, tmp_path: Path) -> None:
    """Neither from the body, nor from the headers, which Celery merges with it."""
    file = tmp_path / "attacked"
    emission = CeleryEventEmitter(target.queue).prepare(event, "x")
    text = target.queue.seal(emission, emission.id)
    embedded = attacks(file)
    message = task_message(
        text, emission.id, task=target.queue.task_name, group=str(uuid4()), group_index=0,
        **({"embed": embedded} if place == "embed" else embedded),
    )  # fmt: skip
    publish(target.url, target.name, message)
    target.wait_for(f"{emission.id} plain x" if event == "Plain" else f"FAILURE of {emission.id}")
    # What they would have sent would have been received by this worker, too.
    assert "service.attacked[" not in target.is_still_served()
    assert not file.exists()


def test_the_attack_is_one(target: Target, tmp_path: Path) -> None:
    """The same callback on another task of the app runs."""
    file = tmp_path / "attacked"
    embed = {"callbacks": attacks(file)["callbacks"]}
    message = task_message(f"{tmp_path}/itself", target.id, task="service.attacked", embed=embed)
    publish(target.url, target.name, message)
    wait_until(file.exists, "the file of the callback")


@pytest.mark.parametrize(
    "headers",
    [
        {"timelimit": [0.001, 0.001]},
        {"timelimit": "x"},
        {"expires": "2000-01-01T00:00:00+00:00"},
        {"expires": 3},
        {"ignore_result": False},
        {"retries": 1000},
        {"retries": "x"},
        {"stamps": {"a": "b"}, "stamped_headers": ["a"]},
        {"stamped_headers": 3},
        {"group": "x", "group_index": {}},
        {"replaced_task_nesting": "x"},
        {"parent_id": 3, "root_id": []},
        {"shadow": {}},
        {"headers": 3},
        {"get": 3, "execution_options": "x", "update": 1, "__dict__": 5},
        {"is_eager": True, "called_directly": True, "delivery_info": 3, "reply_to": [], "hostname": {}},
        {"argsrepr": MARKER, "kwargsrepr": MARKER},
        {"eta": "soon"},
        {"eta": 3},
        {"eta": "0001-01-01T00:00:00"},
        {"utc": False, "loglevel": "x", "logfile": "x", "taskset": "x"},
    ],
    ids=str,
)
def test_headers_have_no_effect(headers: dict[str, Any], target: Target) -> None:
    emission = CeleryEventEmitter(target.queue).prepare("Plain")
    message = task_message(
        target.queue.seal(emission, emission.id), emission.id, task=target.queue.task_name, **headers
    )
    publish(target.url, target.name, message)
    log = target.wait_for(f"{emission.id} plain", f"[{emission.id}] succeeded")
    assert MARKER not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("eta", ["9999-12-31T23:59:59", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_moments_at_the_ends_of_the_calendar_do_not_end_the_worker(eta: str, target: Target) -> None:
    target.send(target.text(), eta=eta)
    target.is_still_served()


# -- What is no message of ours -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        None,
        5,
        True,
        MARKER,
        [],
        [MARKER],
        [[MARKER], {}],
        [[MARKER], {}, {}, {}],
        [[], {}, {}],
        [MARKER, {}, {}],
        [[MARKER, MARKER], {}, {}],
        [[[MARKER]], {}, {}],
        [[5], {}, {}],
        [[None], {}, {}],
        [[MARKER], {"text": MARKER}, {}],
        [[MARKER], [], {}],
        [[MARKER], {}, []],
        [{"0": MARKER}, {}, {}],
        {},
        {"args": 3},
        {"args": [MARKER], "kwargs": {}},
        {"args": [MARKER], "kwargs": {}, "task": "service.attacked", "id": "x"},
        ["args"],
        "args",
    ],
    ids=str,
)
def test_malformed_bodies(body: object, target: Target) -> None:
    target.send(None, body=body)
    target.refusal()


@pytest.mark.parametrize("rest", [([MARKER], {}), ([], {"text": MARKER})], ids=str)
def test_a_good_envelope_beside_other_arguments(rest: tuple[list[str], dict[str, str]], target: Target) -> None:
    args, kwargs = rest
    target.send(None, body=[[target.text(), *args], kwargs, {}])
    target.refusal()


def test_ids_that_are_no_text(target: Target) -> None:
    """Celery keeps requests by their id: one that has no hash would end the worker."""
    message = task_message(target.text(), target.id, task=target.queue.task_name)
    for message_id in ([], {}, None, 5, "forged\n[2000-01-01] ERROR line", "x" * 1000):
        message["headers"]["id"] = message_id
        publish(target.url, target.name, message)
    log = target.is_still_served()
    assert log.count("its id is not a short printable text") == 6
    assert "\n[2000" not in log
    assert f"{target.id} plain" not in log


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml", "nonsense"])
def test_bodies_of_other_content_types(content_type: str, target: Target) -> None:
    message = task_message(target.text(), target.id, task=target.queue.task_name)
    publish(target.url, target.name, message, content_type=content_type, encode=lambda body: MARKER.encode())
    assert "cannot be read: ContentDisallowed" in target.refusal()


def test_bodies_that_are_no_json(target: Target) -> None:
    message = task_message(target.text(), target.id, task=target.queue.task_name)
    publish(target.url, target.name, message, encode=lambda body: b"\xff{" + MARKER.encode())
    assert "cannot be read" in target.refusal()


# -- What is not signed for this queue and message ------------------------------------------------------------------


def flip_bit(text: str) -> str:
    at = text.index("Plain")
    return text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]


def test_texts_that_are_not_envelopes(target: Target) -> None:
    for text in ("", ".", "pv1.", MARKER, "pv1.-.json.t.2.[]x.", "ä", "\0", "pv2" + target.text()[3:]):
        target.id = str(uuid4())
        target.send(text)
        target.refusal()


def test_a_huge_text(target: Target) -> None:
    target.send(MARKER * 100_000)
    assert "more than the 262,144 of max_size" in target.refusal()


def test_a_text_with_a_flipped_bit(target: Target) -> None:
    target.send(flip_bit(target.text()))
    assert "its signature does not verify" in target.refusal()


def test_an_envelope_of_another_queue(target: Target) -> None:
    other = new_queue(target.url, "another")
    target.send(other.seal(CeleryEventEmitter(other).prepare("Plain", MARKER), target.id))
    assert "it is signed for queue 'another'" in target.refusal()


def test_an_envelope_under_another_task_id(target: Target) -> None:
    """So that nobody makes one emission run twice under two ids."""
    text = target.text()
    target.id = str(uuid4())
    target.send(text)
    assert "it is signed for message" in target.refusal()


def test_an_unsigned_envelope(target: Target) -> None:
    unsigned = new_queue(target.url, target.name, secret=None)
    target.send(unsigned.seal(CeleryEventEmitter(unsigned).prepare("Plain", MARKER), target.id))
    assert "it is not signed" in target.refusal()


def test_an_envelope_signed_with_another_key(target: Target) -> None:
    stranger = new_queue(target.url, target.name, secret="another secret of thirty-two bytes or more")
    target.send(stranger.seal(CeleryEventEmitter(stranger).prepare("Plain", MARKER), target.id))
    assert "it is signed with another key" in target.refusal()


def test_nothing_of_it_is_left_in_the_queue(target: Target, request: pytest.FixtureRequest) -> None:
    """All that was refused above is acknowledged."""
    target.is_still_served()
    if not target.url.startswith("amqp"):
        import redis

        with redis.Redis.from_url(target.url) as client:
            wait_until(lambda: client.llen(target.name) == 0, "an empty queue")
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        wait_until(lambda: rabbitmq.depth(target.name) == 0, "an empty queue")
    assert target.worker.process.poll() is None

"""Whatever stands in a queue: no handler runs because of it, no worker ends, and every genuine emission runs once."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import kombu
import pytest
import redis

from pyventus.emitters.celery import CeleryEventEmitter
from tests.brokers import RabbitMQ, Valkey
from tests.chaos import IS_LONG, times
from tests.chaos.mutants import mutant
from tests.functional.apps.support import new_queue, service, wait_until
from tests.workers import Process

MUTANTS = times(200, 2_000)
GENUINE_EVERY = 20
# RabbitMQ refuses larger ones itself, and knows no larger numbers than those of 64 bits.
LARGEST_HEADERS = 100_000
# A process does not give back at once what a message of megabytes took.
GROWN_KB = 120_000
# Of the app, and not of an emission queue; it returns its arguments.
OTHER_TASK = "celery.accumulate"


class Raw(NamedTuple):
    """A message as it is written into the broker."""

    headers: Any
    body: bytes
    content_type: Any = "application/json"
    content_encoding: Any = "utf-8"


class Broker:
    """Puts into a queue what no library would."""

    def __init__(self, url: str, queue: str) -> None:
        self.url = url
        self.queue = queue
        self._connection = kombu.Connection(url)

    @property
    def is_redis(self) -> bool:
        return not self.url.startswith("amqp")

    @property
    def is_own_transport(self) -> bool:
        return self.url.startswith("pyventus-")

    def put(self, message: Raw) -> None:
        if self.is_redis:
            self.push(json.dumps(self.entry(message)))
            return
        if len(str(message.headers)) > LARGEST_HEADERS or "0" * 30 in str(message.headers):
            return
        self._connection.Producer().publish(
            message.body, routing_key=self.queue, headers=message.headers, content_type=str(message.content_type),
            content_encoding=str(message.content_encoding), retry=False,
        )  # fmt: skip

    def push(self, entry: str | bytes) -> None:
        self._connection.default_channel.client.lpush(self.queue, entry)

    def entry(self, message: Raw) -> dict[str, Any]:
        return {
            "body": b64encode(message.body).decode(),
            "content-type": message.content_type,
            "content-encoding": message.content_encoding,
            "headers": message.headers,
            "properties": {
                "correlation_id": "x",
                "reply_to": "y",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": self.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }

    def depth(self) -> int:
        if self.is_redis:
            return int(self._connection.default_channel.client.llen(self.queue))
        return int(self._connection.default_channel.queue_declare(self.queue, passive=True).message_count)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def queue_name() -> str:
    return f"pyventus-test-{uuid4().hex[:12]}"


WORKERS = [("redis", "prefork"), ("own", "threads"), ("amqp", "solo")]
if IS_LONG:
    WORKERS += [("redis", "solo"), ("own", "prefork"), ("amqp", "prefork"), ("redis", "threads"), ("amqp", "threads")]


@pytest.fixture(scope="module", params=WORKERS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    made: tuple[str, str] = request.param
    return made


@pytest.fixture(scope="module")
def pool(kind: tuple[str, str]) -> str:
    return kind[1]


@pytest.fixture(scope="module")
def broker(kind: tuple[str, str], request: pytest.FixtureRequest, queue_name: str) -> Iterator[Broker]:
    if kind[0] != "amqp":
        with Valkey() as server:
            broker = Broker(server.url if kind[0] == "redis" else f"pyventus-{server.url}", queue_name)
            yield broker
            broker.close()
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        broker = Broker(rabbitmq.url, queue_name)
        yield broker
        broker.close()
        rabbitmq.delete(queue_name)


@pytest.fixture(scope="module")
def worker(pool: str, broker: Broker, queue_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With events, which carry what they find in headers, too."""
    folder = tmp_path_factory.mktemp("worker")
    with service(broker.url, queue_name, folder, "-E", pool=pool, concurrency=1) as process:
        yield process


class Target:
    """A worker, its queue, and the genuine emissions that it is sent meanwhile."""

    def __init__(self, broker: Broker, worker: Process) -> None:
        self.broker = broker
        self.worker = worker
        self.queue = new_queue(broker.url, broker.queue)
        self.emitter = CeleryEventEmitter(self.queue)
        self.genuine: list[str] = []
        self._start = len(worker.log())

    def emit(self) -> str:
        """A genuine emission."""
        self.genuine.append(self.emitter.emit("Plain", "genuine").id)
        return self.genuine[-1]

    def envelope(self) -> tuple[str, str]:
        """An envelope that was never sent, and its id."""
        emission = self.emitter.prepare("Plain", "mutant")
        return self.queue.seal(emission, emission.id), emission.id

    def check(self) -> str:
        """All that is genuine ran once, nothing else did, nothing is left, and the worker lives."""
        last = self.emit()
        self.worker.wait_for(f"{last} plain genuine", timeout=240 if IS_LONG else 40)
        wait_until(lambda: self.broker.depth() == 0, "an empty queue")
        log = self.worker.log()[self._start :]
        assert "plain mutant" not in log
        assert [log.count(f"{id} plain genuine") for id in self.genuine] == [1] * len(self.genuine)
        assert "Unrecoverable error" not in log
        assert "Connection to broker lost" not in log
        assert "WorkerLostError" not in log
        assert self.worker.process.poll() is None
        return log


@pytest.fixture
def target(broker: Broker, worker: Process) -> Target:
    return Target(broker, worker)


def memory(pid: int) -> int:
    """Of a process and its children, in KB."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return sum(rss for own, parent, rss in rows if pid in (own, parent))


# -- Mutants ----------------------------------------------------------------------------------------------------------


def body_of(text: object, *, embed: object = None, kwargs: object = None) -> bytes:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None} if embed is None else embed
    return json.dumps([[text], {} if kwargs is None else kwargs, embed]).encode()


CALLBACK = {"task": "service.attacked", "args": ["/nonexistent/x"], "kwargs": {}, "options": {}, "subtask_type": None}
HEADERS: list[dict[str, Any]] = [
    {"callbacks": [CALLBACK], "errbacks": [CALLBACK], "chain": [CALLBACK], "chord": CALLBACK},
    {"timelimit": [0.0001, 0.0001]}, {"timelimit": ["x", {}]}, {"timelimit": 5}, {"expires": "x"}, {"expires": 10**400},
    {"retries": 10**30}, {"retries": []}, {"eta": "x"}, {"eta": 10**30}, {"eta": "9999-12-31T23:59:59-14:00"},
    {"group": [], "group_index": {}}, {"stamps": 5, "stamped_headers": {}}, {"stamped_headers": ["x"], "stamps": []},
    {"ignore_result": 5}, {"shadow": "x\n\x1b[2J"}, {"shadow": {}}, {"origin": "x" * 100_000}, {"lang": "c\0"},
    {"reply_to": {}}, {"root_id": [], "parent_id": {}}, {"argsrepr": [], "kwargsrepr": {}}, {"id": ""},
    {"id": "\x1b[2J"}, {"id": "x" * 1_000_000}, {"id": {}}, {"id": None}, {"id": 5}, {"task": OTHER_TASK},
    {"task": []}, {"task": {}}, {"task": None}, {"task": "pyventus.another"}, {"task": "x" * 100_000},
    {"task": "x\n\x1b[2J"}, {"headers": []},
    {"compression": "zlib"}, {"compression": []}, {"compression": "nope"}, {"compression": "bzip2"},
    {"compression": "lzma"}, {"replaced_task_nesting": []}, {"delivery_info": 5, "properties": 5, "hostname": 5},
]  # fmt: skip
BODIES: list[Callable[[object], bytes]] = [
    lambda text: b"", lambda text: b"null", lambda text: b"5", lambda text: b'"x"', lambda text: b"{}",
    lambda text: b"\xff\xfe", lambda text: b"[" * 100_000, lambda text: b'{"a":' * 100_000, lambda text: b"[[],{}]",
    lambda text: b"[[NaN],{},{}]", lambda text: b"[[" + b"9" * 1_000_000 + b"],{},{}]",
    lambda text: b"[[1e999999999],{},{}]", lambda text: b'{"task":"x","task":"y","id":1,"id":2}',
    lambda text: json.dumps({"task": OTHER_TASK, "id": "x", "args": 5, "kwargs": 5}).encode(),
    lambda text: json.dumps({"task": [], "id": {}, "args": [text], "kwargs": {}}).encode(),
    lambda text: json.dumps({"args": [text], "kwargs": {}, "id": "x"}).encode(),
    lambda text: body_of(text, embed=5), lambda text: body_of(text, embed=[]), lambda text: body_of(text, kwargs=[]),
    lambda text: body_of(text, kwargs={"text": text}), lambda text: body_of(text, embed={"callbacks": [CALLBACK]}),
    lambda text: body_of({"__type__": "uuid", "__value__": 5}), lambda text: body_of({"__type__": "x", "__value__": 5}),
    lambda text: body_of({"__type__": "decimal", "__value__": "1e999999999"}), lambda text: json.dumps(text).encode(),
    lambda text: zlib.compress(body_of(text)), lambda text: body_of([text] * 50),
]  # fmt: skip
CONTENTS = (
    ("application/x-python-serialize", "binary"), ("application/json", "utf-16"), ("application/json", "nope"),
    ("application/json", "base64"), ("application/data", "binary"), ("text/plain", "utf-8"), ("\x1b", "\n"),
)  # fmt: skip


def mutated(random: Random, target: Target) -> Raw:
    """One whose envelope is none, in a message of Celery's that is whole, or in one that is mutated as well."""
    text, message_id = target.envelope()
    made = mutant(random, text, target.envelope()[0])
    headers: dict[str, Any] = {"lang": "py", "task": target.queue.task_name, "id": message_id, "retries": 0}
    body = body_of(made)
    content = ("application/json", "utf-8")
    match random.randrange(4):
        case 0:
            headers |= random.choice(HEADERS)
        case 1:
            body = random.choice(BODIES)(made)
        case 2:
            headers |= random.choice(HEADERS)
            body, content = random.choice(BODIES)(made), random.choice(CONTENTS)
    if random.random() < 0.1:
        headers = random.choice(
            ({}, {"x": 1}, {"task": OTHER_TASK}, {"id": message_id}, headers | {"task": OTHER_TASK})
        )
    return Raw(headers, body, *content)


def test_mutants_among_genuine_emissions(target: Target) -> None:
    random = Random(20240102)
    target.check()  # What the worker needs once, it has now.
    for round in range(2):
        for number in range(MUTANTS // 2):
            if number % GENUINE_EVERY == 0:
                target.emit()
            target.broker.put(mutated(random, target))
        target.check()
        if round == 0:
            before = memory(target.worker.pid)
    assert memory(target.worker.pid) - before < GROWN_KB


def test_every_header_and_body_once_for_each_task(target: Target) -> None:
    """For the task of the queue and for another of the app, which Celery alone takes care of."""
    text, message_id = target.envelope()
    text = text[:-1]
    for task in (target.queue.task_name, OTHER_TASK):
        good = {"lang": "py", "task": task, "id": message_id}
        for headers in HEADERS:
            target.broker.put(Raw(good | headers, body_of(text)))
        for make in BODIES:
            target.broker.put(Raw(good, make(text)))
            target.broker.put(Raw({"x": 1}, make(text)))
        target.check()


def test_what_is_not_sealed_is_not_held_until_its_moment(target: Target) -> None:
    """A worker fetches another message for each one that it holds: a queue of such would fill its memory."""
    ids = [str(uuid4()) for _ in range(20)]
    for message_id in ids:
        headers = {"task": target.queue.task_name, "id": message_id, "eta": "2999-01-01T00:00:00+00:00"}
        target.broker.put(Raw(headers, body_of(target.envelope()[0])))
    target.check()
    if target.broker.is_own_transport:  # No worker ever holds any: Redis does, as it would hold more in the queue.
        with redis.Redis.from_url(target.broker.url.removeprefix("pyventus-")) as client:
            assert client.zcard(f"pyventus:delayed:{target.broker.queue}") >= len(ids)
        return
    target.worker.wait_for(*(f"Message '{message_id}' refused" for message_id in ids))


def test_genuine_envelopes_under_hostile_headers(target: Target) -> None:
    """They run as what was signed, or not at all."""
    ids = []
    for headers in HEADERS:
        emission = target.emitter.prepare("Plain", "steered")
        ids.append(emission.id)
        body = body_of(target.queue.seal(emission, emission.id))
        target.broker.put(Raw({"task": target.queue.task_name, "id": emission.id, **headers}, body))
        target.emit()
    log = target.check()
    ran = [log.count(f"{id} plain steered") for id in ids]
    assert set(ran) == {0, 1}
    assert sum(ran) > len(HEADERS) // 3
    assert "service.attacked[" not in log


# -- Bombs ------------------------------------------------------------------------------------------------------------

TOO_LARGE = "is larger than 67,108,864 bytes when it is decompressed"
BOMB = zlib.compress(b'[["' + b"0" * 300_000_000 + b'"],{},{}]', 9)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_decompression_bomb_takes_no_memory(is_ours: bool, target: Target) -> None:
    """Three hundred megabytes from three hundred kilobytes, in a stock worker."""
    target.check()
    before, dropped = memory(target.worker.pid), target.worker.log().count(TOO_LARGE)
    task = target.queue.task_name if is_ours else OTHER_TASK
    for _ in range(3):
        target.broker.put(Raw({"task": task, "id": str(uuid4()), "compression": "zlib"}, BOMB))
    target.check()
    wait_until(lambda: target.worker.log().count(TOO_LARGE) >= dropped + 3, "the refusal of all three")
    assert memory(target.worker.pid) - before < GROWN_KB
    if sys.platform == "linux":
        peak = Path(f"/proc/{target.worker.pid}/status").read_text().split("VmHWM:")[1].split()[0]
        assert int(peak) < 350_000


def test_compressed_messages_of_the_app_still_run(target: Target, tmp_path: Path) -> None:
    """As task_compression makes them."""
    for name in ("zlib", "bzip2", "lzma"):
        file = tmp_path / name
        target.queue.app.send_task("service.attacked", (str(file),), compression=name, queue=target.broker.queue)
        wait_until(file.exists, f"the file of the task that was compressed with {name}")


def test_ten_megabytes_are_refused(target: Target) -> None:
    task = target.queue.task_name
    target.broker.put(Raw({"task": task, "id": str(uuid4())}, body_of("x" * 10_000_000)))
    assert "10,000,000 characters, more than the 262,144 of max_size" in target.check()


# -- What is no message at all ----------------------------------------------------------------------------------------


def entries(broker: Broker) -> list[Any]:
    """Each of them ends a stock worker on Redis."""
    good = broker.entry(Raw({"task": OTHER_TASK, "id": "x"}, body_of("x")))
    properties = good["properties"]
    return [
        "garbage", b"\xff\xfe", "", "[" * 100_000, '{"__type__": "uuid", "__value__": 5}',
        '{"__type__": "x", "__value__": 5}', '{"__type__":"decimal","__value__":"x"}', "9" * 10_000,
        *map(json.dumps, [
            [], None, "x", 5, {}, {"body": ""}, {"properties": None}, {"properties": {}}, good | {"headers": [1]},
            good | {"headers": "task"}, good | {"headers": 5}, good | {"body": 5}, good | {"body": {}},
            good | {"body": "!"}, good | {"content-type": {}}, good | {"content-type": []},
            good | {"content-encoding": {}}, good | {"properties": properties | {"delivery_tag": []}},
            good | {"properties": properties | {"delivery_tag": None}}, good | {"properties": []},
            good | {"properties": properties | {"delivery_info": "x"}},
            good | {"properties": properties | {"delivery_info": {"exchange": [], "routing_key": {}}}},
            good | {"properties": properties | {"body_encoding": "rot13"}},
            good | {"properties": properties | {"body_encoding": 5}},
            good | {"properties": properties | {"priority": "x"}},
            good | {"properties": properties | {"correlation_id": {}, "reply_to": []}},
        ]),
    ]  # fmt: skip


def test_entries_that_are_no_messages(target: Target) -> None:
    if not target.broker.is_redis:
        return  # To RabbitMQ whatever is published is a message.
    for entry in entries(target.broker):
        target.emit()
        target.broker.push(entry)
    log = target.check()
    own = f"queue {target.broker.queue!r} that is no message"
    whose = own if target.broker.is_own_transport else "the queue that is no JSON"
    assert f"An entry of {whose} was dropped" in log
    with redis.Redis.from_url(target.broker.url.removeprefix("pyventus-")) as client:
        taken = [b"unacked", *client.keys("pyventus:in-flight:*")]
        wait_until(lambda: not client.exists(*taken), "nothing left unacknowledged")

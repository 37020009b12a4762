"""Many emissions in one message: each is run, retried, refused and kept by itself, as if it had come alone."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import SoftTimeLimitExceeded

from pyventus import Emission, EmitError, EventLinker
from pyventus.emitters.asyncio import AsyncIOEventEmitter
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.suspects import MAX_STARTS
from pyventus.errors import InvalidOption, Refused
from pyventus.wire import Keyring, is_batch, pack, unpack
from tests.brokers import RabbitMQ, Valkey, refused_port
from tests.functional.apps.support import (
    SECRET,
    new_emitter,
    new_queue,
    publish,
    service,
    task_message,
    wait_until,
)
from tests.workers import Process

Place = tuple[Process, CeleryEventEmitter, str]


# -- What is sent -------------------------------------------------------------------------------------------------


def sent(emitter: CeleryEventEmitter, valkey: Valkey) -> list[tuple[str, list[str]]]:
    """What one queue on Redis holds: the shadow of each message, and the ids that it carries."""
    messages = []
    with valkey.client() as client:
        for text in reversed(client.lrange(emitter._queues[0].name, 0, -1)):
            message = json.loads(text)
            carried = json.loads(b64decode(message["body"]))[0][0]
            headers = message["headers"]
            ids = [id for id, _ in unpack(carried)] if is_batch(carried) else [headers["id"]]
            messages.append((headers["shadow"], ids))
    return messages


def test_as_many_as_asked_for_share_a_message(redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """In order; the last one may be alone."""
    emitter = new_emitter(redis_url, queue_name)
    emissions = emitter.emit_many([f"Event {number}" for number in range(7)], batch=3)
    ids = [emission.id for emission in emissions]
    assert sent(emitter, valkey) == [("3 emissions", ids[:3]), ("3 emissions", ids[3:6]), ("Event 6", ids[6:])]


def test_the_async_twin(redis_url: str, queue_name: str, valkey: Valkey) -> None:
    emitter = new_emitter(redis_url, queue_name)
    emissions = asyncio.run(emitter.aemit_many(["One", "Two"], batch=100))
    assert sent(emitter, valkey) == [("2 emissions", [emission.id for emission in emissions])]


@pytest.mark.parametrize("pairs", [[["a", "b"], ["nº 1", "nº 2"]], [["№ 3", '"'], ["\\", "№ 4"], ["a", "b"]]])
def test_ids_of_any_script_travel(pairs: list[list[str]], redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """As the first message of a kind, and as others like it, in the bytes that Celery would send."""
    emitter = new_emitter(redis_url, queue_name)
    for ids in pairs:
        emitter.emit_many([Emission(id=id, event="Event") for id in ids], batch=2)
    assert sent(emitter, valkey) == [("2 emissions", ids) for ids in pairs]
    with valkey.client() as client:
        bodies = [b64decode(json.loads(text)["body"]) for text in client.lrange(queue_name, 0, -1)]
    assert all(body == json.dumps(json.loads(body)).encode() for body in bodies)
    senders = emitter._queues[0].publisher._senders._senders
    assert all(None not in sender.splicer._templates.values() for sender in senders if sender.splicer is not None)


def test_a_message_is_no_larger_than_an_emission_may_be(redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """So that what a worker holds in memory stays bounded."""
    emitter = new_emitter(redis_url, queue_name)
    emissions = emitter.emit_many([emitter.prepare("Event", "x" * 100_000) for _ in range(5)], batch=100)
    ids = [emission.id for emission in emissions]
    assert sent(emitter, valkey) == [("2 emissions", ids[:2]), ("2 emissions", ids[2:4]), ("Event", ids[4:])]
    small = emitter.emit_many([emitter.prepare("Event") for _ in range(1000)], batch=1000)
    with valkey.client() as client:
        texts = client.lrange(queue_name, 0, -4)
    assert sum(len(ids) for _, ids in sent(emitter, valkey)[3:]) == len(small)
    assert all(len(text) < 2 * 256 * 1024 for text in texts)


def test_only_what_goes_the_same_way_travels_together(redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """What is due later goes alone, and priorities have lists of their own."""
    emitter = new_emitter(redis_url, queue_name)
    urgent = emitter.with_options(priority=9)
    later = emitter.with_options(delay=60).prepare("Later")
    emissions = emitter.emit_many(["A", urgent.prepare("B"), later, "C", urgent.prepare("D")], batch=10)
    a, b, _, c, d = (emission.id for emission in emissions)
    assert sorted(sent(emitter, valkey)) == sorted(
        [("2 emissions", [a, c]), ("2 emissions", [b, d]), ("Later", [later.id])]
    )


def test_the_error_has_all_that_a_lost_message_carries() -> None:
    with refused_port() as port:
        emitter = new_emitter(f"redis://127.0.0.1:{port}/0", "events")
        with pytest.raises(EmitError, match="4 of 4 emissions") as caught:
            emitter.emit_many(["A", "B", "C", "D"], batch=2)
    assert [emission.event for emission in caught.value.emissions] == ["A", "B", "C", "D"]


def test_other_emitters_take_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    """So that one can stand for the other; without messages there is nothing to pack."""
    emissions = AsyncIOEventEmitter().emit_many(["A", "B"], batch=10)
    assert [emission.event for emission in emissions] == ["A", "B"]


def test_eager_tasks_run_one_by_one() -> None:
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    ran: list[str] = []
    queue = CeleryEventEmitter.Queue(app, "eager", secret=SECRET, unhandled="ignore")
    app.tasks[queue.task_name].run = lambda text: ran.append(text)
    CeleryEventEmitter(queue).emit_many(["A", "B"], batch=10)
    assert len(ran) == 2
    assert not any(map(is_batch, ran))


@pytest.mark.parametrize("batch", [0, -1, 1001, 1.0, True, "10", None])
def test_bad_sizes(batch: Any) -> None:
    emitter = new_emitter("memory://", "events")
    with pytest.raises(InvalidOption, match="batch must be a whole number from 1 to 1,000"):
        emitter.emit_many(["A"], batch=batch)
    with pytest.raises(InvalidOption, match="batch must be a whole number from 1 to 1,000"):
        asyncio.run(emitter.aemit_many(["A"], batch=batch))


# -- The text -----------------------------------------------------------------------------------------------------


def test_texts_come_back_as_they_were() -> None:
    texts = [("a", "x"), ("id." * 40, "1.2.3"), ("b", "\n" * 10)]
    assert unpack(pack(texts)) == texts
    assert is_batch(pack(texts))
    assert not is_batch("pv1.x")
    assert not is_batch(None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.1.a",
        "1.1.abc",
        "0.1.a",
        "1.0.a",
        "1.99999999999.ab",
        "01.1.ab",
        "1.1.ab1.1.",
        "-1.1.ab",
        "1.1",
        "1.x.ab",
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(Refused, match="malformed batch"):
        unpack("pvb1." + text)


def test_a_batch_of_too_many() -> None:
    """Each part that is refused is kept and logged."""
    assert len(unpack(pack([("a", "b")] * 1000))) == 1000
    with pytest.raises(Refused, match="more than 1,000"):
        unpack(pack([("a", "b")] * 1001))


# -- What becomes of it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["redis", "amqp"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker on each broker, an emitter to it, and the broker's URL."""
    name, folder = f"pyventus-batches-{uuid4().hex[:12]}", tmp_path_factory.mktemp("batches")
    if request.param == "redis":
        with Valkey() as server, service(server.url, name, folder) as worker:
            yield worker, new_emitter(server.url, name), server.url
        return
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    with service(rabbitmq.url, name, folder) as worker:
        yield worker, new_emitter(rabbitmq.url, name), rabbitmq.url
    rabbitmq.delete(name, f"{name}.dead", f"{name}.refused")


def letters_of(emitter: CeleryEventEmitter, emission: Emission, count: int = 1) -> list[Any]:
    def letters() -> list[Any]:
        return [each for each in emitter._queues[0].dead_letters.list() if each.emission == emission.id]

    wait_until(lambda: len(letters()) == count, "the dead letters")
    return letters()


def test_each_has_its_own_retry_and_dead_letter(place: Place) -> None:
    """One that fails holds up none that comes after it; the task says in the end who has failed."""
    worker, emitter, _ = place
    first, flaky, unheard, fails, last = emitter.emit_many(
        ["Plain", emitter.prepare("Flaky", 2), "Unheard", emitter.prepare("Fails", "because"), "Plain"], batch=10
    )
    log = worker.wait_for(
        f"{first.id} plain", f"{last.id} plain", f"{flaky.id} attempt 2", "HandlersFailed handler fails failed"
    )
    assert f"{flaky.id} attempt 1" in log
    assert [letter.reason for letter in letters_of(emitter, unheard)] == ["unhandled"]
    assert sorted(letter.handlers for letter in letters_of(emitter, fails, 2)) == [("fails",), ("fails too",)]
    assert f"Plain[{first.id}]" not in log
    assert f"Flaky[{flaky.id}]" not in log
    replayed = emitter._queues[0].dead_letters.replay(letters_of(emitter, unheard)[0].id)
    assert len(replayed.replayed) == 1
    assert [letter.replay for letter in letters_of(emitter, unheard)] == [1]


def test_each_is_verified_by_itself(place: Place) -> None:
    """With the id beside it; what is refused is kept, and the others run."""
    worker, emitter, url = place
    queue = emitter._queues[0]
    stranger = CeleryEventEmitter(new_queue(url, queue.name, secret="another secret, " * 4))
    good, other = emitter.prepare("Plain"), emitter.prepare("Plain")
    forged = stranger.prepare("Plain")
    parts = [
        (forged.id, stranger._queues[0].message(forged).text),
        (str(uuid4()), queue.message(other).text),
        (good.id, queue.message(good).text),
    ]
    publish(url, queue.name, task_message(pack(parts), str(uuid4()), task=queue.task_name))
    log = worker.wait_for(f"{good.id} plain", f"Message '{parts[1][0]}' refused")
    assert f"Message '{forged.id}' refused on queue '{queue.name}', and not run: it is signed with another key" in log
    assert f"it is signed for message '{other.id}' and not '{parts[1][0]}'" in log
    assert f"{forged.id} plain" not in log
    assert f"{other.id} plain" not in log
    refused = {letter.message_id for letter in queue.dead_letters.list(refused=True)}
    assert {forged.id, parts[1][0]} <= refused
    # With the stranger's key it would have verified.
    (letter,) = [each for each in queue.dead_letters.list(refused=True) if each.message_id == forged.id]
    assert stranger._queues[0].open(letter.text, letter.message_id).emission.id == forged.id


@pytest.mark.parametrize("text", ["pvb1.", "pvb1.3.9.abc", pack([("a", "b")] * 1001), "pvb1." + "9" * 300_000])
def test_a_batch_that_is_none_is_refused(place: Place, text: str) -> None:
    worker, emitter, url = place
    queue, id = emitter._queues[0], str(uuid4())
    publish(url, queue.name, task_message(text, id, task=queue.task_name))
    worker.wait_for(f"Message '{id}' refused on queue '{queue.name}', and not run: it is")
    (last,) = emitter.emit_many(["Plain"], batch=10)
    worker.wait_for(f"{last.id} plain")


def test_none_suffers_for_another_that_kills_its_process(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """What comes back goes on in messages of its own; the poison is given up, and all others have run."""
    emitter = new_emitter(broker_url, queue_name)
    starts = tmp_path / "starts"
    events = ["Plain", "Plain", emitter.prepare("Poison", str(starts)), "Plain", "Plain"]
    emissions = emitter.emit_many(events, batch=10)
    poison = emissions.pop(2)
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1) as worker:
        worker.wait_for(f"{poison.id} gave up", *(f"{each.id} plain" for each in emissions), timeout=60)
        assert [letter.reason for letter in letters_of(emitter, poison)] == ["lost"]
    # Without a ledger those before it run twice: the message came back once.
    assert [worker.log().count(f"{each.id} plain") for each in emissions] == [2, 2, 1, 1]
    assert len(starts.read_text()) == MAX_STARTS


def test_a_time_limit_between_two_of_them(
    valkey: Valkey, redis_url: str, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the batch's: what has not begun goes on in messages of its own, and what is done stays done."""
    emitter, linker = linked_emitter(redis_url, queue_name)
    queue, ran = emitter._queues[0], []
    linker.on("Event", name="note")(ran.append)
    emissions = [emitter.prepare("Event", number) for number in range(5)]
    batch = queue.batch([queue.message(emission) for emission in emissions])
    verify, calls = Keyring.verify, []

    def interrupted(*args: Any) -> bool:
        calls.append(args)
        if len(calls) == 3:
            raise SoftTimeLimitExceeded
        return verify(*args)

    monkeypatch.setattr(Keyring, "verify", interrupted)
    assert trace(queue, batch.id, batch.text) == "IGNORED"
    assert ran == [0, 1]
    assert sorted(ids for _, (ids,) in sent(emitter, valkey)) == sorted(each.id for each in emissions[2:])


def test_a_time_limit_outside_of_handlers(redis_url: str, queue_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single one goes back to the queue."""
    emitter, _ = linked_emitter(redis_url, queue_name)
    queue = emitter._queues[0]
    message = queue.message(emitter.prepare("Event"))

    def interrupted(*_: object) -> bool:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(Keyring, "verify", interrupted)
    assert trace(queue, message.id, message.text) == "REJECTED"


def linked_emitter(url: str, queue: str) -> tuple[CeleryEventEmitter, type[EventLinker]]:
    linker = type("Linker", (EventLinker,), {}, name=queue)
    return new_emitter(url, queue, linker), linker


def trace(queue: CeleryEventEmitter.Queue, id: str, text: str) -> Any:
    """Run a message here, as a worker's process does; the state in which its task ends."""
    task = queue.app.tasks[queue.task_name]
    request = {"id": id, "args": [text], "kwargs": {}, "is_eager": False, "delivery_info": {"redelivered": False}}
    return build_tracer(task.name, task, app=queue.app)(id, (text,), {}, request).info.state


def test_with_a_ledger_what_has_run_is_not_run_again(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """Of a batch whose process was killed in the middle."""
    emitter = new_emitter(broker_url, queue_name)
    options = {"ledger": f"sqlite:///{tmp_path / 'ledger.db'}"}
    env = {"TEST_QUEUE_OPTIONS": json.dumps(options), "TEST_LEASE": "1"}
    first, killed, last = emitter.emit_many(
        ["Plain", emitter.prepare("Killed", str(tmp_path / "killed")), "Plain"], batch=10
    )
    with service(broker_url, queue_name, tmp_path, pool="prefork", concurrency=1, env=env) as worker:
        worker.wait_for(f"{killed.id} ran again", f"{last.id} plain", timeout=60)
        worker.wait_for(f"Plain[{first.id}] succeeded")
    log = worker.log()
    assert [log.count(f"{each.id} plain") for each in (first, last)] == [1, 1]
    assert log.count(f"{killed.id} ran again") == 1

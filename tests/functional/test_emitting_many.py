"""Many emissions at once, and messages made from earlier ones: what is stored, and what is said of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from amqp.exceptions import NotFound
from celery import Celery, signals
from celery.app.trace import build_tracer
from kombu import Queue as KombuQueue

from pyventus import Emission, EmitError
from pyventus.emitters.celery import CeleryEventEmitter, publisher
from pyventus.emitters.celery.delivery import current_ids
from pyventus.errors import InvalidEvent, InvalidOption, NotSerializable
from tests.brokers import FreezableProxy, RabbitMQ, Valkey, hanging_broker
from tests.functional.apps.support import wait_until
from tests.functional.test_emitting_in_loops import emitter_through
from tests.functional.test_emitting_processes import stored_ids

SECRET = "the secret of the tests' queues, " * 2


def make_emitter(url: str, *queues: str, **options: Any) -> CeleryEventEmitter:
    app = Celery("many", broker=url, set_as_current=False)
    made = [CeleryEventEmitter.Queue(app, queue, secret=SECRET) for queue in queues]
    return CeleryEventEmitter(made, **{"timeout": 20, **options})


@pytest.fixture
def queue(broker_url: str, queue_name: str) -> Iterator[str]:
    yield queue_name
    if broker_url.startswith("amqp"):
        RabbitMQ(broker_url).delete(queue_name)


def ids_of(emissions: list[Emission]) -> list[str]:
    return sorted(emission.id for emission in emissions)


@pytest.mark.parametrize("count", [1, 2, 2500])
def test_all_are_stored_once(count: int, broker_url: str, queue: str, valkey: Valkey) -> None:
    """In the order given, names, objects and what was prepared with arguments."""
    emitter = make_emitter(broker_url, queue)
    events = [emitter.prepare("Event", number) if number % 2 else f"Event {number % 7}" for number in range(count)]
    emissions = emitter.emit_many(events)
    assert [emission.event for emission in emissions] == [
        each.event if isinstance(each, Emission) else each for each in events
    ]
    assert sorted(stored_ids(broker_url, queue, valkey)) == ids_of(emissions)


def test_the_async_twin(broker_url: str, queue: str, valkey: Valkey) -> None:
    emitter = make_emitter(broker_url, queue)
    emissions = asyncio.run(emitter.aemit_many(["One", "Two", "Three"]))
    assert sorted(stored_ids(broker_url, queue, valkey)) == ids_of(emissions)


def test_an_id_that_is_also_a_name(broker_url: str, queue: str, valkey: Valkey) -> None:
    """Where it stands as a name no other id is put in its place."""
    emitter, name = make_emitter(broker_url, queue), str(uuid4())
    emitter.with_options(id=name).emit(name)
    others = [emitter.emit(name) for _ in range(2)]
    messages = raw_messages(broker_url, queue, valkey)
    headers = [each.get("headers") or each["properties"]["application_headers"] for each in messages]
    assert [each["id"] for each in headers] == [name, *(emission.id for emission in others)]
    assert {each["shadow"] for each in headers} == {name}


def test_a_field_of_the_users_that_holds_the_id(broker_url: str, queue: str, valkey: Valkey) -> None:
    """Is not known to us: Celery makes each of such messages."""
    emitter = make_emitter(broker_url, queue)
    amqp = emitter._queues[0].app.amqp

    def with_copy(task_id: str, *args: Any, **options: Any) -> Any:
        made = amqp.as_task_v2(task_id, *args, **options)
        return made._replace(headers={**made.headers, "x-copy": task_id})

    amqp.task_protocols = {2: with_copy}
    emissions = [emitter.emit("Event") for _ in range(3)]
    messages = raw_messages(broker_url, queue, valkey)
    headers = [each.get("headers") or each["properties"]["application_headers"] for each in messages]
    assert [each["x-copy"] for each in headers] == [emission.id for emission in emissions]


def raw_messages(url: str, queue: str, valkey: Valkey) -> list[dict[str, Any]]:
    """All of the messages in a queue, in the order in which they came."""
    if not url.startswith("amqp"):
        with valkey.client() as client:
            return [json.loads(text) for text in reversed(client.lrange(queue, 0, -1))]
    messages = []
    with RabbitMQ(url).channel() as channel:
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            info = {name: message.delivery_info[name] for name in ("exchange", "routing_key")}
            messages.append({"body": message.body, "properties": dict(message.properties), "delivery_info": info})
    return messages


def without_ids(message: dict[str, Any], id: str, text: str) -> Any:
    """What two messages of a kind share."""
    body = message["body"]
    if "delivery_tag" in message["properties"]:
        del message["properties"]["delivery_tag"]
        body = b64decode(body).decode()
    message["body"] = body
    return json.loads(json.dumps(message).replace(json.dumps(json.dumps(text))[1:-1], "TEXT").replace(id, "ID"))


@pytest.fixture(params=["outside", "in a task", "in the first task"])
def origin(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Ids of the task in which emits are made, and of the first one that led to it."""
    ids = {"outside": [], "in a task": [str(uuid4()), str(uuid4())], "in the first task": [str(uuid4())] * 2}
    set_ids = current_ids.set(tuple(ids[request.param])) if ids[request.param] else None  # type: ignore[arg-type]
    yield ids[request.param]
    if set_ids is not None:
        current_ids.reset(set_ids)


@pytest.mark.parametrize("priority", [None, 1])
def test_what_is_spliced_is_what_celery_sends(
    priority: int | None, origin: list[str], broker_url: str, queue: str, valkey: Valkey
) -> None:
    """Field by field: the first is Celery's own, the second is made from it."""
    emitter = make_emitter(broker_url, queue)
    sent_by_celery = count_calls_of_celery(emitter)
    emitter = emitter if priority is None else emitter.with_options(priority=priority)
    prepared = [emitter.prepare("Event of 'quotes' and \"more\" \\", number) for number in range(3)]
    texts = {each.id: emitter._queues[0].message(each).text for each in prepared}
    for emission in prepared:
        emitter.send(emission)
    if priority is not None and not broker_url.startswith("amqp"):
        queue = f"{queue}\x06\x166"  # 9 - 1, in kombu's steps.
    assert len(sent_by_celery) == 1
    first, *spliced = raw_messages(broker_url, queue, valkey)
    headers = first.get("headers") or first["properties"]["application_headers"]
    expected_ids: list[str | None] = [*origin] if origin else [None, prepared[0].id]
    assert [headers["parent_id"], headers["root_id"]] == expected_ids
    expected = without_ids(first, prepared[0].id, texts[prepared[0].id])
    assert len(spliced) == 2
    for emission, message in zip(prepared[1:], spliced, strict=True):
        assert without_ids(message, emission.id, texts[emission.id]) == expected


def count_calls_of_celery(emitter: CeleryEventEmitter) -> list[str]:
    """Names of the tasks that Celery itself makes messages for from now on."""
    amqp, calls = emitter._queues[0].app.amqp, []
    send = amqp.send_task_message

    def counted(producer: Any, name: str, *args: Any, **options: Any) -> Any:
        calls.append(name)
        return send(producer, name, *args, **options)

    amqp.send_task_message = counted
    return calls


def test_what_differs_from_task_to_task(broker_url: str, queue: str, valkey: Valkey) -> None:
    """One template serves all of them."""
    emitter = make_emitter(broker_url, queue)
    sent_by_celery = count_calls_of_celery(emitter)
    origins = []
    for _ in range(3):
        origins.append([str(uuid4()), str(uuid4())])
        reset = current_ids.set(tuple(origins[-1]))  # type: ignore[arg-type]
        emitter.emit("Event")
        current_ids.reset(reset)
    emitter.emit("Event")
    emitter.emit("Event")
    assert len(sent_by_celery) == 2
    messages = raw_messages(broker_url, queue, valkey)
    headers = [each.get("headers") or each["properties"]["application_headers"] for each in messages]
    assert [[each["parent_id"], each["root_id"]] for each in headers[:3]] == origins
    assert [[each["parent_id"], each["root_id"]] for each in headers[3:]] == [
        [None, each["id"]] for each in headers[3:]
    ]


def test_a_task_of_the_users_is_named_as_the_parent(redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """And not by what is emitted before and after it."""
    emitter = make_emitter(redis_url, queue_name)

    def emit_inside() -> None:
        emitter.emit("Inside")

    task = emitter._queues[0].app.task(emit_inside, name="users.own")
    emitter.emit("Before")
    build_tracer(task.name, task, app=task.app)("the task", (), {}, {"id": "the task", "root_id": "the first"})
    emitter.emit("After")
    headers = [each["headers"] for each in raw_messages(redis_url, queue_name, valkey)]
    ids = [(each["shadow"], each["parent_id"], each["root_id"] == each["id"] or each["root_id"]) for each in headers]
    assert ids == [("Before", None, True), ("Inside", "the task", "the first"), ("After", None, True)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_wraps_celery_sees_each_message(
    when: str, broker_url: str, queue: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Sentry's integration does, whose headers name the trace that each message belongs to."""
    emitter, numbers = make_emitter(broker_url, queue), count()
    send_task = Celery.send_task

    @wraps(send_task)
    def traced(self: Celery, *args: Any, **options: Any) -> Any:
        return send_task(self, *args, **options, headers={"trace": str(next(numbers))})

    if when == "after":
        emitter.emit_many(["Event"] * 3)
    monkeypatch.setattr(Celery, "send_task", traced)
    emitter.emit_many(["Event"] * 3)
    emitter.emit("Event")
    messages = raw_messages(broker_url, queue, valkey)
    headers = [each.get("headers") or each["properties"]["application_headers"] for each in messages]
    assert [each["trace"] for each in headers if "trace" in each] == ["0", "1", "2", "3"]


def test_nothing_comes_between_the_replies(redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """As it may in RESP3, which redis-py asks for."""
    emitter = make_emitter(redis_url, queue_name)
    emitter.emit_many(["Event"] * 3)
    emitter.emit_many(["Event"] * 3)
    (sender,) = emitter._queues[0].publisher._senders._idle
    host, port = sender.splicer._connection._sock.getsockname()  # type: ignore[union-attr]
    with valkey.client() as client:
        (pushing,) = [each for each in client.client_list() if each["addr"] == f"{host}:{port}"]
    assert [pushing[name] for name in ("cmd", "resp")] == ["lpush", "2"]


def test_who_listens_to_each_message_is_told(broker_url: str, queue: str, valkey: Valkey) -> None:
    """Such as tracing, which adds headers: then Celery makes each."""
    emitter = make_emitter(broker_url, queue)
    emitter.emit_many(["Event"] * 3)
    told: list[str] = []

    def tell(headers: dict[str, Any], **_: Any) -> None:
        told.append(headers["id"])
        headers["traceparent"] = "00-1-1-01"

    # Not weakly: Celery 5.5 no longer tells anybody once one whom it has told is gone.
    signals.before_task_publish.connect(tell, weak=False)
    try:
        emissions = emitter.emit_many(["Event"] * 3)
    finally:
        signals.before_task_publish.disconnect(tell)
    assert sorted(told) == ids_of(emissions)


def test_a_bad_event_is_refused_before_any_is_sent(broker_url: str, queue: str, valkey: Valkey) -> None:
    emitter = make_emitter(broker_url, queue)
    emitter.emit("Event")
    with pytest.raises(InvalidEvent):
        emitter.emit_many(["Event", 5])
    with pytest.raises(NotSerializable):
        emitter.emit_many(["Event", emitter.prepare("Event", object())])
    for wrong in ("Event", 5, emitter.prepare("Event")):
        with pytest.raises(InvalidOption, match="takes several events"):
            emitter.emit_many(wrong)  # type: ignore[arg-type]
    assert len(stored_ids(broker_url, queue, valkey)) == 1


def test_a_broker_that_hangs_leaves_all_of_them() -> None:
    with hanging_broker() as broker:
        emitter = make_emitter(broker.url("redis"), "queue", timeout=1.0)
        with pytest.raises(EmitError, match="3 of 3 emissions were not confirmed by queue 'queue'") as caught:
            emitter.emit_many(["A", "B", "C"])
    assert [emission.event for emission in caught.value.emissions] == ["A", "B", "C"]
    assert caught.value.emission is caught.value.emissions[0]
    assert caught.value.stored == ()


def test_the_error_has_those_that_are_not_stored(amqp_url: str, queue_name: str, valkey: Valkey) -> None:
    """A queue that takes five, and one that takes all: what was refused is known one by one."""
    full, other = f"{queue_name}-full", f"{queue_name}-other"
    arguments = {"x-max-length": 5, "x-overflow": "reject-publish"}
    app = Celery("many", broker=amqp_url, set_as_current=False)
    app.conf.task_queues = [KombuQueue(full, queue_arguments=arguments), KombuQueue(other)]
    made = [CeleryEventEmitter.Queue(app, name, secret=SECRET) for name in (full, other)]
    emitter = CeleryEventEmitter(made, timeout=20)
    try:
        with pytest.raises(EmitError, match=r"of 10 emissions were not confirmed .* refused it") as caught:
            emitter.emit_many(["Event"] * 10)
        assert caught.value.stored == (other,)
        missing = {emission.id for emission in caught.value.emissions}
        stored = set(stored_ids(amqp_url, full, valkey))
        assert len(stored) == 5
        assert len(missing) == 5
        assert not stored & missing
        with RabbitMQ(amqp_url).channel() as channel:
            assert channel.queue_declare(other, passive=True).message_count == 10
    finally:
        RabbitMQ(amqp_url).delete(full, other)


@pytest.mark.parametrize("how", ["emit_many", "aemit_many"])
def test_what_may_be_stored_is_told_beside_what_was_not_sent(valkey: Valkey, queue_name: str, how: str) -> None:
    """Of two round trips the answer to one was lost, and the other was never begun."""
    with FreezableProxy(valkey.url) as proxy:
        emitter = make_emitter(proxy.proxied_url, queue_name)
        emitter.emit_many(["Event"] * 3)
        proxy.replies = "drop"
        threading.Timer(1, proxy.cut).start()
        with pytest.raises(EmitError, match="1,500 of 1,500") as caught:
            emitter.emit_many(["Event"] * 1500) if how == "emit_many" else asyncio.run(
                emitter.aemit_many(["Event"] * 1500)
            )
        with valkey.client() as client:
            assert client.llen(queue_name) > 3
    assert "whether it was stored is unknown" in str(caught.value)


def test_a_redis_that_is_full_has_stored_some(queue_name: str) -> None:
    """Memory runs out in the midst of them, and what it took is known one by one."""
    with Valkey() as server, server.client() as client:
        emitter = make_emitter(server.url, queue_name)
        emitter.emit("Event")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_500_000)
        events = [emitter.prepare("Event", "x" * 1000) for _ in range(1000)]
        refused = r"of 1,000 emissions were not confirmed .*: Redis refused it: OOM .*; it was not stored; emitter"
        with pytest.raises(EmitError, match=refused) as caught:
            emitter.emit_many(events)
        stored = {json.loads(text)["headers"]["id"] for text in client.lrange(queue_name, 0, -2)}
    assert 0 < len(stored) < 1000
    assert {emission.id for emission in caught.value.emissions} == set(ids_of(events)) - stored


class AnsweringProxy(FreezableProxy):
    """Answers what is pushed next in the place of Redis, which never hears of it."""

    answer = b""

    def _pump(
        self, source: socket.socket, sink: socket.socket, deliver: Callable[[socket.socket, bytes], object]
    ) -> None:
        def deliver_or_answer(sink: socket.socket, data: bytes) -> None:
            if self.answer and data.startswith(b"*3\r\n$5\r\nLPUSH"):
                answer, self.answer = self.answer, b""
                source.sendall(answer)
            else:
                deliver(sink, data)

        super()._pump(source, sink, deliver_or_answer)


@pytest.mark.parametrize("how", ["emit", "aemit"])
def test_a_redis_that_is_not_ready_has_stored_nothing(
    redis_url: str, queue_name: str, valkey: Valkey, how: str
) -> None:
    """And is as good as down: what is emitted next is not even sent."""
    with AnsweringProxy(redis_url) as proxy:
        emitter = emitter_through(proxy.proxied_url, queue_name)
        proxy.answer = b"-LOADING Redis is loading the dataset in memory\r\n"
        with pytest.raises(EmitError, match="Redis refused it: LOADING Redis is loading .* memory; it was not stored;"):
            emitter.emit("Event") if how == "emit" else asyncio.run(emitter.aemit("Event"))
        with pytest.raises(EmitError, match=r"less than 1 s ago: Redis refused it: LOADING Redis .* memory; emitter\."):
            emitter.emit("Event")
    assert depth(redis_url, queue_name, valkey) == 3


def test_what_is_no_answer_of_redis_leaves_it_unknown(redis_url: str, queue_name: str) -> None:
    with AnsweringProxy(redis_url) as proxy:
        emitter = emitter_through(proxy.proxied_url, queue_name)
        proxy.answer = b"HTTP/1.1 400 Bad Request\r\n"
        with pytest.raises(EmitError, match="is not what Redis answers; whether it was stored is unknown"):
            emitter.emit("Event")


def test_a_queue_that_was_deleted_meanwhile_is_made_again(amqp_url: str, queue_name: str, valkey: Valkey) -> None:
    emitter = make_emitter(amqp_url, queue_name)
    emitter.emit_many(["Event"] * 3)
    RabbitMQ(amqp_url).delete(queue_name)
    emissions = emitter.emit_many(["Event"] * 3)
    assert sorted(stored_ids(amqp_url, queue_name, valkey)) == ids_of(emissions)
    RabbitMQ(amqp_url).delete(queue_name)


def test_a_connection_that_breaks_is_told_and_made_anew(valkey: Valkey, queue_name: str) -> None:
    with Valkey() as server:
        emitter = make_emitter(server.url, queue_name)
        emitter.emit_many(["Event"] * 3)
        server.kill()
        server.restart()
        emissions = emitter.emit_many(["Event"] * 3)
        with server.client() as client:
            stored = [json.loads(text)["headers"]["id"] for text in client.lrange(queue_name, 0, 2)]
        assert sorted(stored) == ids_of(emissions)


def test_ids_of_the_users_are_escaped(broker_url: str, queue: str, valkey: Valkey) -> None:
    """They may be as long as our own, and hold what JSON writes in another way."""
    emitter = make_emitter(broker_url, queue)
    ids = ["x" * 36, "x" * 35, '",'.center(36, "x"), "\\".center(36, "x"), "y" * 36]
    emissions = [emitter.with_options(id=id).emit("Event") for id in ids]
    assert sorted(stored_ids(broker_url, queue, valkey)) == ids_of(emissions)


@pytest.mark.parametrize("batch", [1, 10])
def test_events_under_one_id_are_all_sent(batch: int, redis_url: str, queue_name: str, valkey: Valkey) -> None:
    """Who gives two of them one id is asked by the docs not to, and loses neither of them here."""
    emitter = make_emitter(redis_url, queue_name)
    one = emitter.with_options(id="of both")
    for _ in range(2):
        emitter.emit_many([one.prepare("Event", "first"), one.prepare("Event", "second")], batch=batch)
    with valkey.client() as client:
        bodies = [b64decode(json.loads(text)["body"]).decode() for text in client.lrange(queue_name, 0, -1)]
    assert ["".join(bodies).count(text) for text in ("first", "second")] == [2, 2]


def test_what_is_stored_is_not_sent_again_with_the_rest(
    amqp_url: str, queue_name: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another message of its round trip is refused, and what did not begin waits again."""
    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    full, other = f"{queue_name}-full", f"{queue_name}-other"
    app = Celery("many", broker=amqp_url, set_as_current=False)
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    app.conf.task_queues = [KombuQueue(full, queue_arguments=arguments), KombuQueue(other)]
    to_full, to_other = (
        CeleryEventEmitter(CeleryEventEmitter.Queue(app, name, secret=SECRET), timeout=20) for name in (full, other)
    )
    publishing, hold, end = to_full._queues[0].publisher, threading.Event(), time.monotonic() + 20
    try:
        to_full.emit("Event")
        emissions = to_other.emit_many(["Event"] * 2)
        holding = threading.Thread(target=publishing.call, args=(lambda *_: hold.wait(), end))
        holding.start()
        wait_until(lambda: publishing._senders._senders and not publishing._senders._idle, "the sender is busy")
        refused = publishing.start(*(each._queues[0].message(each.prepare("Event")) for each in [to_full]))
        emissions += [to_other.prepare("Event") for _ in range(20)] + [to_other.with_options(delay=1).prepare("Event")]
        stored = publishing.start(*map(to_other._queues[0].message, emissions[2:]))
        hold.set()
        refused.wait(end)
        stored.wait(end)
        holding.join()
        assert "refused it" in str(refused.error)
        assert stored.error is None
        wait_until(lambda: RabbitMQ(amqp_url).depth(other) >= len(emissions), "the delayed one is due")
        assert sorted(stored_ids(amqp_url, other, valkey)) == ids_of(emissions)
    finally:
        RabbitMQ(amqp_url).delete(full, other)


# -- Without confirmations ----------------------------------------------------------------------------------------


def unconfirmed(url: str, queue: str, **options: Any) -> CeleryEventEmitter:
    app = Celery("unconfirmed", broker=url, set_as_current=False)
    return CeleryEventEmitter(CeleryEventEmitter.Queue(app, queue, secret=SECRET, confirm=False), **options)


def test_unconfirmed_ones_are_stored_too(broker_url: str, queue: str, valkey: Valkey) -> None:
    """One by one, together, and packed; on Redis nothing is different."""
    emitter = unconfirmed(broker_url, queue)
    emissions = [emitter.emit("Event") for _ in range(5)] + emitter.emit_many(["Event"] * 20)
    emissions += asyncio.run(emitter.aemit_many(["Event"] * 3)) + emitter.emit_many(["Event"] * 200)
    wait_until(lambda: depth(broker_url, queue, valkey) == len(emissions), "all are stored")
    assert sorted(stored_ids(broker_url, queue, valkey)) == ids_of(emissions)


def depth(url: str, queue: str, valkey: Valkey) -> int:
    if url.startswith("amqp"):
        return RabbitMQ(url).depth(queue)
    with valkey.client() as client:
        return int(client.llen(queue))


def test_an_unconfirmed_emit_waits_for_no_answer(amqp_url: str, queue_name: str) -> None:
    """Once an earlier one has gone Celery's way; a confirmed one of the same app waits all the same."""
    with FreezableProxy(amqp_url) as proxy:
        emitter = unconfirmed(proxy.proxied_url, queue_name, timeout=1)
        for _ in range(3):
            emitter.emit("Event")
        proxy.freeze()
        last = emitter.emit("Event")
        proxy.thaw()
        wait_until(lambda: RabbitMQ(amqp_url).depth(queue_name) == 4, "what was written")
        proxy.freeze()
        emitter._queues[0].confirm = True
        with pytest.raises(EmitError, match="did not answer within the deadline"):
            emitter.emit("Event")
    with RabbitMQ(amqp_url).channel() as channel:
        ids = [channel.basic_get(queue_name, no_ack=True).properties["correlation_id"] for _ in range(4)]
    assert last.id in ids


def test_what_is_not_confirmed_may_be_lost_but_not_for_ever(amqp_url: str, queue_name: str) -> None:
    """Of a queue that was deleted: RabbitMQ returns the message to nobody, and the next emit notices."""
    emitter = unconfirmed(amqp_url, queue_name)
    for _ in range(3):
        emitter.emit("Event")
    RabbitMQ(amqp_url).delete(queue_name)
    emitter.emit("Event")
    time.sleep(0.5)
    emitter.emit("Event")
    wait_until(lambda: RabbitMQ(amqp_url).depth(queue_name) == 1, "the next one")


def test_a_deleted_queue_is_noticed_however_often_is_emitted(amqp_url: str, queue_name: str) -> None:
    """What RabbitMQ returned is looked for now and then, and not only when it has been quiet for a while."""
    emitter = unconfirmed(amqp_url, queue_name)
    for _ in range(3):
        emitter.emit("Event")
    RabbitMQ(amqp_url).delete(queue_name)
    is_over = threading.Event()

    def emit_on_and_on() -> None:
        while not is_over.is_set():
            emitter.emit("Event")

    def is_declared() -> bool:
        with contextlib.suppress(NotFound):
            return RabbitMQ(amqp_url).depth(queue_name) > 0
        return False

    emitting = threading.Thread(target=emit_on_and_on)
    emitting.start()
    try:
        wait_until(is_declared, "the queue", timeout=10)
    finally:
        is_over.set()
        emitting.join()


def test_what_is_returned_of_one_queue_does_not_fail_another(amqp_url: str, queue_name: str) -> None:
    """The answer of RabbitMQ to what nobody waited for comes while another emit waits for its own."""
    emitter, other = unconfirmed(amqp_url, queue_name), f"{queue_name}-other"
    confirmed = CeleryEventEmitter(CeleryEventEmitter.Queue(emitter._queues[0].app, other, secret=SECRET))
    try:
        for each in (emitter, confirmed, emitter, confirmed):
            each.emit("Event")
        RabbitMQ(amqp_url).delete(queue_name)
        for _ in range(3):
            emitter.emit("Event")
            confirmed.emit("Event")
        wait_until(lambda: RabbitMQ(amqp_url).depth(other) == 5, "the confirmed ones")
        wait_until(lambda: RabbitMQ(amqp_url).depth(queue_name), "the queue is declared again")
    finally:
        RabbitMQ(amqp_url).delete(other)

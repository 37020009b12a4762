"""``pyventus-redis://`` under plain Celery: real workers, and channels side by side, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery, signals
from celery.worker import state
from kombu import Connection, Exchange, Queue

from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.celery.redis_transport import keys as places
from pyventus.emitters.celery.redis_transport import upkeep
from pyventus.emitters.celery.redis_transport.scripts import FETCH, Execute
from pyventus.emitters.celery.request import EmissionRequest
from tests.brokers import FreezableProxy, Valkey, refused_port
from tests.functional.apps.support import wait_until
from tests.functional.test_emitting_in_loops import emit_at_once

OPTIONS = {"dead_after": 1.5}
KEYS = places.Keys("")


def connect(url: str, **options: Any) -> Connection:
    return Connection(url, transport_options={**OPTIONS, **options})


@pytest.fixture
def connection(own_url: str) -> Iterator[Connection]:
    with connect(own_url) as connection:
        yield connection


@pytest.fixture
def patient(own_url: str) -> Iterator[Connection]:
    """With heartbeats so far apart that nothing can be the doing of one."""
    with connect(own_url, dead_after=180) as connection:
        yield connection


def consume(channel: Any, queue: str, prefetch: int = 0, *, no_ack: bool = False) -> list[Any]:
    """What comes, as it comes."""
    got: list[Any] = []
    channel.basic_qos(0, prefetch, False)
    channel.queue_declare(queue)
    channel.basic_consume(queue, no_ack, got.append, f"tag of {queue}")
    return got


def publish(connection: Connection, queue: str, *texts: str, **options: Any) -> None:
    for text in texts:
        connection.Producer().publish(text, routing_key=queue, **options)


def drain(connection: Connection, condition: Callable[[], Any], what: str = "what was waited for") -> None:
    def is_true() -> bool:
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.05)
        return bool(condition())

    wait_until(is_true, what)


def texts(messages: list[Any]) -> list[str]:
    return [message.payload for message in messages]


def in_flight(client: redis.Redis) -> int:
    return sum(client.hlen(key) for key in client.keys("*pyventus:in-flight:*"))


def is_quiet(client: redis.Redis, queue: str) -> bool:
    """Nothing waits, and nothing is in flight."""
    return not (in_flight(client) or client.exists(queue, KEYS.landing(queue)))


# -- One channel --------------------------------------------------------------------------------------------------


def test_delivered_acknowledged_and_forgotten(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    channel = connection.channel()
    got = consume(channel, queue_name)
    publish(connection, queue_name, "a", "b")
    drain(connection, lambda: len(got) == 2)
    assert texts(got) == ["a", "b"]
    assert in_flight(client) == 2
    for message in got:
        message.ack()
    wait_until(lambda: is_quiet(client, queue_name), "both are forgotten")


@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetch_bounds_what_is_fetched(
    connection: Connection, client: redis.Redis, queue_name: str, prefetch: int
) -> None:
    channel = connection.channel()
    publish(connection, queue_name, *"abcde")
    got = consume(channel, queue_name, prefetch)
    drain(connection, lambda: len(got) == prefetch)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)
    assert client.llen(queue_name) == 5 - prefetch
    got[0].ack()
    drain(connection, lambda: len(got) == prefetch + 1)
    assert texts(got) == list("abcde")[: prefetch + 1]


def test_a_full_channel_lets_others_take_what_comes(own_url: str, patient: Connection, queue_name: str) -> None:
    """Also on the lists of other priorities, for which it has waited longer than those."""
    got = consume(patient.channel(), queue_name, 1)
    with pytest.raises(TimeoutError):
        patient.drain_events(timeout=0.1)
    with connect(own_url, dead_after=180) as other:
        others = consume(other.channel(), queue_name, 1)
        with pytest.raises(TimeoutError):
            other.drain_events(timeout=0.1)
        publish(other, queue_name, "a")
        drain(patient, lambda: got)
        publish(other, queue_name, "b", priority=9)
        drain(other, lambda: others)
        assert texts(got + others) == ["a", "b"]


def test_what_comes_for_a_busy_worker_goes_to_another(own_url: str, connection: Connection, queue_name: str) -> None:
    """It waits for longer than the other one, and is at something else when Redis moves the message for it."""
    got = consume(connection.channel(), queue_name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)
    with connect(own_url) as other:
        others = consume(other.channel(), queue_name)
        with pytest.raises(TimeoutError):
            other.drain_events(timeout=0.1)
        publish(other, queue_name, "a")
        drain(other, lambda: others)
        assert texts(others) == ["a"]
        assert got == []


def test_the_most_urgent_first(connection: Connection, queue_name: str) -> None:
    """On Redis 0 is served first."""
    channel = connection.channel()
    for priority in (9, 3, 0, 6):
        publish(connection, queue_name, str(priority), priority=priority)
    got = consume(channel, queue_name)
    drain(connection, lambda: len(got) == 4)
    assert texts(got) == ["0", "3", "6", "9"]


def test_queues_take_turns(connection: Connection, queue_name: str) -> None:
    channel = connection.channel()
    queues = [f"{queue_name}.one", f"{queue_name}.two"]
    got: list[Any] = []
    for queue in queues:
        publish(connection, queue, *[queue] * 4)
        channel.basic_qos(0, 2, False)
        channel.basic_consume(queue, False, got.append, queue)
    for count in range(1, 9):
        drain(connection, lambda count=count: len(got) >= count)
        got[count - 1].ack()
    assert sorted(set(texts(got)[:4])) == queues


def test_cancelled_consumer_gives_back(
    own_url: str, connection: Connection, client: redis.Redis, queue_name: str
) -> None:
    channel = connection.channel()
    got = consume(channel, queue_name, 2)
    channel.basic_cancel(f"tag of {queue_name}")
    publish(connection, queue_name, "a")
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)
    assert got == []
    with connect(own_url) as other:
        others = consume(other.channel(), queue_name)
        drain(other, lambda: others)
        assert not others[0].delivery_info.get("redelivered")


def test_reject(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    got = consume(connection.channel(), queue_name)
    publish(connection, queue_name, "a")
    drain(connection, lambda: got)
    got[0].reject(requeue=True)
    drain(connection, lambda: len(got) == 2)
    assert got[1].delivery_info["redelivered"]
    assert got[1].headers["redelivered"]
    got[1].reject()
    wait_until(lambda: is_quiet(client, queue_name), "it is gone")


def test_recover(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    channel = connection.channel()
    got = consume(channel, queue_name)
    publish(connection, queue_name, "a", "b")
    drain(connection, lambda: len(got) == 2)
    channel.basic_recover(requeue=True)
    drain(connection, lambda: len(got) == 4)
    assert all(message.delivery_info["redelivered"] for message in got[2:])


def test_closed_channel_gives_back_what_is_unacknowledged(
    connection: Connection, client: redis.Redis, queue_name: str
) -> None:
    channel = connection.channel()
    got = consume(channel, queue_name)
    publish(connection, queue_name, *"abc")
    drain(connection, lambda: len(got) == 3)
    got[1].ack()
    channel.close()
    waiting = [json.loads(entry) for entry in reversed(client.lrange(queue_name, 0, -1))]
    assert len(waiting) == 2
    assert all(message["headers"]["redelivered"] for message in waiting)
    assert in_flight(client) == 0


@pytest.mark.parametrize("is_asked", [True, False])
def test_what_celery_has_yet_to_acknowledge_is_not_given_back(
    own_url: str, connection: Connection, client: redis.Redis, queue_name: str, *, is_asked: bool
) -> None:
    """Its loop may be busy with connecting again for longer than what nobody runs is kept."""

    class Request:
        message: Any
        acknowledged = is_asked

    channel = connection.channel()
    got = consume(channel, queue_name)
    publish(connection, queue_name, "a")
    drain(connection, lambda: got)
    request = Request()
    request.message = got[0]
    assert state.should_stop is state.should_terminate is None
    signals.task_received.send(sender=None, request=request)
    channel.close()
    with connect(own_url) as other:
        others = consume(other.channel(), queue_name)
        with contextlib.suppress(TimeoutError):  # for longer than two looks
            other.drain_events(timeout=2)
        assert texts(others) == ([] if is_asked else ["a"])
        for message in others or got:
            message.ack()
        wait_until(lambda: is_quiet(client, queue_name), "it is acknowledged")


def test_get(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    channel = connection.channel()
    assert channel.basic_get(queue_name) is None
    publish(connection, queue_name, "a", "b")
    first, second = channel.basic_get(queue_name), channel.basic_get(queue_name, no_ack=True)
    assert texts([first, second]) == ["a", "b"]
    assert in_flight(client) == 1
    first.ack()
    client.lpush(queue_name, "no JSON")
    assert channel.basic_get(queue_name) is None
    wait_until(lambda: is_quiet(client, queue_name), "both are forgotten")


def test_counts_purge_and_delete(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    channel = connection.channel()
    queue = Queue(queue_name, Exchange(queue_name), queue_name)(channel)
    queue.declare()
    with pytest.raises(connection.channel_errors):
        channel.queue_declare(queue_name, passive=True)
    publish(connection, queue_name, "a", exchange=queue_name)
    publish(connection, queue_name, "b", exchange=queue_name, priority=9)
    eta = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    publish(connection, queue_name, "c", exchange=queue_name, headers={"eta": eta})
    assert channel.queue_declare(queue_name, passive=True).message_count == 2
    assert queue.purge() == 3
    publish(connection, queue_name, "d", exchange=queue_name, headers={"eta": eta})
    queue.delete()
    assert [key for key in client.keys("*") if queue_name.encode() in key] == []
    assert client.zcard(KEYS.delays) == 0


@pytest.mark.parametrize(
    "entry",
    [b"no JSON", b"\xff", b"[1]", b"{}", b"null", b"[" * 200_000, b'{"properties": {"delivery_info": 1}}'],
)
def test_what_is_no_message_is_dropped(
    connection: Connection, client: redis.Redis, queue_name: str, entry: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client.lpush(queue_name, entry)
    publish(connection, queue_name, "a")
    with caplog.at_level(logging.ERROR, "pyventus"):
        got = consume(connection.channel(), queue_name)
        drain(connection, lambda: got)
    # A machine that is busy may have taken this worker for dead, which is a WARNING.
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith(f"An entry of queue {queue_name!r} that is no message was dropped")
    got[0].ack()
    wait_until(lambda: is_quiet(client, queue_name), "both are gone")


def test_stock_producers_and_consumers(
    own_url: str, redis_url: str, connection: Connection, client: redis.Redis, queue_name: str
) -> None:
    with Connection(redis_url) as stock:
        publish(stock, queue_name, "to ours", priority=6)
        got = consume(connection.channel(), queue_name)
        drain(connection, lambda: got)
        assert texts(got) == ["to ours"]
        publish(connection, f"{queue_name}.stock", "to theirs", priority=6)
        theirs = consume(stock.channel(), f"{queue_name}.stock")
        drain(stock, lambda: theirs)
        assert texts(theirs) == ["to theirs"]


def test_prefix(own_url: str, client: redis.Redis, queue_name: str) -> None:
    with connect(own_url, global_keyprefix="mine:") as connection:
        channel = connection.channel()
        got = consume(channel, queue_name)
        publish(connection, queue_name, "a")
        eta = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
        publish(connection, queue_name, "b", headers={"eta": eta})
        drain(connection, lambda: len(got) == 2)
        publish(connection, queue_name, "c", headers={"eta": (datetime.now(UTC) + timedelta(hours=1)).isoformat()})
        channel.close()
        found = client.keys("*")
        assert found
        assert all(key.startswith(b"mine:") for key in found)
        assert client.llen(f"mine:{queue_name}") == 2


# -- Where it is --------------------------------------------------------------------------------------------------


def test_scheme_is_known_after_an_import_and_not_before(own_url: str) -> None:
    code = f"""
from celery import Celery
app = Celery(broker={own_url!r})
try:
    app.connection_for_write().connect()
except KeyError as error:
    assert "No such transport: pyventus-redis" in str(error), error
else:
    raise AssertionError("it is known")
import pyventus.emitters.celery
with app.connection_for_write() as connection:
    connection.connect()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def sentinel(valkey: Valkey, redis_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of one that names the server of the tests."""
    program = valkey._server._process.args[0]
    with refused_port() as port:
        pass
    file = tmp_path / "sentinel.conf"
    file.write_text(
        f"port {port}\nsentinel monitor mine 127.0.0.1 {valkey.port} 1\nsentinel auth-pass mine {valkey.password}\n"
    )
    process = subprocess.Popen([program, str(file), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield f"pyventus-sentinel://default:{valkey.password}@127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def test_sentinel(sentinel: str, client: redis.Redis, queue_name: str) -> None:
    with connect(f"{sentinel};{sentinel}", master_name="mine", sentinel_kwargs={"socket_timeout": 1}) as connection:

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                connection.connect()
                return True
            return False

        wait_until(answers, "the sentinel")
        got = consume(connection.channel(), queue_name)
        publish(connection, queue_name, "a")
        drain(connection, lambda: got)
        got[0].ack()
        wait_until(lambda: is_quiet(client, queue_name), "it is forgotten")
    with pytest.raises(ValueError, match="master_name"):
        connect(sentinel).connect()


class TLSProxy(FreezableProxy):
    """Decrypts what comes, with a certificate that nobody has signed."""

    def __init__(self, target: str, folder: Path) -> None:
        self.certificate, key = folder / "certificate.pem", folder / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "1"]
        files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run([*command, *files], check=True, capture_output=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, key)
        super().__init__(target)

    def serve(self, client: socket.socket) -> None:
        super().serve(self._context.wrap_socket(client, server_side=True))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_tls(own_url: str, client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    with TLSProxy(own_url, tmp_path) as proxy:
        encrypted = proxy.proxied_url.replace("pyventus-redis:", "pyventus-rediss:")
        with connect(f"{encrypted}?ssl_ca_certs={proxy.certificate}") as connection:
            got = consume(connection.channel(), queue_name)
            publish(connection, queue_name, "a")
            drain(connection, lambda: got)
            got[0].ack()
            wait_until(lambda: is_quiet(client, queue_name), "it is forgotten")
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            connect(encrypted).connect()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
@pytest.mark.parametrize("scheme", ["rediss", "pyventus-rediss"])
def test_emitting_through_tls(scheme: str, own_url: str, client: redis.Redis, queue_name: str, tmp_path: Path) -> None:
    """Whose sockets are written and read by us: alone, much at once, and again after a cut."""
    with TLSProxy(own_url, tmp_path) as proxy:
        encrypted = proxy.proxied_url.replace("pyventus-redis:", f"{scheme}:")
        app = Celery("tls", broker=f"{encrypted}?ssl_ca_certs={proxy.certificate}&ssl_cert_reqs=required")
        emitter = CeleryEventEmitter(CeleryEventEmitter.Queue(app, queue_name))
        for _ in range(4):
            emitter.emit("Event", "x" * 1000)
        emitter.emit_many([emitter.prepare("Event", "x" * 100_000) for _ in range(40)])
        proxy.cut()
        time.sleep(0.1)
        emitter.emit("Event")
        asyncio.run(emit_at_once(emitter, 40, "x" * 100_000))
        assert client.llen(queue_name) == 85


# -- Delays -------------------------------------------------------------------------------------------------------


def send_later(connection: Connection, queue: str, text: str, seconds: float) -> None:
    eta = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    publish(connection, queue, text, headers={"eta": eta})


def test_delayed_messages_wait_in_redis(patient: Connection, client: redis.Redis, queue_name: str) -> None:
    channel = patient.channel()
    got = consume(channel, queue_name, 1)
    send_later(patient, queue_name, "far", 3600)
    send_later(patient, queue_name, "second", 1.2)
    send_later(patient, queue_name, "first", 0.3)
    assert client.llen(queue_name) == 0
    assert client.zcard(KEYS.delayed(queue_name)) == 3
    drain(patient, lambda: len(got) == 1)
    got[0].ack()
    drain(patient, lambda: len(got) == 2)
    assert texts(got) == ["first", "second"]
    assert client.zcard(KEYS.delayed(queue_name)) == 1
    assert not got[1].delivery_info.get("redelivered")


def test_what_a_stock_producer_sends_early_is_put_away(
    redis_url: str, connection: Connection, client: redis.Redis, queue_name: str
) -> None:
    with Connection(redis_url) as stock:
        send_later(stock, queue_name, "far", 3600)
        publish(stock, queue_name, "near")
    got = consume(connection.channel(), queue_name, 1)
    drain(connection, lambda: got)
    assert texts(got) == ["near"]
    assert client.zcard(KEYS.delayed(queue_name)) == 1
    assert in_flight(client) == 1


def test_what_is_acknowledged_lets_its_content_go(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    """The loop has yet to acknowledge it, which needs nothing of that."""
    app = Celery(set_as_current=False)
    task = app.task(texts, name="texts")
    channel = connection.channel()
    channel.queue_declare(queue_name)
    body, headers = [["text"], {}, {}], {"id": uuid4().hex, "task": task.name}
    connection.Producer().publish(body, routing_key=queue_name, headers=headers)
    message = channel.basic_get(queue_name)
    request = EmissionRequest(message, app=app, task=task, on_ack=lambda *_: message.ack())
    request.acknowledge()
    assert (message.body, message.headers, message._raw) == (None, {}, None)
    wait_until(lambda: is_quiet(client, queue_name), "it is acknowledged")


# -- The dead and the frozen --------------------------------------------------------------------------------------


@pytest.fixture
def corpse(client: redis.Redis, queue_name: str) -> str:
    """A session that has died with two messages in flight, and one in the landing list of its queue."""
    message = {"body": "x", "headers": {}, "properties": {"delivery_info": {"exchange": "", "routing_key": queue_name}}}
    client.hset(KEYS.sessions, "corpse", json.dumps([queue_name]))
    for number in (9, 10):
        entry = json.dumps({**message, "body": str(number)})
        client.hset(KEYS.in_flight("corpse"), places.id_of(number, queue_name), entry)
    client.lpush(KEYS.landing(queue_name), json.dumps({**message, "body": "landed"}))
    return "corpse"


def restore(execute: Execute, corpse: str, queue_name: str) -> int:
    """Put back what the dead session has in flight."""
    return upkeep.restore(execute, KEYS, corpse, [places.id_of(number, queue_name) for number in (9, 10)], is_dead=True)


def look(client: redis.Redis, interval: float = 0.2) -> None:
    upkeep.sweep(client.execute_command, KEYS, interval)


def test_what_the_dead_had_is_delivered_again(client: redis.Redis, queue_name: str, corpse: str) -> None:
    look(client)
    assert client.llen(queue_name) == 0, "one look is not enough"
    wait_until(lambda: look(client) or client.llen(queue_name), "it is found dead")
    waiting = [json.loads(entry) for entry in reversed(client.lrange(queue_name, 0, -1))]
    assert [message["body"] for message in waiting] == ["landed", "9", "10"]
    assert [message["headers"].get("redelivered", False) for message in waiting] == [False, True, True]
    assert client.keys("pyventus:in-flight:*") == []
    assert client.hlen(KEYS.sessions) == 0


def test_who_lives_again_keeps_its_messages(client: redis.Redis, queue_name: str, corpse: str) -> None:
    """It says so between the moment at which it was found dead and that at which its messages are moved."""
    client.set(KEYS.alive(corpse), "")
    assert restore(client.execute_command, corpse, queue_name) == 0
    assert client.llen(queue_name) == 0
    assert client.hlen(KEYS.in_flight(corpse)) == 2


def test_a_restorer_that_dies_has_lost_and_doubled_nothing(
    client: redis.Redis, queue_name: str, corpse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 1)
    calls = 0

    def dies(*command: Any) -> Any:
        nonlocal calls
        calls += command[0] == "HMGET"
        if calls == 2:
            raise KeyboardInterrupt
        return client.execute_command(*command)

    with pytest.raises(KeyboardInterrupt):
        restore(dies, corpse, queue_name)
    restore(client.execute_command, corpse, queue_name)
    restore(client.execute_command, corpse, queue_name)
    assert [json.loads(entry)["body"] for entry in client.lrange(queue_name, 0, -1)] == ["10", "9"]


def test_two_restorers_move_each_message_once(client: redis.Redis, queue_name: str, corpse: str) -> None:
    """The other one comes between reading and moving."""
    others = 0

    def slow(*command: Any) -> Any:
        nonlocal others
        if command[0] == "EVALSHA" and not others:
            others = restore(client.execute_command, corpse, queue_name)
        return client.execute_command(*command)

    assert restore(slow, corpse, queue_name) == 0
    assert others == client.llen(queue_name) == 2


def test_what_is_no_list_loses_nothing_of_other_queues(client: redis.Redis, queue_name: str) -> None:
    """What was taken from a queue before is in flight, where it is found again."""
    session, other = uuid4().hex, f"{queue_name}-no-list"
    client.lpush(queue_name, "a", "b")
    client.hset(other, "no", "list")
    client.hset(KEYS.sessions, session, "[]")
    keys = [KEYS.in_flight(session), KEYS.sessions, *KEYS.pairs([queue_name, other])]
    try:
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            FETCH(client.execute_command, keys, session, 1, 10)
        assert client.hlen(KEYS.in_flight(session)) == 2
    finally:
        client.delete(other, KEYS.in_flight(session))
        client.hdel(KEYS.sessions, session)


def test_emptied_redis(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    """Nothing of what was is acknowledged into what is."""
    got = consume(connection.channel(), queue_name)
    publish(connection, queue_name, "a")
    drain(connection, lambda: got)
    client.flushall()
    publish(connection, queue_name, "b", "c")
    drain(connection, lambda: len(got) == 3)
    got[0].ack()
    got[1].ack()
    wait_until(lambda: in_flight(client) == 1, "what was acknowledged is forgotten")
    assert client.hlen(KEYS.sessions) == 1


def test_full_redis_is_emptied(connection: Connection, client: redis.Redis, queue_name: str) -> None:
    """At its limit it refuses commands that could need memory, and it is for the workers to make room."""
    publish(connection, queue_name, *"abc")
    client.config_set("maxmemory", "1mb")
    try:
        got = consume(connection.channel(), queue_name)
        drain(connection, lambda: len(got) == 3)
        for message in got:
            message.ack()
        wait_until(lambda: is_quiet(client, queue_name), "all are forgotten")
        time_to_beat = client.pttl(client.keys("pyventus:alive:*")[0])
        wait_until(lambda: client.pttl(client.keys("pyventus:alive:*")[0]) > time_to_beat - 100, "another heartbeat")
    finally:
        client.config_set("maxmemory", "0")
    publish(connection, queue_name, "d")
    drain(connection, lambda: len(got) == 4)

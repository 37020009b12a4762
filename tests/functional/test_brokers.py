"""The broken brokers are broken in the way that they say: a test that uses them proves something."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import redis
from kombu import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.brokers import FreezableProxy, RabbitMQ, Valkey, hanging_broker, refused_port, trickling_broker


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    with Valkey(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FreezableProxy]:
    with FreezableProxy(redis_url) as proxy:
        yield proxy


def impatient_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=0.3, socket_connect_timeout=0.3, retry=Retry(NoBackoff(), 0))


def test_refused_port() -> None:
    with refused_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_hanging_broker_connects_and_never_answers() -> None:
    with hanging_broker() as broker:
        with socket.create_connection(("127.0.0.1", broker.port), timeout=0.3) as client:
            client.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                client.recv(1)
        assert broker.accepted == 1


@pytest.mark.parametrize("protocol", ["redis", "amqp"])
def test_trickling_broker_outlives_a_socket_timeout(protocol: str) -> None:
    with (
        trickling_broker(protocol) as broker,
        socket.create_connection(("127.0.0.1", broker.port), timeout=1) as client,
    ):
        client.sendall(b"PING\r\n")
        received = 0
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            received += len(client.recv(4096))
        assert received >= 10


def test_paused_valkey_keeps_its_connections(own_valkey: Valkey) -> None:
    with impatient_client(own_valkey.url) as client:
        assert client.ping()
        own_valkey.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        own_valkey.resume()
        assert client.ping()


def test_killed_valkey_comes_back_with_what_it_had_written(own_valkey: Valkey) -> None:
    with impatient_client(own_valkey.url) as client:
        client.set("key", "value")
        own_valkey.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        own_valkey.restart()
        assert client.get("key") == b"value"


def test_password_is_required(redis_url: str) -> None:
    stranger = redis.Redis.from_url(redis_url.replace("redispw", "another"))
    with stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_proxy_forwards(proxy: FreezableProxy) -> None:
    with impatient_client(proxy.proxied_url) as client:
        client.set("key", "x" * 100_000)
        assert client.strlen("key") == 100_000


def test_frozen_proxy_passes_nothing_on_until_it_is_thawed(proxy: FreezableProxy, valkey: Valkey) -> None:
    with impatient_client(proxy.proxied_url) as client, valkey.client() as direct:
        assert client.ping()
        proxy.freeze()
        with pytest.raises(redis.TimeoutError):
            client.set("key", "value")
        assert direct.get("key") is None
        proxy.thaw()
        assert client.ping()


def test_proxy_drops_replies_to_what_was_done(proxy: FreezableProxy, valkey: Valkey) -> None:
    with impatient_client(proxy.proxied_url) as client, valkey.client() as direct:
        assert client.ping()
        proxy.replies = "drop"
        with pytest.raises(redis.TimeoutError):
            client.set("key", "value")
        assert direct.get("key") == b"value"


def test_proxy_trickles_replies(proxy: FreezableProxy) -> None:
    with impatient_client(proxy.proxied_url) as client:
        assert client.ping()
        proxy.replies = "trickle"
        started = time.monotonic()
        assert client.ping()  # "+PONG\r\n"
        assert time.monotonic() - started > 1


def test_cut_proxy_welcomes_new_connections(proxy: FreezableProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(100)
        proxy.cut()
        assert client.recv(100) == b""
    with impatient_client(proxy.proxied_url) as again:
        assert again.ping()


def test_proxy_speaks_amqp(amqp_url: str, rabbitmq: RabbitMQ, queue_name: str) -> None:
    with FreezableProxy(amqp_url) as proxy, Connection(proxy.proxied_url) as connection:
        connection.SimpleQueue(queue_name).put({"a": 1})
        assert rabbitmq.depth(queue_name) == 1

"""An action at the broker is bounded as a message is, and its own errors are its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from amqp.exceptions import NotFound
from celery import Celery

from pyventus.emitters.celery import publisher
from pyventus.emitters.celery.publisher import BrokerDown, Message, Publisher, PublishError
from tests.brokers import FreezableProxy, hanging_broker, refused_port

SECONDS = 20.0
BOUND = 10.0


def publisher_to(url: str) -> Publisher:
    return Publisher(Celery("calling", broker=url))


def soon(seconds: float = SECONDS) -> float:
    return time.monotonic() + seconds


def ping(channel: Any, driver: str) -> str:
    if driver == "redis":
        assert channel.client.ping()
    else:
        channel.queue_declare(exclusive=True)
    return driver


def test_returns_what_the_action_returns(broker_url: str) -> None:
    """In a thread of the publisher's, over the connection that the next one uses too."""
    calling = publisher_to(broker_url)
    assert calling.call(ping, soon()) == ("amqp" if broker_url.startswith("amqp") else "redis")
    channels = {calling.call(lambda channel, _: id(channel), soon()) for _ in range(3)}
    assert len(channels) == 1
    assert calling.call(lambda *_: threading.get_ident(), soon()) != threading.get_ident()


def test_raises_what_the_action_raises(broker_url: str) -> None:
    """As it is; and whatever it left of the connection, the next one has another."""
    calling = publisher_to(broker_url)
    channel = calling.call(lambda channel, _: channel, soon())

    def fail(*_: object) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        calling.call(fail, soon())
    assert calling.call(lambda again, _: again is not channel, soon())
    assert calling.call(ping, soon())


def test_an_error_of_the_channel_is_the_action_s(amqp_url: str) -> None:
    calling = publisher_to(amqp_url)
    with pytest.raises(NotFound):
        calling.call(lambda channel, _: channel.queue_declare("pyventus-test-no-such", passive=True), soon())
    assert calling.call(ping, soon()) == "amqp"


def test_a_connection_that_breaks_meanwhile(broker_url: str) -> None:
    """Is a broker that failed: what comes next fails at once."""
    with FreezableProxy(broker_url) as proxy:
        calling = publisher_to(proxy.proxied_url)

        def cut(channel: Any, driver: str) -> None:
            proxy.close()
            while True:
                ping(channel, driver)

        with pytest.raises(BrokerDown, match="whether it was stored is unknown"):
            calling.call(cut, soon())
        with pytest.raises(BrokerDown, match="because the broker failed less than 1 s ago"):
            calling.call(ping, soon())


def test_a_broker_that_is_down() -> None:
    with refused_port() as port, pytest.raises(BrokerDown, match="it was not sent"):
        publisher_to(f"redis://127.0.0.1:{port}/0").call(ping, soon())


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_hangs(scheme: Any) -> None:
    """The deadline holds, and messages of the same app fail fast after it."""
    with hanging_broker() as broker:
        calling = publisher_to(broker.url(scheme))
        started = time.monotonic()
        with pytest.raises(BrokerDown, match="did not answer within the deadline"):
            calling.call(ping, soon(0.3))
        assert time.monotonic() - started < BOUND
        publishing = calling.start(Message("task", "queue", "id", "shadow", "text"))
        publishing.wait(soon())
        assert isinstance(publishing.error, BrokerDown)
        assert "less than 1 s ago" in str(publishing.error)


@pytest.mark.usefixtures("untraced")
def test_an_abandoned_action_to_which_bytes_trickle_ends(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket timeout ends it; the next work does."""
    monkeypatch.setattr(publisher, "FAIL_FAST_SECONDS", 0.0)
    monkeypatch.setattr(publisher, "TRICKLE_SECONDS", 0.5)
    with FreezableProxy(redis_url) as proxy:
        calling = publisher_to(proxy.proxied_url)
        assert calling.call(ping, soon())
        proxy.replies = "trickle"
        with pytest.raises(PublishError):
            calling.call(lambda channel, _: channel.client.echo("x" * 10_000), soon(0.3))
        proxy.replies = "forward"
        assert calling.call(ping, soon())
        assert calling._senders._leaving
        end = soon(20)
        while calling._senders._leaving:
            assert time.monotonic() < end
            calling.call(ping, soon())
            time.sleep(0.05)


def test_waiting_for_a_free_connection_is_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    calling, begun, ended = publisher_to(redis_url), threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        begun.set()
        ended.wait(BOUND)

    thread = threading.Thread(target=calling.call, args=(wait, soon(BOUND)))
    thread.start()
    begun.wait(BOUND)
    with pytest.raises(PublishError, match="all connections were busy until the deadline, and it was not sent"):
        calling.call(ping, soon(0.1))
    ended.set()
    thread.join()
    assert calling.call(ping, soon())


def test_after_a_fork_that_python_was_not_told_of(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calling = publisher_to(redis_url)
    calling.call(ping, soon())
    parents = calling._senders
    monkeypatch.setattr(parents, "pid", -1)
    assert calling.call(ping, soon()) == "redis"
    assert calling._senders is not parents


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sender_that_dies_leaves_nobody_waiting(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends its thread, such as an interruption that was meant for another."""
    calling = publisher_to(redis_url)
    assert calling.call(ping, soon())
    senders = calling._senders
    (sender,) = senders._senders
    monkeypatch.setattr(type(sender), "_send_next", lambda _: 1 / 0)
    assert calling.call(ping, soon()), "by the thread that is in the method already, and dies after it"
    end = soon(20)
    while sender in senders._senders:
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.undo()
    assert calling.call(ping, soon())
    assert not senders._leaving

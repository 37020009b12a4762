"""An emit ends within its deadline whatever the broker does, and says what became of the emission."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from pyventus import EmitError, native
from pyventus.emitters.celery import CeleryEventEmitter, publisher, splicing
from tests.brokers import FreezableProxy, RabbitMQ, Valkey, hanging_broker, refused_port, trickling_broker

SECONDS = 0.5
# The promise is "never for minutes"; the machine may be busy.
BOUND = 10.0
PASSWORD = "s3krit-of-the-broker"

SCHEMES = ["redis", "amqp"]


def emitter_to(url: str, queue: str = "events", *, timeout: float = SECONDS, **settings: Any) -> CeleryEventEmitter:
    app = Celery("emitting", broker=url)
    app.conf.update(settings)
    return CeleryEventEmitter(CeleryEventEmitter.Queue(app, queue), timeout=timeout)


def eventually(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


def senders() -> int:
    return sum(thread.name == "pyventus" for thread in threading.enumerate())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def emit_until_stored(emitter: CeleryEventEmitter, emission: Any) -> None:
    """Send it again until it is stored: fail-fast refuses it for a second."""

    def is_stored() -> bool:
        with contextlib.suppress(EmitError):
            return emitter.send(emission) is emission
        return False

    eventually(is_stored, "the emission is stored again")


def failing_emit(emitter: CeleryEventEmitter, how: str) -> EmitError:
    """Emit to a broken broker, by emit or aemit, and return the error."""
    started = time.monotonic()
    with pytest.raises(EmitError) as caught:
        if how == "emit":
            emitter.emit("Event", 1, a=2)
        else:
            asyncio.run(aemit_beside_ticks(emitter))
    assert time.monotonic() - started < BOUND
    error = caught.value
    assert error.emission is not None
    assert (error.emission.event, error.emission.args, error.emission.kwargs) == ("Event", (1,), {"a": 2})
    assert error.stored == ()
    assert "queue 'events'" in str(error)
    assert error.emission.id in str(error)
    assert PASSWORD not in str(error)
    return error


async def aemit_beside_ticks(emitter: CeleryEventEmitter) -> None:
    """Emit in a loop that does something else as well, as often as a thread does that nothing but the machine stops."""
    ticks = beats = 0
    ended = threading.Event()

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    def beat() -> None:
        nonlocal beats
        while not ended.wait(0.01):
            beats += 1

    ticking, beating = asyncio.create_task(tick()), threading.Thread(target=beat)
    beating.start()
    try:
        await emitter.aemit("Event", 1, a=2)
    finally:
        ticking.cancel()
        ended.set()
        beating.join()
        assert ticks > beats / 4 - 2, "the loop was blocked"


@contextlib.contextmanager
def broken_broker(kind: str, scheme: Any) -> Iterator[str]:
    login = f":{PASSWORD}@" if scheme == "redis" else f"guest:{PASSWORD}@"
    if kind == "unresolvable":
        yield f"{scheme}://{login}no-such-host.invalid:1/"
    elif kind == "refused":
        with refused_port() as port:
            yield f"{scheme}://{login}127.0.0.1:{port}/"
    else:
        with hanging_broker() if kind == "hanging" else trickling_broker(scheme) as broker:
            yield broker.url(scheme).replace("://", f"://{login}")


@pytest.mark.parametrize("how", ["emit", "aemit"])
@pytest.mark.parametrize("kind", ["refused", "hanging", "trickling", "unresolvable"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_broken_from_the_start(scheme: str, kind: str, how: str) -> None:
    """Whatever is wrong with it, the error comes in time and says what is known."""
    with broken_broker(kind, scheme) as url:
        error = failing_emit(emitter_to(url), how)
    if kind in ("refused", "unresolvable"):
        assert "it was not sent" in str(error)
        assert "error" in str(error).lower()
    else:
        assert "did not answer within the deadline; whether it was stored is unknown" in str(error)


# The first emit goes Celery's way, the second opens a connection of our own, and the third borrows it.
EARLIER = pytest.mark.parametrize("earlier", [1, 3])


@EARLIER
@pytest.mark.parametrize("how", ["emit", "aemit"])
def test_redis_stopped_while_connected(how: str, earlier: int) -> None:
    """A stopped process keeps its connections; what was sent to it meanwhile may be sent again."""
    with Valkey(password=PASSWORD) as server:
        emitter = emitter_to(server.url)
        for _ in range(earlier):
            emitter.emit("Event")
        server.pause()
        error = failing_emit(emitter, how)
        server.resume()
        emit_until_stored(emitter, error.emission)
        with server.client() as client:
            texts = [text for text in client.lrange("events", 0, -1) if error.emission.id.encode() in text]
        assert texts


@EARLIER
@pytest.mark.parametrize("how", ["emit", "aemit"])
@pytest.mark.parametrize("replies", ["frozen", "trickle"])
def test_stopped_behind_a_proxy_while_connected(
    broker_url: str, queue_name: str, how: str, replies: str, earlier: int
) -> None:
    """A connection that has worked is bounded too; the same emission is stored once the broker is back."""
    with FreezableProxy(broker_url) as proxy:
        # Redis' reply is four bytes, of which one comes every 0.2 s.
        emitter = emitter_to(proxy.proxied_url, queue_name, timeout=0.5)
        for _ in range(earlier):
            emit_until_stored(emitter, emitter.prepare("Event"))
        if replies == "frozen":
            proxy.freeze()
        else:
            proxy.replies = "trickle"
        started = time.monotonic()
        with pytest.raises(EmitError, match="did not answer within the deadline") as caught:
            emitter.emit("Event") if how == "emit" else asyncio.run(aemit_beside_ticks(emitter))
        assert time.monotonic() - started < BOUND
        assert "guest:guest" not in str(caught.value)
        assert "redispw" not in str(caught.value)
        proxy.replies = "forward"
        proxy.thaw()
        emit_until_stored(emitter, caught.value.emission)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fails_fast_without_touching_the_broker(scheme: Any) -> None:
    """After a failure emits fail at once, without a connection; a second later one tries again."""
    with hanging_broker() as broker:
        emitter = emitter_to(broker.url(scheme), timeout=1.0)
        with pytest.raises(EmitError, match="did not answer"):
            emitter.emit("Event")
        failed = time.monotonic()
        for _ in range(50):
            with pytest.raises(EmitError, match=r"not sent, because the broker failed less than 1 s ago"):
                emitter.emit("Event")
        if time.monotonic() - failed < publisher.FAIL_FAST_SECONDS:
            assert broker.accepted == 1

        def is_tried() -> bool:
            with contextlib.suppress(EmitError):
                emitter.emit("Event")
            return broker.accepted == 2

        eventually(is_tried, "a second attempt")
        assert time.monotonic() - failed >= publisher.FAIL_FAST_SECONDS


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_sender_probes_for_all(scheme: Any) -> None:
    """While a broker is down many threads do not each hang a thread of the publisher's at it."""
    with hanging_broker() as broker:
        emitter = emitter_to(broker.url(scheme), timeout=0.3)
        with pytest.raises(EmitError):
            emitter.emit("Event")
        time.sleep(publisher.FAIL_FAST_SECONDS)
        errors = in_threads(12, lambda _: emitter.emit("Event"))
        assert [type(error) for error in errors] == [EmitError] * 12
        assert broker.accepted == 2


def in_threads(count: int, call: Callable[[int], object]) -> list[BaseException | None]:
    errors: list[BaseException | None] = [None] * count

    def run(index: int) -> None:
        try:
            call(index)
        except BaseException as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
        assert not thread.is_alive()
    return errors


# A generator of py-amqp's, closed with its connection, wants to set a timeout of the closed socket back. A socket whose
# creation is interrupted is left to the garbage collector, which closes it and says so.
@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore:.*having_timeout.*:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:.*socket.socket.*:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["hanging", "trickling"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_failures_leave_nothing_behind(scheme: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and sockets of failed emits are bounded, and end with their socket's timeout, or by interruption."""
    monkeypatch.setattr(publisher, "FAIL_FAST_SECONDS", 0.0)
    monkeypatch.setattr(publisher, "SOCKET_SECONDS", 5.0)
    monkeypatch.setattr(publisher, "TRICKLE_SECONDS", 8.0 if kind == "trickling" else 300.0)
    threads, files = senders(), open_files()
    with hanging_broker() if kind == "hanging" else trickling_broker(scheme) as broker:
        emitter = emitter_to(broker.url(scheme), timeout=0.02, broker_connection_timeout=5)
        messages = []
        for _ in range(60):
            with pytest.raises(EmitError) as caught:
                emitter.emit("Event")
            messages.append(str(caught.value))
            assert senders() - threads <= publisher.MAX_LEAVING + 1
        assert broker.accepted <= 60
        assert "because 20 earlier attempts still hang at the broker" in messages[-1]

        # Nobody is let through any more; the old ones are looked after.
        monkeypatch.setattr(publisher, "FAIL_FAST_SECONDS", 300.0)

        def have_ended() -> bool:
            with pytest.raises(EmitError, match="not sent"):
                emitter.emit("Event")
            return senders() <= threads

        eventually(have_ended, "the abandoned senders have ended")
    eventually(lambda: _collected(files), "their sockets are closed")


def _collected(files: int) -> bool:
    import gc

    gc.collect()
    return open_files() <= files + 2


def test_a_name_that_resolves_slowly_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up cannot be interrupted by any timeout of a socket."""
    import socket

    resolved = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        resolved.wait(BOUND)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(EmitError, match="did not answer within the deadline"):
        emitter_to("redis://example.invalid/0", timeout=0.3).emit("Event")
    resolved.set()


def test_a_malformed_url_does_not_show_its_password() -> None:
    """urllib names the part of a password that it takes for the port."""
    emitter = emitter_to("redis://:pass/word@localhost:6379/0")
    with pytest.raises(EmitError, match="percent-encoded") as caught:
        emitter.emit("Event")
    assert "'pass'" not in str(caught.value)


def test_the_password_never_shows(rabbitmq: RabbitMQ) -> None:
    """Nor when the broker refuses it."""
    with Valkey(password="another") as server, pytest.raises(EmitError) as caught:
        emitter_to(server.url.replace("another", PASSWORD)).emit("Event")
    assert PASSWORD not in str(caught.value)
    with pytest.raises(EmitError, match="not sent") as caught:
        emitter_to(rabbitmq.url.replace("guest:guest", f"guest:{PASSWORD}"), timeout=5).emit("Event")
    assert PASSWORD not in str(caught.value)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel ends no such connection")
@pytest.mark.parametrize("how", ["emit", "aemit"])
def test_what_the_kernel_ends_is_a_failure_of_the_broker(amqp_url: str, queue_name: str, how: str) -> None:
    """A TimeoutError long before the deadline: py-amqp has it end what RabbitMQ reads nothing of for a second."""

    class Narrow(FreezableProxy):
        def __init__(self, target: str) -> None:
            super().__init__(target)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    with Narrow(amqp_url) as proxy:
        emitter = emitter_to(proxy.proxied_url, queue_name, timeout=30)
        for _ in range(3):
            emitter.emit("Event")
        proxy.freeze()
        with pytest.raises(EmitError, match="TimeoutError: .*whether it was stored is unknown"):
            large = "x" * 180_000
            emitter.emit("Event", large) if how == "emit" else asyncio.run(emitter.aemit("Event", large))
        proxy.cut()
        proxy.thaw()
    RabbitMQ(amqp_url).delete(queue_name)


def test_a_cancelled_aemit_reports_nothing_later(caplog: pytest.LogCaptureFixture) -> None:
    """What a sender says after its waiter has left is no unhandled error of the loop."""

    async def cancel() -> None:
        task = asyncio.create_task(emitter.aemit("Event"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        broker.close()
        await asyncio.sleep(0.2)

    with hanging_broker() as broker:
        emitter = emitter_to(broker.url("redis"))
        asyncio.run(cancel())
    assert caplog.text == ""


def test_a_timed_out_aemit_reports_nothing_later(caplog: pytest.LogCaptureFixture, recwarn: Any) -> None:
    """The abandoned sender ends without a word in a loop that still runs."""

    async def give_up() -> None:
        with pytest.raises(EmitError):
            await emitter.aemit("Event")
        broker.close()
        await asyncio.sleep(0.3)

    with trickling_broker("redis") as broker:
        emitter = emitter_to(broker.url("redis"), timeout=0.3)
        asyncio.run(give_up())
    assert caplog.text == ""


class Alarm(BaseException):
    """Raised by a signal, wherever the main thread is."""


class SoftAlarm(Exception):
    """Such as Celery's soft time limit."""


@pytest.mark.parametrize("alarm", [Alarm, SoftAlarm, TimeoutError])
def test_what_interrupts_an_emit_leaves_nothing_half_done(
    broker_url: str, queue_name: str, alarm: type[BaseException]
) -> None:
    """Such as Ctrl-C: it is raised as it is, and the connection on which a reply is owed is not used again."""

    def interrupt(*_: object) -> None:
        raise alarm("from outside")

    threads = senders()
    with FreezableProxy(broker_url) as proxy:
        emitter = emitter_to(proxy.proxied_url, queue_name, timeout=8)
        for _ in range(3):
            emitter.emit("Event")
        proxy.freeze()
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(alarm, match="from outside"):
                emitter.emit("Event")
        finally:
            signal.signal(signal.SIGALRM, before)
        proxy.thaw()
        connections = proxy.accepted
        for _ in range(3):
            emitter.emit("Event")
        assert proxy.accepted > connections
    eventually(lambda: senders() <= threads + 1, "the sender that was lent has ended")


@pytest.mark.parametrize("call", ["_lend", "_give_back"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_interrupts_lending_takes_no_connection_away(
    redis_url: str, queue_name: str, call: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    emitter = emitter_to(redis_url, queue_name, timeout=5)
    for _ in range(3):
        emitter.emit("Event")
    original = getattr(publisher._Senders, call)

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(publisher._Senders, call, original)
        if moment == "after":
            original(*args)
        raise Alarm

    monkeypatch.setattr(publisher._Senders, call, interrupted)
    with pytest.raises(Alarm):
        emitter.emit("Event")
    for _ in range(3):
        emitter.emit("Event")


def test_who_waits_longer_is_served_by_another_connection(
    valkey: Valkey, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another emit that was to share its round trip has given up before anything was sent."""
    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    # The broker is asked whether it is there before each round trip.
    monkeypatch.setattr(splicing, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(splicing, "MOMENT_SECONDS", 0.0)
    with FreezableProxy(valkey.url) as proxy:
        emitter = emitter_to(proxy.proxied_url, queue_name, timeout=8)
        queue, hold, start = emitter._queues[0], threading.Event(), time.monotonic()
        for _ in range(2):
            emitter.emit("Event")
        holding = threading.Thread(target=queue.publisher.call, args=(lambda *_: hold.wait(), start + 20))
        holding.start()
        eventually(lambda: not queue.publisher._senders._idle, "the sender is busy")
        publishings = [queue.publisher.start(queue.message(emitter.prepare("Event"))) for _ in range(2)]
        proxy.freeze()
        hold.set()
        holding.join()
        publishings[0].wait(time.monotonic() + 0.5)
        assert "within the deadline" in str(publishings[0].error)
        proxy.thaw()
        publishings[1].wait(start + 20)
        assert publishings[1].error is None
    with valkey.client() as client:
        assert client.llen(queue_name) == 3


def test_an_exception_of_a_signal_handler_as_it_wakes_a_sender(
    valkey: Valkey, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: none is left neither idle nor told, or each emit would then find all of them busy."""
    emitter = emitter_to(valkey.url, queue_name, timeout=8)
    delayed = emitter.with_options(delay=60)  # Which no thread but a sender's own sends.
    emitter.emit("Event")
    senders_of_app = emitter._queues[0].publisher._senders
    for _ in range(publisher.MAX_SENDERS):
        eventually(lambda: senders_of_app._idle, "a sender is at rest")
        with monkeypatch.context() as patch:
            patch.setattr(senders_of_app._idle[-1].changed, "notify", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                delayed.emit("Event")
        delayed.emit("Event")


def _interrupted() -> None:
    raise KeyboardInterrupt


# -- What the broker refuses or forgets ---------------------------------------------------------------------------


def test_publishes_are_confirmed(amqp_url: str, rabbitmq: RabbitMQ, queue_name: str) -> None:
    """What RabbitMQ refuses with a negative confirm is an error; its other queues are not suspected."""
    from kombu import Queue

    full = Queue(
        queue_name, routing_key=queue_name, queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    app = Celery("emitting", broker=amqp_url)
    other_name = f"{queue_name}-other"
    app.conf.task_queues = [full, Queue(other_name, routing_key=other_name)]
    emitter = CeleryEventEmitter(CeleryEventEmitter.Queue(app, queue_name))
    other = CeleryEventEmitter(CeleryEventEmitter.Queue(app, other_name))
    try:
        emitter.emit("Event")
        with pytest.raises(
            EmitError, match="RabbitMQ refused it, as it does when the queue is full; it was not stored"
        ):
            emitter.emit("Event")
        other.emit("Event")
        assert rabbitmq.depth(queue_name) == 1
    finally:
        rabbitmq.delete(other_name)


def test_a_refused_message_leaves_no_other_waiting(
    amqp_url: str, rabbitmq: RabbitMQ, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender that ends with a refusal may have been the only one."""
    from kombu import Queue

    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    full = Queue(
        queue_name, routing_key=queue_name, queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    other_name = f"{queue_name}-other"
    try:
        with FreezableProxy(amqp_url) as proxy:
            app = Celery("emitting", broker=proxy.proxied_url)
            app.conf.task_queues = [full, Queue(other_name, routing_key=other_name)]
            to_full, to_other = (
                CeleryEventEmitter(CeleryEventEmitter.Queue(app, name), timeout=8) for name in (queue_name, other_name)
            )
            to_full.emit("Event")
            senders_of_app = to_full._queues[0].publisher._senders
            eventually(lambda: senders_of_app._idle, "the sender is at rest, and does not take both together")
            proxy.freeze()
            errors: list[BaseException | None] = []
            threads = [
                threading.Thread(target=lambda each=each: errors.extend(in_threads(1, lambda _: each.emit("Event"))))
                for each in (to_full, to_other)
            ]
            threads[0].start()
            eventually(lambda: not senders_of_app._idle, "the first is being sent")
            threads[1].start()
            eventually(lambda: senders_of_app._waiting, "the second waits")
            proxy.thaw()
            for thread in threads:
                thread.join()
        assert sorted(type(error).__name__ for error in errors) == ["EmitError", "NoneType"]
        assert rabbitmq.depth(other_name) == 1
    finally:
        rabbitmq.delete(other_name)


def test_waiting_messages_are_refused_with_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them may pass for stored, however short the time of failing fast."""
    monkeypatch.setattr(publisher, "FAIL_FAST_SECONDS", 0.0)
    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    with hanging_broker() as broker:
        emitter = emitter_to(broker.url("redis"))
        errors = in_threads(5, lambda _: emitter.emit("Event"))
    assert [type(error) for error in errors] == [EmitError] * 5


def test_a_deleted_queue_is_declared_again(amqp_url: str, rabbitmq: RabbitMQ, queue_name: str) -> None:
    """A connection remembers what it has declared, and somebody may delete it."""
    emitter = emitter_to(amqp_url, queue_name, timeout=5)
    emitter.emit("Event")
    rabbitmq.delete(queue_name)
    emitter.emit("Event")
    assert rabbitmq.depth(queue_name) == 1


def test_unroutable_is_an_error(amqp_url: str, rabbitmq: RabbitMQ, queue_name: str) -> None:
    """An exchange that leads nowhere swallows nothing."""
    from kombu import Exchange, Queue

    exchange = Exchange(queue_name, type="topic")
    app = Celery("emitting", broker=amqp_url)
    app.conf.task_queues = [Queue(queue_name, exchange, routing_key="somewhere", no_declare=True)]
    emitter = CeleryEventEmitter(CeleryEventEmitter.Queue(app, queue_name), timeout=5)
    with rabbitmq.channel() as channel:
        exchange(channel).declare()
    for _ in range(2):
        with pytest.raises(EmitError, match="no queue to route it to"):
            emitter.emit("Event")


def test_a_closed_idle_connection_is_replaced(broker_url: str, queue_name: str) -> None:
    """Brokers and firewalls close connections that idle; the next emit notices before it sends."""
    with FreezableProxy(broker_url) as proxy:
        emitter = emitter_to(proxy.proxied_url, queue_name, timeout=5)
        for _ in range(3):
            emitter.emit("Event")
            proxy.cut()
            time.sleep(0.1)
        emitter.emit("Event")
        assert proxy.accepted >= 4


def test_a_closed_idle_connection_is_noticed_with_many_open_files(amqp_url: str, queue_name: str) -> None:
    """select() refuses file descriptors from 1024 up, which servers reach."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        emitter = emitter_to(amqp_url, queue_name, timeout=5)
        emitter.emit("Event")
        emitter.emit("Event")
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_restarted_redis_goes_on() -> None:
    """A restart between two emits costs neither of them."""
    with Valkey() as server:
        emitter = emitter_to(server.url, timeout=5)
        emitter.emit("Event")
        server.kill()
        server.restart()
        emitter.emit("Event")
        with server.client() as client:
            assert client.llen("events") == 1


@pytest.mark.parametrize("how", ["emit", "aemit"])
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_lost_replies_store_nothing_twice(
    redis_url: str, valkey: Valkey, queue_name: str, earlier: int, how: str
) -> None:
    """A client that retries by itself stores once more with every lost reply."""
    with FreezableProxy(redis_url) as proxy, valkey.client() as client:
        emitter = emitter_to(proxy.proxied_url, queue_name)
        for _ in range(earlier):
            emitter.emit("Event")
        proxy.replies = "drop"
        with pytest.raises(EmitError, match="the deadline; whether it was stored is unknown") as caught:
            emitter.emit("Event") if how == "emit" else asyncio.run(emitter.aemit("Event"))
        proxy.cut()
        proxy.replies = "forward"
        time.sleep(0.3)
        assert client.llen(queue_name) == earlier + (earlier == 2)
        emit_until_stored(emitter, caught.value.emission)
        assert client.llen(queue_name) == earlier + (earlier == 2) + 1


class closes_after_the_request(FreezableProxy):
    """Closes the connection when the broker has done what it was asked, before its reply."""

    def _reply(self, client: Any, data: bytes) -> None:
        if self.replies == "drop":
            raise OSError
        super()._reply(client, data)


@pytest.mark.parametrize("how", ["emit", "aemit"])
@pytest.mark.parametrize("earlier", [1, 2])
def test_connections_closed_before_the_reply_store_nothing_twice(
    redis_url: str, valkey: Valkey, queue_name: str, earlier: int, how: str
) -> None:
    """A connection error after sending is no reason to send again; one before it is known to be before it."""
    with closes_after_the_request(redis_url) as proxy, valkey.client() as client:
        emitter = emitter_to(proxy.proxied_url, queue_name)
        for _ in range(earlier):
            emitter.emit("Event")
        proxy.replies = "drop"
        known = "it was not sent" if earlier == 1 else "whether it was stored is unknown"
        with pytest.raises(EmitError, match=f"ConnectionError.*{known}"):
            emitter.emit("Event") if how == "emit" else asyncio.run(emitter.aemit("Event"))
        assert client.llen(queue_name) == earlier + (earlier == 2)


# -- Several queues, several URLs ---------------------------------------------------------------------------------


def test_the_error_says_which_queues_have_stored_it(broker_url: str, queue_name: str) -> None:
    """One broker of two is down."""
    with refused_port() as port:
        up = CeleryEventEmitter.Queue(Celery("up", broker=broker_url), queue_name)
        down = CeleryEventEmitter.Queue(Celery("down", broker=f"redis://127.0.0.1:{port}/0"), "down")
        emitter = CeleryEventEmitter([up, down])
        with pytest.raises(EmitError, match="queue 'down'") as caught:
            emitter.emit("Event")
    assert caught.value.stored == (queue_name,)
    assert f"queue {queue_name!r}" not in str(caught.value)


@pytest.mark.parametrize("kind", ["refused", "hanging"])
def test_failover(redis_url: str, valkey: Valkey, queue_name: str, kind: str) -> None:
    """Of "a;b" the second takes over: at once if the first refuses, with the next attempt if it hangs."""
    with broken_broker(kind, "redis") as url, valkey.client() as client:
        emitter = emitter_to(f"{url};{redis_url}", queue_name)
        emission = emitter.prepare("Event")
        if kind == "refused":
            emitter.send(emission)
        else:
            emit_until_stored(emitter, emission)
        assert client.llen(queue_name) == 1


def test_waiting_for_a_free_connection_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never sent is said to be so."""
    monkeypatch.setattr(publisher, "MAX_SENDERS", 1)
    with hanging_broker() as broker:
        slow = emitter_to(broker.url("redis"), timeout=2)
        quick = CeleryEventEmitter(slow._queues[0], timeout=0.1)
        thread = threading.Thread(target=in_threads, args=(1, lambda _: slow.emit("Event")))
        thread.start()
        eventually(lambda: broker.accepted == 1, "the first emit hangs")
        with pytest.raises(EmitError, match="all connections were busy until the deadline, and it was not sent"):
            quick.emit("Event")
        thread.join()


def test_a_thread_that_cannot_start_is_an_emit_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of threads, or at the interpreter's exit."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(native, "start_thread", refuse)
    with pytest.raises(EmitError, match="it was not sent: can't start new thread"):
        emitter_to("memory://").emit("Event")


def test_the_default_timeout_of_sockets_stays(
    broker_url: str, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kombu's collect() changes that of the whole process for a moment."""
    import socket

    changes: list[object] = []
    threads = senders()
    with FreezableProxy(broker_url) as proxy:
        emitter = emitter_to(proxy.proxied_url, queue_name)
        emitter.emit("Event")
        monkeypatch.setattr(socket, "setdefaulttimeout", changes.append)
        proxy.freeze()
        with pytest.raises(EmitError):
            emitter.emit("Event")
    eventually(lambda: senders() <= threads, "the connection is closed")
    assert changes == []


def test_idle_senders_end(broker_url: str, queue_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their connections; the next emit makes a new one."""
    monkeypatch.setattr(publisher, "IDLE_SECONDS", 0.2)
    threads = senders()
    emitter = emitter_to(broker_url, queue_name, timeout=5)
    for _ in range(2):
        emitter.emit("Event")
        eventually(lambda: senders() <= threads, "the sender has ended")

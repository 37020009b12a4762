"""What a running loop emits: sent by the loop itself, together, and lost to nobody when it fails or ends."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyventus import Emission, EmitError
from pyventus.emitters.celery import CeleryEventEmitter, splicing
from pyventus.emitters.celery.publisher import MAX_SENDERS
from tests.brokers import FreezableProxy, RabbitMQ, Valkey
from tests.functional.apps.support import new_emitter, wait_until
from tests.functional.test_emitting_processes import stored_ids

NOT_SENT = r"and it was not sent"


@pytest.fixture
def queue(broker_url: str, queue_name: str) -> Iterator[str]:
    yield queue_name
    if broker_url.startswith("amqp"):
        RabbitMQ(broker_url).delete(queue_name)


@pytest.fixture
def proxy(broker_url: str) -> Iterator[FreezableProxy]:
    with FreezableProxy(broker_url) as proxy:
        yield proxy


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each request to a broker, how many messages it is about."""
    sizes: list[int] = []

    def spied(original: Callable[..., bytes]) -> Callable[..., bytes]:
        def request(self: Any, copies: Sequence[Any]) -> bytes:
            sizes.append(len(copies))
            return original(self, copies)

        return request

    for kind in (splicing.RedisSplicer, splicing.RabbitMQSplicer):
        monkeypatch.setattr(kind, "request", spied(kind.request))
    return sizes


def emitter_through(url: str, queue: str, timeout: float = 20) -> CeleryEventEmitter:
    """One that has a connection at rest, and knows how Celery would send."""
    app_queue = new_emitter(url, queue)._queues[0]
    emitter = CeleryEventEmitter(app_queue, timeout=timeout)
    for _ in range(3):
        emitter.emit("Event")
    return emitter


def senders_of(emitter: CeleryEventEmitter) -> Any:
    return emitter._queues[0].publisher._senders


def knows_what_celery_sends(sender: Any) -> bool:
    return sender.splicer is not None and sender.splicer._templates and sender.splicer.is_ready()


async def emit_at_once(emitter: CeleryEventEmitter, count: int, *args: object) -> list[Emission]:
    return await asyncio.gather(*(emitter.aemit("Event", *args) for _ in range(count)))


def test_one_turn_takes_one_round_trip(broker_url: str, queue: str, valkey: Valkey, requests: list[int]) -> None:
    emitter = emitter_through(broker_url, queue)
    requests.clear()
    emissions = asyncio.run(emit_at_once(emitter, 100))
    assert requests == [100]
    assert {emission.id for emission in emissions} < set(stored_ids(broker_url, queue, valkey))


def test_what_is_large_is_sent_as_the_broker_takes_it(
    broker_url: str, proxy: FreezableProxy, queue: str, valkey: Valkey
) -> None:
    """More than any buffer on its way holds: the loop runs on meanwhile, and so does what else it emits."""
    emitter = emitter_through(proxy.proxied_url, queue)
    for sender in senders_of(emitter)._senders:
        if sender.splicer is not None:
            sender.splicer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)

    async def main() -> list[Emission]:
        proxy.freeze()
        large = asyncio.ensure_future(emit_at_once(emitter, 60, "x" * 200_000))
        small = asyncio.ensure_future(emit_at_once(emitter, 3))
        await asyncio.sleep(0.2)
        assert not large.done()
        proxy.thaw()
        return await large + await small

    emissions = asyncio.run(main())
    assert {emission.id for emission in emissions} < set(stored_ids(broker_url, queue, valkey))


def test_what_would_hold_the_loop_up_is_left_to_others(
    broker_url: str, queue: str, valkey: Valkey, requests: list[int]
) -> None:
    """Five of 200 KB are made by the loop itself."""
    emitter = emitter_through(broker_url, queue)
    requests.clear()
    emissions = asyncio.run(emit_at_once(emitter, 20, "x" * 200_000))
    assert requests[0] == 5
    assert {emission.id for emission in emissions} < set(stored_ids(broker_url, queue, valkey))


def test_each_ends_at_its_own_deadline(proxy: FreezableProxy, queue: str) -> None:
    """Though they share a round trip; afterwards emits work again."""
    patient = emitter_through(proxy.proxied_url, queue)
    hasty = CeleryEventEmitter(patient._queues[0], timeout=0.3)

    async def main() -> None:
        proxy.freeze()
        tasks = [asyncio.ensure_future(emitter.aemit("Event")) for emitter in (hasty, patient)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert done == {tasks[0]}
        with pytest.raises(EmitError, match="did not answer within the deadline; whether it was stored is unknown"):
            await tasks[0]
        proxy.thaw()
        await tasks[1]

    asyncio.run(main())
    time.sleep(1.1)  # Until then emits fail fast.
    patient.emit("Event")


def test_what_waits_for_a_connection_ends_at_its_deadline(proxy: FreezableProxy, queue: str) -> None:
    """Behind others whose deadline is later, or whose callers have left."""
    patient = emitter_through(proxy.proxied_url, queue)
    hasty = CeleryEventEmitter(patient._queues[0], timeout=0.3)

    async def main() -> None:
        proxy.freeze()
        tasks = []
        for _ in range(2 * MAX_SENDERS):
            tasks.append(asyncio.ensure_future(patient.aemit("Event")))
            await asyncio.sleep(0.02)
        for task in tasks[::2]:
            task.cancel()
        task = asyncio.ensure_future(hasty.aemit("Event"))
        assert (await asyncio.wait([task, *tasks[1::2]], return_when=asyncio.FIRST_COMPLETED))[0] == {task}
        assert re.search(f"all connections were busy until the deadline, {NOT_SENT}", str(task.exception()))
        proxy.thaw()
        await asyncio.gather(*tasks[1::2])

    asyncio.run(main())


def test_a_loop_that_stands_still_holds_up_nobody_after_a_failure(proxy: FreezableProxy, queue: str) -> None:
    """One sender finds out for all whether the broker is back, and not one that such a loop has."""
    emitter = emitter_through(proxy.proxied_url, queue)
    is_flying, goes_on = threading.Event(), threading.Event()

    async def main() -> None:
        task = asyncio.ensure_future(emitter.aemit("Event"))
        await asyncio.sleep(0.1)
        is_flying.set()
        goes_on.wait()
        with pytest.raises(EmitError):
            await task

    proxy.freeze()
    with ThreadPoolExecutor(1) as thread:
        loop = thread.submit(asyncio.run, main())
        is_flying.wait()
        threading.Timer(0.3, proxy.cut).start()
        try:
            with pytest.raises(EmitError):
                emitter.emit("Event")
            proxy.thaw()
            time.sleep(1.1)
            emitter.emit("Event")
            emitter.emit("Event")
        finally:
            goes_on.set()
        loop.result()


class ClosingProxy(FreezableProxy):
    """Says that RabbitMQ has closed a channel, in the place of its next confirmation."""

    is_closing = False

    def _reply(self, client: socket.socket, data: bytes) -> None:
        if self.is_closing and data[7:11] == b"\0\x3c\0\x50":
            self.is_closing = False
            reason = b"PRECONDITION_FAILED - too large"
            method = struct.pack(">HHHB", 20, 40, 406, len(reason)) + reason + struct.pack(">HH", 60, 40)
            data = struct.pack(">BHI", 1, struct.unpack_from(">H", data, 1)[0], len(method)) + method + b"\xce"
        client.sendall(data)


@pytest.mark.parametrize("how", ["emit", "aemit"])
def test_why_rabbitmq_closes_a_channel_is_said(amqp_url: str, queue_name: str, how: str) -> None:
    with ClosingProxy(amqp_url) as proxy:
        emitter = emitter_through(proxy.proxied_url, queue_name)
        proxy.is_closing = True
        with pytest.raises(EmitError, match="406.* too large; whether it was stored is unknown"):
            emitter.emit("Event") if how == "emit" else asyncio.run(emitter.aemit("Event"))
        emitter.emit("Event")
        RabbitMQ(amqp_url).delete(queue_name)


def test_all_of_a_round_trip_fail_with_their_connection(proxy: FreezableProxy, queue: str) -> None:
    emitter = emitter_through(proxy.proxied_url, queue)

    async def main() -> list[Any]:
        proxy.freeze()
        tasks = [asyncio.ensure_future(emitter.aemit("Event")) for _ in range(3)]
        await asyncio.sleep(0.1)
        proxy.cut()
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(main())
    assert [type(error) for error in errors] == [EmitError] * 3
    assert all("whether it was stored is unknown" in str(error) for error in errors)
    proxy.thaw()
    time.sleep(1.1)
    asyncio.run(emitter.aemit("Event"))


def test_what_is_cancelled_before_its_turn_is_over_is_not_sent(
    broker_url: str, queue: str, valkey: Valkey, requests: list[int]
) -> None:
    emitter = emitter_through(broker_url, queue)
    requests.clear()

    async def main() -> Emission:
        gone, stays = (asyncio.ensure_future(emitter.aemit("Event")) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    emission = asyncio.run(main())
    assert requests == [1]
    stored = stored_ids(broker_url, queue, valkey)
    assert len(stored) == 4
    assert emission.id in stored


def test_a_loop_that_is_busy_until_the_deadline_sends_nothing(broker_url: str, queue: str, valkey: Valkey) -> None:
    emitter = CeleryEventEmitter(emitter_through(broker_url, queue)._queues[0], timeout=0.1)

    async def main() -> None:
        task = asyncio.ensure_future(emitter.aemit("Event"))
        await asyncio.sleep(0)
        time.sleep(0.3)
        with pytest.raises(EmitError, match=f"the event loop was busy until the deadline, {NOT_SENT}"):
            await task

    asyncio.run(main())
    assert len(stored_ids(broker_url, queue, valkey)) == 3


def test_loops_that_end_amid_a_round_trip_take_no_connection_with_them(
    broker_url: str, proxy: FreezableProxy, queue: str, valkey: Valkey
) -> None:
    """More often than there are connections; what each has written may be stored, and others are not held up."""
    emitter = emitter_through(proxy.proxied_url, queue)

    async def leave() -> None:
        task = asyncio.ensure_future(emitter.aemit("Event"))
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()

    for _ in range(MAX_SENDERS + 2):
        proxy.freeze()
        asyncio.run(leave())
        proxy.thaw()
        emission = emitter.emit("Event")
        assert emission.id in stored_ids(broker_url, queue, valkey)
    assert not senders_of(emitter)._flights


def test_a_loop_that_stands_still_amid_a_round_trip(proxy: FreezableProxy, queue: str) -> None:
    """It gives its connections back when it runs again; others make new ones meanwhile."""
    emitter = emitter_through(proxy.proxied_url, queue, timeout=1.0)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def leave() -> None:
            tasks.append(asyncio.ensure_future(emitter.aemit("Event")))
            await asyncio.sleep(0.1)

        tasks: list[asyncio.Future[Emission]] = []
        for _ in range(MAX_SENDERS):
            proxy.freeze()
            loop.run_until_complete(leave())
            proxy.thaw()
        time.sleep(2.1)
        for _ in range(3):
            emitter.emit("Event")
        loop.run_until_complete(asyncio.wait(tasks))
        assert all(isinstance(task.exception(), EmitError | None) for task in tasks)
    for _ in range(3):
        emitter.emit("Event")


def test_an_emit_on_a_loop_whose_messages_are_on_their_way(proxy: FreezableProxy, queue: str) -> None:
    """It has the loop wait, which could not take the broker's answers for the others, and needs no connection of
    theirs.
    """
    emitter = emitter_through(proxy.proxied_url, queue)
    senders = senders_of(emitter)
    with ThreadPoolExecutor(2 * MAX_SENDERS) as threads:
        while len(senders._idle) < MAX_SENDERS or not all(map(knows_what_celery_sends, senders._idle)):
            list(threads.map(lambda _: emitter.emit("Event"), range(4 * MAX_SENDERS)))

    async def main() -> None:
        proxy.freeze()
        tasks = []
        for _ in range(MAX_SENDERS + 1):
            tasks.append(asyncio.ensure_future(emitter.aemit("Event")))
            await asyncio.sleep(0.02)
        assert len(senders._flights) > 1
        proxy.thaw()
        emitter.emit("Event")
        assert not any(task.done() for task in tasks[: MAX_SENDERS - 1])
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_loop_that_stands_still_and_is_closed_then(proxy: FreezableProxy, queue: str) -> None:
    """The thread whose connection it had ends, although others have taken its place already."""
    emitter = emitter_through(proxy.proxied_url, queue, timeout=0.5)
    loop = asyncio.new_event_loop()

    async def leave() -> None:
        tasks.append(asyncio.ensure_future(emitter.aemit("Event")))
        await asyncio.sleep(0.1)

    tasks: list[asyncio.Future[Emission]] = []
    proxy.freeze()
    loop.run_until_complete(leave())
    proxy.thaw()
    (flight,) = senders_of(emitter)._flights
    time.sleep(1.6)
    emitter.emit("Event")
    assert not flight.sender.is_over
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    emitter.emit("Event")
    asyncio.run(emitter.aemit("Event"))
    wait_until(lambda: flight.sender.is_over, "its end")


class BlindLoop(asyncio.SelectorEventLoop):
    """Cannot wait for sockets of others, as the default one of Windows cannot."""

    def add_reader(self, *_: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


def test_a_loop_that_cannot_wait_for_sockets_has_them_sent(broker_url: str, queue: str, valkey: Valkey) -> None:
    emitter = emitter_through(broker_url, queue)
    with asyncio.Runner(loop_factory=BlindLoop) as runner:
        emissions = runner.run(emit_at_once(emitter, 10))
    assert {emission.id for emission in emissions} < set(stored_ids(broker_url, queue, valkey))

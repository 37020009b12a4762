"""A process that sends messages in one way, for as long as it is told: ``python -m benchmarks.emitting emit``.

For each line on its standard input, a number of seconds, it answers how many it has sent, in how many seconds, and how
many of them it has kept processors busy.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, islice
from typing import Any

import amqp
import redis
from kombu.utils.url import url_to_parts

from benchmarks.shop import BROKER, TEXT, app, emitter, queue

THREADS = 32
TASKS = 100
BATCH = 1000

#: Sends some messages and says how many.
Send = Callable[[], int]


def emit() -> int:
    emitter.emit("order.placed", 0, TEXT)
    return 1


def envelope() -> str:
    return queue.message(emitter.prepare("order.placed", 0, TEXT)).text


def send_task() -> Send:
    text = envelope()

    def send() -> int:
        app.send_task("bench.note", args=(text,), queue=app.conf.task_default_queue, ignore_result=True)
        return 1

    return send


def bare() -> Send:
    """LPUSH of the very bytes that an emit has pushed."""
    client = redis.Redis.from_url(BROKER.replace("pyventus-redis", "redis"))
    emit()
    message = client.lindex(queue.name, 0)
    assert isinstance(message, bytes), "the emission is not where Celery's own transport keeps it"

    def send() -> int:
        client.lpush(f"{queue.name}-bare", message)
        return 1

    return send


def amqp_channel(**options: Any) -> amqp.Channel:
    parts = url_to_parts(BROKER)
    connection = amqp.Connection(
        f"{parts[1]}:{parts[2] or 5672}", parts[3] or "guest", parts[4] or "guest",
        virtual_host=(parts[5] or "").strip("/") or "/", **options,
    )  # fmt: skip
    connection.connect()
    return connection.channel()


def bare_confirmed() -> Send:
    """A persistent message of as many bytes by py-amqp alone, which waits for its confirmation."""
    text, channel = envelope(), amqp_channel(confirm_publish=True)

    def send() -> int:
        message = amqp.Message(text, content_type="application/json", delivery_mode=2)
        channel.basic_publish(message, routing_key=queue.name)
        return 1

    return send


def bytes_confirmed(messages: int) -> Send:
    """The bytes of so many messages like that of an emit, made once, written at once, and then all confirmed."""
    emit()
    channel = amqp_channel()
    channel.confirm_select()
    message = channel.basic_get(queue.name, no_ack=True)
    transport, written = channel.connection.transport, bytearray()
    write, transport._write = transport._write, written.extend
    for _ in range(messages):
        channel.basic_publish(message, routing_key=queue.name, mandatory=True)
    transport._write = write
    tags, unconfirmed = count(1), set[int]()

    def confirm(tag: int, multiple: bool) -> None:
        unconfirmed.difference_update([each for each in unconfirmed if each <= tag] if multiple else [tag])

    channel.events["basic_ack"].add(confirm)

    def send() -> int:
        unconfirmed.update(islice(tags, messages))
        write(written)
        while unconfirmed:
            channel.connection.drain_events()
        return messages

    return send


def sealed_only() -> Send:
    """What an emission costs before any broker: its arguments as JSON, its head and its signature."""
    emissions = [emitter.prepare("order.placed", 0, TEXT) for _ in range(BATCH)]

    def send() -> int:
        for emission in emissions:
            queue.message(emission)
        return BATCH

    return send


def emit_many(**options: Any) -> Send:
    emissions = [emitter.prepare("order.placed", 0, TEXT) for _ in range(BATCH)]

    def send() -> int:
        emitter.emit_many(emissions, **options)
        return BATCH

    return send


def in_threads(send: Send) -> Send:
    threads = ThreadPoolExecutor(THREADS)

    def repeat(_: int) -> int:
        return sum(send() for _ in range(10))

    return lambda: sum(threads.map(repeat, range(THREADS)))


def at_once(one: Callable[[], Any]) -> Send:
    """So many coroutines beside one another, on one loop."""
    runner = asyncio.Runner()

    async def some() -> int:
        await asyncio.gather(*[one() for _ in range(TASKS)])
        return TASKS

    return lambda: runner.run(some())


def one_by_one(one: Callable[[], Any]) -> Send:
    """Coroutines on one loop, of which each waits for the one before."""
    runner = asyncio.Runner()

    async def some() -> int:
        for _ in range(TASKS):
            await one()
        return TASKS

    return lambda: runner.run(some())


def aemit() -> Any:
    return emitter.aemit("order.placed", 0, TEXT)


WAYS: dict[str, Callable[[], Send]] = {
    "emit": lambda: emit,
    "send_task": send_task,
    "bare": bare,
    "bare, confirmed": bare_confirmed,
    "bytes alone, confirmed": lambda: bytes_confirmed(1),
    "a thousand's bytes alone, confirmed": lambda: bytes_confirmed(BATCH),
    "sealed only": sealed_only,
    "emit_many": emit_many,
    "batches": lambda: emit_many(batch=100),
    "emit in threads": lambda: in_threads(emit),
    "send_task in threads": lambda: in_threads(send_task()),
    "aemit": lambda: one_by_one(aemit),
    "aemit at once": lambda: at_once(aemit),
    "send_task from a loop": lambda: one_by_one(partial(asyncio.to_thread, send_task())),
    "send_task at once": lambda: at_once(partial(asyncio.to_thread, send_task())),
}


def send_for(seconds: float, send: Send) -> tuple[int, float, float]:
    start, busy, sent = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - start) < seconds:
        sent += send()
    return sent, passed, time.process_time() - busy


def exactly() -> None:
    """For each line, a number of emissions, sends so many."""
    for line in sys.stdin:
        print(sum(emit() for _ in range(int(line))), flush=True)


def main(way: str) -> None:
    if way == "exactly":
        return exactly()
    send = WAYS[way]()
    send()
    for line in sys.stdin:
        print(*send_for(float(line), send), flush=True)
    os._exit(0)  # Of no interest: what a client does at its leisure.


if __name__ == "__main__":
    main(sys.argv[1])

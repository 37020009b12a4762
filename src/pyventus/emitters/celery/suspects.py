"""Emissions that a worker process died with: their starts are counted in the broker, and from the second on each runs
alone in its process.

What a dead process had fetched comes back together, and dies together if it runs together; one message that kills its
worker would convict its neighbours. A counter of the broker's own cannot be kept in the message, because a message that
waited in a process that died has not been started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from amqp.exceptions import NotFound

from pyventus.running import off_loop

if TYPE_CHECKING:
    from redis import Redis

#: How often an emission that runs alone may take its process with it.
MAX_DEATHS = 3
#: Starts of what always does: the first, one more beside others, and those alone.
MAX_STARTS = 2 + MAX_DEATHS
COUNTER_SECONDS = 7 * 24 * 3600

Action = Callable[[Any, str], int]


class Room:
    """What runs in a process: many together, or one alone."""

    def __init__(self) -> None:
        self._inside = 0  # -1: one alone.
        self._waiting_alone = 0
        # A condition's own `with` takes three times as long as its lock's.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def shared(self) -> AbstractContextManager[None]:
        """Run beside others; not while one runs alone, or waits for it."""
        return _Visit(self, self._enter_shared)

    def alone(self) -> AbstractContextManager[None]:
        """Run when nothing else does, and let nothing else start meanwhile."""
        return _Visit(self, lambda visit: off_loop(partial(self._enter_alone, visit)))

    def _enter_shared(self, visit: _Visit) -> None:
        if not self._try_shared(visit):
            off_loop(partial(self._wait_shared, visit))

    def _try_shared(self, visit: _Visit) -> bool:
        with self._lock:
            if self._inside < 0 or self._waiting_alone:
                return False
            self._inside, visit.weight = self._inside + 1, 1
            return True

    def _wait_shared(self, visit: _Visit) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._try_shared(visit))

    def _enter_alone(self, visit: _Visit) -> None:
        with self._changed:
            self._waiting_alone += 1
            try:
                self._changed.wait_for(lambda: self._inside == 0)
                self._inside = visit.weight = -1
            finally:
                self._waiting_alone -= 1

    def _leave(self, visit: _Visit) -> None:
        with self._lock:
            self._inside -= visit.weight
            # Others wait only for one alone, or for it to have had its turn.
            if self._waiting_alone or visit.weight < 1:
                self._changed.notify_all()


class _Visit(AbstractContextManager[None]):
    """A stay in a room; ``weight`` is what it has added to those inside."""

    def __init__(self, room: Room, enter: Callable[[_Visit], None]) -> None:
        self.weight = 0
        self._room = room
        self._enter = enter

    def __enter__(self) -> None:
        try:
            self._enter(self)
        except BaseException:  # Celery's soft time limit may strike anywhere.
            self._room._leave(self)
            raise

    def __exit__(self, *_: object) -> None:
        self._room._leave(self)


def count_start(queue: str, message_id: str) -> Action:
    """Count a start of a message; the action returns how many there were, this one included."""

    def count(channel: Any, driver: str) -> int:
        if driver == "redis":
            return _count_in_redis(channel, _name(queue, message_id))
        if driver == "amqp":
            return _count_in_rabbitmq(channel, _name(queue, message_id))
        return 1  # Of other transports none outlives the process, or tells what it has delivered before.

    return count


def read_starts(queue: str, message_id: str) -> Action:
    """How many starts of a message were counted."""

    def read(channel: Any, driver: str) -> int:
        name = _name(queue, message_id)
        if driver == "redis":
            return int(_redis(channel).get(_key(channel, name)) or 0)
        return _read_in_rabbitmq(channel, name) if driver == "amqp" else 0

    return read


def forget_starts(queue: str, message_id: str) -> Action:
    """Drop the counter of a message that has ended."""

    def forget(channel: Any, driver: str) -> int:
        if driver == "redis":
            _redis(channel).delete(_key(channel, _name(queue, message_id)))
        elif driver == "amqp":
            with channel.connection.channel() as own:
                own.queue_delete(_name(queue, message_id))
        return 0

    return forget


def _name(queue: str, message_id: str) -> str:
    return f"{queue}.starts.{message_id}"


def _redis(channel: Any) -> Redis:
    from redis import Redis

    # Not the channel's own client, which puts the prefix before the keys of some commands only.
    return Redis(connection_pool=channel.pool)


def _key(channel: Any, name: str) -> str:
    return f"{channel.global_keyprefix}{name}"


def _count_in_redis(channel: Any, name: str) -> int:
    key = _key(channel, name)
    with _redis(channel).pipeline() as pipeline:
        pipeline.incr(key)
        pipeline.expire(key, COUNTER_SECONDS)
        return int(pipeline.execute()[0])


def _count_in_rabbitmq(channel: Any, name: str) -> int:
    """A queue that nobody consumes, with a message for each start; it deletes itself when it is no longer asked for."""
    # An error would close the channel that sends messages.
    with channel.connection.channel() as own:
        arguments = {"x-expires": COUNTER_SECONDS * 1000}
        own.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        message = own.prepare_message(b"", content_encoding="binary", properties={"delivery_mode": 2})
        own.basic_publish(message, exchange="", routing_key=name, mandatory=True)
        return int(own.queue_declare(name, passive=True).message_count)


def _read_in_rabbitmq(channel: Any, name: str) -> int:
    try:
        with channel.connection.channel() as own:
            return int(own.queue_declare(name, passive=True).message_count)
    except NotFound:
        return 0

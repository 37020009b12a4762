"""A channel of kombu's Redis transport that fetches, records and waits in a way in which nothing is lost.

It publishes as kombu's does, messages that are not due excepted, and leaves broadcasts to it altogether.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from queue import Empty
from typing import Any
from uuid import uuid4

from kombu.transport import redis as stock
from kombu.transport import virtual
from redis import Redis

from pyventus.emitters.celery.plain_json import loads
from pyventus.emitters.celery.redis_transport.keys import Keys, id_of
from pyventus.emitters.celery.redis_transport.link import Link
from pyventus.emitters.celery.redis_transport.scripts import FETCH, PARK
from pyventus.emitters.celery.redis_transport.session import REPORT_SECONDS, Session
from pyventus.emitters.celery.redis_transport.waiting import Bell, Refused, Waiter

logger = logging.getLogger("pyventus")

MOST_FETCHED = 100
# How long messages are delivered before the loop gets to see to all else, such as acknowledgements.
SLICE_SECONDS = 0.02
# A delivery that takes longer runs the task itself, as the solo pool does.
BLOCKING_SECONDS = 0.05
# What is due sooner is left to Celery's own timer.
HELD_SECONDS = 1.0
PAUSE_SECONDS = 1.0
# For one answer, unless socket_timeout says otherwise.
ANSWER_SECONDS = 10.0

_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# Of kombu's options, those for what is here done otherwise.
_WITHOUT = {
    "ack_emulation", "visibility_timeout", "unacked_key", "unacked_index_key", "unacked_mutex_key",
    "unacked_mutex_expire", "unacked_restore_limit", "unacked_restore_interval", "unacked_restore_throttle",
}  # fmt: skip


@dataclass(slots=True)
class Entry:
    """What was fetched and not delivered yet."""

    id: str
    name: str
    queue: str
    content: bytes


class QoS(virtual.QoS):
    """Has the session acknowledge; counts what is delivered as all of kombu's transports do."""

    def ack(self, delivery_tag: str) -> None:
        self.channel.session.ack(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            self.channel.session.requeue(delivery_tag)
        else:
            self.channel.session.ack(delivery_tag)
        super().ack(delivery_tag)

    def restore_unacked(self) -> None:
        """Put back what is delivered and not acknowledged, as ``basic_recover`` asks for."""
        self._flush()
        for tag in list(self._delivered):
            self.channel.session.requeue(tag)
        self._delivered.clear()
        self.channel.session.flush(self.channel.link)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The channel is closed, or the process ends."""
        self._on_collect.cancel()
        if self.channel.do_restore:
            self.channel.end_session()


class Channel(stock.Channel):
    """Channel with sessions."""

    QoS = QoS
    #: For those who send: what is delayed need not be sent on in parts.
    holds_delays = True
    #: For those who receive: what comes back is never made from a message that was delivered.
    restores_from_broker = True
    visibility_timeout = None
    #: Seconds without a heartbeat after which a worker counts as dead.
    dead_after = 10.0
    from_transport_options = (
        *(option for option in stock.Channel.from_transport_options if option not in _WITHOUT),
        "dead_after",
    )

    def __init__(self, connection: Any, **options: Any) -> None:
        self._own_session: Session | None = None
        self._fetched: deque[Entry] = deque()
        self._consumers_of: dict[str, tuple[Callable[[Any], Any], bool]] = {}
        self._waiters: dict[str, Waiter] = {}
        self._bell: Bell | None = None
        self._is_empty = False
        self._is_blocking = False
        self._paused_until = 0.0
        self._refused_at = -REPORT_SECONDS
        super().__init__(connection, **options)
        self.keys = Keys(self.global_keyprefix)
        self.handlers = {"LISTEN": self._receive}

    @property
    def session(self) -> Session:
        """Of what it has in flight; a channel that only publishes never has one."""
        if self._own_session is None:
            dead_after = float(self.dead_after)
            # It waits for up to a third of that for one answer.
            connect = self._connector(max(ANSWER_SECONDS, dead_after))
            self._own_session = Session(connect, self.keys, dead_after)
        return self._own_session

    def _connector(self, socket_timeout: float | None) -> Callable[[], Any]:
        """Makes connections outside the pool, which is bounded, and without the hook by which kombu's poller notices
        what closes; when the channel is closed, too.
        """
        pool = self.pool
        return partial(pool.connection_class, **{**pool.connection_kwargs, "socket_timeout": socket_timeout})

    @cached_property
    def link(self) -> Link:
        """For what is to be answered at once."""
        return Link(self._connector(self.socket_timeout or ANSWER_SECONDS))

    # -- Keys -----------------------------------------------------------------------------------------------------

    def _lists(self, queue: str) -> list[str]:
        """The lists of a queue, by priority."""
        return [f"{self.global_keyprefix}{self._q_for_pri(queue, step)}" for step in self.priority_steps]

    def _ordered(self) -> list[tuple[str, str]]:
        """Queues that are consumed and their lists, in the order in which they are to be fetched from."""
        names = self._queue_cycle.consume(len(self.active_queues))
        lists = [(name, self._lists(name)) for name in names]
        return [(name, each[step]) for step in range(len(self.priority_steps)) for name, each in lists]

    # -- Consuming ------------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **options: Any) -> Any:
        result = super().basic_consume(queue, no_ack, callback, consumer_tag, **options)
        if queue not in self._fanout_queues:
            self._consumers_of[queue] = callback, no_ack
            self.session.watch(self.link, self._lists(queue))
            self._is_empty = False
        return result

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        result = super()._basic_cancel(consumer_tag)
        if self._consumers_of.pop(queue, None) is not None:
            for each in self._lists(str(queue)):
                self._stop_waiting(each)
            if not self._closing:
                self._give_back(lambda entry: entry.name == queue)
                self._end_if_idle()
        return result

    def _end_if_idle(self) -> None:
        """Connections that Celery keeps in pools consume answers of remote control, and then no more for long."""
        self.qos._flush()
        if not self._consumers_of and not self.qos._delivered:
            self.end_session()
            self._own_session = None

    def end_session(self) -> None:
        """Have it give back what nobody here runs; what is acknowledged later still reaches it."""
        if self._own_session is not None:
            self._own_session.release()

    def _give_back(self, is_meant: Callable[[Entry], bool]) -> None:
        """Put back what was fetched and not delivered."""
        meant = [entry for entry in self._fetched if is_meant(entry)]
        self._fetched = deque(entry for entry in self._fetched if not is_meant(entry))
        self.session.give_back(self.link, ((entry.id, entry.queue, entry.content) for entry in reversed(meant)))

    def prepare(self) -> None:
        """Called before the loop waits: fetch when it can be read next, or wait for what comes."""
        if self._bell is None:
            if not self._consumers_of:
                return
            self._bell = Bell(self.work)
        room = self._room()
        has_work = bool(self._fetched) or (room > 0 and not self._is_empty)
        self._bell.ring(has_work)
        self.connection.cycle.watch(self, self._bell)
        if room <= 0:
            self._stop_waiting()
        elif not has_work:
            self._wait()

    def _room(self) -> int:
        qos = self.qos
        if not qos.can_consume():
            return 0
        # Celery's worker_disable_prefetch puts another can_consume in its place, which knows no numbers.
        if self._is_blocking or "can_consume" in vars(qos):
            return 1
        room = qos.can_consume_max_estimate()
        return MOST_FETCHED if room is None else min(room, MOST_FETCHED)

    def _wait(self) -> None:
        if time.monotonic() < self._paused_until:
            return
        if self._paused_until:
            self._paused_until, self._is_empty = 0.0, False
            return
        for _, queue in self._ordered():
            waiter = self._waiters.get(queue)
            if waiter is None:
                waiter = Waiter(self._connector(None)(), queue, self.keys.landing(queue), self.work_again)
                self._waiters[queue] = waiter
            waiter.start()
            self.connection.cycle.watch(self, waiter)

    def _stop_waiting(self, *queues: str) -> None:
        for queue in queues or list(self._waiters):
            waiter = self._waiters.pop(queue, None)
            if waiter is not None:
                self._unwatch(waiter)
                waiter.close()

    def _unwatch(self, watched: Waiter | Bell) -> None:
        if self.connection is not None and self.connection.cycle is not None:
            self.connection.cycle.unwatch(self, watched)

    def on_refused(self, error: Refused) -> None:
        """Wait without Redis for a while, and then look."""
        now = time.monotonic()
        if now - self._refused_at > REPORT_SECONDS:
            self._refused_at = now
            logger.warning("Redis does not let this worker wait (%s); it looks again each second", error)
        self._paused_until = now + PAUSE_SECONDS
        self._stop_waiting()

    def work_again(self) -> bool:
        """Something has come."""
        self._is_empty = False
        return self.work()

    def work(self) -> bool:
        """Fetch, if all that was fetched is delivered, and deliver for a while.

        Raises:
            Empty: there was nothing.
        """
        if not self._fetched:
            room = self._room()
            if room > 0:
                self._fetch(room)
            if self._is_blocking or len(self._fetched) >= room:
                # What came now would wait here, where another worker may be idle.
                self._stop_waiting()
        if not self._fetched:
            raise Empty
        end = time.monotonic() + SLICE_SECONDS
        while self._fetched:
            self._deliver(self._fetched.popleft())
            if time.monotonic() >= end:
                break
        return True

    def _fetch(self, room: int) -> None:
        session, order = self.session, self._ordered()
        acked, first = session.acked(), session.next_numbers(room)
        keys = [session.in_flight, self.keys.sessions, *self.keys.pairs(queue for _, queue in order)]
        found = FETCH(self.link, keys, session.id, first, room, *acked)
        session.forget(acked)
        if found is None:  # It was taken for dead, or Redis was emptied.
            session.beat(self.link)
            return
        for number, (place, content) in enumerate(_entries(found), first):
            name, queue = order[place]
            self._fetched.append(Entry(id_of(number, queue), name, queue, content))
        self._is_empty = len(self._fetched) < room
        if self._fetched:
            self._queue_cycle.rotate(self._fetched[-1].name)

    # -- Delivering -----------------------------------------------------------------------------------------------

    def _deliver(self, entry: Entry) -> None:
        callback, no_ack = self._consumers_of[entry.name]
        try:
            payload = _parse(entry.content)
            early = _seconds_early(payload)
            if early <= HELD_SECONDS:
                message = self._message(payload, entry.id)
        except _MALFORMED as error:
            self._drop(entry, error)
            return
        if early > HELD_SECONDS:
            self._park_again(entry, early)
            return
        if no_ack:
            self.session.ack(entry.id)
        else:
            self.qos.append(message, entry.id)
        began = time.monotonic()
        callback(message)
        self._is_blocking = time.monotonic() - began > BLOCKING_SECONDS

    def _drop(self, entry: Entry, error: Exception) -> None:
        logger.error(
            "An entry of queue %r that is no message was dropped: %s, %d bytes",
            entry.name, type(error).__name__, len(entry.content),
        )  # fmt: skip
        self.session.ack(entry.id)

    def _message(self, payload: Any, id: str) -> Any:
        payload["properties"]["delivery_tag"] = id
        message = self.Message(payload, channel=self)
        # Where a payload is none of Celery's, ``intake`` has put another in its place.
        message.delivery_tag = id
        return message

    def _park_again(self, entry: Entry, seconds: float) -> None:
        """What a stock producer has sent too early."""
        keys = [*self._parking(entry.queue), self.session.in_flight]
        PARK(self.link, keys, *_parked(entry.queue, seconds, entry.content), entry.id)

    def _parking(self, queue: str) -> list[str]:
        return [self.keys.delayed(queue), self.keys.delays, self.keys.wake]

    def basic_get(self, queue: str, no_ack: bool = False, **options: Any) -> Any:
        if no_ack:
            return super().basic_get(queue, no_ack=True, **options)
        lists = self._lists(queue)
        self.session.watch(self.link, lists)
        number = self.session.next_numbers(1)
        keys = [self.session.in_flight, self.keys.sessions, *self.keys.pairs(lists)]
        found = FETCH(self.link, keys, self.session.id, number, 1)
        for place, content in _entries(found or (b"", [])):
            return self._got(Entry(id_of(number, lists[place]), queue, lists[place], content))
        return None

    def _got(self, entry: Entry) -> Any:
        try:
            message = self._message(_parse(entry.content), entry.id)
        except _MALFORMED as error:
            self._drop(entry, error)
            return None
        self.qos.append(message, entry.id)
        return message

    # -- Publishing and queues ------------------------------------------------------------------------------------

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        seconds = _seconds_early(message)
        if seconds <= 0:
            super()._put(queue, message, **options)
            return
        priority = self._get_message_priority(message, reverse=False)
        key = f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"
        keys, args = self._parking(key), _parked(key, seconds, stock.dumps(message).encode())
        batch = options.get("_publish_batch")  # From kombu 5.7 on.
        if batch is None:
            PARK(self.link, keys, *args)
        else:
            batch.add("eval", PARK.text, len(keys), *keys, *args)

    def _all_lists(self, queue: str) -> Iterator[tuple[str, str]]:
        """All that is a queue's, with the command that counts what is there."""
        for each in self._lists(queue):
            yield each, "LLEN"
            yield self.keys.landing(each), "LLEN"
            yield self.keys.delayed(each), "ZCARD"

    def _count(self, queue: str, *, delayed: bool) -> int:
        pipeline: Any = Redis(connection_pool=self.pool).pipeline()
        with pipeline:
            for key, command in self._all_lists(queue):
                if delayed or command == "LLEN":
                    pipeline.execute_command(command, key)
            return int(sum(pipeline.execute()))

    def _size(self, queue: str) -> int:
        return self._count(queue, delayed=False)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self._count(queue, delayed=True) > 0

    def _purge(self, queue: str) -> int:
        pipeline: Any = Redis(connection_pool=self.pool).pipeline()
        with pipeline:
            for key, command in self._all_lists(queue):
                pipeline.execute_command(command, key)
                pipeline.delete(key)
            pipeline.zrem(self.keys.delays, *self._lists(queue))
            return int(sum(pipeline.execute()[:-1:2]))

    def _delete(self, queue: str, *args: Any, **options: Any) -> None:
        super()._delete(queue, *args, **options)
        self._purge(queue)

    # -- The end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._stop_waiting()
        if self._bell is not None:
            self._unwatch(self._bell)
            self._bell.close()
            self._bell = None
        if self._own_session is not None and not self.closed:
            with suppress(*self.connection_errors):  # Then it is restored with all else.
                self._give_back(lambda _: True)
        if "link" in vars(self):
            self.link.close()
        super().close()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._own_session = None


def _entries(found: tuple[bytes, list[bytes]]) -> Iterator[tuple[int, bytes]]:
    """The place of the queue of each entry that the script has fetched, and its bytes."""
    places, entries = found
    return zip(map(int, places.split()), entries, strict=True)


def _parse(content: bytes) -> Any:
    payload = loads(content.decode())
    properties = payload["properties"]
    delivery = properties["delivery_info"]
    if not isinstance(delivery["exchange"], str) or not isinstance(delivery["routing_key"], str):
        raise TypeError("delivery_info")
    if not isinstance(payload["body"], str) or not isinstance(payload.get("headers") or {}, dict):
        raise TypeError("body or headers")
    return payload


def _seconds_early(message: dict[str, Any]) -> float:
    """How long before the ETA of one of Celery's tasks it is; its protocol 2 has it in the headers."""
    eta = (message.get("headers") or {}).get("eta")
    if not isinstance(eta, str):
        return 0.0
    try:
        return (datetime.fromisoformat(eta) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # Without a time zone: Celery knows which it is in.
        return 0.0


def _parked(queue: str, seconds: float, content: bytes) -> tuple[int, str, bytes]:
    return max(0, round(seconds * 1000)), queue, uuid4().hex.encode() + content

"""What one consuming channel has in flight, and the two threads that see to it.

A session outlives its channel. When Celery loses its connection it goes on running what it has begun, and acknowledges
that on the old channel: until then it stays in flight here, and nobody else gets it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from _queue import SimpleQueue  # gevent replaces the one in `queue`, and a native thread waits here
from collections.abc import Callable, Collection, Iterable
from typing import Any
from uuid import uuid4

from billiard.pool import ApplyResult
from celery import signals

from pyventus import native
from pyventus.emitters.celery.redis_transport import upkeep
from pyventus.emitters.celery.redis_transport.keys import Keys
from pyventus.emitters.celery.redis_transport.link import Link
from pyventus.emitters.celery.redis_transport.scripts import BEAT, RESTORE, Execute

logger = logging.getLogger("pyventus")

# What is acknowledged meanwhile is sent together.
FLUSH_SECONDS = 0.02
MOST_ACKS = 1000
RETRY_SECONDS = 1.0
REPORT_SECONDS = 60.0


class Session:
    """A worker, as far as Redis knows it.

    Args:
        connect: makes a connection to Redis.
        keys: all keys.
        dead_after: seconds without a heartbeat after which others take its messages.
    """

    def __init__(self, connect: Callable[[], Any], keys: Keys, dead_after: float) -> None:
        self.id = uuid4().hex
        self.keys = keys
        self.in_flight = keys.in_flight(self.id)
        self._connect = connect
        self._dead_after = dead_after
        self._interval = dead_after / 3
        self._pid = os.getpid()
        self._queues: list[str] = []
        self._last_number = 0
        # Dicts in the place of sets, and no lock: each step is one operation, which Python does as a whole, and a lock
        # of gevent's is not made for greenlets and native threads together.
        self._acked: dict[str, None] = {}
        self._requeued: dict[str, None] = {}
        self._unflushed: SimpleQueue[None] = SimpleQueue()
        self._is_flush_due = False
        self._is_registered = False
        self._is_released = False
        self._is_over = False
        # Of Celery, for what was delivered to it and not acknowledged.
        self._requests: dict[str, Any] = {}
        self._queued: set[str] = set()
        self._doubtful: set[str] = set()
        self._reported = -REPORT_SECONDS

    def watch(self, execute: Execute, queues: Iterable[str]) -> None:
        """Be there for these queues too; the first time, register and start the threads."""
        self._queues = list(dict.fromkeys([*self._queues, *queues]))
        if not self._is_registered:
            self.beat(execute)
            native.start_thread(self._pulse)
            native.start_thread(self._flush_soon)

    def beat(self, execute: Execute) -> None:
        """Say that it lives."""
        keys = self.keys
        is_new = BEAT(
            execute,
            [keys.alive(self.id), keys.sessions, keys.suspects, *keys.pairs(self._queues)],
            self.id, int(self._dead_after * 1000), json.dumps(self._queues),
        )  # fmt: skip
        if is_new and self._is_registered:
            logger.warning(
                "This worker was taken for dead, or Redis was emptied: others may run what it had taken. Was it frozen "
                "for more than the %g s of dead_after, or its interpreter held up?",
                self._dead_after,
            )  # fmt: skip
        self._is_registered = True

    def next_numbers(self, count: int) -> int:
        """The first of so many numbers that no entry was given before, whatever became of those."""
        first = self._last_number + 1
        self._last_number += count
        return first

    def add_request(self, request: Any) -> None:
        """Called with each of Celery's before any pool has it."""
        self._requests[request.message.delivery_tag] = request

    # -- What is finished -----------------------------------------------------------------------------------------

    def ack(self, id: str) -> None:
        """Have an entry forgotten soon; called in any thread."""
        self._remember(self._acked, id)

    def requeue(self, id: str) -> None:
        """Have an entry put back behind all others in its queue; called in any thread."""
        self._remember(self._requeued, id)

    def _remember(self, ids: dict[str, None], id: str) -> None:
        # In this order: whoever finds the flag set knows that a flush is to begin which finds the id.
        ids[id] = None
        self._requests.pop(id, None)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._unflushed.put(None)

    def acked(self) -> list[str]:
        """Ids that Redis may not have forgotten yet; to be forgotten twice does no harm."""
        return list(self._acked)[:MOST_ACKS]

    def forget(self, ids: Iterable[str]) -> None:
        """Redis has forgotten these."""
        for id in ids:
            self._acked.pop(id, None)

    def flush(self, execute: Execute) -> None:
        """Send what was acknowledged and requeued."""
        while acked := self.acked():
            execute("HDEL", self.in_flight, *acked)
            self.forget(acked)
        requeued = list(self._requeued)
        if requeued:
            upkeep.restore(execute, self.keys, self.id, requeued, push="LPUSH")
            for id in requeued:
                self._requeued.pop(id, None)

    def give_back(self, execute: Execute, entries: Iterable[tuple[str, str, bytes]]) -> None:
        """Put entries back that were never delivered: ids, queues and bytes, the newest first."""
        moves = [part for entry in entries for part in entry]
        if moves:
            RESTORE(execute, [self.in_flight], "RPUSH", *moves)

    # -- The end --------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Its channel is closed: give back what nobody here runs, now or as soon as Redis answers."""
        if self._is_released or self._pid != os.getpid():
            return
        self._is_released = True
        self._queued = self._kept_by_pool()
        # Not its channel's, which may be broken, nor that of a thread.
        link = Link(self._connect)
        try:
            self.flush(link)
            self._restore(link, upkeep.ids_in_flight(link, self.keys, self.id) - self._running())
            self._settle(link)
        except Exception as error:
            logger.warning("What this worker had taken and not run is given back later: %r", error)
        finally:
            link.close()

    def _settle(self, execute: Execute) -> None:
        """End, if nothing is left; what nobody runs, and nobody acknowledged at two looks, is given back."""
        self.flush(execute)
        running = self._running()
        idle = upkeep.ids_in_flight(execute, self.keys, self.id) - running
        self._restore(execute, idle & self._doubtful)
        self._doubtful = idle
        if not idle and not running:
            # Not removed: whoever finds it dead puts back what may yet be moved out of its queues for it.
            execute("PEXPIRE", self.keys.alive(self.id), 1)
            self._is_over = True
            self._unflushed.put(None)

    def _restore(self, execute: Execute, ids: Collection[str]) -> None:
        unfinished = set(ids) - set(self._acked)
        upkeep.restore(execute, self.keys, self.id, unfinished)

    def _kept_by_pool(self) -> set[str]:
        """Ids of what a pool has and has not begun, and will not drop either.

        When Celery loses its connection it drops what it has not handed to its pool, and prefork's pool drops what it
        has not begun; threads and greenlets run all that they have been given.
        """
        state: Any = sys.modules.get("celery.worker.state")
        if state is None:
            return set()
        requests = list(self._requests.items())
        return {id for id, request in requests if request in state.reserved_requests and _is_kept(request)}

    def _running(self) -> set[str]:
        """Ids of what this process still runs, is going to, or has yet to acknowledge; none in a worker that ends.

        Celery has its loop acknowledge, which stands still while it connects again. Nor does what ends wake it, in a
        thread before kombu 5.7 and in a greenlet before Celery 5.7: `call_soon` of kombu.asynchronous.hub and of
        celery.worker.consumer only put it on a list.
        """
        state: Any = sys.modules.get("celery.worker.state")
        if state is None or _is_ending(state):
            return set()
        running = set()
        for id, request in list(self._requests.items()):
            if request in state.active_requests:
                self._queued.discard(id)
                running.add(id)
            elif request.acknowledged or id in self._queued:
                running.add(id)
        return running

    # -- Threads --------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        link = Link(self._connect)
        while not self._is_over:
            self._unflushed.get()
            time.sleep(FLUSH_SECONDS)
            self._is_flush_due = False
            try:
                self.flush(link)
            except Exception as error:
                self._report(error)
                time.sleep(RETRY_SECONDS)
                self._unflushed.put(None)
        link.close()

    def _pulse(self) -> None:
        link = Link(self._connect)
        next_beat = 0.0
        while not self._is_over:
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + self._interval
                    self._care(link)
                self._wait_until_due(link, next_beat)
            except Exception as error:
                self._report(error)
                time.sleep(min(RETRY_SECONDS, self._interval))
                next_beat = 0.0
        link.close()

    def _care(self, execute: Execute) -> None:
        self.beat(execute)
        upkeep.sweep(execute, self.keys, 0.8 * self._interval)
        if self._is_released:
            self._settle(execute)

    def _wait_until_due(self, execute: Execute, end: float) -> None:
        """Move what is due, and wait until something else is, or until ``end``."""
        due = upkeep.promote(execute, self.keys)
        seconds = end - time.monotonic() if due is None else min(due, end - time.monotonic())
        if seconds <= 0 or self._is_over:
            return
        # In whole milliseconds, as Redis counts: and 0 would be for ever.
        if execute("BLPOP", self.keys.wake, max(0.001, round(seconds, 3))):
            self._pass_on(execute)

    def _pass_on(self, execute: Execute) -> None:
        """What woke a session that has ended meanwhile was meant for one that goes on."""
        if self._is_over:
            execute("LPUSH", self.keys.wake, "")

    def _report(self, error: Exception) -> None:
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            logger.warning("The heartbeat or acknowledgements could not be sent, which is tried again: %r", error)


# -- Celery -----------------------------------------------------------------------------------------------------------


def _on_received(request: Any, **_: Any) -> None:
    session = getattr(request.message.channel, "_own_session", None)
    if session is not None:
        session.add_request(request)


signals.task_received.connect(_on_received, weak=False, dispatch_uid="pyventus")


def _is_kept(request: Any) -> bool:
    result = getattr(request, "_apply_result", None)
    return result is not None and not isinstance(result(), ApplyResult)


def _is_ending(state: Any) -> bool:
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))

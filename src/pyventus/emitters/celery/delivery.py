"""The way of one message through a worker: what of it runs here, what goes on in messages of its own, and what becomes
of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from pyventus.emitters.celery.claims import Claims, Owed
from pyventus.emitters.celery.publisher import PublishError
from pyventus.emitters.celery.suspects import MAX_DEATHS, Room, count_start, forget_starts
from pyventus.errors import HandlersFailed, PyventusError, Unhandled, WorkerLost
from pyventus.handlers import EventHandler
from pyventus.ledger.base import current_claim
from pyventus.linkers import EventLinker, find_linker
from pyventus.running import Job, Result, handler_context, is_expired, job_of, run_in_thread, run_jobs, run_until_final

if TYPE_CHECKING:
    from pyventus.dead_letters.base import Reason
    from pyventus.emission import Emission
    from pyventus.emitters.celery.publisher import Message
    from pyventus.emitters.celery.queue import Queue
    from pyventus.wire import Envelope

T = TypeVar("T")

logger = logging.getLogger("pyventus")

EARLY_SECONDS = 1.0
# One attempt at the broker, and all of them: what has run must not run again because the broker was restarted.
STORE_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 1.0
# For clocks that are wrong.
AGE_TOLERANCE = timedelta(days=1)

# Id and root id of the task whose handlers run; Celery's own current_task is unknown on the loop and in other threads.
current_ids: ContextVar[tuple[str, str] | None] = ContextVar("pyventus.current_ids", default=None)

_room = Room()


class TooOld(PyventusError):
    """An emission was due longer ago than the ``max_age`` of its queue."""


class NotYet(Exception):
    """An emission arrived before it was due."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Delivery:
    """One verified message in a worker.

    Args:
        queue: whose task runs.
        envelope: what the message carries.
        request: Celery's, of the task.
    """

    def __init__(self, queue: Queue, envelope: Envelope, request: Any) -> None:
        self._queue = queue
        self._envelope = envelope
        self._emission = envelope.emission
        self._ids = (request.id, request.root_id or request.id)
        self._is_eager = bool(request.is_eager)
        self._claims = self._new_claims()
        self._is_suspect = self._emission.suspect or bool((request.delivery_info or {}).get("redelivered"))

    def _new_claims(self) -> Claims | None:
        ledger, leases = self._queue.ledger, self._queue.leases
        if ledger is None or leases is None or self._is_eager:
            return None
        return Claims(ledger, leases, self._queue.name, self._emission)

    def handle(self) -> None:
        """Run the handlers that are to run here, and have what follows from it stored.

        Raises:
            HandlersFailed: handlers have finally failed.
            Unhandled: no handler is linked to it here.
            Undecodable: its arguments do not fit the code of this process.
            TooOld: it was due too long ago.
            NotYet: it is not due yet.
        """
        if is_expired(self._emission):
            return
        if not self._is_eager:
            self._check_due()
        self._check_age()
        linker = find_linker(self._emission.linker)
        handlers = linker.find_handlers(self._emission)
        if not handlers:
            self._check_handled(linker)
        elif self._is_eager:
            self._run_eagerly(linker, handlers)
        else:
            self._run(linker, self._forward(handlers))

    def _check_due(self) -> None:
        """Celery's own ETA is not signed; the moment in the envelope is."""
        if self._emission.due is not None:
            early = (self._emission.due - datetime.now(UTC)).total_seconds()
            if early > EARLY_SECONDS:
                raise NotYet(early)

    def _check_age(self) -> None:
        emission, max_age = self._emission, self._queue.max_age
        age = datetime.now(UTC) - max(emission.timestamp, emission.due or emission.timestamp)
        if age > max_age + AGE_TOLERANCE:
            raise TooOld(
                f"it was due {age.days} days ago, more than the {max_age.days} of max_age: emit it again, or raise "
                "max_age of the queue"
            )

    def _check_handled(self, linker: type[EventLinker]) -> None:
        if self._queue.unhandled != "ignore" and not linker.is_spent(self._emission):
            raise Unhandled(
                f"no handler is linked to {self._emission.event!r} in linker {linker.name!r} of this worker: import "
                "the module that links one in the module of the app, or make the queue with unhandled='ignore'"
            )

    @property
    def names(self) -> tuple[str, str]:
        """Id and event of its emission, for the log."""
        return self._emission.id, self._emission.event

    # -- Handlers that run elsewhere ------------------------------------------------------------------------------

    def _forward(self, handlers: list[EventHandler]) -> list[EventHandler]:
        """Send handlers with a queue or priority of their own there, alone; returns those that run here."""
        if len(self._emission.handlers) == 1:
            return handlers  # It is such a message, or the retry of one.
        elsewhere = [handler for handler in handlers if self._has_own_way(handler)]
        here = [handler for handler in handlers if handler not in elsewhere]
        if self._is_suspect and len(here) > 1:
            # Which of them killed its process? None is to suffer for another.
            elsewhere, here = handlers, []
        self._store(*[self._alone(handler) for handler in elsewhere])
        return here

    def _has_own_way(self, handler: EventHandler) -> bool:
        has_queue = handler.queue is not None and handler.queue != self._queue.name
        return has_queue or (handler.priority is not None and handler.priority != self._emission.priority)

    def _alone(self, handler: EventHandler) -> Message:
        emission = replace(self._emission, handlers=(handler.id,), suspect=self._is_suspect)
        return self._queue.follow_up(self._envelope, emission, handler)

    # -- Handlers that run here -----------------------------------------------------------------------------------

    def _run(self, linker: type[EventLinker], handlers: list[EventHandler]) -> None:
        handlers = [handler for handler in handlers if linker.claim(handler, self._emission)]
        with self._place():
            results = self._run_claimed(handlers) if self._claims else self._run_counted(handlers)
        _raise_failures(results)

    def _place(self) -> AbstractContextManager[None]:
        return _room.alone() if self._is_suspect else _room.shared()

    def _run_counted(self, handlers: list[EventHandler]) -> list[Result]:
        """Without a ledger the starts of a message that its process may have died of are counted in the broker."""
        deaths = self._ask(count_start(*self._counter)) - 1 if self._is_suspect else 0
        hopeless = handlers if deaths >= MAX_DEATHS else []
        results = self._run_jobs([handler for handler in handlers if handler not in hopeless], hopeless)
        self._follow_up(results)
        # Celery acknowledges when its loop turns; a solo worker on RabbitMQ may die of the next message before that:
        # what was given up then comes back, and must not be counted from the start again.
        if self._is_suspect and not hopeless:
            self._forget_starts()
        return results

    @property
    def _counter(self) -> tuple[str, str]:
        return self._queue.name, self._envelope.message_id

    def _forget_starts(self) -> None:
        try:
            self._ask(forget_starts(*self._counter))
        except Exception as error:
            logger.info("The crash counter of message %s is left to expire: %r", self._envelope.message_id, error)

    def _run_claimed(self, handlers: list[EventHandler]) -> list[Result]:
        """With a ledger each start of a handler is counted there, before it runs."""
        claims = self._claims
        assert claims is not None
        claimed = claims.take(handlers)
        # Not all of the deaths were its own: of the first it was but one that was there.
        hopeless = [handler for handler in claimed if claims.of(handler).deaths > MAX_DEATHS]
        with claims.held():
            results = self._run_jobs([handler for handler in claimed if handler not in hopeless], hopeless)
            self._follow_up(results)
        for handler, owed in claims.owed.items():
            self._settle(handler, owed)
        if claims.wait is not None:
            _insist(lambda _: self.again(claims.wait or 0.0))
        return results

    def _run_jobs(self, handlers: list[EventHandler], hopeless: list[EventHandler]) -> list[Result]:
        try:
            jobs = self._jobs(handlers, self._envelope.decode()) if handlers else []
            given_up = self._jobs(hopeless, self._emission)
        except BaseException:
            if self._claims:
                self._claims.release()
            raise
        results = run_jobs(jobs, interrupts=(SoftTimeLimitExceeded,))
        return [*results, *(run_in_thread(replace(job, retry=None), _lost()) for job in given_up)]

    def _jobs(self, handlers: list[EventHandler], emission: Emission) -> list[Job]:
        queue = self._queue
        context = handler_context(emission, queue.lifespan.state())
        context.run(current_ids.set, self._ids)
        return [self._job(handler, emission, context) for handler in handlers]

    def _job(self, handler: EventHandler, emission: Emission, context: Context) -> Job:
        queue, claims = self._queue, self._claims
        if claims is None:
            return job_of(handler, emission, context, queue.middleware, queue.retry)
        context = context.copy()
        context.run(current_claim.set, claims.of(handler))
        return job_of(handler, emission, context, queue.middleware, queue.retry, claims.record)

    def _run_eagerly(self, linker: type[EventLinker], handlers: list[EventHandler]) -> None:
        claimed = [handler for handler in handlers if linker.claim(handler, self._emission)]
        _raise_failures(run_until_final(self._jobs(claimed, self._envelope.decode())))

    # -- What follows ---------------------------------------------------------------------------------------------

    def _follow_up(self, results: list[Result]) -> None:
        """Have stored what is to run again, and what will not, before the message is acknowledged."""
        for result in results:
            if result.error is not None and not result.is_lost:
                self._settle(result.handler, Owed.of(result))
                if result.again is None and self._claims is not None:
                    self._claims.record_dead(result)

    def _settle(self, handler: EventHandler, owed: Owed) -> None:
        if owed.due is not None:
            self._store(self._retry(handler, owed.due))
        else:
            self.keep(owed.reason, owed.error, handler.id, traceback=owed.traceback)

    def _retry(self, handler: EventHandler, due: datetime) -> Message:
        emission = replace(
            self._emission, attempt=self._emission.attempt + 1, handlers=(handler.id,), suspect=False, due=due
        )
        return self._queue.follow_up(self._envelope, emission, handler)

    def keep(self, reason: Reason, error: BaseException | str, *handlers: str, traceback: str = "") -> None:
        """Have a dead letter stored, for a replay of ``handlers``, or else of all that the emission is for."""
        if not self._is_eager:
            keep = self._queue.dead_letters.keep
            options: dict[str, Any] = {"handlers": handlers, "error": error, "traceback": traceback}
            _insist(lambda _: keep(self._envelope, reason, **options), Exception)

    def again(self, delay: float, *, was_started: bool = True) -> None:
        """Have a copy of the message stored for later.

        Args:
            delay: seconds.
            was_started: whether its handlers may have been started; a process cannot have died of those that were not.

        Raises:
            Exception: it may not have been stored.
        """
        emission = replace(self._emission, suspect=self._is_suspect) if was_started else self._emission
        self._publish(self._queue.message_again(self._envelope, emission, delay), _end())

    def _store(self, *messages: Message) -> None:
        for message in messages:
            _insist(partial(self._publish, message))

    def _publish(self, message: Message, end: float) -> None:
        publishing = self._queue.publisher.start(message)
        publishing.wait(end)
        if publishing.error is not None:
            raise publishing.error

    def _ask(self, action: Callable[[Any, str], T]) -> T:
        return _insist(partial(self._queue.publisher.call, action))


def _end() -> float:
    return time.monotonic() + STORE_SECONDS


def _insist(attempt: Callable[[float], T], errors: type[Exception] = PublishError) -> T:
    """Try until it succeeds, for half a minute; ``attempt`` is called with the end of its time."""
    last = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return attempt(_end())
        except errors as error:
            if time.monotonic() >= last:
                raise
            logger.warning("What follows from an emission was not stored, and is tried again: %s", error)
            time.sleep(PAUSE_SECONDS)


def _lost() -> WorkerLost:
    return WorkerLost(
        f"the worker process died each of the {MAX_DEATHS} times that it ran alone in one: look for what kills it, "
        "such as memory, a time limit, sys.exit() or a crash in a C extension"
    )


def _raise_failures(results: list[Result]) -> None:
    failures = [
        (result.handler.id, " ".join(f"{type(result.error).__name__}: {result.error}".split()))
        for result in results
        if result.error is not None and result.again is None and not result.is_lost
    ]
    if failures:
        raise HandlersFailed(failures)

"""The way of one message through a worker: what of it runs here, what goes on in messages of its own, and what becomes
of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from pyventus.emitters.celery.claims import Claims, Owed
from pyventus.emitters.celery.patience import insist, soon
from pyventus.emitters.celery.publisher import PublishError
from pyventus.emitters.celery.suspects import MAX_DEATHS, Action, Room, count_start, forget_starts, read_starts
from pyventus.errors import HandlersFailed, PyventusError, Unhandled, WorkerLost, describe_error
from pyventus.handlers import EventHandler
from pyventus.ledger.base import current_claim
from pyventus.linkers import EventLinker, find_linker
from pyventus.running import (
    Job,
    Middleware,
    Result,
    handler_context,
    is_expired,
    job_of,
    off_loop,
    run_in_thread,
    run_jobs,
    run_until_final,
)

if TYPE_CHECKING:
    from pyventus.dead_letters.base import Reason
    from pyventus.emission import Emission
    from pyventus.emitters.celery.publisher import Message
    from pyventus.emitters.celery.queue import Queue
    from pyventus.wire import Envelope

T = TypeVar("T")

logger = logging.getLogger("pyventus")

EARLY_SECONDS = 1.0
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
        middleware: around the queue's own.
    """

    def __init__(self, queue: Queue, envelope: Envelope, request: Any, middleware: Sequence[Middleware] = ()) -> None:
        self._queue = queue
        self._middleware = (*middleware, *queue.middleware)
        self._envelope = envelope
        self._emission = envelope.emission
        self._ids = (request.id, request.root_id or request.id)
        self._is_eager = bool(request.is_eager)
        #: Ids of the handlers for which it would have to be sent again; None: all.
        self._left: tuple[str, ...] | None = None
        #: Handlers that are to go elsewhere, and could not be sent there yet.
        self._unsent: list[EventHandler] = []
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
            results = self._run(linker, self._forward(handlers))
            self._forward_late()
            _raise_failures(results)

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
        if not elsewhere and (len(handlers) == 1 or not self._is_suspect):
            return handlers
        here = [handler for handler in handlers if handler not in elsewhere]
        if self._is_suspect and len(here) > 1:
            # Which of them killed its process? None is to suffer for another.
            elsewhere, here = handlers, []
        self._unsent = [handler for handler in elsewhere if not self._is_sent(handler)]
        return here

    def _is_sent(self, handler: EventHandler) -> bool:
        """Try once: those that run here do not wait for a queue that cannot be reached, or declared."""
        try:
            off_loop(lambda: self._publish(self._alone(handler), soon()))
        except PublishError as error:
            logger.warning(
                "Handler %s is sent on after those that run here, for now it could not: %s", handler.id, error
            )
            return False
        return True

    def _forward_late(self) -> None:
        while self._unsent:
            self._left = ()
            insist(partial(self._publish, self._alone(self._unsent[0])), PublishError)
            del self._unsent[0]

    def _has_own_way(self, handler: EventHandler) -> bool:
        has_queue = handler.queue is not None and handler.queue != self._queue.name
        return has_queue or (handler.priority is not None and handler.priority != self._emission.priority)

    def _alone(self, handler: EventHandler) -> Message:
        emission = replace(self._emission, handlers=(handler.id,), suspect=self._is_suspect)
        return self._queue.follow_up(self._envelope, emission)

    # -- Handlers that run here -----------------------------------------------------------------------------------

    def _run(self, linker: type[EventLinker], handlers: list[EventHandler]) -> list[Result]:
        if not handlers:
            return []
        emission = self._envelope.decode()
        if self._claims is not None:
            # Of once handlers the ledger knows, for all processes.
            return self._run_claimed(handlers, emission, self._claims)
        claimed = [handler for handler in handlers if linker.claim(handler, emission)]
        return self._run_counted(self._jobs(claimed, emission))

    def _run_counted(self, jobs: list[Job]) -> list[Result]:
        """Without a ledger the starts of a message that its process may have died of are counted in the broker."""
        if not self._is_suspect:
            with _room.shared():
                return self._run_jobs(jobs)
        # Most have only waited in a process that ended: at their first start they run beside others.
        with _room.alone() if self._count(read_starts) else _room.shared():
            is_hopeless = self._count(count_start) > 1 + MAX_DEATHS
            try:
                results = self._run_jobs([] if is_hopeless else jobs, jobs if is_hopeless else [])
            except Exception:
                self._forget_starts()  # This process lives.
                raise
        if not is_hopeless:
            # What was given up may come back, if its acknowledgement is lost, and is not to be counted anew.
            self._forget_starts()
        return results

    def _forget_starts(self) -> None:
        with contextlib.suppress(PublishError):  # It expires by itself.
            self._count(forget_starts)

    def _count(self, what: Callable[[str, str], Action]) -> int:
        action = what(self._queue.name, self._envelope.message_id)
        try:
            return insist(partial(self._queue.publisher.call, action), PublishError)
        except PublishError:
            raise
        except Exception as error:
            logger.error(
                "The starts of message %s cannot be counted, and nothing bounds them if its process dies of it: %r",
                self._envelope.message_id, error,
            )  # fmt: skip
            return 0

    def _run_claimed(self, handlers: list[EventHandler], emission: Emission, claims: Claims) -> list[Result]:
        """With a ledger each start of a handler is counted there, before it runs."""
        with _room.shared():
            claimed = off_loop(partial(claims.take, handlers))
            if not any(claims.of(handler).deaths > 1 for handler in claimed):
                return self._run_held(claimed, emission, claims)
            off_loop(claims.release)
        with _room.alone():
            return self._run_held(off_loop(partial(claims.take, handlers)), emission, claims)

    def _run_held(self, claimed: list[EventHandler], emission: Emission, claims: Claims) -> list[Result]:
        with claims.held():
            try:
                jobs = self._jobs(claimed, emission)
                hopeful = [job for job in jobs if claims.of(job.handler).deaths <= 1 + MAX_DEATHS]
                hopeless = [job for job in jobs if claims.of(job.handler).deaths > 1 + MAX_DEATHS]
                results = self._run_jobs(hopeful, hopeless)
            except Exception:
                # Of what is not settled. This process lives, so it is no death.
                off_loop(claims.release)
                raise
        if claims.elsewhere:
            insist(lambda _: self.again(claims.wait), PublishError)
            self._left, self._unsent = (), []
        return results

    def _run_jobs(self, jobs: list[Job], hopeless: Sequence[Job] = ()) -> list[Result]:
        results = run_jobs(jobs, interrupts=(SoftTimeLimitExceeded,))
        results += [off_loop(partial(run_in_thread, replace(job, retry=None), _lost())) for job in hopeless]
        self._follow_up(results)
        return results

    def _jobs(self, handlers: list[EventHandler], emission: Emission) -> list[Job]:
        queue = self._queue
        context = handler_context(emission, queue.lifespan.state())
        context.run(current_ids.set, self._ids)
        return [self._job(handler, emission, context) for handler in handlers]

    def _job(self, handler: EventHandler, emission: Emission, context: Context) -> Job:
        middleware, retry, claims = self._middleware, self._queue.retry, self._claims
        if claims is None:
            return job_of(handler, emission, context, middleware, retry)
        context = context.copy()
        context.run(current_claim.set, claims.of(handler))
        return job_of(handler, emission, context, middleware, retry, claims.record)

    def _run_eagerly(self, linker: type[EventLinker], handlers: list[EventHandler]) -> None:
        claimed = [handler for handler in handlers if linker.claim(handler, self._emission)]
        _raise_failures(run_until_final(self._jobs(claimed, self._envelope.decode())))

    # -- What follows ---------------------------------------------------------------------------------------------

    def _follow_up(self, results: list[Result]) -> None:
        """Have stored what is to run again, and what will not, before the message is acknowledged.

        Should that fail, those that are through with it are not to run again because of it.
        """
        if self._claims is None and all(result.error is None for result in results):
            self._left = ()
            return
        owed = {} if self._claims is None else dict(self._claims.owed)
        elsewhere = [] if self._claims is None else [handler.id for handler in self._claims.elsewhere]
        failed = {each.handler: each for each in results if each.error is not None and not each.is_lost}
        owed |= {handler: Owed.of(result) for handler, result in failed.items()}
        while owed:
            self._left = (*(handler.id for handler in owed), *elsewhere)
            handler = next(iter(owed))
            self._settle(handler, owed.pop(handler))
            if self._claims is not None and handler in failed and failed[handler].again is None:
                self._claims.record_dead(failed[handler])
        self._left = tuple(elsewhere)

    def _settle(self, handler: EventHandler, owed: Owed) -> None:
        if owed.due is not None:
            insist(partial(self._publish, self._retry(handler, owed.due)), PublishError)
        else:
            self.keep(owed.reason, owed.error, handler.id, traceback=owed.traceback)

    def _retry(self, handler: EventHandler, due: datetime) -> Message:
        emission = replace(
            self._emission, attempt=self._emission.attempt + 1, handlers=(handler.id,), suspect=False, due=due
        )
        return self._queue.follow_up(self._envelope, emission)

    def keep(self, reason: Reason, error: BaseException | str, *handlers: str, traceback: str = "") -> None:
        """Have a dead letter stored, for a replay of ``handlers``, or else of all that the emission is for."""
        if not self._is_eager:
            keep = self._queue.dead_letters.keep
            options: dict[str, Any] = {"handlers": handlers, "error": error, "traceback": traceback}
            insist(lambda _: keep(self._envelope, reason, **options), Exception)

    def again(self, delay: float, *, was_started: bool = True) -> None:
        """Have a copy of the message stored for later, for the handlers that are not through with it.

        Args:
            delay: seconds.
            was_started: whether its handlers may have been started; a process cannot have died of those that were not.

        Raises:
            Exception: it may not have been stored.
        """
        emission = self._emission
        if self._left is not None:
            emission = replace(emission, handlers=(*self._left, *(handler.id for handler in self._unsent)))
            if not emission.handlers:
                return
        if was_started:
            emission = replace(emission, suspect=self._is_suspect)
        self._publish(self._queue.message_again(self._envelope, emission, delay), soon())

    def _publish(self, message: Message, end: float) -> None:
        publish(self._queue, [message], end)


def publish(queue: Queue, messages: Sequence[Message], end: float) -> None:
    """Have messages stored by ``end``, a moment of ``time.monotonic()``.

    Raises:
        PublishError: they may not have been stored, or not all of them.
    """
    publishing = queue.publisher.start(*messages)
    publishing.wait(end)
    if publishing.error is not None:
        raise publishing.error


def _lost() -> WorkerLost:
    return WorkerLost(
        f"it did not end any of the {MAX_DEATHS} times that it ran alone in a process: look for what kills that, such "
        "as memory, a time limit, sys.exit() or a crash in a C extension; or, on Redis, for a handler that takes "
        "longer than the visibility timeout"
    )


def _raise_failures(results: list[Result]) -> None:
    failures = [
        (result.handler.id, describe_error(result.error))
        for result in results
        if result.error is not None and result.again is None and not result.is_lost
    ]
    if failures:
        raise HandlersFailed(failures)

"""The Celery task of a queue: verifies an emission, finds its handlers, runs them, and says what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task
from celery.exceptions import Ignore, InvalidTaskError, Reject, SoftTimeLimitExceeded

from pyventus.emission import Emission
from pyventus.emitters.celery.request import EmissionRequest, read_message
from pyventus.errors import HandlersFailed, PyventusError, Refused, Undecodable, Unhandled
from pyventus.handlers import EventHandler
from pyventus.linkers import EventLinker, find_linker
from pyventus.running import Result, handler_context, is_expired, jobs_of, run_jobs

if TYPE_CHECKING:
    from pyventus.emitters.celery.queue import Queue
    from pyventus.wire import Envelope

logger = logging.getLogger("pyventus")

AGAIN_SECONDS = 5.0
EARLY_SECONDS = 1.0
# For clocks that are wrong.
AGE_TOLERANCE = timedelta(days=1)

# Id and root id of the task whose handlers run; Celery's own current_task is unknown on the loop and in other threads.
current_ids: ContextVar[tuple[str, str] | None] = ContextVar("pyventus.current_ids", default=None)


class TooOld(PyventusError):
    """An emission was due longer ago than the ``max_age`` of its queue."""


class EmissionTask(Task):
    """Runs the handlers of the emission that one message carries."""

    #: What holds whatever the app's defaults and annotations say: a message is acknowledged when its handlers have run,
    #: and not when the process that ran them has died.
    INVARIANTS: ClassVar[dict[str, Any]] = {
        "acks_late": True,
        "acks_on_failure_or_timeout": True,
        "acks_on_failure": True,
        # Celery 5.5 has one switch for failures and time limits; there the request sees to them.
        "acks_on_timeout": False,
        "reject_on_worker_lost": True,
        "retry_on_worker_lost": False,
        "ignore_result": True,
        "store_errors_even_if_ignored": False,
        "track_started": False,
        "throws": (HandlersFailed, Unhandled, Undecodable, TooOld, SoftTimeLimitExceeded),
    }

    Request = EmissionRequest
    typing = False
    emission_queue: Queue

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Bind to an app, and hold what the app's annotations would change."""
        bound = super().bind(app)
        hold_invariants(cls)
        cls._exec_options = None
        return bound

    def start_strategy(self, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
        """Celery's own, for what is a message of ours; of what is not it logs the content, or ends the worker."""
        handle: Callable[..., Any] = super().start_strategy(app, consumer, **options)

        def receive(message: Any, body: Any, ack: Callable[..., None], *others: Any) -> Any:
            try:
                read_message(message)
            except InvalidTaskError as error:
                self._log_refusal(message.headers.get("id"), error)
                return ack(logger, consumer.connection_errors)
            return handle(message, body, ack, *others)

        return receive

    def run(self, text: object = None, *_: object) -> None:
        """Run one message.

        Raises:
            Ignore: it is not an emission signed for this queue, or it was sent again for later.
            HandlersFailed: handlers have failed.
            Unhandled: no handler is linked to it here.
            Undecodable: its arguments do not fit the code of this process.
            TooOld: it was due too long ago.
            Reject: an error of Pyventus' own, and the message could not be sent again; it goes back to the queue.
        """
        envelope = self._open(text)
        try:
            self._handle(envelope)
        except (Unhandled, Undecodable, TooOld) as error:
            emission = envelope.emission
            logger.error("Emission %s of %r was not handled: %s", emission.id, emission.event, error)
            # Without its cause, such as what a codec raised: Celery's events carry the traceback, texts and all.
            raise error from None
        except (HandlersFailed, SoftTimeLimitExceeded):
            raise
        except NotYet as early:
            self._send_again(envelope, text, early.seconds)
        except Exception as error:
            self._send_back(envelope, text, error)

    def _open(self, text: object) -> Envelope:
        try:
            return self.emission_queue.open(text, self.request.id)
        except Refused as refusal:
            self._log_refusal(self.request.id, refusal)
            raise Ignore from None

    def _log_refusal(self, message_id: object, reason: Exception) -> None:
        logger.error(
            "Message %.100r refused on queue %r, and not run: %s", message_id, self.emission_queue.name, reason
        )

    def _handle(self, envelope: Envelope) -> None:
        emission = envelope.emission
        if is_expired(emission):
            return
        if not self.request.is_eager:
            _check_due(emission)
        _check_age(emission, self.emission_queue.max_age)
        linker = find_linker(emission.linker)
        handlers = linker.find_handlers(emission)
        if handlers:
            self._run_handlers(linker, handlers, envelope.decode())
        elif self.emission_queue.unhandled != "ignore" and not linker.is_spent(emission):
            raise Unhandled(
                f"no handler is linked to {emission.event!r} in linker {linker.name!r} of this worker: import the "
                "module that links one in the module of the app, or make the queue with unhandled='ignore'"
            )

    def _run_handlers(self, linker: type[EventLinker], handlers: list[EventHandler], emission: Emission) -> None:
        context = handler_context(emission, self.emission_queue.lifespan.state())
        context.run(current_ids.set, (self.request.id, self.request.root_id or self.request.id))
        jobs = jobs_of(linker, handlers, emission, context, self.emission_queue.middleware)
        try:
            results = run_jobs(jobs, interrupts=(SoftTimeLimitExceeded,))
        except SoftTimeLimitExceeded:
            logger.error(
                "Emission %s of %r exceeded Celery's soft time limit: those of its async handlers that still ran were "
                "cancelled: %s",
                emission.id, emission.event, ", ".join(handler.id for handler in handlers),
            )  # fmt: skip
            raise
        _raise_failures(results)

    # -- Errors that are not the handlers' --------------------------------------------------------------------------

    def _send_back(self, envelope: Envelope, text: object, error: Exception) -> None:
        emission = envelope.emission
        logger.error(
            "Emission %s of %r could not be run and is sent back for %g s: %r",
            emission.id, emission.event, AGAIN_SECONDS, error, exc_info=error,
        )  # fmt: skip
        if self.request.is_eager:
            raise error
        self._send_again(envelope, text, AGAIN_SECONDS)

    def _send_again(self, envelope: Envelope, text: object, delay: float) -> None:
        """Publish a copy for later and have it confirmed; only then is the original acknowledged."""
        end = time.monotonic() + AGAIN_SECONDS
        try:
            self._publish_again(envelope, str(text), delay, end)
        except Exception as error:
            emission = envelope.emission
            logger.error("Emission %s of %r goes back to the queue: %r", emission.id, emission.event, error)
            # It is back at once: without a pause the worker would spin.
            time.sleep(max(0.0, end - time.monotonic()))
            raise Reject(error, requeue=True) from None
        raise Ignore

    def _publish_again(self, envelope: Envelope, text: str, delay: float, end: float) -> None:
        queue = self.emission_queue
        message = queue.message_again(envelope, text, delay)
        publishing = queue.publisher.start(message)
        publishing.wait(end)
        if publishing.error is not None:
            raise publishing.error


def hold_invariants(task: EmissionTask | type[EmissionTask]) -> None:
    """Undo what annotations, or the user's own code, have changed of them."""
    for name, value in EmissionTask.INVARIANTS.items():
        setattr(task, name, value)


class NotYet(Exception):
    """An emission arrived before it was due."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def _check_due(emission: Emission) -> None:
    """Celery's own ETA is not signed; the moment in the envelope is."""
    if emission.due is not None:
        early = (emission.due - datetime.now(UTC)).total_seconds()
        if early > EARLY_SECONDS:
            raise NotYet(early)


def _check_age(emission: Emission, max_age: timedelta) -> None:
    age = datetime.now(UTC) - max(emission.timestamp, emission.due or emission.timestamp)
    if age > max_age + AGE_TOLERANCE:
        raise TooOld(
            f"it was due {age.days} days ago, more than the {max_age.days} of max_age: emit it again, or raise max_age "
            "of the queue"
        )


def _raise_failures(results: list[Result]) -> None:
    failures = [
        (result.handler.id, " ".join(f"{type(result.error).__name__}: {result.error}".split()))
        for result in results
        if result.error is not None
    ]
    if failures:
        raise HandlersFailed(failures)

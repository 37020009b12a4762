"""The Celery task of a queue: verifies the emission in a message, has it delivered, and says what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task
from celery._state import pop_current_task, push_current_task
from celery.exceptions import Ignore, InvalidTaskError, Reject, SoftTimeLimitExceeded

from pyventus import running
from pyventus.emitters.base import first_this_minute
from pyventus.emitters.celery.delivery import Delivery, NotYet, TooOld, publish
from pyventus.emitters.celery.patience import soon
from pyventus.emitters.celery.request import EmissionRequest, check_message
from pyventus.errors import HandlersFailed, Refused, Undecodable, Unhandled
from pyventus.running import off_loop
from pyventus.wire import is_batch, unpack

if TYPE_CHECKING:
    from pyventus.dead_letters.base import Reason
    from pyventus.emission import Emission
    from pyventus.emitters.celery.queue import Queue
    from pyventus.handlers import EventHandler
    from pyventus.running import Middleware
    from pyventus.wire import Envelope

logger = logging.getLogger("pyventus")

AGAIN_SECONDS = 5.0

# What ends in a dead letter without any handler having run.
UNHANDLED = (Unhandled, Undecodable, TooOld)


class EmissionTask(Task):
    """Runs the handlers of the emissions that one message carries."""

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
        "throws": (HandlersFailed, *UNHANDLED),
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
                check_message(message)
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
            Reject: an error of Pyventus' own, and the message could not be sent again, or a time limit that has struck
                outside of handlers; it goes back to the queue.
        """
        # Celery looks for it anew each time.
        request = self.request
        try:
            if is_batch(text):
                self._run_batch(request, str(text))
            else:
                self._run_one(request, request.id, text)
        except (Ignore, Reject, HandlersFailed, *UNHANDLED):
            raise
        except Exception as error:
            # Celery would acknowledge it.
            if request.is_eager:
                raise
            raise Reject(error, requeue=True) from None

    def _run_batch(self, request: Any, text: str) -> None:
        """Run what a message carries, one after another, each as if it had come in a message of its own."""
        parts = self._unpack(text)
        if (request.delivery_info or {}).get("redelivered"):
            # Its process may have died of one of them, and none is to suffer for another.
            return self._send_apart(parts)
        failures: list[tuple[str, str]] = []
        for at, (message_id, part) in enumerate(parts):
            try:
                self._run_one(request, message_id, part)
            except HandlersFailed as error:
                failures += error.failures
            except (Ignore, *UNHANDLED):
                pass  # What became of it is said, and stored.
            except SoftTimeLimitExceeded:
                # Which has struck before its handlers: the time limit is for all of them.
                return self._send_apart(parts[at:])
        if failures:
            raise HandlersFailed(failures)

    def _run_one(self, request: Any, message_id: str, text: object) -> None:
        delivery = Delivery(self.emission_queue, self._open(message_id, text), request, current_in_threads(self))
        try:
            self._deliver(delivery)
        except (HandlersFailed, *UNHANDLED):
            raise
        except NotYet as early:
            self._send_again(delivery.names, partial(delivery.again, early.seconds, was_started=False))
        except Exception as error:
            self._send_back(delivery, error)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Celery would acknowledge it. It comes back as one that its process may have died of.
            raise Reject(error, requeue=True) from None

    def _deliver(self, delivery: Delivery) -> None:
        try:
            delivery.handle()
        except UNHANDLED as error:
            # A backlog of such would flood the log with one cure; Celery says at INFO how each task ended.
            if first_this_minute(f"{delivery.names[1]}: {error}"):
                logger.error("Emission %s of %r was not handled: %s", *delivery.names, error)
            delivery.keep(_reason(error), error)
            # Without its cause, such as what a codec raised: Celery's events carry the traceback, texts and all.
            raise error from None

    def _unpack(self, text: str) -> list[tuple[str, str]]:
        try:
            if len(text) > self.emission_queue.max_text:
                raise Refused(f"it is a batch of {len(text):,} characters, more than the max_size of the queue")
            return unpack(text)
        except Refused as refusal:
            self._refuse(self.request.id, text, refusal)
            raise Ignore from None

    def _open(self, message_id: str, text: object) -> Envelope:
        try:
            return self.emission_queue.open(text, message_id)
        except Refused as refusal:
            self._refuse(message_id, text, refusal)
            raise Ignore from None

    def _refuse(self, message_id: str, text: object, refusal: Refused) -> None:
        self._log_refusal(message_id, refusal)
        off_loop(partial(self.emission_queue.dead_letters.keep_refused, message_id, text, refusal))

    def _log_refusal(self, message_id: object, reason: Exception) -> None:
        logger.error(
            "Message %.100r refused on queue %r, and not run: %s", message_id, self.emission_queue.name, reason
        )

    # -- Errors that are not the handlers' --------------------------------------------------------------------------

    def _send_back(self, delivery: Delivery, error: Exception) -> None:
        logger.error(
            "Emission %s of %r could not be run and is sent back for %g s: %r",
            *delivery.names, AGAIN_SECONDS, error, exc_info=error,
        )  # fmt: skip
        if self.request.is_eager:
            raise error
        self._send_again(delivery.names, partial(delivery.again, AGAIN_SECONDS))

    def _send_apart(self, parts: list[tuple[str, str]]) -> None:
        messages = []
        for message_id, text in parts:
            with suppress(Ignore):
                messages.append(self.emission_queue.message_apart(self._open(message_id, text)))
        if messages:
            names = self.request.id, f"{len(messages)} events"
            self._send_again(names, partial(publish, self.emission_queue, messages, soon()))

    def _send_again(self, names: tuple[str, str], publish: Callable[[], None]) -> None:
        """Publish a copy for later and have it confirmed; only then is the original acknowledged."""
        end = time.monotonic() + AGAIN_SECONDS
        try:
            off_loop(publish)
        except Exception as error:
            logger.error("Emission %s of %r goes back to the queue: %r", *names, error)
            # It is back at once: without a pause the worker would spin.
            off_loop(partial(time.sleep, max(0.0, end - time.monotonic())))
            raise Reject(error, requeue=True) from None
        raise Ignore


def _reason(error: Exception) -> Reason:
    if isinstance(error, Unhandled):
        return "unhandled"
    return "undecodable" if isinstance(error, Undecodable) else "too old"


def current_in_threads(task: EmissionTask) -> tuple[Middleware, ...]:
    """What makes ``task`` Celery's current one around sync handlers, where none of them has the thread of the task."""
    if running.find_waiter() is None:
        return ()
    request = task.request

    @contextmanager
    def current(_: Emission, handler: EventHandler) -> Generator[None]:
        if handler.is_async:
            yield
            return
        push_current_task(task)
        task.request_stack.push(request)
        try:
            yield
        finally:
            task.request_stack.pop()
            pop_current_task()

    return (current,)


def hold_invariants(task: EmissionTask | type[EmissionTask]) -> None:
    """Undo what annotations, or the user's own code, have changed of them."""
    for name, value in EmissionTask.INVARIANTS.items():
        setattr(task, name, value)

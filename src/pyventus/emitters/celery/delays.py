"""How a delayed message waits: in the broker where that is possible, else in a worker, and never for too long there.

A worker that holds a message for later has not acknowledged it. Redis delivers it again after the visibility timeout,
RabbitMQ closes the channel after its consumer timeout. So a worker gets it after a part of the delay, and the task,
which looks at the signed moment, sends it on. With ``pyventus-redis://`` it waits in Redis, however long that takes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from amqp.exceptions import NotFound
from celery import Celery
from celery.utils.quorum_queues import detect_quorum_queues
from kombu import Connection, Exchange
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

logger = logging.getLogger("pyventus")

# Half of RabbitMQ's consumer timeout.
LONGEST_HELD = 900.0
LONGEST_NATIVE = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
ENTRY = Exchange(level_name(MAX_NUMBER_OF_BITS_TO_USE - 1), type="topic")


class Delays:
    """How messages sent over one connection are delayed.

    On an app with quorum queues RabbitMQ delays them itself: there the prefetch count is fixed, so that a few messages
    held for later would keep a worker from taking any other. Celery's own way to publish there loses messages until a
    worker has made the exchanges, raises for less than a second, and does nothing for direct exchanges.
    """

    def __init__(self, app: Celery, connection: Connection, channel: Any, call: Callable[..., Any]) -> None:
        self._app = app
        self._connection = connection
        self._call = call
        self._longest_held = _longest_held(channel)
        self._is_amqp: bool = connection.transport.driver_type == "amqp"
        self._channel: Any = None
        self._is_refused = False
        self._is_incomplete = False

    def options(self, queue: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options for ``send_task``, in the place of an eta or a countdown."""
        options = {name: value for name, value in given.items() if name not in ("eta", "countdown")}
        delay = _delay(given)
        if delay <= 0:
            return options
        if self._is_native(queue) and self._bind(queue):
            seconds = min(LONGEST_NATIVE, math.ceil(delay))
            return {**options, "exchange": ENTRY, "routing_key": calculate_routing_key(seconds, _last_word(queue))}
        # Equal parts, for the task runs what is early by less than a second.
        part = delay / max(1, math.ceil(delay / self._longest_held))
        moment = datetime.now(UTC) + timedelta(seconds=part)
        # As an option Celery would see to it, in its own way.
        return {**options, "headers": {**options.get("headers", {}), "eta": moment.isoformat()}}

    def declare_again(self) -> None:
        """A message was returned: of what delays, a part may be missing."""
        self._is_incomplete = True

    def _is_native(self, queue: str) -> bool:
        if not self._is_amqp or self._is_refused:
            return False
        self._app.amqp.queues[queue]  # Adds it to those that are looked at.
        return bool(detect_quorum_queues(self._app, "amqp")[0])

    def _bind(self, queue: str) -> bool:
        """Have what is due go to ``queue``, which thereby is known to exist; whether RabbitMQ lets us."""
        try:
            self._call(self._bind_or_declare, queue)
        except self._connection.channel_errors as error:
            self._is_refused = True
            logger.warning(
                "RabbitMQ refuses what delays on queue %r need (%s): workers hold its delayed emissions, at most %g s "
                "at a time",
                queue, error, self._longest_held,
            )  # fmt: skip
        return not self._is_refused

    def _bind_or_declare(self, queue: str) -> None:
        try:
            if not self._is_incomplete:
                return self._bind_queue(queue)
        except NotFound:
            pass
        self._declare(queue)
        self._bind_queue(queue)
        self._is_incomplete = False

    def _bind_queue(self, queue: str) -> None:
        if self._channel is None or not self._channel.is_open:
            # An error closes it, and is not to close the one that publishes.
            self._channel = self._connection.channel()
            self._channel.exchange_declare(ENTRY.name, "topic", passive=True)
        # Straight to the queue, whatever the type of its own exchange; and exactly, for by Celery's "#.b" queue "b"
        # would get what is due in queue "a.b" too.
        pattern = ".".join("*" * MAX_NUMBER_OF_BITS_TO_USE) + f".{_last_word(queue)}"
        self._channel.queue_bind(queue, CELERY_DELAYED_DELIVERY_EXCHANGE, pattern)

    def _declare(self, queue: str) -> None:
        """As Celery's workers do when they start."""
        declare_native_delayed_delivery_exchanges_and_queues(
            self._connection, self._app.conf.broker_native_delayed_delivery_queue_type
        )
        with self._connection.channel() as channel:
            self._app.amqp.queues[queue].bind(channel).declare()


def _delay(options: Mapping[str, Any]) -> float:
    eta: datetime | None = options.get("eta")
    if eta is not None:
        return (eta - datetime.now(UTC)).total_seconds()
    return float(options.get("countdown") or 0)


def _longest_held(channel: Any) -> float:
    """Seconds that a worker may hold a message; kombu's channels that deliver again know after how many they do."""
    if getattr(channel, "holds_delays", False):
        return math.inf
    visibility = getattr(channel, "visibility_timeout", None)
    return min(LONGEST_HELD, float(visibility) / 2) if visibility else LONGEST_HELD


def _last_word(queue: str) -> str:
    """One word of a routing key, which is no pattern and the end of no other queue's name."""
    return quote(queue, safe="").replace(".", "%2E").replace("*", "%2A") + "%due"

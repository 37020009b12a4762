"""Dead letters in RabbitMQ: in a durable classic queue beside each queue.

Not in a quorum queue: that counts deliveries, and twenty listings would empty it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from typing import Any

from amqp import Message
from amqp.exceptions import ChannelError, NotFound, PreconditionFailed, ResourceLocked

from pyventus.dead_letters.base import DeadLetter
from pyventus.dead_letters.places import Place
from pyventus.dead_letters.records import read_record, write_record
from pyventus.emitters.celery.publisher import PublishError
from pyventus.errors import ConfigurationError, PyventusError

LOCK_SECONDS = 10.0
LOCK_PAUSE_SECONDS = 0.1
PERSISTENT = 2


class RabbitShelf:
    """The letters of one place in RabbitMQ.

    Args:
        connection: opens channels; RabbitMQ closes a channel with whatever it refuses, so each step has one of its own.
        place: which.
    """

    def __init__(self, connection: Any, place: Place) -> None:
        self._connection = connection
        self._place = place
        self._name = f"{place.queue}.{'refused' if place.refused else 'dead'}"

    def add(self, letter: DeadLetter) -> None:
        """Add a letter and have it confirmed; RabbitMQ drops what is too much or too old."""
        self._declare()
        returned: list[object] = []
        with self._channel() as channel:
            channel.events["basic_return"].add(lambda error, *_: returned.append(error))
            message = Message(write_record(letter), content_type="application/json", delivery_mode=PERSISTENT)
            channel.basic_publish_confirm(message, "", self._name, mandatory=True)
        if returned:
            raise PublishError(f"RabbitMQ has no queue {self._name!r} any more ({returned[0]}); it was not stored")

    def letters(self) -> list[DeadLetter]:
        """The letters, oldest first."""
        found: dict[str, DeadLetter] = {}
        with self._reading() as channel:
            for message in self._messages(channel):
                letter = self._letter(message)
                found.setdefault(letter.id, letter)
        return list(found.values())

    def remove(self, ids: Collection[str]) -> int:
        """Remove letters; returns how many there were."""
        removed = set()
        with self._reading() as channel:
            for message in self._messages(channel):
                id = self._letter(message).id
                if id in ids:
                    channel.basic_ack(message.delivery_tag)
                    removed.add(id)
        return len(removed)

    def purge(self) -> int:
        """Remove all letters; returns how many there were."""
        with self._reading() as channel:
            return int(channel.queue_purge(self._name)) if channel else 0

    def _messages(self, channel: Any) -> Iterator[Any]:
        """All messages; those that are not acknowledged return to their places when the channel is closed."""
        return iter(lambda: channel.basic_get(self._name), None) if channel else iter(())

    def _letter(self, message: Any) -> DeadLetter:
        return read_record(message.body, self._place.queue)

    # -- Channels and queues --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        channel = self._connection.channel()
        try:
            yield channel
        except ChannelError:
            # py-amqp opens it again when RabbitMQ has closed it. After other errors the sender closes the connection.
            channel.close()
            raise
        channel.close()

    def _declare(self) -> None:
        arguments = {
            "x-queue-type": "classic",
            "x-max-length": self._place.limit,
            "x-message-ttl": self._place.seconds * 1000,
            "x-overflow": "drop-head",
        }
        try:
            with self._channel() as channel:
                channel.queue_declare(self._name, durable=True, auto_delete=False, arguments=arguments)
        except PreconditionFailed as error:
            if not _has_other_bounds(error):
                raise ConfigurationError(
                    f"RabbitMQ has a queue {self._name!r} that was not made for dead letters ({error.reply_text}): "
                    "delete or rename it, or have dead letters elsewhere, with dead_letters='redis://...'"
                ) from None

    def _exists(self) -> bool:
        try:
            with self._channel() as channel:
                channel.queue_declare(self._name, passive=True)
        except NotFound:
            return False
        return True

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """A channel to read with, or None without a queue. One at a time: what one has in hand another would miss."""
        if not self._exists():
            yield None
            return
        # To know that reading it changes nothing, as it would a quorum queue.
        self._declare()
        self._lock()
        with self._channel() as channel:
            yield channel
        with self._channel() as channel:
            channel.queue_delete(self._lock_name)

    @property
    def _lock_name(self) -> str:
        return f"{self._name}.reading"

    def _lock(self) -> None:
        """Declare a queue that only this connection may use, and that goes with it."""
        end = time.monotonic() + LOCK_SECONDS
        while not self._is_locked():
            if time.monotonic() > end:
                raise PyventusError("somebody else is reading these dead letters: try again when they are done")
            time.sleep(LOCK_PAUSE_SECONDS)

    def _is_locked(self) -> bool:
        try:
            with self._channel() as channel:
                channel.queue_declare(self._lock_name, exclusive=True)
        except ResourceLocked:
            return False
        return True


def _has_other_bounds(error: PreconditionFailed) -> bool:
    """Whether it was made with another limit or age, which it then keeps. RabbitMQ names the first difference."""
    text = str(error.reply_text)
    return any(f"arg '{name}'" in text for name in ("x-max-length", "x-message-ttl")) and "current is none" not in text

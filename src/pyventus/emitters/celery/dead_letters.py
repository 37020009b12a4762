"""The stores of dead letters: the app's own broker, or a Redis of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from celery import Celery

from pyventus.dead_letters.base import DeadLetter, DeadLetterStore
from pyventus.dead_letters.places import Bounds, Place, Shelf
from pyventus.emitters.celery.dead_amqp import RabbitShelf
from pyventus.emitters.celery.dead_redis import RedisShelf
from pyventus.emitters.celery.publisher import Publisher, publisher_of
from pyventus.errors import ConfigurationError, InvalidOption, MissingExtra

if TYPE_CHECKING:
    from redis import Redis

logger = logging.getLogger("pyventus")

T = TypeVar("T")

ADD_SECONDS = 5.0
# RabbitMQ gives ten thousand letters one by one.
READ_SECONDS = 60.0
SOCKET_SECONDS = 5.0
LIMIT = 10_000
MAX_DAYS = 14


class _ShelfStore:
    """What the stores share: they find the shelf for a place, and work on it."""

    def __init__(self, limit: int, max_days: int) -> None:
        self._bounds = Bounds(limit, max_days)

    def add(self, letter: DeadLetter) -> None:
        """As of `DeadLetterStore`."""
        self._work(self._bounds.place_of(letter), ADD_SECONDS, lambda shelf: shelf.add(letter))

    def letters(self, queue: str, *, refused: bool = False) -> Iterator[DeadLetter]:
        """As of `DeadLetterStore`."""
        return iter(self._work(self._bounds.place(queue, refused), READ_SECONDS, lambda shelf: shelf.letters()))

    def remove(self, queue: str, ids: Iterable[str], *, refused: bool = False) -> int:
        """As of `DeadLetterStore`."""
        chosen = frozenset(ids)
        place = self._bounds.place(queue, refused)
        return self._work(place, READ_SECONDS, lambda shelf: shelf.remove(chosen)) if chosen else 0

    def purge(self, queue: str, *, refused: bool = False) -> int:
        """As of `DeadLetterStore`."""
        return self._work(self._bounds.place(queue, refused), READ_SECONDS, lambda shelf: shelf.purge())

    def _work(self, place: Place, seconds: float, act: Callable[[Shelf], T]) -> T:
        raise NotImplementedError


class BrokerDeadLetters(_ShelfStore):
    """Keeps dead letters in the app's own broker, Redis or RabbitMQ: the default store.

    Other transports keep nothing: what is added is logged as an error.

    Args:
        app: the Celery app.
        limit: how many letters are kept for each queue; the oldest leave first. Of refused messages, 1,000 at most.
        max_days: how long each is kept. A refused message, 7 days at most.

    Raises:
        InvalidOption: an argument is out of its range.
    """

    def __init__(self, app: Celery | Publisher, *, limit: int = LIMIT, max_days: int = MAX_DAYS) -> None:
        super().__init__(limit, max_days)
        self._publisher = app if isinstance(app, Publisher) else publisher_of(app)

    def _work(self, place: Place, seconds: float, act: Callable[[Shelf], T]) -> T:
        def on_channel(channel: Any, driver: str) -> T:
            return act(_shelf(channel, driver, place))

        return self._publisher.call(on_channel, time.monotonic() + seconds)


def _shelf(channel: Any, driver: str, place: Place) -> Shelf:
    if driver == "amqp":
        return RabbitShelf(channel.connection, place)
    if driver == "redis":
        from redis import Redis

        # Not the channel's own client, which puts the prefix before some keys only.
        return RedisShelf(Redis(connection_pool=channel.pool).execute_command, place, channel.global_keyprefix)
    return _NoShelf(driver)


class _NoShelf:
    def __init__(self, driver: str) -> None:
        self._driver = driver

    def add(self, letter: DeadLetter) -> None:
        """Log it: an error would have its message come back for ever."""
        logger.error(
            "Dead letter of emission %s of %r is lost: transport %r keeps none; make the queue with "
            "dead_letters='redis://...'",
            letter.emission, letter.event, self._driver,
        )  # fmt: skip

    def letters(self) -> list[DeadLetter]:
        raise self._error()

    def remove(self, ids: Collection[str]) -> int:
        raise self._error()

    def purge(self) -> int:
        raise self._error()

    def _error(self) -> ConfigurationError:
        return ConfigurationError(
            f"transport {self._driver!r} keeps no dead letters: make the queue with dead_letters='redis://...'"
        )


class RedisDeadLetters(_ShelfStore):
    """Keeps dead letters in a Redis, whatever the app's broker. Queues that share one need different names.

    Args:
        url: ``redis://`` or ``rediss://``.
        limit: as of `BrokerDeadLetters`.
        max_days: as of `BrokerDeadLetters`.

    Raises:
        InvalidOption: an argument is out of its range, or no URL.
        MissingExtra: redis is not installed.
    """

    def __init__(self, url: str, *, limit: int = LIMIT, max_days: int = MAX_DAYS) -> None:
        super().__init__(limit, max_days)
        self._client = _client(url)

    def _work(self, place: Place, seconds: float, act: Callable[[Shelf], T]) -> T:
        return act(RedisShelf(self._client.execute_command, place))


def _client(url: str) -> Redis:
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise MissingExtra(
            "dead_letters in Redis need redis, which is not installed: pip install 'pyventus[redis]'"
        ) from None
    try:
        return Redis.from_url(
            url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS, retry=Retry(NoBackoff(), 0)
        )
    except ValueError:
        # Its text may hold a part of the password.
        raise InvalidOption(
            "dead_letters is no URL that redis-py can read: is a special character of the password not percent-encoded?"
        ) from None


def make_store(value: DeadLetterStore | str | None, app: Celery | Publisher) -> DeadLetterStore:
    """The store that the option ``dead_letters`` of a queue stands for.

    Args:
        value: None for the app's broker, the URL of a Redis, or a store.
        app: of the queue.

    Raises:
        InvalidOption: it is none of these.
        MissingExtra: redis is not installed.
    """
    if value is None:
        return BrokerDeadLetters(app)
    if isinstance(value, str):
        scheme, found, _ = value.partition("://")
        if found and scheme in ("redis", "rediss"):
            return RedisDeadLetters(value)
        raise InvalidOption("dead_letters must be a URL that begins with redis:// or rediss://, a store, or None")
    if not isinstance(value, DeadLetterStore):
        raise InvalidOption(
            f"dead_letters must be a URL, or have add, letters, remove and purge as a DeadLetterStore, not {value!r}"
        )
    return value

"""Where a store keeps the letters of one queue, and how many, for how long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pyventus.dead_letters.base import DeadLetter
from pyventus.errors import InvalidOption

__all__ = ["Bounds", "Place", "Shelf"]

DAY = 24 * 60 * 60
REFUSED_LIMIT = 1_000
REFUSED_DAYS = 7
# RabbitMQ counts milliseconds in 32 bits.
MOST_DAYS = 49


@dataclass(frozen=True, slots=True)
class Place:
    """Where the letters of one queue are, or those of its refused messages.

    Attributes:
        queue: logical name of the queue.
        refused: whether it is that of the refused messages.
        limit: how many letters it holds; the oldest leave first.
        seconds: how long it holds one.
    """

    queue: str
    refused: bool
    limit: int
    seconds: int


class Shelf(Protocol):
    """The letters of one place, where a store has them."""

    def add(self, letter: DeadLetter) -> None:
        """As of `DeadLetterStore`."""

    def letters(self) -> list[DeadLetter]:
        """As of `DeadLetterStore`."""

    def remove(self, ids: Collection[str]) -> int:
        """As of `DeadLetterStore`."""

    def purge(self) -> int:
        """As of `DeadLetterStore`."""


class Bounds:
    """How much a store keeps for each queue; of refused messages less, because anybody can send them.

    Args:
        limit: letters.
        max_days: of a letter.

    Raises:
        InvalidOption: an argument is out of its range.
    """

    def __init__(self, limit: int, max_days: int) -> None:
        self._limit = _check_whole("limit", limit, 10**6)
        self._days = _check_whole("max_days", max_days, MOST_DAYS)

    def place(self, queue: str, refused: bool) -> Place:
        """The place of a queue's letters."""
        if refused:
            return Place(queue, refused, min(self._limit, REFUSED_LIMIT), min(self._days, REFUSED_DAYS) * DAY)
        return Place(queue, refused, self._limit, self._days * DAY)

    def place_of(self, letter: DeadLetter) -> Place:
        """The place where a letter belongs."""
        return self.place(letter.queue, letter.reason == "refused")


def _check_whole(option: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidOption(f"{option} of a dead letter store must be a whole number from 1 to {most:,}, not {value!r}")
    return value

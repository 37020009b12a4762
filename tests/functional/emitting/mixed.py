"""Events of every kind, and an app whose handlers keep what arrives, for `test_mixed_thousand`."""

from __future__ import annotations

import base64
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
from celery import Celery

from pyventus import EventLinker
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.running import current_emission

SECRET = "the secret of a thousand emissions" * 2


class Colour(Enum):
    RED = "red"
    BLUE = ("blue", 2)


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Name(StrEnum):
    PLACED = "Placed"


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass
class Order:
    id: UUID
    lines: list[Any] = field(default_factory=list)
    paid: Money | None = None
    colour: Colour = Colour.RED
    tags: set[Any] = field(default_factory=set)


class Shipped(msgspec.Struct):
    order: int
    at: datetime
    parcels: tuple[Any, ...] = ()


@attrs.define
class Cancelled:
    reason: str
    refunds: dict[Any, Any] = attrs.field(factory=dict)


class Address(pydantic.BaseModel):
    street: str
    number: int


class Moved(pydantic.BaseModel):
    old: Address
    new: Address | None = None
    on: date


class OutOfStock(Exception):
    """An event that is an exception."""


CLASSES = (Order, Shipped, Cancelled, Moved, OutOfStock, ValueError)


def keep(*args: Any, **kwargs: Any) -> None:
    """Write one line: the emission's id, and what arrived, pickled because that keeps types and values apart."""
    found = base64.b64encode(pickle.dumps((args, kwargs)))
    with Path(os.environ["TEST_OUTPUT"]).open("ab", buffering=0) as file:
        file.write(current_emission().id.encode() + b" " + found + b"\n")


def make_app(queue: str) -> tuple[Celery, CeleryEventEmitter.Queue]:
    app = Celery("mixed", set_as_current=False)  # its broker comes from CELERY_BROKER_URL
    app.conf.update(worker_prefetch_multiplier=50, broker_connection_retry_on_startup=True)
    return app, CeleryEventEmitter.Queue(app, queue, secret=SECRET)


if "TEST_OUTPUT" in os.environ:
    app, queue = make_app(os.environ["TEST_QUEUE"])
    for linked in CLASSES:
        EventLinker.subscribe(linked, event_callback=keep, name=f"keep {linked.__name__}")
    EventLinker.subscribe("Placed", "Mixed", event_callback=keep, name="keep")
    for known in (Colour, Size, Name, Money):
        EventLinker.register(known)


# -- What is emitted ------------------------------------------------------------------------------------------------


class Maker:
    """Makes values at random, the same ones from the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def event(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """An event with its arguments."""
        make = self._random.choice(
            [self._string, self._order, self._shipped, self._cancelled, self._moved, self._error]
        )
        return make()

    def value(self, depth: int = 3) -> Any:
        makers: list[Callable[[], Any]] = [self.scalar]
        if depth:
            makers += [
                lambda: [self.value(depth - 1) for _ in self.few()],
                lambda: tuple(self.value(depth - 1) for _ in self.few()),
                lambda: {self.scalar(): self.value(depth - 1) for _ in self.few()},
                lambda: {self.scalar() for _ in self.few()},
                lambda: frozenset(self.scalar() for _ in self.few()),
                lambda: Money(Decimal(self._random.randint(-999, 999)).scaleb(-2), self.text()),
            ]
        return self._random.choice(makers)()

    def scalar(self) -> Any:
        number = self._random.randint
        zone = self._random.choice([None, UTC, timezone(timedelta(hours=number(-12, 12)))])
        moment = datetime(number(1, 9999), 6, 15, number(0, 23), 59, 1, number(0, 999999), tzinfo=zone)
        return self._random.choice([
            None, True, False, number(-(10**20), 10**20), self._random.uniform(-1e9, 1e9), float("inf"), -0.0,
            self.text(), self.text().encode(), moment, moment.date(), moment.timetz(), time(1, 2),
            timedelta(days=number(-9, 9), microseconds=number(0, 9)), Decimal(number(0, 10**6)).scaleb(number(-9, 9)),
            UUID(int=self._random.getrandbits(128)), *Colour, *Size, Name.PLACED,
        ])  # fmt: skip

    def text(self) -> str:
        return "".join(self._random.choice('aé€😀"\\\n\0 $') for _ in range(self._random.randint(0, 8)))

    def few(self) -> range:
        return range(self._random.randint(0, 3))

    def _string(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        args = tuple(self.value() for _ in self.few())
        return self._random.choice([Name.PLACED, "Placed", "Mixed"]), args, {f"k{n}": self.value() for n in self.few()}

    def _order(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        event = Order(
            UUID(int=self._random.getrandbits(128)),
            [self.value()],
            Money(Decimal("1.50")),
            Colour.BLUE,
            {self.scalar()},
        )
        return event, (), {"extra": self.value()}

    def _shipped(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        return Shipped(self._random.randint(0, 9), datetime.now(UTC), (self.value(),)), (self.value(),), {}

    def _cancelled(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        return Cancelled(self.text(), {self.scalar(): self.value()}), (), {}

    def _moved(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        new = self._random.choice([None, Address(street=self.text(), number=2)])
        return Moved(old=Address(street="é", number=1), new=new, on=date(2024, 2, 29)), (), {}

    def _error(self) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        error = self._random.choice([OutOfStock, ValueError])(self.text(), self.value())
        for _ in self.few():
            error.add_note(self.text())
        return error, (), {}

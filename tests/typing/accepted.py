"""The public API as a user writes it; type checkers find nothing wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, assert_type
from uuid import uuid4

from pyventus import (
    AsyncIOEventEmitter,
    Emission,
    EmitError,
    EventEmitter,
    EventHandler,
    EventLinker,
    ExecutorEventEmitter,
    HandlerTimeout,
    PyventusError,
    PyventusException,
    current_emission,
    current_state,
    event,
)
from pyventus.emitters.celery import CeleryEventEmitter


class Topic(StrEnum):
    ORDERS = "orders"


@event("order.placed", version=2)
@dataclass
class OrderPlaced:
    order_id: int


@dataclass
class RushOrderPlaced(OrderPlaced):
    hours: int


class Billing(EventLinker, name="typing.billing", max_event_handlers=10, default_failure_callback=print):
    pass


# -- Linking ----------------------------------------------------------------------------------------------------


@EventLinker.on("StringEvent", Topic.ORDERS)
def any_arguments(number: int, word: str = "") -> str:
    return word * number


@EventLinker.on(OrderPlaced)
def of_a_class(order: OrderPlaced) -> int:
    return order.order_id


@EventLinker.on(OrderPlaced, name="async", timeout=3)
async def asynchronous(order: OrderPlaced, extra: str = "") -> int:
    return order.order_id


@EventLinker.on(RushOrderPlaced)
def of_a_base(order: OrderPlaced) -> None: ...


@EventLinker.on(OrderPlaced, ValueError)
def of_two(either: OrderPlaced | ValueError) -> None: ...


@EventLinker.on(ValueError, KeyError, OrderPlaced)
def of_three(any_of_them: object) -> None: ...


@EventLinker.on(Exception)
async def of_exceptions(error: Exception) -> None: ...


@Billing.once(...)
def of_everything(*args: Any, **kwargs: Any) -> None: ...


@Billing.once(OrderPlaced)
def once(order: OrderPlaced) -> None: ...


@EventLinker.on("mixed", OrderPlaced)
def mixed(*args: object) -> None: ...


class Service:
    @staticmethod
    @EventLinker.on(OrderPlaced, name="static")
    def handle(order: OrderPlaced) -> bytes:
        return b""


assert_type(any_arguments(2, word="x"), str)
assert_type(of_a_class(OrderPlaced(1)), int)
assert_type(Service.handle(OrderPlaced(1)), bytes)
EventLinker.on("bound")(Service().handle)
EventLinker.on(OrderPlaced)(print)
EventLinker.on(OrderPlaced)(lambda order: order.order_id)

with EventLinker.on(OrderPlaced, once=True) as link:

    @link.on_event
    async def charge(order: OrderPlaced) -> str:
        return ""

    @link.on_success
    def charged(receipt: str) -> None: ...

    @link.on_failure
    async def failed(error: Exception) -> None: ...


with Billing.on("string") as string_link:

    @string_link.on_event
    def with_anything(one: int, two: str) -> float:
        return 1.0


assert_type(with_anything(1, "2"), float)

handler = EventLinker.subscribe(
    "A",
    OrderPlaced,
    ...,
    event_callback=any_arguments,
    success_callback=charged,
    failure_callback=failed,
    once=False,
    name=None,
    timeout=30,
)
assert_type(handler, EventHandler)
assert_type(handler.id, str)
assert_type(EventLinker.unsubscribe("A", event_handler=handler), bool)
assert_type(EventLinker.remove_event_handler(handler), bool)
assert_type(EventLinker.remove_event("A"), bool)
assert_type(EventLinker.remove_all(), bool)
assert_type(EventLinker.get_event_handlers(), list[EventHandler])
assert_type(EventLinker.get_handlers_by_events("A", OrderPlaced), list[EventHandler])
for linked in EventLinker.get_events_by_handler(handler):
    EventLinker.remove_event(linked)
EventLinker.register(timedelta, encode=str, decode=lambda text: timedelta(seconds=float(text)))


# -- Emitting ---------------------------------------------------------------------------------------------------


def emit(emitter: EventEmitter) -> None:
    assert_type(emitter.emit("event", 1, "two", anything=object(), event=3), Emission)
    assert_type(emitter.emit(OrderPlaced(1), "more"), Emission)
    assert_type(emitter.prepare(ValueError("x")), Emission)
    try:
        emitter.send(emitter.prepare("x"))
    except EmitError as error:
        assert_type(error.stored, tuple[str, ...])
        if error.emission is not None:
            emitter.send(error.emission)
    except (HandlerTimeout, PyventusError, PyventusException):
        pass


async def emit_async() -> None:
    async with AsyncIOEventEmitter() as emitter:
        assert_type(emitter, AsyncIOEventEmitter)
        assert_type(await emitter.aemit("event"), Emission)
        assert_type(await emitter.with_options(delay=1).drain(), None)


with ExecutorEventEmitter(event_linker=Billing) as executor:
    bound = executor.with_options(
        id=uuid4(), delay=timedelta(seconds=1), priority=9, expires=datetime.now(UTC), headers={"a": "b"}
    )
    assert_type(bound, ExecutorEventEmitter)
    assert_type(
        bound.with_options(delay=0.5, expires=3, id="x").with_options(at=datetime.now(UTC)), ExecutorEventEmitter
    )


def my_serializer(choice: bool) -> CeleryEventEmitter.Queue.Serializer:
    return MySerializer()


def celery(queue: CeleryEventEmitter.Queue) -> CeleryEventEmitter:
    emitter = CeleryEventEmitter(queue=queue, event_linker=Billing, debug=True, timeout=2.5)
    CeleryEventEmitter(queue=[queue])
    return emitter.with_options(priority=1)


class MySerializer:
    name = "mine"

    def dumps(self, emission: Emission) -> bytes:
        return emission.event.encode()

    def loads(self, data: bytes) -> Emission:
        return Emission(event=data.decode())


class Mine(EventEmitter):
    def _process(self, emission: EventEmitter.EventEmission) -> None:
        print(emission.id, emission.headers.get("request"))


def inside_a_handler() -> None:
    assert_type(current_emission(), Emission)
    state = current_state()
    state.pool.acquire()


emit(Mine(event_linker=Billing, debug=True))

"""Mistakes that type checkers see: every line that is marked has an error, and no other line has one."""

from __future__ import annotations

from dataclasses import dataclass

from pyventus import AsyncIOEventEmitter, EventEmitter, EventLinker, ExecutorEventEmitter
from pyventus.emitters.celery import CeleryEventEmitter


@dataclass
class OrderPlaced:
    order_id: int


@dataclass
class RushOrderPlaced(OrderPlaced):
    hours: int


def of_another(order: str) -> None: ...
def of_nothing() -> None: ...
async def of_a_subclass(order: RushOrderPlaced) -> None: ...
def of_one(order: OrderPlaced) -> int:
    return order.order_id


EventLinker.on(OrderPlaced)(of_another)  # error
EventLinker.on(OrderPlaced)(of_nothing)  # error
EventLinker.on(OrderPlaced)(of_a_subclass)  # error
EventLinker.once(OrderPlaced)(of_another)  # error
EventLinker.on(OrderPlaced, ValueError)(of_one)  # error
EventLinker.on(OrderPlaced)(3)  # error
EventLinker.on("string")("callback")  # error
EventLinker.on(3)  # error
EventLinker.on("string", unknown=1)  # error
EventLinker.on("string", timeout="1")  # error
EventLinker.subscribe("string")  # error
EventLinker.subscribe("string", event_callback=3)  # error

with EventLinker.on(OrderPlaced) as link:
    link.on_event(of_another)  # error
    link.on_event(of_one)

decorated = EventLinker.on(OrderPlaced)(of_one)
decorated("not an order")  # error
text: str = decorated(OrderPlaced(1))  # error

emitter = AsyncIOEventEmitter()
emitter.emit()  # error
emitter.send("event")  # error
emitter.with_options(later=1)  # error
emitter.with_options(delay="1")  # error
emitter.with_options(headers={"a": 1})  # error
other: ExecutorEventEmitter = emitter.with_options(delay=1)  # error
emission = emitter.prepare("event")
emission.event = "other"  # error
EventEmitter()  # error
CeleryEventEmitter(queue="queue")  # error

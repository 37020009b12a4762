"""A program as a user of the existing package's 0.4 writes it. Nothing in it may have to change."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from celery import Celery

from pyventus import AsyncIOEventEmitter, EventEmitter, EventLinker, ExecutorEventEmitter, PyventusException
from pyventus.emitters.asyncio import AsyncIOEventEmitter as SameAsyncIOEventEmitter
from pyventus.emitters.celery import CeleryEventEmitter
from pyventus.emitters.executor import ExecutorEventEmitter as SameExecutorEventEmitter
from pyventus.handlers import EventHandler
from pyventus.linkers import EventLinker as SameEventLinker

happened: list[str] = []


@dataclass(frozen=True)
class OrderCreated:
    order_id: int


def log_success(*results: object) -> None:
    happened.append(f"default success {results}")


def log_failure(error: Exception) -> None:
    happened.append(f"default failure {error!r}")


class Orders(
    EventLinker,
    max_event_handlers=3,
    default_success_callback=log_success,
    default_failure_callback=log_failure,
    debug=False,
):
    pass


@EventLinker.on("StringEvent", OrderCreated)
async def first(*args: object) -> None:
    await asyncio.sleep(0)
    happened.append(f"first {args}")


@EventLinker.once("StringEvent")
def second() -> None:
    happened.append("second")


with EventLinker.on("Divide") as linker:

    @linker.on_event
    def divide(a: float, b: float) -> float:
        return a / b

    @linker.on_success
    def divided(result: float) -> None:
        happened.append(f"divided {result}")

    @linker.on_failure
    def not_divided(error: Exception) -> None:
        happened.append(f"not divided {type(error).__name__}")


@EventLinker.on(ZeroDivisionError, Exception)
def on_error(error: Exception) -> None:
    happened.append(f"error {error!r}")


@Orders.on("Paid")
async def paid(amount: int) -> int:
    if amount < 0:
        raise ValueError(amount)
    return amount


def third() -> None:
    happened.append("third")


handler: EventHandler = EventLinker.subscribe(
    "Third", "Fourth", event_callback=third, success_callback=None, failure_callback=None, once=False, force_async=True
)
assert EventLinker.get_events_by_handler(event_handler=handler) == ["Third", "Fourth"]
assert EventLinker.unsubscribe("Fourth", event_handler=handler)
assert handler in EventLinker.get_handlers_by_events("Third")


class MyEmitter(EventEmitter):
    """An emitter of the user's own, which passes on what it gets."""

    def __init__(self, event_linker: type[EventLinker] = EventLinker, debug: bool | None = None) -> None:
        super().__init__(event_linker=event_linker, debug=debug)
        self._emitter = AsyncIOEventEmitter(event_linker=event_linker)

    def _process(self, event_emission: EventEmitter.EventEmission) -> None:
        happened.append(f"passing on {event_emission.event} of {type(event_emission.id).__name__}")
        self._emitter.send(event_emission)


def main() -> None:
    assert SameEventLinker is EventLinker
    assert SameAsyncIOEventEmitter is AsyncIOEventEmitter
    assert SameExecutorEventEmitter is ExecutorEventEmitter

    event_emitter: EventEmitter = AsyncIOEventEmitter(event_linker=EventLinker, debug=False)
    event_emitter.emit("StringEvent")
    event_emitter.emit("StringEvent")
    event_emitter.emit(OrderCreated(order_id=5))
    event_emitter.emit("Divide", a=1, b=2)
    event_emitter.emit("Divide", 1, b=0)
    event_emitter.emit(ZeroDivisionError("no"))

    async def inside_a_loop() -> None:
        event_emitter.emit("Third")
        await asyncio.sleep(0.2)

    asyncio.run(inside_a_loop())

    with ExecutorEventEmitter(executor=ThreadPoolExecutor(), event_linker=Orders, debug=False) as executor_emitter:
        executor_emitter.emit("Paid", 3)
    with ExecutorEventEmitter(event_linker=Orders) as executor_emitter:
        executor_emitter.emit("Paid", -3)

    executor_emitter = ExecutorEventEmitter()
    executor_emitter.emit("Third")
    executor_emitter.shutdown(wait=True, cancel_futures=False)

    MyEmitter(debug=False).emit("Third")

    try:
        EventLinker.subscribe(event_callback=third)
    except PyventusException as error:
        happened.append(f"refused {type(error).__name__}")

    celery = Celery("app", broker="memory://")
    celery.conf.accept_content = ["application/json", "application/x-python-serialize"]
    queue = CeleryEventEmitter.Queue(celery=celery, name="orders", secret="a secret that is 32 bytes long...")
    event_emitter = CeleryEventEmitter(queue=queue, event_linker=Orders, debug=False)
    event_emitter.emit("Paid", 3)

    EventLinker.remove_event_handler(event_handler=handler)
    EventLinker.remove_event("Divide")
    EventLinker.remove_all()
    assert not EventLinker.get_events()
    assert not EventLinker.get_event_handlers()

"""The handlers of the contract. They write down what happened, in a file that every process can reach.

The file's path travels in a header of the emission. The linkers are the contract's own, so that nothing here hears of
what other tests emit.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyventus import (
    AsyncIOEventEmitter,
    Emission,
    EventEmitter,
    EventLinker,
    GiveUp,
    Retry,
    RetryLater,
    current_emission,
)

RECORD = "contract-record"
EMITTER = "contract-emitter"
MEET_SECONDS = 20.0

#: What handlers emit with, by the name that the emission carries. In a child process there may be none.
EMITTERS: dict[str, EventEmitter] = {}

variable: ContextVar[str] = ContextVar("variable", default="unset")


def record(what: str, *details: Any) -> None:
    line = json.dumps([what, *map(repr, details)]) + "\n"
    # One write to a file opened for appending: lines of other processes do not get into it.
    file = os.open(current_emission().headers[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def recorded(path: str | Path) -> list[list[str]]:
    try:
        lines = Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def arrive_and_wait_for(*others: str) -> None:
    """Write down who is here, and wait until everybody else is."""
    path, deadline = current_emission().headers[RECORD], time.monotonic() + MEET_SECONDS
    while not {*others} <= {line[0] for line in recorded(path)}:
        if time.monotonic() > deadline:
            raise AssertionError(f"{others} did not come")
        time.sleep(0.01)


def nested() -> EventEmitter:
    """The emitter under test, or in a child process one of its own."""
    headers = current_emission().headers
    emitter = EMITTERS.get(headers[EMITTER]) or AsyncIOEventEmitter(Contract)
    return emitter.with_options(headers=headers)


def default_failure(error: Exception) -> None:
    record("default failure", error)


class Contract(EventLinker, name="contract"):
    pass


class Other(EventLinker, name="contract.other", default_failure_callback=default_failure):
    pass


# -- Arguments and classes ----------------------------------------------------------------------------------------


@dataclass
class OrderPlaced:
    order_id: int
    lines: list[str] = field(default_factory=list)


@dataclass
class RushOrderPlaced(OrderPlaced):
    hours: int = 1


class PaymentFailed(ValueError):
    pass


@Contract.on("arguments", name="arguments-sync")
def take(*args: Any, **kwargs: Any) -> None:
    record("sync", args, kwargs)


@Contract.on("arguments", name="arguments-async")
async def take_async(*args: Any, **kwargs: Any) -> None:
    await asyncio.sleep(0)
    record("async", args, kwargs)


@Contract.on(OrderPlaced, name="order")
def ordered(order: OrderPlaced, *more: Any) -> None:
    record("order", order, *more)


@Contract.on(RushOrderPlaced, name="rush")
async def rushed(order: RushOrderPlaced) -> None:
    record("rush", order)


@Contract.on(OrderPlaced, RushOrderPlaced, "several", "arguments", name="several")
def several(*_: object, **__: object) -> None:
    record("several")


@Contract.on(Exception, name="exceptions")
def any_exception(error: Exception) -> None:
    record("exception", error)


@Contract.on(ValueError, name="value-errors")
async def value_error(error: ValueError) -> None:
    record("value error", error, error.args)


@Contract.on("PaymentFailed", "tests.contract.handlers:PaymentFailed", name="namesake")
def namesake() -> None:
    record("namesake")


# -- Outcomes -----------------------------------------------------------------------------------------------------


def success(*value: object) -> None:
    record("success", *value)


async def async_success(*value: object) -> None:
    record("success", *value)


def failure(error: Exception) -> None:
    record("failure", error)


async def async_failure(error: Exception) -> None:
    record("failure", error)


def returns(value: object = None) -> object:
    return value


async def async_returns(value: object = None) -> object:
    return value


def fails(message: str) -> None:
    raise PaymentFailed(message)


async def async_fails(message: str) -> None:
    raise PaymentFailed(message)


def exits(*_: object) -> None:
    raise asyncio.CancelledError


def broken(*_: object) -> None:
    raise ZeroDivisionError


for kind, (succeeding, failing) in {"sync": (returns, fails), "async": (async_returns, async_fails)}.items():
    for callback_kind, (done, failed) in {"sync": (success, failure), "async": (async_success, async_failure)}.items():
        suffix = f"{kind} {callback_kind}"
        Contract.subscribe(
            f"returns {suffix}",
            event_callback=succeeding,
            success_callback=done,
            failure_callback=failed,
            name=f"returns {suffix}",
        )
        Contract.subscribe(
            f"fails {suffix}",
            event_callback=failing,
            success_callback=done,
            failure_callback=failed,
            name=f"fails {suffix}",
        )

for number, callback in enumerate((fails, async_fails, exits)):
    Contract.subscribe(
        "neighbours", event_callback=callback, failure_callback=broken, success_callback=success, name=f"bad {number}"
    )


@Contract.on("neighbours", name="good", success_callback=broken)
def good(_: str) -> None:
    record("good")


@Contract.on("neighbours", name="good-async", success_callback=broken)
async def good_async(_: str) -> None:
    await asyncio.sleep(0.01)
    record("good async")


# -- Again ------------------------------------------------------------------------------------------------------

QUICKLY = Retry(max_attempts=3, delay=0.02, jitter=0, never=KeyError)


def attempt() -> int:
    record("attempt", current_emission().attempt, current_emission().handlers)
    return current_emission().attempt


@Contract.on("flaky", name="flaky-sync", retry=QUICKLY, success_callback=success, failure_callback=failure)
def flaky(value: str) -> str:
    if attempt() < 3:
        raise PaymentFailed("not yet")
    return value


@Contract.on("flaky async", name="flaky-async", retry=QUICKLY, success_callback=success, failure_callback=failure)
async def flaky_async(value: str) -> str:
    return flaky(value)


@Contract.on("flaky", "flaky async", "hopeless", name="steady")
def steady(*_: object) -> None:
    record("steady")


@Contract.on("hopeless", name="hopeless", retry=QUICKLY, success_callback=success, failure_callback=failure)
def hopeless() -> None:
    raise PaymentFailed(str(attempt()))


@Contract.on("later", name="later", success_callback=success, failure_callback=failure)
async def later() -> None:
    if attempt() < 3:
        raise RetryLater(0.02)


@Contract.on("gives up", name="gives-up", retry=QUICKLY, success_callback=success, failure_callback=failure)
def gives_up() -> None:
    attempt()
    raise GiveUp("no")


@Contract.on("never again", name="never-again", retry=QUICKLY, success_callback=success, failure_callback=failure)
def never_again() -> None:
    attempt()
    raise KeyError("x")


class Patient(EventLinker, name="contract.patient", default_retry=QUICKLY):
    pass


@Patient.on("patient", name="patient")
def patient() -> None:
    if attempt() < 3:
        raise PaymentFailed("not yet")


@Patient.on("impatient", name="impatient", retry=Retry(max_attempts=1))
def impatient() -> None:
    attempt()
    raise PaymentFailed("never")


# -- Side by side -------------------------------------------------------------------------------------------------


@Contract.on("meeting", name="meeting-sync")
def meets() -> None:
    record("sync")
    arrive_and_wait_for("async", "other sync")
    record("sync left")


@Contract.on("meeting", name="meeting-other-sync")
def meets_too() -> None:
    record("other sync")
    arrive_and_wait_for("sync", "async")
    record("other sync left")


@Contract.on("meeting", name="meeting-async")
async def meets_async() -> None:
    record("async")
    await asyncio.to_thread(arrive_and_wait_for, "sync", "other sync")
    record("async left")


# -- When and how often -------------------------------------------------------------------------------------------


def runs_once() -> None:
    record("once")


def runs_once_in_the_end() -> None:
    if attempt() < 3:
        raise PaymentFailed("not yet")


def link_once(emitter: str) -> None:
    """A handler of its own for each emitter, because it runs once per process."""
    Contract.once(f"once in the end {emitter}", name=f"once in the end {emitter}", retry=QUICKLY)(runs_once_in_the_end)
    Contract.once(f"once {emitter}", "once or more", name=f"once {emitter}")(runs_once)


@Contract.on("moment", name="moment")
async def moment() -> None:
    record("moment", datetime.now(UTC).isoformat())


@Contract.on("sleep", name="sleep", timeout=0.1, failure_callback=failure, success_callback=success)
async def sleeps() -> None:
    await asyncio.sleep(60)


@Contract.on("block", name="block", timeout=0.05, failure_callback=failure, success_callback=success)
def blocks() -> None:
    threading.Event().wait(0.2)


@Contract.on("fence", name="fence")
def fence() -> None:
    record("fence")


# -- Emissions ----------------------------------------------------------------------------------------------------


def visible(emission: Emission) -> list[Any]:
    headers = {name: value for name, value in emission.headers.items() if not name.startswith("contract-")}
    return [emission.id, emission.event, emission.linker, emission.attempt, headers]


@Contract.on("look", name="look-sync")
def look() -> None:
    record("sync", *visible(current_emission()), variable.get())


@Contract.on("look", name="look-async")
async def look_async() -> None:
    await asyncio.sleep(0)
    record("async", *visible(current_emission()), variable.get())


@Contract.on("outer", name="outer-sync")
def outer() -> None:
    record("outer", current_emission().id)
    nested().emit("inner", "sync")
    nested().emit(OrderPlaced(1))


@Contract.on("outer", name="outer-async")
async def outer_async() -> None:
    await nested().aemit("inner", "async")
    record("outer", current_emission().id)


@Contract.on("inner", name="inner")
async def inner(by: str) -> None:
    record("inner", by, current_emission().id)


@Other.on("shared", name="shared")
def shared_other() -> None:
    record("other")


@Contract.on("shared", name="shared")
def shared() -> None:
    record("contract")


@Other.on("fails", name="fails")
def fails_other() -> None:
    raise PaymentFailed("other")

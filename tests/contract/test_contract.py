"""What holds for every emitter, so that a program can swap one for another."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from .emitters import Record, UnderTest
from .handlers import Contract, OrderPlaced, Other, Patient, PaymentFailed, RushOrderPlaced, variable

# The first test of each broker starts its worker.
pytestmark = pytest.mark.timeout(90)


def test_arguments_arrive(record: Record) -> None:
    """Positional and by keyword, with their types, in sync and async handlers."""
    args, kwargs = (1, "two", (3, None)), {"day": date(2024, 2, 29), "sum": Decimal("1.50"), "set": {1}, "bytes": b"x"}
    record.emit("arguments", *args, **kwargs)
    expected = [repr(args), repr(kwargs)]
    assert record.wait_for(3) == [["async", *expected], ["several"], ["sync", *expected]]


def test_many_events_are_emitted_in_one_call(record: Record) -> None:
    """Names, objects, and what was prepared, with its arguments."""
    order = OrderPlaced(7, ["tea"])
    prepared = record.emitter.prepare("arguments", 5)
    emissions = record.emit_many(["arguments", order, prepared])
    assert emissions[0].event == "arguments"
    assert emissions[1].args == (order,)
    assert emissions[2] is prepared
    lines = record.wait_for(8)
    assert sorted(line[1] for line in lines if line[0] == "sync") == ["()", "(5,)"]
    assert ["order", repr(order)] in lines


def test_an_event_object_is_the_first_argument(record: Record) -> None:
    """With more arguments after it."""
    order = OrderPlaced(7, ["tea"])
    record.emit(order, "more")
    assert record.wait_for(2) == [["order", repr(order), repr("more")], ["several"]]


def test_links_to_a_class_receive_its_subclasses(record: Record) -> None:
    """And a handler that is linked to several of the matching events runs once."""
    rush = RushOrderPlaced(7, [], 3)
    record.emit(rush)
    assert record.wait_for(3) == [["order", repr(rush)], ["rush", repr(rush)], ["several"]]


def test_exceptions_are_events(record: Record) -> None:
    """Exception receives every one, with its arguments; a string of the class's name is another event."""
    record.emit(PaymentFailed("card", 7))
    shown = repr(PaymentFailed("card", 7))
    assert record.wait_for(2) == [["exception", shown], ["value error", shown, "('card', 7)"]]
    record.emit("PaymentFailed")
    record.emit("tests.contract.handlers:PaymentFailed")
    assert [line[0] for line in record.wait_for(4)] == ["exception", "namesake", "namesake", "value error"]


kinds = pytest.mark.parametrize("kind", ["sync sync", "sync async", "async sync", "async async"])


@kinds
def test_the_success_callback_gets_what_was_returned(record: Record, kind: str) -> None:
    """And nothing for None."""
    record.emit(f"returns {kind}", {"receipt": 5})
    assert record.wait_for(1) == [["success", "{'receipt': 5}"]]
    record.emit(f"returns {kind}")
    assert record.wait_for(2) == [["success"], ["success", "{'receipt': 5}"]]


@kinds
def test_the_failure_callback_gets_the_exception(record: Record, kind: str) -> None:
    """And the success callback does not run."""
    record.emit(f"fails {kind}", "declined")
    assert record.wait_for(1) == [["failure", repr(PaymentFailed("declined"))]]


def test_a_handler_that_fails_harms_no_other(record: Record) -> None:
    """Nor do callbacks that raise, nor does a cancellation that a handler raises; what comes next runs too."""
    record.emit("neighbours", "x")
    assert record.wait_for(2) == [["good"], ["good async"]]


@pytest.mark.parametrize(("event", "handler"), [("flaky", "flaky-sync"), ("flaky async", "flaky-async")])
def test_what_fails_is_run_again_alone(record: Record, event: str, handler: str) -> None:
    """Its success is reported once, and no failure; the handler beside it runs once."""
    record.emit(event, "value")
    attempts = [["attempt", "1", "()"], *(["attempt", str(attempt), f"('{handler}',)"] for attempt in (2, 3))]
    assert record.wait_for(5) == [*attempts, ["steady"], ["success", "'value'"]]


def test_what_fails_to_the_end_is_reported_once(record: Record) -> None:
    """With what it failed with the last time."""
    record.emit("hopeless")
    lines = record.wait_for(5)
    assert [line[:2] for line in lines] == [
        *(["attempt", str(attempt)] for attempt in (1, 2, 3)), ["failure", repr(PaymentFailed("3"))], ["steady"],
    ]  # fmt: skip


def test_a_handler_may_ask_to_be_run_later(record: Record) -> None:
    """Without a policy, too."""
    record.emit("later")
    assert [line[:2] for line in record.wait_for(4)] == [
        *(["attempt", str(attempt)] for attempt in (1, 2, 3)), ["success"],
    ]  # fmt: skip


@pytest.mark.parametrize(("event", "error"), [("gives up", "GiveUp('no')"), ("never again", "KeyError('x')")])
def test_what_must_not_be_retried_is_not(record: Record, event: str, error: str) -> None:
    """Whatever else its policy says."""
    record.emit(event)
    assert record.wait_for(2) == [["attempt", "1", "()"], ["failure", error]]


def test_a_linker_has_a_policy_for_its_handlers(record: Record) -> None:
    """Which a handler's own replaces."""
    record.emit_in(Patient, "patient")
    assert [line[:2] for line in record.wait_for(3)] == [["attempt", str(attempt)] for attempt in (1, 2, 3)]
    record.emit_in(Patient, "impatient")
    assert len(record.wait_for(4)) == 4


def test_a_once_handler_is_retried(record: Record, under_test: UnderTest) -> None:
    """It runs for one emission only, as often as that takes."""
    record.emit(f"once in the end {under_test.name}")
    assert len(record.wait_for(3)) == 3
    record.emit(f"once in the end {under_test.name}")
    assert len(record.wait_for(3)) == 3


def test_handlers_run_side_by_side(record: Record) -> None:
    """Two sync ones and an async one wait for one another."""
    record.emit("meeting")
    lines = record.wait_for(6)
    assert [line[0] for line in lines] == [
        "async", "async left", "other sync", "other sync left", "sync", "sync left",
    ]  # fmt: skip


def test_once(record: Record, under_test: UnderTest) -> None:
    """For one emission, of whichever of its events."""
    for _ in range(3):
        record.emit(f"once {under_test.name}")
    assert record.wait_for(1) == [["once"]]


def test_linkers_are_namespaces(record: Record) -> None:
    """Handlers of one hear nothing of what is emitted in another, whose defaults hold there."""
    record.emit_in(Contract, "shared")
    record.emit_in(Other, "shared")
    assert record.wait_for(2) == [["contract"], ["other"]]
    record.emit_in(Other, "fails")
    assert record.wait_for(3)[1] == ["default failure", repr(PaymentFailed("other"))]


def test_current_emission(record: Record, under_test: UnderTest) -> None:
    """Handlers find the id that emit returned, and the caller's headers; context variables within a process."""
    token = variable.set("emitted")
    emission = record.emit_with({"id": f"order 7 of {under_test.name}", "headers": {"request": "r-1"}}, "look")
    variable.reset(token)
    assert emission.id == f"order 7 of {under_test.name}"
    seen = [repr(each) for each in (emission.id, "look", "contract", 1, {"request": "r-1"})]
    seen.append(repr("emitted" if under_test.shares_context else "unset"))
    assert record.wait_for(2) == [["async", *seen], ["sync", *seen]]


def test_handlers_may_emit(record: Record) -> None:
    """Sync and async ones; what they emit has ids of its own."""
    emission = record.emit("outer")
    lines = record.wait_for(6)
    ids = {line[-1] for line in lines if line[0] == "inner"}
    assert [line[:2] for line in lines if line[0] != "order"] == [
        ["inner", "'async'"],
        ["inner", "'sync'"],
        ["outer", repr(emission.id)],
        ["outer", repr(emission.id)],
        ["several"],
    ]
    assert len(ids - {repr(emission.id)}) == 2


def test_aemit(record: Record) -> None:
    """Does what emit does."""
    emission = record.aemit(OrderPlaced(1))
    assert emission.event == "tests.contract.handlers:OrderPlaced"
    assert [line[0] for line in record.wait_for(2)] == ["order", "several"]


def test_prepare_and_send(record: Record) -> None:
    """What was prepared runs when it is sent, as what it was."""
    emission = record.emitter.prepare("look")
    record.pass_fence()
    assert not record.lines()
    assert record.send(emission) == emission
    assert {line[1] for line in record.wait_for(2)} == {repr(emission.id)}


@pytest.mark.parametrize("option", ["delay", "at"])
def test_nothing_runs_before_it_is_due(record: Record, option: str) -> None:
    """Whether that is given as seconds or as a moment."""
    later = 0.5 if option == "delay" else datetime.now(UTC) + timedelta(seconds=0.5)
    emission = record.emit_with({option: later}, "moment")
    ((_, moment),) = record.wait_for(1)
    assert emission.due is not None
    assert datetime.fromisoformat(moment.strip("'")) >= emission.due


def test_what_has_expired_is_dropped(record: Record) -> None:
    """It was the caller's wish; what has not, runs."""
    emission = record.emitter.with_options(expires=1).prepare("moment")
    record.send(replace(emission, expires=emission.timestamp))
    record.emit_with({"expires": timedelta(hours=1)}, "moment")
    assert [line[0] for line in record.wait_for(1)] == ["moment"]


@pytest.mark.parametrize("event", ["sleep", "block"])
def test_a_handler_that_takes_too_long_has_failed(record: Record, event: str) -> None:
    """An async one is cancelled, a sync one has failed when it ends."""
    record.emit(event)
    ((role, error),) = record.wait_for(1)
    assert role == "failure"
    assert error.startswith(f"HandlerTimeout('handler {event} took longer than its timeout of ")


def test_an_unknown_event_does_no_harm(record: Record) -> None:
    """Nothing runs, and what comes next does."""
    record.emit("nobody has linked this")
    assert record.wait_for(0) == []

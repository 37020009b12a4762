"""What a ledger keeps of a failure, and who may be in a process together."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from pyventus import EventHandler, WorkerLost
from pyventus.emission import now
from pyventus.emitters.celery.claims import Owed
from pyventus.emitters.celery.suspects import Room
from pyventus.running import Result

from .conftest import wait_until

HANDLER = EventHandler(print, id="h")


def failure(error: BaseException, again: float | None = None) -> Owed:
    try:
        raise error
    except BaseException as caught:
        return Owed.of(Result(HANDLER, caught, again))


def test_a_retry_is_owed_at_its_moment() -> None:
    owed = Owed.read(failure(ValueError("x"), again=90.0).note())
    assert owed.due is not None
    assert timedelta(seconds=80) < owed.due - now() < timedelta(seconds=100)


def test_a_dead_letter_is_owed_with_what_happened() -> None:
    owed = Owed.read(failure(ValueError("lost\nsoul")).note())
    assert (owed.due, owed.reason, owed.error) == (None, "failed", "ValueError: lost soul")
    assert owed.traceback.endswith("ValueError: lost\nsoul\n")
    assert Owed.read(failure(WorkerLost("x")).note()).reason == "lost"


@pytest.mark.parametrize("text", ["x" * 100_000, "\x00" * 100_000, "€" * 100_000, "\ud800" * 100_000, '"\\' * 50_000])
def test_a_note_is_never_longer_than_a_ledger_takes(text: str) -> None:
    """Its end is cut before its sense is."""
    note = failure(ValueError(text)).note()
    assert len(note) <= 4000
    assert note.encode()
    owed = Owed.read(note)
    assert owed.due is None
    assert owed.error


def test_a_note_of_somebody_elses_is_no_reason_to_fail() -> None:
    assert Owed.read("{").error


# -- Who is in a process ------------------------------------------------------------------------------------------


def test_many_are_together() -> None:
    room, meeting = Room(), threading.Barrier(5)

    def meet() -> None:
        with room.shared():
            meeting.wait(20)

    _run(*[meet] * 5)


def test_one_is_alone_when_the_others_have_left_and_before_others_come() -> None:
    """Whoever comes while it waits comes after it; it does not wait for ever."""
    room, said, leave = Room(), list[str](), threading.Event()
    inside = threading.Event()

    def first() -> None:
        with room.shared():
            inside.set()
            assert leave.wait(20)
            said.append("first left")

    def alone() -> None:
        assert inside.wait(20)
        with room.alone():
            said.append("alone")

    def late() -> None:
        wait_until(lambda: room._waiting_alone > 0)
        leave.set()
        with room.shared():
            said.append("late")

    _run(first, alone, late)
    assert said == ["first left", "alone", "late"]


def test_two_that_must_be_alone_take_turns() -> None:
    room, inside, most = Room(), 0, 0

    def alone() -> None:
        nonlocal inside, most
        for _ in range(200):
            with room.alone():
                inside += 1
                most = max(most, inside)
                inside -= 1

    _run(*[alone] * 4)
    assert most == 1


def test_an_error_leaves_the_room() -> None:
    room = Room()
    for place in (room.alone, room.shared, room.alone):
        with pytest.raises(ValueError, match="x"), place():
            raise ValueError("x")
    with room.alone():
        pass


def _run(*calls: Any) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()

"""A record holds a whole letter, and whatever somebody has put into a store in its place breaks nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyventus.dead_letters.base import DeadLetter
from pyventus.dead_letters.records import read_record, write_record

texts = st.text(st.characters(), max_size=20)
zones = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=-30))])
letters = st.builds(
    DeadLetter,
    id=st.text(st.characters(), min_size=1, max_size=20),
    queue=st.just("orders"),
    reason=st.sampled_from(["failed", "lost", "unhandled", "undecodable", "too old", "refused"]),
    text=texts,
    died=st.datetimes(timezones=zones),
    message_id=texts,
    emission=texts,
    event=texts,
    linker=texts,
    handlers=st.lists(texts, max_size=3).map(tuple),
    attempt=st.integers(0, 2**31 - 1),
    replay=st.integers(0, 2**31 - 1),
    timestamp=st.none() | st.datetimes(timezones=zones),
    error=texts,
    traceback=texts,
)
LETTER = DeadLetter(queue="orders", reason="failed", text="pv1...", message_id="m", handlers=("a", "b"))


@given(letters)
def test_round_trip(letter: DeadLetter) -> None:
    record = write_record(letter)
    assert record.isascii()
    assert read_record(record, "orders", letter.id) == letter
    assert read_record(record.encode(), "orders") == letter


@given(
    st.binary() | st.text(st.characters(blacklist_categories=["Cs"])) | st.sampled_from([b"[" * 200_000, b"1" * 9_999])
)
def test_garbage_is_unreadable(record: str | bytes) -> None:
    letter = read_record(record, "orders", "id")
    assert (letter.id, letter.queue, letter.reason, letter.text) == ("id", "orders", "unreadable", "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda each: st.lists(each, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from(sorted(json.loads(write_record(LETTER)))), json_values)
def test_a_forged_field_raises_nothing(name: str, value: Any) -> None:
    """And what is read has the types that it has to have, or says that it cannot be read."""
    letter = read_record(json.dumps({**json.loads(write_record(LETTER)), name: value}), "orders")
    assert read_record(write_record(letter), "orders").reason in (letter.reason, "unreadable")
    assert all(type(text) is str for text in (letter.id, letter.event, letter.text, letter.error, *letter.handlers))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"v": 2}, "its record cannot be read: it is not of version 1"),
        ({"queue": "mail"}, "it is of queue 'mail'"),
        ({"id": "other"}, "it is of letter 'other'"),
        ({"reason": "unreadable"}, "its reason is not what it has to be"),
        ({"died": "2026-01-01T00:00:00"}, "its died is not what it has to be"),
        ({"died": "yesterday"}, "its died is not"),
        ({"handlers": "ab"}, "its handlers is not"),
        ({"attempt": True}, "its attempt is not"),
        ({"attempt": -1}, "its attempt is not"),
        ({"event": None}, "its event is not"),
        ({"id": ""}, "its id is not"),
    ],
)
def test_says_what_is_wrong(changes: dict[str, Any], error: str) -> None:
    letter = read_record(json.dumps({**json.loads(write_record(LETTER)), **changes}), "orders", LETTER.id)
    assert letter.reason == "unreadable"
    assert error in letter.error


def test_says_what_is_missing() -> None:
    letter = read_record('{"v":1,"id":"a"}', "orders")
    assert letter.error.startswith("its record cannot be read: it has no queue, reason, died,")


def test_unreadable_ones_differ_and_stay_the_same() -> None:
    """Where a store has no id for a record, its content gives one to remove it by."""
    first, second, again = (read_record(each, "orders").id for each in ("1", "2", b"1"))
    assert first != second
    assert first == again
    assert datetime.now(UTC) > read_record("1", "orders").died

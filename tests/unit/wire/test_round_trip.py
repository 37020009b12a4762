"""JSON carries values exactly."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid1
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyventus.emission import Emission
from pyventus.wire import JSONSerializer, PickleSerializer

from .classes import Bits, Colour, Frozen, HashedChild, Level, Money, Open, Plain, Point, Private, Right, Size
from .same import same

SERIALIZER = JSONSerializer()


def round_trip(*args: Any, **kwargs: Any) -> Emission:
    data = SERIALIZER.dumps(Emission(event="e", args=args, kwargs=kwargs))
    assert data.isascii()
    return SERIALIZER.loads(data)


def back(value: Any) -> Any:
    (made,) = round_trip(value).args
    return made


zones = st.one_of(
    st.none(),
    st.just(UTC),
    st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(timezone),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
        st.text(max_size=5).filter(lambda s: s.isascii()),
    ),
    st.sampled_from(["Europe/Paris", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "UTC"]).map(ZoneInfo),
)
texts = st.text(st.characters(exclude_categories=())) | st.text("\ud800\udc00\ud83d\ude00a$", max_size=6)
hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**9), 10**9).map(lambda number: number * 10**4290),
    st.floats(),
    texts,
    st.binary(max_size=20),
    st.builds(lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), zones, st.sampled_from([0, 1])),
    st.dates(),
    st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), zones, st.sampled_from([0, 1])),
    st.timedeltas(),
    st.decimals().filter(lambda d: not d.is_snan()),
    st.builds(lambda digits, exp: Decimal((0, digits, exp)), st.just((1, 2, 3)), st.integers(-9999, 9999)),
    st.uuids(),
    st.sampled_from([*Colour, Colour.CRIMSON, *Size, *Level, *Right, *Bits, Right(0), Right(3), Bits(3), Bits(8)]),
    st.builds(Money, st.integers()),
)
scalars = hashable_scalars | st.just(Decimal("-sNaN123")) | st.builds(complex, st.floats(), st.floats())
hashables = st.recursive(
    hashable_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Frozen, inner, inner),
        st.builds(HashedChild, inner, y=inner),
    ),
    max_leaves=4,
)
errors = st.sampled_from([ValueError, KeyError, OSError, Exception, SystemExit])


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
        st.dictionaries(texts | st.just("$"), inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.builds(Plain, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Private, inner),
        st.builds(lambda x, y: Open(x=x, y=y), inner, inner),
        st.builds(lambda cls, args: cls(*args), errors, st.lists(inner, max_size=3)),
    )


values = st.recursive(scalars, containers, max_leaves=12)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(values, max_size=3), st.dictionaries(texts, values, max_size=3))
@example([float("-nan"), -0.0, {float("nan"), float("nan")}], {"$": {"$": 1}})
@example(["\ud83d\ude00", "\U0001f600", {"\ud800\udc00": 1, "\U00010000": 2}], {"\ud800\udc00": 1})
def test_any_nesting_comes_back_the_same(args: list[Any], kwargs: dict[str, Any]) -> None:
    """What goes in comes out with the same types and values, however it is nested."""
    made = round_trip(*args, **kwargs)
    assert same(made.args, tuple(args))
    assert same(made.kwargs, kwargs)


@pytest.mark.parametrize(
    "value",
    [
        float("inf"),
        -math.inf,
        float("nan"),
        -0.0,
        5e-324,
        2**63,
        -(10**4300) + 1,
        "",
        '\x00\x7f\n"\\',
        b"",
        b"\xff\x00",
        (),
        set(),
        frozenset(),
        {},
        {"$": "tuple", "v": []},
        {1: 1, True and 2: 2, None: 3, (1, (2,)): 4},
        [[], [()]],
        datetime.min,
        datetime.max,
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(seconds=1, microseconds=5))),
        datetime(2024, 1, 1, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "Zulu")),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        time(1, 2, 3, 4, fold=1, tzinfo=UTC),
        date.min,
        timedelta.min,
        timedelta.max,
        timedelta.resolution,
        Decimal("sNaN"),
        Decimal("-NaN12"),
        Decimal("Infinity"),
        Decimal("-0E+5"),
        Decimal("1E+999999"),
        Decimal("1.10"),
        UUID(int=0),
        uuid1(),
        Colour.RED,
        Colour.MIXED,
        Colour.UNHASHABLE,
        Right(0),
        Right.READ | Right.WRITE,
    ],
)
def test_edges_come_back_the_same(value: Any) -> None:
    """The edges of each type survive."""
    assert same(back(value), value)


def test_deepest_nesting_that_is_permitted_travels() -> None:
    """A hundred containers in one another travel."""
    value: Any = 1
    for _ in range(100):
        value = (value,)
    assert same(back(value), value)


def test_what_json_carries_stands_plainly() -> None:
    """The bytes of plain values are the JSON that anybody would expect."""
    data = SERIALIZER.dumps(Emission(event="e", args=(1, "a", [None, True, 1.5]), kwargs={"k": {"x": "y"}}))
    assert data == b'["e",[1,"a",[null,true,1.5]],{"k":{"x":"y"}}]'


@pytest.mark.parametrize("character", [chr(code) for code in range(0x100)])
def test_a_long_text_is_written_as_json_writes_it(character: str) -> None:
    """Whether it has a character to escape, and where, or not."""
    for text in (character + "x" * 200, "x" * 200 + character):
        content = ["e", [text, -5, 2**62, "short"], {'na"me': text, "number": 0}]
        data = SERIALIZER.dumps(Emission(event="e", args=tuple(content[1]), kwargs=dict(content[2])))
        assert data == json.dumps(content, separators=(",", ":")).encode()


def test_only_event_and_arguments_are_in_the_bytes() -> None:
    """The rest of an emission travels in the envelope's head."""
    made = SERIALIZER.loads(SERIALIZER.dumps(Emission(id="secret id", event="e", headers={"a": "b"})))
    assert (made.id, made.event, made.args, made.kwargs, made.headers) == ("", "e", (), {}, {})


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(scalars, max_size=3))
def test_pickle_comes_back_the_same(args: list[Any]) -> None:
    """Pickle carries the same triple."""
    serializer = PickleSerializer()
    made = serializer.loads(serializer.dumps(Emission(event="e", args=tuple(args), kwargs={"a": 1})))
    assert same(made.args, tuple(args))
    assert made.kwargs == {"a": 1}

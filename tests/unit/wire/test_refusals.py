"""What cannot travel, and what arrives malformed."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from datetime import datetime, tzinfo
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyventus.emission import Emission
from pyventus.errors import NotSerializable, Undecodable
from pyventus.events import class_name, register
from pyventus.wire import JSONSerializer, PickleSerializer
from pyventus.wire.json import MAX_ITEMS

from .classes import Colour, Frozen, Level, Model, Money, Open, Plain, Point, Private, Right

SERIALIZER = JSONSerializer()


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    pass


@dataclasses.dataclass
class Listed(list):
    x: int = 0


@dataclasses.dataclass
class Customer:
    address: Any


class Mapped:
    __mapper__ = "SQLAlchemy's"
    __dataclass_fields__: dict[str, Any] = {}  # noqa: RUF012


Named = collections.namedtuple("Named", "x")


def dumps(*args: Any, **kwargs: Any) -> bytes:
    return SERIALIZER.dumps(Emission(event="e", args=args, kwargs=kwargs))


def loads(text: str | bytes) -> Emission:
    return SERIALIZER.loads(text if isinstance(text, bytes) else text.encode())


def loads_value(node: Any) -> Any:
    return loads(json.dumps(["e", [node], {}])).args[0]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Text("x"),
        Named(1),
        collections.OrderedDict(),
        Listed(),
        range(3),
        bytearray(b"x"),
        len,
        int,
        lambda: None,
        datetime(2024, 1, 1, tzinfo=Zone()),
        Mapped(),
        ...,
        10**4300,
        -(10**4300),
        {Text("x"): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(value: Any) -> None:
    """Subclasses and strangers do not travel as something else."""
    with pytest.raises(NotSerializable):
        dumps(value)


def test_the_error_names_type_place_and_cures() -> None:
    """Whoever reads it knows what to do."""
    with pytest.raises(NotSerializable) as caught:
        dumps(1, [Customer({"street": (object(),)})])
    text = str(caught.value)
    assert text.startswith("args[1][0].address['street'][0] of the emission of 'e' cannot travel")
    for part in ("builtins:object", "EventLinker.register(object, encode=", "send an id", "serializer='pickle'"):
        assert part in text


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((object(),), {}, "args[0] of"),
        ((), {"customer": object()}, "kwargs['customer'] of"),
        (({object(): 1},), {}, "args[0] (a key) of"),
        (({5: object()},), {}, "args[0][5] of"),
        (({(1,): object()},), {}, "args[0][<tuple>] of"),
        ((Customer(Customer(len)),), {}, "args[0].address.address of"),
        ((Open(y=len),), {}, "args[0] (extra fields and private attributes)['y'] of"),
    ],
)
def test_the_path_leads_to_the_value(args: Any, kwargs: Any, path: str) -> None:
    """Each container adds its step."""
    with pytest.raises(NotSerializable) as caught:
        dumps(*args, **kwargs)
    assert path in str(caught.value)


def test_unset_fields_are_named() -> None:
    """An instance that lacks a field cannot travel."""
    value = Customer(1)
    del value.address
    with pytest.raises(NotSerializable, match=r"args\[0\]\.address .*not set"):
        dumps(value)


def test_cycles_are_refused() -> None:
    """What contains itself is no tree."""
    for value in ([], {}):
        value.append(value) if isinstance(value, list) else value.update(a=value)
        with pytest.raises(NotSerializable, match=r"contains itself") as caught:
            dumps(value)
        assert len(str(caught.value)) < 300


def test_too_deep_is_refused() -> None:
    """A hundred and one containers are one too many."""
    value: Any = 1
    for _ in range(101):
        value = (value,)
    with pytest.raises(NotSerializable, match="100 deep"):
        dumps(value)


def test_what_doubles_at_each_level_is_refused() -> None:
    """A small object graph may be a huge tree."""
    value: Any = 1
    for _ in range(60):
        value = [value, value]
    with pytest.raises(NotSerializable, match="more than"):
        dumps(value)


def test_a_codec_that_raises_is_named() -> None:
    """The error of the user's encode is the cause."""

    class Odd:
        pass

    register(Odd, encode=lambda odd: 1 / 0, decode=lambda value: value)
    with pytest.raises(NotSerializable, match=r"args\[0\].*encode of .*Odd raised ZeroDivisionError") as caught:
        dumps(Odd())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_codec_that_makes_itself_ends() -> None:
    """Encoding an instance to itself stops at the limit."""

    class Loop:
        pass

    register(Loop, encode=lambda loop: loop, decode=lambda value: value)
    with pytest.raises(NotSerializable):
        dumps(Loop())


def test_argument_names_must_be_text() -> None:
    """An emission made by hand cannot smuggle other keys in."""
    with pytest.raises(NotSerializable, match="names of the keyword arguments"):
        SERIALIZER.dumps(Emission(event="e", kwargs={1: 2}))  # type: ignore[dict-item]


def test_pickle_refuses_what_it_cannot_carry() -> None:
    """Errors of pickle are ours."""
    serializer = PickleSerializer()
    with pytest.raises(NotSerializable, match="pickle"):
        serializer.dumps(Emission(event="e", args=(lambda: None,)))
    for data in (b"", b"junk", b"\x80\x05K\x01.", b"cno_such_module\nname\n."):
        with pytest.raises(Undecodable):
            serializer.loads(data)


BOMBS = {
    "brackets": b"[" * 200_000,
    "deep tags": b'["e",[' + b'{"$":"tuple","v":[' * 150 + b"]}" * 150 + b"],{}]",
    "deep lists": b'["e",[' + b"[" * 101 + b"]" * 101 + b"],{}]",
    "objects": b'{"a":' * 100_000,
    "digits": b'["e",[' + b"9" * 5000 + b"],{}]",
    "items": b'["e",[[' + b"0," * 1_000_001 + b"0]],{}]",
    "exponent": b'["e",[{"$":"decimal","v":"1e99999999999999999999"}],{}]',
    "days": b'["e",[{"$":"timedelta","v":[999999999999999999999,0,0]}],{}]',
    "flag": b'["e",[{"$":"enum","c":"x","v":' + b"9" * 5000 + b"}],{}]",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_undecodable(data: bytes) -> None:
    """Depth, digits and items are bounded."""
    with pytest.raises(Undecodable):
        loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[1,2,3]",
        b'["e",[],[]]',
        b'["e",{},{}]',
        b'["e",[],{},1]',
        b"[null,[],{}]",
        b'["e",[NaN],{}]',
        b'["e",[-Infinity],{}]',
        b"\xff",
        b'["e",[],{}',
        b'["e",[],{"$":"dict","v":[[1,2]]}]',
        b'["e",[],{"$":"tuple","v":[]}]',
    ],
)
def test_what_is_no_emission_is_undecodable(data: bytes) -> None:
    """The outermost form is checked."""
    with pytest.raises(Undecodable):
        loads(data)


P, F, E = class_name(Plain), class_name(Frozen), class_name(Colour)


@pytest.mark.parametrize(
    "node",
    [
        {"$": "nope"},
        {"$": None},
        {"$": ["tuple"]},
        {"$": "__class__"},
        {"$": "tuple"},
        {"$": "tuple", "v": "abc"},
        {"$": "tuple", "v": {"a": 1}},
        {"$": "set", "v": [[1]]},
        {"$": "set", "v": 1},
        {"$": "dict", "v": [[1]]},
        {"$": "dict", "v": [[1, 2, 3]]},
        {"$": "dict", "v": ["ab"]},
        {"$": "dict", "v": [[[], 1]]},
        {"$": "float", "v": "1"},
        {"$": "float", "v": 1},
        {"$": "float", "v": []},
        {"$": "bytes", "v": "!"},
        {"$": "bytes", "v": 1},
        {"$": "str", "v": "/w=="},
        {"$": "datetime", "v": "x"},
        {"$": "datetime", "v": 1},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "z": "../../etc/passwd"},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "z": "America"},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "z": "No/Where"},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "z": [1, 0, 0]},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "z": [0, 0, 0, 1]},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "z": 5},
        {"$": "datetime", "v": "2024-01-01T00:00:00", "f": 2},
        {"$": "time", "v": "25:00"},
        {"$": "date", "v": "2024-13-01"},
        {"$": "timedelta", "v": [1, 2]},
        {"$": "timedelta", "v": [1.5, 0, 0]},
        {"$": "decimal", "v": "x"},
        {"$": "decimal", "v": 1},
        {"$": "uuid", "v": "x"},
        {"$": "uuid", "v": 5},
        {"$": "enum", "c": E, "n": "NONE"},
        {"$": "enum", "c": E, "n": "__class__"},
        {"$": "enum", "c": E},
        {"$": "enum", "c": P, "n": "RED"},
        {"$": "enum", "c": E, "v": 1},
        {"$": "enum", "c": class_name(Level), "v": 1},
        {"$": "enum", "c": class_name(Right), "v": "x"},
        {"$": "enum", "c": class_name(Right), "v": 64},
        {"$": "enum", "c": ["x"], "n": "RED"},
        {"$": "object", "c": E, "f": {}},
        {"$": "object", "c": class_name(Money), "f": {}},
        {"$": "object", "c": P},
        {"$": "object", "c": P, "f": []},
        {"$": "object", "c": 1, "f": {}},
        {"$": "object", "c": "os:system", "f": {}},
        {"$": "object", "c": class_name(Model), "f": {"name": 1}, "r": 1},
        {"$": "object", "c": class_name(Model), "f": {"name": 1}, "r": [1]},
        {"$": "object", "c": class_name(Model), "f": {"name": 1}, "r": [[], 5, 5]},
        {"$": "object", "c": class_name(Point), "f": {}},
        {"$": "object", "c": class_name(Private), "f": {}},
        {"$": "codec", "c": P, "v": 1},
        {"$": "codec", "c": "builtins:complex", "v": 1},
        {"$": "codec", "c": "builtins:eval", "v": "1"},
        {"$": "exception", "c": P, "v": []},
        {"$": "exception", "c": "builtins:ValueError"},
        {"$": "exception", "c": "builtins:eval", "v": []},
        {"$": "exception", "c": "builtins:UnicodeDecodeError", "v": [1]},
        {"$": "exception", "c": "builtins:ExceptionGroup", "v": ["x", []]},
    ],
    ids=str,
)
def test_malformed_values_are_undecodable(node: Any) -> None:
    """No other error escapes."""
    with pytest.raises(Undecodable):
        loads_value(node)


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ({"$": "enum", "c": P, "n": "RED"}, "an enum"),
        ({"$": "enum", "c": E, "v": 1}, "a flag"),
        ({"$": "exception", "c": P, "v": []}, "an exception"),
        ({"$": "object", "c": E, "f": {}}, "a class with fields"),
        ({"$": "codec", "c": P, "v": 1}, "a class with a registered codec"),
    ],
)
def test_known_classes_of_another_kind_are_named(node: Any, kind: str) -> None:
    """A class that has become something else since says so, and is not touched."""
    with pytest.raises(Undecodable, match=rf"class '{node['c']}' was {kind} where it was sent"):
        loads_value(node)


@pytest.mark.parametrize("key", ["a.b/c", "/etc/passwd", "../x", "Europe/Paris/", "", "a\x00"])
def test_only_names_of_zones_reach_zoneinfo(key: str) -> None:
    """zoneinfo would import a package of that name."""
    with pytest.raises(Undecodable, match="a time zone that is none"):
        loads_value({"$": "datetime", "v": "2024-01-01T00:00:00", "z": key})


def test_the_limit_of_items_is_the_same_on_both_sides() -> None:
    """What is sent can be received."""
    most = dumps([None] * (MAX_ITEMS - 1))
    assert len(loads(most).args[0]) == MAX_ITEMS - 1
    with pytest.raises(NotSerializable, match="more than 1,000,000 values"):
        dumps([None] * MAX_ITEMS)
    with pytest.raises(Undecodable, match="more than 1,000,000 values"):
        loads(most.replace(b"[null,", b"[null,null,", 1))


def test_decimal_junk_is_undecodable_in_any_context() -> None:
    """A context that does not trap makes no NaN of junk."""
    with localcontext() as context:
        context.traps[InvalidOperation] = False
        with pytest.raises(Undecodable):
            loads_value({"$": "decimal", "v": "1.2.3"})
        assert loads_value({"$": "decimal", "v": "-NaN1"}).is_nan()
        assert loads_value({"$": "decimal", "v": "1.5"}) == Decimal("1.5")


def test_a_decode_that_raises_is_undecodable() -> None:
    """The error of the user's decode is the cause."""

    class Odd2:
        pass

    register(Odd2, encode=lambda odd: 1, decode=lambda value: value / 0)
    with pytest.raises(Undecodable) as caught:
        loads(dumps(Odd2()))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


TAGS = "float str bytes tuple set frozenset dict datetime date time timedelta decimal uuid enum object exception codec"

nodes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "e", P, E, F, "RED", "a", "builtins:OSError"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "v"]), inner, max_size=3)
        | st.fixed_dictionaries(
            {"$": st.sampled_from(TAGS.split())},
            optional=dict.fromkeys("vcfrnzm", inner),
        )
    ),
    max_leaves=10,
)


@settings(max_examples=400, deadline=None)
@given(nodes)
def test_random_trees_decode_or_are_undecodable(node: Any) -> None:
    """Nothing but a value or Undecodable comes out of any JSON."""
    with contextlib.suppress(Undecodable):
        loads_value(node)


# -- What a message makes of few bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [2_000_001, -2_000_001, 999_999_999_999])
def test_exponents_are_bounded_on_both_sides(exponent: int) -> None:
    """An int or a plain text made of one would fill the memory."""
    with pytest.raises(NotSerializable, match=r"args\[0\].*exponent is beyond 2,000,000: send it as text"):
        dumps(Decimal(f"1e{exponent}"))
    with pytest.raises(Undecodable, match="exponent is beyond"):
        loads_value({"$": "decimal", "v": f"1e{exponent}"})
    assert loads(dumps(Decimal("1e-2000000"))).args == (Decimal("1e-2000000"),)


@dataclasses.dataclass
class Scanned:
    one: int = 0
    two: int = 0


def test_defaults_are_not_searched_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a few hundred fields a quarter of a megabyte took ten seconds."""
    register(Scanned)
    loads(dumps(Scanned()))
    monkeypatch.setattr(dataclasses, "fields", None)
    assert loads_value({"$": "object", "c": class_name(Scanned), "f": {}}) == Scanned()


def test_fields_that_are_made_count_as_values() -> None:
    """Else fifty bytes would make as many values as the class has fields."""
    wide = dataclasses.make_dataclass("Wide", [(f"f{i}", int, 0) for i in range(1000)])
    register(wide)
    node = {"$": "object", "c": class_name(wide), "f": {}}
    assert loads_value([node] * 900)
    with pytest.raises(Undecodable, match="more than 1,000,000 values"):
        loads_value([node] * 1001)


def test_long_names_of_zones_do_not_reach_zoneinfo() -> None:
    """It imports one package for each part."""
    for key in ("a/" * 32 + "a", "a" * 65):
        with pytest.raises(Undecodable, match="a time zone that is none"):
            loads_value({"$": "datetime", "v": "2024-01-01T00:00:00", "z": key})


@pytest.mark.parametrize("name", ["x:y\nforged", "x" * 10_000, "x:y\x1b[2J", "m:" + "y" * 5000])
def test_names_of_unknown_classes_forge_no_log_line(name: str) -> None:
    """The name stands in the log."""
    with pytest.raises(Undecodable, match="is not known") as caught:
        loads_value({"$": "object", "c": name, "f": {}})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_what_is_plain_keeps_to_the_limits_of_all_else() -> None:
    """It takes a short way, on which no more may pass than on the long one."""
    many = tuple(range(MAX_ITEMS + 1))
    with pytest.raises(NotSerializable, match="more than 1,000,000 values"):
        SERIALIZER.dumps(Emission(event="Event", args=many))
    with pytest.raises(Undecodable, match="more than 1,000,000 values"):
        SERIALIZER.loads(f'["Event",{list(many)},{{}}]'.encode())
    with pytest.raises(Undecodable):
        SERIALIZER.loads(b'["Event",[],{"$":"float","v":"nan"}]')

"""Instances of users' classes and exceptions."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pydantic
import pytest

from pyventus.emission import Emission
from pyventus.errors import NotSerializable, Undecodable, UnknownClass
from pyventus.events import register
from pyventus.wire import JSONSerializer

from . import classes as c
from .same import same

SERIALIZER = JSONSerializer()


def back(value: Any) -> Any:
    (made,) = SERIALIZER.loads(SERIALIZER.dumps(Emission(event="e", args=(value,)))).args
    return made


def sent(value: Any, change: Any = lambda node: None) -> Any:
    """What comes back of a value after `change` has edited its node, as another version of its class would."""
    event, (node,), kwargs = json.loads(SERIALIZER.dumps(Emission(event="e", args=(value,))))
    change(node)
    (made,) = SERIALIZER.loads(json.dumps([event, [node], kwargs]).encode()).args
    return made


@pytest.mark.parametrize(
    "value",
    [
        c.Plain(1, [2]),
        c.Frozen({1}, ()),
        c.FrozenChild(1, c=c.Plain()),
        c.Box((1,)),
        c.Renamed(b"x"),
        c.Point(1),
        c.Point3(1, w=2),
        c.Private(1, 2),
        c.Hashed((1,)),
        c.OldHashed(1),
        c.HashedChild(1, y=2),
        c.PydanticDataclass(1),
        c.Money(5),
        c.Root([1, (2,)]),
        c.Open(x=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_instances_come_back_the_same(value: Any) -> None:
    """Fields of all kinds of classes survive, with their types."""
    made = back(value)
    assert same(made, value)
    assert made == value
    if type(value).__hash__ is not None and not isinstance(value, c.FrozenChild | c.Frozen | c.Point):
        assert hash(made) == hash(value)


def test_init_and_post_init_do_not_run_again() -> None:
    """A dataclass is rebuilt from its fields alone."""
    value = c.Strict(seed=4)
    before = c.Strict.counter
    assert back(value).total == 8
    assert c.Strict.counter == before


def test_attrs_converters_and_validators_do_not_run_again() -> None:
    """An attrs class may hold what its validators would refuse by now."""
    value = c.Private(1)
    object.__setattr__(value, "shown", "text")
    assert back(value).shown == "text"


def test_pydantic_models_are_rebuilt_without_validation() -> None:
    """What was set, what is extra and what is private survives without a validator."""
    value = c.Model.model_construct(_fields_set={"name"}, name="never twice")
    value._secret = ("changed",)
    made = back(value)
    assert made.__dict__ == value.__dict__
    assert made.model_fields_set == {"name"}
    assert made.__pydantic_private__ == value.__pydantic_private__ == {"_secret": ("changed",)}
    assert made == value
    opened = c.Open(x=1, extra=(2,))
    assert back(opened) == opened
    assert back(opened).model_fields_set == {"x", "extra"}
    assert back(c.Model(name=1)).model_copy() == c.Model(name=1)


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (c.Plain(5, [6]), "a", 1),
        (c.Plain(5, [6]), "b", []),
        (c.Frozen(1, 2), "b", None),
        (c.Point(1, 5, [6]), "y", 2),
        (c.Point(1, 5, [6]), "z", []),
        (c.Private(1, 5), "shown", 7),
        (c.Private(1, 5), "late", (5, "late")),
        (c.Private(1, 5, [6]), "many", []),
        (c.Model(name=1, count=5), "count", 3),
        (c.Model(name=1, tags=[5]), "tags", []),
        (c.Model(name=1, count=5, doubled=1), "doubled", 10),
        (c.PydanticDataclass(1, 9), "y", 4),
        (c.FieldsError(1, 2), "detail", "none"),
    ],
)
def test_missing_fields_take_their_defaults(value: Any, name: str, expected: Any) -> None:
    """A message from before a field existed fits."""
    made = sent(value, lambda node: node["f"].pop(name))
    assert same(getattr(made, name), expected)


def test_defaults_are_not_shared() -> None:
    """Each instance has a list of its own."""
    made = [sent(value, lambda node: node["f"].pop("tags")) for value in [c.Model(name=1)] * 2]
    assert made[0].tags is not made[1].tags


def test_missing_private_attributes_take_their_defaults() -> None:
    """A message from before a pydantic class had private attributes fits."""
    assert sent(c.Model(name=1), lambda node: node.pop("r"))._secret == 5


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (c.Frozen(1), "a"),
        (c.Strict(seed=1), "total"),
        (c.Point(1), "x"),
        (c.Private(1), "_hidden"),
        (c.Model(name=1), "name"),
    ],
)
def test_missing_fields_without_default_are_undecodable(value: Any, name: str) -> None:
    """The error names class and field."""
    with pytest.raises(Undecodable, match=rf"{name}.*{type(value).__name__}|{type(value).__name__}.*{name}"):
        sent(value, lambda node: node["f"].pop(name))


@pytest.mark.parametrize(
    "value", [c.Plain(), c.Frozen(1), c.Point(1), c.Point3(1, w=1), c.Private(1), c.Model(name=1), c.FieldsError(1)]
)
def test_unknown_fields_are_ignored(value: Any) -> None:
    """A message from a newer class fits, even if the new field holds an unknown class."""
    made = sent(value, lambda node: node["f"].update(new={"$": "object", "c": "no:Where", "f": {}}))
    assert same(made, value)
    assert not hasattr(made, "new")


def test_extra_fields_are_dropped_where_they_are_not_allowed() -> None:
    """A pydantic class that has no extra fields gets none."""

    def change(node: Any) -> None:
        node["r"][1] = {"extra": 1}
        node["r"][0]["v"].append("extra")

    made = sent(c.Model(name=1), change)
    assert made.__pydantic_extra__ is None
    assert made.model_fields_set == {"name"}


def test_unknown_classes_name_themselves() -> None:
    """A class that is neither linked nor registered is refused by name."""

    @dataclasses.dataclass
    class Stranger:
        x: int

    with pytest.raises(UnknownClass, match="Stranger") as caught:
        back(Stranger(1))
    assert caught.value.name.endswith("Stranger")


def test_a_codec_comes_before_fields() -> None:
    """A registered codec replaces the fields, and for that class only."""

    @dataclasses.dataclass
    class Whole:
        x: int

    class Sub(Whole):
        pass

    register(Whole, encode=lambda whole: "one", decode=lambda text: text * 2)
    register(Sub)
    assert back(Whole(1)) == "oneone"
    assert back(Sub(3)) == Sub(3)


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy, repr])
def test_rebuilt_instances_work(function: Any) -> None:
    """Rebuilt instances are whole enough for what one does with them."""
    for value in (c.Private(1), c.Model(name=1), c.Open(y=1), c.Hashed(1), c.Point(1), c.FrozenChild(1, c=2)):
        assert function(back(value)) == function(value)


def test_frozen_pydantic_stays_frozen() -> None:
    """A rebuilt model keeps to its configuration."""
    with pytest.raises(pydantic.ValidationError):
        back(c.Open(x=1)).x = 2


# -- Exceptions -------------------------------------------------------------------------------------------------


def noted(error: BaseException) -> BaseException:
    error.add_note("first")
    error.add_note("second")
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        KeyError("k", (1,), {2}),
        noted(ValueError("x")),
        OSError(2, "No such file"),
        FileNotFoundError(2, "No such file", "a", None, "b"),
        BlockingIOError(11, "busy", 5),
        OSError("only text"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        UnicodeEncodeError("ascii", "\ud800", 0, 1, "ordinal not in range"),
        SyntaxError("bad", ("file", 1, 2, "text")),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        ExceptionGroup("many", [ValueError(1), ExceptionGroup("inner", [noted(KeyError(2))])]),
        BaseExceptionGroup("bases", (SystemExit(1),)),
        c.Group("mine", [c.Custom(1, why="x")]),
        c.Custom(5, why="because"),
        c.Both(1, "x"),
        c.Missing("path"),
        c.FieldsError(1, detail=(2,)),
        c.FieldsError(code=1),
        c.AttrsError(7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_come_back_the_same(error: BaseException) -> None:
    """Type, args, notes and text survive; a class's own __init__ does not run again."""
    made = back(error)
    assert same(made, error)
    assert str(made) == str(error)
    if isinstance(error, OSError):
        assert (made.errno, made.filename, made.filename2) == (error.errno, error.filename, error.filename2)
    if isinstance(error, BaseExceptionGroup):
        assert same(made.exceptions, error.exceptions)


def test_exceptions_can_be_raised_again() -> None:
    """A rebuilt exception behaves like one."""
    with pytest.raises(c.Custom, match="5: because"):
        raise back(c.Custom(5, why="because"))


def test_unknown_exceptions_name_themselves() -> None:
    """Only Python's own exceptions are known everywhere."""

    class Strange(Exception):
        pass

    with pytest.raises(UnknownClass, match="Strange"):
        back(Strange())


def test_unfit_args_of_exceptions_are_located() -> None:
    """The path goes through the exception."""
    with pytest.raises(NotSerializable, match=r"args\[0\]\.args\[1\]"):
        back(ValueError(1, object()))

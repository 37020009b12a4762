"""What an event is, what it is called, and which classes are known."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import datetime
import enum
import itertools
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

from pyventus import AsyncIOEventEmitter, EventLinker, event
from pyventus.errors import InvalidEvent, InvalidOption, UnknownClass
from pyventus.events import class_name, class_version, codec_of, describe, event_keys, find_class, link_key, register

from . import event_classes as c

_names = (f"test.event.{n}" for n in itertools.count())


class Colour(enum.Enum):
    RED = 1


class Topic(enum.StrEnum):
    ORDERS = "orders"


class Mixed(str, enum.Enum):  # noqa: UP042 - how it was written before StrEnum
    OLD = "old"


@dataclasses.dataclass
class OrderPlaced:
    order_id: int = 0


class Model(pydantic.BaseModel):
    value: int = 0


class Struct(msgspec.Struct):
    value: int = 0


class Abstract(abc.ABC):  # noqa: B024 - only its metaclass counts
    pass


class Point(NamedTuple):
    x: int = 0


def named() -> str:
    return next(_names)


def meet(emitted: object, linked: object) -> bool:
    """Whether a handler of ``linked`` receives ``emitted``."""
    return link_key(linked) in set(event_keys(*describe(emitted)))


@pytest.mark.parametrize(
    "instance",
    [OrderPlaced(), Model(), Struct(), Point(), Abstract(), ValueError("no"), KeyboardInterrupt()],
    ids=lambda each: type(each).__name__,
)
def test_instances_of_classes_are_events(instance: object) -> None:
    """Dataclasses, pydantic models, structs, named tuples, plain classes and exceptions can be emitted and linked."""
    assert meet(instance, type(instance))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "cannot be empty: give it a name such as"),
        ("  \t", "cannot be empty"),
        ("a\nb", "control characters: 'a\\\\nb'"),
        (3, "a value of the builtin type int was emitted: an event is a string, an instance"),
        (None, "of the builtin type NoneType was emitted"),
        ([], "of the builtin type list"),
        ({"a": 1}, "of the builtin type dict"),
        (b"bytes", "of the builtin type bytes"),
        (print, "of the builtin type builtin_function_or_method"),
        (OrderPlaced, r"the class OrderPlaced itself was emitted: emit an instance, OrderPlaced\(\.\.\.\)"),
        (Model, "the class Model itself was emitted"),
        (Abstract, "the class Abstract itself was emitted"),
        (Colour, "the class Colour itself was emitted"),
        (int, "the class int itself was emitted"),
        (Colour.RED, "<Colour.RED: 1> was emitted: of enums only the members of a StrEnum"),
        (..., r"\.\.\. was emitted: it stands for every event when linking"),
    ],
)
def test_what_cannot_be_emitted(wrong: Any, message: str) -> None:
    """What is no event is refused at the call, by an error that names it and the cure."""
    with pytest.raises(InvalidEvent, match=message):
        AsyncIOEventEmitter().emit(wrong)


def test_a_coroutine_cannot_be_emitted_and_is_not_left_behind() -> None:
    """A forgotten await is named, without a second complaint that the coroutine was never awaited."""

    async def fetch() -> None: ...

    with pytest.raises(InvalidEvent, match=r"a coroutine \(.*fetch\) was emitted: await it first"):
        AsyncIOEventEmitter().emit(fetch())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "cannot be empty"),
        ("a\x1bb", "control characters"),
        (int, "int is a builtin type and cannot be an event: use a string, a class of your own"),
        (object, "object is a builtin type"),
        (Colour, "<enum 'Colour'> cannot be linked: only members of a StrEnum are events"),
        (Topic, "only members of a StrEnum"),
        (Colour.RED, "<Colour.RED: 1> cannot be linked: only members"),
        (3, "3 cannot be linked: an event is a string, a class of your own"),
        (None, "None cannot be linked"),
        (OrderPlaced(), r"OrderPlaced\(order_id=0\) cannot be linked"),
        (list[int], r"list\[int\] cannot be linked"),
    ],
)
def test_what_cannot_be_linked(wrong: Any, message: str) -> None:
    """What is no event is refused before anything is decorated."""
    with pytest.raises(InvalidEvent, match=message):
        EventLinker.on("good", wrong)


def test_no_events_at_all() -> None:
    """A link to nothing is a mistake."""
    with pytest.raises(InvalidEvent, match=r"no events were given: name at least one, or \.\.\."):
        EventLinker.on()


def test_a_str_enum_member_is_its_value() -> None:
    """Members of a StrEnum, or of its older spelling, and their values are the same event."""
    assert meet(Topic.ORDERS, "orders")
    assert meet("orders", Topic.ORDERS)
    assert meet(Mixed.OLD, "old")
    assert type(describe(Mixed.OLD)[0]) is str


def test_strings_and_classes_never_meet() -> None:
    """A string that spells the wire name of a class is another event."""
    assert not meet(class_name(OrderPlaced), OrderPlaced)
    assert not meet(OrderPlaced(), class_name(OrderPlaced))
    assert not meet("other", "...")
    assert not meet(OrderPlaced(), "...")


def test_classes_of_one_name_in_two_modules_never_meet() -> None:
    """The module is part of the name."""
    assert OrderPlaced.__name__ == c.OrderPlaced.__name__
    assert not meet(OrderPlaced(), c.OrderPlaced)
    assert not meet(c.OrderPlaced(), OrderPlaced)


def test_a_link_to_a_class_receives_instances_of_its_subclasses() -> None:
    """Subclasses of subclasses too, and not the other way round."""
    assert meet(c.Last(), c.Base)
    assert meet(c.Last(), c.Middle)
    assert not meet(c.Base(), c.Middle)
    assert describe(c.Last())[2] == (class_name(c.Middle), class_name(c.Base))


def test_exception_receives_every_exception() -> None:
    """Builtin ones and the user's; BaseException receives those that Exception does not."""
    assert meet(c.Silent(), Exception)
    assert meet(KeyError(), LookupError)
    assert meet(KeyboardInterrupt(), BaseException)
    assert not meet(KeyboardInterrupt(), Exception)


@pytest.mark.parametrize("emitted", ["any", OrderPlaced(), ValueError()], ids=repr)
def test_ellipsis_receives_every_event(emitted: object) -> None:
    """Literally `...` stands for all."""
    assert meet(emitted, ...)


# -- @event -----------------------------------------------------------------------------------------------------


def test_event_gives_name_and_version() -> None:
    """They are what travels; a subclass has its own name again."""
    name = named()

    @event(name, version=3)
    class Named:
        pass

    class Child(Named):
        pass

    assert describe(Named())[:2] == (name, 3)
    assert class_version(Child) == 1
    assert class_name(Child).endswith("Child")
    assert meet(Child(), Named)
    assert find_class(name) is Named


def test_event_name_belongs_to_one_class() -> None:
    """Two classes cannot share a name, and the one that was refused keeps its own."""
    name = named()

    @event(name)
    class First:
        pass

    class Second:
        pass

    with pytest.raises(InvalidEvent, match=rf"event name '{name}' of .*Second already belongs to .*First"):
        event(name)(Second)
    assert class_name(Second).endswith("Second")
    assert find_class(name) is First


def test_a_class_may_be_defined_anew_where_it_was() -> None:
    """As a notebook does when its cell is run again: the new one takes the name."""
    name = named()

    def define() -> type:
        @event(name)
        class Cell:
            pass

        return Cell

    first, second = define(), define()
    assert first is not second
    assert find_class(name) is second


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None])
def test_event_version_is_a_whole_number(version: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidOption, match="version of an event must be a whole number from 1 up"):
        event("name", version=version)


@pytest.mark.parametrize(("name", "message"), [("", "empty"), ("a\n", "control"), (3, "must be a string, not 3")])
def test_event_name_is_checked(name: Any, message: str) -> None:
    """As any name of an event."""
    with pytest.raises(InvalidEvent, match=message):
        event(name)


@pytest.mark.parametrize("wrong", [int, Colour, "text", None])
def test_event_decorates_only_event_classes(wrong: Any) -> None:
    """What cannot be an event gets no name."""
    with pytest.raises(InvalidEvent):
        event(named())(wrong)


def test_event_without_parentheses() -> None:
    """The forgotten name is asked for."""
    with pytest.raises(InvalidEvent, match="name of an event must be a string"):
        event(OrderPlaced)  # type: ignore[arg-type]


def test_event_takes_a_str_enum_member_as_name() -> None:
    """It stands for its value."""

    @event(Topic.ORDERS)
    class Orders:
        pass

    assert class_name(Orders) == "orders"
    assert type(class_name(Orders)) is str


# -- Known classes ----------------------------------------------------------------------------------------------


def is_known(cls: type) -> bool:
    try:
        return find_class(class_name(cls)) is cls
    except UnknownClass:
        return False


def test_a_class_becomes_known_when_it_is_linked(linker: type[EventLinker]) -> None:
    """Merely importing or emitting it does not make it so."""

    class Linked:
        pass

    AsyncIOEventEmitter(linker).prepare(Linked())
    assert not is_known(Linked)
    linker.subscribe(Linked, event_callback=print)
    assert is_known(Linked)


def test_register_makes_a_class_known() -> None:
    """For what handlers' arguments hold and no link names."""

    class Value:
        pass

    assert not is_known(Value)
    EventLinker.register(Value)
    assert is_known(Value)


def test_subclasses_become_known_with_their_base() -> None:
    """Also those that are defined later, and theirs."""
    register(c.Base)
    assert is_known(c.Last)

    class Younger(c.Last):
        pass

    assert is_known(Younger)


def test_types_in_annotations_become_known() -> None:
    """Nested in containers and unions, through other classes, and in forward references; never anything else."""
    assert not is_known(c.Leaf)
    register(c.Outer)
    assert is_known(c.Inner)
    assert is_known(c.Leaf)
    assert is_known(c.Later)
    assert find_class("decimal:Decimal")
    assert not is_known(c.Hidden)
    for name in ("typing:Any", "builtins:int", "builtins:dict", "os:system", "subprocess:Popen", "builtins:object"):
        with pytest.raises(UnknownClass):
            find_class(name)


def test_an_annotation_that_cannot_be_resolved_hides_no_other() -> None:
    """Names that only type checkers import are common beside others that matter."""
    assert not is_known(c.Later)
    register(c.HalfResolved)
    assert is_known(c.Later)


def test_a_forward_reference_is_followed_once_it_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is defined after the one that mentions it is found."""

    class Early:
        late: "TestLate"  # noqa: F821, UP037

    register(Early)
    late = type("TestLate", (), {"__module__": __name__, "__qualname__": "TestLate"})
    assert not is_known(late)
    monkeypatch.setitem(globals(), "TestLate", late)
    assert is_known(late)


def test_an_unknown_class_is_named_with_the_cure() -> None:
    """The error says what to import or to register."""
    with pytest.raises(
        UnknownClass, match=r"class 'shop.events:Order.Line' is not known.*EventLinker.register\(Line\)"
    ):
        find_class("shop.events:Order.Line")


@pytest.mark.parametrize("wrong", ["text", 3, OrderPlaced()])
def test_only_classes_are_registered(wrong: Any) -> None:
    """Anything else is a mistake."""
    with pytest.raises(InvalidEvent, match="cannot be registered: it is not a class"):
        EventLinker.register(wrong)


def test_encode_and_decode_come_together() -> None:
    """One without the other would lose what was sent."""
    with pytest.raises(InvalidOption, match="date needs both encode and decode, or neither"):
        EventLinker.register(datetime.date, encode=str)


def test_a_codec_is_of_exactly_one_class() -> None:
    """Subclasses do not inherit it: it would make instances of their base."""

    class Money:
        pass

    class Dollars(Money):
        pass

    EventLinker.register(Money, encode=str, decode=Money)
    codec = codec_of(Money)
    assert codec is not None
    assert codec.decode is Money
    assert codec_of(Dollars) is None


def test_finding_classes_while_others_are_linked(linker: type[EventLinker]) -> None:
    """Looking up and linking in many threads at once neither fails nor misses anything."""

    async def hammer() -> None:
        def link(n: int) -> bool:
            cls = type(f"Hammered{n}", (), {"__module__": __name__, "__qualname__": f"Hammered{n}"})
            linker.subscribe(cls, event_callback=print, name=f"h{n}")
            with pytest.raises(UnknownClass):
                find_class(f"nowhere:{n}")
            return is_known(cls)

        assert all(await asyncio.gather(*(asyncio.to_thread(link, n) for n in range(200))))

    asyncio.run(hammer())

"""What an event is, what it is called on the wire, and which classes a process knows by name."""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from pyventus import native
from pyventus.errors import InvalidEvent, InvalidOption, UnknownClass

__all__ = [
    "Codec",
    "EventKey",
    "class_name",
    "class_version",
    "codec_of",
    "event",
    "event_keys",
    "find_class",
    "is_event_class",
    "link_key",
    "register",
]

C = TypeVar("C", bound=type)


class EventKey(NamedTuple):
    """What handlers are filed under. Names of strings and of classes never meet."""

    kind: Literal["name", "class", "every"]
    name: str


EVERY = EventKey("every", "...")


class Codec(NamedTuple):
    """How a class that has no fields of its own accord travels: as what ``encode`` makes of an instance."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class _WireName(NamedTuple):
    name: str
    version: int


_lock = native.new_lock()
_wire_names: WeakKeyDictionary[type, _WireName] = WeakKeyDictionary()
_codecs: WeakKeyDictionary[type, Codec] = WeakKeyDictionary()
_known: dict[str, type] = {}


# -- Names ------------------------------------------------------------------------------------------------------


def event(name: str, /, *, version: int = 1) -> Callable[[C], C]:
    """Give an event class the name and version that it has on the wire, and make it known.

    Without it a class is called ``module:qualname``, so that moving it orphans what waits in the broker.

    Raises:
        InvalidEvent: the name is empty, unprintable, or belongs to another class.
        InvalidOption: the version is not a whole number from 1 up.
    """
    wire_name = _check_name(name)
    _check_version(version)

    def decorate(cls: C) -> C:
        _check_class(cls)
        with _lock:
            _check_owner(wire_name, cls)
            _wire_names[cls] = _WireName(wire_name, version)
            register(cls)
        return cls

    return decorate


def class_name(cls: type) -> str:
    """The wire name of a class: the one given with `event`, or else ``module:qualname``."""
    named = _wire_names.get(cls)
    return named.name if named else f"{cls.__module__}:{cls.__qualname__}"


def class_version(cls: type) -> int:
    """The version given with `event`, or 1."""
    named = _wire_names.get(cls)
    return named.version if named else 1


def is_event_class(cls: object) -> typing.TypeGuard[type]:
    """Whether instances of ``cls`` are events: classes of the user's and exceptions, but not builtin types or enums."""
    if not isinstance(cls, type):
        return False
    if issubclass(cls, BaseException):
        return True
    return cls.__module__ != "builtins" and not issubclass(cls, (enum.Enum, str))


def link_key(event: object) -> EventKey:
    """The key under which a handler of ``event`` is filed.

    Raises:
        InvalidEvent: not a name, an event class or ``...``.
    """
    if event is ...:
        return EVERY
    if isinstance(event, str):
        return EventKey("name", _check_name(event))
    return EventKey("class", class_name(_check_class(event)))


def describe(event: object) -> tuple[str, int | None, tuple[str, ...]]:
    """Name, version and base names of what is emitted; a string has no version and no bases.

    Raises:
        InvalidEvent: neither a name nor an instance of an event class.
    """
    if isinstance(event, str):
        return _describe_name(event)
    cls = type(event)
    # A class is an instance of its metaclass, which need not be a builtin one.
    if isinstance(event, type) or not is_event_class(cls):
        raise InvalidEvent(_why_not_emitted(event))
    return class_name(cls), class_version(cls), _base_names(cls)


@lru_cache(maxsize=1024, typed=True)
def _describe_name(name: str) -> tuple[str, None, tuple[str, ...]]:
    return _check_name(name), None, ()


@lru_cache(maxsize=1024)
def event_keys(name: str, version: int | None, bases: tuple[str, ...]) -> tuple[EventKey, ...]:
    """The keys whose handlers receive an event that `describe` describes so."""
    if version is None:
        return (EventKey("name", name), EVERY)
    return (*(EventKey("class", each) for each in (name, *bases)), EVERY)


def _base_names(cls: type) -> tuple[str, ...]:
    return tuple(class_name(base) for base in cls.__mro__[1:] if base is not object)


def _check_name(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidEvent(f"the name of an event must be a string, not {name!r}")
    text = str(name.value) if isinstance(name, enum.Enum) else str(name)
    if not text.strip():
        raise InvalidEvent("the name of an event cannot be empty: give it a name such as 'order.placed'")
    if not text.isprintable():
        # It stands in log lines and task names: a line break in it would let an emitter forge them.
        raise InvalidEvent(f"the name of an event cannot hold control characters: {text!r}")
    return text


def _check_version(version: object) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidOption(f"the version of an event must be a whole number from 1 up, not {version!r}")


def _check_class(cls: object) -> type:
    if is_event_class(cls):
        return cls
    if isinstance(cls, type) and cls.__module__ == "builtins":
        raise InvalidEvent(
            f"{cls.__qualname__} is a builtin type and cannot be an event: use a string, a class of your own, "
            "an exception class, or ... for every event"
        )
    if isinstance(cls, enum.Enum) or (isinstance(cls, type) and issubclass(cls, enum.Enum)):
        raise InvalidEvent(f"{cls!r} cannot be linked: only members of a StrEnum are events, by their value")
    raise InvalidEvent(
        f"{cls!r} cannot be linked: an event is a string, a class of your own, an exception class, or ... for every "
        "event"
    )


def _why_not_emitted(event: object) -> str:
    if inspect.iscoroutine(event):
        event.close()
        return f"a coroutine ({event.__qualname__}) was emitted: await it first, or emit an event"
    if isinstance(event, type):
        return f"the class {event.__qualname__} itself was emitted: emit an instance, {event.__qualname__}(...)"
    if isinstance(event, enum.Enum):
        return f"{event!r} was emitted: of enums only the members of a StrEnum are events"
    if event is ...:
        return "... was emitted: it stands for every event when linking; emit a string or an instance of a class"
    return (
        f"a value of the builtin type {type(event).__qualname__} was emitted: an event is a string, an instance of "
        "a class of your own, or an exception"
    )


# -- Known classes ----------------------------------------------------------------------------------------------


def register(
    cls: type, *, encode: Callable[[Any], Any] | None = None, decode: Callable[[Any], Any] | None = None
) -> None:
    """Make ``cls`` a class that values in emissions may have.

    Its imported subclasses and the types in the annotations of its fields become known with it.

    Args:
        encode: for a class that is no dataclass, msgspec Struct, attrs or pydantic class, exception or enum: makes a
            value that can travel out of an instance.
        decode: makes an instance again out of that value.

    Raises:
        InvalidEvent: ``cls`` is no class, or its wire name belongs to another class.
        InvalidOption: only one of ``encode`` and ``decode`` was given.
    """
    if not isinstance(cls, type):
        raise InvalidEvent(f"{cls!r} cannot be registered: it is not a class")
    if (encode is None) != (decode is None):
        raise InvalidOption(f"{cls.__qualname__} needs both encode and decode, or neither")
    with _lock:
        name = class_name(cls)
        _check_owner(name, cls)
        _known[name] = cls
        if encode is not None and decode is not None:
            _codecs[cls] = Codec(encode, decode)


def _check_owner(name: str, cls: type) -> None:
    """A class may be defined anew where it was, as notebooks do; no other may take its name."""
    owner = _known.get(name)
    if owner is not None and _origin(owner) != _origin(cls):
        raise InvalidEvent(f"the event name {name!r} of {_origin(cls)} already belongs to {_origin(owner)}")


def codec_of(cls: type) -> Codec | None:
    """The codec registered for exactly this class."""
    return _codecs.get(cls)


def find_class(name: str) -> type:
    """The known class of that wire name. Looks in a table and never imports.

    Raises:
        UnknownClass: the class was neither linked nor registered here, nor is it reached from one that was.
    """
    known = _known.get(name)
    if known is None:
        with _lock:
            _learn()
            known = _known.get(name)
    if known is None:
        raise UnknownClass(name)
    return known


def _learn() -> None:
    """Add what is reachable by now; annotations and subclasses may have appeared since the last time."""
    waiting = list(_known.values())
    seen = set(waiting)
    while waiting:
        for cls in _reachable(waiting.pop()):
            if cls not in seen:
                seen.add(cls)
                waiting.append(cls)
                _known.setdefault(class_name(cls), cls)


def _reachable(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        if subclass.__module__ != "builtins" or issubclass(subclass, BaseException):
            yield subclass
    if cls.__module__ != "builtins":
        for annotation in _annotations(cls):
            yield from _classes_in(annotation)


def _annotations(cls: type) -> list[Any]:
    try:
        return list(typing.get_type_hints(cls).values())
    except Exception:  # A forward reference that cannot be resolved yet, or names that only type checkers import.
        return [hint for base in cls.__mro__ for text in _raw_annotations(base) if (hint := _resolve(text, base))]


def _raw_annotations(cls: type) -> list[Any]:
    try:
        return list(inspect.get_annotations(cls).values())
    except Exception:  # From Python 3.14 on, annotations are code that runs only now.
        return []


def _resolve(annotation: Any, cls: type) -> Any:
    """What one annotation of ``cls`` stands for, or None."""
    holder = type(cls.__name__, (), {"__annotations__": {"one": annotation}, "__module__": cls.__module__})
    try:
        return typing.get_type_hints(holder, localns=dict(vars(cls)))["one"]
    except Exception:
        return None


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and annotation.__module__ not in ("builtins", "typing"):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes_in(argument)


def _origin(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"

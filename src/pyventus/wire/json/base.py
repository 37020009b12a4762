"""What encoding and decoding must agree on: limits, tags, and what an instance of a class consists of."""

from __future__ import annotations

import builtins
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from enum import Enum, Flag
from typing import Any
from weakref import WeakKeyDictionary

from pyventus.errors import Undecodable
from pyventus.events import class_name

__all__ = [
    "BUILTIN_EXCEPTIONS",
    "INT_LIMIT",
    "MAX_DEPTH",
    "MAX_EXPONENT",
    "MAX_ITEMS",
    "TAG",
    "ZONE_KEY",
    "Shape",
    "Unfit",
    "Unset",
    "enum_value",
    "is_native",
    "native_base",
    "shape_of",
]

TAG = "$"
MAX_DEPTH = 100
MAX_ITEMS = 1_000_000
INT_LIMIT = 10**4300
"""Python parses no longer ints by default (``sys.int_info.default_max_str_digits``)."""

MAX_EXPONENT = 2_000_000
"""Of a Decimal: more than any context of Python's own makes, while ``int(Decimal("1e999999999"))`` takes a gigabyte."""

ZONE_KEY = r"(?=.{1,64}$)[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*"
"""zoneinfo makes a module path of `tzdata` out of a key: nothing but the names of zones may get there."""

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not set on the classes that are compiled into Python.

BUILTIN_EXCEPTIONS: Mapping[str, type[BaseException]] = {
    class_name(cls): cls for cls in vars(builtins).values() if isinstance(cls, type) and issubclass(cls, BaseException)
}
"""Known in every process, whether linked or not."""


class Unfit(Exception):
    """A value cannot travel; on its way up each container puts before it where in it the value sits."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []

    def text(self, event: str) -> str:
        path = self.path[::-1]
        if len(path) > 12:
            path[6:-5] = ["..."]
        return f"{''.join(path)} of the emission of {event!r} cannot travel as JSON: {self.problem}"


class Unset(AttributeError):
    """A field that an instance does not have."""


def is_native(cls: type) -> bool:
    """Whether the class is compiled into Python."""
    return not cls.__flags__ & _HEAP_TYPE


def native_base(cls: type) -> type:
    """The class compiled into Python that decides how instances are laid out."""
    while not is_native(cls) and cls.__base__ is not None:
        cls = cls.__base__
    return cls


def enum_value(member: Enum) -> int | None:
    """The value of a flag that has no single name; None for a member that has one.

    Raises:
        LookupError: the member has no name, and is no flag.
    """
    cls = type(member)
    if cls.__members__.get(member._name_) is member:  # A flag of no single name may be called None.
        return None
    if isinstance(member, Flag) and type(member._value_) is int:
        return member._value_
    raise LookupError(member._name_)


# -- Shapes -----------------------------------------------------------------------------------------------------


class Shape:
    """How the instances of a class with fields are taken apart and put together again."""

    names: frozenset[str]

    def __init__(self, names: Iterable[str]) -> None:
        self._order = tuple(names)
        self.names = frozenset(self._order)

    def take(self, instance: Any) -> dict[str, Any]:
        """The fields by name.

        Raises:
            Unset: the instance lacks one.
        """
        fields = {}
        for name in self._order:
            try:
                fields[name] = getattr(instance, name)
            except AttributeError as error:
                raise Unset(name) from error
        return fields

    def rest(self, instance: Any) -> Any:
        """What there is to an instance besides its fields, or None."""
        return None

    def build(self, cls: type, fields: Mapping[str, Any], rest: Any) -> Any:
        """An instance with these fields, and defaults for those that are missing.

        Raises:
            Undecodable: a field without a default is missing.
        """
        made: Any = object.__new__(cls)
        self.fill(made, fields, rest)
        return made

    def fill(self, made: Any, fields: Mapping[str, Any], rest: Any) -> None:
        """Set the fields of a bare instance: past frozen classes, validators and converters."""
        for name in self._order:
            value = fields[name] if name in fields else self.default(made, name)
            object.__setattr__(made, name, value)

    def default(self, made: Any, name: str) -> Any:
        """Default of a field of a half-built instance.

        Raises:
            Undecodable: it has none.
        """
        raise _missing(type(made), name)


def _missing(cls: type, name: str) -> Undecodable:
    return Undecodable(f"field {name!r} of {class_name(cls)} is missing in the message and has no default")


class _Dataclass(Shape):
    def default(self, made: Any, name: str) -> Any:
        if hasattr(made, "__pydantic_fields__"):  # pydantic.dataclasses: the field's default is a pydantic Field.
            return _pydantic_default(made, name)
        field = made.__dataclass_fields__[name]
        if field.default is not dataclasses.MISSING:
            return field.default
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        return super().default(made, name)


class _Attrs(Shape):
    def fill(self, made: Any, fields: Mapping[str, Any], rest: Any) -> None:
        super().fill(made, fields, rest)
        # cache_hash=True: __hash__ reads this attribute, which otherwise __init__ would have made.
        if "_attrs_cached_hash" in getattr(getattr(type(made).__hash__, "__code__", None), "co_names", ()):
            object.__setattr__(made, "_attrs_cached_hash", None)

    def default(self, made: Any, name: str) -> Any:
        attribute = getattr(type(made).__attrs_attrs__, name)
        attrs: Any = sys.modules[type(attribute).__module__]
        if attribute.default is attrs.NOTHING:
            return super().default(made, name)
        if not isinstance(attribute.default, attrs.Factory):
            return attribute.default
        factory = attribute.default.factory
        return factory(made) if attribute.default.takes_self else factory()


class _Struct(Shape):
    """Made by calling the class: msgspec has no other way that needs no import of it. ``__post_init__`` runs."""

    def build(self, cls: type, fields: Mapping[str, Any], rest: Any) -> Any:
        try:
            return cls(**{name: value for name, value in fields.items() if name in self.names})
        except TypeError as error:
            raise Undecodable(f"{class_name(cls)} does not fit the message: {error}") from error


class _Pydantic(Shape):
    """Its instances also know which fields were set, extra fields, and private attributes."""

    def take(self, instance: Any) -> dict[str, Any]:
        held = instance.__dict__  # Not getattr: it warns about deprecated fields.
        for name in self._order:
            if name not in held:
                raise Unset(name)
        return {name: held[name] for name in self._order}

    def rest(self, instance: Any) -> Any:
        return instance.__pydantic_fields_set__, instance.__pydantic_extra__, instance.__pydantic_private__

    def fill(self, made: Any, fields: Mapping[str, Any], rest: Any) -> None:
        set_fields, extra, private = rest or (fields, None, None)
        cls = type(made)
        held = {name: fields[name] for name in self._order if name in fields}
        object.__setattr__(made, "__dict__", held)
        for name in self._order:
            if name not in held:
                held[name] = self.default(made, name)
        extra = _extra(cls, extra)
        object.__setattr__(made, "__pydantic_extra__", extra)
        object.__setattr__(made, "__pydantic_fields_set__", set(set_fields) & (self.names | set(extra or ())))
        object.__setattr__(made, "__pydantic_private__", _private(cls, private))

    def default(self, made: Any, name: str) -> Any:
        return _pydantic_default(made, name)


def _pydantic_default(made: Any, name: str) -> Any:
    field = _pydantic_fields(type(made))[name]
    if field.is_required():
        raise _missing(type(made), name)
    if getattr(field, "default_factory_takes_validated_data", False):  # pydantic 2.10 and newer
        return field.get_default(call_default_factory=True, validated_data=dict(vars(made)))
    return field.get_default(call_default_factory=True)


def _extra(cls: Any, extra: dict[str, Any] | None) -> dict[str, Any] | None:
    if cls.model_config.get("extra") != "allow":
        return None
    return extra or {}


def _private(cls: Any, private: dict[str, Any] | None) -> dict[str, Any] | None:
    attributes = cls.__private_attributes__
    if not attributes:
        return None
    sent = private or {}
    held = {name: sent[name] for name in attributes if name in sent}
    for name, attribute in attributes.items():
        default = attribute.default
        if name not in held and not (attribute.default_factory is None and _is_undefined(default)):
            held[name] = attribute.get_default()
    return held


def _is_undefined(default: object) -> bool:
    return type(default).__name__ == "PydanticUndefinedType"


def _pydantic_fields(cls: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(cls, "__pydantic_fields__", None) or cls.model_fields  # before pydantic 2.10
    return fields


_shapes: WeakKeyDictionary[type, Shape | None] = WeakKeyDictionary()
_UNSEEN: Any = object()


def shape_of(cls: type) -> Shape | None:
    """The shape of a class that has one: a dataclass, msgspec Struct, attrs or pydantic class."""
    shape: Shape | None = _shapes.get(cls, _UNSEEN)
    if shape is _UNSEEN:
        shape = _shapes[cls] = _make_shape(cls)
    return shape


def _make_shape(cls: Any) -> Shape | None:
    if hasattr(cls, "__struct_fields__"):
        return _Struct(cls.__struct_fields__)
    if not issubclass(native_base(cls), BaseException) and native_base(cls) is not object:
        return None  # A list with fields would lose its items.
    if hasattr(cls, "__mapper__"):
        return None  # SQLAlchemy's: an instance is a row in a session, whatever fields it has.
    if hasattr(cls, "__dataclass_fields__"):
        return _Dataclass(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return _Attrs(attribute.name for attribute in cls.__attrs_attrs__)
    if hasattr(cls, "__pydantic_fields_set__"):
        return _Pydantic(_pydantic_fields(cls))
    return None

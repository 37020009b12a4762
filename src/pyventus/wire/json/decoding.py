"""What JSON carried to values. Nothing is imported, called or looked up by attribute because a message says so."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from typing import Any, NoReturn
from uuid import UUID
from zoneinfo import ZoneInfo

from pyventus.errors import Undecodable
from pyventus.events import codec_of, find_class
from pyventus.wire.json.base import (
    BUILTIN_EXCEPTIONS,
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_ITEMS,
    TAG,
    ZONE_KEY,
    Shape,
    is_native,
    native_base,
    shape_of,
)

__all__ = ["Decoder", "parse"]

_FLOATS = frozenset({"nan", "-nan", "inf", "-inf"})
_zone_key = re.compile(ZONE_KEY).fullmatch
_SCALARS = frozenset({str, int, float, bool, type(None)})


def _no_constant(name: str) -> NoReturn:
    raise Undecodable(f"{name} is not JSON")


_parse = json.JSONDecoder(parse_constant=_no_constant).raw_decode


def parse(data: bytes) -> Any:
    """What the JSON says, in JSON's own types. Python's limits on digits and recursion hold."""
    text = data.decode("ascii")
    value, end = _parse(text)
    if end != len(text):
        raise Undecodable("there is more than one value")
    return value


def _is_plain(args: Any, kwargs: Any) -> bool:
    """Whether there are only scalars in it, which stand for themselves."""
    return (
        type(args) is list
        and type(kwargs) is dict
        and _SCALARS.issuperset(map(type, args))
        and _SCALARS.issuperset(map(type, kwargs.values()))
        and TAG not in kwargs
        and len(args) + len(kwargs) <= MAX_ITEMS
    )


class Decoder:
    """Decodes one emission. What is malformed may raise anything; the caller turns it into Undecodable."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items = 0

    def content(self, node: Any) -> tuple[Any, tuple[Any, ...], Any]:
        """Event, args and kwargs."""
        event, args, kwargs = _list(node)
        if type(event) is str and _is_plain(args, kwargs):
            return event, tuple(args), kwargs
        return self.value(event, 0), tuple(self._items_of(args, 0)), self.value(kwargs, 0)

    def value(self, node: Any, depth: int) -> Any:
        cls = type(node)
        if cls is dict:
            return self._tagged(node, depth) if TAG in node else self._named(node, depth)
        return self._items_of(node, depth) if cls is list else node

    def _tagged(self, node: dict[str, Any], depth: int) -> Any:
        tag = node[TAG]
        decode = _DECODERS.get(tag) if type(tag) is str else None
        if decode is None:
            raise Undecodable(f"there is a value with the tag {str(tag)[:40]!r}, which this version does not know")
        return decode(self, node, depth)

    def _enter(self, size: int, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise Undecodable(f"it is nested more than {MAX_DEPTH} deep")
        self._items += size
        if self._items > MAX_ITEMS:
            raise Undecodable(f"there are more than {MAX_ITEMS:,} values")
        return depth + 1

    # -- Containers

    def _items_of(self, node: Any, depth: int) -> list[Any]:
        depth = self._enter(len(_list(node)), depth)
        return [self.value(item, depth) for item in node]

    def _named(self, node: Any, depth: int) -> dict[str, Any]:
        if type(node) is not dict:
            raise Undecodable("there is no object where there must be one")
        depth = self._enter(len(node), depth)
        return {name: self.value(item, depth) for name, item in node.items()}

    def _tuple(self, node: dict[str, Any], depth: int) -> Any:
        return tuple(self._items_of(node["v"], depth))

    def _set(self, node: dict[str, Any], depth: int) -> Any:
        return set(self._items_of(node["v"], depth))

    def _frozenset(self, node: dict[str, Any], depth: int) -> Any:
        return frozenset(self._items_of(node["v"], depth))

    def _dict(self, node: dict[str, Any], depth: int) -> Any:
        depth = self._enter(len(_list(node["v"])), depth)
        return {self.value(key, depth): self.value(item, depth) for key, item in map(_list, node["v"])}

    # -- Scalars

    def _float(self, node: dict[str, Any], depth: int) -> Any:
        if node["v"] not in _FLOATS:
            raise Undecodable("there is a float that is no float")
        return float(node["v"])  # A new object each time: a set tells one nan from another.

    def _str(self, node: dict[str, Any], depth: int) -> Any:
        return _bytes(node).decode("utf-8", "surrogatepass")

    def _bytes(self, node: dict[str, Any], depth: int) -> Any:
        return _bytes(node)

    def _decimal(self, node: dict[str, Any], depth: int) -> Any:
        made = Decimal(_str(node["v"]))
        if made.is_nan() and "n" not in node["v"].lower():  # Junk is NaN where the context does not trap it.
            raise Undecodable("there is a Decimal that is no number")
        if made.is_finite() and abs(made.adjusted()) > MAX_EXPONENT:
            raise Undecodable(f"there is a Decimal whose exponent is beyond {MAX_EXPONENT:,}")
        return made

    def _uuid(self, node: dict[str, Any], depth: int) -> Any:
        return UUID(_str(node["v"]))

    def _date(self, node: dict[str, Any], depth: int) -> Any:
        return date.fromisoformat(_str(node["v"]))

    def _timedelta(self, node: dict[str, Any], depth: int) -> Any:
        return _timedelta(*_list(node["v"]))

    def _datetime(self, node: dict[str, Any], depth: int) -> Any:
        made = datetime.fromisoformat(_str(node["v"]))
        return made.replace(tzinfo=_zone(node.get("z")), fold=node.get("f", 0))

    def _time(self, node: dict[str, Any], depth: int) -> Any:
        made = time.fromisoformat(_str(node["v"]))
        return made.replace(tzinfo=_zone(node.get("z")), fold=node.get("f", 0))

    # -- Instances of classes

    def _codec(self, node: dict[str, Any], depth: int) -> Any:
        cls = find_class(_str(node["c"]))
        codec = codec_of(cls)
        if codec is None:
            raise _wrong_kind(node, "a class with a registered codec")
        return codec.decode(self.value(node["v"], self._enter(1, depth)))

    def _enum(self, node: dict[str, Any], depth: int) -> Any:
        cls = find_class(_str(node["c"]))
        if not issubclass(cls, Enum):
            raise _wrong_kind(node, "an enum")
        if "n" not in node:
            return _flag(cls, node)
        member = cls.__members__.get(_str(node["n"]))
        if member is None:
            raise Undecodable(f"enum {node['c']} has no member {node['n']!r} here")
        return member

    def _object(self, node: dict[str, Any], depth: int) -> Any:
        cls = find_class(_str(node["c"]))
        shape = None if issubclass(cls, (Enum, BaseException)) else shape_of(cls)
        if shape is None:
            raise _wrong_kind(node, "a class with fields")
        return shape.build(cls, *self._fields(node, shape, depth))

    def _fields(self, node: dict[str, Any], shape: Shape, depth: int) -> tuple[dict[str, Any], Any]:
        fields = node["f"]
        if type(fields) is not dict:
            raise Undecodable(f"the fields of {node['c']} are malformed")
        # Those that are missing are made, too.
        depth = self._enter(max(len(fields), len(shape.names)), depth)
        values = {name: self.value(item, depth) for name, item in fields.items() if name in shape.names}
        return values, self._items_of(node["r"], depth) if "r" in node else None

    def _exception(self, node: dict[str, Any], depth: int) -> Any:
        cls = BUILTIN_EXCEPTIONS.get(_str(node["c"])) or find_class(node["c"])
        if not issubclass(cls, BaseException):
            raise _wrong_kind(node, "an exception")
        depth = self._enter(1, depth)
        args = self._items_of(node["v"], depth)
        made = _raw(cls, self._items_of(node["m"], depth) if "m" in node else args)
        object.__setattr__(made, "args", tuple(args))  # Past frozen classes.
        if "n" in node:
            object.__setattr__(made, "__notes__", self.value(node["n"], depth))
        shape = shape_of(cls)
        if shape is not None:
            shape.fill(made, *self._fields(node, shape, depth))
        return made


def _raw(cls: type[BaseException], args: list[Any]) -> BaseException:
    """An exception of that class as Python itself makes it, without the class's own ``__new__`` and ``__init__``."""
    maker: Any = native_base(cls)
    made: BaseException = maker.__new__(cls, *args)
    initializer: Any = next(
        filter(is_native, cls.__mro__)
    )  # Of ValueError and OSError, the first: the maker is OSError.
    initializer.__init__(made, *args)
    return made


def _flag(cls: type[Enum], node: dict[str, Any]) -> Enum:
    if not issubclass(cls, Flag) or type(node["v"]) is not int:
        raise _wrong_kind(node, "a flag")
    return cls(node["v"])


def _wrong_kind(node: dict[str, Any], wanted: str) -> Undecodable:
    return Undecodable(f"class {node['c']!r} was {wanted} where it was sent, and is not here")


def _list(node: Any) -> list[Any]:
    if type(node) is not list:
        raise Undecodable("there is no list where there must be one")
    return node


def _str(node: Any) -> str:
    if type(node) is not str:
        raise Undecodable("there is no text where there must be some")
    return node


def _bytes(node: dict[str, Any]) -> bytes:
    return b64decode(_str(node["v"]), validate=True)


def _timedelta(days: Any, seconds: Any, microseconds: Any) -> timedelta:
    if not type(days) is type(seconds) is type(microseconds) is int:
        raise Undecodable("there is a timedelta that is none")
    return timedelta(days, seconds, microseconds)


def _zone(node: Any) -> tzinfo | None:
    if node is None:
        return None
    if node == 0:
        return UTC
    if type(node) is list:
        return timezone(_timedelta(*node[:3]), *node[3:])
    if not _zone_key(_str(node)):
        raise Undecodable("there is a time zone that is none")
    return ZoneInfo(node)


_DECODERS: dict[str, Callable[[Decoder, dict[str, Any], int], Any]] = {
    "float": Decoder._float,
    "str": Decoder._str,
    "bytes": Decoder._bytes,
    "tuple": Decoder._tuple,
    "set": Decoder._set,
    "frozenset": Decoder._frozenset,
    "dict": Decoder._dict,
    "datetime": Decoder._datetime,
    "date": Decoder._date,
    "time": Decoder._time,
    "timedelta": Decoder._timedelta,
    "decimal": Decoder._decimal,
    "uuid": Decoder._uuid,
    "enum": Decoder._enum,
    "object": Decoder._object,
    "exception": Decoder._exception,
    "codec": Decoder._codec,
}

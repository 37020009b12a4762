"""Values to what JSON carries exactly."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from pyventus.events import Codec, class_name, codec_of
from pyventus.wire.base import Content
from pyventus.wire.json.base import (
    INT_LIMIT,
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_ITEMS,
    TAG,
    ZONE_KEY,
    Shape,
    Unfit,
    Unset,
    enum_value,
    shape_of,
)

__all__ = ["PLAIN_INT", "Encoder"]

PLAIN_INT = 2**63
# JSON writes a surrogate pair and the one character that it stands for in the same way.
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_zone_key = re.compile(ZONE_KEY).fullmatch


class Encoder:
    """Encodes one emission; counts its items, so that what refers to itself over and over ends."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items = 0

    def content(self, content: Content) -> list[Any]:
        """Event, args and kwargs, with the path of what is unfit.

        Raises:
            Unfit: a value cannot travel.
        """
        event, args, kwargs = content
        return [
            event if event.isascii() else self._str(event, 0),
            self._located(self._list, args, "args") if args else [],
            self._located(self._dict, kwargs, "kwargs") if kwargs else {},
        ]

    def value(self, value: Any, depth: int) -> Any:
        encode = _ENCODERS.get(type(value))
        return self._instance(value, depth) if encode is None else encode(self, value, depth)

    def _located(self, encode: Callable[[Any, int], Any], value: Any, name: str) -> Any:
        try:
            return encode(value, 0)
        except Unfit as unfit:
            unfit.path.append(name)
            raise

    def _enter(self, size: int, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise Unfit(f"it is nested more than {MAX_DEPTH} deep, or contains itself")
        self._items += size
        if self._items > MAX_ITEMS:
            raise Unfit(f"there are more than {MAX_ITEMS:,} values: send the id of what is large in its place")
        return depth + 1

    # -- Containers

    def _items_of(self, values: Iterable[Any], size: int, depth: int) -> list[Any]:
        depth = self._enter(size, depth)
        if _are_plain(values):
            return list(values)
        encoded: list[Any] = []
        try:
            for value in values:
                encoded.append(self.value(value, depth))  # noqa: PERF401 - how far it got is where the unfit value is.
        except Unfit as unfit:
            unfit.path.append(f"[{len(encoded)}]")
            raise
        return encoded

    def _list(self, value: Any, depth: int) -> Any:
        return self._items_of(value, len(value), depth)

    def _tuple(self, value: Any, depth: int) -> Any:
        return {TAG: "tuple", "v": self._items_of(value, len(value), depth)}

    def _set(self, value: Any, depth: int) -> Any:
        return {TAG: type(value).__name__, "v": self._items_of(value, len(value), depth)}

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        depth = self._enter(len(value), depth)
        if _has_plain_keys(value):
            return self._named(value, depth, "[{!r}]")
        return {TAG: "dict", "v": [self._pair(key, item, depth) for key, item in value.items()]}

    def _named(self, fields: dict[str, Any], depth: int, path: str) -> dict[str, Any]:
        encoded = {}
        name = ""
        try:
            for name, value in fields.items():
                encoded[name] = self.value(value, depth)
        except Unfit as unfit:
            unfit.path.append(path.format(name[:40]))
            raise
        return encoded

    def _pair(self, key: Any, value: Any, depth: int) -> list[Any]:
        is_key = True
        try:
            encoded = self.value(key, depth)
            is_key = False
            return [encoded, self.value(value, depth)]
        except Unfit as unfit:
            unfit.path.append(" (a key)" if is_key else f"[{_shown(key)}]")
            raise

    # -- Scalars

    def _same(self, value: Any, depth: int) -> Any:
        return value

    def _int(self, value: int, depth: int) -> Any:
        if -INT_LIMIT < value < INT_LIMIT:
            return value
        raise Unfit("it is an int of more than 4,300 digits, which Python does not read back: send it as bytes")

    def _float(self, value: float, depth: int) -> Any:
        if math.isfinite(value):
            return value
        return {TAG: "float", "v": "-nan" if value != value and math.copysign(1, value) < 0 else repr(value)}

    def _str(self, value: str, depth: int) -> Any:
        if value.isascii() or not _PAIR.search(value):
            return value
        return {TAG: "str", "v": _base64(value.encode("utf-8", "surrogatepass"))}

    def _bytes(self, value: bytes, depth: int) -> Any:
        return {TAG: "bytes", "v": _base64(value)}

    def _decimal(self, value: Decimal, depth: int) -> Any:
        if value.is_finite() and abs(value.adjusted()) > MAX_EXPONENT:
            raise Unfit(f"it is a Decimal whose exponent is beyond {MAX_EXPONENT:,}: send it as text")
        return {TAG: "decimal", "v": str(value)}

    def _uuid(self, value: UUID, depth: int) -> Any:
        return {TAG: "uuid", "v": value.hex}

    def _date(self, value: date, depth: int) -> Any:
        return {TAG: "date", "v": value.isoformat()}

    def _timedelta(self, value: timedelta, depth: int) -> Any:
        return {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}

    def _clock(self, value: datetime | time, depth: int) -> Any:
        encoded: dict[str, Any] = {TAG: type(value).__name__, "v": value.replace(tzinfo=None).isoformat()}
        if value.fold:
            encoded["f"] = 1
        if value.tzinfo is not None:
            encoded["z"] = _zone(value.tzinfo)
        return encoded

    # -- Instances of classes

    def _instance(self, value: Any, depth: int) -> Any:
        cls = type(value)  # Not isinstance, which a proxy can deceive.
        codec = codec_of(cls)
        if codec is not None:
            return self._coded(value, codec, depth)
        if issubclass(cls, Enum):
            return self._enum(value, depth)
        shape = shape_of(cls)
        if issubclass(cls, BaseException):
            return self._exception(value, shape, depth)
        if shape is None:
            raise Unfit(_no_way(cls))
        return self._object(value, shape, {TAG: "object", "c": class_name(cls)}, depth)

    def _coded(self, value: Any, codec: Codec, depth: int) -> Any:
        try:
            made = codec.encode(value)
        except Exception as error:
            raise Unfit(f"encode of {class_name(type(value))} raised {type(error).__name__}: {error}") from error
        return {TAG: "codec", "c": class_name(type(value)), "v": self.value(made, self._enter(1, depth))}

    def _enum(self, member: Enum, depth: int) -> Any:
        try:
            value = enum_value(member)
        except LookupError:
            raise Unfit(f"it is no named member of {class_name(type(member))}") from None
        encoded: dict[str, Any] = {TAG: "enum", "c": class_name(type(member))}
        return encoded | ({"n": member._name_} if value is None else {"v": self._int(value, depth)})

    def _object(self, value: Any, shape: Shape, encoded: dict[str, Any], depth: int) -> Any:
        depth = self._enter(len(shape.names), depth)
        encoded["f"] = self._named(self._taken(value, shape), depth, ".{}")
        rest = shape.rest(value)
        if rest is not None:
            encoded["r"] = self._located_rest(rest, depth)
        return encoded

    def _taken(self, value: Any, shape: Shape) -> dict[str, Any]:
        try:
            return shape.take(value)
        except Unset as error:
            unfit = Unfit(f"the field of {class_name(type(value))} is not set")
            unfit.path.append(f".{error}")
            raise unfit from error.__cause__

    def _located_rest(self, rest: Any, depth: int) -> Any:
        try:
            return self._list(rest, depth)
        except Unfit as unfit:
            unfit.path[-1:] = [" (extra fields and private attributes)"]
            raise

    def _exception(self, error: BaseException, shape: Shape | None, depth: int) -> Any:
        encoded: dict[str, Any] = {TAG: "exception", "c": class_name(type(error))}
        depth = self._enter(1, depth)
        encoded["v"] = self._attribute(".args", list(error.args), depth)
        made_of = _made_of(error)
        if made_of != error.args:
            encoded["m"] = self._attribute(".args", list(made_of), depth)
        notes = getattr(error, "__notes__", None)
        if notes is not None:
            encoded["n"] = self._attribute(".__notes__", notes, depth)
        return encoded if shape is None else self._object(error, shape, encoded, depth)

    def _attribute(self, path: str, value: Any, depth: int) -> Any:
        try:
            return self.value(value, depth)
        except Unfit as unfit:
            unfit.path.append(path)
            raise


def _are_plain(values: Iterable[Any]) -> bool:
    """Whether JSON carries all of them as they are, as far as a short look tells."""
    for value in values:
        cls = type(value)
        if not ((cls is str and value.isascii()) or (cls is int and -PLAIN_INT < value < PLAIN_INT)):
            return False
    return True


def _has_plain_keys(value: dict[Any, Any]) -> bool:
    if TAG in value or not set(map(type, value)) <= {str}:
        return False
    return "".join(value).isascii() or not any(map(_PAIR.search, value))


def _base64(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _shown(key: object) -> str:
    return repr(key)[:40] if type(key) in (str, int, bool) else f"<{type(key).__qualname__}>"


def _made_of(error: BaseException) -> tuple[Any, ...]:
    """What the exception was made of: an OSError takes its file names out of its args."""
    if not isinstance(error, OSError):
        return error.args
    reduced = OSError.__reduce__(error)
    return tuple(reduced[1])


def _zone(zone: tzinfo) -> Any:
    if zone is UTC:
        return 0
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined] # Pickle's: tells whether it is named.
        return [offset.days, offset.seconds, offset.microseconds, *name]
    if type(zone) is ZoneInfo and _zone_key(str(zone.key)):
        return zone.key
    raise Unfit(f"its time zone {class_name(type(zone))} is neither timezone nor a ZoneInfo with a key")


def _no_way(cls: type) -> str:
    return (
        f"{class_name(cls)} is no type that JSON carries exactly: register a codec with "
        f"EventLinker.register({cls.__name__}, encode=..., decode=...), send an id or a plain value in its place, or "
        "make the queue with serializer='pickle'"
    )


_ENCODERS: dict[type, Callable[[Encoder, Any, int], Any]] = {
    str: Encoder._str,
    int: Encoder._int,
    bool: Encoder._same,
    type(None): Encoder._same,
    float: Encoder._float,
    dict: Encoder._dict,
    list: Encoder._list,
    tuple: Encoder._tuple,
    set: Encoder._set,
    frozenset: Encoder._set,
    bytes: Encoder._bytes,
    datetime: Encoder._clock,
    date: Encoder._date,
    time: Encoder._clock,
    timedelta: Encoder._timedelta,
    Decimal: Encoder._decimal,
    UUID: Encoder._uuid,
}

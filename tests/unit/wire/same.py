"""Whether two values are the same in type and value, all the way down."""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime, time, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo


def same(one: Any, other: Any) -> bool:
    return fingerprint(one) == fingerprint(other)


def fingerprint(value: Any) -> Any:
    """A hashable description that is equal for the same values only."""
    return type(value), _content(value)


def _content(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value), math.copysign(1, value)
    if isinstance(value, complex):
        return fingerprint((value.real, value.imag))
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(fingerprint, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(Counter(map(fingerprint, value)).items())
    if isinstance(value, dict):
        return tuple((fingerprint(key), fingerprint(item)) for key, item in value.items())
    if isinstance(value, (datetime, time)):
        return value.replace(tzinfo=None), value.fold, _zone(value.tzinfo)
    if isinstance(value, BaseException):
        return fingerprint((value.args, getattr(value, "__notes__", None), _fields(value)))
    return fingerprint(_fields(value)) if hasattr(value, "__module__") and _fields(value) else value


def _zone(zone: Any) -> Any:
    if isinstance(zone, timezone):
        return timezone, zone.__getinitargs__()
    return ZoneInfo, zone and zone.key


def _fields(value: Any) -> dict[str, Any]:
    for attribute in ("__dataclass_fields__", "__struct_fields__", "__pydantic_fields__"):
        if hasattr(type(value), attribute):
            return {name: getattr(value, name) for name in getattr(type(value), attribute)}
    return {field.name: getattr(value, field.name) for field in getattr(type(value), "__attrs_attrs__", ())}

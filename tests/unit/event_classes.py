"""Event classes that live in a module of their own, as a user's do."""

from __future__ import annotations

import decimal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from somewhere import Unimportable


@dataclass
class OrderPlaced:
    """Has the same name as a class of the test module."""

    order_id: int = 0


@dataclass
class Leaf:
    value: int = 0


@dataclass
class Inner:
    leaves: list[Leaf] = field(default_factory=list)


@dataclass
class Later:
    value: int = 0


@dataclass
class Hidden:
    """Nothing that is linked reaches it."""

    value: int = 0


@dataclass
class Outer:
    anything: Any
    inner: dict[str, Inner | None]
    later: "Union[Later, None]"  # noqa: UP007, UP037 - a forward reference inside one
    amount: decimal.Decimal


@dataclass
class HalfResolved:
    unknown: Unimportable
    known: Later


@dataclass
class Base:
    value: int = 0


class Middle(Base):
    pass


class Last(Middle):
    pass


class Silent(Exception):
    """An exception of the user's."""

"""Classes of all kinds that travel in these tests."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, ClassVar, Generic, TypeVar

import attr
import attrs
import msgspec
import pydantic

from pyventus.events import event, register

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    CRIMSON = "red"  # noqa: PIE796 - an alias
    MIXED = (1, "x")
    UNHASHABLE = [1]  # noqa: RUF012


class Size(enum.StrEnum):
    SMALL = "s"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Plain:
    a: Any = 1
    b: Any = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrozenChild(Frozen):
    c: Any


@dataclasses.dataclass
class Strict:
    """Its __init__ cannot be run again with what its fields hold."""

    counter: ClassVar[int] = 0
    seed: dataclasses.InitVar[int]
    total: Any = dataclasses.field(init=False)

    def __post_init__(self, seed: int) -> None:
        type(self).counter += 1
        self.total = seed * 2


@dataclasses.dataclass
class Box(Generic[T]):
    held: T


@event("wire.renamed", version=3)
@dataclasses.dataclass
class Renamed:
    x: Any


class Point(msgspec.Struct, frozen=True):
    x: Any
    y: Any = 2
    z: list[Any] = []


class Point3(Point, kw_only=True, frozen=True, tag=True, array_like=True):
    w: Any


@attrs.define
class Private:
    _hidden: Any
    shown: Any = attrs.field(default=7, validator=attrs.validators.instance_of(int), converter=int)
    late: Any = attrs.field(init=False, default=attrs.Factory(lambda self: (self.shown, "late"), takes_self=True))
    many: Any = attrs.field(factory=list)


@attrs.frozen(cache_hash=True)
class Hashed:
    x: Any


@attr.s(auto_attribs=True, hash=True, cache_hash=True)
class OldHashed:
    x: Any


@attrs.frozen
class HashedChild(Hashed):
    y: Any = attrs.field(kw_only=True)


class Model(pydantic.BaseModel):
    name: Any
    count: Any = 3
    tags: list[Any] = []
    doubled: Any = pydantic.Field(default_factory=lambda data: data["count"] * 2)
    _secret: Any = pydantic.PrivateAttr(default=5)
    _unset: Any = pydantic.PrivateAttr()

    @pydantic.field_validator("name")
    @classmethod
    def refuse(cls, value: Any) -> Any:
        if value == "never twice":
            raise ValueError("validated again")
        return value


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    x: Any = None


class Root(pydantic.RootModel[Any]):
    pass


@pydantic.dataclasses.dataclass
class PydanticDataclass:
    x: int
    y: Any = pydantic.Field(default=4)


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)


class Custom(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code


class Both(ValueError, OSError):
    pass


class Missing(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "No such file", path)


class Group(ExceptionGroup[Exception]):
    pass


@dataclasses.dataclass(frozen=True)
class FieldsError(Exception):
    code: Any
    detail: Any = "none"


@attrs.define
class AttrsError(Exception):
    code: Any


VALUE_CLASSES = [
    Colour,
    Size,
    Level,
    Right,
    Bits,
    Plain,
    Frozen,
    FrozenChild,
    Strict,
    Box,
    Renamed,
    Point,
    Point3,
    Private,
    Hashed,
    OldHashed,
    HashedChild,
    Model,
    Open,
    Root,
    PydanticDataclass,
    Custom,
    Both,
    Missing,
    Group,
    FieldsError,
    AttrsError,
]

for _class in VALUE_CLASSES:
    register(_class)
register(Money, encode=lambda money: money.cents, decode=Money)
register(complex, encode=lambda number: (number.real, number.imag), decode=lambda parts: complex(*parts))

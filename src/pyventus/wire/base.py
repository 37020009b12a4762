"""What every serializer is, and what those of Pyventus share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, TypeGuard, runtime_checkable

from pyventus.emission import Emission
from pyventus.errors import NotSerializable, Undecodable

__all__ = ["Content", "ContentSerializer", "Serializer"]

Content = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Event name, positional and keyword arguments: what a serializer carries. The rest travels in the envelope's head."""


@runtime_checkable
class Serializer(Protocol):
    """Turns an emission into bytes and back.

    Only ``args`` and ``kwargs`` of what `loads` returns are used; everything else about an emission travels beside
    the serializer's bytes, under the same signature.
    """

    @property
    def name(self) -> str:
        """Names the format on the wire: letters, digits, ``_`` and ``-``."""

    def dumps(self, emission: Emission, /) -> bytes:
        """The bytes that carry the emission's arguments."""

    def loads(self, data: bytes, /) -> Emission:
        """An emission with the arguments that `dumps` was given. Called for verified bytes only."""


class ContentSerializer(ABC):
    """A serializer of event, args and kwargs; a subclass says how these three become bytes."""

    name: str
    #: Whether all that it packs is printable ASCII, which need not be looked at then.
    packs_printable: ClassVar[bool] = False

    @abstractmethod
    def pack(self, content: Content) -> bytes:
        """May raise anything; what is not NotSerializable becomes its cause."""

    @abstractmethod
    def unpack(self, data: bytes) -> object:
        """May raise anything; what is not Undecodable becomes its cause."""

    def dumps(self, emission: Emission, /) -> bytes:
        """The bytes that carry event, args and kwargs.

        Raises:
            NotSerializable: an argument cannot travel.
        """
        content = emission.event, tuple(emission.args), dict(emission.kwargs)
        if not _is_content(content):
            raise NotSerializable(f"the names of the keyword arguments of {emission.event!r} must be plain text")
        try:
            return self.pack(content)
        except NotSerializable:
            raise
        except Exception as error:
            raise NotSerializable(
                f"the arguments of {emission.event!r} cannot travel as {self.name}: {type(error).__name__}: {error}"
            ) from error

    def loads(self, data: bytes, /) -> Emission:
        """An emission with only event, args and kwargs; its id is empty.

        Raises:
            Undecodable: the bytes do not fit this format, or the code of this process.
        """
        event, args, kwargs = self.content(data)
        return Emission(id="", event=event, args=args, kwargs=kwargs)

    def content(self, data: bytes) -> Content:
        """What the bytes carry.

        Raises:
            Undecodable: as `loads`.
        """
        try:
            content = self.unpack(data)
        except Undecodable:
            raise
        except Exception as error:  # RecursionError, MemoryError and decimal.InvalidOperation among them.
            raise Undecodable(
                f"the {self.name} of the arguments cannot be decoded here: {type(error).__name__}"
            ) from error
        if not _is_content(content):
            raise Undecodable(f"the {self.name} of the arguments is not an event name, a tuple and keyword arguments")
        return content


def _is_content(content: object) -> TypeGuard[Content]:
    if type(content) is not tuple or len(content) != 3:
        return False
    event, args, kwargs = content
    if type(event) is not str or type(args) is not tuple or type(kwargs) is not dict:
        return False
    return all(type(name) is str for name in kwargs) if kwargs else True

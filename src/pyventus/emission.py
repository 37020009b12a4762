"""The data of one ``emit``: what happened, to whom it is addressed, and when. Never code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pyventus.events import EventKey, event_keys


def new_id() -> str:
    return str(uuid4())


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """One event on its way to its handlers.

    The ``repr`` leaves out what the caller put in, so that it can be logged.

    Attributes:
        id: names the emission across all its messages; given by ``emit``, or by the caller.
        event: the event's name: the string that was emitted, or the wire name of the event's class.
        version: of the event's class; None for a string.
        bases: wire names of the bases of the event's class, nearest first.
        args: positional arguments of the handlers; an event object is the first.
        kwargs: keyword arguments of the handlers.
        timestamp: when ``emit`` was called (aware, UTC).
        due: before when no handler runs (aware), or None.
        expires: from when on no handler runs any more (aware), or None.
        priority: 0 to 9, 9 first, or None.
        linker: name of the linker whose handlers run.
        headers: of the caller's own, such as a request id.
        attempt: 1, and one more for each time that its handlers are run again because they failed.
        replay: 0, and one more for each time that it was replayed as a dead letter, when attempts start anew.
        suspect: whether a worker that held it has ended, perhaps because of it, so that it runs alone in its process.
        handlers: ids of the handlers still to run; empty: all that are linked to the event.
    """

    id: str = field(default_factory=new_id)
    event: str
    version: int | None = None
    bases: tuple[str, ...] = field(default=(), repr=False)
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    timestamp: datetime = field(default_factory=now)
    due: datetime | None = None
    expires: datetime | None = None
    priority: int | None = None
    linker: str = "default"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempt: int = 1
    replay: int = 0
    suspect: bool = field(default=False, repr=False)
    handlers: tuple[str, ...] = ()

    @property
    def keys(self) -> Iterator[EventKey]:
        """What handlers of this event are filed under in a linker."""
        return event_keys(self.event, self.version, self.bases)

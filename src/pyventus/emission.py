"""The data of one ``emit``: what happened, to whom it is addressed, and when. Never code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from pyventus import native
from pyventus.events import EventKey, event_keys


def new_id() -> str:
    """A random UUID (version 4), for less than half of what ``uuid.uuid4`` and ``str`` take."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


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
    def keys(self) -> tuple[EventKey, ...]:
        """What handlers of this event are filed under in a linker."""
        return event_keys(self.event, self.version, self.bases)


def _read_id(emission: Any) -> str:
    """What `make_emission` made without an id gets one once it is asked for it."""
    try:
        id: str = emission._id
    except AttributeError:
        id = _give_id(emission)
    return id


def _give_id(emission: Any) -> str:
    with _id_lock:
        if not hasattr(emission, "_id"):
            object.__setattr__(emission, "_id", new_id())
        id: str = emission._id
        return id


# What holds the id is `_id`, and `id` makes one where there is none. With a __getattr__ for it Python would take three
# times as long for each attribute.
_Untyped: Any = Emission
_Untyped._id = _Untyped.id
_Untyped.id = property(_read_id, _Untyped.id.__set__, doc="Names the emission across all its messages.")

_id_lock = native.new_lock()


def _renew_lock() -> None:
    # A thread that held it at the fork does not exist in the child.
    global _id_lock
    _id_lock = native.new_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class _Draft:
    """An emission that is still being filled.

    The ``__init__`` of a frozen dataclass sets each field with ``object.__setattr__``, which takes five times as long,
    and longer than all else that an emit in process does.
    """

    __slots__ = tuple(each.name for each in fields(Emission))


def make_emission(
    id: str | None,
    event: str,
    version: int | None,
    bases: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    timestamp: datetime,
    due: datetime | None,
    expires: datetime | None,
    priority: int | None,
    linker: str,
    headers: Mapping[str, str],
    attempt: int = 1,
    replay: int = 0,
    suspect: bool = False,
    handlers: tuple[str, ...] = (),
) -> Emission:
    """An emission with these fields; without an id it gets one when it is first asked for its id.

    To make one takes as long as all else that an emit in process does, and few handlers ask.
    """
    draft: Any = _Draft()
    if id is not None:
        draft.id = id
    draft.event, draft.version, draft.bases = event, version, bases
    draft.args, draft.kwargs, draft.timestamp, draft.due, draft.expires = args, kwargs, timestamp, due, expires
    draft.priority, draft.linker, draft.headers = priority, linker, headers
    draft.attempt, draft.replay, draft.suspect, draft.handlers = attempt, replay, suspect, handlers
    draft.__class__ = Emission  # Python allows it between classes with the same slots.
    emission: Emission = draft
    return emission

"""What a dead letter is, and what keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from pyventus.emission import new_id, now

__all__ = ["DeadLetter", "DeadLetterStore", "Reason"]

Reason = Literal["failed", "lost", "unhandled", "undecodable", "too old", "refused", "unreadable"]
"""Why a letter is in the store; "unreadable" is what the store gives for a record that is no letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An emission, with the handlers that failed and why, kept for a person to look at and replay.

    Everything but ``text`` is for people to read, and as trustworthy as the store: who can write to it can forge it.
    What a replay runs is read from ``text``, after its signature was verified.

    Attributes:
        id: names the letter.
        queue: logical name of the emission's queue.
        reason: why it is here.
        text: the signed envelope; of a refused message the text as it came.
        died: when it became a dead letter (aware, UTC).
        message_id: of the message that carried it.
        emission: id of the emission; empty if it was refused.
        event: name of the event; empty if it was refused.
        linker: name of the linker.
        handlers: ids of the handlers that are to run when it is replayed; empty: all that are linked to the event.
        attempt: how often they were run.
        replay: how often it was replayed before.
        timestamp: when it was emitted (aware), or None if it was refused.
        error: one line, what happened.
        traceback: of the last failure, if there was one.
    """

    id: str = field(default_factory=new_id)
    queue: str
    reason: Reason
    text: str = field(repr=False)
    died: datetime = field(default_factory=now)
    message_id: str
    emission: str = ""
    event: str = ""
    linker: str = ""
    handlers: tuple[str, ...] = ()
    attempt: int = 1
    replay: int = 0
    timestamp: datetime | None = None
    error: str = ""
    traceback: str = field(default="", repr=False)


@runtime_checkable
class DeadLetterStore(Protocol):
    """Keeps dead letters, and apart from them what was refused; both bounded, the oldest leave first.

    Any method may raise what its driver raises.
    """

    def add(self, letter: DeadLetter) -> None:
        """Store a letter durably before returning, apart from the others if its reason is "refused".

        One of the same id is stored, or at least shown, once.
        """

    def letters(self, queue: str, *, refused: bool = False) -> Iterator[DeadLetter]:
        """The letters of a queue, oldest first, or those of refused messages; none of them is changed by it.

        A record that cannot be read is a letter with the reason "unreadable" and an id to remove it by.
        """

    def remove(self, queue: str, ids: Iterable[str], *, refused: bool = False) -> int:
        """Remove letters; returns how many there were."""

    def purge(self, queue: str, *, refused: bool = False) -> int:
        """Remove all; returns how many there were."""

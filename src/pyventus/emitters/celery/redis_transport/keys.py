"""Where things are kept in Redis. Queues are kombu's own lists; all else begins with ``pyventus:``.

An entry is in exactly one place: its queue, the landing list of its queue (moved by a worker that waits, and not yet
taken by any), in flight in one worker, or among the delayed messages of its queue.
"""

from __future__ import annotations

import json
from collections.abc import Iterable


class Keys:
    """The keys below one ``global_keyprefix``."""

    def __init__(self, prefix: str) -> None:
        own = f"{prefix}pyventus:"
        #: The queues of each worker that may have something in flight, by session.
        self.sessions = f"{own}sessions"
        #: Sessions without a heartbeat, by when that was first seen.
        self.suspects = f"{own}suspects"
        #: There for as long as nobody is to look for dead workers again.
        self.looked = f"{own}looked"
        #: Queues, by when the first of their delayed messages is due.
        self.delays = f"{own}delays"
        #: An element for one worker that waits until the next delayed message is due: another one is due earlier.
        self.wake = f"{own}wake"
        self.alive_prefix = f"{own}alive:"
        self.delayed_prefix = f"{own}delayed:"
        self._own = own

    def alive(self, session: str) -> str:
        """The heartbeat, which expires."""
        return f"{self.alive_prefix}{session}"

    def in_flight(self, session: str) -> str:
        """What a worker has taken and not finished, by id."""
        return f"{self._own}in-flight:{session}"

    def landing(self, queue: str) -> str:
        """Where those who wait for a queue move what comes."""
        return f"{self._own}landing:{queue}"

    def delayed(self, queue: str) -> str:
        """Messages for a queue, by when they are due."""
        return f"{self.delayed_prefix}{queue}"

    def pairs(self, queues: Iterable[str]) -> list[str]:
        """Landing list and queue of each."""
        return [key for queue in queues for key in (self.landing(queue), queue)]


def id_of(number: int, queue: str) -> str:
    """The id of an entry in flight, which tells where it belongs; the fetch makes the same."""
    return f"{number}:{queue}"


def number_of(id: str) -> int:
    """Of two entries of a worker the one that came first has the lower one."""
    return int(id.partition(":")[0])


def queue_of(id: str) -> str:
    """The list that an entry in flight was taken from."""
    return id.partition(":")[2]


def as_redelivered(entry: bytes) -> bytes:
    """An entry with the marks that kombu gives to what it delivers again; what is no message stays as it is."""
    try:
        message = json.loads(entry)
        message["properties"]["delivery_info"]["redelivered"] = True
        message.setdefault("headers", {})["redelivered"] = True
        return json.dumps(message).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return entry

"""What any worker does for all: it moves what is due into its queue, and puts back what dead workers had."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from itertools import chain

from pyventus.emitters.celery.redis_transport.keys import Keys, as_redelivered, number_of, queue_of
from pyventus.emitters.celery.redis_transport.scripts import BURY, DEAD, PROMOTE, RESTORE, Execute

logger = logging.getLogger("pyventus")

PAGE = 100


def promote(execute: Execute, keys: Keys) -> float | None:
    """Move what is due; returns the seconds until the next is, None if there is none."""
    milliseconds = PROMOTE(execute, [keys.delays], keys.delayed_prefix, PAGE)
    return None if milliseconds < 0 else milliseconds / 1000


def sweep(execute: Execute, keys: Keys, interval: float) -> None:
    """Look for dead workers, unless somebody has within ``interval`` seconds, and put back what they had."""
    found = DEAD(execute, [keys.sessions, keys.suspects, keys.looked], keys.alive_prefix, int(interval * 1000))
    for name, queues in zip(found[::2], found[1::2], strict=True):
        session = name.decode()
        restored = restore(execute, keys, session, ids_in_flight(execute, keys, session), is_dead=True)
        if restored:
            logger.warning("%d messages of a worker that has died, or hangs, are delivered again", restored)
        own = [keys.alive(session), keys.in_flight(session), keys.sessions, keys.suspects]
        BURY(execute, [*own, *keys.pairs(json.loads(queues))], session)


def ids_in_flight(execute: Execute, keys: Keys, session: str) -> set[str]:
    """Of all entries that Redis holds for a session."""
    return {id.decode() for id in execute("HKEYS", keys.in_flight(session))}


def restore(
    execute: Execute, keys: Keys, session: str, ids: Collection[str], *, is_dead: bool = False, push: str = "RPUSH"
) -> int:
    """Put entries back into their queues, marked, those that came first to be delivered first.

    Whoever dies amid this has moved some, and left the others where they were.

    Args:
        execute: sends a command.
        keys: all keys.
        session: in which they are in flight.
        ids: of the entries.
        is_dead: leave them if the session has a heartbeat.
        push: RPUSH to be delivered next, LPUSH after all others.

    Returns:
        How many there were.
    """
    places = [keys.in_flight(session), *([keys.alive(session)] if is_dead else [])]
    restored = 0
    newest_first = sorted(ids, key=number_of, reverse=True)
    for start in range(0, len(newest_first), PAGE):
        page = newest_first[start : start + PAGE]
        found = execute("HMGET", places[0], *page)
        there = [(id, entry) for id, entry in zip(page, found, strict=True) if entry is not None]
        moves = [(id, queue_of(id), as_redelivered(entry)) for id, entry in there]
        restored += RESTORE(execute, places, push, *chain.from_iterable(moves))
    return restored

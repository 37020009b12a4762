"""Dead letters in Redis: of each queue the records by id, and the ids in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from pyventus.dead_letters.base import DeadLetter
from pyventus.dead_letters.places import Place
from pyventus.dead_letters.records import read_record, write_record

Execute = Callable[..., Any]

PAGE = 100
MICROSECONDS = 1_000_000

# By the server's clock, so that a worker whose clock is wrong removes nothing.
ADD = """
local function remove(ids)
    for _, id in ipairs(ids) do
        redis.call('HDEL', KEYS[1], id)
        redis.call('ZREM', KEYS[2], id)
    end
end

local id, record, limit, seconds = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = tonumber(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or 0)

if redis.call('HSETNX', KEYS[1], id, record) == 1 then
    redis.call('ZADD', KEYS[2], math.max(now, newest + 1), id)
end
remove(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - seconds * 1000000))
local excess = redis.call('ZCARD', KEYS[2]) - limit
if excess > 0 then remove(redis.call('ZRANGE', KEYS[2], 0, excess - 1)) end
redis.call('EXPIRE', KEYS[1], seconds)
redis.call('EXPIRE', KEYS[2], seconds)
"""

REMOVE = """
local removed = 0
for _, id in ipairs(ARGV) do
    redis.call('HDEL', KEYS[1], id)
    removed = removed + redis.call('ZREM', KEYS[2], id)
end
return removed
"""

PURGE = """
local removed = redis.call('ZCARD', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[2])
return removed
"""


class RedisShelf:
    """The letters of one place in Redis.

    Args:
        execute: sends one command. (Kombu's client would put its prefix before some keys, and not before others.)
        place: which.
        prefix: of all keys.
    """

    def __init__(self, execute: Execute, place: Place, prefix: str = "") -> None:
        self._execute = execute
        self._place = place
        # They are no queue's, which are named as it is. The braces keep both on one node of a cluster.
        key = f"{prefix}pyventus:{'refused' if place.refused else 'dead'}:{{{place.queue}}}"
        self._records, self._ids = f"{key}:records", f"{key}:ids"

    def add(self, letter: DeadLetter) -> None:
        """Add a letter and remove what is too much, in one step."""
        self._run(ADD, letter.id, write_record(letter), self._place.limit, self._place.seconds)

    def letters(self) -> list[DeadLetter]:
        """The letters, oldest first."""
        seconds, microseconds = self._execute("TIME")
        oldest = (int(seconds) - self._place.seconds) * MICROSECONDS + int(microseconds)
        return list(self._read(self._execute("ZRANGEBYSCORE", self._ids, f"({oldest}", "+inf")))

    def remove(self, ids: Collection[str]) -> int:
        """Remove letters; returns how many there were."""
        return sum(int(self._run(REMOVE, *map(_bytes, page))) for page in _pages(ids))

    def purge(self) -> int:
        """Remove all letters; returns how many there were."""
        return int(self._run(PURGE))

    def _run(self, script: str, *args: Any) -> Any:
        return self._execute("EVAL", script, 2, self._records, self._ids, *args)

    def _read(self, ids: Iterable[str | bytes]) -> Iterator[DeadLetter]:
        for page in _pages(ids):
            for id, record in zip(page, self._execute("HMGET", self._records, *page), strict=True):
                # What is missing was removed meanwhile.
                if record is not None:
                    yield read_record(record, self._place.queue, _text(id))


def _pages(ids: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(ids)
    while page := list(islice(rest, PAGE)):
        yield page


# Somebody may have put an id into the store that is no UTF-8.
def _text(id: str | bytes) -> str:
    return id.decode("utf-8", "surrogateescape") if isinstance(id, bytes) else id


def _bytes(id: str) -> bytes:
    return id.encode("utf-8", "surrogateescape")

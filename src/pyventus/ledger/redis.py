"""A ledger in Redis or Valkey. Each method is one script, which the server runs as a whole, by the server's clock."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from pyventus.errors import InvalidOption, MissingExtra
from pyventus.ledger.base import Claim, Key, Row, Settled, State, Turn, check_times, lease_lost
from pyventus.ledger.clients import Clients

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError:
    raise MissingExtra("RedisLedger needs redis, which is not installed: pip install 'pyventus[redis]'") from None

# Of each connect and each reply.
SOCKET_SECONDS = 5.0
# Of one script, which nothing else may run beside.
RENEWED_AT_ONCE = 500

# Times are microseconds, which the numbers of Lua hold exactly; as text they would lose digits without a format.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(number) return string.format('%.0f', number) end
"""

_CLAIM = (
    _NOW
    + """
local was = redis.call('HMGET', KEYS[1], 'state', 'replay', 'attempt', 'token', 'deaths', 'note', 'lease_end')
local state, note = was[1] or 'free', was[6] or ''
local turn = {tonumber(was[2] or 0), tonumber(was[3] or 0)}
local replay, attempt = tonumber(ARGV[1]), tonumber(ARGV[2])
local left = state == 'running' and math.max(0, was[7] - now) or 0
local is_earlier = turn[1] < replay or (turn[1] == replay and turn[2] < attempt)
local is_dead = state == 'running' and left == 0 and turn[1] == replay and turn[2] == attempt
if state ~= 'free' and (state == 'done' or left > 0 or not (is_earlier or is_dead)) then
    return {0, state, turn[1], turn[2], left, note}
end
local token = math.max(now, (was[4] or 0) + 1)
local deaths = is_dead and was[5] + 1 or 0
redis.call('HSET', KEYS[1], 'state', 'running', 'replay', ARGV[1], 'attempt', ARGV[2], 'token', text(token),
    'deaths', text(deaths), 'note', '', 'lease_end', text(now + ARGV[3]), 'was_state', state,
    'was_replay', was[2] or 0, 'was_attempt', was[3] or 0, 'was_deaths', was[5] or 0, 'was_note', note)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {1, token, deaths}
"""
)

_RENEW = (
    _NOW
    + """
local held = {}
for i, key in ipairs(KEYS) do
    local row = redis.call('HMGET', key, 'state', 'token')
    held[i] = (not row[2] or row[2] == ARGV[i + 2]) and 1 or 0
    if row[1] == 'running' and held[i] == 1 then
        redis.call('HSET', key, 'lease_end', text(now + ARGV[1]))
        redis.call('PEXPIRE', key, ARGV[2])
    end
end
return held
"""
)

_SETTLE = """
local row = redis.call('HMGET', KEYS[1], 'state', 'token')
if row[2] and row[2] ~= ARGV[1] then return '' end
if row[1] == 'done' then return row[1] end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'replay', ARGV[2], 'attempt', ARGV[3], 'deaths', ARGV[4],
    'state', ARGV[5], 'note', ARGV[6], 'lease_end', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return ARGV[5]
"""

_RELEASE = """
local row = redis.call('HMGET', KEYS[1], 'state', 'token', 'was_state', 'was_replay', 'was_attempt', 'was_deaths',
    'was_note')
if row[1] == 'running' and row[2] == ARGV[1] then
    redis.call('HSET', KEYS[1], 'state', row[3], 'replay', row[4], 'attempt', row[5], 'deaths', row[6],
        'note', row[7], 'lease_end', 0)
    redis.call('HINCRBY', KEYS[1], 'token', 1)
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
"""

_CLAIM_ONCE = """
local owner = redis.call('GET', KEYS[1])
if not owner then redis.call('SET', KEYS[1], ARGV[1]) end
return (not owner or owner == ARGV[1]) and 1 or 0
"""


class RedisLedger:
    """A ledger in Redis from 6.2 or Valkey, not in a cluster of them.

    The server needs ``maxmemory-policy noeviction``, and keeps through a crash what its persistence keeps.

    Args:
        server: a URL (``redis://``, ``rediss://`` or ``unix://``), or a client, whose own timeouts and retries hold;
            under gevent a URL.
        lease: seconds that a claim holds without being renewed.
        retention: how long a row is kept after it was last written.
        prefix: of all keys.

    Raises:
        InvalidOption: an argument has a value that it cannot have.
    """

    def __init__(
        self,
        server: str | redis.Redis,
        *,
        lease: float = 30.0,
        retention: timedelta = timedelta(days=14),
        prefix: str = "pyventus:ledger:",
    ) -> None:
        check_times(lease, retention)
        self._lease, self._retention, self._prefix = lease, retention, prefix
        self._is_own = isinstance(server, str)
        client = _connect(server) if isinstance(server, str) else server
        self._clients = Clients(lambda: _connect(server) if isinstance(server, str) else server, client)
        self._claim = client.register_script(_CLAIM)
        self._renew = client.register_script(_RENEW)
        self._settle = client.register_script(_SETTLE)
        self._release = client.register_script(_RELEASE)
        self._claim_once = client.register_script(_CLAIM_ONCE)

    @property
    def lease(self) -> float:
        return self._lease

    @property
    def retention(self) -> timedelta:
        return self._retention

    def claim(self, key: Key, turn: Turn) -> Claim | Row:
        reply = self._run(self._claim, [self._row(key)], [*turn, self._lease_us, self._running_ms])
        if reply[0]:
            return Claim(key, turn, token=reply[1], deaths=reply[2])
        _, state, replay, attempt, left, note = reply
        return Row(cast(State, _text(state)), (replay, attempt), left / 1e6, _text(note))

    def renew(self, claims: list[Claim]) -> list[Claim]:
        held: list[Claim] = []
        for start in range(0, len(claims), RENEWED_AT_ONCE):
            some = claims[start : start + RENEWED_AT_ONCE]
            keys = [self._row(claim.key) for claim in some]
            tokens = [claim.token for claim in some]
            flags = self._run(self._renew, keys, [self._lease_us, self._running_ms, *tokens])
            held += [claim for claim, is_held in zip(some, flags, strict=True) if is_held]
        return held

    def settle(self, claim: Claim, state: Settled, note: str = "") -> Settled:
        note = note if state == "owed" else ""
        values = [claim.token, *claim.turn, claim.deaths, state, note, _milliseconds(self._retention)]
        settled = _text(self._run(self._settle, [self._row(claim.key)], values))
        if not settled:
            raise lease_lost(claim)
        return cast(Settled, settled)

    def release(self, claim: Claim) -> None:
        self._run(self._release, [self._row(claim.key)], [claim.token, _milliseconds(self._retention)])

    def claim_once(self, handler: Key) -> bool:
        key = f"{self._prefix}once:{_escape(handler.queue)}:{handler.handler}"
        return bool(self._run(self._claim_once, [key], [handler.emission]))

    def prune(self) -> int:
        """Nothing: the server drops rows by itself."""
        return 0

    def close(self) -> None:
        if self._is_own:
            self._clients.get().close()

    def _run(self, script: Any, keys: list[str], values: list[str | int]) -> Any:
        return script(keys, values, client=self._clients.get())

    def _row(self, key: Key) -> str:
        return f"{self._prefix}row:{_escape(key.queue)}:{_escape(key.emission)}:{key.handler}"

    @property
    def _lease_us(self) -> int:
        return round(self._lease * 1e6)

    @property
    def _running_ms(self) -> int:
        """A process that died leaves a row that nobody may ever claim again."""
        return _milliseconds(self._retention + timedelta(seconds=self._lease))

    def __repr__(self) -> str:
        options = self._clients.get().get_connection_kwargs()
        place = options.get("path") or f"{options.get('host')}:{options.get('port')}"
        retention = self._retention / timedelta(days=1)
        return f"<RedisLedger {place}/{options.get('db', 0)}, lease {self._lease:g} s, retention {retention:g} days>"


def _connect(url: str) -> redis.Redis:
    try:
        # By default a client repeats what it got no reply to, ten times and more.
        return redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        # Its text may hold a part of the password.
        raise InvalidOption(
            "the URL of a RedisLedger cannot be read: it is redis://, rediss:// or unix://, and %, /, ? and # in a "
            "password are percent-encoded"
        ) from None


def _escape(part: str) -> str:
    """So that two keys of which one is ``a:b`` and ``c``, the other ``a`` and ``b:c``, are not the same."""
    return part.replace("%", "%25").replace(":", "%3A")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _milliseconds(span: timedelta) -> int:
    return max(1, round(span.total_seconds() * 1000))

"""A ledger in SQLite or PostgreSQL, where a handler can be recorded as done in the transaction of its own effects."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pyventus.errors import ConfigurationError, InvalidOption, LeaseLost, MissingExtra, PyventusError
from pyventus.ledger.base import Claim, Key, Row, Settled, State, Turn, check_times, lease_lost, running_claim
from pyventus.ledger.clients import Clients

try:
    import sqlalchemy as sa
    from sqlalchemy.engine import URL, Connection, Engine, make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
    from sqlalchemy.schema import CreateIndex, CreateTable
except ModuleNotFoundError:
    raise MissingExtra(
        "SQLLedger needs SQLAlchemy, which is not installed: pip install 'pyventus[sqlalchemy]'"
    ) from None

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

T = TypeVar("T")

logger = logging.getLogger("pyventus")

# Of a connect, of a statement, of waiting for a lock or for a free connection.
SECONDS = 5
PRUNE_SECONDS = 3600.0
PRUNED_AT_ONCE = 1000
PRUNE_AGAIN_SECONDS = 1.0
RENEWED_AT_ONCE = 100
SCHEMES = ("sqlite", "postgresql+psycopg")
# What is in a row is nobody's business who reads the log.
_OPTIONS: Any = {"pool_timeout": SECONDS, "hide_parameters": True}
# The first with RETURNING.
OLDEST_SQLITE = (3, 35)
# Any number: who makes tables takes the lock of this one.
_MAKING_TABLES = 5_709_174_011

# Microseconds by the server's clock; in PostgreSQL not now(), which stands still in a transaction that waits.
_NOW = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
}

_CLAIM = """
INSERT INTO "{table}" AS kept (
    queue, emission, handler, state, replay, attempt, token, deaths, note, lease_end, keep_until,
    was_state, was_replay, was_attempt, was_deaths, was_note
) VALUES (
    :queue, :emission, :handler, 'running', :replay, :attempt, {now}, 0, '',
    {now} + :lease, {now} + :lease + :retention, 'free', 0, 0, 0, ''
)
ON CONFLICT (queue, emission, handler) DO UPDATE SET
    state = 'running', replay = excluded.replay, attempt = excluded.attempt,
    token = CASE WHEN excluded.token > kept.token THEN excluded.token ELSE kept.token + 1 END,
    deaths = CASE
        WHEN kept.state = 'running' AND (kept.replay, kept.attempt) = (excluded.replay, excluded.attempt)
        THEN kept.deaths + 1 ELSE 0 END,
    note = '', lease_end = {now} + :lease, keep_until = {now} + :lease + :retention,
    was_state = kept.state, was_replay = kept.replay, was_attempt = kept.attempt, was_deaths = kept.deaths,
    was_note = kept.note
WHERE kept.state = 'free'
    OR (
        kept.state <> 'done' AND (kept.state <> 'running' OR kept.lease_end <= {now})
        AND (kept.replay, kept.attempt) < (excluded.replay, excluded.attempt)
    )
    OR (
        kept.state = 'running' AND kept.lease_end <= {now}
        AND (kept.replay, kept.attempt) = (excluded.replay, excluded.attempt)
    )
RETURNING token, deaths
"""

_READ = """
SELECT state, replay, attempt, token, note, CASE WHEN state = 'running' THEN lease_end - {now} ELSE 0 END AS lease
FROM "{table}" WHERE queue = :queue AND emission = :emission AND handler = :handler
"""

_SETTLE = """
INSERT INTO "{table}" AS kept (
    queue, emission, handler, state, replay, attempt, token, deaths, note, lease_end, keep_until,
    was_state, was_replay, was_attempt, was_deaths, was_note
) VALUES (
    :queue, :emission, :handler, :state, :replay, :attempt, :token, :deaths, :note, 0, {now} + :retention,
    'free', 0, 0, 0, ''
)
ON CONFLICT (queue, emission, handler) DO UPDATE SET
    state = excluded.state, note = excluded.note, lease_end = 0, keep_until = excluded.keep_until
WHERE kept.token = excluded.token AND (kept.state <> 'done' OR excluded.state = 'done')
RETURNING state
"""

_RECORD = """
UPDATE "{table}" SET state = 'done', note = '', lease_end = 0, keep_until = {now} + :retention
WHERE queue = :queue AND emission = :emission AND handler = :handler AND token = :token AND state IN ('running', 'done')
"""

_RELEASE = """
UPDATE "{table}" SET
    state = was_state, replay = was_replay, attempt = was_attempt, deaths = was_deaths, note = was_note, lease_end = 0,
    token = token + 1, keep_until = {now} + :retention
WHERE queue = :queue AND emission = :emission AND handler = :handler AND token = :token AND state = 'running'
"""

_CLAIM_ONCE = """
INSERT INTO "{table}_once" (queue, handler, emission) VALUES (:queue, :handler, :emission) ON CONFLICT DO NOTHING
"""

_ONCE_OWNER = 'SELECT emission FROM "{table}_once" WHERE queue = :queue AND handler = :handler'


class SQLLedger:
    """A ledger in SQLite from 3.35, in a file, or in PostgreSQL, through psycopg from 3.2.

    Its tables are made when they are first needed and missing.

    Args:
        database: a URL (``sqlite:///...`` or ``postgresql+psycopg://...``), or an engine, whose own settings and
            timeouts hold.
        lease: seconds that a claim holds without being renewed.
        retention: how long a row is kept after it was last written.
        table: name of its table, and with ``_once`` after it of the other one.

    Attributes:
        metadata: holds the two tables, for who makes them himself, as with Alembic.

    Raises:
        InvalidOption: an argument has a value that it cannot have.
        MissingExtra: the driver is not installed.
    """

    def __init__(
        self,
        database: str | URL | Engine,
        *,
        lease: float = 30.0,
        retention: timedelta = timedelta(days=14),
        table: str = "pyventus_ledger",
    ) -> None:
        check_times(lease, retention)
        self.metadata = sa.MetaData()
        self._lease, self._retention = lease, retention
        self._table = _define_tables(_check_table(table), self.metadata)
        self._is_own = not isinstance(database, Engine)
        engine = database if isinstance(database, Engine) else _make_engine(_check_url(database))
        _check_dialect(engine)
        self._engines = Clients(lambda: _copy_of(engine), engine)
        self._sql = _Statements(self._table, _NOW[engine.dialect.name])
        self._is_ready = False
        self._prune_at = 0.0

    @property
    def lease(self) -> float:
        return self._lease

    @property
    def retention(self) -> timedelta:
        return self._retention

    def claim(self, key: Key, turn: Turn) -> Claim | Row:
        with self._connect() as connection:
            found: Claim | Row | None = None
            while found is None:  # The row that was in the way may be gone when one looks at it.
                found = self._try_claim(connection, key, turn) or self._read(connection, key)
        self._prune_now_and_then()
        return found

    def _try_claim(self, connection: Connection, key: Key, turn: Turn) -> Claim | None:
        values = {**_columns(key), "replay": turn[0], "attempt": turn[1], **self._times()}
        row = connection.execute(self._sql.claim, values).one_or_none()
        return None if row is None else Claim(key, turn, token=row.token, deaths=row.deaths)

    def _read(self, connection: Connection, key: Key) -> Row | None:
        row = connection.execute(self._sql.read, _columns(key)).one_or_none()
        if row is None or row.state == "free":
            return None
        return Row(cast(State, row.state), (row.replay, row.attempt), max(0.0, row.lease / 1e6), row.note)

    def renew(self, claims: list[Claim]) -> list[Claim]:
        held: list[Claim] = []
        with self._connect() as connection:
            for start in range(0, len(claims), RENEWED_AT_ONCE):
                held += self._renew(connection, claims[start : start + RENEWED_AT_ONCE])
        return held

    def _renew(self, connection: Connection, claims: list[Claim]) -> list[Claim]:
        rows = [(*_columns(claim.key).values(), claim.token) for claim in claims]
        connection.execute(self._sql.renew, {"rows": rows, **self._times()})
        found = connection.execute(self._sql.tokens, {"keys": [row[:3] for row in rows]})
        tokens = {Key(row.queue, row.emission, row.handler): row.token for row in found}
        return [claim for claim in claims if tokens.get(claim.key, claim.token) == claim.token]

    def settle(self, claim: Claim, state: Settled, note: str = "") -> Settled:
        note = note if state == "owed" else ""
        values = {**self._held(claim), "deaths": claim.deaths, "state": state, "note": note}
        values |= {"replay": claim.turn[0], "attempt": claim.turn[1]}
        with self._connect() as connection:
            if connection.execute(self._sql.settle, values).one_or_none() is not None:
                return state
            row = connection.execute(self._sql.read, _columns(claim.key)).one_or_none()
        if row is None or row.token != claim.token:
            raise lease_lost(claim)
        return cast(Settled, row.state)

    def record(self, session: Session | scoped_session[Any] | Connection) -> None:
        """Mark the handler that runs here as done, in the caller's transaction, which the caller commits.

        So its effects and the fact that it has run are stored together or not at all. The session must be one of the
        ledger's own database. Of an ``AsyncSession``: ``await session.run_sync(ledger.record)``.

        Raises:
            LeaseLost: another process has claimed the handler, or this run has been counted as failed; roll back.
            PyventusError: no handler runs here, its row is not in this database, or the connection commits each
                statement by itself.
        """
        claim = running_claim()
        connection = _connection_of(session)
        if connection.execute(self._sql.record, self._held(claim)).rowcount == 1:
            return
        row = connection.execute(self._sql.read, _columns(claim.key)).one_or_none()
        if row is None:
            raise PyventusError(
                f"the row of handler {claim.key.handler} on emission {claim.key.emission} is not in table "
                f"{self._table.name!r} of this session's database: record with the ledger that the queue was given, in "
                "a session of the ledger's own database"
            )
        if row.token != claim.token:
            raise lease_lost(claim)
        raise LeaseLost(
            f"handler {claim.key.handler} of emission {claim.key.emission} has been counted as failed meanwhile, as "
            "after its timeout"
        )

    def release(self, claim: Claim) -> None:
        with self._connect() as connection:
            connection.execute(self._sql.release, self._held(claim))

    def claim_once(self, handler: Key) -> bool:
        with self._connect() as connection:
            connection.execute(self._sql.claim_once, _columns(handler))
            owner = connection.execute(self._sql.once_owner, _columns(handler)).scalar_one()
        return bool(owner == handler.emission)

    def prune(self) -> int:
        """Delete rows past their retention; returns how many. Claims do it too, once an hour in each process."""
        pruned = batch = self._prune_batch()
        while batch == PRUNED_AT_ONCE:
            batch = self._prune_batch()
            pruned += batch
        return pruned

    def _prune_now_and_then(self) -> None:
        if time.monotonic() < self._prune_at:
            return
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        try:
            if self._prune_batch() == PRUNED_AT_ONCE:
                self._prune_at = time.monotonic() + PRUNE_AGAIN_SECONDS
        except DBAPIError as error:
            logger.warning("Old rows of %r could not be deleted, which is tried again in an hour: %r", self, error)

    def _prune_batch(self) -> int:
        with self._connect() as connection:
            return connection.execute(self._sql.prune).rowcount

    def close(self) -> None:
        if self._is_own:
            self._engines.get().dispose()

    def _connect(self) -> Connection:
        """A connection that commits each statement, so that a method costs one round trip."""
        engine = self._engines.get()
        if not self._is_ready:
            self._make_ready(engine)
        return engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _make_ready(self, engine: Engine) -> None:
        if self._is_own and engine.dialect.name == "sqlite":
            _write_ahead(engine)
        with engine.begin() as connection:
            inspector = sa.inspect(connection)
            if not all(inspector.has_table(name) for name in self.metadata.tables):
                _make_tables(connection, self.metadata)
        self._is_ready = True

    def _times(self) -> dict[str, int]:
        return {"lease": _microseconds(timedelta(seconds=self._lease)), "retention": _microseconds(self._retention)}

    def _held(self, claim: Claim) -> dict[str, Any]:
        return {**_columns(claim.key), "token": claim.token, "retention": _microseconds(self._retention)}

    def __repr__(self) -> str:
        url = self._engines.get().url
        place = f"{url.host}:{url.port or 5432}/{url.database}" if url.host else url.database
        return (
            f"<SQLLedger {url.get_backend_name()} {place} {self._table.name}, lease {self._lease:g} s, "
            f"retention {self._retention / timedelta(days=1):g} days>"
        )


def _columns(key: Key) -> dict[str, str]:
    return {"queue": key.queue, "emission": key.emission, "handler": key.handler}


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _connection_of(session: Session | scoped_session[Any] | Connection) -> Connection:
    if hasattr(session, "run_sync"):
        raise PyventusError("record() is synchronous: await session.run_sync(ledger.record)")
    connection = session if isinstance(session, Connection) else session.connection()
    commits = getattr(connection.connection.dbapi_connection, "autocommit", None) is True
    if commits or connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise PyventusError(
            "record() was given a connection in AUTOCOMMIT, which would store that the handler is done before its "
            "effects: give it one with a transaction"
        )
    return connection


# -- Tables and statements ----------------------------------------------------------------------------------------


def _define_tables(name: str, metadata: sa.MetaData) -> sa.Table:
    sa.Table(
        f"{name}_once",
        metadata,
        *(sa.Column(column, sa.Text, primary_key=True) for column in ("queue", "handler")),
        sa.Column("emission", sa.Text, nullable=False),
    )
    return sa.Table(
        name,
        metadata,
        *(sa.Column(column, sa.Text, primary_key=True) for column in ("queue", "emission", "handler")),
        sa.Column("state", sa.Text, nullable=False),
        *_numbers("replay", "attempt", "token", "deaths"),
        sa.Column("note", sa.Text, nullable=False),
        *_numbers("lease_end"),
        sa.Column("keep_until", sa.BigInteger, nullable=False, index=True),
        # What the row was before it was claimed, for a release.
        sa.Column("was_state", sa.Text, nullable=False),
        *_numbers("was_replay", "was_attempt", "was_deaths"),
        sa.Column("was_note", sa.Text, nullable=False),
    )


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _make_tables(connection: Connection, metadata: sa.MetaData) -> None:
    if connection.dialect.name == "postgresql":
        # IF NOT EXISTS alone fails when two do it at once.
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MAKING_TABLES})"))
    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))


class _Statements:
    """What a ledger executes, the same for both databases but for the clock."""

    def __init__(self, table: sa.Table, now: str) -> None:
        # Its name was checked.
        self.claim, self.read, self.settle, self.record, self.release, self.claim_once, self.once_owner = (
            sa.text(text.format(table=table.name, now=now))
            for text in (_CLAIM, _READ, _SETTLE, _RECORD, _RELEASE, _CLAIM_ONCE, _ONCE_OWNER)
        )
        clock: sa.ColumnElement[int] = sa.literal_column(now, sa.BigInteger)
        self.renew = _renew_statement(table, clock)
        columns = _key_columns(table)
        self.tokens = sa.select(*columns, table.c.token).where(
            sa.tuple_(*columns).in_(sa.bindparam("keys", expanding=True))
        )
        self.prune = _prune_statement(table, clock)


def _key_columns(table: sa.Table) -> list[sa.Column[Any]]:
    return [table.c.queue, table.c.emission, table.c.handler]


# Both pass over rows that somebody has locked: the one row that a handler has recorded in a long transaction must not
# hold up the others. Nobody can claim that row meanwhile. (SQLite has no locks of rows; the clause is left out there.)


def _renew_statement(table: sa.Table, clock: sa.ColumnElement[int]) -> sa.Update:
    columns = sa.tuple_(*_key_columns(table), table.c.token)
    held = sa.select(*_key_columns(table), table.c.token).where(
        columns.in_(sa.bindparam("rows", expanding=True)), table.c.state == "running"
    )
    lease: sa.BindParameter[int] = sa.bindparam("lease", type_=sa.BigInteger)
    return (
        sa.update(table)
        .where(columns.in_(held.with_for_update(skip_locked=True)))
        .values(lease_end=clock + lease, keep_until=clock + lease + sa.bindparam("retention", type_=sa.BigInteger))
    )


def _prune_statement(table: sa.Table, clock: sa.ColumnElement[int]) -> sa.Delete:
    old = sa.select(*_key_columns(table)).where(table.c.keep_until < clock).limit(PRUNED_AT_ONCE)
    return sa.delete(table).where(sa.tuple_(*_key_columns(table)).in_(old.with_for_update(skip_locked=True)))


# -- Engines --------------------------------------------------------------------------------------------------------


def _check_table(name: str) -> str:
    if not (isinstance(name, str) and name.isidentifier() and name.isascii() and len(name) <= 50):
        raise InvalidOption(f"table must be a name of up to 50 ASCII letters, digits and underscores, not {name!r}")
    return name.lower()


def _check_url(database: str | URL) -> URL:
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):
        # Its text may hold a part of the password.
        raise InvalidOption(
            "the URL of a SQLLedger cannot be read: it is sqlite:///path or postgresql+psycopg://user@host/database, "
            "and @, :, / and % in a password are percent-encoded"
        ) from None
    if url.drivername not in SCHEMES:
        raise InvalidOption(f"the URL of a SQLLedger begins with {' or '.join(SCHEMES)}, not {url.drivername}")
    if url.drivername == "sqlite" and _is_in_memory(url):
        raise InvalidOption("a ledger in memory is lost with its process: name a file, as in sqlite:///ledger.db")
    return url


def _is_in_memory(url: URL) -> bool:
    return url.database in (None, "", ":memory:") or "memory" in (url.query.get("mode"), url.query.get("vfs"))


def _copy_of(engine: Engine) -> Engine:
    """The same with connections of its own."""
    return Engine(engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=engine.hide_parameters)


def _make_engine(url: URL) -> Engine:
    if url.drivername == "sqlite":
        return sa.create_engine(url, connect_args={"timeout": SECONDS}, **_OPTIONS)
    try:
        engine = sa.create_engine(url, connect_args=_postgresql_options(url), **_OPTIONS)
    except ModuleNotFoundError:
        raise MissingExtra(
            "a SQLLedger in PostgreSQL needs psycopg, which is not installed: pip install 'psycopg[binary]'"
        ) from None
    sa.event.listen(engine, "do_connect", _connect_within)
    return engine


def _postgresql_options(url: URL) -> dict[str, object]:
    own = {"connect_timeout": SECONDS, "options": f"-c statement_timeout={SECONDS * 1000}"}
    return {name: value for name, value in own.items() if name not in url.query}


def _connect_within(dialect: object, record: object, args: Iterable[Any], options: Mapping[str, Any]) -> Any:
    """Connect as psycopg does; its own connection would wait for ever for a server that hangs."""
    from psycopg import Connection, OperationalError

    class DeadlineConnection(Connection[Any]):
        def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
            return super().wait(self._until(gen, time.monotonic() + SECONDS + 1), *args, **options)

        def _until(self, gen: Generator[Any, Any, T], end: float) -> Generator[Any, Any, T]:
            """``gen``, which psycopg, from 3.2, sends something several times a second, ready or not."""
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if not ready and time.monotonic() > end:
                        self.close()
                        raise OperationalError(f"the server did not answer within {SECONDS + 1} s")
                    wanted = gen.send(ready)
            except StopIteration as stop:
                result: T = stop.value
                return result

    return DeadlineConnection.connect(*args, **options)


def _check_dialect(engine: Engine) -> None:
    if engine.dialect.name not in _NOW:
        raise InvalidOption(f"a SQLLedger is in SQLite or PostgreSQL, and this engine in {engine.dialect.name}")
    if engine.dialect.name == "sqlite":
        import sqlite3

        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigurationError(
                f"a SQLLedger needs SQLite {'.'.join(map(str, OLDEST_SQLITE))}, and this Python has "
                f"{sqlite3.sqlite_version}"
            )


def _write_ahead(engine: Engine) -> None:
    """Switch the file to WAL, for good, so that readers and the writer do not wait for one another."""
    end = time.monotonic() + SECONDS
    with engine.connect() as connection:
        while connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() != "wal":
            try:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            except OperationalError:
                # Somebody else uses the file; SQLite's own timeout does not hold here.
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

"""What holds for every ledger: whatever the database, the same claims are granted and the same are refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pyventus import PyventusError
from pyventus.errors import LeaseLost
from pyventus.ledger import redis as redis_ledger
from pyventus.ledger import sql as sql_ledger
from pyventus.ledger.base import Claim, Key, Ledger, Row, Settled, Turn, current_claim
from tests.brokers import FreezableProxy, Valkey

from .ledgers import ROOT, Place, Shop, effects_table

KINDS = ("redis", "sqlite", "postgresql")
TURN = (0, 2)


def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    name = f"ledger_{uuid4().hex[:12]}"
    if kind == "sqlite":
        return Place(kind, f"sqlite:///{folder / 'ledger.db'}", name)
    if kind == "redis":
        return Place(kind, request.getfixturevalue("valkey").url, name)
    return Place(kind, request.getfixturevalue("postgres_url"), name)


@contextlib.contextmanager
def somewhere(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    """A place with no rows, and, in a database, no tables."""
    place = place_of(kind, request, folder)
    try:
        yield place
    finally:
        if place.kind == "postgresql":
            drop_tables(place)


def drop_tables(place: Place) -> None:
    engine = sa.create_engine(place.url)
    place.open_sql().metadata.drop_all(engine)
    effects_table(place.name).drop(engine, checkfirst=True)
    engine.dispose()


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with somewhere(request.param, request, tmp_path_factory.mktemp("ledger")) as place:
        yield place


@pytest.fixture(scope="module", params=KINDS[1:])
def sql_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with somewhere(request.param, request, tmp_path_factory.mktemp("ledger")) as place:
        yield place


@pytest.fixture(params=KINDS)
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with somewhere(request.param, request, tmp_path) as place:
        yield place


@pytest.fixture(params=KINDS[1:])
def new_sql_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with somewhere(request.param, request, tmp_path) as place:
        yield place


@pytest.fixture
def postgres_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with somewhere("postgresql", request, tmp_path) as place:
        yield place


@pytest.fixture(scope="module")
def ledger(place: Place) -> Iterator[Ledger]:
    ledger = place.open()
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def shop(sql_place: Place) -> Iterator[Shop]:
    ledger = sql_place.open_sql()
    ledger.claim(new_key(), (0, 1))
    shop = Shop(sql_place, ledger)
    yield shop
    shop.engine.dispose()
    ledger.close()


@pytest.fixture
def in_handler() -> Iterator[Any]:
    """Sets the claim under which the test, as a handler, runs."""
    tokens = []
    yield lambda claim: tokens.append(current_claim.set(claim))
    for token in reversed(tokens):
        current_claim.reset(token)


def new_key() -> Key:
    return Key("orders", str(uuid4()), "stock")


def granted(reply: Claim | Row) -> Claim:
    assert isinstance(reply, Claim), reply
    return reply


def denied(reply: Claim | Row) -> Row:
    assert isinstance(reply, Row), reply
    return reply


def look(ledger: Ledger, key: Key) -> Row:
    """A row as it is; no turn is as early as this one."""
    return denied(ledger.claim(key, (-1, 0)))


def die(place: Place, key: Key, turn: Turn) -> Claim:
    """Claim as a process that dies would, and wait until its lease has run out."""
    hasty = place.open(lease=0.001)
    claim = granted(hasty.claim(key, turn))
    run_out(hasty, key)
    hasty.close()
    return claim


def run_out(ledger: Ledger, key: Key) -> None:
    deadline = time.monotonic() + 20
    while look(ledger, key).lease > 0:
        assert time.monotonic() < deadline, "the lease never ends"


# -- The table of states ----------------------------------------------------------------------------------------------

STATES = ("running", "dead process", "owed", "done", "dead")
EARLIER, LATER = [(0, 1), (0, 0)], [(0, 3), (1, 1)]


def bring_about(place: Place, ledger: Ledger, key: Key, state: Any, turn: Turn = TURN) -> Claim:
    if state == "dead process":
        return die(place, key, turn)
    claim = granted(ledger.claim(key, turn))
    if state != "running":
        ledger.settle(claim, state, "what is owed")
    return claim


@pytest.mark.parametrize("state", STATES)
def test_an_earlier_turn_is_denied(place: Place, ledger: Ledger, state: str) -> None:
    """Whatever the row says: it has been run, and something later has come of it."""
    key = new_key()
    bring_about(place, ledger, key, state)
    for turn in EARLIER:
        assert denied(ledger.claim(key, turn)).turn == TURN
    assert denied(ledger.claim(key, TURN)).turn == TURN if state != "dead process" else True


@pytest.mark.parametrize("state", STATES)
def test_the_same_turn_is_granted_after_a_death_only(place: Place, ledger: Ledger, state: Any) -> None:
    """What is denied comes with the row as it is."""
    key = new_key()
    before = bring_about(place, ledger, key, state)
    reply = ledger.claim(key, TURN)
    if state == "dead process":
        assert granted(reply).deaths == 1
        assert granted(reply).token > before.token
        return
    row = denied(reply)
    assert (row.state, row.turn) == (state, TURN)
    assert row.note == ("what is owed" if state == "owed" else "")
    assert 0 < row.lease <= 60 if state == "running" else row.lease == 0


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("turn", LATER)
def test_a_later_turn_is_granted_unless_one_runs_or_it_is_done(
    place: Place, ledger: Ledger, state: str, turn: Turn
) -> None:
    """A retry, or a replay, whose attempts start anew; a replay may be for handlers of which some are done."""
    key = new_key()
    before = bring_about(place, ledger, key, state)
    reply = ledger.claim(key, turn)
    if state in ("running", "done"):
        assert denied(reply).state == state
        return
    claim = granted(reply)
    assert (claim.key, claim.turn, claim.deaths) == (key, turn, 0)
    assert claim.token > before.token
    row = denied(ledger.claim(key, turn))
    assert (row.state, row.turn, row.note) == ("running", turn, "")


def test_a_later_replay_outranks_attempts(ledger: Ledger) -> None:
    key = new_key()
    ledger.settle(granted(ledger.claim(key, (0, 9))), "dead")
    ledger.settle(granted(ledger.claim(key, (1, 1))), "done")
    assert denied(ledger.claim(key, (0, 10))) == Row("done", (1, 1))


def test_keys_are_apart(ledger: Ledger) -> None:
    """Also where one's queue ends as another's emission begins."""
    parts = [
        ("a:b", "c", "d"),
        ("a", "b:c", "d"),
        ("a", "b", "c:d"),
        ("a%3Ab", "c", "d"),
        ("a", "b", "é 'd\""),
        ("a", "b", "d"),
    ]
    claims = [granted(ledger.claim(Key(*each), (0, 1))) for each in parts]
    assert all(ledger.claim_once(Key(*each)) for each in parts if each[2] == "c:d" or each[0] != "a")
    for claim in claims:
        ledger.settle(claim, "owed", claim.key.handler)
    assert [look(ledger, claim.key).note for claim in claims] == [each[2] for each in parts]


def test_a_note_comes_back_whole(ledger: Ledger) -> None:
    key, note = new_key(), "é\n'\"\\%:x" * 400
    ledger.settle(granted(ledger.claim(key, (0, 1))), "owed", note)
    assert look(ledger, key).note == note


# -- Settling ---------------------------------------------------------------------------------------------------------


def test_what_is_owed_can_be_settled_again(ledger: Ledger) -> None:
    key = new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    for state, note in (("owed", "first"), ("owed", "second"), ("dead", ""), ("done", "")):
        assert ledger.settle(claim, state, note) == state  # type: ignore[arg-type]
        assert look(ledger, key) == Row(state, (0, 1), note=note)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["owed", "dead"])
def test_what_is_done_stays_done(ledger: Ledger, state: Settled) -> None:
    key = new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    assert ledger.settle(claim, "done") == "done"
    assert ledger.settle(claim, "done") == "done"
    assert ledger.settle(claim, state, "owed") == "done"
    assert look(ledger, key) == Row("done", (0, 1))


def test_a_lease_that_ran_out_is_no_loss(place: Place, ledger: Ledger) -> None:
    """As long as nobody else has claimed the row."""
    key = new_key()
    claim = die(place, key, (0, 1))
    assert ledger.renew([claim]) == [claim]
    assert look(ledger, key).lease > 0
    second = die(place, new_key(), (0, 1))
    assert ledger.settle(second, "done") == "done"


@pytest.mark.parametrize("successor", ["running", "owed", "done", "dead", "released", "later turn"])
def test_a_zombie_changes_nothing(place: Place, ledger: Ledger, successor: Any) -> None:
    """It neither settles nor renews nor releases what somebody else has claimed."""
    key = new_key()
    zombie = die(place, key, (0, 1))
    claim = granted(ledger.claim(key, (0, 2) if successor == "later turn" else (0, 1)))
    if successor == "released":
        ledger.release(claim)
    elif successor not in ("running", "later turn"):
        ledger.settle(claim, successor, "its own")
    before = look(ledger, key)
    for state in ("owed", "done", "dead"):
        with pytest.raises(LeaseLost, match=f"handler stock of emission {key.emission}"):
            ledger.settle(zombie, state, "the zombie's")  # type: ignore[arg-type]
    assert ledger.renew([zombie, claim]) == ([] if successor == "released" else [claim])
    ledger.release(zombie)
    after = look(ledger, key)
    assert (after.state, after.turn, after.note) == (before.state, before.turn, before.note)
    assert (after.lease > 0) == (before.lease > 0)


def test_deaths_are_counted_for_each_turn(place: Place, ledger: Ledger) -> None:
    key = new_key()
    assert [die(place, key, (0, 1)).deaths for _ in range(4)] == [0, 1, 2, 3]
    assert [die(place, key, (0, 2)).deaths for _ in range(2)] == [0, 1]
    ledger.settle(granted(ledger.claim(key, (0, 2))), "owed")
    assert granted(ledger.claim(key, (0, 3))).deaths == 0


# -- Releasing --------------------------------------------------------------------------------------------------------


def test_what_was_released_was_never_claimed(ledger: Ledger) -> None:
    """Even an earlier turn is granted, and tokens go on."""
    key = new_key()
    claims = []
    for turn in ((0, 2), (0, 1), (0, 2)):
        claims.append(granted(ledger.claim(key, turn)))
        ledger.release(claims[-1])
        ledger.release(claims[-1])
    claims.append(granted(ledger.claim(key, (0, 1))))
    assert all(claim.deaths == 0 for claim in claims)
    tokens = [claim.token for claim in claims]
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("state", ["owed", "dead"])
def test_a_release_restores_the_row(place: Place, ledger: Ledger, state: Any) -> None:
    key = new_key()
    bring_about(place, ledger, key, state)
    before = look(ledger, key)
    for turn in ((0, 3), (1, 1)):
        ledger.release(granted(ledger.claim(key, turn)))
        assert look(ledger, key) == before


def test_a_release_does_not_count_as_a_death(place: Place, ledger: Ledger) -> None:
    key = new_key()
    assert [die(place, key, TURN).deaths for _ in range(2)] == [0, 1]
    for _ in range(3):
        claim = granted(ledger.claim(key, TURN))
        assert claim.deaths == 2
        ledger.release(claim)
        assert look(ledger, key) == Row("running", TURN)


def test_what_is_settled_is_not_released(ledger: Ledger) -> None:
    key = new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    ledger.settle(claim, "done")
    ledger.release(claim)
    assert look(ledger, key).state == "done"


# -- Renewing ---------------------------------------------------------------------------------------------------------


def test_renewing_extends_the_lease(place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than are renewed at once, each by itself."""
    for module in (sql_ledger, redis_ledger):
        monkeypatch.setattr(module, "RENEWED_AT_ONCE", 10)
    short = place.open(lease=0.5)
    claims = [granted(short.claim(new_key(), (0, 1))) for _ in range(25)]
    assert ledger.renew(claims) == claims
    assert all(look(ledger, claim.key).lease > 1 for claim in claims)
    assert ledger.renew([]) == []
    short.close()


@pytest.mark.parametrize("state", ["owed", "done", "dead"])
def test_renewing_leaves_what_is_settled(ledger: Ledger, state: Settled) -> None:
    """A renewal may cross with the end of its handler: nothing is lost, and nothing runs again."""
    key = new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    ledger.settle(claim, state)
    assert ledger.renew([claim]) == [claim]
    assert look(ledger, key) == Row(state, (0, 1))


def test_renewing_does_not_bring_back_what_was_released(ledger: Ledger) -> None:
    key = new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    ledger.release(claim)
    ledger.renew([claim])
    granted(ledger.claim(key, (0, 1)))


def forget(place: Place, key: Key) -> None:
    """Lose a row, as a server without persistence would."""
    if place.kind == "redis":
        with redis_ledger.redis.Redis.from_url(place.url) as client:
            client.flushdb()
    else:
        engine = sa.create_engine(place.url)
        with engine.begin() as connection:
            connection.execute(sa.text(f"DELETE FROM {place.name}"))
        engine.dispose()


def test_a_row_that_the_server_has_lost(place: Place, ledger: Ledger) -> None:
    """Nobody else has it: it is still held, and settling writes it anew."""
    key = new_key()
    claim = granted(ledger.claim(key, (1, 2)))
    forget(place, key)
    assert ledger.renew([claim]) == [claim]
    assert ledger.settle(claim, "owed", "note") == "owed"
    assert look(ledger, key) == Row("owed", (1, 2), note="note")
    forget(place, key)
    newer = granted(ledger.claim(key, (1, 2)))
    assert newer.token > claim.token
    assert ledger.renew([claim]) == []
    with pytest.raises(LeaseLost):
        ledger.settle(claim, "done")


# -- Many at once -----------------------------------------------------------------------------------------------------


def test_one_of_many_is_granted(new_place: Place) -> None:
    """Of 200 claims, from threads of several processes, the tables not made yet; and of 60 emissions one has once.

    That one is told so whenever it asks, as its retry does.
    """
    printed = new_place.run(3, "contend", uuid4(), 70, "welcome", 20)
    assert sorted(granted for granted, _ in printed) == [0, 0, 1]
    owners = [owner for _, each in printed for owner in each]
    assert len(owners) == 2
    assert len(set(owners)) == 1


def test_once_is_for_good(place: Place) -> None:
    """Beyond the retention of rows, and for each queue and handler by itself."""
    ledger = place.open(lease=0.001, retention=timedelta(milliseconds=1))
    first, second = Key("orders", "1", "welcome"), Key("orders", "2", "welcome")
    assert ledger.claim_once(first)
    granted(ledger.claim(first, (0, 1)))
    wait_until_gone(ledger, first)
    assert ledger.claim_once(first)
    assert not ledger.claim_once(second)
    assert ledger.claim_once(Key("orders", "2", "other"))
    assert ledger.claim_once(Key("other", "2", "welcome"))
    ledger.close()


def wait_until_gone(ledger: Ledger, key: Key) -> None:
    deadline = time.monotonic() + 20
    while True:
        ledger.prune()
        reply = ledger.claim(key, (-1, 0))
        if isinstance(reply, Claim):
            ledger.release(reply)
            return
        assert time.monotonic() < deadline, f"{reply} is never gone"


# -- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["owed", "done", "dead"])
def test_rows_are_kept_for_their_retention(place: Place, ledger: Ledger, state: Settled) -> None:
    """Counted from when they were last written; one that runs has not ended."""
    fleeting = place.open(lease=0.05, retention=timedelta(seconds=0.05))
    running, settled, kept = new_key(), new_key(), new_key()
    renewed = granted(fleeting.claim(running, (0, 1)))
    assert ledger.renew([renewed]) == [renewed]
    granted(ledger.claim(kept, (0, 1)))
    fleeting.settle(granted(fleeting.claim(settled, (0, 1))), state)
    wait_until_gone(fleeting, settled)
    fleeting.prune()
    assert look(ledger, running).lease > 1
    assert look(ledger, kept).lease > 1
    fleeting.close()


def test_retention_begins_when_a_row_is_written(place: Place) -> None:
    """Of one that runs, when its lease ends: so long its deaths can be counted."""
    ledger, brief = (place.open(100.0, timedelta(seconds=seconds)) for seconds in (1000, 100))
    key = new_key()
    claim = granted(brief.claim(key, (0, 1)))
    assert 190 < kept_for(place, key) <= 200
    assert ledger.renew([claim]) == [claim]
    assert 1090 < kept_for(place, key) <= 1100
    ledger.settle(claim, "owed")
    assert ledger.renew([claim]) == [claim]
    assert 990 < kept_for(place, key) <= 1000
    claim = granted(brief.claim(key, (0, 2)))
    ledger.release(claim)
    assert 990 < kept_for(place, key) <= 1000
    ledger.close()
    brief.close()


def kept_for(place: Place, key: Key) -> float:
    if place.kind == "redis":
        with redis_ledger.redis.Redis.from_url(place.url) as client:
            return int(client.pttl(row_name(place, key))) / 1000
    engine = sa.create_engine(place.url)
    with engine.connect() as connection:
        statement = f"SELECT keep_until - {sql_ledger._NOW[place.kind]} FROM {place.name} WHERE emission = :emission"
        span: int = connection.execute(sa.text(statement), {"emission": key.emission}).scalar_one()
    engine.dispose()
    return span / 1e6


def row_name(place: Place, key: Key) -> str:
    return f"{place.name}:row:{key.queue}:{key.emission}:{key.handler}"


def test_pruning_goes_on_until_nothing_is_left(new_sql_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_ledger, "PRUNED_AT_ONCE", 3)
    ledger = new_sql_place.open_sql(lease=0.001)
    fleeting = sql_ledger.SQLLedger(
        new_sql_place.url, lease=0.001, retention=timedelta(milliseconds=1), table=new_sql_place.name
    )
    kept = granted(ledger.claim(new_key(), (0, 1)))
    keys = [new_key() for _ in range(10)]
    fleeting._prune_at = time.monotonic() + 1000
    for key in keys:
        fleeting.settle(granted(fleeting.claim(key, (0, 1))), "done")
    deadline = time.monotonic() + 20
    while kept_for(new_sql_place, keys[-1]) > 0:
        assert time.monotonic() < deadline
    assert [fleeting.prune(), fleeting.prune()] == [10, 0]
    assert look(ledger, kept.key).turn == (0, 1)
    fleeting.close()
    ledger.close()


def test_claims_prune_now_and_then(sql_place: Place, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """The first, and one an hour later; what comes of it is none of the claim's concern."""
    monkeypatch.setattr(sql_ledger, "PRUNED_AT_ONCE", 3)
    clock = [1000.0]
    monkeypatch.setattr(sql_ledger, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    ledger = sql_place.open_sql()
    pruned: list[float] = []
    found = [3, 0, 0]

    def prune() -> int:
        pruned.append(clock[0])
        if len(pruned) == 4:
            raise sa.exc.OperationalError("DELETE", {}, Exception("locked"))
        return found[len(pruned) - 1]

    monkeypatch.setattr(ledger, "_prune_batch", prune)
    for moment in (1000.0, 1000.5, 1001.1, 1002.0, 4000.0, 4602.0, 4603.0, 8300.0, 8301.0):
        clock[0] = moment
        granted(ledger.claim(new_key(), (0, 1)))
    assert pruned == [1000.0, 1001.1, 4602.0, 8300.0]
    assert "Old rows of" in caplog.text
    ledger.close()


def test_clocks_of_clients_do_not_count(place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that is a day off."""
    moment, key = time.time, new_key()
    ledger.claim(key, (0, 1))
    for offset in (86400, -86400):
        monkeypatch.setattr(time, "time", lambda offset=offset: moment() + offset)
        other = place.open()
        assert 0 < denied(other.claim(key, (0, 1))).lease <= 60
        assert look(other, granted(other.claim(new_key(), (0, 1))).key).lease > 0
        other.prune()
        assert look(other, key).lease > 0
        other.close()


def test_tokens_grow_though_the_clock_goes_back(place: Place, ledger: Ledger) -> None:
    """As when somebody sets the server's."""
    key = new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    ahead = claim.token + 10**12
    set_token(place, key, ahead)
    for turn in ((0, 2), (0, 1)):
        ledger.release(replace(claim, token=ahead))
        later = granted(ledger.claim(key, turn))
        assert ahead < later.token < ahead + 10
        ahead = later.token


def set_token(place: Place, key: Key, token: int) -> None:
    if place.kind == "redis":
        with redis_ledger.redis.Redis.from_url(place.url) as client:
            client.hset(row_name(place, key), "token", str(token))
    else:
        engine = sa.create_engine(place.url)
        with engine.begin() as connection:
            statement = f"UPDATE {place.name} SET token = :token WHERE emission = :emission"
            connection.execute(sa.text(statement), {"token": token, "emission": key.emission})
        engine.dispose()


# -- Servers that are down --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def freezable(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Place, Any, Any]]:
    """A place that the test can make hang, and what starts and ends that."""
    if kind == "redis":
        with Valkey(password="redispw") as server:
            yield Place(kind, server.url, "ledger"), server.pause, server.resume
        return
    with somewhere(kind, request, folder) as place:
        if kind == "sqlite":
            file = sqlite3.connect(place.url.removeprefix("sqlite:///"), isolation_level=None)
            yield place, lambda: file.execute("BEGIN EXCLUSIVE"), file.close
        else:
            with FreezableProxy(place.url) as proxy:
                yield Place(kind, proxy.proxied_url, place.name), proxy.freeze, proxy.thaw


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_hangs_ends_in_an_error(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its timeout, which the test's own is far from; and then the ledger works again."""
    monkeypatch.setattr(sql_ledger, "SECONDS", 1)
    monkeypatch.setattr(redis_ledger, "SOCKET_SECONDS", 0.5)
    with freezable(kind, request, tmp_path) as (place, freeze, thaw):
        ledger = place.open()
        claim = granted(ledger.claim(new_key(), (0, 1)))
        freeze()
        # First a connection that was open, then a new one.
        for _ in range(1 if kind == "sqlite" else 2):
            with pytest.raises((sa.exc.OperationalError, redis_ledger.redis.RedisError)):
                ledger.settle(claim, "done")
        thaw()
        assert settle_in_the_end(ledger, claim) == "done"
        assert look(ledger, claim.key).state == "done"
        ledger.close()


def settle_in_the_end(ledger: Ledger, claim: Claim) -> str:
    deadline = time.monotonic() + 20
    while True:
        try:
            return ledger.settle(claim, "done")
        except (sa.exc.OperationalError, redis_ledger.redis.RedisError):
            assert time.monotonic() < deadline


def test_a_redis_that_was_down_is_found_again(tmp_path: Path) -> None:
    with Valkey(password="redispw", appendonly="yes", appendfsync="always") as server:
        ledger = Place("redis", server.url, "ledger").open()
        claim = granted(ledger.claim(new_key(), (0, 1)))
        server.kill()
        for _ in range(2):
            with pytest.raises(redis_ledger.redis.ConnectionError):
                ledger.claim(claim.key, (0, 1))
        server.restart()
        assert settle_in_the_end(ledger, claim) == "done"
        ledger.close()


def test_a_postgresql_that_cut_its_connections_is_found_again(postgres_place: Place) -> None:
    with FreezableProxy(postgres_place.url) as proxy:
        ledger = Place("postgresql", proxy.proxied_url, postgres_place.name).open()
        claim = granted(ledger.claim(new_key(), (0, 1)))
        proxy.cut()
        with pytest.raises(sa.exc.OperationalError):
            ledger.claim(claim.key, (0, 1))
        assert ledger.settle(claim, "done") == "done"
        ledger.close()


def test_replies_that_are_lost_are_not_asked_for_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that repeated a claim would be denied by itself."""
    monkeypatch.setattr(redis_ledger, "SOCKET_SECONDS", 0.3)
    with FreezableProxy(redis_url) as proxy, redis_ledger.redis.Redis.from_url(redis_url) as client:
        ledger = Place("redis", proxy.proxied_url, "lost").open()
        claim = granted(ledger.claim(new_key(), (0, 1)))
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        proxy.replies = "drop"
        with pytest.raises(redis_ledger.redis.TimeoutError):
            ledger.settle(claim, "owed")
        proxy.replies = "forward"
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == calls + 1
        assert ledger.settle(claim, "done") == "done"
        ledger.close()


def test_a_redis_user_needs_no_more_than_is_documented() -> None:
    """The rights that the documentation lists are enough; through a socket in the file system."""
    rights = re.search(r"`(~pyventus:ledger:\* .*?)`", (ROOT / "docs/how-to/ledger.md").read_text())
    assert rights
    with tempfile.TemporaryDirectory() as folder, Valkey(unixsocket=f"{folder}/valkey.sock") as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "ledger", "on", ">pass", *rights.group(1).split())
        ledger = redis_ledger.RedisLedger(f"unix://ledger:pass@{folder}/valkey.sock?db=0")
        claim = granted(ledger.claim(new_key(), (0, 1)))
        assert ledger.renew([claim]) == [claim]
        ledger.release(claim)
        assert ledger.settle(granted(ledger.claim(claim.key, (0, 1))), "done") == "done"
        assert ledger.claim_once(claim.key)
        ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_of_its_own(place: Place) -> None:
    """Three children and their parent at once, each from several threads."""
    assert place.run(1, "fork", uuid4()) == [[0, 0, 0, 0]]


def test_a_closed_ledger_opens_again(ledger: Ledger) -> None:
    claim = granted(ledger.claim(new_key(), (0, 1)))
    ledger.close()
    assert ledger.settle(claim, "done") == "done"


# -- In the handler's own transaction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["session", "scoped_session", "connection"])
def test_record_commits_with_the_effects(shop: Shop, in_handler: Any, way: str) -> None:
    """Or is rolled back with them; what the worker settles after it changes nothing."""
    ledger, key = shop.ledger, new_key()
    claim = granted(ledger.claim(key, (0, 1)))
    in_handler(claim)
    makers = {
        "session": lambda: Session(shop.engine),
        "scoped_session": lambda: scoped_session(sessionmaker(shop.engine)),
        "connection": shop.engine.connect,
    }
    for commits in (False, True):
        session: Any = makers[way]()
        session.execute(shop.effects.insert().values(emission=key.emission))
        ledger.record(session)
        ledger.record(session)
        session.commit() if commits else session.rollback()
        session.close()
        assert shop.count(key.emission) == commits
        assert look(ledger, key).state == ("done" if commits else "running")
    assert ledger.settle(claim, "owed", "it raised after its commit") == "done"
    assert ledger.settle(claim, "dead") == "done"
    assert ledger.settle(claim, "done") == "done"
    assert look(ledger, key) == Row("done", (0, 1))


def test_record_in_an_async_session(postgres_place: Place) -> None:
    """As the documentation says."""
    ledger = postgres_place.open_sql()
    claims = [granted(ledger.claim(new_key(), (0, 1))) for _ in range(2)]

    async def run() -> None:
        engine = create_async_engine(postgres_place.url)
        for claim in claims:
            current_claim.set(claim)
            async with AsyncSession(engine) as session:
                await session.run_sync(ledger.record)
                await (session.commit() if claim is claims[0] else session.rollback())
        with pytest.raises(PyventusError, match="run_sync"):
            ledger.record(AsyncSession(engine))  # type: ignore[arg-type]
        await engine.dispose()

    asyncio.run(run())
    assert [look(ledger, claim.key).state for claim in claims] == ["done", "running"]
    ledger.close()


def test_a_zombie_cannot_record(sql_place: Place, shop: Shop, in_handler: Any) -> None:
    """Its transaction was open before the new owner's, and ends after it: its effects are rolled back."""
    key = new_key()
    zombie = die(sql_place, key, (0, 1))
    with Session(shop.engine) as session, pytest.raises(LeaseLost):
        session.execute(sa.select(shop.effects)).all()
        shop.handle(granted(shop.ledger.claim(key, (0, 1))))
        session.execute(shop.effects.insert().values(emission=key.emission))
        in_handler(zombie)
        shop.ledger.record(session)
        session.commit()
    assert shop.count(key.emission) == 1


def test_what_has_been_counted_as_failed_cannot_record(shop: Shop, in_handler: Any) -> None:
    """Its retry may be on its way already."""
    for state in ("owed", "dead"):
        claim = granted(shop.ledger.claim(new_key(), (0, 1)))
        shop.ledger.settle(claim, state)  # type: ignore[arg-type]
        in_handler(claim)
        with Session(shop.engine) as session, pytest.raises(LeaseLost, match="counted as failed"):
            shop.ledger.record(session)
        assert look(shop.ledger, claim.key).state == state


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_claim_waits_for_a_zombie_that_has_recorded(
    sql_place: Place, shop: Shop, in_handler: Any, ending: str
) -> None:
    """It sees what became of the transaction, so that never both commit."""
    key = new_key()
    zombie = die(sql_place, key, (0, 1))
    in_handler(zombie)
    with ThreadPoolExecutor(1) as threads, Session(shop.engine) as session:
        session.execute(shop.effects.insert().values(emission=key.emission))
        shop.ledger.record(session)
        claiming = threads.submit(shop.ledger.claim, key, (0, 1))
        threading.Event().wait(0.2)  # It may not have asked yet; then the test is easier, and true all the same.
        assert not claiming.done()
        getattr(session, ending)()
        reply = claiming.result(20)
    if ending == "commit":
        assert denied(reply) == Row("done", (0, 1))
    else:
        shop.handle(granted(reply))
    assert shop.count(key.emission) == 1


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_of_two_transactions_one_commits(postgres_place: Place, in_handler: Any, isolation: str) -> None:
    """The zombie's effect is there before the new owner claims; both record, at every isolation of PostgreSQL."""
    ledger = postgres_place.open_sql()
    shop = Shop(postgres_place, ledger)
    engine = shop.engine.execution_options(isolation_level=isolation)
    key = new_key()
    zombie = die(postgres_place, key, (0, 1))
    with Session(engine) as session, pytest.raises((LeaseLost, sa.exc.OperationalError)):
        session.execute(shop.effects.insert().values(emission=key.emission))
        shop.handle(granted(ledger.claim(key, (0, 1))))
        in_handler(zombie)
        ledger.record(session)
        session.commit()
    assert shop.count(key.emission) == 1
    shop.engine.dispose()
    ledger.close()


def test_races_of_zombies_have_one_effect(sql_place: Place, shop: Shop) -> None:
    """A zombie and its successor in two threads, in whatever order they meet."""
    for _ in range(15):
        key = new_key()
        zombie = die(sql_place, key, (0, 1))
        with ThreadPoolExecutor(2) as threads:
            replies = [threads.submit(handle, shop, zombie), threads.submit(claim_and_handle, shop, key)]
            for reply in replies:
                reply.result(20)
        assert shop.count(key.emission) == 1
        assert look(shop.ledger, key).state == "done"


def handle(shop: Shop, claim: Claim) -> None:
    with contextlib.suppress(LeaseLost):
        shop.handle(claim)


def claim_and_handle(shop: Shop, key: Key) -> None:
    reply = shop.ledger.claim(key, (0, 1))
    if isinstance(reply, Claim):
        handle(shop, reply)


def test_a_recorded_row_does_not_hold_up_the_others(postgres_place: Place, in_handler: Any) -> None:
    """While a long transaction has it locked, the leases of all others are renewed, and rows are pruned."""
    ledger = postgres_place.open_sql(lease=0.5)
    patient = postgres_place.open_sql(lease=60)
    shop = Shop(postgres_place, ledger)
    claims = [granted(ledger.claim(new_key(), (0, 1))) for _ in range(3)]
    in_handler(claims[1])
    with Session(shop.engine) as session:
        ledger.record(session)
        assert patient.renew(claims) == claims
        assert patient.prune() == 0
        assert look(patient, claims[0].key).lease > 1
        assert look(patient, claims[2].key).lease > 1
        session.commit()
    assert look(patient, claims[1].key).state == "done"
    shop.engine.dispose()
    ledger.close()
    patient.close()


def test_a_recorded_row_does_not_hold_up_pruning(postgres_place: Place, in_handler: Any) -> None:
    """It stays, however old it is."""
    ledger = sql_ledger.SQLLedger(
        postgres_place.url, lease=0.001, retention=timedelta(milliseconds=1), table=postgres_place.name
    )
    shop = Shop(postgres_place, ledger)
    ledger._prune_at = time.monotonic() + 1000
    old, recorded = (granted(ledger.claim(new_key(), (0, 1))) for _ in range(2))
    run_out(ledger, recorded.key)
    in_handler(recorded)
    with Session(shop.engine) as session:
        ledger.record(session)
        deadline = time.monotonic() + 20
        while not ledger.prune():
            assert time.monotonic() < deadline
        session.commit()
    assert look(ledger, recorded.key).state == "done"
    granted(ledger.claim(old.key, (-1, 0)))
    shop.engine.dispose()
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_crash_leaves_one_effect(sql_place: Place, shop: Shop) -> None:
    """Five processes each that die between effect and commit, or between commit and settling, and come again."""
    crashes = [(moment, str(uuid4())) for moment in ("effect", "record", "commit") for _ in range(5)]
    assert sql_place.run(1, "crash", json.dumps(crashes)) == [[9] * 15]
    for moment, emission in crashes:
        key = Key("orders", emission, "stock")
        is_done = moment == "commit"
        assert shop.count(emission) == is_done
        assert (look(shop.ledger, key).state == "done") == is_done
        run_out(shop.ledger, key)
        reply = shop.ledger.claim(key, (0, 1))
        assert isinstance(reply, Row) == is_done
        if isinstance(reply, Claim):
            assert reply.deaths == 1
            shop.handle(reply)
        assert shop.count(emission) == 1
        assert look(shop.ledger, key) == Row("done", (0, 1))


def test_record_says_what_is_wrong(shop: Shop, in_handler: Any, tmp_path: Path) -> None:
    with Session(shop.engine) as session:
        with pytest.raises(PyventusError, match="call it in a handler"):
            shop.ledger.record(session)
        claim = granted(shop.ledger.claim(new_key(), (0, 1)))
        in_handler(claim)
    autocommit = shop.engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection, pytest.raises(PyventusError, match="AUTOCOMMIT"):
        shop.ledger.record(connection)
    in_handler(Claim(new_key(), (0, 1), 17))
    with Session(shop.engine) as session, pytest.raises(PyventusError, match="the ledger that the queue was given"):
        shop.ledger.record(session)
    assert look(shop.ledger, claim.key).state == "running"


# -- A model ----------------------------------------------------------------------------------------------------------

turns = st.sampled_from([(0, 1), (0, 2), (1, 1)])
states = st.sampled_from(["owed", "done", "dead"])
some = st.integers(0, 1_000_000)


class Model(RuleBasedStateMachine):
    """What the protocol says, in a few lines of Python; the ledger has to say the same."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.hasty = self.place.open(), self.place.open(lease=0.001)
        self.keys = [new_key(), new_key()]
        self.rows: dict[Key, dict[str, Any]] = {key: {"state": None, "token": 0} for key in self.keys}
        self.claims: list[Claim] = []
        self.once: dict[str, str] = {}

    def teardown(self) -> None:
        self.ledger.close()
        self.hasty.close()

    @rule(number=some, turn=turns, dies=st.booleans())
    def claim(self, number: int, turn: Turn, dies: bool) -> None:
        key = self.keys[number % 2]
        row = self.rows[key]
        reply = (self.hasty if dies else self.ledger).claim(key, turn)
        is_dead = row["state"] == "running" and not row["alive"] and row["turn"] == turn
        is_over = row["state"] == "done" or row.get("alive")
        is_free = row["state"] is None or (not is_over and (row["turn"] < turn or is_dead))
        if not is_free:
            shown = denied(reply)
            assert (shown.state, shown.turn, shown.note) == (row["state"], row["turn"], row["note"])
            assert (shown.lease > 0) == row["alive"]
            return
        claim = granted(reply)
        assert (claim.key, claim.turn, claim.deaths) == (key, turn, row["deaths"] + 1 if is_dead else 0)
        assert claim.token > row["token"]
        self.claims.append(claim)
        self.rows[key] = {
            "state": "running",
            "turn": turn,
            "token": claim.token,
            "alive": True,
            "note": "",
            "before": row,
        }
        self.rows[key]["deaths"] = claim.deaths
        if dies:
            run_out(self.hasty, key)
            self.rows[key]["alive"] = False

    @rule(number=some, state=states, note=st.text("ab", max_size=3))
    def settle(self, number: int, state: Settled, note: str) -> None:
        if self.claims:
            claim = self.claims[number % len(self.claims)]
            row = self.rows[claim.key]
            if row["token"] != claim.token:
                with pytest.raises(LeaseLost):
                    self.ledger.settle(claim, state)
                return
            final = "done" if row["state"] == "done" else state
            assert self.ledger.settle(claim, state, note) == final
            row |= {"state": final, "alive": False, "note": note if final == "owed" else ""}

    @rule(number=some)
    def release(self, number: int) -> None:
        if self.claims:
            claim = self.claims[number % len(self.claims)]
            row = self.rows[claim.key]
            self.ledger.release(claim)
            if row["token"] == claim.token and row["state"] == "running":
                self.rows[claim.key] = row["before"] | {"token": claim.token + 1, "alive": False}

    @rule(numbers=st.lists(some, max_size=4))
    def renew(self, numbers: list[int]) -> None:
        claims = list({self.claims[number % len(self.claims)] for number in numbers}) if self.claims else []
        held = [claim for claim in claims if self.rows[claim.key]["token"] == claim.token]
        assert self.ledger.renew(claims) == held
        for claim in held:
            self.rows[claim.key]["alive"] = self.rows[claim.key]["state"] == "running"

    @rule(number=some, emission=st.sampled_from("ab"))
    def claim_once(self, number: int, emission: str) -> None:
        handler = self.keys[number % 2].emission
        owner = self.once.setdefault(handler, emission)
        assert self.ledger.claim_once(Key("orders", emission, handler)) == (owner == emission)


def test_it_does_what_the_model_does(place: Place) -> None:
    """Whatever the order of claims, deaths, settlings, releases and renewals."""
    model = type("ModelOfThis", (Model,), {"place": place})
    few = settings(max_examples=12, stateful_step_count=25, suppress_health_check=list(HealthCheck), database=None)
    run_state_machine_as_test(model, settings=few)

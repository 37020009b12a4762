"""What becomes of a run is written down before anything follows from it, unless somebody else has taken it over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from pyventus import Emission, EventHandler, EventLinker
from pyventus.emitters.celery.claims import Claims
from pyventus.errors import LeaseLost
from pyventus.ledger.base import Claim, Key, current_claim
from pyventus.ledger.leases import Leases
from pyventus.ledger.sql import SQLLedger
from pyventus.running import Result, handler_context, job_of, run_jobs

EMISSION = Emission(event="Paid", linker="default")
QUICK, SLOW = EventHandler(print, id="quick"), EventHandler(print, id="slow")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLLedger]:
    ledger = SQLLedger(f"sqlite:///{tmp_path / 'ledger.db'}", lease=0.05)
    yield ledger
    ledger.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """The user's own way to the same database."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield engine
    engine.dispose()


def claims_of(ledger: SQLLedger, emission: Emission = EMISSION) -> Claims:
    return Claims(ledger, Leases(ledger), "orders", emission)


def take_over(ledger: SQLLedger, claim: Claim) -> Claim:
    """As another process does when a lease has run out."""
    deadline = time.monotonic() + 20
    while not isinstance(other := ledger.claim(claim.key, claim.turn), Claim):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return other


def test_a_run_that_was_taken_over_has_no_consequences(ledger: SQLLedger, caplog: pytest.LogCaptureFixture) -> None:
    """No callback, no retry, no dead letter: those of the other run come."""
    said: list[object] = []
    handler = EventHandler(lambda: 5, said.append, id="slow")
    claims = claims_of(ledger)
    assert claims.take([handler]) == [handler]
    other = take_over(ledger, claims.of(handler))
    job = job_of(handler, EMISSION, handler_context(EMISSION), record=claims.record)
    (result,) = run_jobs([job])
    assert result.is_lost
    assert said == []
    assert "What handler slow did is not recorded: another process has claimed" in caplog.text
    assert ledger.settle(other, "done") == "done"


def test_what_recorded_that_it_is_done_stays_done(
    ledger: SQLLedger, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it raises after its commit; its failure is in the log."""
    failures: list[object] = []

    def pay() -> None:
        with engine.begin() as connection:
            ledger.record(connection)
        raise ValueError("too late")

    handler = EventHandler(pay, failure_callback=failures.append, id="pay")
    claims = claims_of(ledger)
    claims.take([handler])
    context = handler_context(EMISSION)
    context.run(current_claim.set, claims.of(handler))
    (result,) = run_jobs([job_of(handler, EMISSION, context, record=claims.record)])
    assert result == Result(handler)
    assert failures == []
    assert "Handler pay failed on emission" in caplog.text
    assert "after it had recorded that it is done: it is not run again" in caplog.text


def test_a_ledger_that_fails_in_between_leaves_nothing_claimed(
    ledger: SQLLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = ledger.claim

    def fail_for_slow(key: Key, turn: tuple[int, int]) -> object:
        if key.handler == "slow":
            raise OSError("gone")
        return claim(key, turn)

    monkeypatch.setattr(ledger, "claim", fail_for_slow)
    with pytest.raises(OSError, match="gone"):
        claims_of(ledger).take([QUICK, SLOW])
    monkeypatch.undo()
    granted = claims_of(ledger)
    assert granted.take([QUICK, SLOW]) == [QUICK, SLOW]
    assert granted.of(QUICK).deaths == 0


def test_handlers_of_the_same_name_in_two_linkers_have_rows_of_their_own(ledger: SQLLedger) -> None:
    class Billing(EventLinker, name="claims.billing"):
        pass

    assert claims_of(ledger).take([QUICK]) == [QUICK]
    assert claims_of(ledger, replace(EMISSION, linker=Billing.name)).take([QUICK]) == [QUICK]
    assert claims_of(ledger).take([QUICK]) == []


def test_a_once_handler_is_for_one_emission(ledger: SQLLedger) -> None:
    once = EventHandler(print, id="once", once=True)
    first, second = claims_of(ledger), claims_of(ledger, Emission(event="Paid"))
    assert first.take([once]) == [once]
    assert second.take([once]) == []
    first.record(Result(once))
    with pytest.raises(KeyError):
        second.of(once)


def test_the_lost_lease_is_an_error_of_the_ledgers(ledger: SQLLedger, engine: sa.Engine) -> None:
    """Which a handler sees that records what somebody else has taken over; so its effects are rolled back."""
    claims = claims_of(ledger)
    claims.take([SLOW])
    take_over(ledger, claims.of(SLOW))
    context = handler_context(EMISSION)
    context.run(current_claim.set, claims.of(SLOW))
    with engine.begin() as connection:
        connection.execute(sa.text("create table effects (id integer)"))
    with pytest.raises(LeaseLost), engine.begin() as connection:
        connection.execute(sa.text("insert into effects values (1)"))
        context.run(ledger.record, connection)
    with engine.begin() as connection:
        assert connection.execute(sa.text("select count(*) from effects")).scalar() == 0

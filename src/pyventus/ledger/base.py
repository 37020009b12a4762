"""What a ledger is: the record of which handler has run for which emission."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol, runtime_checkable

from pyventus.errors import InvalidOption, LeaseLost, PyventusError, check_seconds

__all__ = ["Claim", "Key", "Ledger", "Row", "Settled", "State", "Turn", "current_claim", "running_claim"]

Settled = Literal["owed", "done", "dead"]
State = Literal["running", "owed", "done", "dead"]
Turn = tuple[int, int]
"""Replay and attempt of an emission: a later one compares greater."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a row is about.

    Attributes:
        queue: logical name of the queue.
        emission: id of the emission.
        handler: id of the handler, with its linker's name before it if that is not the default one.
    """

    queue: str
    emission: str
    handler: str


@dataclass(frozen=True, slots=True)
class Row:
    """What a ledger knows of a handler that may not be claimed.

    Attributes:
        state: "running" in a process that renews its lease; "owed": it failed, and the message of its next attempt, or
            its dead letter, may not have been published; "done"; "dead": it has finally failed.
        turn: of the run that wrote it.
        lease: seconds for which the lease still holds; 0 unless running.
        note: what was written with "owed" (see `Ledger.settle`); empty otherwise.
    """

    state: State
    turn: Turn
    lease: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a handler, for as long as its lease is renewed.

    Attributes:
        key: of its row.
        turn: which run it is.
        token: a fencing token; that of a later claim is greater.
        deaths: how many claims of this turn ended without a word, because their processes died.
    """

    key: Key
    turn: Turn
    token: int
    deaths: int = 0


@runtime_checkable
class Ledger(Protocol):
    """Where rows are kept. All methods may be called from many threads, and in a child after a fork.

    Each may raise whatever its driver raises; the emission is then sent again later. Clocks of different machines are
    never compared: leases and retention are counted by the clock of the ledger's own server.
    """

    @property
    def retention(self) -> timedelta:
        """How long a row that is not running is kept after it was last written."""

    @property
    def lease(self) -> float:
        """Seconds that a claim holds without being renewed."""

    def claim(self, key: Key, turn: Turn) -> Claim | Row:
        """Claim a handler for one run, before it runs.

        Granted (a `Claim`): there is no row; or a row of an earlier turn that is neither done nor running under a valid
        lease; or a row of the same turn that is running and whose lease has run out (its ``deaths`` are counted).
        Otherwise the `Row` as it is: done in any turn, dead in the same or a later turn, owed in the same turn, any
        state in a later turn, running under a valid lease.
        """

    def renew(self, claims: list[Claim]) -> list[Claim]:
        """Extend the leases of claims; returns those that are still held: that nobody else has claimed since.

        A claim that has been settled meanwhile stays so and counts as held. So does one whose row the server has lost;
        it has no lease until it is settled.
        """

    def settle(self, claim: Claim, state: Settled, note: str = "") -> Settled:
        """Write what became of a run. A row that the server has lost is written anew.

        Args:
            claim: of the run. Settling a claim again, as from owed to dead, is allowed for as long as nobody else has
                claimed the row.
            state: what became of it.
            note: with "owed", a text of up to 4,000 characters that whoever finds the row needs to publish what is
                owed.

        Returns:
            What the row says now: ``state``, unless the handler itself has recorded in its own transaction that it is
            done (see `SQLLedger.record`). Then it stays "done", whatever the handler did after its commit, and is
            neither retried nor a dead letter.

        Raises:
            LeaseLost: another process has claimed the row meanwhile. That the lease has run out alone is no loss.
        """

    def release(self, claim: Claim) -> None:
        """Give a claim back that has not been used: the row is what it was before, and may be claimed as then.

        Nothing happens if it was settled or is no longer held. Who held the row before has lost it all the same.
        """

    def claim_once(self, handler: Key) -> bool:
        """Claim a ``once`` handler for one emission, for all workers and for good.

        Args:
            handler: its ``emission`` is the emission that would have it.

        Returns:
            Whether it is that emission's: nobody had claimed it, or the same emission had.
        """

    def prune(self) -> int:
        """Delete rows past their retention, where the server does not do so by itself; returns how many."""

    def close(self) -> None:
        """Close connections of this process; the next call opens new ones."""


current_claim: ContextVar[Claim] = ContextVar("pyventus.current_claim")
"""The claim under which a handler runs; set in its context by the worker."""


def running_claim() -> Claim:
    """The claim of the handler that runs here.

    Raises:
        PyventusError: no handler with a claim runs here.
    """
    try:
        return current_claim.get()
    except LookupError:
        raise PyventusError(
            "record() was called where no handler runs under a ledger: call it in a handler, and give the handler's "
            "queue the ledger (ledger=...)"
        ) from None


def lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(
        f"another process has claimed handler {claim.key.handler} of emission {claim.key.emission}, because this one "
        "did not renew its lease in time"
    )


# More would overflow a server's clock.
_LONGEST = timedelta(days=3650)


def check_times(lease: float, retention: timedelta) -> None:
    """Raise `InvalidOption` unless a ledger can have this lease and this retention."""
    check_seconds("lease", lease)
    if not 0.001 <= lease <= _LONGEST.total_seconds():
        raise InvalidOption(f"lease must be a positive number of seconds, not {lease!r}")
    is_sane: object = isinstance(retention, timedelta) and timedelta(seconds=lease) <= retention <= _LONGEST
    if not is_sane:
        raise InvalidOption(
            f"retention must be a timedelta from the {lease:g} s of the lease up to {_LONGEST.days} days, not "
            f"{retention!r}"
        )

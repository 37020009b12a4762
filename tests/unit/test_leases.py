"""The thread that renews what a process holds."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pyventus import native
from pyventus.ledger import leases as module
from pyventus.ledger.base import Claim, Key
from pyventus.ledger.leases import Leases
from tests.workers import run_script

from .conftest import wait_until

CLAIMS = [Claim(Key("orders", f"emission {number}", "stock"), (0, 1), number) for number in range(3)]


class Book:
    """As much of a ledger as is needed: notes what is renewed, and says what it is told to."""

    lease = 0.03
    retention = timedelta(days=1)

    def __init__(self) -> None:
        self.renewed: list[list[Claim]] = []
        self.threads: set[str] = set()
        self.lost: set[Claim] = set()
        self.error: Exception | None = None

    def renew(self, claims: list[Claim]) -> list[Claim]:
        self.renewed.append(claims)
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        return [claim for claim in claims if claim not in self.lost]

    def wait_for(self, claims: list[Claim]) -> None:
        """Until these were renewed together, twice from now on."""
        start = len(self.renewed)
        wait_until(lambda: self.renewed[start:].count(claims) >= 2)


@pytest.fixture
def book() -> Any:
    return Book()


#: Another test's may idle on for a minute in this process.
earlier: set[threading.Thread] = set()


def count_threads() -> int:
    return sum(thread.name == "pyventus-leases" for thread in threading.enumerate() if thread not in earlier)


@pytest.fixture(autouse=True)
def no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    earlier.clear()
    earlier.update(threading.enumerate())
    yield
    wait_until(lambda: count_threads() == 0)


def test_what_is_held_is_renewed(book: Any) -> None:
    """In one thread, all together, and no longer than it is held."""
    leases = Leases(book)
    assert count_threads() == 0
    with leases.hold(CLAIMS[:1]):
        book.wait_for(CLAIMS[:1])
        with leases.hold(CLAIMS[1:]):
            book.wait_for(CLAIMS)
            assert count_threads() == 1
        book.wait_for(CLAIMS[:1])
    assert book.threads == {"pyventus-leases"}
    wait_until(lambda: count_threads() == 0)
    assert CLAIMS[2] not in book.renewed[-1]


def test_the_thread_ends_and_comes_again(book: Any) -> None:
    leases = Leases(book)
    for _ in range(2):
        with leases.hold(iter(CLAIMS)):
            book.wait_for(CLAIMS)
        wait_until(lambda: count_threads() == 0)
    with leases.hold([]):
        assert count_threads() == 0


def test_what_is_held_as_the_thread_ends_has_another(book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after its last look, and finds it running."""
    leases = Leases(book)
    renew = module._Held._renew_while_needed
    with contextlib.ExitStack() as late:

        def end(process: module._Held) -> None:
            monkeypatch.setattr(module._Held, "_renew_while_needed", renew)
            late.enter_context(leases.hold(CLAIMS[1:]))

        monkeypatch.setattr(module._Held, "_renew_while_needed", end)
        with leases.hold(CLAIMS[:1]):
            book.wait_for(CLAIMS)
        book.wait_for(CLAIMS[1:])


def test_an_error_of_the_handler_ends_the_hold(book: Any) -> None:
    leases = Leases(book)
    with pytest.raises(ZeroDivisionError), leases.hold(CLAIMS):
        book.wait_for(CLAIMS)
        raise ZeroDivisionError
    wait_until(lambda: count_threads() == 0)


def test_a_lost_claim_is_told(book: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with handler and emission; the others are renewed."""
    leases = Leases(book)
    with leases.hold(CLAIMS):
        book.wait_for(CLAIMS)
        assert not any(leases.is_lost(claim) for claim in CLAIMS)
        book.lost = {CLAIMS[1]}
        wait_until(lambda: leases.is_lost(CLAIMS[1]))
        book.wait_for([CLAIMS[0], CLAIMS[2]])
        assert [leases.is_lost(claim) for claim in CLAIMS] == [False, True, False]
    assert not leases.is_lost(CLAIMS[1])
    lines = [record.getMessage() for record in caplog.records]
    assert [line[:63] for line in lines] == ["Handler stock lost its lease on emission emission 1: another pr"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_error_of_the_ledger_is_told_once_a_minute(
    book: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And renewing is tried again: nothing is lost by it."""
    leases = Leases(book)
    book.error = OSError("the server is down")
    with leases.hold(CLAIMS):
        book.wait_for(CLAIMS)
        assert len(caplog.records) == 1
        monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
        wait_until(lambda: len(caplog.records) > 1)
        book.error = None
        book.wait_for(CLAIMS)
        assert not any(leases.is_lost(claim) for claim in CLAIMS)
    assert "The leases of 3 running handlers could not be renewed" in caplog.text
    assert "the server is down" in caplog.text


def test_a_thread_that_cannot_start_is_tried_again(book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold fails, and the next one is no worse for it."""

    def refuse(target: Callable[[], None], name: str) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(native, "start_thread", refuse)
    leases = Leases(book)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="can't start"), leases.hold(CLAIMS):
            raise AssertionError("never here")
    assert book.renewed == []


def test_holds_that_begin_at_once_share_a_thread(
    book: Any, busy_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def start(target: Callable[[], None], name: str) -> None:
        started.append(target)
        threading.Thread(target=target, name=name, daemon=True).start()

    monkeypatch.setattr(native, "start_thread", start)
    leases = Leases(book)
    barrier = threading.Barrier(8)

    def hold() -> None:
        barrier.wait()
        with leases.hold(CLAIMS):
            barrier.wait()

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1


FORK = """
import os, threading, time
from tests.unit.test_leases import Book, CLAIMS
from pyventus.ledger.leases import Leases

def seen(claims):
    start, deadline = len(book.renewed), time.monotonic() + 20
    while book.renewed[start:].count(claims) < 2:
        assert time.monotonic() < deadline, book.renewed
        time.sleep(0.005)

book = Book()
leases = Leases(book)
with leases.hold(CLAIMS[:1]):
    seen(CLAIMS[:1])
    child = os.fork()
    if child == 0:
        book.renewed.clear()
        with leases.hold(CLAIMS[1:]):
            seen(CLAIMS[1:])
        os._exit(any(CLAIMS[0] in claims for claims in book.renewed))
    seen(CLAIMS[:1])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_renews_its_own_only() -> None:
    """With a thread of its own, and the parent goes on with the parent's."""
    assert run_script("-W", "ignore", "-c", FORK) == "0\n"


def test_under_gevent_a_busy_greenlet_holds_up_no_lease(redis_url: str) -> None:
    """On a real Redis, from a native thread, while greenlets use the same ledger."""
    assert run_script("-m", "tests.unit.leases_under_gevent", redis_url) == "renewed while busy\n[] 200\n"

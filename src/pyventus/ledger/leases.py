"""Keeps the claims of a process alive while their handlers run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Generator, Iterable

from pyventus import native
from pyventus.ledger.base import Claim, Ledger

logger = logging.getLogger("pyventus")

IDLE_SECONDS = 60.0
REPORT_SECONDS = 60.0


class Leases:
    """Renews the claims that this process holds, from a thread that exists while there are any, and a while longer.

    Args:
        ledger: whose claims they are.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # By process: a forked child holds nothing of its parent's, and has none of its threads.
        self._processes: dict[int, _Held] = {}

    @contextlib.contextmanager
    def hold(self, claims: Iterable[Claim]) -> Generator[None]:
        """Renew ``claims`` until the block is left."""
        held = list(claims)
        process = self._process()
        process.add(held)
        try:
            process.start()
            yield
        finally:
            process.remove(held)

    def is_lost(self, claim: Claim) -> bool:
        """Whether another process was seen to have claimed what this one holds; False of what it does not hold."""
        return claim in self._process().lost

    def _process(self) -> _Held:
        process = self._processes.get(os.getpid())
        return self._processes.setdefault(os.getpid(), _Held(self._ledger)) if process is None else process


class _Held:
    """What one process holds.

    Greenlets and a native thread share it, and a lock of gevent's is not made for both. So there is none: each step is
    one operation of a dict or a set, which Python does as a whole.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.lost: set[Claim] = set()
        self._ledger = ledger
        self._claims: dict[Claim, None] = {}
        self._thread: dict[str, object] = {}
        self._reported = -math.inf

    def add(self, claims: list[Claim]) -> None:
        self._claims.update(dict.fromkeys(claims))

    def remove(self, claims: list[Claim]) -> None:
        for claim in claims:
            self._claims.pop(claim, None)
            self.lost.discard(claim)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._claims and "running" not in self._thread:
            mark = object()
            if self._thread.setdefault("running", mark) is mark:
                try:
                    native.start_thread(self._run, "pyventus-leases")
                except BaseException:
                    self._thread.clear()
                    raise

    def _run(self) -> None:
        try:
            self._renew_while_needed()
        finally:
            self._thread.clear()
        # What came between the last look and the line above found a thread that was about to end.
        self.start()

    def _renew_while_needed(self) -> None:
        needed = time.monotonic()
        while time.monotonic() - needed < IDLE_SECONDS:
            time.sleep(self._ledger.lease / 3)
            claims = [claim for claim in list(self._claims) if claim not in self.lost]
            if claims:
                needed = time.monotonic()
                self._renew(claims)

    def _renew(self, claims: list[Claim]) -> None:
        try:
            kept = set(self._ledger.renew(claims))
        except Exception as error:
            self._report(claims, error)
            return
        for claim in claims:
            if claim not in kept and claim in self._claims:
                self._lose(claim)

    def _lose(self, claim: Claim) -> None:
        self.lost.add(claim)
        logger.warning(
            "Handler %s lost its lease on emission %s: another process runs it, and what it does here is not recorded",
            claim.key.handler, claim.key.emission,
        )  # fmt: skip

    def _report(self, claims: list[Claim], error: Exception) -> None:
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            logger.error(
                "The leases of %d running handlers could not be renewed, which is tried again: %r", len(claims), error
            )

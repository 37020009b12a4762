"""Run as a script: leases in a process that gevent has patched."""

# ruff: noqa: E402 - patched before anything else is imported, as gevent asks
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import logging
import sys
import time
from uuid import uuid4

import gevent

from pyventus.ledger.base import Claim, Key
from pyventus.ledger.leases import Leases
from pyventus.ledger.redis import RedisLedger

logging.basicConfig(level=logging.DEBUG)
ledger = RedisLedger(sys.argv[1], lease=0.5)
leases = Leases(ledger)
lost: list[Claim] = []
settled: list[str] = []


def new_claim() -> Claim:
    claim = ledger.claim(Key("orders", str(uuid4()), "stock"), (0, 1))
    assert isinstance(claim, Claim)
    return claim


def run_handlers() -> None:
    for _ in range(20):
        claim = new_claim()
        with leases.hold([claim]):
            gevent.sleep(0.001)
            lost.extend([claim] if leases.is_lost(claim) else [])
            settled.append(ledger.settle(claim, "done"))


greenlets = [gevent.spawn(run_handlers) for _ in range(10)]
busy = new_claim()
with leases.hold([busy]):
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        pass
    # Its lease has run out three times over, unless a thread that no greenlet holds up has renewed it.
    reply = ledger.claim(busy.key, (0, 1))
    print("renewed while busy" if not isinstance(reply, Claim) else "lost")
    gevent.joinall(greenlets, timeout=20, raise_error=True)
print(lost, len(settled))

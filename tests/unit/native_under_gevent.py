"""Run as a script: greenlets and native threads that settle futures for one another, and share a condition."""

# ruff: noqa: E402 - patched before anything else is imported, as gevent asks
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys
from collections import deque
from concurrent.futures import Future

import gevent

from pyventus import native

sys.setswitchinterval(1e-5)
ROUNDS, GREENLETS, THREADS = 100, 50, 10
changed = native.new_condition(native.new_lock())
asked: deque[Future[int] | None] = deque()
ended: list[Future[None]] = []


def answer(end: Future[None]) -> None:
    """What a native thread does: settle what greenlets wait for."""
    while True:
        with changed:
            changed.wait_for(lambda: asked)
            future = asked.popleft()
        if future is None:
            end.set_result(None)
            return
        future.set_result(id(future))
        with changed:
            changed.notify_all()


def ask() -> None:
    future: Future[int] = native.shared(Future())
    with changed:
        asked.append(future)
        changed.notify_all()
        assert changed.wait_for(future.done, 20)
    assert future.result(20) == id(future)


def wait_in_vain() -> None:
    """Deadlines pass while others are woken."""
    try:
        native.shared(Future()).result(0.01)
    except TimeoutError:
        return
    raise AssertionError("nobody has settled it")


for _ in range(THREADS):
    ended.append(native.shared(Future()))
    native.start_thread(lambda end=ended[-1]: answer(end))
for _ in range(ROUNDS):
    calls = [ask, ask, ask, ask, wait_in_vain] * (GREENLETS // 5)
    gevent.joinall([gevent.spawn(call) for call in calls], timeout=25, raise_error=True)
with changed:
    asked.extend([None] * THREADS)
    changed.notify_all()
native.wait_for(ended)
print("answered", file=sys.stdout)

"""Threads that are none of gevent's, and locks and futures that greenlets and such threads share.

gevent's patched locks belong to one thread. Where a native thread and greenlets shared one, wake-ups were lost: of 108
processes with 50 greenlets that waited for native threads, four waited in vain (gevent 26.9.0). A lock from here
blocks natively, so nothing may switch while it is held; a greenlet that waits is woken by an event of its own hub, as
in gevent's own thread pool. Without gevent all of it is the standard library's.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # Linking does not wait for it.
    from concurrent.futures import Future

F = TypeVar("F", bound="Future[Any]")

EXIT_SECONDS = 1.0


def is_patched() -> bool:
    """Whether gevent has replaced threads by greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def unpatched(module: str, name: str) -> Any:
    """What gevent has replaced."""
    return sys.modules["gevent.monkey"].get_original(module, name)


def start_thread(target: Callable[[], object], name: str = "pyventus") -> None:
    """Start a daemon thread that no greenlet can be."""
    if is_patched():
        _hub()
        unpatched("_thread", "start_new_thread")(_run_with_hub, (target,))
    else:
        threading.Thread(target=target, name=name, daemon=True).start()


def _run_with_hub(target: Callable[[], object]) -> None:
    try:
        target()
    finally:
        mark = object()
        _ending.add(mark)
        # What waited here, as a patched socket does, has made one, with two file descriptors that outlive the thread.
        _hub().destroy(destroy_loop=True)
        _ending.discard(mark)


_ending: set[object] = set()


def _wait_for_ending() -> None:
    """An interpreter that exits while a thread is inside a hub that it destroys may crash when it collects garbage."""
    end = time.monotonic() + EXIT_SECONDS
    while _ending and time.monotonic() < end:
        unpatched("time", "sleep")(0.001)


atexit.register(_wait_for_ending)


def _hub() -> Any:
    """Of this thread. The first one of a process imports modules, and the locks of imports are patched ones, too."""
    return sys.modules["gevent"].get_hub()


def new_lock() -> Any:
    """A reentrant lock; under gevent nothing that switches may happen while it is held."""
    # Which gevent leaves alone, other than threading.RLock.
    return _thread.RLock()


def new_condition(lock: Any) -> threading.Condition:
    """A condition with a lock that `new_lock` has made."""
    return _Condition(lock) if is_patched() else threading.Condition(lock)


def shared(future: F) -> F:
    """Make a new future one that any thread may settle and any may wait for: itself, or by `wait_for`."""
    if is_patched():
        future._condition = _Condition(new_lock())
    return future


def wait_for(futures: Iterable[Future[Any]]) -> None:
    """Wait until all are done, whatever became of them; in the place of `concurrent.futures.wait`."""
    from concurrent.futures import CancelledError

    for future in futures:
        with contextlib.suppress(CancelledError):
            future.exception()


class _Condition(threading.Condition):
    """A condition for greenlets and native threads alike."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self._bells: deque[_Bell] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        bell = _Bell()
        self._bells.append(bell)
        depth = self._release_save()  # type: ignore[attr-defined]
        try:
            bell.wait(timeout)
        finally:
            self._acquire_restore(depth)  # type: ignore[attr-defined]
            # Whoever rings it takes it out, so that none that is closed is rung.
            has_rung = bell not in self._bells
            if not has_rung:
                self._bells.remove(bell)
            bell.close()
        return has_rung

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._bells))):
            self._bells.popleft().ring()

    def notify_all(self) -> None:
        self.notify(len(self._bells))


class _Bell:
    """Wakes the one greenlet that made it, from any thread."""

    def __init__(self) -> None:
        self._waiter = sys.modules["gevent.hub"].Waiter()
        # The one thing of a hub that another thread may touch. Before it is started, a ring would be lost.
        self._watcher = _hub().loop.async_()
        self._watcher.start(self._waiter.switch, None)

    def wait(self, timeout: float | None) -> None:
        with sys.modules["gevent"].Timeout(timeout, False):
            self._waiter.get()

    def ring(self) -> None:
        self._watcher.send()

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()

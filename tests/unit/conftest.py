"""What the tests of the core share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from pyventus import EventLinker, events


@pytest.fixture(autouse=True)
def classes_known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test or the handlers of another package make known, such as every exception, is unknown to the next."""
    known = {
        name: cls
        for name, cls in events._known.items()
        if cls.__module__.startswith("tests.unit.") or not issubclass(cls, BaseException)
    }
    monkeypatch.setattr(events, "_known", known)


@pytest.fixture
def linker() -> type[EventLinker]:
    """A namespace of the test's own."""

    class Fresh(EventLinker, name=f"test-{uuid4().hex}"):
        pass

    return Fresh


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Lets threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until ``condition`` holds, and fail if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)

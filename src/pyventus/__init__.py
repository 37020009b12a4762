"""Say that something happened in one line, and have every handler linked to it run somewhere else."""

import importlib
from typing import TYPE_CHECKING, Any

from pyventus.emission import Emission
from pyventus.emitters.base import EventEmitter
from pyventus.errors import EmitError, GiveUp, HandlerTimeout, PyventusError, RetryLater, WorkerLost
from pyventus.events import event
from pyventus.handlers import EventHandler
from pyventus.linkers import EventLinker
from pyventus.retry import Retry

if TYPE_CHECKING:
    from pyventus.emitters.asyncio import AsyncIOEventEmitter
    from pyventus.emitters.executor import ExecutorEventEmitter
    from pyventus.running import current_emission, current_state
else:
    # asyncio takes as long to import as all the rest; who only links and emits to a broker need not wait for it.
    _HOMES = {
        "AsyncIOEventEmitter": "pyventus.emitters.asyncio",
        "ExecutorEventEmitter": "pyventus.emitters.executor",
        "current_emission": "pyventus.running",
        "current_state": "pyventus.running",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value


PyventusException = PyventusError

__version__ = "1.0.0"

__all__ = [
    "AsyncIOEventEmitter",
    "Emission",
    "EmitError",
    "EventEmitter",
    "EventHandler",
    "EventLinker",
    "ExecutorEventEmitter",
    "GiveUp",
    "HandlerTimeout",
    "PyventusError",
    "PyventusException",
    "Retry",
    "RetryLater",
    "WorkerLost",
    "current_emission",
    "current_state",
    "event",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

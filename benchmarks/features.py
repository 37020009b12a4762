"""What of Pyventus there is to be measured, asked for in this one place; what there is not is shown as not built."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from pyventus import EventEmitter
from pyventus.emitters.celery import CeleryEventEmitter

ASYNCIO_POOL = "pyventus.emitters.celery.pool:AsyncIOPool"
REDIS_SCHEME = "pyventus-redis"


def has_emit_many() -> bool:
    return hasattr(EventEmitter, "emit_many")


def has_batches() -> bool:
    return has_emit_many() and "batch" in inspect.signature(CeleryEventEmitter.emit_many).parameters


def has_redis_transport() -> bool:
    return REDIS_SCHEME in TRANSPORT_ALIASES


def has_asyncio_pool() -> bool:
    module, _, name = ASYNCIO_POOL.partition(":")
    return find_spec(module) is not None and hasattr(import_module(module), name)


def unconfirmed() -> dict[str, dict[str, Any]] | None:
    """Arguments of the queue or the emitter that turn RabbitMQ's confirms off; None where neither can."""
    for name, cls in (("queue", CeleryEventEmitter.Queue), ("emitter", CeleryEventEmitter)):
        if "confirm" in inspect.signature(cls).parameters:
            return {"queue": {}, "emitter": {}, name: {"confirm": False}}
    return None


def redis_url(url: str) -> str:
    """The fastest way of Pyventus to a Redis."""
    return url.replace("redis://", f"{REDIS_SCHEME}://", 1) if has_redis_transport() else url


def built() -> dict[str, bool]:
    return {
        "emit_many": has_emit_many(),
        "batches": has_batches(),
        "redis transport": has_redis_transport(),
        "asyncio pool": has_asyncio_pool(),
        "confirm=False": unconfirmed() is not None,
    }

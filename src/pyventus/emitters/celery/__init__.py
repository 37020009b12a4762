"""An emitter whose handlers run in Celery workers."""

try:
    import celery as _celery  # noqa: F401
except ModuleNotFoundError:
    from pyventus.errors import MissingExtra

    raise MissingExtra(
        "CeleryEventEmitter needs Celery, which is not installed: pip install 'pyventus[celery]'"
    ) from None

from pyventus.emitters.celery.emitter import CeleryEventEmitter
from pyventus.emitters.celery.queue import Queue
from pyventus.emitters.celery.redis_transport import register

__all__ = ["CeleryEventEmitter", "Queue"]

register()

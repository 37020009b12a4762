"""A Redis transport for Celery that loses nothing: ``pyventus-redis://`` in the place of ``redis://``."""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

#: To tell it from kombu's transport; the ``driver_type`` of both is "redis".
DRIVER_NAME = "pyventus-redis"
_MODULE = "pyventus.emitters.celery.redis_transport.transports"

#: Kombu looks a scheme up when it connects, so that apps may be made before or after this.
SCHEMES = {
    "pyventus-redis": f"{_MODULE}:Transport",
    "pyventus-rediss": f"{_MODULE}:TLSTransport",
    "pyventus-sentinel": f"{_MODULE}:SentinelTransport",
}


def register() -> None:
    """Make the schemes known to kombu."""
    TRANSPORT_ALIASES.update(SCHEMES)

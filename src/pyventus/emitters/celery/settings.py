"""Settings of a Celery app that are looked at for every message."""

from __future__ import annotations

from typing import Any

from celery import Celery

_MISSING = object()


class Setting:
    """A setting that may change at any time, read in a fifth of the time that ``app.conf`` takes.

    Args:
        app: whose setting it is.
        name: one of Celery's; the app may have it under a prefix, or its name of Celery 3.
    """

    __slots__ = ("_app", "_known", "_name")

    def __init__(self, app: Celery, name: str) -> None:
        self._app = app
        self._name = name
        # A configuration, and what the setting may be called there.
        self._known: tuple[Any, tuple[str, ...]] = (None, ())

    def read(self) -> Any:
        """Its value; loads the app's configuration if that has not been done."""
        app: Any = self._app
        conf, names = self._known
        if conf is not app.conf:
            value = app.conf[self._name]
            # Which may have loaded the configuration, and put another object in its place.
            self._known = app.conf, tuple(dict.fromkeys(app.conf._to_keys(self._name)))
            return value
        for settings in conf.maps:
            for name in names:
                value = settings.get(name, _MISSING)
                if value is not _MISSING:
                    return value
        raise KeyError(self._name)

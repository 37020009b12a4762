"""Lets the documents' web examples run: on the real frameworks where they are installed, or else on the few names used.

Views and routes stay plain functions in all three, so that the examples can call them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def _route(*_: object, **__: object) -> Callable[[Any], Any]:
    return lambda view: view


class _Application:
    def __init__(self, *_: object, **__: object) -> None: ...

    get = post = route = staticmethod(_route)


@contextlib.contextmanager
def _atomic() -> Iterator[None]:
    yield


_STAND_INS: dict[str, dict[str, dict[str, Any]]] = {
    "fastapi": {"fastapi": {"FastAPI": _Application}},
    "flask": {"flask": {"Flask": _Application}},
    "django": {
        "django": {},
        "django.db": {"transaction": SimpleNamespace(atomic=_atomic, on_commit=lambda call: call())},
        "django.http": {"HttpRequest": object, "HttpResponse": lambda *_, **__: object()},
    },
}


def provide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what the documents import importable, and Django's database one in memory."""
    for framework, modules in _STAND_INS.items():
        if find_spec(framework) is None:
            _stand_in(monkeypatch, modules)
        elif framework == "django":
            _configure_django()


def _stand_in(monkeypatch: pytest.MonkeyPatch, modules: dict[str, dict[str, Any]]) -> None:
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def _configure_django() -> None:
    settings = import_module("django.conf").settings
    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
        import_module("django").setup()

"""The record of which handler has run for which emission."""

from __future__ import annotations

from pyventus.errors import InvalidOption
from pyventus.ledger.base import Ledger

__all__ = ["Ledger", "make_ledger"]

_REDIS = ("redis", "rediss", "unix")
_SQL = ("sqlite", "postgresql+psycopg")


def make_ledger(value: object) -> Ledger:
    """The ledger that an option names: a ledger itself, or the URL of one.

    Raises:
        InvalidOption: it is neither.
        MissingExtra: what the URL's scheme needs is not installed.
    """
    if not isinstance(value, str):
        if isinstance(value, Ledger) and not isinstance(value, type):
            return value
        raise InvalidOption(f"ledger must be a Ledger or its URL, not an instance of {type(value).__name__}")
    # Never the URL itself, which may hold a password.
    scheme = value.partition("://")[0] if "://" in value else ""
    if scheme in _REDIS:
        from pyventus.ledger.redis import RedisLedger

        return RedisLedger(value)
    if scheme in _SQL:
        from pyventus.ledger.sql import SQLLedger

        return SQLLedger(value)
    schemes = ", ".join(f"{each}://" for each in (*_REDIS, *_SQL))
    raise InvalidOption(f"the URL of a ledger begins with one of {schemes}" + (f", not {scheme}://" if scheme else ""))

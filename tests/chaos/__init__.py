"""Attacks and breakdowns, on real workers and brokers. ``make chaos`` runs them for long."""

from __future__ import annotations

import os

IS_LONG = os.environ.get("PYVENTUS_CHAOS") == "long"


def times(short: int, long: int) -> int:
    """How often to do something: in the suite, and in the long run."""
    return long if IS_LONG else short

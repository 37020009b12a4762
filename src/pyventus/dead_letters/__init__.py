"""Emissions that could not be handled, kept for a person to look at and replay."""

from pyventus.dead_letters.base import DeadLetter, DeadLetterStore

__all__ = ["DeadLetter", "DeadLetterStore"]

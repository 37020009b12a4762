"""Several signed texts in one: each is verified by itself, with the id of its message beside it.

``pvb1.`` and for each of them ``<length of id>.<length of text>.<id><text>``. The whole is not signed: who could write
another one could as well write each text that it holds into a message of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyventus.errors import Refused

__all__ = ["is_batch", "pack", "unpack"]

PREFIX = "pvb1."
MAX_PARTS = 1000
_lengths = re.compile(r"([1-9][0-9]{0,2})\.([1-9][0-9]{0,9})\.").match


def pack(texts: Iterable[tuple[str, str]]) -> str:
    """One text of several, each with the id of its message."""
    return PREFIX + "".join([f"{len(id)}.{len(text)}.{id}{text}" for id, text in texts])


def is_batch(text: object) -> bool:
    return isinstance(text, str) and text.startswith(PREFIX)


def unpack(text: str) -> list[tuple[str, str]]:
    """What `pack` was given.

    Raises:
        Refused: it is malformed, or holds more than `MAX_PARTS`.
    """
    texts: list[tuple[str, str]] = []
    at = len(PREFIX)
    while at < len(text) or not texts:
        lengths = _lengths(text, at)
        if lengths is None:
            raise Refused("it is a malformed batch")
        middle = lengths.end() + int(lengths[1])
        end = middle + int(lengths[2])
        if end > len(text):
            raise Refused("it is a malformed batch")
        texts.append((text[lengths.end() : middle], text[middle:end]))
        if len(texts) > MAX_PARTS:
            raise Refused(f"it is a batch of more than {MAX_PARTS:,}")
        at = end
    return texts

"""Pickle, for those who ask for it by name; only ever inside a signed envelope."""

from __future__ import annotations

import pickle

from pyventus.wire.base import Content, ContentSerializer

__all__ = ["PickleSerializer"]

PROTOCOL = 5  # Not HIGHEST_PROTOCOL: emitters and workers may run different versions of Python.


class PickleSerializer(ContentSerializer):
    """Carries whatever pickle carries.

    Whoever holds the queue's secret can run code in its workers; that is why a queue demands a long one.
    """

    name = "pickle"

    def pack(self, content: Content) -> bytes:
        return pickle.dumps(content, PROTOCOL)

    def unpack(self, data: bytes) -> object:
        return pickle.loads(data)  # noqa: S301 - the envelope has verified these bytes.

"""JSON that round-trips exactly.

What JSON itself carries exactly stands as it is. Everything else is an object with a tag under ``$``, of a closed
table: ``{"$": "tuple", "v": [1, 2]}``. A tag never names code; the names of classes are only looked up among those
that this process knows already.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from pyventus.errors import NotSerializable
from pyventus.wire.base import Content, ContentSerializer
from pyventus.wire.json.base import MAX_DEPTH, MAX_ITEMS, TAG, Unfit
from pyventus.wire.json.decoding import Decoder, parse
from pyventus.wire.json.encoding import PLAIN_INT, Encoder

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "JSONSerializer"]

# Characters from which on it pays to look whether a text has any to escape.
LONG = 100

_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
# What JSONEncoder.encode makes anew for each text, which takes longer than a short text.
_make = getattr(json.encoder, "c_make_encoder", None)
_chunks = _make and _make(
    None, _encoder.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False
)  # fmt: skip


def _write(value: Sequence[Any]) -> str:
    return "".join(_chunks(value, 0)) if _chunks is not None else _encoder.encode(value)


def _write_plain(content: Content) -> str | None:
    """What `_write` makes of ASCII text and whole numbers, but faster; None: there is something else."""
    event, args, kwargs = content
    if len(args) + len(kwargs) > MAX_ITEMS or TAG in kwargs or not "".join((event, *kwargs)).isascii():
        return None
    listed, named = [], []
    for value in args:
        text = _write_scalar(value)
        if not text:
            return None
        listed.append(text)
    for name, value in kwargs.items():
        text = _write_scalar(value)
        if not text:
            return None
        named.append(f"{encode_basestring_ascii(name)}:{text}")
    return f"[{encode_basestring_ascii(event)},[{','.join(listed)}],{{{','.join(named)}}}]"


def _write_scalar(value: object) -> str:
    """A value as JSON; empty: it is not of exactly these types, or not ASCII."""
    if type(value) is str and value.isascii():
        is_as_it_is = len(value) >= LONG and not value.encode("ascii").translate(None, _UNESCAPED)
        return f'"{value}"' if is_as_it_is else encode_basestring_ascii(value)
    return str(value) if type(value) is int and -PLAIN_INT < value < PLAIN_INT else ""


_UNESCAPED = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))


class JSONSerializer(ContentSerializer):
    """The default: exact for the standard types, and for instances of the classes that the worker knows.

    Exactly these types travel, nested up to `MAX_DEPTH`: None, bool, int (up to 4,300 digits), float, str, bytes, list,
    tuple, set, frozenset, dict, datetime, date, time, timedelta, Decimal (exponents up to 2,000,000), UUID, members of
    enums, exceptions (type, args and notes), instances of dataclasses, msgspec Structs, attrs and pydantic classes
    (their fields, without running ``__init__`` or validators again, but for Structs), and of classes registered with a
    codec. Two references to one object become two objects. What an instance or exception has beyond this, such as a
    cached property or an attribute that an exception's ``__init__`` adds, stays behind.
    """

    name = "json"
    packs_printable = True

    def pack(self, content: Content) -> bytes:
        try:
            text = _write_plain(content)
            return (_write(Encoder().content(content)) if text is None else text).encode("ascii")
        except Unfit as unfit:
            raise NotSerializable(unfit.text(content[0])) from unfit.__cause__

    def unpack(self, data: bytes) -> object:
        return Decoder().content(parse(data))

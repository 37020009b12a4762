"""A dead letter as the JSON that a store keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, get_args

from pyventus.dead_letters.base import DeadLetter, Reason

__all__ = ["read_record", "write_record"]

VERSION = 1


def write_record(letter: DeadLetter) -> str:
    """The record of a letter; ASCII."""
    fields = {name: getattr(letter, name) for name in _FIELDS}
    return json.dumps({"v": VERSION, **fields}, default=datetime.isoformat, separators=(",", ":"))


def read_record(record: str | bytes, queue: str, id: str | None = None) -> DeadLetter:
    """The letter of a record, or one that says that it cannot be read: whoever can write to a store can forge it.

    Args:
        record: as it was found.
        queue: for which it was found.
        id: under which it was found, if the store tells.
    """
    try:
        letter = _read(json.loads(record))
        _check(letter.queue == queue, f"it is of queue {letter.queue!r}")
        _check(id is None or letter.id == id, f"it is of letter {letter.id!r}")
    except (ValueError, RecursionError) as error:
        return _unreadable(record, queue, id, error)
    return letter


def _read(record: object) -> DeadLetter:
    _check(isinstance(record, dict), "it is no object")
    assert isinstance(record, dict)
    _check(record.get("v") == VERSION, f"it is not of version {VERSION}")
    missing = [name for name in _FIELDS if name not in record]
    _check(not missing, f"it has no {', '.join(missing)}")
    return DeadLetter(**{name: _read_field(name, record[name]) for name in _FIELDS})


def _read_field(name: str, value: object) -> Any:
    try:
        return _FIELDS[name](value)
    except (TypeError, ValueError):
        raise ValueError(f"its {name} is not what it has to be") from None


def _unreadable(record: str | bytes, queue: str, id: str | None, error: Exception) -> DeadLetter:
    data = record if isinstance(record, bytes) else record.encode("utf-8", "surrogatepass")
    return DeadLetter(
        id=id or f"unreadable-{sha256(data).hexdigest()[:16]}",
        queue=queue,
        reason="unreadable",
        text="",
        died=datetime.min.replace(tzinfo=UTC),
        message_id="",
        error=f"its record cannot be read: {error}",
    )


# -- Fields -----------------------------------------------------------------------------------------------------


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _id(value: object) -> str:
    _check(bool(value), "it is empty")
    return _text(value)


def _reason(value: object) -> str:
    _check(value in get_args(Reason) and value != "unreadable", "it is none")
    return _text(value)


def _texts(value: object) -> tuple[str, ...]:
    if type(value) is not list:
        raise TypeError
    return tuple(map(_text, value))


def _count(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    _check(0 <= value < 2**31, "it is out of range")
    return value


def _moment(value: object) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    _check(moment.utcoffset() is not None, "it has no time zone")
    return moment


def _maybe_moment(value: object) -> datetime | None:
    return None if value is None else _moment(value)


_FIELDS: dict[str, Callable[[object], object]] = {
    "id": _id,
    "queue": _text,
    "reason": _reason,
    "died": _moment,
    "message_id": _text,
    "emission": _text,
    "event": _text,
    "linker": _text,
    "handlers": _texts,
    "attempt": _count,
    "replay": _count,
    "timestamp": _maybe_moment,
    "error": _text,
    "traceback": _text,
    "text": _text,
}

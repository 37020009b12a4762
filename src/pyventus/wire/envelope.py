"""The signed text of an emission: sealed by who emits, verified before anything of it is parsed.

``pv1.<key id or ->.<serializer>.<t|b>.<length of head>.<head><body>.<tag>``

The head is JSON; the body is what the serializer made, as it is if it is ASCII without control characters (t), or else
in base64 (b). The tag covers every byte before it. In the JSON of a Celery message, of which it is one string, none of
it has to be escaped but quotes and backslashes.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from operator import call
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pyventus.emission import Emission, make_emission
from pyventus.errors import ConfigurationError, NotSerializable, Refused, Undecodable
from pyventus.wire.base import Content, ContentSerializer, Serializer

if TYPE_CHECKING:
    from pyventus.wire.keyring import Keyring

__all__ = ["Envelope", "open_envelope", "seal"]

PREFIX = "pv1"
UNSIGNED = "-"
MAX_ID = 255
_SERIALIZER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DIGITS = 10
_dump_head = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_parse_head = json.JSONDecoder().raw_decode


@dataclass(slots=True)
class Envelope:
    """A verified emission whose arguments have not been decoded.

    Attributes:
        emission: everything but the arguments, for logs and dead letters; args and kwargs are empty.
        queue: name of the queue it is signed for.
        message_id: id of the message it is signed for.
        serializer: decodes the arguments.
    """

    emission: Emission
    queue: str
    message_id: str
    serializer: Serializer = field(repr=False)
    _body: str = field(repr=False)
    _is_text: bool = field(repr=False)

    def decode(self) -> Emission:
        """The emission with its arguments.

        Raises:
            Undecodable: the arguments do not fit the code of this process.
        """
        event, args, kwargs = self._load()
        if event != self.emission.event:
            raise Undecodable(f"the arguments of {self.emission.event!r} belong to an emission of another event")
        head = self.emission
        return make_emission(
            head.id, event, head.version, head.bases, args, kwargs, head.timestamp, head.due, head.expires,
            head.priority, head.linker, head.headers, head.attempt, head.replay, head.suspect, head.handlers,
        )  # fmt: skip

    def reseal(
        self, emission: Emission, *, queue: str, message_id: str, keyring: Keyring, max_size: int | None = None
    ) -> str:
        """The signed text that carries the arguments as they came, undecoded, under the head of ``emission``.

        Args:
            emission: what to write into the head, such as this one with another attempt and its handlers.
            queue: as of `seal`.
            message_id: as of `seal`.
            keyring: as of `seal`.
            max_size: as of `seal`; None: whatever it is.

        Raises:
            NotSerializable: as `seal`.
        """
        head = _write_head(emission, queue, message_id)
        coding, body = _code(self._body.encode("ascii")) if self._is_text else ("b", self._body)
        return _signed(self.serializer.name, coding, head, body, emission.event, keyring, max_size)

    def _load(self) -> Content:
        serializer = self.serializer
        try:
            body = self._body.encode("ascii") if self._is_text else b64decode(self._body, validate=True)
            if isinstance(serializer, ContentSerializer):
                return serializer.content(body)
            loaded = serializer.loads(body)
        except Undecodable:
            raise
        except Exception as error:
            raise Undecodable(f"serializer {self.serializer.name!r} failed: {type(error).__name__}") from error
        if not _is_loaded(loaded):
            raise Undecodable(
                f"serializer {self.serializer.name!r} must return an Emission with a tuple of args and a dict of kwargs"
            )
        return self.emission.event, loaded.args, dict(loaded.kwargs)


def _is_loaded(loaded: object) -> bool:
    if not isinstance(loaded, Emission):
        return False
    # A serializer of the user's may not keep to the annotations of Emission.
    args: object = loaded.args
    kwargs: object = loaded.kwargs
    return isinstance(args, tuple) and isinstance(kwargs, dict)


# -- Sealing ----------------------------------------------------------------------------------------------------


def seal(
    emission: Emission, *, queue: str, message_id: str, serializer: Serializer, keyring: Keyring, max_size: int
) -> str:
    """The signed text that carries ``emission`` in one message to one queue.

    Args:
        emission: what travels.
        queue: logical name of the queue.
        message_id: id of the Celery task that carries it.
        serializer: encodes the arguments.
        keyring: signs, if it has a secret.
        max_size: of the whole text, in bytes.

    Raises:
        NotSerializable: an argument or header cannot travel, or all of it is larger than ``max_size``.
        ConfigurationError: the serializer has no usable name, or does not return bytes.
    """
    head = _write_head(emission, queue, message_id)
    coding, body = _write_body(serializer, emission)
    return _signed(serializer.name, coding, head, body, emission.event, keyring, max_size)


def _signed(
    serializer: str, coding: str, head: str, body: str, event: str, keyring: Keyring, max_size: int | None
) -> str:
    key_id = keyring.key_id
    text = f"{PREFIX}.{key_id or UNSIGNED}.{serializer}.{coding}.{len(head)}.{head}{body}."
    if key_id is not None:
        text += keyring.sign(text.encode("ascii"))
    if max_size is not None and len(text) > max_size:
        raise NotSerializable(
            f"the emission of {event!r} is {len(text):,} bytes, more than the {max_size:,} of max_size: send "
            "the id of what is large in its place, or raise max_size of the queue in emitters and workers"
        )
    return text


def _write_body(serializer: Serializer, emission: Emission) -> tuple[str, str]:
    if serializer.name != "json" and not _SERIALIZER_NAME.fullmatch(str(serializer.name)):
        raise ConfigurationError(
            f"{type(serializer).__name__}.name must be up to 64 letters, digits, _ and -, not {serializer.name!r}"
        )
    try:
        body = serializer.dumps(emission)
    except NotSerializable:
        raise
    except Exception as error:
        raise NotSerializable(
            f"serializer {serializer.name!r} failed on {emission.event!r}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(body, bytes):
        raise ConfigurationError(
            f"{type(serializer).__name__}.dumps must return bytes, not {type(body).__name__}: use .encode()"
        )
    # A class may say it of itself; one that derives from it may write anything.
    is_printable = vars(type(serializer)).get("packs_printable", False)
    return ("t", body.decode("ascii")) if is_printable else _code(body)


def _code(body: bytes) -> tuple[str, str]:
    if body.translate(None, _AS_IT_IS):
        return "b", b64encode(body).decode("ascii")
    return "t", body.decode("ascii")


_AS_IT_IS = bytes(range(0x20, 0x7F))


# -- Opening ----------------------------------------------------------------------------------------------------


def open_envelope(
    text: object,
    *,
    queue: str,
    message_id: str,
    serializers: Mapping[str, Serializer],
    keyring: Keyring,
    max_size: int,
    slack: int = 0,
) -> Envelope:
    """Verify ``text``, and only then read its head. Its arguments stay encoded.

    Args:
        text: what arrived; anything else than text is refused.
        queue: logical name of the queue whose task runs.
        message_id: id of the Celery task that carried it.
        serializers: those that the queue lists, by name.
        keyring: verifies; without a secret it accepts only what is not signed.
        max_size: of the whole text as an emitter seals it, in bytes.
        slack: bytes that it may have beyond that, because its head was written anew since.

    Raises:
        Refused: not signed for this queue and message; the reason holds nothing of the content.
    """
    parts = _split(_verified(text, keyring, max_size, slack))
    serializer = serializers.get(parts.serializer)
    if serializer is None:
        if not _SERIALIZER_NAME.fullmatch(parts.serializer):
            _malformed()
        raise Refused(f"its serializer {parts.serializer!r} is not one of this queue's: {', '.join(serializers)}")
    signed_queue, signed_id, emission = _read_head(parts.head)
    if signed_queue != queue:
        raise Refused(f"it is signed for queue {signed_queue[:MAX_ID]!r} and not {queue!r}")
    if signed_id != message_id:
        raise Refused(f"it is signed for message {signed_id!r} and not {message_id!r}")
    return Envelope(emission, queue, message_id, serializer, parts.body, parts.is_text)


def _verified(text: object, keyring: Keyring, max_size: int, slack: int) -> str:
    """The text without its tag. Until it is verified nothing is looked at but its prefix, key id and tag."""
    if type(text) is not str:
        raise Refused(f"it is not text but {type(text).__name__}")
    if len(text) > max_size + slack:
        raise Refused(f"it is {len(text):,} characters, more than the {max_size:,} of max_size")
    if not text.isascii():
        raise Refused("it is not ASCII")
    if not text.startswith(f"{PREFIX}."):
        raise Refused(f"it is not an envelope of format {PREFIX}")
    start, cut = len(PREFIX) + 1, text.rfind(".") + 1
    signed, tag = text[:cut], text[cut:]
    _check_tag(text[start : text.find(".", start)], signed, tag, keyring)
    return signed


def _check_tag(key_id: str, signed: str, tag: str, keyring: Keyring) -> None:
    is_unsigned = key_id == UNSIGNED and not tag
    if not keyring.signs:
        if not is_unsigned:
            raise Refused("it is signed, and this queue has no secret to verify it with")
        return
    if is_unsigned:
        raise Refused("it is not signed, and this queue has a secret")
    if keyring.verify(key_id, signed.encode("ascii"), tag):
        return
    keys = "the key" if len(keyring) == 1 else f"any of the {len(keyring)} keys"
    if key_id not in keyring.key_ids:
        raise Refused(f"it is signed with another key: not with {keys} of this queue")
    raise Refused(f"its signature does not verify with {keys} of this queue")


class _Parts(NamedTuple):
    serializer: str
    is_text: bool
    head: str
    body: str


def _split(signed: str) -> _Parts:
    fields = signed.split(".", 5)
    if len(fields) != 6:
        _malformed()
    _, _, serializer, coding, length, rest = fields
    if coding not in ("t", "b") or not length.isdigit() or len(length) > MAX_DIGITS or length[0] == "0":
        _malformed()
    end = int(length)
    if end >= len(rest):
        _malformed()
    return _Parts(serializer, coding == "t", rest[:end], rest[end:-1])


def _malformed() -> NoReturn:
    raise Refused("it is malformed")


# -- The head ---------------------------------------------------------------------------------------------------


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_name(value: object) -> bool:
    # It stands in log lines: a line break in it would let whoever emits forge them.
    return type(value) is str and value.isprintable()


def _is_id(value: object) -> bool:
    # Longer ones the worker refuses before it looks at the envelope.
    return type(value) is str and value.isprintable() and 0 < len(value) <= MAX_ID


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_names(value: object) -> bool:
    return type(value) is list and (not value or all(map(_is_name, value)))


def _is_texts(value: object) -> bool:
    return type(value) is list and (not value or all(type(item) is str for item in value))


def _is_headers(value: object) -> bool:
    return type(value) is dict and (
        not value or all(type(key) is str and type(item) is str for key, item in value.items())
    )


def _is_version(value: object) -> bool:
    return value is None or _is_count(value)


def _is_priority(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= 9)


def _is_instant(value: object) -> bool:
    return value is None or type(value) is str


# In the order of the head. What a sealed head may not hold, an opened one may not either.
_HEAD: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("queue", _is_name, "printable text"),
    ("message id", _is_id, f"1 to {MAX_ID} printable characters"),
    ("id", _is_id, f"1 to {MAX_ID} printable characters"),
    ("event", _is_name, "printable text"),
    ("version", _is_version, "a whole number from 1 up, or None"),
    ("bases", _is_texts, "names"),
    ("linker", _is_name, "printable text"),
    ("handlers", _is_names, "printable names"),
    ("attempt", _is_count, "a whole number from 1 up"),
    ("replay", _is_number, "a whole number from 0 up"),
    ("suspect", _is_flag, "True or False"),
    ("timestamp", _is_text, "an aware datetime"),
    ("due", _is_instant, "an aware datetime, or None"),
    ("expires", _is_instant, "an aware datetime, or None"),
    ("priority", _is_priority, "0 to 9, or None"),
    ("headers", _is_headers, "text by text: convert the values with str()"),
)


_FITS = tuple(fits for _, fits, _ in _HEAD)
_SPECS = {spec[0]: spec for spec in _HEAD}


def _write_head(emission: Emission, queue: str, message_id: str) -> str:
    event, id = emission.event, emission.id
    common = (
        queue, event, emission.version, emission.bases, emission.linker, emission.handlers, emission.attempt,
        emission.replay, emission.suspect,
    )  # fmt: skip
    try:
        start, middle = _write_common(*common)
    except TypeError:  # A list, or what cannot travel either.
        start, middle = _write_common.__wrapped__(*common)
    own = encode_basestring_ascii(id) if _is_id(id) else _write_field("id", id, event)
    message = own if message_id == id else _write_field("message id", message_id, event)
    timestamp = _write_instant("timestamp", emission.timestamp)
    due = "null" if emission.due is None else _write_instant("due", emission.due)
    expires = "null" if emission.expires is None else _write_instant("expires", emission.expires)
    priority = "null" if emission.priority is None else _write_field("priority", emission.priority, event)
    headers = _write_field("headers", dict(emission.headers), event) if emission.headers else "{}"
    return f"[{start},{message},{own},{middle},{timestamp},{due},{expires},{priority},{headers}]"


@lru_cache(maxsize=1024, typed=True)
def _write_common(
    queue: str, event: str, version: int | None, bases: tuple[str, ...], linker: str, handlers: tuple[str, ...],
    attempt: int, replay: int, suspect: bool,
) -> tuple[str, str]:  # fmt: skip
    """What many emissions have in common: before the ids, and between them and the timestamp."""
    fields = {
        "event": event, "version": version, "bases": list(bases), "linker": linker, "handlers": list(handlers),
        "attempt": attempt, "replay": replay, "suspect": suspect,
    }  # fmt: skip
    return _write_field("queue", queue, event), ",".join(
        [_write_field(name, value, event) for name, value in fields.items()]
    )


def _write_field(name: str, value: object, event: str) -> str:
    _, fits, wanted = _SPECS[name]
    if not fits(value):
        raise NotSerializable(f"{name} of the emission of {event!r} must be {wanted}")
    return encode_basestring_ascii(value) if type(value) is str else _dump_head(value)


def _read_head(text: str) -> tuple[str, str, Emission]:
    try:
        head, end = _parse_head(text)
    except (ValueError, RecursionError):
        _malformed()
    if end != len(text) or type(head) is not list or len(head) != len(_HEAD):
        _malformed()
    if not all(map(call, _FITS, head)):
        _malformed()
    queue, message_id, *of_emission = head
    return queue, message_id, _headed(*of_emission)


def _headed(
    id: str,
    event: str,
    version: int | None,
    bases: list[str],
    linker: str,
    handlers: list[str],
    attempt: int,
    replay: int,
    suspect: bool,
    timestamp: str,
    due: str | None,
    expires: str | None,
    priority: int | None,
    headers: dict[str, str],
) -> Emission:
    return make_emission(
        id, event, version, tuple(bases), (), {}, _read_instant(timestamp),
        None if due is None else _read_instant(due), None if expires is None else _read_instant(expires),
        priority, linker, headers, attempt, replay, suspect, tuple(handlers),
    )  # fmt: skip


def _write_instant(name: str, value: Any) -> str:
    if type(value) is not datetime or value.tzinfo is not UTC:
        value = _in_utc(name, value)
    second = _write_second(value.year, value.month, value.day, value.hour, value.minute, value.second)
    return f'"{second}.{value.microsecond:06}+00:00"'


def _in_utc(name: str, value: Any) -> datetime:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise NotSerializable(f"{name} of an emission must be an aware datetime, such as datetime.now(UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise NotSerializable(f"{name} of an emission is too near the end of the calendar: {value}") from None


@lru_cache(maxsize=256)
def _write_second(year: int, month: int, day: int, hour: int, minute: int, second: int) -> str:
    """What many emissions have in common: `isoformat` takes as long for each as the signature."""
    return datetime(year, month, day, hour, minute, second).isoformat()


def _read_instant(text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        _malformed()
    if value.utcoffset() is None:
        _malformed()
    return value

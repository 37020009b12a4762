"""The keys that sign and verify what travels."""

from __future__ import annotations

import hmac
from binascii import b2a_base64
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pyventus.errors import ConfigurationError, NotSerializable

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["Keyring", "Secrets"]

Secrets = str | bytes | Sequence[str | bytes] | None

# A key for each purpose, so that an id on the wire says nothing about the key that signs.
SIGNING = b"pyventus wire v1: signing"
NAMING = b"pyventus wire v1: key id"
BLOCK_BYTES = 64


class _Key(NamedTuple):
    id: str
    # The two hashes of an HMAC (RFC 2104), begun with the key and copied for each tag: to begin them anew takes as long
    # as all else, and to copy an object of hmac, which is Python's own, half as long.
    inner: _Hash
    outer: _Hash


class Keyring:
    """Keys derived from a queue's secrets: the first one signs, any of them verifies.

    To rotate: put the new secret behind the old one everywhere, then before it, then drop the old one. The secrets
    themselves are not kept; the ``repr`` shows key ids only, and a keyring cannot be pickled.

    Raises:
        ConfigurationError: a secret is empty, or neither text nor bytes.
    """

    __slots__ = ("_keys", "_weakest")

    def __init__(self, secret: Secrets = None) -> None:
        secrets = [_as_bytes(each) for each in _each(secret)]
        self._weakest = min(map(len, secrets), default=0)
        self._keys = tuple(_derive(each) for each in secrets)

    @property
    def signs(self) -> bool:
        """Whether there is a secret to sign with."""
        return bool(self._keys)

    @property
    def key_id(self) -> str | None:
        """Id of the key that signs; None without a secret."""
        return self._keys[0].id if self._keys else None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all keys that verify."""
        return tuple(key.id for key in self._keys)

    @property
    def weakest(self) -> int:
        """Length of the shortest secret in bytes; under 32 it can be guessed. 0 without a secret."""
        return self._weakest

    def sign(self, data: bytes) -> str:
        """The tag of ``data``: base64url of HMAC-SHA256, 43 characters.

        Raises:
            ConfigurationError: there is no secret.
        """
        if not self._keys:
            raise ConfigurationError("a keyring without a secret cannot sign: give the queue a secret")
        return _tag(self._keys[0], data)

    def verify(self, key_id: str, data: bytes, tag: str) -> bool:
        """Whether a key of that id made ``tag`` for ``data``."""
        # Tags are compared as text: base64 has spare bits, so that two texts can stand for the same 32 bytes.
        given = tag.encode("ascii", "replace")
        for key in self._keys:
            if key.id == key_id and hmac.compare_digest(_tag(key, data).encode("ascii"), given):
                return True
        return False

    def __len__(self) -> int:
        return len(self._keys)

    def __bool__(self) -> bool:
        return self.signs

    def __repr__(self) -> str:
        return f"<Keyring of {len(self._keys)} key(s): {', '.join(self.key_ids) or 'none'}>"

    def __copy__(self) -> Keyring:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Keyring:
        return self

    def __reduce__(self) -> NoReturn:
        raise NotSerializable("a keyring cannot be pickled: it would take the queue's keys with it")


def _each(secret: object) -> Iterator[object]:
    if secret is None:
        return iter(())
    if isinstance(secret, (str, bytes)):
        return iter((secret,))
    if not isinstance(secret, Sequence):
        raise ConfigurationError(f"secret must be text, bytes or a sequence of them, not {type(secret).__name__}")
    if not secret:
        raise ConfigurationError("secret is an empty sequence: give at least one secret, or None to not sign")
    return iter(secret)


def _as_bytes(secret: object) -> bytes:
    if isinstance(secret, str):
        secret = _utf8(secret)
    if not isinstance(secret, bytes):
        raise ConfigurationError(f"each secret must be text or bytes, not {type(secret).__name__}")
    if not secret:
        raise ConfigurationError("a secret is empty: is the setting or environment variable that should hold it set?")
    return secret


def _utf8(secret: str) -> bytes:
    try:
        return secret.encode("utf-8")
    except UnicodeEncodeError:
        pass  # Raised below and not here: the UnicodeEncodeError holds the secret.
    raise ConfigurationError("a secret is text that UTF-8 cannot encode: give it as bytes")


def _derive(secret: bytes) -> _Key:
    name = hmac.digest(secret, NAMING, "sha256").hex()[:8]
    key = hmac.digest(secret, SIGNING, "sha256").ljust(BLOCK_BYTES, b"\0")
    inner, outer = (sha256(bytes(byte ^ pad for byte in key)) for pad in (0x36, 0x5C))
    return _Key(name, inner, outer)


def _tag(key: _Key, data: bytes) -> str:
    # Not hmac.digest: it gives the interpreter's lock away, for which a worker's thread then waits longer than for all.
    inner, outer = key.inner.copy(), key.outer.copy()
    inner.update(data)
    outer.update(inner.digest())
    return b2a_base64(outer.digest(), newline=False)[:-1].translate(_URL_SAFE).decode("ascii")


_URL_SAFE = bytes.maketrans(b"+/", b"-_")

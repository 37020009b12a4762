"""Keys: what signs, what verifies, and what never shows."""

from __future__ import annotations

import copy
import hmac
import pickle
import traceback
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from pyventus.errors import ConfigurationError, PyventusError
from pyventus.wire import Keyring


def test_what_one_signs_the_other_verifies() -> None:
    """The same secret makes the same keys, as text or bytes."""
    one, other = Keyring("sécret"), Keyring("sécret".encode())
    tag = one.sign(b"data")
    assert one.key_id == other.key_id
    assert len(tag) == 43
    assert other.verify(one.key_id or "", b"data", tag)


def test_rotation() -> None:
    """The first signs, any verifies, and one that is gone does not."""
    old, both, new = Keyring("old"), Keyring(["new", "old"]), Keyring(["new"])
    assert both.key_id == new.key_id != old.key_id
    assert both.verify(old.key_id or "", b"x", old.sign(b"x"))
    assert new.verify(both.key_id or "", b"x", both.sign(b"x"))
    assert not new.verify(old.key_id or "", b"x", old.sign(b"x"))
    assert not both.verify(new.key_id or "", b"x", old.sign(b"x"))
    assert len(both) == 2


@pytest.mark.parametrize("size", [0, 1, 55, 56, 64, 1000, 100_000])
def test_a_tag_is_an_hmac(size: int) -> None:
    """Of the derived key, as any other implementation makes it."""
    key = hmac.digest(b"secret", b"pyventus wire v1: signing", "sha256")
    expected = urlsafe_b64encode(hmac.digest(key, b"x" * size, "sha256")).decode().rstrip("=")
    assert Keyring("secret").sign(b"x" * size) == expected


@pytest.mark.parametrize("tag", ["", "x" * 43, "é" * 43, "prefix"])
def test_other_tags_do_not_verify(tag: str) -> None:
    """Neither do shorter ones or such that are not ASCII."""
    keyring = Keyring("secret")
    tag = keyring.sign(b"x")[:20] if tag == "prefix" else tag
    assert not keyring.verify(keyring.key_id or "", b"x", tag)


def test_spare_bits_of_base64_do_not_verify() -> None:
    """Another last character that stands for the same bytes is another tag."""
    keyring = Keyring("secret")
    tag = keyring.sign(b"x")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = [last for last in alphabet if keyring.verify(keyring.key_id or "", b"x", tag[:-1] + last)]
    assert accepted == [tag[-1]]


def test_without_a_secret_nothing_signs_or_verifies() -> None:
    """No secret is allowed, and says so."""
    keyring = Keyring(None)
    assert not keyring.signs
    assert keyring.key_id is None
    assert keyring.weakest == 0
    assert not keyring.verify("-", b"x", "")
    with pytest.raises(ConfigurationError):
        keyring.sign(b"x")


def test_weakest_counts_bytes() -> None:
    """The shortest secret counts, in bytes."""
    assert Keyring(["x" * 40, "é" * 10]).weakest == 20


@pytest.mark.parametrize(
    "secret",
    [
        "",
        b"",
        [],
        (),
        ["s3cret-value", ""],
        5,
        ["s3cret-value", 5],
        [None],
        {"s3cret-value"},
        bytearray(b"s3cret-value"),
        "s3cret-value\ud800",
        True,
    ],
)
def test_bad_secrets_are_refused_without_showing_them(secret: Any) -> None:
    """The error, with its whole traceback, never contains the secret."""
    with pytest.raises(ConfigurationError) as caught:
        Keyring(secret)
    assert "s3cret-value" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "secret" in "".join(traceback.format_exception_only(caught.value))


def test_a_keyring_shows_nothing() -> None:
    """Its repr holds key ids only, and it refuses to be pickled."""
    keyring = Keyring("s3cret-value")
    assert repr(keyring) == f"<Keyring of 1 key(s): {keyring.key_id}>"
    assert not hasattr(keyring, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(PyventusError) as caught:
            pickle.dumps([keyring], protocol)
        assert isinstance(caught.value, TypeError)
    assert copy.deepcopy(keyring) is copy.copy(keyring) is keyring


def test_key_ids_and_keys_have_different_purposes() -> None:
    """Eight hexadecimal digits that are no part of a signature."""
    keyring = Keyring("secret")
    assert len(keyring.key_id or "") == 8
    int(keyring.key_id or "", 16)

"""Envelopes: sealed once, opened only if every byte is as it was signed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyventus.emission import Emission
from pyventus.errors import ConfigurationError, NotSerializable, Refused, Undecodable
from pyventus.wire import Envelope, JSONSerializer, Keyring, PickleSerializer, Serializer, open_envelope, seal

KEYRING = Keyring("k" * 32)
NO_KEYS = Keyring(None)
MAX_SIZE = 10_000


class Recording:
    """A serializer that counts its calls."""

    def __init__(self, name: Any = "json", data: Any = b"custom") -> None:
        self.name = name
        self.data = data
        self.calls = 0

    def dumps(self, emission: Emission) -> bytes:
        return self.data  # type: ignore[no-any-return]

    def loads(self, data: bytes) -> Emission:
        self.calls += 1
        return Emission(event="other", args=(data,), kwargs={"a": 1})


def emission(**changes: Any) -> Emission:
    made = Emission(
        id="the id",
        event="ördér.placed",
        version=2,
        bases=("a:B", "c:D"),
        args=(1, "x.y"),
        kwargs={"k": b"\x00."},
        timestamp=datetime(2024, 1, 2, 3, 4, 5, 678901, UTC),
        due=datetime(2024, 10, 27, 12, 30, 0, 1, ZoneInfo("Europe/Paris")),
        expires=datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=3))),
        priority=0,
        linker="billing",
        headers={"x-request": "é.\n"},
        attempt=3,
        replay=2,
        suspect=True,
        handlers=("a:f", "a:f#2"),
    )
    return replace(made, **changes)


def sealed(
    of: Emission | None = None,
    *,
    serializer: Serializer | None = None,
    keyring: Keyring = KEYRING,
    max_size: int = MAX_SIZE,
) -> str:
    return seal(
        of or emission(),
        queue="orders",
        message_id="m-1",
        serializer=serializer or JSONSerializer(),
        keyring=keyring,
        max_size=max_size,
    )


def opened(text: Any, *, keyring: Keyring = KEYRING, **changes: Any) -> Envelope:
    options: dict[str, Any] = {
        "queue": "orders",
        "message_id": "m-1",
        "max_size": MAX_SIZE,
        "serializers": {"json": JSONSerializer(), "pickle": PickleSerializer()},
    }
    return open_envelope(text, keyring=keyring, **options | changes)


@pytest.mark.parametrize("serializer", [JSONSerializer(), PickleSerializer()])
@pytest.mark.parametrize("keyring", [KEYRING, NO_KEYS])
def test_an_emission_comes_back_whole(serializer: Serializer, keyring: Keyring) -> None:
    """Every field of an emission survives; times keep their instant to the microsecond."""
    envelope = opened(sealed(serializer=serializer, keyring=keyring), keyring=keyring)
    assert envelope.decode() == emission()
    assert envelope.emission == emission(args=(), kwargs={})
    assert (envelope.queue, envelope.message_id) == ("orders", "m-1")
    assert envelope.emission.timestamp.tzinfo is UTC


@pytest.mark.parametrize("fold", [0, 1])
def test_times_that_a_clock_shows_twice_keep_their_instant(fold: int) -> None:
    """The hour at which summer time ends."""
    due = datetime(2024, 10, 27, 2, 30, 0, 1, ZoneInfo("Europe/Paris"), fold=fold)
    assert opened(sealed(emission(due=due))).emission.due == datetime(2024, 10, 27, fold, 30, 0, 1, UTC)


def test_the_least_emission_comes_back() -> None:
    """Options that were not given stay so."""
    least = Emission(event="e")
    assert opened(sealed(least)).decode() == least


def test_the_text_is_one_ascii_string_that_shows_its_form() -> None:
    """Key id, serializer and coding stand in front; a JSON body stands as it is."""
    text = sealed()
    assert text.isascii()
    assert text.startswith(f"pv1.{KEYRING.key_id}.json.t.")
    assert '[1,"x.y"]' in text
    assert sealed(serializer=PickleSerializer()).startswith(f"pv1.{KEYRING.key_id}.pickle.b.")
    assert sealed(keyring=NO_KEYS).startswith("pv1.-.json.t.")
    assert sealed(keyring=NO_KEYS).endswith(".")


@pytest.mark.parametrize("keyring", [KEYRING, Keyring(["new", "k" * 32])])
def test_every_mutated_byte_is_refused(keyring: Keyring) -> None:
    """No byte can be changed, removed or doubled."""
    text = sealed()
    for index in range(len(text)):
        for byte in (chr(ord(text[index]) ^ 1), "", text[index] * 2, "é"):
            mutated = text[:index] + byte + text[index + 1 :]
            if mutated == text:
                continue
            with pytest.raises(Refused):
                opened(mutated, keyring=keyring)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_mutations_are_refused_and_never_decoded(data: st.DataObject) -> None:
    """Whatever is spliced in, nothing of it reaches a serializer."""
    text = sealed()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    inserted = data.draw(
        st.text(st.characters(max_codepoint=0x17F), max_size=20) | st.sampled_from([text, ".", "-", text[:20]])
    )
    mutated = text[:start] + inserted + text[end:]
    recording = Recording()
    if mutated != text:
        with pytest.raises(Refused):
            opened(mutated, serializers={"json": recording}).decode()
        assert recording.calls == 0


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.builds("pv1.-.json.t.{}.{}.".format, st.integers(0, 40), st.text('[]{}",1.nula', max_size=40))
)
def test_junk_is_refused_without_a_secret_too(text: str) -> None:
    """Nothing but Refused comes out, signature or not."""
    with pytest.raises(Refused):
        opened(text, keyring=NO_KEYS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "not text"),
        (b"pv1.", "not text but bytes"),
        ("x" * (MAX_SIZE + 1), "10,001 characters, more than the 10,000 of max_size"),
        ("pv1.é", "not ASCII"),
        ("", "not an envelope of format pv1"),
        ("pv2.x.y", "not an envelope of format pv1"),
        ("pv1", "not an envelope of format pv1"),
        (f"pv1.{KEYRING.key_id}.json.t.2.[].tag", "does not verify with the key"),
        ("pv1.00000000.secret-content.t.2.[].tag", "signed with another key"),
    ],
)
def test_reasons_are_short_and_hold_no_content(text: Any, reason: str) -> None:
    """What was not verified is not repeated."""
    with pytest.raises(Refused, match=reason) as caught:
        opened(text)
    assert len(str(caught.value)) < 100
    assert "content" not in str(caught.value)


def test_reasons_count_the_keys() -> None:
    """A reader knows whether the rotation was set up."""
    text = sealed()
    with pytest.raises(Refused, match="does not verify with any of the 2 keys"):
        opened(text[:-3] + "AAA", keyring=Keyring(["new", "k" * 32]))
    with pytest.raises(Refused, match="not with any of the 2 keys"):
        opened(text, keyring=Keyring(["new", "newer"]))


def test_rotation() -> None:
    """An envelope of the old key opens while the old key is listed."""
    assert opened(sealed(), keyring=Keyring(["new", "k" * 32])).decode() == emission()


def test_unsigned_and_signed_do_not_mix() -> None:
    """A secret refuses what is unsigned; no secret refuses what is signed."""
    with pytest.raises(Refused, match="not signed, and this queue has a secret"):
        opened(sealed(keyring=NO_KEYS))
    with pytest.raises(Refused, match="this queue has no secret"):
        opened(sealed(), keyring=NO_KEYS)
    with pytest.raises(Refused, match="this queue has no secret"):
        opened(sealed(keyring=NO_KEYS) + "x", keyring=NO_KEYS)


def test_what_is_signed_for_another_is_refused() -> None:
    """Queue, message and serializer are compared after the signature."""
    text = sealed()
    with pytest.raises(Refused, match="signed for queue 'orders' and not 'other'"):
        opened(text, queue="other")
    with pytest.raises(Refused, match="signed for message 'm-1' and not 'm-2'"):
        opened(text, message_id="m-2")
    with pytest.raises(Refused, match="serializer 'json' is not one of this queue's: pickle"):
        opened(text, serializers={"pickle": PickleSerializer()})


HEAD = ["orders", "m-1", "i", "e", None, [], "l", [], 1, 0, False, "2024-01-01T00:00:00+00:00", None, None, None, {}]


def crafted(
    head: Any = HEAD, *, serializer: str = "json", coding: str = "t", length: Any = None, body: str = '["e",[],{}]'
) -> str:
    text = head if isinstance(head, str) else json.dumps(head)
    signed = f"pv1.{KEYRING.key_id}.{serializer}.{coding}.{len(text) if length is None else length}.{text}{body}."
    return signed + KEYRING.sign(signed.encode())


def test_the_crafted_envelope_opens() -> None:
    """The next test mutates one that is accepted."""
    assert opened(crafted()).decode().event == "e"


@pytest.mark.parametrize(
    "text",
    [
        *(
            crafted([*HEAD[:at], wrong, *HEAD[at + 1 :]])
            for at, wrong in [
                (0, None),
                (1, 5),
                (2, None),
                (3, 1),
                (4, 0),
                (4, True),
                (4, 1.5),
                (5, "ab"),
                (5, [1]),
                (6, None),
                (7, {}),
                (8, 0),
                (8, True),
                (8, 2**31),
                (9, -1),
                (9, False),
                (9, 2**31),
                (10, 0),
                (10, None),
                (11, None),
                (11, "x"),
                (11, "2024-01-01T00:00:00"),
                (11, "2024-01-01"),
                (12, 5),
                (12, "x"),
                (13, []),
                (14, 10),
                (14, -1),
                (14, True),
                (15, None),
                (15, []),
                (15, {"a": 1}),
                (15, {"a": None}),
            ]
        ),
        crafted(HEAD[:-1]),
        crafted([*HEAD, 1]),
        crafted("{}"),
        crafted("[" * 5000),
        crafted("junk"),
        crafted("9" * 5000),
        crafted(length="x"),
        crafted(length=""),
        crafted(length="-1"),
        crafted(length="007"),
        crafted(length=99999),
        crafted(length="9" * 5000),
        crafted(length=0),
        crafted(coding="x"),
        crafted(serializer="a b"),
        crafted(serializer=""),
        crafted(length="\u0031 "),
        "pv1." + str(KEYRING.key_id) + "." + KEYRING.sign(f"pv1.{KEYRING.key_id}.".encode()),
    ],
)
def test_malformed_heads_are_refused_though_signed(text: str) -> None:
    """Nothing but Refused comes out of a head."""
    with pytest.raises(Refused, match="malformed"):
        opened(text, max_size=100_000)


# -- Sealing again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", [JSONSerializer(), PickleSerializer()])
def test_resealed_arguments_travel_undecoded_under_a_new_head(serializer: Serializer) -> None:
    """Whatever a handler has done to its arguments, and whether or not they can be decoded here."""
    envelope = opened(sealed(serializer=serializer), serializers={serializer.name: serializer})
    again = replace(envelope.emission, attempt=4, handlers=("a:f",))
    text = envelope.reseal(again, queue="other", message_id="m-2", keyring=KEYRING)
    with pytest.raises(Refused, match="queue 'other'"):
        opened(text, serializers={serializer.name: serializer})
    resealed = open_envelope(
        text, queue="other", message_id="m-2", serializers={serializer.name: serializer}, keyring=KEYRING,
        max_size=MAX_SIZE,
    )  # fmt: skip
    assert resealed.emission == again
    assert resealed.decode() == replace(emission(), attempt=4, handlers=("a:f",))


@pytest.mark.parametrize("data", [bytes(range(0x20)), b"\x7f", b'"\\', bytes(range(256)), b"plain"])
def test_nothing_sealed_has_to_be_escaped_but_quotes_and_backslashes(data: bytes) -> None:
    """In the JSON of a message, where nobody looks for anything else."""
    own = Recording("own", data)
    for text in (sealed(serializer=own), sealed(emission(args=(data.decode("latin-1"),)))):
        assert json.dumps(text)[1:-1] == text.replace("\\", "\\\\").replace('"', '\\"')
    assert opened(sealed(emission(event="other"), serializer=own), serializers={"own": own}).decode().args == (data,)


class Indented(JSONSerializer):
    """Writes line breaks, which what it derives from never does."""

    def pack(self, content: Any) -> bytes:
        return json.dumps(content, indent=1).encode()


def test_what_derives_from_our_json_may_write_otherwise() -> None:
    text = sealed(emission(kwargs={}), serializer=Indented())
    assert text.isprintable()
    assert opened(text, serializers={"json": Indented()}).decode() == emission(kwargs={})


def test_what_came_with_control_characters_is_sent_again_without() -> None:
    """Another program may have sealed it."""
    own = Recording("own")
    envelope = opened(crafted([*HEAD[:3], "other", *HEAD[4:]], serializer="own", body="a\nb"), serializers={"own": own})
    assert envelope.decode().args == (b"a\nb",)
    text = envelope.reseal(envelope.emission, queue="orders", message_id="m-1", keyring=KEYRING)
    assert text.isprintable()
    assert opened(text, serializers={"own": own}).decode().args == (b"a\nb",)


def test_resealing_keeps_to_a_limit_where_one_is_given() -> None:
    envelope = opened(sealed())
    text = envelope.reseal(envelope.emission, queue="orders", message_id="m-1", keyring=KEYRING)
    assert text == sealed()
    with pytest.raises(NotSerializable, match="max_size"):
        envelope.reseal(envelope.emission, queue="orders", message_id="m-1", keyring=KEYRING, max_size=len(text) - 1)


# -- Sealing ----------------------------------------------------------------------------------------------------


def test_too_large_is_refused_by_both_sides() -> None:
    """The limit counts every byte of the text."""
    size = len(sealed())
    assert opened(sealed(max_size=size), max_size=size)
    with pytest.raises(NotSerializable, match=rf"{size} bytes, more than the {size - 1} of max_size.*send the id"):
        sealed(max_size=size - 1)
    with pytest.raises(Refused):
        opened(sealed(), max_size=size - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {"a": 1}},
        {"headers": {1: "a"}},
        {"headers": {"a": None}},
        {"priority": 10},
        {"priority": True},
        {"attempt": 0},
        {"replay": -1},
        {"suspect": 1},
        {"timestamp": datetime(2024, 1, 1)},
        {"due": datetime(2024, 1, 1)},
        {"expires": "tomorrow"},
        {"id": 5},
        {"event": None},
        {"due": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))},
        {"handlers": (1,)},
        {"version": 0},
    ],
)
def test_heads_that_would_be_refused_are_not_sealed(changes: dict[str, Any]) -> None:
    """The emitter hears of it, naming the field."""
    with pytest.raises(NotSerializable, match=next(iter(changes))):
        sealed(emission(**changes))


@pytest.mark.parametrize("data", ["text", None, bytearray(b"x")])
def test_dumps_must_return_bytes(data: Any) -> None:
    """A custom serializer that returns something else is named."""
    with pytest.raises(ConfigurationError, match=r"Recording\.dumps must return bytes"):
        sealed(serializer=Recording(data=data))


@pytest.mark.parametrize("name", ["", "a.b", "é", None, "x" * 65, "a b"])
def test_serializer_names_are_checked(name: Any) -> None:
    """A name must fit between two dots."""
    serializer = Recording(name=name)
    if name is None:
        serializer.name = "None!"
    with pytest.raises(ConfigurationError, match="name must be"):
        sealed(serializer=serializer)


def test_errors_of_a_custom_dumps_are_ours() -> None:
    """Its error is the cause."""

    class Broken(Recording):
        def dumps(self, emission: Emission) -> bytes:
            raise KeyError("x")

    with pytest.raises(NotSerializable, match="KeyError") as caught:
        sealed(serializer=Broken())
    assert isinstance(caught.value.__cause__, KeyError)


# -- Decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"ascii . text", b"\xff\x00", bytes(range(256))])
def test_bodies_of_any_bytes_travel(data: bytes) -> None:
    """A custom serializer may return any bytes; of what it loads only the arguments are taken."""
    serializer = Recording("my-own_1", data)
    decoded = opened(sealed(serializer=serializer), serializers={"my-own_1": serializer}).decode()
    assert decoded == emission(args=(data,), kwargs={"a": 1})
    assert serializer.calls == 1


def test_opening_does_not_decode() -> None:
    """Arguments stay encoded until somebody asks for them."""
    recording = Recording()
    opened(sealed(), serializers={"json": recording})
    assert recording.calls == 0


def test_the_event_of_the_body_must_be_that_of_the_head() -> None:
    """A body cannot belong to another event."""
    with pytest.raises(Undecodable, match="another event"):
        opened(crafted(body='["other",[],{}]')).decode()


def test_malformed_bodies_are_undecodable() -> None:
    """Also if their base64 is."""
    for text in (crafted(body="junk"), crafted(coding="b", body="!"), crafted(body="")):
        with pytest.raises(Undecodable):
            opened(text).decode()


@pytest.mark.parametrize(
    "made", [None, 5, Emission(event="e", args=[1]), Emission(event="e", kwargs=None), RecursionError()]
)  # type: ignore[arg-type]
def test_loads_must_return_an_emission(made: Any) -> None:
    """What a custom serializer does wrong is Undecodable."""

    class Wrong(Recording):
        def loads(self, data: bytes) -> Emission:
            if isinstance(made, Exception):
                raise made
            return made  # type: ignore[no-any-return]

    with pytest.raises(Undecodable) as caught:
        opened(sealed(), serializers={"json": Wrong()}).decode()
    assert caught.value.__cause__ is (made if isinstance(made, Exception) else None)


def test_an_envelope_can_be_logged() -> None:
    """Its repr holds no arguments and no headers."""
    assert "x.y" not in repr(opened(sealed()))
    assert "x-request" not in repr(opened(sealed()))


FORGED = ("x\n[2000-01-01] ERROR forged", "\x1b[2J", "\u202edetrever", "a\u2028b", "\0")


@pytest.mark.parametrize("at", [0, 1, 2, 3, 6, 7])
@pytest.mark.parametrize("name", FORGED)
def test_names_that_would_forge_log_lines_are_refused_though_signed(at: int, name: str) -> None:
    """Queue, ids, event, linker and handlers all stand in log lines."""
    with pytest.raises(Refused, match="malformed"):
        opened(crafted([*HEAD[:at], [name] if at == 7 else name, *HEAD[at + 1 :]]))


@pytest.mark.parametrize("name", FORGED)
def test_names_that_would_forge_log_lines_are_not_sealed(name: str) -> None:
    for changes in ({"id": name}, {"event": name}, {"linker": name}, {"handlers": (name,)}):
        with pytest.raises(NotSerializable, match="printable"):
            sealed(emission(**changes))


@pytest.mark.parametrize("id", ["", "x" * 256])
def test_ids_that_a_worker_refuses_are_not_sealed(id: str) -> None:
    """Celery's message has the same id, and the worker looks at that first."""
    with pytest.raises(NotSerializable, match="1 to 255 printable"):
        sealed(emission(id=id))
    with pytest.raises(Refused, match="malformed"):
        opened(crafted([*HEAD[:2], id, *HEAD[3:]]))


def test_the_name_of_another_queue_is_cut_short() -> None:
    with pytest.raises(Refused) as caught:
        opened(crafted(["q" * 5000, *HEAD[1:]]))
    assert len(str(caught.value)) < 400

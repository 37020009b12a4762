"""A hundred thousand envelopes that nobody has sealed: all are refused, and none leaves anything behind."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from pyventus.emission import Emission
from pyventus.errors import Refused
from pyventus.wire import Envelope, JSONSerializer, Keyring, PickleSerializer, open_envelope, seal
from tests.chaos import times
from tests.chaos.mutants import MUTATORS, mutant

MUTANTS = times(5_000, 100_000)
ROUNDS = 5
OLD, NEW, STRANGE = ("the old secret " * 3, "the new secret " * 3, "another one's secret " * 3)
KEYRING = Keyring([NEW, OLD])
MAX_SIZE = 50_000


def sealed(*args: Any, queue: str = "orders", message_id: str = "m", secret: Any = OLD, **options: Any) -> str:
    emission = Emission(event="OrderPlaced", args=args, headers={"request": "x.y"}, **options)
    return seal(
        emission, queue=queue, message_id=message_id, serializer=JSONSerializer(), keyring=Keyring(secret),
        max_size=MAX_SIZE,
    )  # fmt: skip


def opened(text: object) -> Envelope:
    return open_envelope(
        text, queue="orders", message_id="m", keyring=KEYRING, max_size=MAX_SIZE,
        serializers={"json": JSONSerializer(), "pickle": PickleSerializer()},
    )  # fmt: skip


GENUINE = [sealed(1, {"a": "b.c"}), sealed(b"\xff", secret=NEW), sealed("é" * 50, handlers=("a:f",), attempt=2)]
# Genuine, too, and none of this message's.
OTHERS = [
    sealed(1, message_id="another"),
    sealed(1, queue="another"),
    sealed(1, queue="Orders"),
    sealed(1, message_id="m "),
    sealed(1, secret=STRANGE),
    sealed(1, secret=None),
]


def check_refused(text: object) -> None:
    reason = ""
    try:
        opened(text)
    except Refused as refusal:
        reason = str(refusal)
    assert reason, f"opened: {text!r}"
    assert reason.isprintable()
    assert len(reason) < 700


@pytest.mark.parametrize("text", GENUINE)
def test_the_genuine_ones_open(text: str) -> None:
    """So what the next tests mutate are envelopes."""
    assert opened(text).decode().event == "OrderPlaced"


@pytest.mark.parametrize("text", OTHERS)
def test_those_of_another_queue_message_or_key_are_refused(text: str) -> None:
    check_refused(text)


@pytest.mark.parametrize("mutate", MUTATORS, ids=lambda mutate: mutate.__name__)
def test_each_way_to_mutate_makes_what_is_refused(mutate: Callable[..., object]) -> None:
    random = Random(mutate.__name__)
    for _ in range(20):
        made = mutate(random, GENUINE[0], OTHERS[0])
        if made not in GENUINE:
            check_refused(made)


def test_every_mutant_is_refused_and_nothing_of_it_is_kept() -> None:
    random = Random(20240102)
    grown = [_refuse_many(random, MUTANTS // ROUNDS) for _ in range(ROUNDS)]
    # The first round fills caches: of regular expressions, of numbers.
    assert sum(grown[1:]) < 100_000, f"bytes kept by each of {ROUNDS} rounds: {grown}"
    for text in GENUINE:
        opened(text).decode()


def _refuse_many(random: Random, count: int) -> int:
    """The bytes that are kept when ``count`` mutants were refused."""
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(count):
            check_refused(mutant(random, random.choice(GENUINE), random.choice(GENUINE + OTHERS)))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

"""Fuzzes what reads bytes that somebody else has written, guided by coverage.

``python scripts/fuzz.py 300`` fuzzes each target for 300 seconds, ``python scripts/fuzz.py 300 json`` one of them. A
target calls what it is named after with the fuzzer's bytes, and fails on any exception that is not the one promised.
Needs atheris: ``pip install atheris``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path
from typing import Any
from uuid import UUID

import atheris
import attrs
import msgspec
import pydantic

with atheris.instrument_imports(include=["pyventus"]):
    from celery import Celery
    from celery.exceptions import InvalidTaskError
    from kombu.message import Message

    from pyventus.emission import Emission
    from pyventus.emitters.celery import CeleryEventEmitter
    from pyventus.emitters.celery.request import EmissionRequest, check_message
    from pyventus.errors import ConfigurationError, NotSerializable, Refused, Undecodable
    from pyventus.events import register
    from pyventus.wire import Envelope, JSONSerializer, Keyring, PickleSerializer, open_envelope, pack, seal, unpack

SECRET = "s" * 32
KEYRING = Keyring([SECRET, "t" * 32])
MAX_SIZE = 64 * 1024
MAX_LENGTH = 4096
TAGS = [
    "float", "str", "bytes", "tuple", "set", "frozenset", "dict", "datetime", "date", "time", "timedelta", "decimal",
    "uuid", "enum", "object", "exception", "codec",
]  # fmt: skip


class Colour(Enum):
    """An enum that messages may name."""

    RED = 1


class Right(Flag):
    """A flag that messages may name."""

    READ = 1
    WRITE = 2


class Money:
    """A class with a codec."""


class Model(pydantic.BaseModel, extra="allow"):
    """A class with fields that were set, extra fields and a private attribute."""

    name: str
    size: int = 0
    _secret: int = 1


class Point(msgspec.Struct):
    """A class that is called with its fields."""

    x: int
    y: int = 0


@attrs.define
class Place:
    """A class whose default needs the instance."""

    x: int = 0
    y: int = attrs.Factory(lambda self: self.x, takes_self=True)


@dataclass(frozen=True)
class Order:
    """A class with fields that messages may name."""

    id: int
    total: Decimal = Decimal(0)
    tags: list[str] = field(default_factory=list)


for _known in (Colour, Right, Order, Model, Point, Place):
    register(_known)
register(Money, encode=vars, decode=lambda value: Money())

SAMPLES: tuple[Emission, ...] = (
    Emission(id="a", event="e", timestamp=datetime(2024, 1, 1, tzinfo=UTC)),
    Emission(
        event="order.placed",
        version=2,
        bases=("m:A",),
        args=(
            Order(1),
            Model.model_validate({"name": "x", "more": 1}),
            Point(1),
            Place(),
            Colour.RED,
            Right.READ | Right.WRITE,
            ValueError("x"),
            OSError(2, "no", "file"),
        ),
        kwargs={"a": [None, True, 1.5, float("nan"), b"x", "\ud800", (1,), {1, 2}, frozenset({3})], "b": {1: {"$": 2}}},
        due=datetime(2024, 1, 1, tzinfo=UTC),
        expires=datetime(2024, 1, 1, tzinfo=UTC),
        headers={"x": "y"},
        priority=9,
        handlers=("m:f",),
    ),
    Emission(event="e", args=(Decimal("1e5"), UUID(int=5), datetime(2024, 1, 1, tzinfo=UTC))),
)

GENUINE = [
    seal(each, queue="q", message_id="m", serializer=JSONSerializer(), keyring=KEYRING, max_size=MAX_SIZE)
    for each in SAMPLES
]


# -- The targets ------------------------------------------------------------------------------------------------------


def _open(text: str, message_id: str) -> Envelope:
    return open_envelope(
        text, queue="q", message_id=message_id, keyring=KEYRING, max_size=MAX_SIZE,
        serializers={"json": JSONSerializer(), "pickle": PickleSerializer()},
    )  # fmt: skip


def _signed(text: bytes) -> str:
    """What somebody who holds the key can make of it, so that the parser behind the tag is reached."""
    body = b"pv1." + str(KEYRING.key_id).encode() + b"." + text.decode("ascii", "ignore").encode() + b"."
    return body.decode() + KEYRING.sign(body)


def unsigned(data: bytes) -> None:
    """Nothing but a refusal comes of what was not signed."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(Refused):
        _open(text, "m")
        assert text in GENUINE, "opened"


def envelope(data: bytes) -> None:
    """Whatever is signed: refused, or an emission that can be sealed again as it was opened."""
    with contextlib.suppress(Refused):
        opened = _open(_signed(data), "m")
        again = opened.reseal(opened.emission, queue="q", message_id="m", keyring=KEYRING)
        assert _open(again, "m").emission == opened.emission
        repr(opened)


def decode(data: bytes) -> None:
    """The body that the fuzzer makes under a head of ours."""
    opened = replace(_open(GENUINE[0], "m"), _body=data[1:].decode("ascii", "ignore"), _is_text=data[:1] != b"b")
    with contextlib.suppress(Undecodable):
        opened.decode()


def loads(data: bytes) -> None:
    """Undecodable, or what can be encoded again."""
    with contextlib.suppress(Undecodable):
        emission = JSONSerializer().loads(data)
        with contextlib.suppress(NotSerializable):
            JSONSerializer().dumps(emission)


def tree(data: bytes) -> None:
    """The same for JSON that is well formed, of the tags and names that there are."""
    node = _node(atheris.FuzzedDataProvider(data), 0)
    loads(json.dumps(["e", [node], {}]).encode())


_NAMES = [f"__main__:{cls.__qualname__}" for cls in (Colour, Right, Order, Money, Model, Point, Place)]
_TEXTS = [*_NAMES, "builtins:OSError", "builtins:ExceptionGroup", "RED", "2024-01-01", "00:00", "nan", "1e9", "UTC", ""]


def _node(provider: Any, depth: int) -> Any:
    kind = provider.ConsumeIntInRange(0, 9 if depth < 8 else 5)
    match kind:
        case 0:
            return provider.PickValueInList([None, True, False])
        case 1:
            return provider.ConsumeInt(8)
        case 2:
            return provider.PickValueInList([0, 1, -1, 10**30, 1.5, 2**63])
        case 3 | 4:
            return provider.PickValueInList(_TEXTS)
        case 5:
            return provider.ConsumeUnicode(20)
        case 6 | 7:
            return [_node(provider, depth + 1) for _ in range(provider.ConsumeIntInRange(0, 4))]
    keys = provider.PickValueInList(["v", "cv", "cf", "cn", "cvn", "cfr", "vz", "vzf", "cvmnfr"])
    tag = {"$": provider.PickValueInList(TAGS)} if kind == 8 else {}
    return {**tag, **{key: _node(provider, depth + 1) for key in keys}}


def keyring(data: bytes) -> None:
    """Any secret, key id and tag."""
    provider = atheris.FuzzedDataProvider(data)
    with contextlib.suppress(ConfigurationError):
        ring = Keyring([provider.ConsumeUnicode(20), provider.ConsumeBytes(20), provider.ConsumeUnicode(5)])
        assert not ring.verify(provider.ConsumeUnicode(9), provider.ConsumeBytes(20), provider.ConsumeUnicode(50))
        signed = provider.ConsumeBytes(50)
        assert ring.verify(ring.key_ids[0], signed, ring.sign(signed))
        repr(ring)


_app = Celery("fuzzed", broker="memory://")
_queue = CeleryEventEmitter.Queue(_app, secret=SECRET)
_app.finalize()
_task = _app.tasks[_queue.task_name] if _app.conf else None


def message(data: bytes) -> None:
    """A whole message, as the main process of a worker gets it: an invalid task, or a request."""
    head, _, body = data.partition(b"\n")
    try:
        headers = json.loads(head)
    except (ValueError, RecursionError):
        headers = {}
    if not isinstance(headers, dict):
        return
    received = Message(
        body, content_type="application/json", content_encoding="utf-8", accept={"application/json"},
        headers={"task": _queue.task_name, "id": "m", **headers, "compression": None}, delivery_tag="1",
    )  # fmt: skip
    received.headers["task"] = _queue.task_name
    with contextlib.suppress(InvalidTaskError):
        check_message(received)
        request = EmissionRequest(received, app=_app, task=_task, hostname="h")
        request.info()
        assert request.name.isprintable()
        assert str(request.id).isprintable()


def batch(data: bytes) -> None:
    """What was taken apart is put together to the same text."""
    text = "pvb1." + data.decode("latin-1")
    with contextlib.suppress(Refused):
        assert pack(unpack(text)) == text


#: Name, function and seeds. What else reads bytes of others (a dead letter store, a ledger) gets its line here.
TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (unsigned, envelope, batch, decode, loads, tree, keyring, message)
}


def seeds(name: str) -> list[bytes]:
    """Good inputs, from which the fuzzer starts."""
    bodies = [JSONSerializer().dumps(each) for each in SAMPLES]
    match name:
        case "unsigned":
            return [text.encode() for text in GENUINE]
        case "envelope":
            return [text.split(".", 2)[2].rpartition(".")[0].encode() for text in GENUINE]
        case "batch":
            return [b"1.1.ab", b"2.10.idsome.text.1.3.x1.1"]
        case "decode":
            return [b"t" + body for body in bodies]
        case "loads":
            return bodies
        case "message":
            embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
            return [
                json.dumps({"eta": "2024-01-01T00:00:00", "shadow": "x"}).encode()
                + b"\n"
                + json.dumps([[text], {}, embed]).encode()
                for text in GENUINE
            ]
    return [bytes(range(256))]


# -- Running them -----------------------------------------------------------------------------------------------------


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder)
        for number, seed in enumerate(seeds(name)):
            (corpus / f"seed-{number}").write_bytes(seed)
        words = corpus.with_suffix(".dict")
        tokens = [*TAGS, *_TEXTS, "pv1", '{\\"$\\":\\"', '\\",\\"v\\":', '\\",\\"c\\":\\"', "builtins:"]
        words.write_text("".join(f'"{word}"\n' for word in tokens if word))
        options = [f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-timeout=10", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, f"-dict={words}", str(corpus)], TARGETS[name])
        atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz each target in a process of its own, and say what was reached."""
    seconds = int(arguments[0]) if arguments else 60
    failed = 0
    for name in arguments[1:] or TARGETS:
        command = [sys.executable, __file__, "--one", name, str(seconds)]
        with tempfile.TemporaryDirectory() as folder:
            # Where it leaves the input on which a target failed.
            ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
            log = ended.stderr + ended.stdout
            runs = re.findall(r"number_of_executed_units: (\d+)|Done (\d+) runs", log)
            covered = re.findall(r" cov: (\d+) ft: (\d+)", log)
            count = next((a or b for a, b in runs), "?")
            print(f"{name:10s} {count:>12s} runs, edges and features: {covered[-1] if covered else '?'}", flush=True)
            if ended.returncode:
                failed += 1
                print(log[-4000:])
                for file in Path(folder).iterdir():
                    print(file.name, file.read_bytes()[:MAX_LENGTH])
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        fuzz(sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[1:]))

"""1,000 emissions of mixed kinds arrive once each, equal to what was emitted, through each broker."""

from __future__ import annotations

import base64
import pickle
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from pyventus.emitters.celery import CeleryEventEmitter
from tests.functional.emitting import mixed
from tests.workers import worker

ROOT = Path(__file__).parents[2]
COUNT = 1000


def test_a_thousand_emissions_of_mixed_kinds(
    broker_url: str, queue_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", broker_url)
    output = tmp_path / "output"
    env = {"TEST_QUEUE": queue_name, "TEST_OUTPUT": str(output)}
    _, queue = mixed.make_app(queue_name)
    emitter = CeleryEventEmitter(queue, timeout=20)
    maker = mixed.Maker(seed=20)
    emitted = {}
    for _ in range(COUNT):
        event, args, kwargs = maker.event()
        emission = emitter.emit(event, *args, **kwargs)
        emitted[emission.id] = (args if isinstance(event, str) else (event, *args), kwargs)
    assert len(emitted) == COUNT
    last = emitter.emit("Mixed")
    with worker(
        "tests.functional.emitting.mixed", cwd=ROOT, log=tmp_path / "log", env=env, pool="solo", queues=queue_name
    ) as process:
        arrived = wait_for(output, last.id)
        assert "refused" not in process.log()
    del arrived[-1]
    assert Counter(id for id, _ in arrived) == Counter(emitted.keys())
    for id, found in arrived:
        assert same(found, emitted[id]), f"emitted {emitted[id]!r}, arrived {found!r}"


def wait_for(output: Path, last: str) -> list[tuple[str, Any]]:
    """What arrived, when the last one and as many as there should be have."""
    deadline = time.monotonic() + 60
    lines: list[bytes] = []
    while len(lines) <= COUNT:
        assert time.monotonic() < deadline, f"{len(lines)} of {COUNT} have arrived"
        time.sleep(0.05)
        lines = output.read_bytes().splitlines() if output.exists() else []
    found = [line.split(b" ") for line in lines]
    assert found[-1][0].decode() == last
    return [(id.decode(), pickle.loads(base64.b64decode(data))) for id, data in found]


def same(one: Any, other: Any) -> bool:
    """Whether two values are of one type and equal, all the way down."""
    if type(one) is not type(other):
        return False
    parts = parts_of(one)
    if parts is None:
        return repr(one) == repr(other) if isinstance(one, (float, Decimal)) else bool(one == other)
    others = parts_of(other)
    assert others is not None
    return len(parts) == len(others) and all(map(same, parts, others))


def parts_of(value: Any) -> list[Any] | None:
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=lambda member: (type(member).__name__, repr(member)))
    if isinstance(value, BaseException):
        return [value.args, getattr(value, "__notes__", None)]
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(value, pydantic.BaseModel):
        return list(dict(value).values())
    if attrs.has(type(value)):
        return [getattr(value, field.name) for field in attrs.fields(type(value))]
    if hasattr(value, "__dataclass_fields__"):
        return list(vars(value).values())
    return None


def test_same_tells_apart() -> None:
    """The comparison itself is no rubber stamp."""
    assert same([1, {"a": (1.0, {2})}], [1, {"a": (1.0, {2})}])
    noted = ValueError("a")
    noted.add_note("b")
    differing: list[tuple[Any, Any]] = [
        (1, True), (1, 1.0), ((1,), [1]), ({1}, frozenset({1})), (Decimal("1.0"), Decimal("1.00")), (0.0, -0.0),
        (ValueError("a"), noted), (mixed.Size.SMALL, 1), (mixed.Cancelled("a"), mixed.Cancelled("b")), ({1: 2}, {1: 3}),
    ]  # fmt: skip
    for one, other in differing:
        assert not same(one, other), (one, other)

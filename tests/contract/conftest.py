"""Runs each behaviour of the contract against every emitter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.brokers import RabbitMQ, Valkey

from . import emitters, handlers
from .emitters import Record, UnderTest

IN_PROCESS = {
    "inside a loop": emitters.inside_a_loop,
    "outside a loop": emitters.outside_a_loop,
    "threads": emitters.threads,
    "processes": emitters.processes,
}


@pytest.fixture(scope="module", params=[*IN_PROCESS, "celery on redis", "celery on rabbitmq"])
def under_test(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnderTest]:
    """Each emitter in turn; one worker serves all tests of a broker."""
    name: str = request.param
    with contextlib.ExitStack() as stack:
        if name in IN_PROCESS:
            handlers.link_once(name)
            yield stack.enter_context(IN_PROCESS[name]())
        else:
            log = tmp_path_factory.mktemp("contract") / "worker.log"
            queue_name = f"pyventus-contract-{uuid4().hex[:12]}"
            broker_url = _broker_url(name, queue_name, request, stack)
            yield stack.enter_context(emitters.celery(name, broker_url, queue_name, log))


def _broker_url(name: str, queue_name: str, request: pytest.FixtureRequest, stack: contextlib.ExitStack) -> str:
    if name == "celery on redis":
        valkey: Valkey = request.getfixturevalue("valkey")
        return valkey.url
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    stack.callback(rabbitmq.delete, queue_name)
    return rabbitmq.url


@pytest.fixture
def record(under_test: UnderTest, tmp_path: Path) -> Record:
    return Record(under_test, tmp_path / "record")

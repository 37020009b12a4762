"""What every test may ask for: brokers of both kinds, and names of its own on them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn
from uuid import uuid4

import hypothesis
import pytest
import redis
import sqlalchemy

from tests.brokers import RabbitMQ, Valkey

# Deadlines would make a test's outcome depend on how busy the machine is.
hypothesis.settings.register_profile("pyventus", deadline=None)
hypothesis.settings.load_profile("pyventus")


def service_missing(how_to_start: str) -> NoReturn:
    """Skip the test, or fail it where the services are meant to be there."""
    if os.environ.get("PYVENTUS_REQUIRE_SERVICES") == "1":
        pytest.fail(how_to_start, pytrace=False)
    pytest.skip(how_to_start)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """The session's embedded server; a test that breaks its server starts its own ``Valkey``."""
    with Valkey(password="redispw") as server:
        yield server


@pytest.fixture
def redis_url(valkey: Valkey) -> Iterator[str]:
    yield valkey.url
    with valkey.client() as client:
        client.flushall()


@pytest.fixture(scope="session")
def rabbitmq() -> RabbitMQ:
    server = RabbitMQ(os.environ.get("PYVENTUS_TEST_AMQP_URL", "amqp://guest:guest@localhost:5672//"))
    try:
        with server.channel():
            return server
    except Exception as error:  # whatever it is: it does not answer
        service_missing(
            f"no RabbitMQ ({error!r}): start one with `docker run -p 5672:5672 rabbitmq:4`, "
            "or name yours in PYVENTUS_TEST_AMQP_URL"
        )


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ, queue_name: str) -> Iterator[str]:
    """RabbitMQ's URL; the test's queue is deleted afterwards."""
    yield rabbitmq.url
    rabbitmq.delete(queue_name)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    url = os.environ.get("PYVENTUS_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/test")
    engine = sqlalchemy.create_engine(url, connect_args={"connect_timeout": 5})
    try:
        with engine.connect():
            return url
    except Exception as error:  # whatever it is: it does not answer
        service_missing(
            f"no PostgreSQL ({error!r}): start one with `docker run -p 5432:5432 -e POSTGRES_DB=test "
            "-e POSTGRES_HOST_AUTH_METHOD=trust postgres:17`, or name yours in PYVENTUS_TEST_POSTGRES_URL"
        )
    finally:
        engine.dispose()


@pytest.fixture
def own_url(redis_url: str) -> str:
    """The same Redis, by way of our own transport."""
    return f"pyventus-{redis_url}"


@pytest.fixture
def client(valkey: Valkey, redis_url: str) -> Iterator[redis.Redis]:
    """Of the server that `redis_url` leads to."""
    with valkey.client() as client:
        yield client


@pytest.fixture(params=["redis", "amqp", "own"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Runs the test once on each broker."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def queue_name() -> str:
    """A queue that no other test, and nobody else on a shared broker, uses."""
    return f"pyventus-test-{uuid4().hex[:12]}"


@pytest.fixture
def untraced() -> Iterator[None]:
    """Neither the test's thread is traced nor any that it starts.

    CPython 3.11 keeps a traced one in its evaluation loop for as long as an exception is on its way to another thread.
    """
    here, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(of_threads)
    sys.settrace(here)

"""How a ledger is named, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from pyventus.errors import InvalidOption, MissingExtra
from pyventus.ledger import Ledger, make_ledger
from pyventus.ledger.base import Claim, Key
from pyventus.ledger.redis import RedisLedger
from pyventus.ledger.sql import SQLLedger


@pytest.mark.parametrize(
    ("url", "cls"),
    [
        ("redis://user:hunter2@127.0.0.1:1/3", RedisLedger),
        ("rediss://user:hunter2@127.0.0.1:1/3?ssl_cert_reqs=required", RedisLedger),
        ("unix://user:hunter2@/run/redis.sock?db=3", RedisLedger),
        ("sqlite:////tmp/no/such/folder/ledger.db", SQLLedger),
        ("postgresql+psycopg://user:hunter2@127.0.0.1:1/shop?password=hunter2", SQLLedger),
    ],
)
def test_a_url_names_a_ledger(url: str, cls: type) -> None:
    """It connects when it is first used, and shows no password."""
    ledger = make_ledger(url)
    assert type(ledger) is cls
    assert isinstance(ledger, Ledger)
    assert (ledger.lease, ledger.retention) == (30, timedelta(days=14))
    assert "hunter2" not in repr(ledger)
    assert make_ledger(ledger) is ledger


def test_what_it_says_of_itself() -> None:
    shown = [
        repr(make_ledger(url))
        for url in (
            "redis://:secret@redis.example:6380/3",
            "unix:///run/redis.sock",
            "sqlite:////tmp/ledger.db",
            "postgresql+psycopg://shop:secret@db.example/shop",
        )
    ]
    assert shown == [
        "<RedisLedger redis.example:6380/3, lease 30 s, retention 14 days>",
        "<RedisLedger /run/redis.sock/0, lease 30 s, retention 14 days>",
        "<SQLLedger sqlite /tmp/ledger.db pyventus_ledger, lease 30 s, retention 14 days>",
        "<SQLLedger postgresql db.example:5432/shop pyventus_ledger, lease 30 s, retention 14 days>",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("memcached://:hunter2@host", r"begins with one of redis://, .*, postgresql\+psycopg://, not memcached://"),
        ("postgresql://user:hunter2@host/db", "not postgresql://"),
        ("hunter2", "begins with one of redis://"),
        ("", "begins with one of redis://"),
        (17, "a Ledger or its URL, not an instance of int"),
        (None, "not an instance of NoneType"),
        (RedisLedger, "not an instance of type"),
        ("redis://:pass/hunter2@host:6379/0", "percent-encoded"),
        ("redis://host:hunter2/0", "percent-encoded"),
        ("postgresql+psycopg://user:@host:hunter2/db", "percent-encoded"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:///file:ledger?mode=memory&uri=true", "name a file"),
    ],
)
def test_what_names_none(value: object, message: str) -> None:
    """Neither message nor cause shows a password."""
    with pytest.raises(InvalidOption, match=message) as raised:
        make_ledger(value)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    "options",
    [
        {"lease": 0}, {"lease": -1}, {"lease": float("nan")}, {"lease": float("inf")}, {"lease": True}, {"lease": "30"},
        {"lease": 1e12}, {"retention": 14}, {"retention": None}, {"retention": timedelta(0)}, {"retention": -DAY},
        {"lease": 100, "retention": timedelta(seconds=99)}, {"retention": 100_000 * DAY},
    ],
)  # fmt: skip
def test_times_that_cannot_be(options: dict[str, Any], tmp_path: Path) -> None:
    for cls, place in ((RedisLedger, "redis://127.0.0.1:1"), (SQLLedger, f"sqlite:///{tmp_path}/ledger.db")):
        with pytest.raises(InvalidOption, match="lease|retention"):
            cls(place, **options)


@pytest.mark.parametrize("table", ["", "1st", "a b", 'a"; DROP TABLE users; --', "a.b", "x" * 51, "tä", None])
def test_tables_that_cannot_be(table: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="table must be"):
        SQLLedger(f"sqlite:///{tmp_path}/ledger.db", table=table)


def test_a_table_may_have_any_other_name(tmp_path: Path) -> None:
    ledger = SQLLedger(f"sqlite:///{tmp_path}/ledger.db", table="Order")
    assert set(ledger.metadata.tables) == {"order", "order_once"}
    assert ledger.prune() == 0
    ledger.close()


def test_other_databases_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"begins with sqlite or postgresql\+psycopg, not mysql"):
        SQLLedger("mysql://host/db")
    engine = sa.create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(InvalidOption, match="in SQLite or PostgreSQL, and this engine in oracle"):
        SQLLedger(engine)


def test_engines_and_clients_of_ones_own(tmp_path: Path) -> None:
    """They stay their owner's: closing the ledger leaves them alone."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/ledger.db")
    ledger = SQLLedger(engine)
    assert ledger.prune() == 0
    pool = engine.pool
    ledger.close()
    assert engine.pool is pool
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "delete"
    engine.dispose()
    client = redis.Redis(port=1)
    assert repr(RedisLedger(client)).startswith("<RedisLedger localhost:1/0")


def test_a_url_of_redis_is_given_timeouts() -> None:
    """Not all versions of redis-py have any; who gives others in the URL has those."""
    own = RedisLedger("redis://127.0.0.1:1")._clients.get().get_connection_kwargs()
    assert (own["socket_timeout"], own["socket_connect_timeout"], own["retry"]._retries) == (5, 5, 0)
    other = RedisLedger("redis://127.0.0.1:1?socket_timeout=2")._clients.get().get_connection_kwargs()
    assert (other["socket_timeout"], other["socket_connect_timeout"]) == (2, 5)


def test_files_are_switched_to_wal(tmp_path: Path) -> None:
    """So that a reader does not hold up the writer."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = SQLLedger(url)
    assert ledger.prune() == 0
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    engine.dispose()
    ledger.close()


def test_errors_show_nothing_of_a_row(tmp_path: Path) -> None:
    """They stand in the log."""
    ledger = SQLLedger(f"sqlite:///{tmp_path}/ledger.db")
    claim = ledger.claim(Key("orders", "emission", "stock"), (0, 1))
    engine = sa.create_engine(f"sqlite:///{tmp_path}/ledger.db")
    ledger.metadata.drop_all(engine)
    engine.dispose()
    assert isinstance(claim, Claim)
    with pytest.raises(sa.exc.OperationalError) as raised:
        ledger.settle(claim, "owed", "hunter2")
    assert "hunter2" not in str(raised.value)
    ledger.close()


MISSING = """
import sys
sys.modules[{module!r}] = None
from pyventus.errors import MissingExtra
from pyventus.ledger import make_ledger
try:
    make_ledger({url!r})
except MissingExtra as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "url", "cure"),
    [
        ("redis", "redis://", "pip install 'pyventus[redis]'"),
        ("sqlalchemy", "sqlite:////tmp/x", "pip install 'pyventus[sqlalchemy]'"),
        ("psycopg", "postgresql+psycopg://host/db", "pip install 'psycopg[binary]'"),
    ],
)
def test_what_is_not_installed_is_named(module: str, url: str, cure: str) -> None:
    code = MISSING.format(module=module, url=url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert cure in done.stdout
    assert issubclass(MissingExtra, ImportError)

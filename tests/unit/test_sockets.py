"""Bytes that go and come over real sockets, by a deadline, and answers that are looked for before a thread sleeps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from pyventus.emitters.celery import sockets, splicing
from pyventus.emitters.celery.publisher import Message
from pyventus.emitters.celery.sockets import WAKE_SECONDS, is_quiet, is_rationed, look, receive, send_all
from pyventus.emitters.celery.splicing import RabbitMQSplicer, Splicer

LARGE = b"x" * 4_000_000


class Watched:
    """A socket that remembers with which timeouts it was read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.timeouts: list[float | None] = []

    def recv(self, most: int) -> bytes:
        self.timeouts.append(self._sock.gettimeout())
        return self._sock.recv(most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(30)
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def soon() -> float:
    return time.monotonic() + 30


def test_what_does_not_fit_at_once_is_sent_all_the_same(pair: Pair) -> None:
    ours, theirs = pair
    read: list[bytes] = []

    def read_all() -> None:
        while sum(map(len, read)) < len(LARGE):
            read.append(theirs.recv(65536))

    reading = threading.Thread(target=read_all)
    reading.start()
    send_all(ours, LARGE, soon())
    reading.join(30)
    assert b"".join(read) == LARGE


def test_who_does_not_read_holds_it_up_until_the_deadline(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        send_all(pair[0], LARGE, time.monotonic() + 0.1)


def test_nothing_is_sent_after_the_deadline(pair: Pair) -> None:
    ours, theirs = pair
    with pytest.raises(TimeoutError):
        send_all(ours, b"late", time.monotonic() - 1)
    assert is_quiet(theirs)


def test_what_comes_later_is_waited_for(pair: Pair) -> None:
    ours, theirs = pair
    later = threading.Timer(0.1, theirs.sendall, [b"answer"])
    later.start()
    assert receive(ours, 100, soon()) == b"answer"
    later.join()


def test_what_does_not_come_ends_at_the_deadline(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        receive(pair[0], 100, time.monotonic() + 0.1)


def test_what_is_there_is_found_and_what_is_not_is_not_waited_for(pair: Pair) -> None:
    assert look(pair[0], 100, time.perf_counter() + 0.01) is None
    pair[1].sendall(b"answer")
    assert look(pair[0], 100, time.perf_counter() + 60) == b"answer"


def test_looking_ends_where_somebody_else_has_a_use_for_the_processor(pair: Pair) -> None:
    """Here another thread, which also holds the interpreter's lock for milliseconds."""
    is_over = threading.Event()

    def calculate() -> None:
        while not is_over.is_set():
            sum(range(1000))

    other = threading.Thread(target=calculate)
    other.start()
    until = time.perf_counter() + 20
    try:
        assert look(pair[0], 100, until) is None
        assert time.perf_counter() < until
    finally:
        is_over.set()
        other.join()


@pytest.mark.parametrize(("seconds", "expected"), [(WAKE_SECONDS, False), (0.01, True)])
def test_the_processor_is_offered_to_others_by_who_looks_for_long(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: bool
) -> None:
    offers: list[None] = []
    monkeypatch.setattr(sockets, "_offer_processor", lambda: offers.append(None))
    assert look(pair[0], 100, time.perf_counter() + seconds) is None
    assert bool(offers) is expected


def test_the_last_moment_is_waited_for_too(pair: Pair) -> None:
    """After what went at once, and left the socket not waiting."""
    for _ in range(20):
        send_all(pair[0], b"?", soon())
        with pytest.raises(TimeoutError):
            receive(pair[0], 100, time.monotonic() + 0.005)


@pytest.mark.parametrize("read", [receive, look])
def test_a_peer_that_has_gone_is_told(pair: Pair, read: Callable[..., bytes]) -> None:
    pair[1].close()
    with pytest.raises(ConnectionError, match="the broker closed the connection"):
        read(pair[0], 100, time.perf_counter() + 30)


class Echo(Splicer):
    """Says the same to a peer whatever it sends, and is content with any answer."""

    spin_seconds = 60.0

    def __init__(self, sock: Any) -> None:
        super().__init__(Celery(set_as_current=False), None)
        self._sock = sock

    @property
    def socket(self) -> Any:
        return self._sock

    def request(self, messages: Sequence[Message]) -> bytes:
        return b"?"

    def take(self, data: bytes) -> bool:
        return bool(data)


def exchange(splicer: Echo, peer: socket.socket, *, spins: bool = True) -> bool:
    """Have it get an answer that is there already; whether it had looked for it rather than waited."""
    splicer.socket.timeouts.clear()
    peer.sendall(b"!")
    splicer.send([None], soon(), spins)  # type: ignore[list-item]
    assert peer.recv(100) == b"?"
    return bool(splicer.socket.timeouts[0] == 0)


def test_an_answer_is_looked_for_as_long_as_it_comes_soon(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    splicer = Echo(Watched(pair[0]))
    assert all(exchange(splicer, pair[1]) for _ in range(3))
    assert not exchange(splicer, pair[1], spins=False)

    monkeypatch.setattr(Echo, "spin_seconds", 0.0)
    looked = []
    for number in range(190):
        if splicer._naps == 0:
            looked.append(number)
        exchange(splicer, pair[1])
    assert [after - before for before, after in pairwise(looked)] == [1, 3, 7, 15, 31, 63, 63], "ever more seldom"

    monkeypatch.setattr(Echo, "spin_seconds", 60.0)
    naps = splicer._naps
    assert naps
    assert sum(exchange(splicer, pair[1]) for _ in range(100)) == 100 - naps, "and each time once one has come soon"

    monkeypatch.setattr(Echo, "spin_seconds", 0.0)
    assert not exchange(splicer, pair[1])
    assert splicer._naps == 0, "until several have come late again"


@pytest.mark.parametrize(("is_limited", "expected"), [(True, WAKE_SECONDS), (False, RabbitMQSplicer.spin_seconds)])
def test_what_is_rationed_is_not_spent_on_looking_for_rabbitmq_s_answer(
    monkeypatch: pytest.MonkeyPatch, is_limited: bool, expected: float
) -> None:
    monkeypatch.setattr(splicing, "is_rationed", lambda: is_limited)
    assert RabbitMQSplicer(Celery(set_as_current=False), None).spin_seconds == expected


V2, V1 = "0::/app/web\n", "5:cpuset:/app\n4:cpu,cpuacct:/app/web\n0::/\n"


@pytest.mark.parametrize(
    ("memberships", "limits", "expected"),
    [
        (None, {"cpu.max": "50000 100000\n"}, False),
        (V2, {}, False),
        (V2, {"app/web/cpu.max": "max 100000\n", "app/cpu.max": "max 100000\n"}, False),
        (V2, {"app/web/cpu.max": "50000 100000\n"}, True),
        (V2, {"app/web/cpu.max": "max 100000\n", "app/cpu.max": "50000 100000\n"}, True),
        (V2, {"cpu.max": "50000 100000\n"}, True),
        (V2, {"other/cpu.max": "50000 100000\n"}, False),
        (V1, {}, False),
        (V1, {"cpu/app/web/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_quota_us": "-1\n"}, False),
        (V1, {"cpu/app/web/cpu.cfs_quota_us": "50000\n"}, True),
        (V1, {"cpu/cpu.cfs_quota_us": "50000\n"}, True),
    ],
)
def test_a_limit_of_processor_time_is_found(
    tmp_path: Path, memberships: str | None, limits: dict[str, str], expected: bool
) -> None:
    files = {f"sys/fs/cgroup/{name}": limit for name, limit in limits.items()}
    if memberships is not None:
        files["proc/self/cgroup"] = memberships
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert is_rationed(tmp_path) is expected


@pytest.fixture
def group() -> Iterator[tuple[Path, str, str]]:
    """A control group of this kernel's: its folder, and the file and text of its limit."""
    top = Path("/sys/fs/cgroup")
    made = top / f"pyventus-{os.getpid()}"
    file, limit = "cpu.max", "50000 100000"
    if not (top / "cgroup.controllers").exists():
        made, file, limit = top / "cpu" / made.name, "cpu.cfs_quota_us", "50000"
    try:
        made.mkdir()
    except OSError:
        pytest.skip("only who may make control groups can try")
    try:
        if not (made / file).exists():
            pytest.skip("these control groups have no limits of processor time")
        yield made, file, limit
    finally:
        made.rmdir()


def test_a_limit_of_this_kernel_is_found(group: tuple[Path, str, str]) -> None:
    folder, file, limit = group
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from pyventus.emitters.celery.sockets import is_rationed; print(is_rationed())"
    )

    def found() -> str:
        command = [sys.executable, "-c", script, str(folder / "cgroup.procs")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert is_rationed() or found() == "False"
    (folder / file).write_text(limit)
    assert found() == "True"

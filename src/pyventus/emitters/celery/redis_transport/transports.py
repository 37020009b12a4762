"""What kombu makes of the schemes of `SCHEMES`."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock
from kombu.utils.url import url_to_parts
from redis import Redis
from redis.sentinel import Sentinel

from pyventus.emitters.celery.redis_transport import DRIVER_NAME
from pyventus.emitters.celery.redis_transport.channel import Channel
from pyventus.emitters.celery.redis_transport.waiting import Bell, Refused, Waiter

Watched = Waiter | Bell


class Poller(stock.MultiChannelPoller):
    """Watches what the channels wait for; kombu's own watches one connection for each."""

    #: Of Celery's worker, once it runs.
    hub: Any = None

    def on_poll_start(self) -> None:
        for channel in list(self._channels):
            channel.prepare()
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def _register_BRPOP(self, channel: Channel) -> None:
        channel.prepare()  # Kombu 5.5 calls this where 5.7 calls on_poll_start.

    def watch(self, channel: Channel, watched: Watched) -> None:
        """Have it called when its connection can be read."""
        if (channel, watched, watched) not in self._chan_to_sock:
            self._register(channel, watched, watched)

    def unwatch(self, channel: Channel, watched: Watched) -> None:
        """Called before its connection is closed."""
        sock = self._chan_to_sock.pop((channel, watched, watched), None)
        if sock is None or sock.fileno() < 0:
            return
        self._fd_to_chan.pop(sock.fileno(), None)
        if self.hub is not None:
            self.hub.remove(sock)
        else:
            self.poller.unregister(sock)

    def on_readable(self, fileno: int) -> Any:
        # Not as kombu's, which reads nothing while the prefetch count is reached: what has come is to be read.
        channel, type = self._fd_to_chan.get(fileno, (None, None))
        if channel is None:
            return None
        if type == "LISTEN":
            return channel.handlers[type]()
        return self._call(channel, type)

    def _call(self, channel: Channel, watched: Watched) -> Any:
        try:
            return watched.on_readable()
        except Refused as error:
            channel.on_refused(error)
            raise stock.Empty from error

    def handle_event(self, fileno: int, event: int) -> Any:
        # An error shows when it is read.
        return self.on_readable(fileno)


class Transport(stock.Transport):
    """``pyventus-redis://``. To Celery and to us it is Redis, by its ``driver_type``."""

    Channel = Channel
    driver_name = DRIVER_NAME

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.cycle.hub = loop
        super().register_with_event_loop(connection, loop)


class TLSTransport(Transport):
    """``pyventus-rediss://``: kombu's ``rediss://`` encrypts only with one of its ``ssl_`` parameters in the URL, or
    with ``broker_use_ssl``; this always does, and verifies unless told otherwise.
    """

    def __init__(self, client: Any, **options: Any) -> None:
        if not isinstance(client.ssl, dict):
            client.ssl = {"ssl_cert_reqs": "required"}
        super().__init__(client, **options)


class SentinelChannel(Channel):
    """Finds the primary by asking the sentinels that the URLs name; its options are those of kombu's."""

    from_transport_options = (
        *Channel.from_transport_options,
        *(
            option
            for option in stock.SentinelChannel.from_transport_options
            if "sentinel" in option or "master" in option
        ),
    )
    connection_class = stock.SentinelChannel.connection_class
    connection_class_ssl = stock.SentinelChannel.connection_class_ssl
    master_name: str | None = None
    min_other_sentinels = 0
    sentinel_kwargs: dict[str, Any] | None = None

    def _get_pool(self, asynchronous: bool = False) -> Any:
        if self.master_name is None:
            raise ValueError("pyventus-sentinel:// needs the name of the primary: master_name in transport_options")
        params = self._connparams(asynchronous=asynchronous)
        self.keyprefix_fanout: str = self.keyprefix_fanout.format(db=params["db"])
        # Kombu's own picks sentinel:// from among the URLs.
        urls = [url_to_parts(url) for url in self.connection.client.alt]
        named = [(url.hostname, url.port or self.connection.default_port) for url in urls if url.scheme]
        given = params.pop("host"), params.pop("port")
        sentinel: Any = Sentinel(named or [given], self.min_other_sentinels, self.sentinel_kwargs, **params)  # type: ignore[no-untyped-call]
        return sentinel.master_for(self.master_name, Redis).connection_pool


class SentinelTransport(Transport):
    """``pyventus-sentinel://``."""

    default_port = 26379
    Channel = SentinelChannel

"""``celery -A app pyventus check``: what endangers emissions in an app, its broker and its workers, and the cure.

It changes nothing, waits for nobody longer than `SECONDS`, and shows neither secrets nor passwords.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote

import click
from celery import Celery
from celery.exceptions import SecurityError
from celery.utils.quorum_queues import detect_quorum_queues
from kombu import Connection
from kombu.serialization import prepare_accept_content

from pyventus.emitters.celery.delays import LONGEST_HELD
from pyventus.emitters.celery.queue import STRONG_SECRET_BYTES, Queue
from pyventus.emitters.celery.redis_transport import DRIVER_NAME
from pyventus.emitters.celery.worker import PICKLE_CONTENT, check_app, check_pickled, emission_tasks, has_side_door
from pyventus.errors import ConfigurationError, describe_error
from pyventus.handlers import EventHandler, callback_id
from pyventus.linkers import all_linkers

T = TypeVar("T")
Level = Literal["error", "warning", "unknown", "ok"]

SECONDS = 8.0
SOCKET_SECONDS = 3.0
REPLY_SECONDS = 1.0
# RabbitMQ's own default, which no client can read.
CONSUMER_TIMEOUT = 1800.0
# Kombu's own defaults.
VISIBILITY_TIMEOUT = 3600.0
MAX_CONNECTIONS = 10

MARKS: dict[Level, str] = {"error": "ERROR", "warning": "WARNING", "unknown": "UNKNOWN", "ok": "ok"}
COLOURS: dict[Level, str] = {"error": "red", "warning": "yellow", "unknown": "cyan", "ok": "green"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "error" for what loses emissions, runs nothing or lets others run code; "warning" for what may, one day.
        subject: what was looked at, in one or two words.
        fact: what is so.
        advice: what to change, and why; empty when all is well.
    """

    level: Level
    subject: str
    fact: str
    advice: str = ""


@dataclass(slots=True)
class Broker:
    """What the broker has told; ``failure`` if it has not."""

    driver: str = ""
    transport: str = ""
    failure: str = ""
    version: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, str] | None = None
    #: Messages and consumers by queue; no queue, None.
    queues: dict[str, tuple[int, int] | None] = field(default_factory=dict)


@dataclass(slots=True)
class Workers:
    """What the running workers have told, by worker; ``failure`` if none could be asked."""

    failure: str = ""
    stats: dict[str, dict[str, Any]] = field(default_factory=dict)
    queues: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Facts:
    """All that the checks look at."""

    app: Any
    queues: list[Queue]
    handlers: list[EventHandler]
    broker: Broker
    workers: Workers

    @property
    def is_redis(self) -> bool:
        return self.broker.driver == "redis"

    @property
    def is_own_transport(self) -> bool:
        return self.broker.transport == DRIVER_NAME

    @property
    def transport_options(self) -> dict[str, Any]:
        return self.app.conf.broker_transport_options or {}

    @property
    def queue_names(self) -> list[str]:
        return _queue_names(self.queues, self.handlers)


def check(app: Celery, *, seconds: float = SECONDS) -> list[Finding]:
    """Look at an app as a worker of it would be, at its broker, and at its running workers.

    Args:
        app: with all its modules imported.
        seconds: after which what has not answered counts as unknown.
    """
    end = time.monotonic() + seconds
    queues = [task.emission_queue for task in emission_tasks(app)]
    handlers = [handler for linker in all_linkers() for handler in linker.get_event_handlers()]
    broker = _start(lambda: _ask_broker(app, _queue_names(queues, handlers)))
    workers = _start(lambda: _ask_workers(app))
    facts = Facts(app, queues, handlers, _wait(broker, end, Broker), _wait(workers, end, Workers))
    return [_masked(finding, _passwords(app)) for each in CHECKS for finding in each(facts)]


# -- Asking -----------------------------------------------------------------------------------------------------


def _start(call: Callable[[], T]) -> Future[T]:
    """In a thread of its own, which a hanging broker may keep for ever."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="pyventus-check", daemon=True).start()
    return future


def _wait(future: Future[T], end: float, failed: Callable[..., T]) -> T:
    try:
        return future.result(max(0.0, end - time.monotonic()))
    except BaseException as error:
        if isinstance(error, TimeoutError) and not future.done():
            return failed(failure="no answer in time")
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        return failed(failure=describe_error(error))


def _ask_broker(app: Any, queues: list[str]) -> Broker:
    with _connected(app) as connection:
        broker = Broker(connection.transport.driver_type, connection.transport.driver_name)
        if broker.driver == "redis":
            _ask_redis(connection.default_channel.client, broker)
        elif broker.driver == "amqp":
            broker.version = str(connection.connection.server_properties.get("version", ""))
        broker.queues = {name: _look_at(connection, name) for name in queues}
        return broker


def _connected(app: Any) -> Connection:
    connection = _connection(app)
    urls = len(connection.alt) or 1
    # Each once; without a limit kombu tries for ever.
    connection.ensure_connection(None, urls - 1, interval_start=0, interval_step=0, reraise_as_library_errors=False)
    return connection


def _connection(app: Any) -> Connection:
    options = dict(app.conf.broker_transport_options or {})
    try:
        if app.connection_for_write().transport.driver_type == "redis":
            options |= {"socket_timeout": SOCKET_SECONDS, "socket_connect_timeout": SOCKET_SECONDS}
        return app.connection_for_write(connect_timeout=SOCKET_SECONDS, transport_options=options)
    except ValueError:
        # Its text may hold a part of the password.
        raise ConfigurationError(
            "broker_url is not a URL: is a special character of the password not percent-encoded?"
        ) from None


def _ask_redis(client: Any, broker: Broker) -> None:
    broker.info = client.info()
    broker.version = str(broker.info.get("valkey_version") or broker.info.get("redis_version") or "")
    try:
        broker.settings = {name: client.config_get(name).get(name, "") for name in ("save", "appendfsync")}
    except Exception:
        broker.settings = None  # Hosted ones often refuse CONFIG.


def _look_at(connection: Connection, queue: str) -> tuple[int, int] | None:
    # A queue that does not exist closes the channel.
    channel = connection.channel()
    try:
        declared = channel.queue_declare(queue, passive=True)
    except connection.channel_errors:
        return None
    channel.close()
    return declared.message_count, declared.consumer_count


def _ask_workers(app: Any) -> Workers:
    with _connected(app) as connection:
        names = list(app.control.inspect(timeout=REPLY_SECONDS, connection=connection).ping() or {})
        if not names:
            return Workers()
        inspect = app.control.inspect(names, timeout=REPLY_SECONDS, connection=connection)
        stats = inspect.stats() or {}
        active = inspect.active_queues() or {}
        tasks = inspect.registered() or {}
    queues = {name: [queue["name"] for queue in consumed] for name, consumed in active.items()}
    return Workers(stats={name: {} for name in names} | stats, queues=queues, tasks=tasks)


def _queue_names(queues: Iterable[Queue], handlers: Iterable[EventHandler]) -> list[str]:
    """Emission queues, and those that handlers name for themselves."""
    named = [handler.queue for handler in handlers if handler.queue is not None]
    return list(dict.fromkeys([*(queue.name for queue in queues), *named]))


# -- The app ----------------------------------------------------------------------------------------------------


def _check_queues(facts: Facts) -> Iterator[Finding]:
    if not facts.queues:
        yield Finding(
            "error", "queues", "the app has no emission queue",
            "make a CeleryEventEmitter.Queue for it in a module that it imports (-A, include=, autodiscover_tasks)",
        )  # fmt: skip
        return
    yield Finding("ok", "queues", f"emission queues: {', '.join(queue.name for queue in facts.queues)}")
    try:
        check_app(facts.app, facts.queues)
    except (SecurityError, ConfigurationError) as error:
        yield Finding("error", "queues", str(error), "until then neither emitters nor workers of the app start")


def _check_eager(facts: Facts) -> Iterator[Finding]:
    if facts.app.conf.task_always_eager:
        yield Finding(
            "error", "eager", "task_always_eager is on: handlers run in the process that emits, and nothing is stored",
            "turn it off outside of tests",
        )  # fmt: skip


def _check_secrets(facts: Facts) -> Iterator[Finding]:
    for queue in facts.queues:
        if not queue.keyring.signs:
            yield Finding(
                "warning", "secret", f"queue {queue.name!r} has no secret",
                "give it one of 32 random bytes: without, whoever can write to the broker can call your handlers",
            )  # fmt: skip
        elif queue.keyring.weakest < STRONG_SECRET_BYTES:
            yield Finding(
                "warning", "secret", f"queue {queue.name!r} has a secret of {queue.keyring.weakest} bytes",
                "use secrets.token_hex(32): a short one can be guessed from one message",
            )  # fmt: skip
        else:
            yield Finding("ok", "secret", f"queue {queue.name!r} is signed")
    yield from _check_shared_secrets(facts.queues)


def _check_shared_secrets(queues: list[Queue]) -> Iterator[Finding]:
    sharing: dict[str, list[str]] = {}
    for queue in queues:
        for key_id in queue.keyring.key_ids:
            sharing.setdefault(key_id, []).append(queue.name)
    for names in sharing.values():
        if len(names) > 1:
            yield Finding(
                "warning", "secret", f"queues {', '.join(map(repr, names))} have the same secret",
                "give each its own, if different services emit to them: who emits to one can emit to all of them",
            )  # fmt: skip


def _check_pickle(facts: Facts) -> Iterator[Finding]:
    if PICKLE_CONTENT not in prepare_accept_content(facts.app.conf.accept_content or ()):
        yield Finding("ok", "pickle", "the app accepts no pickled messages")
        return
    if not any(has_side_door(queue) for queue in facts.queues):
        yield Finding(
            "error", "pickle", "the app accepts pickled messages, and none of its queues closes its workers to them",
            "take pickle out of accept_content, or give the queues a secret and no allow_pickled_tasks: whoever can "
            "write to the broker can run code in the workers",
        )  # fmt: skip
        return
    try:
        check_pickled(facts.app)
    except SecurityError as error:
        yield Finding("error", "pickle", str(error), "until then no worker of the app starts")
    else:
        yield Finding(
            "ok", "pickle", "the app accepts pickled messages, and its workers refuse them, for a queue has a secret"
        )


def _check_handlers(facts: Facts) -> Iterator[Finding]:
    if not facts.handlers:
        yield Finding(
            "warning", "handlers", "no handler is linked in this process",
            "import the modules that link them in the module of the app: a worker of it would run none",
        )  # fmt: skip
        return
    unnamed = [handler for handler in facts.handlers if handler.id.startswith(callback_id(handler.event_callback))]
    named = len(facts.handlers) - len(unnamed)
    yield Finding("ok", "handlers", f"{len(facts.handlers)} handlers are linked, {named} of them named")
    unstable = [handler.id for handler in unnamed if any(part in handler.id for part in ("#", "<lambda>", "<locals>"))]
    if unstable:
        yield Finding(
            "warning", "handlers", f"ids depend on the order or place of the code: {_some(unstable)}",
            "give them a name=: what waits for a retry under such an id may find another handler, or none",
        )  # fmt: skip
    waiting = [handler.id for handler in unnamed if handler.id not in unstable and _is_retried(handler, facts)]
    if waiting:
        yield Finding(
            "warning", "handlers", f"handlers with retries and without a name: {_some(waiting)}",
            "give them a name=: when the function is renamed or moved, what waits for a retry finds no handler",
        )  # fmt: skip


def _is_retried(handler: EventHandler, facts: Facts) -> bool:
    return handler.retry is not None or any(queue.retry is not None for queue in facts.queues)


# -- Times ------------------------------------------------------------------------------------------------------


def _check_time_limits(facts: Facts) -> Iterator[Finding]:
    timeouts = {handler.id: handler.timeout for handler in facts.handlers if handler.timeout}
    for setting, consequence in (
        ("task_time_limit", "the process is killed first, and the message comes back until five starts are over"),
        ("task_soft_time_limit", "all handlers of the emission fail with it before this one has had its time"),
    ):
        limit = facts.app.conf[setting]
        over = [f"{name} ({timeout:g} s)" for name, timeout in timeouts.items() if limit and timeout >= limit]
        if over:
            yield Finding(
                "error" if setting == "task_time_limit" else "warning",
                "time limits", f"{setting}={limit:g} is not above the timeout of {_some(over)}",
                f"raise it above the longest timeout: {consequence}",
            )  # fmt: skip


def _check_running_time(facts: Facts) -> Iterator[Finding]:
    """Against the time after which the broker gives a message to somebody else while its handlers still run."""
    if facts.broker.driver not in ("redis", "amqp"):
        return
    if facts.is_own_transport:
        yield Finding("ok", "running time", "however long a handler runs, nobody else gets its message meanwhile")
        return
    bound, name = _redelivery(facts)
    longest = facts.app.conf.task_time_limit or facts.app.conf.task_soft_time_limit
    over = [f"{each.id} ({each.timeout:g} s)" for each in facts.handlers if each.timeout and each.timeout >= bound]
    if over:
        yield Finding(
            "error" if facts.is_redis else "warning",
            "running time", f"the {name} of {bound:g} s is not above the timeout of {_some(over)}",
            _raise_it(facts),
        )  # fmt: skip
    elif longest and longest >= bound:
        yield Finding(
            "warning", "running time", f"the {name} of {bound:g} s is not above Celery's time limit of {longest:g} s",
            _raise_it(facts),
        )  # fmt: skip
    elif not longest and (endless := [each.id for each in facts.handlers if not each.timeout]):
        yield Finding(
            "unknown", "running time", f"no timeout and no time limit bounds {_some(endless)}",
            f"make sure that they take less than the {name} of {bound:g} s, or give them a timeout=: "
            "what takes longer runs again meanwhile",
        )  # fmt: skip
    elif facts.handlers:
        yield Finding("ok", "running time", f"all handlers end within the {name} of {bound:g} s")


def _redelivery(facts: Facts) -> tuple[float, str]:
    if facts.is_redis:
        return float(facts.transport_options.get("visibility_timeout", VISIBILITY_TIMEOUT)), "visibility timeout"
    return CONSUMER_TIMEOUT, "consumer timeout (RabbitMQ's default)"


def _raise_it(facts: Facts) -> str:
    if facts.is_redis:
        return (
            "raise visibility_timeout in broker_transport_options above it, in all apps that share this Redis: a "
            "handler that takes longer is run again meanwhile"
        )
    return (
        "raise consumer_timeout on the server, unless that is done: RabbitMQ closes the channel of a worker that takes "
        "longer, the worker ends, and what it held is run again"
    )


def _check_delays(facts: Facts) -> Iterator[Finding]:
    if facts.broker.failure:
        return
    retries = [*(handler.retry for handler in facts.handlers), *(queue.retry for queue in facts.queues)]
    longest = max((retry.max_delay for retry in retries if retry is not None), default=0.0)
    if facts.broker.driver == "amqp" and detect_quorum_queues(facts.app, "amqp")[0]:
        yield Finding("ok", "delays", f"RabbitMQ itself delays emissions; the longest retry delay is {longest:g} s")
        return
    if facts.is_own_transport:
        yield Finding("ok", "delays", f"Redis holds delayed emissions; the longest retry delay is {longest:g} s")
        return
    held = min(LONGEST_HELD, _redelivery(facts)[0] / 2) if facts.is_redis else LONGEST_HELD
    if held < 5:
        yield Finding(
            "warning", "delays", f"a visibility timeout of {2 * held:g} s has every delayed emission sent on each "
            f"{held:g} s",
            "raise visibility_timeout in broker_transport_options: it is for messages of workers that died",
        )  # fmt: skip
        return
    yield Finding(
        "ok", "delays", f"workers hold delayed emissions {held:g} s at a time; the longest retry delay is {longest:g} s"
    )


# -- The broker -------------------------------------------------------------------------------------------------


def _check_broker(facts: Facts) -> Iterator[Finding]:
    broker = facts.broker
    if broker.failure:
        yield Finding(
            "error", "broker", f"it cannot be asked: {broker.failure}",
            "start it, or mend broker_url: nothing can be emitted",
        )  # fmt: skip
    elif broker.driver == "amqp":
        yield Finding("ok", "broker", f"RabbitMQ {broker.version} answers; what is emitted is always confirmed")
    elif broker.driver == "redis":
        yield Finding("ok", "broker", f"Redis or Valkey {broker.version} answers")
        yield _check_transport(facts)
        yield from _check_redis(broker.info, broker.settings)
    else:
        yield Finding(
            "unknown", "broker", f"a transport of type {broker.driver!r} answers, of which nothing is known here",
            "read in Celery's documentation what it loses, and when",
        )  # fmt: skip


def _check_transport(facts: Facts) -> Finding:
    """For information: the stock transport is what most have, and RabbitMQ or ours not everybody's choice."""
    if facts.is_own_transport:
        return Finding("ok", "redis transport", "a worker that is killed loses nothing of what it has fetched")
    return Finding(
        "ok", "redis transport", "Celery's own can lose what a worker that is killed has just fetched; with "
        "pyventus-redis:// for redis:// in broker_url nothing is lost",
    )  # fmt: skip


def _check_redis(info: dict[str, Any], settings: dict[str, str] | None) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield Finding(
            "error", "redis role", "it is a replica", "name the primary in broker_url: a replica takes no emissions"
        )
    yield from _check_eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0)))
    yield from _check_persistence(bool(info.get("aof_enabled")), settings)


def _check_eviction(policy: str, limit: int) -> Iterator[Finding]:
    # Nothing of Celery's has a time to live, so that the policies called volatile leave it alone.
    if policy.startswith("allkeys"):
        yield Finding(
            "error" if limit else "warning",
            "redis memory", f"maxmemory-policy is {policy}" + ("" if limit else ", though maxmemory has no limit yet"),
            "set it to noeviction: Redis deletes whole queues, or the keys by which Celery finds them, when its memory "
            "is full",
        )  # fmt: skip
    else:
        yield Finding("ok", "redis memory", f"maxmemory-policy is {policy or 'not told'}")


def _check_persistence(has_log: bool, settings: dict[str, str] | None) -> Iterator[Finding]:
    if has_log:
        every = (settings or {}).get("appendfsync", "")
        lost = {"always": "nothing", "everysec": "up to about a second", "no": "up to half a minute"}.get(
            every, "little"
        )
        yield Finding("ok", "redis disk", f"appendonly is on; a crash of the machine loses {lost} of what was emitted")
    elif settings is None:
        yield Finding(
            "unknown", "redis disk", "appendonly is off, and whether snapshots are taken is not told",
            "turn appendonly on: what was emitted since the last snapshot is lost with a crash",
        )  # fmt: skip
    elif settings["save"]:
        yield Finding(
            "warning", "redis disk", "appendonly is off, and only snapshots are taken",
            "turn appendonly on: what was emitted since the last snapshot is lost with a crash",
        )  # fmt: skip
    else:
        yield Finding(
            "warning", "redis disk", "it keeps nothing on disk",
            "turn appendonly on: all that waits is lost when it ends",
        )  # fmt: skip


def _check_consumers(facts: Facts) -> Iterator[Finding]:
    """Whether somebody takes what is in each queue."""
    if facts.broker.failure:
        return
    for name in facts.queue_names:
        waiting, consumers = facts.broker.queues.get(name) or (0, 0)
        if facts.broker.driver != "amqp":
            consumers = sum(name in queues for queues in facts.workers.queues.values())
        if consumers:
            yield Finding("ok", "consumers", f"queue {name!r}: {_count(consumers, 'consumer')}, {waiting} waiting")
        else:
            yield Finding(
                "error" if facts.workers.queues else "warning",
                "consumers", f"no worker that answers consumes queue {name!r}, where {waiting} wait",
                f"start one with -Q {name}: what is emitted there runs nowhere",
            )  # fmt: skip


# -- The workers ------------------------------------------------------------------------------------------------


def _check_workers(facts: Facts) -> Iterator[Finding]:
    workers = facts.workers
    if workers.failure:
        if not facts.broker.failure:
            yield Finding("unknown", "workers", f"they cannot be asked: {workers.failure}")
    elif not workers.stats:
        yield Finding(
            "warning", "workers", "no worker answered",
            "start one; if some are running, they are busy in a solo pool, or worker_enable_remote_control is off",
        )  # fmt: skip
    else:
        yield Finding("ok", "workers", f"{_count(len(workers.stats), 'worker')} answered: {_some(workers.stats)}")


def _check_registered(facts: Facts) -> Iterator[Finding]:
    for queue in facts.queues:
        lacking = [
            worker
            for worker, consumed in facts.workers.queues.items()
            if queue.name in consumed and worker in facts.workers.tasks
            and not any(task.partition(" ")[0] == queue.task_name for task in facts.workers.tasks[worker])
        ]  # fmt: skip
        if lacking:
            yield Finding(
                "error", "workers", f"{_some(lacking)} consume {queue.name!r} and do not know {queue.task_name!r}",
                "deploy the module that makes the queue to them, or start them with other -Q: Celery drops what it "
                "does not know",
            )  # fmt: skip


def _check_connections(facts: Facts) -> Iterator[Finding]:
    if not facts.is_redis or facts.is_own_transport:
        return
    limit = facts.transport_options.get("max_connections", MAX_CONNECTIONS)
    for worker, stats in facts.workers.stats.items():
        pool = stats.get("pool", {})
        size, kind = pool.get("max-concurrency") or 0, str(pool.get("implementation", ""))
        if limit and size > limit and any(each in kind for each in ("gevent", "eventlet")):
            yield Finding(
                "error", "connections", f"{worker} runs {size} greenlets over {limit} connections to Redis",
                f"set max_connections in broker_transport_options above {size}: what cannot be acknowledged for want "
                "of a connection runs again",
            )  # fmt: skip


# -- Settings ---------------------------------------------------------------------------------------------------


def _check_settings(facts: Facts) -> Iterator[Finding]:
    conf = facts.app.conf
    for wrong, finding in (
        (conf.worker_send_task_events, Finding(
            "warning", "events", "worker_send_task_events is on",
            "turn it off unless something reads them: a worker gets 35 to 43 % less done",
        )),
        (conf.worker_prefetch_multiplier == 0, Finding(
            "warning", "prefetch", "worker_prefetch_multiplier=0 has a worker take all that waits",
            "set it to 1 or more: the others have nothing to do, and on Redis all of it is delivered again after the "
            "visibility timeout",
        )),
        (conf.worker_cancel_long_running_tasks_on_connection_loss, Finding(
            "warning", "connection loss", "worker_cancel_long_running_tasks_on_connection_loss is on",
            "turn it off: when the connection to the broker is lost, it kills the handlers that run under prefork "
            "halfway, and ends a worker with threads; their emissions run again with it and without it",
        )),
        (not conf.enable_utc, Finding(
            "warning", "clock", "enable_utc is off",
            "leave it on, in emitters and workers alike: nobody has tried delays here without it",
        )),
        (str(conf.task_default_delivery_mode) in ("1", "transient"), Finding(
            "error", "durability", "task_default_delivery_mode is transient",
            "leave it at persistent: what waits in RabbitMQ is lost when it restarts",
        )),
    ):  # fmt: skip
        if wrong:
            yield finding


def _check_declarations(facts: Facts) -> Iterator[Finding]:
    if facts.broker.driver != "amqp":
        return
    for name in facts.queue_names:
        try:
            yield _check_declaration(name, facts.app.amqp.queues[name])
        except KeyError:
            yield Finding(
                "error", "durability", f"queue {name!r} is not in task_queues, and task_create_missing_queues is off",
                "add it there: nothing can be sent to it",
            )  # fmt: skip


def _check_declaration(name: str, queue: Any) -> Finding:
    arguments = queue.queue_arguments or {}
    kind = arguments.get("x-queue-type", "classic")
    if not queue.durable or queue.auto_delete:
        return Finding(
            "error", "durability", f"queue {name!r} is declared not durable, or to be deleted with its consumers",
            "declare it durable=True, auto_delete=False in task_queues, and delete the old one first: otherwise what "
            "waits is lost when RabbitMQ restarts, or the last worker ends",
        )  # fmt: skip
    if kind == "quorum" and (queue.max_priority or "x-max-priority" in arguments):
        return Finding(
            "error", "durability", f"queue {name!r} is declared as a quorum queue with priorities",
            "take task_queue_max_priority, or max_priority, away: RabbitMQ refuses to make such a queue",
        )  # fmt: skip
    return Finding("ok", "durability", f"queue {name!r} is declared as a durable {kind} queue")


def _check_losses(facts: Facts) -> Iterator[Finding]:
    """For information: what holds for emissions whatever these settings are, and for the app's own tasks does not."""
    conf = facts.app.conf
    if not (conf.task_acks_late and conf.task_reject_on_worker_lost):
        yield Finding(
            "ok", "own tasks", "the app's own tasks are lost with a worker that dies (task_acks_late and "
            "task_reject_on_worker_lost are not both on); emissions are not",
        )  # fmt: skip


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _check_broker,
    _check_workers,
    _check_queues,
    _check_consumers,
    _check_registered,
    _check_declarations,
    _check_secrets,
    _check_pickle,
    _check_handlers,
    _check_running_time,
    _check_time_limits,
    _check_delays,
    _check_connections,
    _check_eager,
    _check_settings,
    _check_losses,
)


# -- Words ------------------------------------------------------------------------------------------------------


def _some(names: Iterable[str], most: int = 3) -> str:
    each = list(names)
    return ", ".join(each[:most]) + (f" and {len(each) - most} more" if len(each) > most else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _passwords(app: Any) -> set[str]:
    conf = app.conf
    settings = [conf.broker_url, conf.broker_read_url, conf.broker_write_url, conf.result_backend, conf.broker_password]
    urls = [
        url for each in settings if each for url in (each if isinstance(each, (list, tuple)) else str(each).split(";"))
    ]
    found = {str(conf.broker_password or "")}
    for url in urls:
        # Not as a URL: a special character in a password may make it none.
        login, at, _ = str(url).partition("://")[2].rpartition("@")
        password = login.partition(":")[2] if at else ""
        found |= {password, unquote(password), quote(unquote(password), safe="")}
    return found - {""}


def _masked(finding: Finding, passwords: set[str]) -> Finding:
    fact, advice = finding.fact, finding.advice
    for password in sorted(passwords, key=len, reverse=True):
        fact, advice = fact.replace(password, "****"), advice.replace(password, "****")
    return Finding(finding.level, finding.subject, fact, advice)


# -- The command ------------------------------------------------------------------------------------------------


@click.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead of text.")
@click.pass_context
def check_command(context: click.Context, as_json: bool) -> None:
    """Look for what endangers emissions, in the app, its broker and its running workers.

    The exit status is 1 if there is an error.
    """
    app = context.obj.app
    app.loader.import_default_modules()
    findings = check(app)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    context.exit(int(any(finding.level == "error" for finding in findings)))


def _print(findings: list[Finding]) -> None:
    levels = list(MARKS)
    for finding in sorted(findings, key=lambda finding: levels.index(finding.level)):
        mark = click.style(f"{MARKS[finding.level]:8}", fg=COLOURS[finding.level], bold=finding.level != "ok")
        click.echo(f"{mark}{finding.subject}: {finding.fact}")
        if finding.advice:
            click.echo(f"        → {finding.advice}")
    counts = ", ".join(
        f"{sum(finding.level == level for finding in findings)} {MARKS[level].lower()}" for level in levels
    )
    click.echo(f"\n{counts}")

"""What is measured, section by section. Each adds its samples to the bench, in turns with what it is compared to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import features
from benchmarks.measure import (
    ROOT,
    Bench,
    Sender,
    Snapshot,
    celery_worker,
    memory,
    ours,
    running,
    say,
    senders,
    wait_until_handled,
)
from benchmarks.oracle import Times
from benchmarks.peers import IN_PROCESS, PEERS, Peer, install
from tests.brokers import RabbitMQ

NAME = "bench"
QUEUES = {"ours": f"{NAME}-emissions", "stock": f"{NAME}-tasks"}
MESSAGES = 10_000
NAPS = 500
# The rate of the others is the same with fewer, and the whole run has to end.
OTHERS_MESSAGES = 5_000
FEWER = {"rq": 2_000}
# What comes close to what it has to reach is measured in more rounds.
CLOSE = {
    "emit on rabbitmq": ("emit", "send_task, confirmed", "bytes alone, confirmed", "emit_many"),
    "drain": ("celery, solo", "a task of Celery, own transport, solo", "pyventus, own transport, solo"),
}


# -- Emitting -----------------------------------------------------------------------------------------------------

WAYS = (
    "emit", "send_task", "bare", "sealed only", "emit in threads", "send_task in threads", "aemit",
    "send_task from a loop", "aemit at once", "send_task at once",
)  # fmt: skip


def emit_on_redis(bench: Bench) -> None:
    """Each way in a process of its own; the queues are emptied after each turn."""
    env = bench.env()
    ways = ("emit", "send_task", "bare") if bench.is_quick else WAYS
    commands = {way: (ours("emitting", way), env) for way in ways}
    if features.has_emit_many():
        commands["emit_many"] = (ours("emitting", "emit_many"), env)
    if features.has_batches():
        commands["batches"] = (ours("emitting", "batches"), env)
    _emit(bench, "emit on redis", commands, lambda: bench.redis.flushdb())


def emit_on_amqp(bench: Bench) -> None:
    if bench.amqp_url is None:
        say("emit on rabbitmq: no server answers")
        return
    broker = RabbitMQ(bench.amqp_url)
    confirmed = bench.env(BENCH_BROKER=bench.amqp_url, BENCH_CONFIRM="on")
    plain = {**confirmed, "BENCH_CONFIRM": "off"}
    commands = {
        "emit": (ours("emitting", "emit"), confirmed),
        "send_task, confirmed": (ours("emitting", "send_task"), confirmed),
        "bare, confirmed": (ours("emitting", "bare, confirmed"), confirmed),
        "send_task": (ours("emitting", "send_task"), plain),
    }
    if not bench.is_quick:
        for way in ("aemit at once", "bytes alone, confirmed", "a thousand's bytes alone, confirmed"):
            commands[way] = (ours("emitting", way), confirmed)
        commands["send_task at once, confirmed"] = (ours("emitting", "send_task at once"), confirmed)
    if features.unconfirmed() is not None:
        commands["emit, unconfirmed"] = (ours("emitting", "emit"), plain)
    if features.has_emit_many():
        commands["emit_many"] = (ours("emitting", "emit_many"), confirmed)

    def purge() -> None:
        with broker.channel() as channel:
            for queue in QUEUES.values():
                channel.queue_declare(queue, durable=True, auto_delete=False)
                # What was sent without confirmation may still come, and would be taken from the next one's time.
                while channel.queue_purge(queue):
                    time.sleep(0.02)

    try:
        _emit(bench, "emit on rabbitmq", commands, purge)
    finally:
        broker.delete(*QUEUES.values())


def _emit(
    bench: Bench,
    section: str,
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]],
    empty: Callable[[], object],
) -> None:
    with senders(commands) as started:

        def rate(name: str, sender: Sender) -> float:
            sent, passed, busy = sender.ask("0.25")
            empty()
            bench.add(f"{section}: processor", name, 1e6 * busy / sent)
            return sent / passed

        for sender in started.values():
            sender.rate(0.1)
        sides = {name: lambda name=name, sender=sender: rate(name, sender) for name, sender in started.items()}  # type: ignore[misc]
        # Short turns, and many: a noisy machine is seldom the same for longer.
        bench.turns(section, sides, rounds=bench.rounds * (1 if bench.is_quick else 4))
        _turns_of_close(bench, section, sides, rounds=bench.rounds * 4)


def _turns_of_close(bench: Bench, section: str, sides: Mapping[str, Callable[[], float]], rounds: int) -> None:
    close = {name: side for name, side in sides.items() if name in CLOSE.get(section, ())}
    if close and not bench.is_quick:
        bench.turns(section, close, rounds)


# -- Draining -----------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """One worker process with what fills its queue."""

    fill: Sequence[str]
    command: Sequence[str]
    env: Mapping[str, str]
    count: int


def celery_workers(bench: Bench, what: str, count: int) -> dict[str, Worker]:
    """Ours and stock Celery's, each in the pools that suit the work."""
    event = {"note": "order.placed", "nap": "order.checked"}[what]
    pools = {"note": (("solo", 1), ("threads", 10), ("prefork", 2)), "nap": (("threads", 500),)}[what]
    stock = {
        f"celery, {pool}": Worker(
            ours("filling", "send_task", f"bench.{what}", str(count)),
            celery_worker(QUEUES["stock"], pool=pool, concurrency=number),
            bench.env(),
            count,
        )
        for pool, number in pools
    }
    url = features.redis_url(bench.redis_url)
    fast = {} if url == bench.redis_url else {"own transport, ": url}
    found = dict(stock)
    if fast and what == "note":
        # What is left to Celery itself.
        first = stock["celery, solo"]
        env = bench.env(BENCH_BROKER=url)
        found["a task of Celery, own transport, solo"] = Worker(first.fill, first.command, env, count)
    for prefix, broker in {"": bench.redis_url, **fast}.items():
        for pool, number in _our_pools(what):
            way = {"asyncio": {"BENCH_POOL": features.ASYNCIO_POOL}}.get(pool, {})
            command = celery_worker(QUEUES["ours"], pool=pool, concurrency=number)
            for batch, fill in {"": "emit", **({", batches": "batches"} if features.has_batches() else {})}.items():
                if batch and (what == "nap" or pool == "threads"):
                    continue
                found[f"pyventus, {prefix}{pool}{batch}"] = Worker(
                    ours("filling", fill, event, str(count)), command, bench.env(BENCH_BROKER=broker, **way), count
                )
    return found


def _our_pools(what: str) -> list[tuple[str, int]]:
    pools = [("solo", 1), ("threads", 10)] if what == "note" else [("threads", 500)]
    # `-P custom` is Celery's word for the class in CELERY_CUSTOM_WORKER_POOL.
    return [*pools, ("asyncio", 500 if what == "nap" else 100)] if features.has_asyncio_pool() else pools


def peer_workers(bench: Bench, what: str, count: int) -> dict[str, Worker]:
    found = {}
    for peer in PEERS:
        command = peer.worker if what == "note" else peer.sleeper
        if command:
            install(peer.name)
            number = min(count, FEWER.get(peer.name, count))
            env = bench.env(RQ_REDIS_URL=bench.redis_url)
            found[peer.name] = Worker(peer.fill(what, number), peer.command(command), env, number)
    return found


def drain(bench: Bench) -> None:
    """Handled messages per second of one worker process, from the first to the last of a full queue."""
    count = 2_000 if bench.is_quick else MESSAGES
    workers = celery_workers(bench, "note", count)
    if bench.is_quick:
        workers = {name: worker for name, worker in workers.items() if "threads" not in name and "prefork" not in name}
    else:
        workers |= peer_workers(bench, "note", OTHERS_MESSAGES)
    _drain(bench, "drain", workers, lambda worker, seconds: worker.count / seconds)


def naps(bench: Bench) -> None:
    """Seconds that one worker process takes for 500 messages whose handlers each sleep 0.1 s."""
    workers = celery_workers(bench, "nap", NAPS)
    if not bench.is_quick:
        workers |= peer_workers(bench, "nap", NAPS)
    # The first to end has slept already.
    _drain(bench, "sleepers", workers, lambda worker, seconds: seconds + 0.1)


def _drain(bench: Bench, section: str, workers: Mapping[str, Worker], value: Callable[[Worker, float], float]) -> None:
    times = Times(bench.folder / "times", max(worker.count for worker in workers.values()))
    snapshots = _fill(bench, workers)

    def turn(name: str, worker: Worker) -> float:
        times.reset()
        snapshots[name].restore()
        with running([worker.command], worker.env, bench.folder / "worker.log") as processes:
            wait_until_handled(times, worker.count, processes)
        return value(worker, times.seconds(worker.count))

    sides = {name: lambda name=name, worker=worker: turn(name, worker) for name, worker in workers.items()}  # type: ignore[misc]
    bench.turns(section, sides, rounds=2 if bench.is_quick else 3)
    _turns_of_close(bench, section, sides, rounds=4)
    bench.redis.flushdb()


def _fill(bench: Bench, workers: Mapping[str, Worker]) -> dict[str, Snapshot]:
    """The full queue of each; what is filled alike is filled once."""
    filled: dict[tuple[str, ...], Snapshot] = {}
    for worker in workers.values():
        key = (*worker.fill, worker.env["BENCH_BROKER"])
        if key not in filled:
            bench.redis.flushdb()
            start = time.monotonic()
            _call(worker.fill, worker.env)
            say(f"{worker.count:,} messages in {time.monotonic() - start:.1f} s: {' '.join(worker.fill[1:])}")
            filled[key] = Snapshot(bench.redis)
    return {name: filled[*worker.fill, worker.env["BENCH_BROKER"]] for name, worker in workers.items()}


def _call(command: Sequence[str], env: Mapping[str, str]) -> None:
    subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True)


# -- From emit to handler -------------------------------------------------------------------------------------------


def latency(bench: Bench) -> None:
    """Microseconds from before the emit to the handler's first line, of an idle worker of each kind."""
    count = 20
    Times(bench.folder / "times", count)
    pools = {"solo": (1, {}), "threads": (10, {})}
    with contextlib.ExitStack() as stack:
        sides: dict[str, Sender] = {}
        for pool, (number, _) in pools.items():
            for side, way in (("pyventus", "emit"), ("celery", "send_task")):
                env = bench.env(BENCH_NAME=f"{side}-{pool}")
                _start_latency(bench, stack, sides, f"{side}, {pool}", way, pool, number, env)
        if features.has_redis_transport() or features.has_asyncio_pool():
            pool = "asyncio" if features.has_asyncio_pool() else "solo"
            env = bench.env(
                BENCH_NAME="pyventus-own",
                BENCH_BROKER=features.redis_url(bench.redis_url),
                **({"BENCH_POOL": features.ASYNCIO_POOL} if pool == "asyncio" else {}),
            )
            _start_latency(bench, stack, sides, f"pyventus, own transport, {pool}", "emit", pool, 100, env)
        for sender in sides.values():
            sender.ask("5")
        # A hundredth of them has to be enough for a percentile.
        for _ in range(2 if bench.is_quick else 50):
            for name, sender in sides.items():
                for value in sender.ask(str(count)):
                    bench.add("latency", name, value)
    bench.redis.flushdb()


def _start_latency(
    bench: Bench,
    stack: contextlib.ExitStack,
    sides: dict[str, Sender],
    name: str,
    way: str,
    pool: str,
    concurrency: int,
    env: dict[str, str],
) -> None:
    kind = "emissions" if way == "emit" else "tasks"
    command = celery_worker(f"{env['BENCH_NAME']}-{kind}", pool=pool, concurrency=concurrency)
    stack.enter_context(running([command], env, bench.folder / "worker.log"))
    sides[name] = Sender(ours("latency", way), env)
    stack.callback(sides[name].close)


# -- In process -----------------------------------------------------------------------------------------------------


def in_process(bench: Bench) -> None:
    """Microseconds of one emit to one sync handler."""
    commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {
        "pyventus": (ours("inprocess", "pyventus"), bench.env())
    }
    for name in () if bench.is_quick else IN_PROCESS:
        install(name)
        peer = Peer(name, "", "", "")
        commands[name] = (peer.command(f"python -m benchmarks.inprocess {name}"), bench.env())
    with senders(commands) as started:

        def cost(sender: Sender) -> float:
            count, passed = sender.ask("50000")
            return passed / count * 1e6

        sides = {name: lambda sender=sender: cost(sender) for name, sender in started.items()}  # type: ignore[misc]
        bench.turns("in process", sides, rounds=bench.rounds * 2)


# -- Memory -----------------------------------------------------------------------------------------------------------


def memory_kept(bench: Bench) -> None:
    """Kilobytes that the emitting process and a worker hold, after each 20,000 emissions.

    An allocator takes a hundred kilobytes at once: of five each the one counts that grows neither least nor most. One
    more goes on for longer.
    """
    Times(bench.folder / "times", 1)
    runs = [_memory_of_one(bench, 5) for _ in range(5)]
    for side in runs[0]:
        middle = sorted((run[side] for run in runs), key=lambda kept: kept[-1] - kept[0])[2]
        for value in middle:
            bench.add("memory", side, value)
    for side, kept in _memory_of_one(bench, 15).items():
        for value in kept:
            bench.add("memory for longer", side, value)


def _memory_of_one(bench: Bench, steps: int) -> dict[str, list[float]]:
    env = bench.env(BENCH_BROKER=features.redis_url(bench.redis_url))
    worker = celery_worker(QUEUES["ours"], pool="solo")
    kept: dict[str, list[float]] = {"emitting process": [], "worker process": []}
    with (
        senders({"emit": (ours("emitting", "exactly"), env)}) as started,
        running([worker], env, bench.folder / "worker.log") as processes,
    ):
        for _ in range(steps):
            started["emit"].ask("20000")
            _wait_until_empty(bench)
            kept["emitting process"].append(memory(started["emit"].pid))
            kept["worker process"].append(memory(processes[0].pid))
    say(f"memory: {kept}")
    bench.redis.flushdb()
    return kept


def _wait_until_empty(bench: Bench) -> None:
    client = bench.redis
    end = time.monotonic() + 300
    while client.llen(QUEUES["ours"]):
        assert time.monotonic() < end, "the worker does not keep up"
        time.sleep(0.05)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "inprocess": in_process,
    "emit": emit_on_redis,
    "amqp": emit_on_amqp,
    "latency": latency,
    "drain": drain,
    "sleepers": naps,
    "memory": memory_kept,
}
QUICK = ("inprocess", "emit", "amqp", "latency", "drain", "sleepers")

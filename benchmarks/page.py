"""Writes docs/performance.md and its plots from docs/performance.json, and from nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks import floors
from benchmarks.floors import Reached, reach
from benchmarks.measure import ROOT, Rounds, median
from benchmarks.peers import IN_PROCESS, PEERS
from benchmarks.plots import Bar, bars, lines, number
from pyventus.emitters.celery.splicing import RabbitMQSplicer, RedisSplicer

RESULTS = ROOT / "docs" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "performance"

#: Section, heading, unit, what to say.
SECTIONS = (
    (
        "emit on redis", "Emitting on Redis", "messages per second, more is better",
        "One process sends 600-byte messages in one way, as fast as it can. `send_task` carries the same bytes, and `bare` "
        "is redis-py's `LPUSH` of the very message that `emit` stores, without building it. *Sealed only*: emissions as "
        "they are before a broker sees them. *In threads*: 32 threads share one emitter or app. On an event loop `aemit`, and "
        "`send_task` by `asyncio.to_thread`: one call after the other, or *at once*, in 100 coroutines. Processor time is "
        "that of the emitting process.",
    ),
    (
        "emit on rabbitmq", "Emitting on RabbitMQ", "messages per second, more is better",
        "The same with RabbitMQ on this machine, whose queues are durable and messages persistent. Emits are confirmed by "
        "default; `send_task` is when the app's transport option `confirm_publish` is on. *Unconfirmed*: the queue is made with "
        "`confirm=False`. `bare`: py-amqp publishes as many bytes, persistent, and waits. *Bytes alone*: those that an emit sends, "
        "made once.",
    ),
    (
        "drain", "Working off a full queue", "messages per second of one worker process, more is better",
        "The queue is filled first, then one worker process is started. The time is from the first handled message to the "
        "last, and a message counts when its handler has run: it writes the moment under the message's number in a file "
        "that all processes share. 10,000 messages for Pyventus and Celery, 5,000 for the others, 2,000 for RQ. Pyventus "
        "verifies each signature, decodes, and acknowledges after the handler has run; Celery's tasks are acknowledged "
        "before, as is its default.",
    ),
    (
        "sleepers", "500 handlers that each sleep 0.1 s", "seconds in one worker process, less is better",
        "Counted from when the first handler ends, 0.1 s added. Handlers are `async def` where the queue runs them; "
        "elsewhere they sleep in threads, 500 of them. RQ runs one job at a time and would take 50 s.",
    ),
    (
        "latency", "From `emit` to the handler", "microseconds, less is better",
        "One message at a time to an idle worker: from before `emit` or `send_task` to the first line of the handler.",
    ),
    (
        "in process", "In this process", "microseconds for one emit to one sync handler, less is better",
        "`AsyncIOEventEmitter` outside a running loop. Its emission has an id, a moment and a context of its own; failures "
        "are logged, and retried if asked for. pyee and blinker call the function.",
    ),
)  # fmt: skip

GROWTH = (
    ("handlers", "Handlers", "microseconds of one emit in this process", "number", {
        "others": "of other events", "async": "async, of the event", "sync": "sync, of the event",
    }),
    ("linking", "Linking one more handler", "microseconds to link and unlink it", "handlers of the same callback and event", {"linking": "linking"}),
    ("payload", "Size", "microseconds", "bytes of text in the event", {"emit by size": "emit on Redis", "payload": "seal and open"}),
    ("depth", "Waiting messages", "microseconds", "messages that wait in the queue (the first point: none)", {
        "emit by depth": "one emit", "drain by depth": "one in a worker",
    }),
    ("workers", "Worker processes", "messages per second", "solo worker processes", {
        "drain by workers, pyventus": "pyventus", "drain by workers, celery": "celery",
    }),
)  # fmt: skip


def write_page() -> None:
    results = json.loads(RESULTS.read_text())
    PLOTS.mkdir(exist_ok=True)
    for name, drawn in plots(results).items():
        (PLOTS / name).write_text(drawn)
    PAGE.write_text(page(results))


def plots(results: dict[str, Any]) -> dict[str, str]:
    """All plots by file name."""
    samples = results["samples"]
    drawn = {
        f"{_slug(section)}.svg": bars(heading.replace("`", ""), unit, _bars(samples[section], "less" in unit))
        for section, heading, unit, _ in SECTIONS
        if section in samples
    }
    for name, heading, up, across, sides in GROWTH:
        series = {
            label: _points(samples[f"growth: {side}"]) for side, label in sides.items() if f"growth: {side}" in samples
        }
        if series:
            drawn[f"growth-{name}.svg"] = lines(heading, across, up, series)
    return drawn


def page(results: dict[str, Any]) -> str:
    samples, machine = results["samples"], results["machine"]
    parts = [
        "# Performance",
        f"Ratios, those of a section measured beside one another in one run on one machine with {machine['cpus']} CPUs, on "
        f"{machine['taken']}. Rates of another machine are others, and ratios of runs one after the other may differ by a fifth. `make bench` measures anew "
        "and writes this page from `docs/performance.json`; nobody edits it.",
        *_floors(reach(samples)),
        *_limits(samples),
        _not_built(results["built"]),
        *(part for section in SECTIONS if section[0] in samples for part in _section(samples, *section)),
        *_memory(samples),
        *_growth(samples),
        *_profiles(results.get("profiles", {})),
        *_how(machine, results["peers"], results["commits"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- The floors -----------------------------------------------------------------------------------------------------


def _floors(reached: Sequence[Reached]) -> list[str]:
    rows = []
    for each in reached:
        floor = each.floor
        sides = " / ".join(side for side in (each.ours, each.against) if side)
        asked = f"{floor.kind} {floor.bound:g} {floor.unit}"
        value = spread = "-"
        if each.value is not None:
            value = f"{number(each.value)} {floor.unit}"
            spread = f"{number(each.low)} to {number(each.high)}"
        rows.append((floor.work, sides or "-", value, spread, asked, each.verdict))
    return [
        "## What it has to reach",
        "Ratios are medians of rounds, beside them the least and the most of any round. A message is an event with 570 "
        "bytes of text and a number, signed with a secret of 32 bytes, with one handler linked to it. Of several pools the "
        "best of each side counts; the second column says which it was.",
        _table(("work", "sides", "measured", "rounds", "has to be", ""), rows),
    ]


def _limits(samples: floors.Samples) -> list[str]:
    """What stands between an emit and its floors, in microseconds for one message."""
    redis, rabbitmq = (_microseconds(samples.get(f"emit on {name}", {})) for name in ("redis", "rabbitmq"))
    parts = []
    if {"emit", "bare", "send_task", "emit_many", "sealed only"} <= set(redis):
        sealed, stock = redis["sealed only"], redis["send_task"]
        parts.append(
            f"**One emit on Redis** takes {redis['emit']:.0f} µs here, and a bare `LPUSH` by redis-py of bytes that are "
            f"there already {redis['bare']:.0f} µs, {stock / redis['bare']:.1f} x of `send_task`. Our own exchange with "
            "Redis takes less than redis-py's, also because the thread looks for the answer for up to "
            f"{RedisSplicer.spin_seconds * 1e6:g} µs before it sleeps; "
            "beyond it an emit spends its time on the emission, its arguments as JSON, "
            "the signature and the message: see the [profile](#where-the-time-goes). **Of many** each takes "
            f"{redis['emit_many']:.0f} µs. A thousand share one exchange, but each is sealed by itself: of what is given "
            f"to no broker, only turned into JSON and signed, each takes {sealed:.0f} µs, which would be "
            f"{stock / sealed:.0f} x of `send_task`. The rest makes the message that Celery would send, in base64, and has "
            "Redis take it."
        )
    if {"emit", "bytes alone, confirmed", "send_task, confirmed"} <= set(rabbitmq):
        alone, stock = rabbitmq["bytes alone, confirmed"], rabbitmq["send_task, confirmed"]
        unconfirmed = rabbitmq.get("emit, unconfirmed", math.nan)
        parts.append(
            f"**One emit on RabbitMQ**, confirmed, takes {rabbitmq['emit']:.0f} µs. Where the bytes of such a message are there "
            f"already, are written, and waited for by a thread that sleeps, it is {alone:.0f} µs: {stock / alone:.2f} x of "
            "`send_task`, about as far as RabbitMQ lets anybody get who waits for each, as it writes each to its disk before "
            "it confirms it. py-amqp, which builds nothing but a message without Celery's headers, takes "
            f"{rabbitmq['bare, confirmed']:.0f} µs. All that an emit makes itself takes {unconfirmed:.0f} µs in a process that "
            "never sleeps, as without confirmation, and longer with caches that have gone cold meanwhile. So it "
            f"looks for the answer for up to {RabbitMQSplicer.spin_seconds * 1e3:g} ms before it sleeps, as long as nobody else "
            f"has a use for the processor.{_busy(samples)}"
        )
    if {"emit_many", "a thousand's bytes alone, confirmed", "send_task, confirmed"} <= set(rabbitmq):
        alone = rabbitmq["a thousand's bytes alone, confirmed"]
        parts.append(
            f"**Of many on RabbitMQ** each takes {rabbitmq['emit_many']:.0f} µs, and {alone:.0f} µs where the bytes of a "
            f"thousand are there already: {rabbitmq['send_task, confirmed'] / alone:.1f} x of `send_task` over one "
            "connection, a thousand at a time. Before the first is sent all are sealed, so that none is sent if one is bad: "
            f"on Redis that takes {redis.get('sealed only', math.nan):.0f} µs each."
        )
    drained = _microseconds(samples.get("drain", {}))
    stock, task = drained.get("celery, solo"), drained.get("a task of Celery, own transport, solo")
    own = drained.get("pyventus, own transport, solo")
    if stock and task and own:
        parts.append(
            f"**One emission in a worker** takes {own:.0f} µs on our transport, and a task of Celery's own that does the "
            f"same {task:.0f} µs there, against {stock:.0f} µs on Celery's transport: {stock / task:.2f} x is as far "
            "as what surrounds a handler in Celery lets any task get. The rest verifies, decodes, and sees to what follows: "
            "see the [profile](#where-the-time-goes)."
        )
    return ["### Where the limit is", *parts] if parts else []


def _busy(samples: floors.Samples) -> str:
    busy = samples.get("emit on rabbitmq: processor", {})
    if not busy:
        return ""
    ours, stock = (median(busy[side]) for side in ("emit", "send_task, confirmed"))
    return (
        f" Where there is one to spare an emit so keeps it busy for {ours:.0f} µs, most of which it spends looking; a "
        f"`send_task` for {stock:.0f} µs."
    )


def _microseconds(rates: Rounds) -> dict[str, float]:
    return {side: 1e6 / median(values) for side, values in rates.items()}


def _not_built(built: dict[str, bool]) -> str:
    missing = [name for name, is_built in built.items() if not is_built]
    return f"Not built yet, and so not measured: {', '.join(missing)}." if missing else ""


# -- Sections ---------------------------------------------------------------------------------------------------------


def _section(samples: floors.Samples, section: str, heading: str, unit: str, said: str) -> list[str]:
    is_latency = section == "latency"
    head: tuple[str, ...] = (
        unit.partition(",")[0], "99th percentile" if is_latency else "least and most of the rounds",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (name, number(median(values)), number(floors.percentile(values, 0.99)) if is_latency else _spread(values))
        for name, values in _sorted(samples[section], "less" in unit)
    ]
    busy = samples.get(f"{section}: processor")
    if busy:
        head = (*head, "µs of processor time for each")
        rows = [(*row, number(median(busy[row[0]]))) for row in rows]
    return [
        f"## {heading}",
        said,
        f"![{heading.replace('`', '')}](performance/{_slug(section)}.svg)",
        _table(("", *head), rows),
    ]


def _bars(rounds: Rounds, is_less_better: bool) -> list[Bar]:
    return [
        Bar(name, median(values), *_ends(values), name.startswith(("pyventus", "emit", "aemit", "batches")))
        for name, values in _sorted(rounds, is_less_better)
    ]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Of many values, such as latencies, all but the outermost tenths."""
    if len(values) < 20:
        return min(values), max(values)
    return floors.percentile(values, 0.1), floors.percentile(values, 0.9)


def _sorted(rounds: Rounds, is_less_better: bool) -> list[tuple[str, list[float]]]:
    return sorted(rounds.items(), key=lambda side: median(side[1]), reverse=not is_less_better)


def _memory(samples: floors.Samples) -> list[str]:
    if "memory" not in samples:
        return []
    steps = [f"{20 * (n + 1)},000" for n in range(max(map(len, samples["memory"].values())))]
    rows = [(name, *(f"{value:,.0f}" for value in values)) for name, values in samples["memory"].items()]
    longer = samples.get("memory for longer", {}).get("worker process", [])
    return [
        "## Memory",
        "Kilobytes held by a process that emits, and by a solo worker that runs the handlers, after so many emissions: of five "
        "of each, the one whose memory grows neither the least nor the most.",
        _table(("", *steps), rows),
        *([_for_longer(longer)] if longer else []),
    ]


def _for_longer(values: Sequence[float]) -> str:
    grown, thousands = values[-1] - values[0], 20 * (len(values) - 1)
    most = max(after - before for before, after in pairwise(values))
    return (
        f"A further worker held {grown:,.0f} KB more after {thousands + 20:,},000 emissions than after 20,000, which is "
        f"{grown / thousands:.2f} KB per 1,000. It took {most:,.0f} KB of that between two of the looks, each 20,000 apart: the "
        "C library takes memory in such parts once in a while."
    )


def _growth(samples: floors.Samples) -> list[str]:
    parts = []
    for name, heading, up, across, sides in GROWTH:
        found = {label: samples[f"growth: {side}"] for side, label in sides.items() if f"growth: {side}" in samples}
        if not found:
            continue
        steps = sorted({int(step) for rounds in found.values() for step in rounds})
        rows = [
            (label, *(number(median(rounds[str(step)])) if str(step) in rounds else "-" for step in steps))
            for label, rounds in found.items()
        ]
        parts += [
            f"### {heading}",
            f"![{heading}](performance/growth-{name}.svg)",
            _table((f"{up}, by {across.partition(' (')[0]}", *(f"{step:,}" for step in steps)), rows),
        ]
    return ["## Growth", "Both axes of the plots are logarithmic.", *parts] if parts else []


def _points(rounds: Rounds) -> list[tuple[float, float]]:
    steps = sorted(int(step) for step in rounds)
    # Nothing has no place on a logarithmic axis: it stands where the axis begins.
    first = min((step for step in steps if step), default=1) / 10
    return [(step or first, median(rounds[str(step)])) for step in steps]


# -- Profiles -----------------------------------------------------------------------------------------------------


def _profiles(profiles: dict[str, Any]) -> list[str]:
    said = {
        "emit": "Of one `emit` on Redis, in all threads of the process",
        "many": "Of one of a thousand that `emit_many` sends to Redis",
        "work": "Of one emission in a solo worker on Redis, its transport included",
    }
    parts = []
    for what, text in said.items():
        if what not in profiles:
            continue
        shares = ", ".join(
            f"{package} {share:.0%}" for package, share in profiles[what]["packages"].items() if share >= 0.01
        )
        rows = [(f"`{name}`", f"{calls:g}", f"{share:.1%}") for name, calls, share in profiles[what]["functions"]]
        parts += [f"{text}: {shares}.", _table(("function", "calls", "share"), rows)]
    if not parts:
        return []
    return [
        "## Where the time goes",
        "Measured with cProfile, which makes calls of Python functions dearer than they are: look at the order. Waiting is "
        "left out, and so is the time for which a thread looks for an answer before it sleeps.",
        *parts,
    ]


# -- How ----------------------------------------------------------------------------------------------------------


def _how(machine: dict[str, Any], pins: dict[str, str], commits: dict[str, str]) -> list[str]:
    earlier: dict[str, list[str]] = {}
    for section, commit in commits.items():
        if commit != machine["commit"]:
            earlier.setdefault(commit, []).append(section.partition(":")[0])
    others_measured = [
        f"Not measured again since commit `{commit}`, and so in another run: {', '.join(dict.fromkeys(sections))}."
        for commit, sections in earlier.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    others = "\n".join(f"- **{peer.name}** {pins[peer.name]}: {peer.how}" for peer in PEERS)
    in_process = ", ".join(f"{name} {pins[name]}" for name in IN_PROCESS)
    return [
        "## How it was measured",
        f"Commit `{machine['commit']}` on Python {machine['python']}, {machine['system']}, {machine['cpus']} CPUs: {versions}; "
        f"{in_process}. Everything ran on this machine: an embedded Valkey that writes nothing to disk, for all sides, and a "
        "RabbitMQ. Each side runs in processes of its own. They take turns, in an order that changes from round to round, "
        "so that what else the machine does meets all alike.",
        *others_measured,
        "Celery: no results, no events, no gossip, no mingle, no heartbeat, `worker_prefetch_multiplier=64`; the same for "
        "Pyventus, which runs in Celery's workers. Pools are `solo`, `threads` with 10 threads (500 for the sleepers) and "
        "`prefork` with 2 processes, Celery's own default on two CPUs.",
        "The others, each in a virtual environment of its own with pinned releases (`benchmarks/peers/`), and with its own "
        "client that fills the queue:",
        others,
    ]


# -- Words ----------------------------------------------------------------------------------------------------------


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower()).strip("-")


def _spread(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:" for _ in head[1:]]], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""The speed that Pyventus has to reach, and how far each measurement is from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.measure import Rounds, median
from benchmarks.peers import PEERS

Samples = Mapping[str, Rounds]
Choose = Callable[[Rounds], str | None]


@dataclass(frozen=True)
class Floor:
    """One row: a side of ours, what it is compared to, and what has to come of it.

    Attributes:
        work: in words.
        section: of the samples.
        ours: picks the side of ours; of several ways the best.
        against: picks the other one; None: the value itself counts.
        bound: of the ratio, or of the value.
        kind: whether the ratio or the value has to be at least or at most that.
        inverse: whether less is better, so that the ratio is theirs to ours.
    """

    work: str
    section: str
    ours: Choose
    against: Choose | None
    bound: float
    kind: Literal["at least", "at most"] = "at least"
    inverse: bool = False
    unit: str = "x"


@dataclass(frozen=True)
class Reached:
    """What was measured of a floor; without ``value`` it is not built, or was not measured."""

    floor: Floor
    ours: str = ""
    against: str = ""
    value: float | None = None
    low: float = 0.0
    high: float = 0.0

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not built"
        met = self.value >= self.floor.bound if self.floor.kind == "at least" else self.value <= self.floor.bound
        return "met" if met else "**not met**"


def only(name: str) -> Choose:
    return lambda rounds: name if name in rounds else None


def most(*, starts: str = "", ends: str = "", without: str = "\0") -> Choose:
    """The side with the highest median among those that are called so."""
    return lambda rounds: _best(rounds, lambda name: _fits(name, starts, ends, without), max)


def least(*, starts: str = "") -> Choose:
    return lambda rounds: _best(rounds, lambda name: name.startswith(starts), min)


def of_peers(pick: Callable[..., str]) -> Choose:
    names = {peer.name for peer in PEERS}
    return lambda rounds: _best(rounds, names.__contains__, pick)


def _fits(name: str, starts: str, ends: str, without: str) -> bool:
    return name.startswith(starts) and name.endswith(ends) and without not in name


def _best(rounds: Rounds, fits: Callable[[str], bool], pick: Callable[..., str]) -> str | None:
    names = [name for name in rounds if fits(name)]
    return pick(names, key=lambda name: median(rounds[name])) if names else None


OURS, STOCK, BATCHES = "pyventus", "celery", ", batches"

FLOORS = (
    Floor("`emit` on Redis, against `app.send_task` of the same bytes", "emit on redis", only("emit"), only("send_task"), 4.0),
    Floor("`emit` on Redis, against one bare redis-py `LPUSH` of the same bytes", "emit on redis", only("emit"), only("bare"), 0.8),
    Floor(
        "`emit` on RabbitMQ, confirmed, against `app.send_task` with `confirm_publish`",
        "emit on rabbitmq", only("emit"), only("send_task, confirmed"), 1.6,
    ),
    Floor(
        "`emit` on RabbitMQ, `confirm=False`, against `app.send_task` without confirms",
        "emit on rabbitmq", only("emit, unconfirmed"), only("send_task"), 3.5,
    ),
    Floor(
        "`emit_many` on RabbitMQ, confirmed, against `app.send_task` with `confirm_publish`",
        "emit on rabbitmq", only("emit_many"), only("send_task, confirmed"), 12.0,
    ),
    Floor("`emit_many` of 1,000 on Redis, against `app.send_task` in a loop", "emit on redis", only("emit_many"), only("send_task"), 30.0),
    Floor(
        "one worker process draining 10,000 emissions on Redis, against Celery's own tasks",
        "drain", most(starts=OURS, without=BATCHES), most(starts=STOCK), 5.0,
    ),
    Floor("the same in batches from `emit_many`", "drain", most(starts=OURS, ends=BATCHES), most(starts=STOCK), 15.0),
    Floor(
        "one worker process draining emissions on Redis, against the fastest of the other task queues",
        "drain", most(starts=OURS, without=BATCHES), of_peers(max), 1.0,
    ),
    Floor(
        "500 emissions whose async handler sleeps 0.1 s, one worker process: seconds in all",
        "sleepers", least(starts=OURS), None, 0.5, "at most", unit="s",
    ),
    Floor(
        "from before `emit` to the handler's first line, idle worker, median, against a Celery task",
        "latency", least(starts=OURS), least(starts=STOCK), 1.0, inverse=True,
    ),
    Floor("the same, 99th percentile", "latency p99", least(starts=OURS), least(starts=STOCK), 1.0, inverse=True),
    Floor("`emit` to one sync handler in this process, against pyee: times as long", "in process", only(OURS), only("pyee"), 5.0, "at most"),
    Floor("memory of the emitting process, from 20,000 to 100,000 emissions: KB per 1,000", "memory growth", only("emitting process"), None, 1.0, "at most", unit="KB"),
    Floor("memory of the worker process, the same", "memory growth", only("worker process"), None, 1.0, "at most", unit="KB"),
)  # fmt: skip


def reach(samples: Samples) -> list[Reached]:
    return [_reach(floor, _derived(samples).get(floor.section, {})) for floor in FLOORS]


def _reach(floor: Floor, rounds: Rounds) -> Reached:
    ours = floor.ours(rounds)
    if ours is None:
        return Reached(floor)
    if floor.against is None:
        return Reached(floor, ours, "", median(rounds[ours]), min(rounds[ours]), max(rounds[ours]))
    against = floor.against(rounds)
    if against is None:
        return Reached(floor, ours)
    above, below = (against, ours) if floor.inverse else (ours, against)
    # Of one turn each, so that what the machine did meanwhile meets both.
    ratios = [a / b for a, b in zip(rounds[above], rounds[below], strict=False)]
    return Reached(floor, ours, against, median(ratios), min(ratios), max(ratios))


def _derived(samples: Samples) -> dict[str, Rounds]:
    """The samples, with what is computed of them: percentiles, and growth of memory."""
    derived = dict(samples)
    if "latency" in samples:
        sides = samples["latency"].items()
        derived["latency"] = {name: [median(part) for part in _parts(values, 10)] for name, values in sides}
        derived["latency p99"] = {name: [percentile(values, 0.99)] for name, values in sides}
    if "memory" in samples:
        # The first was taken after 20,000 emissions, each further one after as many more.
        derived["memory growth"] = {
            name: [(values[-1] - values[0]) / (20 * (len(values) - 1))] for name, values in samples["memory"].items()
        }
    return derived


def _parts(values: Sequence[float], count: int) -> list[Sequence[float]]:
    size = max(1, len(values) // count)
    return [values[start : start + size] for start in range(0, len(values), size)]


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]

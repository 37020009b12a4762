"""Emissions whose handlers take their process with them, or fail for ever, among good ones."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import redis
from amqp.exceptions import NotFound

from pyventus.emission import Emission
from pyventus.emitters.celery.suspects import MAX_DEATHS, MAX_STARTS
from tests.brokers import RabbitMQ, Valkey
from tests.chaos import IS_LONG, notes, times
from tests.chaos.load import PREFORK, QUICK_RESTORES, THREADS, Crew, crew, seed, wait_while, waiting
from tests.functional.apps.support import new_emitter, new_queue

GOOD = times(100, 1_000)
# Of each kind.
BAD = times(1, 10)
LARGE = times(3, 10)
# Of poison_app.
ATTEMPTS = 3


@dataclass(frozen=True)
class End:
    """What is to become of a kind of emission: how often it is started, and why it is a dead letter."""

    starts: range
    reason: str


FAILS = End(range(ATTEMPTS, ATTEMPTS + 1), "failed")
# One more where the child died before the main process had read that it had begun: the pool gives it to the next child.
KILLS = End(range(MAX_STARTS, MAX_STARTS + 2), "lost")
# Where the whole worker dies: started beside another that killed it, or only fetched, and then suspected for nothing.
FAILS_AMONG_DYING = End(range(ATTEMPTS, 1000), "failed")
KILLS_AMONG_DYING = End(range(MAX_DEATHS, MAX_STARTS + 1), "lost")
SECONDS = times(50, 900)

LONG = pytest.mark.skipif(not IS_LONG, reason="takes minutes: make chaos")
SOLO = ("-P", "solo")

pytestmark = pytest.mark.chaos


@pytest.fixture(params=["redis", pytest.param("own", marks=LONG), pytest.param("amqp", marks=LONG)])
def broker_url(request: pytest.FixtureRequest, queue_name: str) -> Iterator[str]:
    """A Redis of its own, which holds nothing else, or RabbitMQ."""
    if request.param != "amqp":
        with Valkey() as server:
            yield server.url if request.param == "redis" else f"pyventus-{server.url}"
    else:
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        yield rabbitmq.url
        new_queue(rabbitmq.url, queue_name).dead_letters.purge()
        rabbitmq.delete(queue_name)


class Meal:
    """Good emissions and poisonous ones, in an order of chance."""

    def __init__(self, url: str, queue: str, ends: dict[str, End], folder: Path) -> None:
        self.url = url
        self.queue = queue
        self.ends = ends
        self.file = folder / "notes"
        self.emissions: dict[tuple[str, int], Emission] = {}
        self.letters = new_queue(url, queue).dead_letters

    def serve(self, large: int) -> None:
        portions = {"good": GOOD, "large": large, **dict.fromkeys(self.ends, BAD)}
        courses = [(kind, number) for kind, count in portions.items() for number in range(count)]
        choice = seed()
        print(f"seed {choice}, {len(courses)} emissions of {', '.join(portions)}")
        Random(choice).shuffle(courses)
        emitter = new_emitter(self.url, self.queue)
        for kind, number in courses:
            self.emissions[kind, number] = emitter.emit(kind, number)

    def is_over(self) -> bool:
        return self.missing() == set() and len(self.letters.list()) >= len(self.bad()) and self.is_eaten_up()

    def is_eaten_up(self) -> bool:
        """RabbitMQ tells only when its consumers are gone what they have not acknowledged."""
        return waiting(self.url, self.queue) == 0

    def bad(self) -> set[tuple[str, int]]:
        return {each for each in self.emissions if each[0] in self.ends}

    def missing(self) -> set[tuple[str, int]]:
        return self.emissions.keys() - self.bad() - notes.count(self.file, "effect").keys()

    def counted(self) -> set[str]:
        """Ids of messages whose starts are counted, because their process may have died of them."""
        prefix = f"{self.queue}.starts."
        if not self.url.startswith("amqp"):
            with redis.Redis.from_url(self.url.removeprefix("pyventus-"), decode_responses=True) as client:
                return {str(name).removeprefix(prefix) for name in client.keys(f"{prefix}*")}
        ids = {emission.id for emission in self.emissions.values()}
        return {each for each in ids if _exists(RabbitMQ(self.url), prefix + each)}

    def check(self) -> None:
        assert self.missing() == set(), "good ones did not run"
        assert not notes.count(self.file, "spoiled"), "a process that was too large was not replaced"
        starts = notes.count(self.file, "start")
        assert {each: starts[each] for each in self.bad() if starts[each] not in self.ends[each[0]].starts} == {}
        reasons = {(letter.event, letter.emission): letter.reason for letter in self.letters.list()}
        assert reasons == {(each[0], self.emissions[each].id): self.ends[each[0]].reason for each in self.bad()}
        assert len(self.letters.list()) == len(self.bad())
        assert self.is_eaten_up()
        lost = {each for each in self.bad() if self.ends[each[0]].reason == "lost"}
        assert self.counted() == {self.emissions[each].id for each in lost}, "those of others are of no use any more"


def _exists(rabbitmq: RabbitMQ, queue: str) -> bool:
    try:
        return rabbitmq.depth(queue) >= 0
    except NotFound:
        return False


def poison_env(url: str, queue: str, file: Path) -> dict[str, str]:
    settings = {"task_time_limit": times(1, 2), "worker_max_memory_per_child": 150_000}
    return {
        "POISON_BROKER": url,
        "POISON_QUEUE": queue,
        "POISON_NOTES": str(file),
        "POISON_SETTINGS": json.dumps({**settings, **(QUICK_RESTORES if not url.startswith("amqp") else {})}),
    }


def digest(
    url: str, queue: str, folder: Path, workers: list[tuple[str, ...]], kinds: dict[str, End], large: int
) -> Crew:
    """Have workers run a meal, restart those that die of it, and check what is left."""
    meal = Meal(url, queue, kinds, folder)
    with crew("tests.chaos.poison_app", folder, poison_env(url, queue, meal.file), *workers) as made:
        meal.serve(large)
        began = time.monotonic()
        wait_while(lambda: not meal.is_over(), made, SECONDS)
        made.stop()
        while not meal.is_eaten_up() and time.monotonic() < began + SECONDS:
            # Back from a worker that was at it.
            for worker in workers:
                made.start(*worker)
            wait_while(lambda: not meal.is_over(), made, SECONDS)
            made.stop()
    print(f"{made.deaths} workers died, {time.monotonic() - began:.0f} s")
    meal.check()
    return made


def test_prefork(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """A child dies of it, and the worker lives."""
    kills = dict.fromkeys(("exits", "leaves", "dies", "hangs"), KILLS)
    fails = dict.fromkeys(("raises", "exhausts"), FAILS)
    made = digest(broker_url, queue_name, tmp_path, [PREFORK], kills | fails, LARGE)
    assert made.deaths == 0


def test_what_follows_is_stored_before_the_acknowledgement(queue_name: str, tmp_path: Path) -> None:
    """The process dies of the very next emission; a dead letter and a retry are there."""
    with Valkey() as server:
        emitter = new_emitter(server.url, queue_name)
        for kind in ("fails", "raises", "dies"):
            emitter.emit(kind, 0)
        env = poison_env(server.url, queue_name, tmp_path / "notes")
        made = Crew("tests.chaos.poison_app", tmp_path, env)
        try:
            assert made.start(*SOLO).wait() == -signal.SIGKILL
        finally:
            made.close()
        assert [letter.event for letter in new_queue(server.url, queue_name).dead_letters.list()] == ["fails"]
        assert waiting(server.url, queue_name) == 2, "the retry, and what was not acknowledged"


# Not on Redis: of some of the workers' deaths messages are lost there that they were fetching.
@LONG
@pytest.mark.parametrize("broker_url", ["amqp"], indirect=True)
def test_solo(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """The worker dies of it, with all that it had fetched. No time limit could end what hangs there."""
    kills = dict.fromkeys(("exits", "leaves", "dies"), KILLS_AMONG_DYING)
    fails = dict.fromkeys(("raises", "exhausts"), FAILS_AMONG_DYING)
    made = digest(broker_url, queue_name, tmp_path, [SOLO, SOLO], kills | fails, large=0)
    assert made.deaths


@LONG
@pytest.mark.parametrize("broker_url", ["amqp"], indirect=True)
def test_threads(broker_url: str, queue_name: str, tmp_path: Path) -> None:
    """The worker dies of it, with all that it had fetched; sys.exit() ends no thread, and counts as a failure."""
    kills = dict.fromkeys(("exits", "dies"), KILLS_AMONG_DYING)
    fails = {**dict.fromkeys(("raises", "exhausts"), FAILS_AMONG_DYING), "leaves": End(range(1, 1000), "failed")}
    made = digest(broker_url, queue_name, tmp_path, [THREADS, THREADS], kills | fails, large=0)
    assert made.deaths

import asyncio
import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from benchmarks.oracle import note as note_moment

broker = RedisBroker(url=os.environ["BENCH_BROKER"])
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)


@dramatiq.actor
def note(number: int, text: str) -> None:
    note_moment(number)


@dramatiq.actor
async def nap(number: int, text: str) -> None:
    await asyncio.sleep(0.1)
    note_moment(number)


if __name__ == "__main__":
    actor, text = {"note": note, "nap": nap}[sys.argv[1]], "x" * 570
    for number in range(int(sys.argv[2])):
        # This module is called otherwise where the worker imports it.
        actor.send(number, text)

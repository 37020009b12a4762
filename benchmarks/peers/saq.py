import asyncio
import os
import sys
from typing import Any

from saq import Queue

from benchmarks.oracle import note as note_moment

queue = Queue.from_url(os.environ["BENCH_BROKER"])


async def note(context: Any, *, number: int, text: str) -> None:
    note_moment(number)


async def nap(context: Any, *, number: int, text: str) -> None:
    await asyncio.sleep(0.1)
    note_moment(number)


settings = {"queue": queue, "functions": [note, nap], "concurrency": 20}
sleeping = {**settings, "concurrency": 500}


async def fill(what: str, count: int) -> None:
    await queue.connect()
    text = "x" * 570
    for number in range(count):
        await queue.enqueue(what, number=number, text=text, ttl=-1, timeout=0)
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2])))

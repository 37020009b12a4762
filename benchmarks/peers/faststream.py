import asyncio
import os
import sys

from faststream import FastStream
from faststream.redis import ListSub, RedisBroker

from benchmarks.oracle import note as note_moment

broker = RedisBroker(os.environ["BENCH_BROKER"], logger=None)
app = FastStream(broker)


@broker.subscriber(list=ListSub("note", polling_interval=0.01), max_workers=500)
async def note(number: int, text: str) -> None:
    note_moment(number)


@broker.subscriber(list=ListSub("nap", polling_interval=0.01), max_workers=500)
async def nap(number: int, text: str) -> None:
    await asyncio.sleep(0.1)
    note_moment(number)


async def fill(what: str, count: int) -> None:
    text = "x" * 570
    async with broker:
        for number in range(count):
            await broker.publish({"number": number, "text": text}, list=what)


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2])))

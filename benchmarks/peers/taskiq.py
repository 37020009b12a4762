import asyncio
import os
import sys

from taskiq_redis import RedisStreamBroker

from benchmarks.oracle import note as note_moment

broker = RedisStreamBroker(os.environ["BENCH_BROKER"], consumer_id="0", xread_count=100)


@broker.task(task_name="note")
async def note(number: int, text: str) -> None:
    note_moment(number)


@broker.task(task_name="nap")
async def nap(number: int, text: str) -> None:
    await asyncio.sleep(0.1)
    note_moment(number)


async def fill(what: str, count: int) -> None:
    await broker.startup()
    task, text = {"note": note, "nap": nap}[what], "x" * 570
    for number in range(count):
        await task.kiq(number, text)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2])))

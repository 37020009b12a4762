import asyncio
import os
import sys
from typing import Any, ClassVar

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.oracle import note as note_moment

SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_BROKER"])


async def note(context: Any, number: int, text: str) -> None:
    note_moment(number)


async def nap(context: Any, number: int, text: str) -> None:
    await asyncio.sleep(0.1)
    note_moment(number)


class Worker:
    functions: ClassVar = [note, nap]
    redis_settings = SETTINGS
    max_jobs = 500
    poll_delay = 0.01
    keep_result = 0
    log_results = False


async def fill(what: str, count: int) -> None:
    pool, text = await create_pool(SETTINGS), "x" * 570
    for number in range(count):
        await pool.enqueue_job(what, number, text)


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2])))

"""``celery`` with the command ``pyventus check``, as a command line of its own."""

from __future__ import annotations

import click
from celery.bin.celery import celery, main

from pyventus.emitters.celery.check import check_command


@click.group()
def pyventus() -> None: ...


pyventus.add_command(check_command)
celery.add_command(pyventus)

if __name__ == "__main__":
    main()
